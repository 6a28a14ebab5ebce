"""Signed role files: who may change what a role is.

    PKI/boot.pub              an Ed25519 public key, PEM; while it is there, files in STATE/roles need
    STATE/roles/FILE.sig      the signature of FILE, base64

    sign(path, key)           writes FILE.sig
    verify(path, text, pki)   `yes`, `unsigned`, or why it does not hold
    proved(manifest, pki)     the manifest that may run: this one, or a restricted one

What is signed is `warren role 1`, a zero byte, the file's name, a zero byte, and the file's bytes. So a good
file under another name is a bad one. Every file that a role was read from must hold, those it includes and
its namespace too. Files that came with the program are as good as the program, and are not looked at.

It does not help against who can write to PKI: who replaces boot.pub, or removes it, decides what is signed.
Nor does it tell a file that was signed from one that was signed later: who can put an old file and its
signature back, can undo a change.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from warren.auth.certificates import Unfit, load_key
from warren.auth.keyfiles import read_open, write_whole
from warren.auth.refusal import Missing, Refusal
from warren.roles.library import PACKAGE
from warren.roles.manifest import Manifest, Part
from warren.roles.restricted import restricted

KEY: Final = "boot.pub"
YES, NO, UNSIGNED = "yes", "no", "unsigned"


def message(name: str, data: bytes) -> bytes:
    """What is signed of a file."""
    return b"warren role 1\0" + name.encode() + b"\0" + data


def sign(path: Path, key_pem: bytes) -> Path:
    """Write the signature of the file at PATH beside it, and say where."""
    key = load_key(key_pem, "the key")
    if not isinstance(key, Ed25519PrivateKey):
        raise Unfit("the key: role files are signed with Ed25519", "openssl genpkey -algorithm ed25519")
    where = _beside(path)
    write_whole(where, base64.b64encode(key.sign(message(path.name, path.read_bytes()))) + b"\n")
    return where


def verify(path: Path, text: str, pki: Path) -> str:
    """`yes`, `unsigned` where no key asks for signatures, else why TEXT, read from PATH, does not hold."""
    try:
        key = _key(pki / KEY)
        if key is None:
            return UNSIGNED
        data = read_open(_beside(path))
        key.verify(base64.b64decode(data.strip(), validate=True), message(path.name, text.encode()))
    except Missing:
        return f"{path} is not signed, and {pki / KEY} asks for it; sign it, or take it away"
    except Refusal as e:
        return str(e)
    except OSError as e:
        return f"{e.filename}: {e.strerror}; see that the role may read it"
    except (InvalidSignature, binascii.Error):
        return f"{path} is not what was signed; see who changed it, then sign it again or put it back"
    return YES


def proved(manifest: Manifest, pki: Path) -> tuple[Manifest, str]:
    """What may run, and `yes`, `unsigned`, `package`, or `no` if that is a restricted role."""
    found = [_of(part, pki) for part in manifest.parts]
    for says in found:
        if says not in (YES, UNSIGNED, PACKAGE):
            return restricted(manifest.role, says), NO
    return manifest, next((word for word in (UNSIGNED, YES) if word in found), PACKAGE)


def _of(part: Part, pki: Path) -> str:
    if part.source == PACKAGE:
        return PACKAGE
    return verify(Path(part.source), part.text, pki) if part.source else f"{part.name} was read from no file"


def _key(path: Path) -> Ed25519PublicKey | None:
    try:
        key = load_pem_public_key(read_open(path))
    except Missing:
        return None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise Unfit(f"{path}: it holds no Ed25519 public key", "openssl pkey -in KEY -pubout")
    return key


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")
