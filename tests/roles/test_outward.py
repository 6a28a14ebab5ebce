"""Reversed roles and joining: the two protocols beside `warren/1` that a listener may speak."""

import ssl
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock
from warren.auth import tls
from warren.auth.ca import CA
from warren.auth.identity import Identity, joining_context
from warren.auth.rights import Policy
from warren.mount import dial
from warren.mount.address import connect
from warren.mount.secure import SecureChannel
from warren.roles.inward import Inward
from warren.roles.outward import export_to, keep_offering
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.serve.secure import Gate
from warren.servers.demo import Demo
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, Refused, Text

QUEEN, WORKER = "spiffe://hive/role/QueenPrimary/q", "spiffe://hive/role/DroneWorker/d"


class Hive:
    def __init__(self, folder: Path) -> None:
        self.ca = CA.create(folder / "ca", "hive")
        self.ca.issue(QUEEN, folder / "q")
        self.ca.issue(WORKER, folder / "d")
        self.queen, self.worker = Identity.load(folder / "q"), Identity.load(folder / "d")


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


def export(root: Dir, *rows: str) -> Export:
    return Export(root, Policy.parse(rows), AuditMemory(), TraceRing())


async def test_a_worker_that_dials_out_is_used_by_its_queen(hive: Hive) -> None:
    here = export(Demo(), "role/*/* read /**")
    offered = export(Demo(), "role/QueenPrimary/* rw,ctl /**")
    gate = Gate(hive.queen)
    send, receive = trio.open_memory_channel[tuple[ssl.SSLSocket, tls.Peer]](1)
    gate.exports = lambda sock, who: send.send_nowait((sock, who))
    async with listening(here, ["tls!127.0.0.1!0"], gate) as [address], trio.open_nursery() as nursery:
        nursery.start_soon(export_to, address, hive.worker, "role/QueenPrimary/*", offered)
        with trio.fail_after(10):
            sock, who = await receive.receive()
        assert who.uri == WORKER
        async with dial(SecureChannel(sock)) as files:
            assert await files.read("/hello") == b"hello, world\n"
            await files.write("/hello", b"from the queen")
            assert await files.read("/hello") == b"from the queen\n"
            assert [s.subject for s in offered.sessions] == [QUEEN]
        assert not here.sessions
        nursery.cancel_scope.cancel()


async def test_who_is_not_the_queen_is_offered_nothing(hive: Hive) -> None:
    offered = export(Demo(), "any rw /**")
    async with listening(export(Demo()), ["tls!127.0.0.1!0"], Gate(hive.worker)) as [address]:
        with pytest.raises(PermissionError, match="wrong_role"):
            await export_to(address, hive.worker, "role/QueenPrimary/*", offered)
    assert not offered.sessions


async def certless(hive: Hive, address: str) -> SecureChannel:
    plain = await connect(address)
    context = joining_context(hive.ca.bundle())
    channel = SecureChannel(context.wrap_socket(plain.socket, do_handshake_on_connect=False))
    await channel.shake(hive.worker, "role/QueenPrimary/*")
    return channel


async def test_without_a_certificate_one_reaches_join_and_nothing_else(hive: Hive) -> None:
    main, gate = export(Demo(), "any read /**"), Gate(hive.queen)
    gate.join = export(Dir({"csr": Text(lambda: "write a request here")}), "any read /csr")
    async with listening(main, ["tls!127.0.0.1!0"], gate) as [address]:
        async with dial(await certless(hive, address)) as files:
            assert await files.read("/csr") == b"write a request here\n"
            with pytest.raises(FileNotFoundError):
                await files.read("/hello")
        gate.join = None
        with pytest.raises(OSError, match=r"lost|refused|closed|reset"):
            async with dial(await certless(hive, address)) as files:
                await files.read("/csr")
    assert any(e.text.startswith("no_protocol") for e in main.trace.errors)


async def test_one_connection_waits_and_another_is_made_when_it_is_taken(hive: Hive) -> None:
    offered, gate = export(Demo(), "role/QueenPrimary/* rw,ctl /**"), Gate(hive.queen)
    inward = Inward(hive.queen, patience=0.5)
    gate.exports = inward.offer
    here = export(Demo())
    async with listening(here, ["tls!127.0.0.1!0"], gate) as [address], trio.open_nursery() as nursery:
        await nursery.start(inward.run)
        come = trio.Event()
        inward.changed = lambda name, here: come.set()
        nursery.start_soon(lambda: keep_offering(address, hive.worker, "role/*/*", offered, limit=2))
        with trio.fail_after(10):
            await come.wait()
            one = await inward.take("d")
            async with dial(one) as first, dial(await inward.take("d")) as second:
                assert await first.read("/hello") == await second.read("/hello") == b"hello, world\n"
                with pytest.raises(Refused, match="offers no further connection"):
                    await inward.take("d")
            async with dial(await inward.take("d")) as third:
                assert await third.read("/hello") == b"hello, world\n"
        with pytest.raises(Refused, match="not connected"):
            await inward.take("nobody")
        nursery.cancel_scope.cancel()


async def test_a_queen_who_is_away_is_dialled_again_after_growing_pauses(
    hive: Hive, autojump_clock: MockClock
) -> None:
    said: list[str] = []
    times: list[float] = []

    def tell(words: str) -> None:
        said.append(words)
        times.append(trio.current_time())

    def nowhere() -> str:
        return "nonsense"

    with trio.move_on_after(60):
        await keep_offering(nowhere, hive.worker, "role/*/*", export(Demo()), tell=tell)
    gaps = [b - a for a, b in pairwise(times)]
    assert all("is not an address" in words for words in said)
    assert gaps[0] <= 0.05
    assert max(gaps) <= 5
    assert sum(gaps[:3]) < 0.5 < min(gaps[-3:])
