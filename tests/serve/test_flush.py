"""Waiting, and giving up on it: parked requests, flushes, clunks and version restarts over the wire."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.p9.fields import NOTAG
from warren.p9.messages import (
    ALL,
    DOTL,
    PLAIN,
    WARREN,
    Message,
    Rclunk,
    Rerror,
    Rflush,
    Rlerror,
    Rread,
    Rversion,
    Rwrite,
    Tclunk,
    Tflush,
    Tgetattr,
    Tread,
    Tversion,
    Twalk,
    Twrite,
)
from warren.servers.demo import Demo
from warren.tree import Dir, Queue, Sink, Stream

from tests.wire import O_RDWR, O_WRONLY, PATIENCE, Gone, served


def shown(found: list[Message]) -> list[tuple[str, int]]:
    return [(type(m).__name__, m.tag) for m in found]


@pytest.mark.parametrize("version", ALL)
async def test_a_flushed_read_takes_no_record(version: str) -> None:
    async with served(Demo()) as service:
        wire = await service.dial(version)
        await wire.open("recv", 1)
        await wire.open("send", 2, O_WRONLY)
        await wire.send(Tread(1, 0, 100), tag=5)
        await wait_all_tasks_blocked()
        assert service.export.statistics()["parked"] == 1
        assert isinstance(await wire.ask(Tflush(5), tag=6), Rflush)
        assert service.export.statistics()["parked"] == 0
        await wire.write(2, b"fire")
        assert await wire.read(1) == b"fire"


async def test_a_read_and_its_flush_in_one_segment() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.open("send", 2, O_WRONLY)
        await wire.send(Tread(1, 0, 100), Tflush(5), Tflush(5), tag=5)
        assert shown(await wire.replies(2)) == [("Rflush", 6), ("Rflush", 7)]
        await wire.write(2, b"kept")
        assert await wire.read(1) == b"kept"


async def test_a_read_that_finished_before_its_flush_is_answered_before_it() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.open("send", 2, O_WRONLY)
        # The write hands its record to the parked read, then the flush arrives, all in one segment.
        await wire.send(Tread(1, 0, 100), tag=5)
        await wait_all_tasks_blocked()
        await wire.send(Twrite(2, 0, b"won"), Tflush(5), tag=6)
        found = await wire.replies(2)
        if shown(found)[1][0] == "Rread":
            found += await wire.replies(1)
            assert shown(found) == [("Rwrite", 6), ("Rread", 5), ("Rflush", 7)]
            assert bytes(found[1].data) == b"won"  # type: ignore[attr-defined]
        else:
            assert shown(found) == [("Rwrite", 6), ("Rflush", 7)]
            assert await wire.read(1) == b"won", "a flushed read must not keep the record"


async def test_a_flush_of_a_flush_and_the_tags_are_free_again() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.send(Tread(1, 0, 100), Tflush(5), Tflush(6), tag=5)
        assert shown(await wire.replies(2)) == [("Rflush", 6), ("Rflush", 7)]
        for tag in (5, 6, 7):
            await wire.want(Rflush, Tflush(99), tag=tag)


async def test_reusing_a_tag_that_waits_ends_the_connection() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.send(Tread(1, 0, 100), tag=5)
        await wire.send(Tclunk(0), tag=5)
        with pytest.raises(Gone):
            await wire.reply()
        assert "tag 5 is still in use" in service.errors()[-1]
        assert not service.export.sessions


@pytest.mark.parametrize("version", ALL)
async def test_a_clunk_ends_what_is_parked_on_its_fid(version: str) -> None:
    async with served(Demo()) as service:
        wire = await service.dial(version)
        await wire.open("recv", 1)
        await wire.send(Tread(1, 0, 100), Tread(1, 0, 50), tag=5)
        await wait_all_tasks_blocked()
        await wire.send(Tclunk(1), tag=9)
        found = {m.tag: m for m in await wire.replies(3)}
        assert isinstance(found[9], Rclunk)
        for tag in (5, 6):
            refusal = found[tag]
            assert isinstance(refusal, Rerror | Rlerror)
            assert version == DOTL or "clunked" in refusal.ename
            assert version == PLAIN or refusal.ecode == 4  # type: ignore[union-attr]
        assert service.export.statistics()["parked"] == 0


async def test_a_new_version_while_reads_are_parked_answers_none_of_them() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.send(Tread(1, 0, 100), Tread(1, 0, 100), Tflush(6), tag=5)
        assert shown(await wire.replies(1)) == [("Rflush", 7)]
        await wire.version(WARREN, 4096)
        await wait_all_tasks_blocked()
        counts = service.export.statistics()
        assert (counts["sessions"], counts["fids"], counts["parked"]) == (1, 0, 0)
        await wire.attach()
        await wire.open("send", 2, O_WRONLY)
        await wire.open("recv", 5)
        await wire.write(2, b"new")
        assert await wire.read(5, 0, 10) == b"new", "the aborted reads took nothing"


async def test_a_version_and_what_follows_in_one_segment() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        old, new = wire.pack(Tread(1, 0, 10), 3), wire.pack(Tread(1, 0, 10), 3)
        again = wire.pack(Tversion(8192, DOTL), NOTAG)
        await wire.send_raw(old + again + new)
        assert isinstance(await wire.reply(), Rversion)
        refusal = await wire.reply()
        assert isinstance(refusal, Rlerror)
        assert refusal.ecode == 9, "the fid belonged to the old conversation"


async def test_a_writer_blocked_by_a_full_queue_goes_on_when_there_is_room(autojump_clock: MockClock) -> None:
    queue = Queue(depth=1, full="block")
    async with served(Dir({"in": Sink(queue.put), "out": Stream(queue)})) as service:
        wire = await service.dial()
        await wire.open("in", 1, O_WRONLY)
        await wire.open("out", 2)
        await wire.write(1, b"one")
        await wire.send(Twrite(1, 0, b"two"), Twrite(1, 0, b"three"), tag=5)
        with trio.move_on_after(PATIENCE / 2) as patience:
            await wire.reply()
        assert patience.cancelled_caught
        assert isinstance(await wire.ask(Tflush(5), tag=9), Rflush)
        await wire.send(Tread(2, 0, 9), tag=8)
        found = {m.tag: m for m in await wire.replies(2)}
        assert isinstance(found[6], Rwrite)
        assert isinstance(found[8], Rread)
        assert await wire.read(2) == b"three", "the flushed write was not added"


async def test_a_lost_client_lets_go_of_everything() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.open("clone", 2, O_RDWR)
        await wire.send(*[Tread(1, 0, 100) for _ in range(32)], tag=10)
        await wait_all_tasks_blocked()
        assert service.export.statistics()["parked"] == 32
        assert list(demo.counters) == ["1"]
        await wire.stream.aclose()
        await wait_all_tasks_blocked()
        assert not service.export.sessions
        assert not demo.counters
        other = await service.dial()
        await other.open("send", 1, O_WRONLY)
        await other.open("recv", 2)
        await other.write(1, b"still here")
        assert await other.read(2) == b"still here"


async def test_a_read_parked_on_a_fid_that_is_walked_elsewhere_is_answered() -> None:
    """Only a fid that is not open can be walked, so what waits on it is an attribute or the like."""

    class Slow(Dir):
        async def attr(self) -> None:  # type: ignore[override]  # it never answers
            await trio.sleep_forever()

    async with served(Dir({"slow": Slow({"in": Dir()})})) as service:
        wire = await service.dial()
        await wire.walk("slow", 1)
        await wire.send(Tgetattr(1, 0x7FF), tag=5)
        await wait_all_tasks_blocked()
        await wire.send(Twalk(1, 1, ["in"]), tag=6)
        assert sorted(m.tag for m in await wire.replies(2)) == [5, 6]
