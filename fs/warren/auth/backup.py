"""A CA in one file, for the safe: every file of its directory, encrypted under a passphrase.

The file is a line of JSON (the format, and how the key is derived from the passphrase: scrypt) and then
AES-256-GCM over the files, with that line authenticated too. What comes back is what went in, byte by
byte, or nothing: a wrong passphrase and a changed file are refused alike. The root's key is in it if it
is in the directory; it may be kept in a backup of its own.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from warren.auth import keyfiles
from warren.auth.refusal import Missing, Refusal, Standing
from warren.auth.shelf import Shelf

FORMAT = "warren-ca-backup/1"
SHORTEST_PASSPHRASE = 12
_COST = {"n": 1 << 16, "r": 8, "p": 1}  # 64 MiB and a fifth of a second
_LARGEST = 256 << 20


class Saved(NamedTuple):
    """What a backup holds: file names, and whether the root's key is one of them."""

    files: list[str]
    root_key: bool


def backup(directory: str | os.PathLike[str], out: str | os.PathLike[str], passphrase: bytes) -> Saved:
    """Write the CA in DIRECTORY to the file OUT, which must not be there yet."""
    where, to = Path(directory), Path(out)
    Shelf(where).domain()
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise Refusal(
            "the passphrase is too short", f"take {SHORTEST_PASSPHRASE} characters or more, better a sentence"
        )
    if to.exists():
        raise Standing(f"{to}: it is there already", "give a new name; an old backup is not written over")
    with keyfiles.locked(where):
        paths = sorted(p for p in where.rglob("*") if p.is_file() and not p.name.startswith("."))
        held = {str(p.relative_to(where)): base64.b64encode(p.read_bytes()).decode() for p in paths}
    salt, nonce = os.urandom(16), os.urandom(12)
    head = json.dumps({"format": FORMAT, "salt": salt.hex(), "nonce": nonce.hex(), **_COST}).encode() + b"\n"
    sealed = AESGCM(_key(passphrase, salt, _COST)).encrypt(nonce, json.dumps(held).encode(), head)
    keyfiles.write_whole(to, head + sealed)
    return Saved(list(held), "root.key" in held)


def restore(file: str | os.PathLike[str], directory: str | os.PathLike[str], passphrase: bytes) -> Saved:
    """Make DIRECTORY, which is empty or not there, what it was when FILE was written."""
    where = Path(directory)
    try:
        with open(file, "rb") as source:
            data = source.read(_LARGEST)
    except FileNotFoundError:
        raise Missing(f"{file}: there is no such file", "see that the path is right") from None
    head, newline, sealed = data.partition(b"\n")
    try:
        said = json.loads(head)
        salt, nonce = bytes.fromhex(said["salt"]), bytes.fromhex(said["nonce"])
        if said["format"] != FORMAT or len(nonce) != 12 or {k: said[k] for k in _COST} != _COST:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"{file}: it is no backup of a CA", "give a file that warren ca backup wrote") from None
    try:
        plain = AESGCM(_key(passphrase, salt, _COST)).decrypt(nonce, sealed, head + newline)
    except InvalidTag:
        raise Refusal(
            f"{file}: the passphrase is wrong, or the file was changed", "try again, or another copy"
        ) from None
    held = {name: base64.b64decode(text) for name, text in json.loads(plain).items()}
    keyfiles.make_directory(where)
    with keyfiles.locked(where):
        if any(where.iterdir()):
            raise Standing(f"{where}: it is not empty", "give a directory that is, or is not there yet")
        # `hive` last: without it a directory that a crash left half restored is no CA.
        for name in sorted(held, key=lambda name: (name == "hive", name)):
            path = where / name
            for above in reversed(path.relative_to(where).parents[:-1]):
                keyfiles.make_directory(where / above)
            keyfiles.write_whole(path, held[name])
    return Saved(list(held), "root.key" in held)


def _key(passphrase: bytes, salt: bytes, cost: dict[str, int]) -> bytes:
    return Scrypt(salt=salt, length=32, **cost).derive(passphrase)
