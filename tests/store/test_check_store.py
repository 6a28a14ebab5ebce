"""The suite itself: it passes the memory store, and it sees each defect a store could have."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from warren.check.store import check_store, check_store_model
from warren.store import (
    BadName,
    Change,
    Conflict,
    Entry,
    Limits,
    MemoryStore,
    NotFound,
    Record,
    Store,
    StoreClosed,
    Trimmed,
    Watch,
)
from warren.store import memory as engine
from warren.store.interface import check_name


def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def test_the_memory_store_keeps_every_promise(autojump_clock: MockClock) -> None:
    await check_store(MemoryStore)


async def test_small_limits_are_kept_too(autojump_clock: MockClock) -> None:
    await check_store(lambda: MemoryStore(limits=Limits(record=4096, batch=3, batch_bytes=9000)))


def lasting(kind: type[MemoryStore], forgets: str = "") -> Callable[[], AbstractAsyncContextManager[Store]]:
    """A factory whose stores share what was kept: what durability looks like from outside."""
    kept: dict[str, Any] = {}

    @asynccontextmanager
    async def make() -> AsyncIterator[Store]:
        store = kind()
        vars(store).update({name: copy(value) for name, value in kept.items()})
        try:
            yield store
        finally:
            if not store._closed:
                for name in ("_topics", "_entries", "_deleted", "_changes", "_revision", "_floor", "_used"):
                    if name != forgets:
                        kept[name] = copy(vars(store)[name])
            await store.aclose()

    return make


async def test_a_durable_store_is_looked_at_again_after_a_reopening(autojump_clock: MockClock) -> None:
    await check_store(lasting(MemoryStore), durable=True)
    with pytest.raises(AssertionError, match="opened again"):
        await check_store(MemoryStore, durable=True)


@pytest.mark.parametrize("part", ["_topics", "_entries", "_deleted", "_changes"])
async def test_what_a_reopening_forgets_is_seen(part: str, autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError, match="opened again"):
        await check_store(lasting(MemoryStore, forgets=part), durable=True)


async def test_revisions_that_begin_again_at_a_reopening_are_seen(autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError, match="every later change under its name, in order"):
        await check_store(lasting(MemoryStore, forgets="_revision"), durable=True)


class AnswersLate(MemoryStore):
    """As a store with an engine elsewhere: a thread before the effect and one before the answer."""

    async def append(self, topic: str, data: bytes, *, expect_last: int | None = None) -> int:
        await trio.to_thread.run_sync(int)
        seq = await super().append(topic, data, expect_last=expect_last)
        await trio.to_thread.run_sync(int)
        return seq

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        await trio.to_thread.run_sync(int)
        seqs = await super().append_batch(topic, batch, expect_last=expect_last)
        await trio.to_thread.run_sync(int)
        return seqs

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        await trio.to_thread.run_sync(int)
        revision = await super().put(key, value, expect=expect)
        await trio.to_thread.run_sync(int)
        return revision

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        await trio.to_thread.run_sync(int)
        revision = await super().delete(key, expect=expect)
        await trio.to_thread.run_sync(int)
        return revision

    async def get(self, key: str) -> Entry:
        await trio.to_thread.run_sync(int)
        return await super().get(key)

    async def first_after(self, topic: str, seq: int) -> Record:
        record = await super().first_after(topic, seq)
        await trio.to_thread.run_sync(int)
        return record


async def test_a_store_that_works_in_threads_is_not_accused() -> None:
    await check_store(AnswersLate)


def test_a_store_that_works_in_threads_agrees_with_the_model() -> None:
    check_store_model(AnswersLate, examples=30)


def test_any_sequence_of_calls_agrees_with_the_model() -> None:
    check_store_model(MemoryStore, examples=150, clock=clock)


def test_any_sequence_of_calls_agrees_with_the_model_across_reopenings() -> None:
    check_store_model(lasting(MemoryStore), durable=True, examples=100, clock=clock)


def test_the_model_allows_for_deletions_that_were_forgotten() -> None:
    check_store_model(lambda: MemoryStore(tombstones=1), examples=100, clock=clock)


# Stores with one defect each. The name says which; the comment says who would suffer.


class ForgetsExpectLast(MemoryStore):
    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        return super()._append(topic, batch, None)


class ChecksExpectLastTooEarly(MemoryStore):
    """Looks, waits, then writes: two owners of a shard both believe that they won."""

    async def append(self, topic: str, data: bytes, *, expect_last: int | None = None) -> int:
        last = await self.last(topic)
        if expect_last is not None and expect_last != last:
            raise Conflict(topic, expect_last, last)
        return await super().append(topic, data)


class ConflictsWithoutTheTruth(MemoryStore):
    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        try:
            return super()._append(topic, batch, expect_last)
        except Conflict as conflict:
            raise Conflict(topic, conflict.expected, conflict.expected) from None


class ForgetsExpectedRevision(MemoryStore):
    def _expected(self, key: str, expect: int | None) -> Entry | None:
        return super()._expected(key, None)


class ChecksRevisionTooEarly(MemoryStore):
    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        self._expected(key, expect)
        return await super().put(key, value)


class ChecksDeletedRevisionTooEarly(MemoryStore):
    async def delete(self, key: str, *, expect: int | None = None) -> int:
        self._expected(key, expect)
        return await super().delete(key)


class CountsRevisionsByKey(MemoryStore):
    """A key deleted and made again has its old revision: a stale owner passes for the new one."""

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        if key not in self._entries:
            self._revision = 0
        return await super().put(key, value, expect=expect)


class TearsBatches(MemoryStore):
    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        self.limits.check_batch(topic, batch)
        first = await self.append(topic, batch[0], expect_last=expect_last)
        for data in batch[1:]:
            await self.append(topic, data)
        return range(first, first + len(batch))


class WritesWhatItRefuses(MemoryStore):
    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        seqs = super()._append(topic, batch, None)
        if expect_last is not None and expect_last != seqs.start - 1:
            raise Conflict(topic, expect_last, seqs.start - 1)
        return seqs


class WakesOneReader(MemoryStore):
    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        lot, self._readers = self._readers, {}
        seqs = super()._append(topic, batch, expect_last)
        self._readers = lot
        if topic in lot:
            lot[topic].unpark()
        return seqs


class WakesReadersOfOtherTopics(MemoryStore):
    async def first_after(self, topic: str, seq: int) -> Record:
        while True:
            before = self._appended
            try:
                return self.first_after_nowait(topic, seq)
            except trio.WouldBlock:
                lot = self._readers.setdefault(topic, trio.lowlevel.ParkingLot())
                await lot.park()
            if self._appended == before:
                raise StoreClosed("woken for nothing")

    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        seqs = super()._append(topic, batch, expect_last)
        self._appended -= len(batch)
        for lot in self._readers.values():
            lot.unpark_all()
        return seqs


class AnswersReadersBehindATrim(MemoryStore):
    """Wakes a reader for the trim, with an error it has no reason to expect."""

    async def first_after(self, topic: str, seq: int) -> Record:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.first_after_nowait(topic, seq)
            except trio.WouldBlock:
                if (log := self._topics.get(topic)) and log.floor > seq:
                    raise Trimmed(topic, log.floor) from None
            await self._readers.setdefault(topic, trio.lowlevel.ParkingLot()).park()


class ReusesNumbers(MemoryStore):
    async def trim(self, topic: str, keep: int | None = None, *, through: int | None = None) -> int:
        floor = await super().trim(topic, keep, through=through)
        if (log := self._topics.get(topic)) and not log.records:
            del self._topics[topic]
        return floor


class TrimsOneTooMany(MemoryStore):
    async def trim(self, topic: str, keep: int | None = None, *, through: int | None = None) -> int:
        return await super().trim(topic, max(0, keep - 1) if keep else keep, through=through)


class MakesTopicsByLooking(MemoryStore):
    async def last(self, topic: str) -> int:
        self._topics.setdefault(topic, engine._Topic())
        return await super().last(topic)


class TruncatesLargeRecords(MemoryStore):
    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        return super()._append(topic, [data[:65536] for data in batch], expect_last)


class TakesAnySize(MemoryStore):
    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        limits, self.limits = self.limits, Limits(record=1 << 30)
        try:
            return await super().put(key, value, expect=expect)
        finally:
            self.limits = limits


class TakesAnyName(MemoryStore):
    async def get(self, key: str) -> Entry:
        try:
            return await super().get(key)
        except BadName:
            raise NotFound(key) from None


class FoldsCase(MemoryStore):
    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        return await super().put(key.lower(), value, expect=expect)

    async def get(self, key: str) -> Entry:
        return (await super().get(key.lower()))._replace(key=key)


class ListsByCharactersNotParts(MemoryStore):
    async def keys(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        await super().keys(under, limit=limit)
        return sorted(key for key in self._entries if key.startswith(under) and key > after)[:limit]


class ListsOutOfOrder(MemoryStore):
    async def topics(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        return (await super().topics(under, after=after, limit=limit))[::-1]


class IsNoCheckpoint(MemoryStore):
    async def last(self, topic: str) -> int:
        check_name(topic)
        self._check_open()
        return self._topics[topic].last if topic in self._topics else 0


class LeavesWaitersAtClose(MemoryStore):
    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()


class ClosesOnlyUncancelled(MemoryStore):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        await super().aclose()


class CountsWaitersForEver(MemoryStore):
    _entered = 0

    async def first_after(self, topic: str, seq: int) -> Record:
        self._entered += 1
        record = await super().first_after(topic, seq)
        self._entered -= 1
        return record

    def statistics(self) -> engine.MemoryStatistics:
        return replace(super().statistics(), waiting=self._entered)


class TearsCancelledBatches(MemoryStore):
    """Keeps others out while it writes record by record, but not the cancellation."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = trio.Lock()

    async def append(self, topic: str, data: bytes, *, expect_last: int | None = None) -> int:
        async with self._turn:
            return await super().append(topic, data, expect_last=expect_last)

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        check_name(topic)
        self.limits.check_batch(topic, batch)
        async with self._turn:
            first = self._append(topic, batch[:1], expect_last).start
            for data in batch[1:]:
                await trio.lowlevel.checkpoint()
                self._append(topic, [data], None)
        return range(first, first + len(batch))


