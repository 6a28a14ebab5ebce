"""Certificates that must not get in, and strangers who hammer at the door; each is refused by name.

Whatever is refused hears at most an alert of TLS: not one byte of 9P.
"""

import errno
import socket
import ssl
import struct
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from warren.auth import tls
from warren.auth.ca import CA
from warren.auth.certificates import key_pem, load_chain, pem, utc_now
from warren.auth.identity import Identity
from warren.p9.messages import DOTL
from warren.serve.export import Limits
from warren.servers.demo import Demo
from warren.traces.audit import AuditMemory

from tests.auth.hive import by_hand
from tests.redteam.hives import VERSION, Hive, blurt, guarded, knock, mounted, stranger, tcp, until_gone
from tests.wire import Gone, RefusedBy

DAY = timedelta(days=1)
ELSEWHERE = "127.0.0.2"  # another address of the loopback, so that its guilt is not ours


class Quarter(Hive):
    """A hive with everybody who knocks in these tests, each in a folder."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.good = self.member("user/ann")
        self.guests: dict[str, Path | None] = {"nobody": None}
        gone = self.guests["gone"] = self.folder("user/ann")
        self.guests["old issuer"] = self.folder("user/ann")
        self.ca.revoke(self.serial(gone), "keyCompromise")
        [issuer] = [c for c in self.ca.certificates() if c.kind == "issuer"]
        self.ca.rotate()
        self.good = self.member("user/ann")
        self.guests["late"] = self.folder("user/ann", now=utc_now() - 2 * DAY, ttl=DAY)
        self.guests["early"] = self.folder("user/ann", now=utc_now() + DAY)
        self.ca.revoke(issuer.serial, "keyCompromise")
        other = CA.create(top / "other", "hive.test")
        other.issue("spiffe://hive.test/user/ann", top / "o")
        self.guests["other root"] = top / "o"
        west = self.ca.region("west", top / "west")
        self.by_hand("impostor", west, ["spiffe://hive.test/user/ann"])
        self.by_hand("two names", self.ca, ["spiffe://hive.test/user/ann", "spiffe://hive.test/user/bob"])
        self.by_hand("no name", self.ca, [])
        self.by_hand("odd name", self.ca, ["spiffe://hive.test/user/"])
        self.server.with_crl(self.ca.crl())

    def serial(self, folder: Path) -> int:
        return load_chain((folder / "cert.pem").read_bytes(), folder)[0].serial_number

    def by_hand(self, who: str, ca: CA, names: list[str]) -> None:
        signer = ca.shelf.issuer()
        leaf, key = by_hand(signer, names)
        folder = self.top / who
        folder.mkdir()
        (folder / "cert.pem").write_bytes(pem(leaf, signer.certificate))
        (folder / "key.pem").write_bytes(key_pem(key))
        self.guests[who] = folder


GUESTS = {
    "nobody": "no_certificate", "late": "expired", "early": "not_yet_valid", "gone": "revoked",
    "old issuer": "revoked", "other root": "unknown_ca", "impostor": "name_constraint",
    "two names": "bad_name", "no name": "bad_name", "odd name": "bad_name",
}  # fmt: skip


@pytest.fixture(scope="module")
def quarter(tmp_path_factory: pytest.TempPathFactory) -> Quarter:
    return Quarter(tmp_path_factory.mktemp("quarter"))


async def test_the_welcome_get_in(quarter: Quarter) -> None:
    """The same stranger's context, with the right things in it: what refuses the others is what is wrong."""
    async with guarded(quarter, Demo()) as door:
        wire = await door.wire(stranger(quarter.ca.bundle(), quarter.good.directory))
        assert (await wire.version()).version == DOTL
        await wire.attach()
        async with mounted(door, quarter.good) as files:
            assert await files.read("/hello") == b"hello, world\n"
        assert door.reasons() == []
        assert door.gate.shaking.total() == 0


