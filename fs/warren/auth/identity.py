"""Who this process is: a directory, read as a whole, and the TLS contexts that come of it.

    DIR/cert.pem    the certificate, and the issuers between it and a root
    DIR/key.pem     its key, 0600
    DIR/ca.pem      the roots to trust
    DIR/crl.pem     revocation lists, if lists are in use
    DIR/token       a capability token, if there is one; 0600

    me = Identity.load(dir)
    me.server_context()  me.client_context()     ask anew for every connection
    me.reload()                                  after the files have changed
    me.with_crl(pem)                             newer lists, from wherever they come

A live context never changes: what is loaded into it later, a newer revocation list above all, has no
effect on it. So new contexts are built whole and take the place of the old ones in one step; connections
that are open live on, and if anything in the files is wrong, what was is kept. No session is ever
resumed: a resumed one is not verified again, and would outlive a revocation.

TLS 1.3 only. The listener's context makes a certificate optional, since who joins has none; `tls.peer`
then refuses everybody else who shows none.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from warren.auth import keyfiles, spiffe, tls
from warren.auth.certificates import (
    PrivateKey,
    Unfit,
    check_strength,
    crl_issuer,
    crl_number,
    domains,
    id_of,
    issuer_of,
    load_chain,
    load_crls,
    load_key,
    pem,
    same_key,
    uris,
    utc_now,
)
from warren.auth.refusal import Missing

FILES: Final = ("cert.pem", "key.pem", "ca.pem", "crl.pem", "token")
Lists = dict[str, x509.CertificateRevocationList]

_LARGEST_TOKEN: Final = 4096


@dataclass(frozen=True)
class _Files:
    """What was read from a directory at one time, and fits together."""

    certificate: x509.Certificate
    uri: str
    hive: str
    key: PrivateKey
    token: bytes | None
    roots: list[x509.Certificate]
    chain_pem: bytes
    key_pem: bytes

    def dialler(self, lists: Lists, protocol: str) -> ssl.SSLContext:
        shown = (self.chain_pem, self.key_pem)
        return _context(ssl.PROTOCOL_TLS_CLIENT, self.roots, lists, (protocol,), shown)


@dataclass(frozen=True)
class _Held:
    """All that an identity is at one time."""

    files: _Files
    lists: Lists
    server: ssl.SSLContext
    client: ssl.SSLContext

    @cached_property
    def export(self) -> ssl.SSLContext:
        return self.files.dialler(self.lists, tls.EXPORT)


class Identity:
    """A process's identity. What it holds is replaced whole, never in part."""

    def __init__(self, directory: Path, held: _Held) -> None:
        self.directory = directory
        self._held = held
        self._stamped = self._stamp()

    @classmethod
    def load(cls, directory: str | os.PathLike[str], now: datetime | None = None) -> Identity:
        """The identity in DIRECTORY, if it is one and is valid NOW."""
        where = Path(directory)
        return cls(where, _read(where, now or utc_now(), {}))

    def reload(self, now: datetime | None = None) -> None:
        """Read the directory again. If it is refused, nothing has changed."""
        self._stamped = self._stamp()
        self._held = _read(self.directory, now or utc_now(), self._held.lists)

    def refresh(self) -> None:
        """Reload if the files are others than were read: for who holds one long and dials now and then."""
        if self._stamp() != self._stamped:
            self.reload()

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        found = []
        for name in FILES:
            try:
                st = os.stat(self.directory / name)
                found.append((st.st_mtime_ns, st.st_ino))
            except OSError:
                found.append((0, 0))
        return tuple(found)

    def with_crl(self, lists: bytes) -> bool:
        """Use newer revocation lists from now on; False if none is newer. An older one changes nothing."""
        files, before = self._held.files, self._held.lists
        merged = _merged(before, load_crls(lists, "the lists"), files)
        if merged == before:
            return False
        self._held = _with_contexts(files, merged)
        return True

    def server_context(self) -> ssl.SSLContext:
        """For a listener, and for one connection: the next may need another."""
        return self._held.server

    def client_context(self) -> ssl.SSLContext:
        """For a dialler, and for one connection. It offers `warren/1`."""
        return self._held.client

    def export_context(self) -> ssl.SSLContext:
        """For a dialler that serves, and for one connection. It offers `warren-export/1`."""
        return self._held.export

    @property
    def uri(self) -> str:
        return self._held.files.uri

    @property
    def hive(self) -> str:
        """The hive that the roots are of; a region's member is of the region's hive."""
        return self._held.files.hive

    @property
    def serial(self) -> str:
        return f"{self._held.files.certificate.serial_number:x}"

    @property
    def issuer(self) -> str:
        """The id of the key that signed the certificate."""
        return issuer_of(self._held.files.certificate)

    @property
    def not_after(self) -> datetime:
        return self._held.files.certificate.not_valid_after_utc

    @property
    def key(self) -> PrivateKey:
        """To prove possession with."""
        return self._held.files.key

    @property
    def roots(self) -> list[x509.Certificate]:
        """Whom we trust."""
        return self._held.files.roots

    @property
    def token(self) -> bytes | None:
        return self._held.files.token

    @property
    def lists(self) -> dict[str, int]:
        """The number of the revocation list in use, by the id of its issuer."""
        return {issuer: crl_number(one) for issuer, one in self._held.lists.items()}

    def revoked(self, issuer: str, serial: str) -> bool:
        """Whether the lists in use revoke that certificate: for connections that are open."""
        found = self._held.lists.get(issuer)
        return (
            found is not None and found.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None
        )


