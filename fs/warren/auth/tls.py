"""Who is at the other end of a TLS connection, decided once its handshake is done.

    who = peer(stream, hive)                    a server, and a dialler too; Unwelcome if it may not stay
    expect(who, "role/QueenPrimary/*")          a dialler: another identity than the expected is refused
    reason(error)                               what broke a handshake, in the words below

The chain, the dates, the revocation lists and what each issuer may name are TLS's to check, by the
contexts of `identity`. What it leaves open is checked here: that there is a certificate at all (only who
wants to join may come without), exactly one name in it, one of this hive's, and a protocol of ours.

`Unwelcome.reason` and `reason()` are one word of REASONS, for the audit. The stranger is told nothing: in
TLS 1.3 a refused client learns so on its first read, and here the connection is closed without a byte.
"""

from __future__ import annotations

import ssl
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cryptography import x509
from warren.auth import spiffe
from warren.auth.certificates import issuer_of, uris

if TYPE_CHECKING:
    import trio

    Connection = ssl.SSLObject | ssl.SSLSocket | trio.SSLStream[Any]

SERVE: Final = "warren/1"  # the dialler asks, the listener serves
EXPORT: Final = "warren-export/1"  # the dialler serves, the listener asks
JOIN: Final = "warren-join/1"  # a dialler that has no certificate yet
PROTOCOLS: Final = (SERVE, EXPORT, JOIN)

REASONS: Final = {
    "no_certificate": "it showed no certificate",
    "expired": "its certificate, or its issuer's, has expired",
    "not_yet_valid": "its certificate, or its issuer's, begins later",
    "revoked": "its certificate, or its issuer's, is revoked",
    "no_list": "lists are in use, and its issuer's is missing",
    "stale_list": "its issuer's revocation list is too old",
    "foreign_hive": "its name is another hive's",
    "wrong_role": "it is somebody else than was expected",
    "bad_name": "it has no name, several, or one that is none",
    "name_constraint": "its issuer may not give that name",
    "unknown_ca": "nobody that is trusted vouches for it",
    "bad_certificate": "its certificate, or its issuer's, is not fit for this",
    "no_protocol": "it speaks no protocol of ours",
    "refused_by_peer": "the other end refused our certificate",
    "bad_handshake": "it did not speak TLS as it is spoken here",
}

# X509_V_ERR_..., of the OpenSSL library.
_BY_CODE = {
    2: "unknown_ca", 18: "unknown_ca", 19: "unknown_ca", 20: "unknown_ca", 21: "unknown_ca", 27: "unknown_ca",
    9: "not_yet_valid", 10: "expired", 23: "revoked",
    3: "no_list", 44: "no_list", 11: "stale_list", 12: "stale_list",
    47: "name_constraint", 48: "name_constraint", 49: "name_constraint", 50: "name_constraint",
    51: "name_constraint", 52: "name_constraint", 53: "name_constraint",
}  # fmt: skip
_REFUSED_BY_PEER = {
    "bad_certificate", "unsupported_certificate", "certificate_revoked", "certificate_expired",
    "certificate_unknown", "unknown_ca", "access_denied", "certificate_required",
}  # fmt: skip


class Unwelcome(Exception):
    """A peer that may not stay; `reason` is a word of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{REASONS[reason]}{f': {detail}' if detail else ''}")
        self.reason = reason
        self.detail = detail


class Peer(NamedTuple):
    """Who is at the other end. Without a name, somebody who may join and nothing else."""

    uri: str | None
    serial: str
    issuer: str  # the id of the key that signed the certificate
    not_after: datetime | None
    alpn: str
    hive: str

    @property
    def name(self) -> spiffe.Name | None:
        return spiffe.parse(self.uri) if self.uri else None


def peer(connection: Connection, hive: str) -> Peer:
    """The other end of a CONNECTION whose handshake is done, as a member of HIVE sees it; or Unwelcome."""
    if connection.context.verify_mode == ssl.CERT_NONE:
        raise ValueError("the context believes every certificate; take one of Identity's")
    shown = connection.getpeercert(binary_form=True)
    alpn = connection.selected_alpn_protocol() or ""
    if shown is None:
        if alpn != JOIN:
            raise Unwelcome("no_certificate")
        return Peer(None, "", "", None, alpn, hive)
    return _member(shown, alpn, hive)


@lru_cache(maxsize=1024)
def _member(shown: bytes, alpn: str, hive: str) -> Peer:
    """What a certificate says is the same each time it is shown, and costs a good part of a handshake."""
    try:
        certificate = x509.load_der_x509_certificate(shown)
        names, issuer = uris(certificate), issuer_of(certificate)
    except (ValueError, x509.ExtensionNotFound) as e:
        raise Unwelcome("bad_certificate", str(e)) from None
    if len(names) != 1:
        raise Unwelcome("bad_name", f"{len(names)} URI names")
    try:
        name = spiffe.parse(names[0])
    except spiffe.BadName as e:
        raise Unwelcome("bad_name", e.text) from None
    if not name.within(hive):
        raise Unwelcome("foreign_hive", names[0])
    if alpn not in PROTOCOLS:
        raise Unwelcome("no_protocol", names[0])
    return Peer(
        names[0], f"{certificate.serial_number:x}", issuer, certificate.not_valid_after_utc, alpn, hive
    )


def expect(who: Peer, pattern: str) -> Peer:
    """WHO, if PATTERN means it: a full name, or `role/ROLE/NAME` of the hive itself; `*` is one component."""
    name = who.name
    if name is None or not name.fits(pattern, who.hive):
        raise Unwelcome("wrong_role", f"{pattern} was expected, and {who.uri or 'nobody'} answered")
    return who


def reason(error: BaseException) -> str:
    """The word of REASONS for what ended a handshake; what wraps it (trio does) is looked through."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, Unwelcome):
            return at.reason
        if isinstance(at, ssl.SSLCertVerificationError):
            return _BY_CODE.get(at.verify_code, "bad_certificate")
        if isinstance(at, ssl.SSLError) and at.reason:
            said = at.reason.lower()
            if said == "peer_did_not_return_a_certificate":
                return "no_certificate"
            if said.partition("_alert_")[2] in _REFUSED_BY_PEER:
                return "refused_by_peer"
        at = at.__cause__ or at.__context__
    return "bad_handshake"