@pytest.mark.parametrize("who", GUESTS)
async def test_the_unwelcome_hear_nothing(quarter: Quarter, who: str) -> None:
    async with guarded(quarter, Demo()) as door:
        heard = await knock(door, stranger(quarter.ca.bundle(), quarter.guests[who]))
        assert heard.said == b""
        assert door.reasons() == [GUESTS[who]]
        [line] = door.lines("handshake")
        assert (line.code, line.path, line.subject) == (401, "127.0.0.1", "")
        assert [e.split(":")[0] for e in door.errors()] == [GUESTS[who]]
        assert door.gate.refused == {GUESTS[who]: 1}
        assert not door.export.sessions
        assert door.gate.shaking.total() == 0


@pytest.mark.parametrize(
    ("alpn", "shows", "word"),
    [
        (None, True, "no_protocol"),
        ("h2", True, "no_protocol"),
        (tls.EXPORT, True, "no_protocol"),
        (tls.JOIN, True, "no_protocol"),
        (tls.JOIN, False, "no_protocol"),
        (None, False, "no_certificate"),
    ],
)
async def test_other_protocols(quarter: Quarter, alpn: str | None, shows: bool, word: str) -> None:
    async with guarded(quarter, Demo()) as door:
        shown = quarter.good.directory if shows else None
        heard = await knock(door, stranger(quarter.ca.bundle(), shown, alpn))
        assert heard.said == b""
        assert door.reasons() == [word]


async def test_older_tls_and_none(quarter: Quarter) -> None:
    async with guarded(quarter, Demo()) as door:
        old = stranger(quarter.ca.bundle(), quarter.good.directory)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        heard = await knock(door, old)
        assert not heard.shaken
        assert len(heard.raw) <= 7  # one alert
        for data in (VERSION, b"GET / HTTP/1.0\r\n\r\n", bytes(4096), b"\x16\x03\x01\xff\xff" + bytes(3000)):
            got = await blurt(door, data)
            assert len(got) <= 7
            assert got[:1] in (b"", b"\x15")
        assert set(door.reasons()) == {"bad_handshake"}
        assert len(door.reasons()) == 5
        assert not door.export.sessions


async def test_a_handshake_that_is_cut_in_two_is_one(quarter: Quarter) -> None:
    """Byte by byte is slow, and it is no crime."""
    async with guarded(quarter, Demo()) as door:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = quarter.good.client_context().wrap_bio(incoming, outgoing)
        async with await tcp(door.port) as stream:
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    for byte in outgoing.read():
                        await stream.send_all(bytes([byte]))
                    incoming.write(await stream.receive_some(65536))
            client.write(VERSION)
            for byte in outgoing.read():
                await stream.send_all(bytes([byte]))
            incoming.write(await stream.receive_some(65536))
            assert DOTL.encode() in client.read(65536)


async def test_a_name_without_a_row_may_not_attach(quarter: Quarter) -> None:
    drone = quarter.member("role/DroneWorker/d")
    async with guarded(quarter, Demo(), ["user/* read /**"]) as door:
        wire = await door.connect(drone)
        with pytest.raises(RefusedBy) as refused:
            await wire.attach()
        assert refused.value.errno == errno.EACCES
        [line] = door.lines("Tattach")
        assert (line.code, line.subject) == (403, drone.uri)


async def test_a_session_ends_with_its_certificate(quarter: Quarter) -> None:
    brief = quarter.member("user/ann", ttl=timedelta(seconds=2))
    async with guarded(quarter, Demo()) as door:
        wire = await door.dial(brief)
        await wire.open("events", 1)
        with trio.fail_after(6), pytest.raises(Gone):
            await wire.read(1)
        assert any("certificate of this session has expired" in text for text in door.errors())
        heard = await knock(door, stranger(quarter.ca.bundle(), brief.directory))
        assert heard.said == b""
        assert door.reasons() == ["expired"]


