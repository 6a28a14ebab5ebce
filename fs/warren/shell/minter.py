"""warren ca minter: certify a key that may mint tokens, and put it into the file that servers read.

One entry a key: certifying it again replaces what was said of it before, and what has run out is dropped.
The file is written whole, under the lock of the CA's directory.
"""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warren.shell import exits
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from warren.auth.ca import CA
    from warren.auth.rights import Row

TTL = timedelta(days=30)


def add(args: Namespace, authority: CA, file: str, ttl: timedelta, done: Callable[..., None]) -> None:
    """Certify the public key in FILE with --allow, for TTL; DONE says so."""
    from warren.auth import keyfiles
    from warren.auth.blocks import issuer_id
    from warren.auth.certificates import utc_now
    from warren.auth.minters import certify

    rows = _rows(args.allow)
    key = _public(file)
    now = utc_now()
    last = authority.shelf.issuer().certificate.not_valid_after_utc
    if now + ttl > last:
        text = f"the CA's issuer, which signs this, lasts until {_date(last)}"
        way_out = "choose a shorter --ttl, or make a new issuer: warren ca rotate"
        raise Stopped(errno.EINVAL, text, "", way_out, exits.BAD_INPUT)
    where = Path(authority.directory) / "minters"
    entry = certify(authority, key, rows, ttl, now)
    with keyfiles.locked(where.parent):
        keyfiles.write_whole(where, "\n".join([*_others(where, key, authority, now), entry]).encode())
    ends = _date(now + ttl)
    may = [row.grant for row in rows]
    name = issuer_id(key).hex()
    document: dict[str, Any] = {"issuer": name, "allow": may, "not_after": ends, "file": str(where)}
    done(args, document, f"{file} may mint {'; '.join(may)} until {ends}, issuer {name}, in {where}")


def _rows(given: list[str]) -> list[Row]:
    from warren.auth.rights import DELEGATE, BadRow, parse_grant

    if not given:
        raise Usage("warren ca minter: what may it mint? Say --allow 'RIGHTS PATTERN', as 'read /pub/**'")
    try:
        rows = [parse_grant(text) for text in given]
    except BadRow as e:
        raise Usage(f"warren ca minter: --allow {e}; see warren help ca") from None
    if any(row.rights & DELEGATE for row in rows):
        raise Usage("warren ca minter: --allow: no token states delegate; say it in a server's --allow")
    return rows


def _public(file: str) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from warren.auth import keyfiles

    data = keyfiles.read_open(Path(file))
    key: object = None
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        pass
    if not isinstance(key, Ed25519PublicKey):
        way_out = "give FILE.pub of warren token keygen; the private key stays with who mints"
        raise Stopped(errno.EINVAL, "it holds no public Ed25519 key in PEM", file, way_out, exits.BAD_INPUT)
    return key.public_bytes_raw()


def _others(where: Path, key: bytes, authority: CA, now: datetime) -> list[str]:
    """The entries that stay."""
    from warren.auth.blocks import BadText, read_parts, write_parts
    from warren.auth.certificates import load_chain
    from warren.auth.minters import read

    kept = []
    try:
        text = where.read_text() if where.exists() else ""
        roots = load_chain(authority.bundle(), "the roots")
        for part in read_parts(text) if text.strip() else ():
            alone = write_parts([part])
            [one] = read(alone, roots, now)
            if one.key != key and one.expires > now.timestamp():
                kept.append(alone)
    except (BadText, UnicodeDecodeError) as e:
        way_out = "somebody has changed it; move it away, and certify its keys again"
        raise Stopped(errno.EINVAL, str(e), os.fspath(where), way_out, exits.BAD_INPUT) from None
    return kept


def _date(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"
