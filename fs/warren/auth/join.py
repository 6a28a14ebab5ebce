"""Joining: the token that lets somebody without a certificate ask for one, once.

    ticket = Ticket.make(root, uri, queen, expires)       minted by the authority
    ticket.write()                                        the text that is handed over; a secret
    read_ticket(text)                                     BadText if it is none
    request(key)                                          a signing request that says nothing but its key

    text    warren-join 1                                 and lines of base64url, as token files have them
    data    msgpack [secret, root, uri, queen, expires]
    id      SHA-256("warren join 1" 0 secret), in hexadecimal: all that the authority keeps of the secret

The joiner knows nobody yet, so the token brings what it needs to know whom it speaks to: the hive's root
certificate, and the pattern that the name of the other end must fit. Both are held against the other end's
certificate in the handshake, and a wrong one is hung up on before a byte is sent. Whoever carried the token
to the joiner vouches for the root in it; `fingerprint` is what two people may compare.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from warren.auth import spiffe
from warren.auth.blocks import BadText, read_parts, write_parts
from warren.auth.certificates import PrivateKey, PublicKey, organisation

PART: Final = "warren-join"
SECRET_BYTES: Final = 32
LONGEST: Final = 8192  # a token and a signing request together
_ID: Final = b"warren join 1\0"
_data = msgspec.msgpack.Decoder(tuple[bytes, bytes, str, str, int])


class Ticket(NamedTuple):
    """A join token, as it is written: what it says is the authority's word only once that has taken it."""

    secret: bytes
    root: bytes
    uri: str
    queen: str
    expires: int

    @classmethod
    def make(cls, root: x509.Certificate, uri: str, queen: str, expires: int) -> Ticket:
        """A fresh one for whoever is to be URI."""
        return cls(
            secrets.token_bytes(SECRET_BYTES), root.public_bytes(Encoding.DER), uri, queen, expires
        )

    @property
    def id(self) -> str:
        return hashlib.sha256(_ID + self.secret).hexdigest()

    @property
    def name(self) -> spiffe.Name:
        return spiffe.parse(self.uri)

    @property
    def certificate(self) -> x509.Certificate:
        """The root to trust, and no other. BadText if it is none."""
        try:
            root = x509.load_der_x509_certificate(self.root)
            organisation(root)
        except (ValueError, TypeError, IndexError, x509.InvalidVersion):
            raise BadText("it is damaged: the root in it is no certificate of a hive") from None
        return root

    @property
    def hive(self) -> str:
        return organisation(self.certificate)

    def write(self) -> str:
        return write_parts([(PART, msgspec.msgpack.encode(tuple(self)))])

    def __repr__(self) -> str:
        return f"Ticket({self.uri}, secret=***)"


def read_ticket(text: str) -> Ticket:
    """The join token that TEXT is; its root is not looked at. An error never quotes it."""
    if len(text) > LONGEST:
        raise BadText("it is too long for a join token")
    parts = read_parts(text)
    if [name for name, _ in parts] != [PART]:
        raise BadText("a join token is one part that begins: warren-join 1")
    try:
        ticket = Ticket(*_data.decode(parts[0][1]))
        whole = len(ticket.secret) == SECRET_BYTES and len(ticket.name.parts) == 3
    except (msgspec.MsgspecError, ValueError):
        whole = False
    if not whole:
        raise BadText("it is damaged: it is not the contents of a join token")
    return ticket


def fingerprint(certificate: x509.Certificate) -> str:
    """What two people compare: the SHA-256 of a certificate."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def request(key: PrivateKey) -> bytes:
    """A signing request, in PEM. It asks for no name: the authority knows which."""
    digest = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest)
    return made.public_bytes(Encoding.PEM)


def key_digest(key: PublicKey) -> str:
    """What is kept of the key that took a token: the SHA-256 of it whole."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