async def test_a_revoked_issuer_ends_the_sessions_of_its_members(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    west = hive.ca.region("west", tmp_path / "west")
    west.issue("spiffe://west.hive.test/user/ann", tmp_path / "w")
    old, theirs = hive.member("user/ann"), Identity.load(tmp_path / "w")
    issuers = [c for c in hive.ca.certificates() if c.kind in ("issuer", "region")]
    hive.ca.rotate()
    hive.ca.issue(hive.server.uri, hive.server.directory)
    hive.server.reload()
    new = hive.member("user/ann")
    rows = ["user/* read /**", "spiffe://west.hive.test/user/* read /**"]
    async with guarded(hive, Demo(), rows) as door:
        wires = [await door.dial(me) for me in (old, theirs, new)]
        for wire in wires:
            await wire.open("events", 1)
        for issuer in issuers:
            hive.ca.revoke(issuer.serial, "keyCompromise")
        hive.server.with_crl(hive.ca.crl())
        door.gate.recheck()
        for wire in wires[:2]:
            assert await until_gone(wire) == []
        await wires[2].open("hello", 2)
        assert await wires[2].read(2) == b"hello, world\n"


async def test_we_hang_up_on_whom_we_do_not_expect(quarter: Quarter) -> None:
    async with guarded(quarter, Demo(), identity=quarter.member("role/DroneWorker/d")) as door:
        with pytest.raises(PermissionError, match="wrong_role"):
            async with mounted(door, quarter.good):
                pass
        assert not [e for e in door.export.trace.recent if e[2].__name__ == "Tattach"]


async def test_a_flood_of_failures_is_turned_away(quarter: Quarter) -> None:
    context = stranger(quarter.ca.bundle())
    async with guarded(quarter, Demo(), audit=AuditMemory()) as door:
        slowest = 0.0
        done = trio.Event()

        async def at_work() -> None:
            nonlocal slowest
            async with mounted(door, quarter.good) as files:
                while not done.is_set():
                    begun = trio.current_time()
                    assert await files.read("/hello") == b"hello, world\n"
                    slowest = max(slowest, trio.current_time() - begun)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(at_work)
            failed = [await knock(door, context, source=ELSEWHERE) for _ in range(32)]
            assert all(heard.raw and not heard.said for heard in failed)
            turned = [await knock(door, context, source=ELSEWHERE) for _ in range(100)]
            assert {heard.raw for heard in turned} == {b""}
            async with mounted(door, quarter.good) as files:  # from another address than the flood's
                assert await files.read("/hello") == b"hello, world\n"
            done.set()
        print(f"the slowest read during a flood of handshakes: {slowest * 1000:.1f} ms")
        assert slowest < 1
        assert door.gate.refused == {"no_certificate": 32}
        assert sum("handshakes from 127.0.0.2 have failed" in text for text in door.errors()) == 100
        assert set(door.reasons()) == {"no_certificate"}
        assert 16 <= len(door.reasons()) <= 32  # the rest of a second's are counted, not listed


async def test_slow_handshakes_are_cut_off_and_keep_nobody_out(quarter: Quarter) -> None:
    hello = ssl.MemoryBIO()
    client = quarter.good.client_context().wrap_bio(ssl.MemoryBIO(), hello)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    first = hello.read()[:50]
    async with guarded(quarter, Demo(), limits=Limits(patience=1)) as door:
        streams = []
        for _ in range(300):
            streams.append(await tcp(door.port, ELSEWHERE))
            try:
                await streams[-1].send_all(first)
            except trio.BrokenResourceError:
                pass  # turned away at once
        with trio.fail_after(5):
            while door.gate.shaking.total() < 64:
                await trio.lowlevel.checkpoint()
        async with mounted(door, quarter.good) as files:
            assert await files.read("/hello") == b"hello, world\n"
        assert any("the limit of one address" in text for text in door.errors())
        with trio.fail_after(5):
            for stream in streams:
                try:
                    assert await stream.receive_some(1) == b""
                except trio.BrokenResourceError:
                    pass
                await stream.aclose()
        assert door.gate.shaking.total() == 0
        assert set(door.gate.refused) == {"bad_handshake"}


async def test_who_hangs_up_at_once_harms_nobody(quarter: Quarter) -> None:
    """A reset before the connection is accepted leaves a socket without a peer."""
    async with guarded(quarter, Demo()) as door:
        for _ in range(50):
            sock = socket.create_connection(("127.0.0.1", door.port), source_address=(ELSEWHERE, 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.send(VERSION)
            sock.close()
        async with mounted(door, quarter.good) as files:
            assert await files.read("/hello") == b"hello, world\n"
        assert door.gate.shaking.total() == 0
