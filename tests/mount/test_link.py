"""Cancellation, deadlines and bad peers, against a peer whose every word is written here."""

import os

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from warren.mount import dial
from warren.p9.codec import dialect
from warren.p9.fields import NOTAG
from warren.p9.messages import (
    DOTL,
    PLAIN,
    Message,
    Rclunk,
    Rflush,
    Rgetattr,
    Rlerror,
    Rlopen,
    Rread,
    Rversion,
    Rwalk,
    Tclunk,
    Tflush,
    Tgetattr,
    Tlopen,
    Tread,
    Tversion,
    Twalk,
)

from tests.mount.peer import FILE, ROOT, SYNTHETIC, Peer, attached, attributes


async def stream_of(files: object, peer: Peer) -> object:
    """Open /events for records, with the peer's help."""
    opened: list[object] = []

    async def ask() -> None:
        opened.append(await files.stream("/events"))  # type: ignore[attr-defined]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        m = await peer.opened(SYNTHETIC)
        assert m.flags == os.O_NONBLOCK
    return opened[0]


async def test_a_cancelled_read_is_flushed_and_takes_nothing(autojump_clock: MockClock) -> None:
    async with attached() as (files, peer):
        events = await stream_of(files, peer)
        with trio.move_on_after(1) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(events.record)  # type: ignore[attr-defined]
                read = await peer.next()
                assert isinstance(read, Tread)
                with trio.CancelScope(shield=True):
                    await peer.flushed(read)
        assert patience.cancelled_caught


