"""Keys of files, for signing heads and for checking them: Ed25519, or ECDSA on P-256 with SHA-256.

A signer's file is a private key in PEM, without a passphrase. A checker's file is the public key or a
certificate in PEM. The key id is the first 16 hex digits of the SHA-256 of the public key's DER.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


def key_id(public: Public) -> str:
    """The name of a key."""
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


class FileSigner:
    """Signs with the private key of a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        raw = Path(path).read_bytes()
        try:
            key = load_pem_private_key(raw, None)
        except (ValueError, TypeError) as e:
            raise _no_key(path, "a private key in PEM without a passphrase") from e
        if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            raise _no_key(path, "an Ed25519 or P-256 key")
        self._key = key
        self.key_id = key_id(key.public_key())

    def sign(self, data: bytes) -> bytes:
        """The signature over DATA."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        return self._key.sign(data, ec.ECDSA(SHA256()))


class FileChecker:
    """Checks with the public key of a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        raw = Path(path).read_bytes()
        try:
            certified = b"-----BEGIN CERTIFICATE-----" in raw
            key = x509.load_pem_x509_certificate(raw).public_key() if certified else load_pem_public_key(raw)
        except (ValueError, TypeError) as e:
            raise _no_key(path, "a public key or a certificate in PEM") from e
        if not isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
            raise _no_key(path, "an Ed25519 or P-256 key")
        self._key = key
        self.key_id = key_id(key)

    def check(self, signature: bytes, data: bytes) -> bool:
        """Whether SIGNATURE is over DATA."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def _no_key(path: str | os.PathLike[str], wanted: str) -> OSError:
    return OSError(errno.EINVAL, f"this is not {wanted}", os.fspath(path))
