"""Minters: the keys that may mint tokens, as the hive's authority certifies them.

    certified = certify(ca, public_key, rows, ttl)      one entry, to put into a file `minters`
    read(text, roots, now)                              the issuers of such a file that count now

An entry is the chain of the CA's issuer (so that a server which knows only the root can check it) and the
statement that the issuer signed: the key, what it may mint, from when until when. A file holds any
number of entries, each a part `warren-minter`; one that does not check spoils the file, since a file that
somebody has changed is not to be trusted in its other lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from warren.auth.blocks import BadText, read_parts, write_parts
from warren.auth.ca import CA
from warren.auth.certificates import PrivateKey, PublicKey, check_strength
from warren.auth.rights import Row
from warren.auth.token import Issuer, read_issuer

PART = "warren-minter"
_BACKDATED = 300  # seconds, for clocks that are behind
_entry = msgspec.msgpack.Decoder(tuple[list[bytes], bytes])


def certify(ca: CA, key: bytes, rows: Iterable[Row], ttl: timedelta, now: datetime) -> str:
    """The part that lets KEY, 32 bytes of an Ed25519 public key, mint ROWS at most, for TTL."""
    issuer = ca.shelf.issuer()
    begins = int(now.timestamp()) - _BACKDATED
    made = Issuer(key, tuple(rows), begins, int((now + ttl).timestamp()))
    certified = made.certify(lambda message: _sign(issuer.key, message))
    chain = [issuer.certificate, *ca.shelf.crossings(issuer.certificate)]
    ders = [c.public_bytes(Encoding.DER) for c in chain]
    return write_parts([(PART, msgspec.msgpack.encode((ders, certified)))])


def read(text: str, roots: Sequence[x509.Certificate], now: datetime) -> list[Issuer]:
    """Every minter of the file. BadText if one of them was not certified under ROOTS."""
    issuers = []
    for name, data in read_parts(text) if text.strip() else ():
        if name != PART:
            raise BadText(f"a part {name} among the minters")
        try:
            ders, certified = _entry.decode(data)
            chain = [x509.load_der_x509_certificate(der) for der in ders]
        except (msgspec.MsgspecError, ValueError):
            raise BadText("not the entry of a minter") from None
        issuers.append(read_issuer(certified, partial(_holds, _believed(chain, roots, now))))
    return issuers


def _believed(chain: list[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime) -> PublicKey:
    """The key of the chain's first certificate, if a root vouches for it, through crossings if need be."""
    if not chain or len(chain) > 4:
        raise BadText("a minter is vouched for by a chain of one to four certificates")
    for lower, upper in zip(chain, [*chain[1:], None], strict=True):
        constraints = lower.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca or not lower.not_valid_before_utc <= now <= lower.not_valid_after_utc:
            raise BadText("a minter's certifier is no authority, or not now")
        if any(_issued(lower, root) for root in roots):
            return check_strength(chain[0].public_key())
        if upper is None or not _issued(lower, upper):
            break
    raise BadText("a minter that no root of ours vouches for")


def _issued(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _sign(key: PrivateKey, message: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashes.SHA256()))
    return key.sign(message)


def _holds(key: PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True
