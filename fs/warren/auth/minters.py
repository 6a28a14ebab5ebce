"""Minters: the keys that may mint tokens, as the hive's authority certifies them.

    certified = certify(ca, public_key, rows, ttl)      one entry, to put into a file `minters`
    read(text, roots, now)                              the issuers of such a file that count now

An entry is the chain of the CA's issuer (so that a server which knows only the root can check it) and the
statement that the issuer signed: the key, what it may mint, from when until when. A file holds any
number of entries, each a part `warren-minter`; one that does not check spoils the file, since a file that
somebody has changed is not to be trusted in its other lines. One that has merely run out is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from warren.auth.certificates import (
    PrivateKey,
    PublicKey,
    check_strength,
    domains,
    issuer_of,
    organisation,
)
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


def read(
    text: str,
    roots: Sequence[x509.Certificate],
    now: datetime,
    revoked: Callable[[str, str], bool] = lambda issuer, serial: False,
) -> list[Issuer]:
    """Every minter of the file that counts NOW. BadText if one was not certified under ROOTS.

    One whose certifier has run out, or is REVOKED by (issuer, serial), is left out: that is no tampering.
    """
    issuers = []
    for name, data in read_parts(text) if text.strip() else ():
        if name != PART:
            raise BadText(f"a part {name} among the minters")
        try:
            ders, certified = _entry.decode(data)
            chain = [x509.load_der_x509_certificate(der) for der in ders]
        except (msgspec.MsgspecError, ValueError):
            raise BadText("not the entry of a minter") from None
        issuer = read_issuer(certified, partial(_holds, _vouched(chain, roots)))
        if all(c.not_valid_before_utc <= now <= c.not_valid_after_utc for c in chain) and not any(
            revoked(issuer_of(c), f"{c.serial_number:x}") for c in chain
        ):
            issuers.append(issuer)
    return issuers


def statement(part: tuple[str, bytes]) -> bytes | None:
    """What a part of such a file says, for those who need no proof of it; None for a part of another kind."""
    name, data = part
    try:
        return _entry.decode(data)[1] if name == PART else data if name == "warren-issuer" else None
    except msgspec.MsgspecError:
        raise BadText("not the entry of a minter") from None


def _vouched(chain: list[x509.Certificate], roots: Sequence[x509.Certificate]) -> PublicKey:
    """The key of the chain's first certificate, if a root vouches for it, through crossings if need be.

    It must be the hive's own issuer. A region's is under the same root and may name its members alone.
    """
    if not chain or len(chain) > 4:
        raise BadText("a minter is vouched for by a chain of one to four certificates")
    for lower, upper in zip(chain, [*chain[1:], None], strict=True):
        if not _authority(lower):
            raise BadText("a minter's certifier is no authority")
        if any(_issued(lower, root) for root in roots):
            hive = organisation(lower)
            if domains(chain[0]) != [hive]:
                raise BadText(f"a minter's certifier is not the issuer of {hive} itself")
            return check_strength(chain[0].public_key())
        if upper is None or not _issued(lower, upper):
            break
    raise BadText("a minter that no root of ours vouches for")


def _authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


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