def joining_context(roots: bytes) -> ssl.SSLContext:
    """For a dialler without a certificate, who trusts ROOTS and may only join."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, load_chain(roots, "the roots"), {}, (tls.JOIN,), None)


def _read(where: Path, now: datetime, older: Lists) -> _Held:
    with keyfiles.locked(where, shared=True):
        try:
            key_pem = keyfiles.read_secret(where / "key.pem")
            chain_pem = keyfiles.read_open(where / "cert.pem")
            roots_pem = keyfiles.read_open(where / "ca.pem")
        except Missing as e:
            raise Missing(
                e.text, f"{where} is to hold cert.pem, key.pem and ca.pem: warren ca issue"
            ) from None
        crl_pem = keyfiles.read_open(where / "crl.pem") if (where / "crl.pem").exists() else b""
        token = keyfiles.read_secret(where / "token").strip() if (where / "token").exists() else None
    key = load_key(key_pem, where / "key.pem")
    chain = load_chain(chain_pem, where / "cert.pem")
    roots = load_chain(roots_pem, where / "ca.pem")
    uri = _checked(where, chain, key, roots, now)
    if token is not None and len(token) > 2 * _LARGEST_TOKEN:
        raise Unfit(f"{where / 'token'}: it is too long for a token", "see that it is the right file")
    name = spiffe.parse(uri)
    # A region's member is of the region's hive, which is what the root may name.
    hive = next((d for root in roots for d in domains(root) if name.within(d)), name.domain)
    files = _Files(chain[0], uri, hive, key, token, roots, chain_pem, key_pem)
    lists = _merged(older, load_crls(crl_pem, where / "crl.pem") if crl_pem else [], files)
    return _with_contexts(files, lists)


def _checked(
    where: Path, chain: list[x509.Certificate], key: PrivateKey, roots: list[x509.Certificate], now: datetime
) -> str:
    """The one name in the certificate, once everything fits together."""
    again = "issue it again: warren ca issue"
    leaf = chain[0]
    if not same_key(leaf, key):
        raise Unfit(f"{where / 'key.pem'}: it is not the key of cert.pem", again)
    names = uris(leaf)
    if len(names) != 1:
        raise Unfit(f"{where / 'cert.pem'}: it has {len(names)} URI names, and one is needed", again)
    name = spiffe.parse(names[0])
    if now < leaf.not_valid_before_utc:
        raise Unfit(
            f"{where / 'cert.pem'}: it is valid from {leaf.not_valid_before_utc} on",
            "see what the clock says",
        )
    if now > leaf.not_valid_after_utc:
        raise Unfit(f"{where / 'cert.pem'}: it has expired on {leaf.not_valid_after_utc}", again)
    for signed, signer in pairwise(chain):
        _see_signed(where, signed, [signer])
    _see_signed(where, chain[-1], roots)
    return str(name)


def _see_signed(where: Path, signed: x509.Certificate, signers: list[x509.Certificate]) -> None:
    for signer in signers:
        try:
            signed.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    raise Unfit(
        f"{where}: cert.pem does not lead to a root in ca.pem", "issue it again, or fetch the hive's ca.pem"
    )


def _merged(old: Lists, new: list[x509.CertificateRevocationList], files: _Files) -> Lists:
    """The newest list of each issuer. A list of an issuer that is known here is believed by its signature."""
    known = [*files.roots, *load_chain(files.chain_pem, "cert.pem")]
    keys = {id_of(c): check_strength(c.public_key()) for c in known}
    merged = dict(old)
    for one in new:
        issuer = crl_issuer(one)
        if issuer in keys and not one.is_signature_valid(keys[issuer]):
            raise Unfit("a revocation list is not signed by its issuer", "fetch it again from the hive's CA")
        if issuer not in merged or crl_number(one) > crl_number(merged[issuer]):
            merged[issuer] = one
    return merged


def _with_contexts(files: _Files, lists: Lists) -> _Held:
    shown = (files.chain_pem, files.key_pem)
    server = _context(ssl.PROTOCOL_TLS_SERVER, files.roots, lists, tls.PROTOCOLS, shown)
    return _Held(files, lists, server, files.dialler(lists, tls.SERVE))


def _context(
    side: int,
    roots: list[x509.Certificate],
    lists: Lists,
    protocols: tuple[str, ...],
    shown: tuple[bytes, bytes] | None,
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are SPIFFE names: tls.peer and tls.expect check them
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0
    else:
        context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_TRUSTED_FIRST
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=pem(*roots).decode())
    if lists:
        with _in_memory(b"".join(one.public_bytes(Encoding.PEM) for one in lists.values())) as path:
            context.load_verify_locations(cafile=path)
        # Issuers are checked too if every root has its say; members always.
        every = all(id_of(root) in lists for root in roots)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN if every else ssl.VERIFY_CRL_CHECK_LEAF
    if shown is not None:
        # One file: the chain and the key that were read together, whatever the directory holds by now.
        with _in_memory(b"\n".join(shown)) as path:
            context.load_cert_chain(path)
    context.set_alpn_protocols(list(protocols))
    return context


class _in_memory:
    """A path to DATA for a library that only takes paths; nothing is written to a disk."""

    def __init__(self, data: bytes) -> None:
        self._fd = os.memfd_create("warren", os.MFD_CLOEXEC)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
