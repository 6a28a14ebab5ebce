"""Certificates as a hive makes them, as values: keys and dates come in, certificates go out.

    root        self-signed; path length 2; may name the hive and its regions, and nobody else
    issuer      signed by a root; path length 0; may name one domain: the hive's, or one region's
    crossing    a new root signed by the old one, for those who know only the old one
    leaf        one SPIFFE name, critical; for TLS clients and servers; nothing else is in it

What an issuer may name stands in it as a critical constraint on URI names, which TLS libraries enforce:
a region that signs a name of the hive, or of another region, has signed nothing. A leaf's subject is
empty, so that nobody is tempted to decide by it. Validity begins five minutes early, for clocks that
are behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from warren.auth import spiffe
from warren.auth.refusal import Refusal

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
KINDS = ("ed25519", "p256")
EARLY = timedelta(minutes=5)
ROOT_LIFE = timedelta(days=3650)
ISSUER_LIFE = timedelta(days=365)
_RSA_BITS = range(2048, 8193)


class Unfit(Refusal):
    """A key, certificate or request that will not do."""


class Revoked(NamedTuple):
    """One line of a revocation list."""

    serial: int
    at: datetime
    reason: str


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_key(kind: str = "ed25519") -> PrivateKey:
    """A fresh key of one of KINDS."""
    if kind not in KINDS:
        raise Unfit(f"{kind!r} is no kind of key", f"the kinds are {' and '.join(KINDS)}")
    return (
        ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    )


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def load_key(data: bytes, where: object) -> PrivateKey:
    """The private key in DATA; WHERE is named if there is none."""
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Unfit(
            f"{where}: it holds no private key that can be used", "restore it from a backup"
        ) from None
    if isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        check_strength(key.public_key())
        return key
    raise Unfit(f"{where}: a key is Ed25519 or P-256", "make a new one")


def load_chain(data: bytes, where: object) -> list[x509.Certificate]:
    """The certificates in DATA, one at least."""
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        raise Unfit(
            f"{where}: it holds no certificate", "restore it from a backup, or issue it again"
        ) from None


def load_crls(data: bytes, where: object) -> list[x509.CertificateRevocationList]:
    """The revocation lists in DATA, several after one another."""
    mark = b"-----END X509 CRL-----"
    pieces = [piece + mark for piece in data.split(mark)[:-1]]
    try:
        lists = [x509.load_pem_x509_crl(piece) for piece in pieces]
        for one in lists:
            crl_issuer(one), crl_number(one)
    except (ValueError, x509.ExtensionNotFound):
        lists = []
    if not lists:
        raise Unfit(f"{where}: it holds no revocation list", "fetch it again from the hive's CA")
    return lists


def check_strength(key: object) -> PublicKey:
    """KEY if it is strong enough to be anybody's."""
    match key:
        case ed25519.Ed25519PublicKey():
            return key
        case ec.EllipticCurvePublicKey():
            if isinstance(key.curve, ec.SECP256R1):
                return key
            raise Unfit(f"the curve {key.curve.name} is not taken", "use Ed25519 or P-256")
        case rsa.RSAPublicKey():
            if key.key_size in _RSA_BITS:
                return key
            raise Unfit(
                f"an RSA key of {key.key_size} bits is not taken", "use Ed25519, or RSA of 2048 to 8192"
            )
    raise Unfit("this kind of key is not taken", "use Ed25519 or P-256")


def key_id(key: PublicKey) -> str:
    """What a key is called in certificates, lists, logs and audits: 40 hexadecimal digits."""
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def same_key(certificate: x509.Certificate, key: PrivateKey) -> bool:
    return certificate.public_key() == key.public_key()


def id_of(certificate: x509.Certificate) -> str:
    """The id of the key in CERTIFICATE."""
    return key_id(check_strength(certificate.public_key()))


def issuer_of(certificate: x509.Certificate) -> str:
    """The id of the key that signed CERTIFICATE, as it says itself."""
    found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return (found.key_identifier or b"").hex()


def crl_issuer(crl: x509.CertificateRevocationList) -> str:
    """The id of the key that signed CRL, as it says itself."""
    found = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return (found.key_identifier or b"").hex()


