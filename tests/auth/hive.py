"""Hives to test with, and handshakes of both ends in memory."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from warren.auth import certificates, tls
from warren.auth.ca import CA
from warren.auth.identity import Identity
from warren.auth.shelf import Authority

HIVE = "hive.test"
QUEEN = f"spiffe://{HIVE}/role/QueenPrimary/q"
DRONE = f"spiffe://{HIVE}/role/DroneWorker/d7"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
Stream = trio.SSLStream[trio.abc.Stream]


class End(NamedTuple):
    """One end of a connection: its stream, who it found at the other, or why it refused."""

    stream: Stream
    peer: tls.Peer | None
    reason: str


async def meet(
    server: ssl.SSLContext, client: ssl.SSLContext, session: Any = None, hive: str = HIVE
) -> tuple[End, End]:
    """A handshake, and what each end makes of the other; the server's end first."""
    a, b = trio.testing.memory_stream_pair()
    streams: list[Stream] = [trio.SSLStream(a, server, server_side=True), trio.SSLStream(b, client)]
    if session is not None:
        streams[1].session = session
    ends: list[End | None] = [None, None]

    async def shake(i: int) -> None:
        stream = streams[i]
        try:
            await stream.do_handshake()
            ends[i] = End(stream, tls.peer(stream, hive), "")
        except (trio.BrokenResourceError, tls.Unwelcome) as e:
            ends[i] = End(stream, None, tls.reason(e))
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake, 0)
        nursery.start_soon(shake, 1)
    assert ends[0] is not None
    assert ends[1] is not None
    return ends[0], ends[1]


async def talk(ends: tuple[End, End]) -> bytes:
    """Bytes to and fro over a connection; what came back."""
    server, client = ends[0].stream, ends[1].stream
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"ping")
        got = await server.receive_some(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, got[::-1])
        return bytes(await client.receive_some(4))


def identity(ca: CA, uri: str, where: Path, **how: Any) -> Identity:
    """Issued and loaded, at the time that is said."""
    ca.issue(uri, where, **how)
    return Identity.load(where, how.get("now"))


def by_hand(
    signer: Authority,
    uris: Sequence[str],
    *,
    uses: Sequence[x509.ObjectIdentifier] = (
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    ),
) -> tuple[x509.Certificate, certificates.PrivateKey]:
    """A certificate as no CA of ours would make it, well signed all the same."""
    key = certificates.new_key()
    public = key.public_key()
    signing = signer.certificate.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(signer.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(uses)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(certificates.check_strength(signing)),
            critical=False,
        )
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    san = x509.SubjectAlternativeName(names or [x509.DNSName("localhost")])
    digest = None if isinstance(signer.key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.add_extension(san, critical=True).sign(signer.key, digest), key


def client_of(
    tmp: Path, chain: Sequence[x509.Certificate], key: certificates.PrivateKey, roots: bytes
) -> ssl.SSLContext:
    """A client that shows whatever it has: Identity would refuse to load it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=roots.decode())
    file = tmp / f"shown-{chain[0].serial_number:x}.pem"
    file.write_bytes(certificates.pem(*chain) + certificates.key_pem(key))
    context.load_cert_chain(file)
    context.set_alpn_protocols([tls.SERVE])
    return context
