"""Crowds, and those who will not read: a connection can only harm itself."""

import gc
import resource
import time
from pathlib import Path

import pytest
import trio
from warren.p9.messages import Tgetattr, Tread
from warren.serve.export import Limits
from warren.servers.demo import Demo
from warren.tree import Dir, File

from tests.wire import Gone, Listening, RefusedBy, Wire, listened


def resident() -> int:
    """Bytes of this process, server and clients, that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def until_sessions(sockets: Listening, count: int, other: Wire) -> None:
    with trio.fail_after(10):
        while len(sockets.export.sessions) != count:
            await other.ask(Tgetattr(0, 0))


async def test_a_thousand_connections() -> None:
    async with listened(Demo()) as sockets:
        other = await sockets.dial()
        gc.collect()
        before = resident()
        wires: list[Wire] = []

        async def some(count: int) -> None:
            for _ in range(count):
                wires.append(await sockets.dial())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(some, 100)
        assert len(sockets.export.sessions) == 1001
        each = (resident() - before) / 1000
        assert each < 100 << 10, f"an idle connection, both ends of it, costs {each / 1024:.0f} KiB"
        for wire in wires:
            await wire.send(Tgetattr(0, 0x7FF))
        for wire in wires:
            await wire.reply()
        for wire in wires:
            await trio.aclose_forcefully(wire.stream)
        await until_sessions(sockets, 1, other)


async def test_one_connection_too_many_is_closed_and_recorded() -> None:
    async with listened(Demo(), limits=Limits(connections=3)) as sockets:
        kept = [await sockets.dial() for _ in range(3)]
        extra = await sockets.connect()
        with pytest.raises((Gone, trio.BrokenResourceError)):
            await extra.version()
        assert "3 connections are open, the limit" in sockets.export.trace.errors[-1].text
        await trio.aclose_forcefully(kept[0].stream)
        await until_sessions(sockets, 2, kept[1])
        await sockets.dial()


async def test_clients_that_drop_with_32_tags_outstanding() -> None:
    demo = Demo()
    async with listened(demo) as sockets:
        other = await sockets.dial()
        for _ in range(20):
            wire = await sockets.dial()
            await wire.open("recv", 1)
            await wire.open("scratch", 2)
            await wire.open("clone", 3, 2)
            # Half of them wait for a record, half are answered into a socket that nobody reads.
            await wire.send(*[Tread(1, 0, 100), Tread(2, 0, 65000)] * 16, tag=10)
            await trio.aclose_forcefully(wire.stream)
        await until_sessions(sockets, 1, other)
        assert sockets.export.statistics()["parked"] == 0
        assert not demo.counters
        await other.open("send", 5, 1)
        await other.open("recv", 6)
        await other.write(5, b"kept")
        assert await other.read(6) == b"kept", "the reads that were dropped took nothing"


async def test_one_that_never_reads_stalls_only_itself() -> None:
    body = bytes(64 << 10)
    tree = Dir({"big": File(lambda offset, count: body[:count]), "demo": Demo()})
    async with listened(tree, limits=Limits(unread=1 << 20, patience=1.0)) as sockets:
        other = await sockets.dial()
        quiet = await latency(other)
        before = resident()
        deaf = await sockets.dial()
        await deaf.open("big", 1)
        flood = b"".join(deaf.pack(Tread(1, 0, 60000), n) for n in range(2000))
        most = 0
        stuck = trio.CancelScope()

        async def pour() -> None:
            with stuck:
                try:
                    while True:
                        await deaf.send_raw(flood)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            worst = 0.0
            with trio.fail_after(10):
                while len(sockets.export.sessions) == 2:
                    most = max(most, *(sum(map(len, s.half.out)) for s in sockets.export.sessions), 0)
                    worst = max(worst, await latency(other, 20))
            stuck.cancel()
        assert most < 4 << 20, f"{most} bytes waited for a client that does not read"
        assert resident() - before < 64 << 20
        assert worst < max(0.25, 50 * quiet), f"others waited {worst:.3f} s, {quiet:.6f} s when it is quiet"
        assert "replies were not read in time" in {e.text for e in sockets.export.trace.errors}


async def latency(wire: Wire, rounds: int = 100) -> float:
    """The mean time of a getattr, in seconds."""
    start = time.perf_counter()
    for _ in range(rounds):
        await wire.ask(Tgetattr(0, 0))
    return (time.perf_counter() - start) / rounds


async def test_a_flood_of_requests_does_not_starve_the_others() -> None:
    async with listened(Demo()) as sockets:
        other, busy = await sockets.dial(), await sockets.dial()
        batch = b"".join(busy.pack(Tgetattr(0, 0x7FF), n) for n in range(500))
        done = False

        async def shout() -> None:
            while not done:
                await busy.send_raw(batch)

        async def hear() -> None:
            try:
                while not done:
                    await busy.stream.receive_some(1 << 20)
            except trio.ClosedResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shout)
            nursery.start_soon(hear)
            await latency(other, 5)
            assert await latency(other, 50) < 0.2
            done = True
            nursery.cancel_scope.cancel()


async def test_a_unix_socket_of_ours_is_local_and_tcp_is_anybody(tmp_path: Path) -> None:
    for address, subject in ((f"unix!{tmp_path}/s", "local"), ("tcp!127.0.0.1!0", "any")):
        async with listened(Demo(), address, allow=["local read /hello"]) as sockets:
            wire = await sockets.connect()
            await wire.version()
            assert [s.subject for s in sockets.export.sessions] == [subject]
            if subject == "local":
                await wire.attach()
                await wire.open("hello", 1)
                assert await wire.read(1) == b"hello, world\n"
            else:
                with pytest.raises(RefusedBy):
                    await wire.attach()