def crl_number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def uris(certificate: x509.Certificate) -> list[str]:
    """Every URI name in CERTIFICATE."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def domains(certificate: x509.Certificate) -> list[str]:
    """The domains whose names CERTIFICATE may sign, as far as it says; `.x` is what lies below x."""
    try:
        limits = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return []
    permitted = limits.permitted_subtrees or []
    return [name.value for name in permitted if isinstance(name, x509.UniformResourceIdentifier)]


def make_root(key: PrivateKey, hive: str, now: datetime) -> x509.Certificate:
    """A root for HIVE."""
    return _authority(key.public_key(), "root", hive, [hive, f".{hive}"], 2, key, None, now, ROOT_LIFE)


def make_crossing(
    root: x509.Certificate, old: x509.Certificate, old_key: PrivateKey, now: datetime
) -> x509.Certificate:
    """The new ROOT as the OLD one vouches for it; it lasts as long as both."""
    key = check_strength(root.public_key())
    life = root.not_valid_after_utc - now
    return _authority(key, "root", organisation(root), domains(root), 1, old_key, old, now, life)


def make_issuer(
    key: PublicKey, hive: str, domain: str, root: x509.Certificate, root_key: PrivateKey, now: datetime
) -> x509.Certificate:
    """An issuer that names members of DOMAIN."""
    return _authority(key, "issuer", hive, [domain], 0, root_key, root, now, ISSUER_LIFE)


def organisation(certificate: x509.Certificate) -> str:
    """The hive in an authority's subject."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)


def _authority(
    key: PublicKey, what: str, hive: str, may_name: list[str], depth: int,
    signing: PrivateKey, signer: x509.Certificate | None, now: datetime, life: timedelta,
) -> x509.Certificate:  # fmt: skip
    # The key's id in the name: lists of revocations are found by name, and no two keys may share one.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, hive),
            x509.NameAttribute(NameOID.COMMON_NAME, f"warren {what} {key_id(key)[:16]}"),
        ]
    )
    limits = x509.NameConstraints([x509.UniformResourceIdentifier(d) for d in may_name], None)
    return (
        _begun(key, subject, signing, signer, now, life)
        .add_extension(x509.BasicConstraints(True, depth), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(limits, critical=True)
        .sign(signing, _digest(signing))
    )


def make_leaf(
    key: PublicKey,
    name: spiffe.Name,
    issuer: x509.Certificate,
    signing: PrivateKey,
    now: datetime,
    ttl: timedelta,
) -> x509.Certificate:
    """A member's certificate. It ends with its issuer's, if that is earlier."""
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(name))])
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        _begun(key, x509.Name([]), signing, issuer, now, ttl)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(uses, critical=False)
        .add_extension(san, critical=True)
        .sign(signing, _digest(signing))
    )


def make_crl(
    issuer: x509.Certificate,
    signing: PrivateKey,
    revoked: Iterable[Revoked],
    number: int,
    now: datetime,
    until: datetime,
) -> x509.CertificateRevocationList:
    """What ISSUER has revoked, good UNTIL then."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - EARLY)
        .next_update(until)
        .add_extension(_signer_id(issuer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, at, reason in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
        if reason != "unspecified":  # the standard wants that one left out
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(signing, _digest(signing))


def read_request(data: bytes) -> tuple[PublicKey, list[str]]:
    """The key of a signing request, and the URI names it asks for; Unfit if its sender does not hold the key.

    Nothing else of a request is looked at: what a certificate says is the CA's to say.
    """
    try:
        request = x509.load_pem_x509_csr(data)
        key = check_strength(request.public_key())
        good = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as e:
        if isinstance(e, Unfit):
            raise
        raise Unfit(
            "this is no signing request in PEM that can be read", "make it with openssl req -new"
        ) from None
    if not good:
        raise Unfit("the request is not signed by the key in it", "make it again where the key is")
    try:
        asked = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return key, []
    return key, asked.get_values_for_type(x509.UniformResourceIdentifier)


def _begun(
    key: PublicKey, subject: x509.Name, signing: PrivateKey, signer: x509.Certificate | None,
    now: datetime, life: timedelta,
) -> x509.CertificateBuilder:  # fmt: skip
    end = now + life
    if signer is not None:
        end = min(end, signer.not_valid_after_utc)
    aki = (
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
        if signer is None
        else _signer_id(signer)
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(aki, critical=False)
    )


def _signer_id(signer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(check_strength(signer.public_key()))


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
