"""The loop's side of a SQLite store: the interface, reads, watches, and those who wait.

Reads are done where they are asked for, without a thread: a few pages that are nearly always in memory cost a
tenth of the way to a thread and back. They see what was committed, which may be a little more than what was
answered. What depends on the order of things (who is woken, what a watch owes, which deletions are forgotten)
is decided here and only when a group is answered, so it is never ahead of anybody.

The loop must run in real time. A clock that jumps when the loop is idle cannot tell the thread's work from
nobody's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import trio
from warren.store.interface import (
    Change,
    Conflict,
    Copy,
    Entry,
    Incoming,
    Limits,
    Record,
    Statistics,
    Store,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreFull,
    Trimmed,
    Upkeep,
    Watch,
    check_name,
    check_under,
)
from warren.store.sqlite.copies import Upload, problems, take
from warren.store.sqlite.engine import Engine, Opened, open_file
from warren.store.sqlite.file import STEPS
from warren.store.sqlite.writer import Job, Writer
from warren.tree.promise import Promise

T = TypeVar("T")

CAPACITY: Final = 64 << 30
WAITING: Final = 8192  # writes that wait for their turn
WAITING_BYTES: Final = 64 << 20


@asynccontextmanager
async def open_sqlite(
    path: str | Path, *, limits: Limits | None = None, capacity: int = CAPACITY, tombstones: int = 1024
) -> AsyncIterator[SqliteStore]:
    """The store in the file at PATH while the block runs; StoreFailed says why it is not to be had.

    CAPACITY is the most bytes that the file may grow to. Of deleted keys the newest TOMBSTONES are
    remembered for watches.
    """
    opened = await trio.to_thread.run_sync(open_file, Path(path), capacity)
    store = SqliteStore(opened, limits or Limits(), max(tombstones, 1))
    try:
        yield store
    finally:
        await store.aclose()


@dataclass(frozen=True, slots=True)
class SqliteStatistics(Statistics):
    """The counts of every store, how many commits it took, and how many writes wait for theirs."""

    commits: int
    queued: int


class _SqliteWatch(Watch):
    def __init__(self, store: SqliteStore, under: str, position: int, silent: int) -> None:
        self.store, self.under = store, under
        self.position = position  # every change up to here was reported or need not be
        self.silent = silent  # deletions up to here are older than this watch
        self.lost = 0
        self.closed = False
        self.lot = trio.lowlevel.ParkingLot()

    def next_nowait(self) -> Change:
        self.store._check_open()
        if self.closed:
            raise StoreClosed("the watch is closed")
        if self.lost:
            raise Trimmed(self.under, self.lost)
        change = self.store._reader.change_after(self.under, self.position, self.silent)
        if change is None:
            self.position = max(self.position, self.store._revision)
            raise trio.WouldBlock
        self.position = change.revision
        return change

    async def next(self) -> Change:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.next_nowait()
            except trio.WouldBlock:
                await self.lot.park()

    async def aclose(self) -> None:
        self.closed = True
        self.store._forget_watch(self)
        self.lot.unpark_all()
        await trio.lowlevel.checkpoint()


class SqliteStore(Store, Upkeep):
    """A durable store. Made by `open_sqlite`."""

    def __init__(self, opened: Opened, limits: Limits, tombstones: int) -> None:
        self.limits = limits
        self._tombstones = tombstones
        self._reader = opened.reader
        self._path = opened.engine.path
        self._generation = opened.generation
        self._revision, self._floor = opened.revision, opened.floor
        self._deleted = dict(opened.deletions)
        self._readers: dict[str, trio.lowlevel.ParkingLot] = {}
        self._watches: dict[str, list[_SqliteWatch]] = {}
        self._appended = self._trimmed = self._put = self._removed = self._conflicts = 0
        self._queued = self._queued_bytes = 0
        self._upkeep = trio.CapacityLimiter(1)  # a second copy at once would only make both slower
        self._closed = False
        self._failed: StoreFailed | None = None
        self._ended = trio.Event()
        self._writer = Writer(opened.engine, self._deliver, self._ended.set)
        self._writer.start()
        self._forget_oldest_deletions()

    # Logs

    async def append(self, topic: str, data: bytes, *, expect_last: int | None = None) -> int:
        check_name(topic)
        self.limits.check_record(topic, data)
        return (await self._append(topic, [bytes(data)], expect_last)).start

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        check_name(topic)
        self.limits.check_batch(topic, batch)
        return await self._append(topic, [bytes(data) for data in batch], expect_last)

    async def _append(self, topic: str, batch: list[bytes], expect: int | None) -> range:
        return await self._write(*self._added(topic, batch, expect))

    def appending(self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None) -> Promise:
        owed = Promise()
        try:
            check_name(topic)
            self.limits.check_batch(topic, batch)
            work, tell, size = self._added(topic, [bytes(data) for data in batch], expect_last)
            self._check_room(size)
        except (StoreError, ValueError) as e:
            owed.fail(e)
        else:
            self._submit(Job(work, tell, size, owed=owed))
        return owed

    def _added(
        self, topic: str, batch: list[bytes], expect: int | None
    ) -> tuple[Callable[[Engine], range], Callable[[range], None], int]:
        """What the thread does to append, what that means to others, and its size."""

        def tell(seqs: range) -> None:
            self._appended += len(seqs)
            if lot := self._readers.get(topic):
                lot.unpark_all()

        return lambda engine: engine.append(topic, batch, expect), tell, sum(map(len, batch))

    async def read(self, topic: str, seq: int) -> Record:
        check_name(topic)
        await self._turn()
        return self._reader.record(topic, seq)

    def first_after_nowait(self, topic: str, seq: int) -> Record:
        check_name(topic)
        self._check_open()
        if record := self._reader.first_after(topic, seq):
            return record
        raise trio.WouldBlock

    async def first_after(self, topic: str, seq: int) -> Record:
        check_name(topic)
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.first_after_nowait(topic, seq)
            except trio.WouldBlock:
                lot = self._readers.setdefault(topic, trio.lowlevel.ParkingLot())
                try:
                    await lot.park()
                finally:
                    if not lot and self._readers.get(topic) is lot:
                        del self._readers[topic]

    async def last(self, topic: str) -> int:
        check_name(topic)
        await self._turn()
        return self._reader.last(topic)

    async def trim(self, topic: str, keep: int | None = None, *, through: int | None = None) -> int:
        check_name(topic)
        if (keep is None) == (through is None) or min(keep or 0, through or 0) < 0:
            raise ValueError("trim takes keep or through, one of them, and not below 0")

        def tell(done: tuple[int, int]) -> None:
            self._trimmed += done[1]

        floor, _ = await self._write(lambda engine: engine.trim(topic, keep, through), tell)
        return floor

    async def topics(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        _check_list(under, limit)
        await self._turn()
        return self._reader.topics(under, after, limit)

    # Values

    async def get(self, key: str) -> Entry:
        check_name(key)
        await self._turn()
        return self._reader.entry(key)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        check_name(key)
        self.limits.check_record(key, value)
        kept = bytes(value)

        def tell(revision: int) -> None:
            self._put += 1
            self._deleted.pop(key, None)
            self._changed(key, revision)

        return await self._write(lambda engine: engine.put(key, kept, expect), tell, len(kept))

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        check_name(key)

        def tell(revision: int) -> None:
            self._removed += 1
            self._deleted.pop(key, None)
            self._deleted[key] = revision
            self._changed(key, revision)
            self._forget_oldest_deletions()

        return await self._write(lambda engine: engine.delete(key, expect), tell)

    async def keys(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        _check_list(under, limit)
        await self._turn()
        return self._reader.keys(under, after, limit)

    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        check_under(under)
        if after is not None and after < 0:
            raise ValueError(f"no revision is {after}")
        await self._turn()
        if after and after < self._floor:
            raise Trimmed(under, self._floor)
        position = self._revision if after is None else after
        watch = _SqliteWatch(self, under, position, silent=position or self._revision)
        self._watches.setdefault(under, []).append(watch)
        return watch

    def _changed(self, key: str, revision: int) -> None:
        self._revision = revision
        for watch in self._watching(key):
            watch.lot.unpark_all()

    def _forget_oldest_deletions(self) -> None:
        """Those who have not heard of one are told so first; then it goes from the file, when it may."""
        while len(self._deleted) > self._tombstones:
            key, revision = next(iter(self._deleted.items()))
            del self._deleted[key]
            self._floor = revision
            for watch in self._watching(key):
                if max(watch.position, watch.silent) < revision:
                    watch.lost = revision
                    watch.lot.unpark_all()
            self._submit(_forgetting(key, revision))

    def _watching(self, key: str) -> Iterator[_SqliteWatch]:
        at = 0
        yield from self._watches.get("", ())
        while (at := key.find("/", at + 1)) > 0:
            yield from self._watches.get(key[:at], ())
        yield from self._watches.get(key, ())

    def _forget_watch(self, watch: _SqliteWatch) -> None:
        beside = self._watches.get(watch.under, [])
        if watch in beside:
            beside.remove(watch)
            if not beside:
                del self._watches[watch.under]

    # What writes share

    async def _write(
        self, work: Callable[[Engine], T], tell: Callable[[T], None], size: int = 0, *, alone: bool = False
    ) -> T:
        self._check_room(size)
        await trio.lowlevel.checkpoint_if_cancelled()
        job = Job(work, tell, size, trio.lowlevel.current_task(), alone=alone)
        self._submit(job)

        def abort(_: object) -> trio.lowlevel.Abort:
            if not job.cancel():
                return trio.lowlevel.Abort.FAILED  # it is being done, and soon answered
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if job.error is not None:
            raise job.error
        answer: T = job.answer
        return answer

    def _check_room(self, size: int) -> None:
        """Refuse a write of so many bytes if there is no room for it among those that wait."""
        self._check_open()
        if self._queued >= WAITING or (self._queued and self._queued_bytes + size > WAITING_BYTES):
            raise StoreFull(f"{self._queued} writes wait for the disk; try again when some are done")

    def _submit(self, job: Job) -> None:
        self._queued += 1
        self._queued_bytes += job.size
        self._writer.submit(job)

    def _deliver(self, group: list[Job], failed: StoreFailed | None) -> None:
        """A group was answered. Everybody it concerns runs when the loop next turns."""
        for job in group:
            self._queued -= 1
            self._queued_bytes -= job.size
            if job.done:
                job.tell(job.answer)
            elif isinstance(job.error, Conflict):
                self._conflicts += 1
            if job.task is not None:
                trio.lowlevel.reschedule(job.task)
            if job.owed is not None:
                if job.error is None:
                    job.owed.keep(job.answer)
                else:
                    job.owed.fail(job.error)
        if failed is not None and self._failed is None:
            self._failed = failed
            self._wake_all()

    def _wake_all(self) -> None:
        for lot in self._readers.values():
            lot.unpark_all()
        for beside in self._watches.values():
            for watch in beside:
                watch.lot.unpark_all()

    # What an operator wants

    async def integrity(self) -> list[str]:
        await self._turn()
        return await trio.to_thread.run_sync(problems, self._path, limiter=self._upkeep)

    async def copy(self) -> Copy:
        await self._turn()
        return await trio.to_thread.run_sync(take, self._path, limiter=self._upkeep)

    def incoming(self) -> Incoming:
        self._check_open()
        return Upload(self._path, len(STEPS))

    async def compact(self) -> str:
        before, now = await self._write(lambda engine: engine.compact(), lambda _: None, alone=True)
        return f"{before} bytes before, {now} now"

    # The store itself

    @property
    def generation(self) -> int:
        return self._generation

    async def _turn(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")
        if self._failed is not None:
            raise StoreFailed(f"{self._failed}; what was answered is safe: open the store again")

    def statistics(self) -> SqliteStatistics:
        watches = [watch for beside in self._watches.values() for watch in beside]
        return SqliteStatistics(
            appended=self._appended,
            trimmed=self._trimmed,
            put=self._put,
            deleted=self._removed,
            conflicts=self._conflicts,
            waiting=sum(map(len, self._readers.values())) + sum(len(watch.lot) for watch in watches),
            watches=len(watches),
            commits=self._writer.commits,
            queued=self._queued,
        )

    async def aclose(self) -> None:
        """As the interface says; what was submitted is done first, for as long as that takes."""
        if not self._closed:
            self._closed = True
            self._wake_all()
            self._watches.clear()
            self._reader.close()
            self._writer.stop()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        await trio.lowlevel.checkpoint()


def _forgetting(key: str, revision: int) -> Job:
    return Job(lambda engine: engine.forget(key, revision), lambda _: None, 0)


def _check_list(under: str, limit: int) -> None:
    check_under(under)
    if limit < 1:
        raise ValueError(f"a list of {limit} names")
