"""Limits of a connection: each is reached here, and each is an answer."""

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.p9.messages import (
    WARREN,
    Rclunk,
    Rflush,
    Rgetattr,
    Rlerror,
    Rread,
    Rwrite,
    Tclunk,
    Tflush,
    Tgetattr,
    Tread,
    Twrite,
)
from warren.serve.export import Limits
from warren.servers.demo import Demo
from warren.tree import Attr, Dir, Queue, Sink, Stream, Text

from tests.wire import O_WRONLY, served


class Slow(Dir):
    """Its attributes come when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()
        self.at_work = 0

    async def attr(self) -> Attr:
        self.at_work += 1
        try:
            await self.go.wait()
        finally:
            self.at_work -= 1
        return Attr(self.qid(), 0o40555)


async def test_so_many_run_so_many_wait_and_the_rest_is_refused() -> None:
    slow = Slow()
    async with served(Dir({"slow": slow}), limits=Limits(running=3, waiting=4)) as service:
        wire = await service.dial(WARREN)
        await wire.walk("slow", 1)
        await wire.send(*[Tgetattr(1, 0)] * 10, tag=10)
        refused = await wire.replies(3)
        assert sorted(m.tag for m in refused) == [17, 18, 19]
        for m in refused:
            assert isinstance(m, Rlerror)
            assert m.ecode == errno.EAGAIN
            assert "429 busy: 4 requests are waiting, the limit of a connection retry_after=1" in m.ename
        assert slow.at_work == 3
        # A flush of one that waits for its turn is answered at once, and so is one of one that runs.
        await wire.want(Rflush, Tflush(16), tag=30)
        await wire.want(Rflush, Tflush(10), tag=31)
        await wait_all_tasks_blocked()
        assert slow.at_work == 3
        slow.go.set()
        assert sorted(m.tag for m in await wire.replies(5)) == [11, 12, 13, 14, 15]
        assert isinstance(await wire.ask(Tgetattr(1, 0), tag=2), Rgetattr)


async def test_clunk_and_flush_skip_the_line() -> None:
    slow = Slow()
    async with served(Dir({"slow": slow}), limits=Limits(running=1, waiting=1)) as service:
        wire = await service.dial()
        await wire.walk("slow", 1)
        await wire.walk("slow", 2)
        await wire.send(Tgetattr(1, 0), Tgetattr(2, 0), tag=10)
        await wait_all_tasks_blocked()
        await wire.send(Tclunk(2), tag=20)
        found = {m.tag: m for m in await wire.replies(2)}
        assert isinstance(found[20], Rclunk)
        assert isinstance(found[11], Rlerror)
        await wire.want(Rflush, Tflush(10), tag=21)
        assert isinstance(await wire.ask(Tgetattr(0, 0), tag=22), Rgetattr)


async def test_parked_reads_have_a_limit_of_their_own() -> None:
    async with served(Demo(), limits=Limits(parked=2, running=1, waiting=0)) as service:
        wire = await service.dial(WARREN)
        await wire.open("recv", 1)
        await wire.open("send", 2, O_WRONLY)
        await wire.send(*[Tread(1, 0, 10)] * 4, tag=10)
        refused = await wire.replies(2)
        assert {m.tag for m in refused} == {12, 13}
        assert all(isinstance(m, Rlerror) and "2 reads are parked" in m.ename for m in refused)
        await wire.write(2, b"x")
        assert isinstance(await wire.reply(), Rread)
        await wait_all_tasks_blocked()
        assert service.export.statistics()["parked"] == 1


async def test_what_was_refused_did_nothing() -> None:
    """Writes beyond the limits on a queue that blocks: none of them may be added later."""
    queue = Queue(depth=1, full="block")
    tree = Dir({"in": Sink(queue.put), "out": Stream(queue)})
    async with served(tree, limits=Limits(running=2, waiting=2)) as service:
        wire = await service.dial()
        await wire.open("in", 1, O_WRONLY)
        await wire.open("out", 2)
        await wire.write(1, b"0")
        await wire.send(*[Twrite(1, 0, b"%d" % n) for n in range(1, 9)], tag=10)
        assert sorted(m.tag for m in await wire.replies(4)) == [14, 15, 16, 17]
        taken = []
        for n in range(5):
            await wire.send(Tread(2, n, 10), tag=40)
            while not isinstance(m := await wire.reply(), Rread):
                assert isinstance(m, Rwrite)
            taken.append(bytes(m.data))
        assert sorted(taken) == [b"0", b"1", b"2", b"3", b"4"]
        assert not queue.kept


async def test_an_upstream_that_never_answers_can_be_given_up(autojump_clock: MockClock) -> None:
    async def never() -> str:
        await trio.sleep_forever()
        raise AssertionError

    async with served(Dir({"value": Text(never)})) as service:
        wire = await service.dial()
        await wire.open("value", 1)
        await wire.send(Tread(1, 0, 10), tag=5)
        await trio.sleep(3600)
        await wire.want(Rflush, Tflush(5), tag=6)
        with pytest.raises(trio.TooSlowError):
            await wire.reply()
