"""Founding a hive: its authority, its roles' identities, and the key with which the queen mints.

    STATE/pki/ca/                the authority: `warren ca` works on it too
    STATE/pki/NAME/              cert.pem key.pem ca.pem crl.pem minters: what `--id` takes
    STATE/pki/queen/minter.key   mints tokens; `minters` certifies it, and every role knows it

    keep(state, hive)            makes what is missing and renews what has lived half its life

A key is never written over. A certificate that runs out is signed anew for the key that is there; one that
was revoked is left as it is, for that was meant. Everything may be done again at any time, by anybody who
holds the authority's key: `warren up` does it, and the supervisor once an hour.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth import keyfiles
from warren.auth.blocks import BadText, read_parts, write_parts
from warren.auth.ca import CA, TTL
from warren.auth.certificates import issuer_of, load_chain, load_key, pem, same_key, uris, utc_now
from warren.auth.minters import certify, read
from warren.auth.refusal import Refusal
from warren.auth.rights import parse_grant
from warren.roles.state import QUEEN, Hive, State

MINTER_TTL = timedelta(days=30)
# What a token may say at most. What it gives is that and no more than the server's own rows give its
# bearer's caller; see docs/tokens.md, Delegation.
_MAY_MINT = "read,write,create,remove,ctl /**"

Tell = Callable[[str], None]


def keep(state: State, hive: Hive, tell: Tell, now: datetime | None = None) -> None:
    """See that everything is there and will be for a while. A machine that has joined keeps no authority."""
    if hive.joined:
        return
    now = now or utc_now()
    if (state.ca / "hive").exists():
        ca = CA(state.ca)
        if ca.domain != hive.hive:
            raise Refusal(f"{state.ca}: it is the authority of {ca.domain}", f"hive.toml says {hive.hive}")
    else:
        ca = _create(state.ca, hive.hive, now)
    for name in hive.roles:
        _identity(ca, hive.uri(name), state.pki(name), now, tell)
    if QUEEN in hive.roles:
        _minter(ca, state.pki(QUEEN), now)
    for name in hive.roles:
        _copy(state.ca / "minters", state.pki(name) / "minters")
        _copy(state.ca / "crl.pem", state.pki(name) / "crl.pem")


def _create(where: Path, hive: str, now: datetime) -> CA:
    """A new authority, there as a whole or not at all: nobody can use what a crash left beside."""
    beside = where.with_name("ca.new")
    shutil.rmtree(beside, ignore_errors=True)
    CA.create(beside, hive, now=now)
    os.rename(beside, where)
    keyfiles.sync_directory(where.parent)
    return CA(where)


def _identity(ca: CA, uri: str, where: Path, now: datetime, tell: Tell) -> None:
    """Issue an identity, or renew its certificate."""
    if not (where / "key.pem").exists():
        ca.issue(uri, where, now=now)
        return
    key = load_key(keyfiles.read_secret(where / "key.pem"), where / "key.pem")
    if (where / "cert.pem").exists():
        chain = load_chain(keyfiles.read_open(where / "cert.pem"), where / "cert.pem")
        leaf = chain[0]
        known = next((c for c in ca.certificates() if c.serial == leaf.serial_number), None)
        if known is not None and known.revoked is not None:
            tell(f"{where}: its certificate was revoked; to let it in again, move the folder away")
            return
        current = (
            same_key(leaf, key)
            and uris(leaf) == [uri]
            and issuer_of(leaf) == ca.shelf.issuer().id
            and leaf.not_valid_after_utc - now > TTL / 2
            and _held(where / "ca.pem") == ca.bundle()
        )
        if current:
            return
    chain = ca.certify(key.public_key(), uri, now=now)
    with keyfiles.locked(where):
        keyfiles.write_whole(where / "ca.pem", ca.bundle())
        keyfiles.write_whole(where / "cert.pem", pem(*chain))


def _minter(ca: CA, where: Path, now: datetime) -> None:
    """The queen's key for tokens, and the authority's word for it."""
    path = where / "minter.key"
    if path.exists():
        key = ser.load_pem_private_key(keyfiles.read_secret(path), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise Refusal(f"{path}: it holds no Ed25519 key", "move it away; a new one will be made")
    else:
        key = Ed25519PrivateKey.generate()
        secret = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        keyfiles.write_whole(path, secret)
    public = key.public_key().public_bytes_raw()
    minters = ca.directory / "minters"
    with keyfiles.locked(ca.directory):
        others, fresh = [], False
        roots = load_chain(ca.bundle(), "the roots")
        text = _held(minters).decode("ascii", "replace")
        try:
            for part in read_parts(text) if text.strip() else ():
                alone = write_parts([part])
                for one in read(alone, roots, now):
                    if one.key != public:
                        others.append(alone)
                    elif one.expires - now.timestamp() > MINTER_TTL.total_seconds() / 2:
                        fresh = True
        except BadText as e:
            raise Refusal(f"{minters}: {e}", "somebody has changed it; move it away") from None
        if fresh:
            return
        left = ca.shelf.issuer().certificate.not_valid_after_utc - now
        entry = certify(ca, public, [parse_grant(_MAY_MINT)], min(MINTER_TTL, left), now)
        keyfiles.write_whole(minters, "\n".join([*others, entry]).encode())


def _copy(source: Path, to: Path) -> None:
    """A copy for a role that starts before it can ask; the running one hears of changes by the watch."""
    data = _held(source)
    if data and data != _held(to):
        keyfiles.write_whole(to, data)


def _held(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