async def test_a_reply_that_beats_the_flush_is_returned() -> None:
    async with attached() as (files, peer):
        events = await stream_of(files, peer)
        got: list[bytes] = []
        after: list[str] = []
        scope = trio.CancelScope()

        async def reader() -> None:
            with scope:
                got.append(await events.record())  # type: ignore[attr-defined]
                after.append("returned")
                await trio.lowlevel.checkpoint()
                after.append("never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            read = await peer.next()
            scope.cancel()
            flush = await peer.next()
            assert isinstance(flush, Tflush)
            await peer.say(read, Rread(b"one\n"))
            await peer.say(flush, Rflush())
        assert got == [b"one\n"]
        assert after == ["returned"]
        assert scope.cancelled_caught


async def test_the_session_goes_on_after_a_flush() -> None:
    async with attached() as (files, peer):
        events = await stream_of(files, peer)
        for record in (b"a", b"b"):
            scope = trio.CancelScope()

            async def reader(scope: trio.CancelScope = scope) -> None:
                with scope:
                    await events.record()  # type: ignore[attr-defined]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader)
                read = await peer.next()
                scope.cancel()
                await peer.flushed(read)
            got: list[bytes] = []

            async def again(got: list[bytes] = got) -> None:
                got.append(await events.record())  # type: ignore[attr-defined]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(again)
                read = await peer.next()
                await peer.say(read, Rread(record))
            assert got == [record]


async def test_a_server_that_settles_nothing_holds_a_cancelled_task_two_seconds(
    autojump_clock: MockClock,
) -> None:
    async with attached() as (files, peer):
        events = await stream_of(files, peer)
        began = trio.current_time()
        with trio.move_on_after(1):
            await events.record()  # type: ignore[attr-defined]
        assert trio.current_time() - began == pytest.approx(3)
        read, flush = await peer.next(), await peer.next()
        assert isinstance(flush, Tflush)
        await peer.say(read, Rread(b"too late"))
        await peer.say(flush, Rflush())
        await wait_all_tasks_blocked()
        assert files._link is not None
        assert not files._link.half.calls, "its tags came back all the same"


async def test_a_fid_made_too_late_is_clunked(autojump_clock: MockClock) -> None:
    async with attached(DOTL) as (files, peer):
        with trio.move_on_after(1):
            await files.stat("/a")
        walk = await peer.next()
        assert isinstance(walk, Twalk)
        flush = await peer.next()
        await peer.say(walk, Rwalk([FILE]))
        await peer.say(flush, Rflush())
        clunk = await peer.heard()
        assert clunk == Tclunk(walk.newfid)


async def test_a_deadline_is_a_flush_and_a_timeout(autojump_clock: MockClock) -> None:
    async with attached(deadline=5) as (files, peer):
        began = trio.current_time()

        async def ask() -> None:
            with pytest.raises(TimeoutError, match=r"no answer in 5 s trace=[0-9a-f]{16}.*'/slow'"):
                await files.stat("/slow")
            assert trio.current_time() - began == pytest.approx(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            walk = await peer.next()
            getattr_ = await peer.next()
            assert isinstance(getattr_, Tgetattr)
            await peer.flushed(walk)
            await peer.say(getattr_, Rlerror(9, "fid is not in use"))


async def test_a_parked_record_has_no_deadline(autojump_clock: MockClock) -> None:
    async with attached(deadline=5) as (files, peer):
        events = await stream_of(files, peer)

        async def late() -> None:
            read = await peer.next()
            await trio.sleep(3600)
            await peer.say(read, Rread(b"at last"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            assert await events.record() == b"at last"  # type: ignore[attr-defined]


async def test_each_call_has_its_own_deadline(autojump_clock: MockClock) -> None:
    async with attached(DOTL, deadline=10) as (files, peer):
        ended: list[float] = []

        async def ask(delay: float) -> None:
            await trio.sleep(delay)
            with pytest.raises(TimeoutError):
                await files.stat("/x")
            ended.append(trio.current_time() - began)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for delay in (0, 3, 4):
                nursery.start_soon(ask, delay)
            for _ in range(6):
                m = await peer.next()
                if isinstance(m, Tflush):
                    await peer.say(m, Rflush())
        assert ended == pytest.approx([10, 13, 14])


async def test_many_callers_share_one_segment() -> None:
    sent: list[bytes] = []
    ours, theirs = memory_stream_pair()
    plain_send = ours.send_stream.send_all

    async def counted(data: bytes) -> None:
        sent.append(bytes(data))
        await plain_send(data)

    ours.send_stream.send_all = counted  # type: ignore[method-assign, assignment]
    peer = Peer(theirs, DOTL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.hello)
        async with dial(ours) as files, trio.open_nursery() as callers:
            sent.clear()
            for i in range(20):
                callers.start_soon(files.stat, f"/{i}")
            walks = [await peer.next() for _ in range(20)]
            assert len(sent) == 1
            for m in walks:
                await peer.say(m, Rwalk([FILE]))
            for _ in range(20):
                m = await peer.next()
                assert isinstance(m, Tgetattr)
                await peer.say(m, attributes())


async def test_walk_and_use_ride_in_one_segment_between_warren_peers() -> None:
    async with attached() as (files, peer):
        sizes: list[int] = []

        async def ask() -> None:
            sizes.append((await files.stat("/a")).size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            walk, use = await peer.next(), await peer.next()
            assert isinstance(walk, Twalk)
            assert isinstance(use, Tgetattr)
            assert use.fid == walk.newfid
            assert walk.trace == use.trace != 0
            await peer.say(walk, Rwalk([FILE]))
            await peer.say(use, attributes(size=7))
        assert sizes == [7]


async def test_a_request_begun_before_its_walk_is_asked_again() -> None:
    async with attached() as (files, peer):
        sizes: list[int] = []

        async def ask() -> None:
            sizes.append((await files.stat("/a")).size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            walk, use = await peer.next(), await peer.next()
            await peer.say(use, Rlerror(9, "fid is not in use"))
            await peer.say(walk, Rwalk([FILE]))
            again = await peer.next()
            assert again == use
            await peer.say(again, attributes(size=7))
        assert sizes == [7]


@pytest.mark.parametrize(
    "answer", [Rclunk(), Rread(b"x" * 9000), Rwalk([FILE, FILE]), Rgetattr(*[0, FILE, *range(18)])], ids=repr
)
async def test_a_peer_that_breaks_the_protocol_loses_the_connection(answer: Message) -> None:
    async with attached(DOTL) as (files, peer):

        async def ask() -> None:
            with pytest.raises(ConnectionResetError, match="broke the protocol"):
                await files.stat("/a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await peer.next()
            m = await peer.next()
            await peer.say(m, answer)
        with pytest.raises(ConnectionResetError):
            await files.stat("/a")


async def test_errors_carry_the_servers_words_and_the_path() -> None:
    async with attached() as (files, peer):

        async def ask() -> None:
            with pytest.raises(PermissionError) as caught:
                await files.readlink("/secret")
            assert caught.value.strerror == "403 denied: not yours trace=00000000000000ff"
            assert caught.value.filename == "/secret"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await peer.walked()
            m = await peer.next()
            await peer.say(m, Rlerror(13, "403 denied: not yours trace=00000000000000ff"))


async def test_a_refused_open_leaves_no_fid() -> None:
    async with attached() as (files, peer):

        async def ask() -> None:
            with pytest.raises(PermissionError):
                await files.open("/secret")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            walk = await peer.walked()
            m = await peer.next()
            assert isinstance(m, Tlopen)
            await peer.say(m, Rlerror(13, "403 denied"))
        assert await peer.heard() == Tclunk(walk.newfid)


async def test_a_cancelled_open_leaves_no_fid() -> None:
    async with attached(DOTL) as (files, peer):
        scope = trio.CancelScope()

        async def ask() -> None:
            with scope:
                await files.open("/a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            walk = await peer.walked()
            m = await peer.next()
            scope.cancel()
            flush = await peer.next()
            await peer.say(m, Rlopen(FILE, 0))
            await peer.say(flush, Rflush())
        # The reply came first, so the open was done: the file is the caller's, and closed with the block.
        assert walk.newfid == 1
        assert not scope.cancelled_caught


async def test_a_server_without_our_versions_is_named() -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)

    async def ask() -> None:
        with pytest.raises(OSError, match="speaks none of our versions"):
            async with dial(ours):
                raise AssertionError("unreachable")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        for _ in range(3):
            assert isinstance(await peer.next(), Tversion)
            await peer.stream.send_all(dialect(PLAIN).pack(Rversion(8192, "unknown"), NOTAG))


async def test_a_server_that_never_answers_is_given_up(autojump_clock: MockClock) -> None:
    ours, _theirs = memory_stream_pair()
    began = trio.current_time()
    with pytest.raises(OSError, match=r"memory|Stapled|did not answer"):
        async with dial(ours, deadline=7):
            raise AssertionError("unreachable")
    assert trio.current_time() - began == pytest.approx(7)


async def test_a_refused_attach_is_the_servers_word() -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)

    async def ask() -> None:
        with pytest.raises(FileNotFoundError, match="404"):
            async with dial(ours, "/nowhere"):
                raise AssertionError("unreachable")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await peer.next()
        await peer.stream.send_all(dialect(PLAIN).pack(Rversion(8192, peer.version), NOTAG))
        peer.codec = dialect(peer.version)
        m = await peer.next()
        await peer.say(m, Rlerror(2, "404 not_found"))


async def test_the_blocks_own_exception_is_not_wrapped() -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.hello)
        with pytest.raises(KeyError):
            async with dial(ours):
                raise KeyError("mine")


async def test_cancelling_the_block_ends_it_at_once(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.hello)
        with trio.move_on_after(1) as scope:
            async with dial(ours):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() >= 1


async def test_a_walk_without_end_is_refused() -> None:
    async with attached(DOTL) as (files, peer):

        async def ask() -> None:
            with pytest.raises(OSError, match="no end"):
                await files.stat("/a/b")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.move_on_after(5):
                while True:
                    m = await peer.next()
                    assert isinstance(m, Twalk)
                    # Two names fall short at the first; the first alone then reaches nothing new.
                    if len(m.names) == 2:
                        await peer.say(m, Rwalk([ROOT]))
                    else:
                        nursery.cancel_scope.cancel()
