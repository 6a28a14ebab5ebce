"""A store in memory: for tests, and for what need not outlast its process.

It keeps every promise of `interface` but durability, and passes the same
`check_store` as the others, so a test that uses it proves something about them.

It is bounded. Everything kept is charged with its bytes and `COST` more, and past
`capacity` a write gets `StoreFull`; nothing is dropped to make room. Of deleted keys
the newest `tombstones` are remembered for watches.

No method has a checkpoint after its effect, so here Cancelled always means "not done".

The module is long because logs and values stand in it together: they share one budget,
and one `aclose` wakes all who wait.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from operator import itemgetter

import trio
from warren.store.interface import (
    Change,
    Conflict,
    Entry,
    Limits,
    NotFound,
    Record,
    Statistics,
    Store,
    StoreClosed,
    StoreFull,
    Trimmed,
    Watch,
    check_name,
    check_under,
    is_under,
)

COST = 128
"""What a record, a topic or a key is charged besides its bytes: about what Python spends on it."""


@dataclass(frozen=True, slots=True)
class MemoryStatistics(Statistics):
    """The counts of every store, and what is kept now."""

    topics: int
    records: int
    keys: int
    used: int
    capacity: int


@dataclass(slots=True)
class _Topic:
    floor: int = 0
    last: int = 0
    records: dict[int, bytes] = field(default_factory=dict)


class _MemoryWatch(Watch):
    def __init__(self, store: "MemoryStore", under: str, position: int, silent: int) -> None:
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
        for change in self.store._changes_after(self.position):
            self.position = change.revision
            reported = change.value is not None or change.revision > self.silent
            if reported and is_under(change.key, self.under):
                return change
        self.position = max(self.position, self.store._revision)
        raise trio.WouldBlock

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


class MemoryStore(Store):
    """A bounded store in memory."""

    def __init__(
        self, *, limits: Limits | None = None, capacity: int = 64 << 20, tombstones: int = 1024
    ) -> None:
        self.limits = limits or Limits()
        self.capacity = capacity
        self.tombstones = tombstones
        self._closed = False
        self._used = 0
        self._topics: dict[str, _Topic] = {}
        self._readers: dict[str, trio.lowlevel.ParkingLot] = {}
        self._entries: dict[str, Entry] = {}
        self._deleted: dict[str, int] = {}
        self._revision = 0
        self._floor = 0
        # Every change in the order of revisions. What a later change of the same key made
        # stale stays until a sweep, so that a change costs no search.
        self._changes: list[tuple[int, str]] = []
        self._watches: dict[str, list[_MemoryWatch]] = {}
        self._appended = self._trimmed = self._put = self._removed = self._conflicts = 0

    @property
    def generation(self) -> int:
        """Always the first: there is nothing to restore."""
        return 1

    # Logs

    async def append(self, topic: str, data: bytes, *, expect_last: int | None = None) -> int:
        check_name(topic)
        self.limits.check_record(topic, data)
        await trio.lowlevel.checkpoint()
        return self._append(topic, [data], expect_last).start

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        check_name(topic)
        self.limits.check_batch(topic, batch)
        await trio.lowlevel.checkpoint()
        return self._append(topic, batch, expect_last)

    def _append(self, topic: str, batch: Sequence[bytes], expect_last: int | None) -> range:
        self._check_open()
        log = self._topics.get(topic) or _Topic()
        if expect_last is not None and expect_last != log.last:
            self._conflicts += 1
            raise Conflict(topic, expect_last, log.last)
        size = sum(map(len, batch)) + COST * len(batch)
        self._charge(size if log.last else size + COST + len(topic))
        self._topics[topic] = log
        seqs = range(log.last + 1, log.last + 1 + len(batch))
        log.records.update(zip(seqs, map(bytes, batch), strict=True))
        log.last = seqs[-1]
        self._appended += len(batch)
        if lot := self._readers.get(topic):
            lot.unpark_all()
        return seqs

    async def read(self, topic: str, seq: int) -> Record:
        check_name(topic)
        await trio.lowlevel.checkpoint()
        self._check_open()
        log = self._topics.get(topic) or _Topic()
        if (data := log.records.get(seq)) is not None:
            return Record(seq, data)
        if 0 < seq <= log.floor:
            raise Trimmed(topic, log.floor)
        raise NotFound(f"{topic}: no record {seq}")

    def first_after_nowait(self, topic: str, seq: int) -> Record:
        check_name(topic)
        self._check_open()
        if log := self._topics.get(topic):
            found = max(seq, log.floor) + 1
            if found <= log.last:
                return Record(found, log.records[found])
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
                    # A lot is kept only while somebody is in it: names that are
                    # waited for in vain must not pile up.
                    if not lot and self._readers.get(topic) is lot:
                        del self._readers[topic]

    async def last(self, topic: str) -> int:
        check_name(topic)
        await trio.lowlevel.checkpoint()
        self._check_open()
        return log.last if (log := self._topics.get(topic)) else 0

    async def trim(self, topic: str, keep: int | None = None, *, through: int | None = None) -> int:
        check_name(topic)
        if (keep is None) == (through is None) or min(keep or 0, through or 0) < 0:
            raise ValueError("trim takes keep or through, one of them, and not below 0")
        await trio.lowlevel.checkpoint()
        self._check_open()
        if (log := self._topics.get(topic)) is None:
            return 0
        floor = log.last - keep if keep is not None else min(through or 0, log.last)
        for seq in range(log.floor + 1, floor + 1):
            self._used -= len(log.records.pop(seq)) + COST
            self._trimmed += 1
        log.floor = max(log.floor, floor)
        return log.floor

    async def topics(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        check_under(under)
        await trio.lowlevel.checkpoint()
        self._check_open()
        return _page(self._topics.keys(), under, after, limit)

    # Values

    async def get(self, key: str) -> Entry:
        check_name(key)
        await trio.lowlevel.checkpoint()
        self._check_open()
        if entry := self._entries.get(key):
            return entry
        raise NotFound(f"{key}: no value")

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        check_name(key)
        self.limits.check_record(key, value)
        await trio.lowlevel.checkpoint()
        old = self._expected(key, expect)
        self._charge(len(value) - len(old.value) if old else COST + len(key) + len(value))
        self._deleted.pop(key, None)
        self._put += 1
        self._entries[key] = Entry(key, self._change(key), bytes(value))
        return self._revision

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        check_name(key)
        await trio.lowlevel.checkpoint()
        if (old := self._expected(key, expect)) is None:
            raise NotFound(f"{key}: no value")
        del self._entries[key]
        self._used -= COST + len(key) + len(old.value)
        self._removed += 1
        self._deleted[key] = revision = self._change(key)
        if len(self._deleted) > self.tombstones:
            self._forget_oldest_deletion()
        return revision

    async def keys(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        check_under(under)
        await trio.lowlevel.checkpoint()
        self._check_open()
        return _page(self._entries.keys(), under, after, limit)

    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        check_under(under)
        if after is not None and after < 0:
            raise ValueError(f"no revision is {after}")
        await trio.lowlevel.checkpoint()
        self._check_open()
        if after and after < self._floor:
            raise Trimmed(under, self._floor)
        position = self._revision if after is None else after
        watch = _MemoryWatch(self, under, position, silent=position or self._revision)
        self._watches.setdefault(under, []).append(watch)
        return watch

    def _expected(self, key: str, expect: int | None) -> Entry | None:
        """The present entry, once it is as expected."""
        self._check_open()
        entry = self._entries.get(key)
        actual = entry.revision if entry else 0
        if expect is not None and expect != actual:
            self._conflicts += 1
            raise Conflict(key, expect, actual)
        return entry

    def _change(self, key: str) -> int:
        """Number a change and wake who watches the key. They run when this task next waits."""
        self._revision += 1
        if len(self._changes) > 2 * (len(self._entries) + len(self._deleted)) + 64:
            self._changes = [change for change in self._changes if self._current(*change)]
        self._changes.append((self._revision, key))
        for watch in self._watching(key):
            watch.lot.unpark_all()
        return self._revision

    def _current(self, revision: int, key: str) -> Change | None:
        if entry := self._entries.get(key):
            return Change(*entry) if entry.revision == revision else None
        return Change(key, revision, None) if self._deleted.get(key) == revision else None

    def _changes_after(self, position: int) -> Iterator[Change]:
        start = bisect_right(self._changes, position, key=itemgetter(0))
        for at in range(start, len(self._changes)):
            if change := self._current(*self._changes[at]):
                yield change

    def _forget_oldest_deletion(self) -> None:
        key, revision = next(iter(self._deleted.items()))
        del self._deleted[key]
        self._floor = revision
        for watch in self._watching(key):
            if max(watch.position, watch.silent) < revision:
                watch.lost = revision
                watch.lot.unpark_all()

    def _watching(self, key: str) -> Iterator[_MemoryWatch]:
        yield from self._watches.get("", ())
        at = key.find("/")
        while at >= 0:
            yield from self._watches.get(key[:at], ())
            at = key.find("/", at + 1)
        yield from self._watches.get(key, ())

    def _forget_watch(self, watch: _MemoryWatch) -> None:
        beside = self._watches.get(watch.under, [])
        if watch in beside:
            beside.remove(watch)
            if not beside:
                del self._watches[watch.under]

    # The store itself

    def _charge(self, size: int) -> None:
        if size > 0 and self._used + size > self.capacity:
            raise StoreFull(f"{self._used} of {self.capacity} bytes used, {size} more wanted")
        self._used += size

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")

    def statistics(self) -> MemoryStatistics:
        watches = [watch for beside in self._watches.values() for watch in beside]
        return MemoryStatistics(
            appended=self._appended,
            trimmed=self._trimmed,
            put=self._put,
            deleted=self._removed,
            conflicts=self._conflicts,
            waiting=sum(map(len, self._readers.values())) + sum(len(watch.lot) for watch in watches),
            watches=len(watches),
            topics=len(self._topics),
            records=sum(len(log.records) for log in self._topics.values()),
            keys=len(self._entries),
            used=self._used,
            capacity=self.capacity,
        )

    async def aclose(self) -> None:
        self._closed = True
        for lot in self._readers.values():
            lot.unpark_all()
        for beside in self._watches.values():
            for watch in beside:
                watch.lot.unpark_all()
        for kept in (self._topics, self._readers, self._entries, self._deleted, self._changes, self._watches):
            kept.clear()
        self._used = 0
        await trio.lowlevel.checkpoint()


def _page(names: Collection[str], under: str, after: str, limit: int) -> list[str]:
    if limit < 1:
        raise ValueError(f"a list of {limit} names")
    return nsmallest(limit, (name for name in names if name > after and is_under(name, under)))
