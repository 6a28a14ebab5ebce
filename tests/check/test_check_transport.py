"""Every transport there is, and transports with a defect, each seen by the rule that forbids it."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair
from warren.check.transport import Attaching, Channel, check_transport
from warren.mount import Files, dial
from warren.p9.messages import ALL, PLAIN, WARREN
from warren.serve import connection
from warren.serve.export import Export, Limits
from warren.serve.listen import listening
from warren.serve.stream import serve_stream

Pair = tuple[trio.abc.Stream, trio.abc.Stream]


def over(pair: Callable[[], Pair]) -> Channel:
    """A channel whose two ends PAIR makes."""

    @asynccontextmanager
    async def channel(export: Export) -> AsyncIterator[trio.abc.Stream]:
        ours, theirs = pair()

        async def serve() -> None:
            async with theirs:
                await serve_stream(export, theirs, "any")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield ours
            finally:
                await trio.aclose_forcefully(ours)

    return channel


def on(channel: Channel, version: str = WARREN) -> Attaching:
    """A client on such a channel."""

    @asynccontextmanager
    async def attach(export: Export) -> AsyncIterator[Files]:
        async with channel(export) as stream, dial(stream, versions=[version]) as files:
            yield files

    return attach


def pipes() -> Pair:
    """What a server on standard input and output has: two pipes."""
    (there_out, here_in), (here_out, there_in) = os.pipe(), os.pipe()
    fds = [trio.lowlevel.FdStream(fd) for fd in (here_in, here_out, there_in, there_out)]
    return trio.StapledStream(fds[0], fds[1]), trio.StapledStream(fds[2], fds[3])


class Relay(trio.abc.Stream):
    """A stream around another; tests put their defects here."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self.inner.aclose()


class Choppy(Relay):
    """Gives bytes in pieces of no round size."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await super().receive_some(min(7919, max_bytes or 7919))


def choppy() -> Pair:
    ours, theirs = memory_stream_pair()
    return Choppy(ours), Choppy(theirs)


@pytest.mark.parametrize("version", ALL)
async def test_memory_streams(version: str, autojump_clock: MockClock) -> None:
    channel = over(memory_stream_pair) if version == WARREN else None
    await check_transport(on(over(memory_stream_pair), version), channel=channel)


async def test_streams_that_hand_over_byte_for_byte(autojump_clock: MockClock) -> None:
    await check_transport(on(over(lockstep_stream_pair)), channel=over(lockstep_stream_pair))


async def test_streams_that_cut_anywhere(autojump_clock: MockClock) -> None:
    await check_transport(on(over(choppy)), channel=over(choppy))


async def test_pipes() -> None:
    await check_transport(on(over(pipes)), channel=over(pipes))


def listener(address: str, version: str = WARREN) -> Attaching:
    @asynccontextmanager
    async def attach(export: Export) -> AsyncIterator[Files]:
        async with listening(export, [address]) as (name,), dial(name, versions=[version]) as files:
            yield files

    return attach


@pytest.mark.parametrize("version", [WARREN, PLAIN])
async def test_tcp(version: str) -> None:
    @asynccontextmanager
    async def channel(export: Export) -> AsyncIterator[trio.abc.Stream]:
        async with listening(export, ["tcp!127.0.0.1!0"]) as (name,):
            async with await trio.open_tcp_stream("127.0.0.1", int(name.split("!")[2])) as stream:
                yield stream

    await check_transport(
        listener("tcp!127.0.0.1!0", version), channel=channel if version == WARREN else None
    )


async def test_unix_sockets(tmp_path: Path) -> None:
    made = 0

    def path() -> str:
        nonlocal made
        made += 1
        return str(tmp_path / str(made))

    def attach(export: Export) -> AbstractAsyncContextManager[Files]:
        return listener(f"unix!{path()}")(export)

    @asynccontextmanager
    async def channel(export: Export) -> AsyncIterator[trio.abc.Stream]:
        where = path()
        async with listening(export, [f"unix!{where}"]), await trio.open_unix_socket(where) as stream:
            yield stream

    await check_transport(attach, channel=channel)


class Flips(Relay):
    """Damages one byte of what is large."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > 60_000:
            data = bytearray(data)
            data[40_000] ^= 1
        await super().send_all(data)


class Deaf(Relay):
    """Never tells that the other end is gone."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await super().receive_some(max_bytes) or await trio.sleep_forever()


class Forgets(Relay):
    """Loses the first bytes of a piece that does not begin a frame."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await super().receive_some(max_bytes)
        return data[1:] if len(data) == 3 else data


class Shares(Relay):
    """Sends nothing any more once a stream of its kind has sent something large."""

    held = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if Shares.held:
            await trio.sleep_forever()
        Shares.held = len(data) > 60_000
        await super().send_all(data)


def theirs_is(kind: type[Relay]) -> Callable[[], Pair]:
    def pair() -> Pair:
        ours, theirs = memory_stream_pair()
        return ours, kind(theirs)

    return pair


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Flips, "Megabytes come back as they were written"),
        (Deaf, "still waiting after 30 s"),
        (Forgets, "Frames that arrive one byte at a time"),
    ],
)
async def test_a_defect_of_a_stream_is_seen(kind: type[Relay], rule: str, autojump_clock: MockClock) -> None:
    attach = on(over(theirs_is(kind if kind is not Forgets else Relay)))
    with pytest.raises(AssertionError, match=rule):
        await check_transport(attach, channel=over(theirs_is(kind)))


async def test_a_stall_that_others_share_is_seen(autojump_clock: MockClock) -> None:
    Shares.held = False
    with pytest.raises(AssertionError, match="still waiting after 30 s"):
        await check_transport(on(over(theirs_is(Shares))))


async def test_a_server_that_ignores_flushes_is_seen(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = connection.Parked.cancel

    def deaf_to_flushes(self: connection.Parked, cause: str) -> None:
        if cause != "flushed":
            cancel(self, cause)

    monkeypatch.setattr(connection.Parked, "cancel", deaf_to_flushes)
    with pytest.raises(
        AssertionError, match="A cancelled read is flushed at once and has taken nothing: /queue"
    ):
        await check_transport(on(over(memory_stream_pair)))


async def test_a_loss_that_frees_no_fid_is_seen(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.Connection, "close", lambda self: None)
    with pytest.raises(AssertionError, match=r"A connection that is lost frees its locks.*: still waiting"):
        await check_transport(on(over(memory_stream_pair)))


async def test_a_way_around_the_export_is_seen(autojump_clock: MockClock) -> None:
    def attach(export: Export) -> AbstractAsyncContextManager[Files]:
        other = Export(export.root, export.policy, export.audit, export.trace, Limits(parked=10_000))
        return on(over(memory_stream_pair))(other)

    with pytest.raises(AssertionError, match="As many reads as may be parked"):
        await check_transport(attach)
