"""Parked reads: what ends them, and what that may not cost."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked
from warren.check.tree.place import PAGE, Place, Talk, holds, same, survey
from warren.mount.link import Op
from warren.p9.client import State
from warren.p9.messages import Rread, Tread
from warren.serve.export import Export
from warren.tree import Clone

DRAIN = 256  # records that may lie ready before a read parks
AT_ONCE = 1.0  # seconds; a flush that is not answered costs the client two
STEPS = 16  # how far a flush is moved against a record that comes, one turn of the loop each


class Read:
    """A read of a stream in a task of its own."""

    def __init__(self, talk: Talk, fid: int, path: str) -> None:
        self.talk, self.path = talk, path
        self.op = Op(path)
        self.call = talk.link.start(self.op, Tread, fid, 0, PAGE)
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.error: OSError | None = None

    async def run(self) -> None:
        with self.scope:
            try:
                await self.talk.link.finish(self.op, self.call)
            except OSError as e:
                self.error = e
        self.done.set()

    @property
    def record(self) -> bytes:
        return bytes(self.call.reply.data) if isinstance(self.call.reply, Rread) else b""

    async def flush(self) -> None:
        """Cancel it, which sends Tflush, and see it end."""
        since = trio.current_time()
        self.scope.cancel()
        await self.done.wait()
        late = trio.current_time() - since > AT_ONCE
        holds(self.call.settled and not late, self.path, "a flushed read was not settled at once")


async def parked(nursery: trio.Nursery, talk: Talk, fid: int, path: str) -> tuple[Read | None, list[bytes]]:
    """A read that waits, and the records that were ready before; no read if the stream has ended."""
    records: list[bytes] = []
    while len(records) < DRAIN:
        read = Read(talk, fid, path)
        nursery.start_soon(read.run)
        await wait_all_tasks_blocked()
        if not read.done.is_set():
            return read, records
        if not read.record:
            holds(read.error is None, path, f"a read failed: {read.error}")
            return None, records
        records.append(read.record)
    return None, records


@asynccontextmanager
async def streams(at: Place) -> AsyncIterator[list[str]]:
    """The paths of the files whose reads park. What clone files made is not among them: it is gone."""
    found = []
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            # What parks is synthetic, and synthetic files have version 0.
            if spot.is_dir or isinstance(spot.node, Clone) or spot.qid.version:
                continue
            try:
                fid = await talk.opened(spot.path)
            except OSError:
                continue
            if talk.handle(fid).parks:
                found.append(spot.path)
            await talk.clunk(fid, spot.path)
    yield found


async def open_stream(talk: Talk, path: str) -> int:
    return await talk.opened(path, os.O_RDONLY | os.O_NONBLOCK)


async def flushed(at: Place) -> None:
    """A flush ends a parked read at once, and the stream can be read again"""
    async with streams(at) as paths, at.served() as export, at.talk(export) as talk:
        if paths:
            await survey(talk)
        for path in paths:
            fid = await open_stream(talk, path)
            async with trio.open_nursery() as nursery:
                read, _ = await parked(nursery, talk, fid, path)
                if read is None:
                    continue
                same(export.statistics()["parked"], 1, path, "the number of parked reads")
                await read.flush()
                same(read.call.state, State.FLUSHED, path, "what became of the flushed read")
                same(export.statistics()["parked"], 0, path, "the number of parked reads after a flush")
                again, records = await parked(nursery, talk, fid, path)
                holds(again or records, path, "after a flushed read the stream has ended")
                if again is not None:
                    await again.flush()
                both = Read(talk, fid, path)
                talk.link.half.flush(both.call)  # goes out in one segment with the read
                await both.run()
                holds(both.call.settled, path, "Tread and Tflush in one segment leave the read unsettled")
            await talk.clunk(fid, path)


async def clunked(at: Place) -> None:
    """A clunk ends the reads that are parked on its fid"""
    async with streams(at) as paths, at.served() as export, at.talk(export) as talk:
        if paths:
            await survey(talk)
        for path in paths:
            fid = await open_stream(talk, path)
            async with trio.open_nursery() as nursery:
                read, _ = await parked(nursery, talk, fid, path)
                await talk.clunk(fid, path)
                if read is not None:
                    await wait_all_tasks_blocked()
                    holds(read.done.is_set(), path, "a read is still parked after its fid was clunked")
                    holds(read.error, path, f"the read of a clunked fid was answered {read.record!r}")
                    same(export.statistics()["parked"], 0, path, "the number of parked reads after a clunk")


async def disconnected(at: Place) -> None:
    """A disconnect frees what was parked"""
    async with streams(at) as paths, at.served() as export:
        for path in paths:
            async with at.talk(export) as talk:
                await survey(talk)
                fid = await open_stream(talk, path)
                async with trio.open_nursery() as nursery:
                    await parked(nursery, talk, fid, path)
                    talk.link.drop("the client hangs up")
            for what in ("sessions", "fids", "parked"):
                same(export.statistics()[what], 0, path, f"the number of {what} after a disconnect")


async def lossless(at: Place) -> None:
    """A flushed read takes no record: each comes with that read or with the next"""
    async with at.served() as export:
        for path in at.feeds:
            await _lossless(at, export, path)


async def _lossless(at: Place, export: Export, path: str) -> None:
    async with at.files(export) as files, at.talk(export) as talk, trio.open_nursery() as nursery:
        feed = partial(at.feeds[path], files)
        fid = await open_stream(talk, path)
        read, _ = await parked(nursery, talk, fid, path)
        holds(read, path, "a stream with a feed has ended, or is never empty")
        assert read is not None
        await read.flush()
        await feed()
        again, records = await parked(nursery, talk, fid, path)
        same(
            len(records),
            1,
            path,
            "the number of records that the read after a flushed one gives, of one fed,",
        )
        for step in range(STEPS):
            assert again is not None
            async with trio.open_nursery() as race:
                race.start_soon(feed)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                await again.flush()
            got = [again.record] if again.record else []
            again, records = await parked(nursery, talk, fid, path)
            same(
                len(got + records), 1, path, f"the number of records, of one fed {step} steps before a flush,"
            )
            holds(again, path, "after a flushed read the stream has ended")
        await talk.clunk(fid, path)


CHECKS = (flushed, clunked, disconnected, lossless)