class ReplacesByDeleting(MemoryStore):
    """A put that is cancelled half-way loses the value it was to replace."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = trio.Lock()

    async def get(self, key: str) -> Entry:
        async with self._turn:
            return await super().get(key)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        check_name(key)
        self.limits.check_record(key, value)
        async with self._turn:
            if self._expected(key, expect) and expect is None:
                await super().delete(key)
            return await super().put(key, value)


class _Watching(MemoryStore):
    """A store whose watches have the defect of `kind`."""

    kind: type[Watch]

    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        watch = await super().watch(under, after=after)
        watch.__class__ = self.kind
        return watch


class LosesChangesOnCancel(_Watching):
    class kind(engine._MemoryWatch):
        async def next(self) -> Change:
            change = await super().next()
            await trio.lowlevel.checkpoint()
            return change


class TellsEverybody(_Watching):
    class kind(engine._MemoryWatch):
        async def next(self) -> Change:
            position = self.position
            await super().next()
            self.position = position
            return self.next_nowait()


class HidesDeletions(_Watching):
    class kind(engine._MemoryWatch):
        def next_nowait(self) -> Change:
            while (change := super().next_nowait()).value is None:
                pass
            return change


class TellsNewestOnly(_Watching):
    """Believes itself up to date after one change, so that those of other keys are lost."""

    class kind(engine._MemoryWatch):
        def next_nowait(self) -> Change:
            change = super().next_nowait()
            self.position = max(self.position, self.store._revision)
            return change


class TellsOfNeighbours(_Watching):
    class kind(engine._MemoryWatch):
        def next_nowait(self) -> Change:
            for change in self.store._changes_after(self.position):
                self.position = change.revision
                if change.key.startswith(self.under) and (
                    change.value is not None or change.revision > self.silent
                ):
                    return change
            return super().next_nowait()


class ResumesFromNow(MemoryStore):
    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        return await super().watch(under, after=after or None)


class ForgetsDeletionsSilently(MemoryStore):
    """A resumed watch never hears that a lease was deleted while it was away."""

    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        if after:
            self._deleted.clear()
        return await super().watch(under, after=after)


DEFECTS: dict[type[MemoryStore], str] = {
    ForgetsExpectLast: "expect_last=1.* instead of Conflict",
    ChecksExpectLastTooEarly: "append with the same expect_last exactly one succeeds",
    ConflictsWithoutTheTruth: "what the conflict carries",
    WritesWhatItRefuses: "after a refused first append",
    ForgetsExpectedRevision: "expect=7.* instead of Conflict",
    ChecksRevisionTooEarly: "the number of tasks that made the key",
    ChecksDeletedRevisionTooEarly: "under the same expectation exactly one succeeds: unexpected NotFound",
    CountsRevisionsByKey: "the order of revisions",
    TearsBatches: "a batch in one piece",
    TearsCancelledBatches: "A cancelled write is whole or absent",
    ReplacesByDeleting: "A cancelled put or delete was done or not",
    WakesOneReader: "A reader waits until .*: still waiting",
    WakesReadersOfOtherTopics: "A reader waits until there is a record for it",
    AnswersReadersBehindATrim: "A trim neither wakes nor fails a waiting reader",
    ReusesNumbers: "expected 4, found 0",
    TrimsOneTooMany: "A trim forgets what it says and no more",
    MakesTopicsByLooking: "asking does not make it",
    TruncatesLargeRecords: "the sameness of a large record",
    TakesAnySize: "instead of TooLarge",
    TakesAnyName: "others are refused everywhere: unexpected NotFound",
    FoldsCase: "Names within the grammar are all different",
    ListsByCharactersNotParts: "by whole parts",
    ListsOutOfOrder: "the whole list",
    IsNoCheckpoint: "last is not a checkpoint",
    LeavesWaitersAtClose: "Closing wakes all who wait .*: still waiting",
    ClosesOnlyUncancelled: "Closing wakes all who wait",
    CountsWaitersForEver: "the number of waiting calls",
    LosesChangesOnCancel: "A cancelled wait of a watch takes nothing",
    TellsEverybody: "exactly one gets a change",
    HidesDeletions: "every later change under its name, in order",
    TellsNewestOnly: "every later change under its name, in order",
    TellsOfNeighbours: "the values there are",
    ResumesFromNow: "every later change under its name, in order",
    ForgetsDeletionsSilently: "all that changed since, deletions too",
}


@pytest.mark.parametrize("kind", DEFECTS, ids=lambda kind: kind.__name__)
async def test_each_defect_is_seen(kind: type[MemoryStore], autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError, match=DEFECTS[kind]):
        await check_store(kind)


MODEL_SEES = [
    ForgetsExpectLast,
    ForgetsExpectedRevision,
    CountsRevisionsByKey,
    WakesOneReader,
    ReusesNumbers,
    TrimsOneTooMany,
    MakesTopicsByLooking,
    ListsOutOfOrder,
    HidesDeletions,
    TellsNewestOnly,
    ResumesFromNow,
    ForgetsDeletionsSilently,
]


@pytest.mark.parametrize("kind", MODEL_SEES, ids=lambda kind: kind.__name__)
def test_the_model_sees_a_defect_by_itself(kind: type[MemoryStore]) -> None:
    with pytest.raises(AssertionError):
        check_store_model(kind, examples=300, shrink=False, clock=clock)


async def test_a_failure_names_the_promise_and_how_it_was_broken(autojump_clock: MockClock) -> None:
    with pytest.raises(
        AssertionError, match=r"exactly one succeeds: the number of .* made the key is 10, not 1"
    ):
        await check_store(ChecksRevisionTooEarly)
    with pytest.raises(AssertionError, match="still waiting after 2 s"):
        await check_store(WakesOneReader, patience=2)
