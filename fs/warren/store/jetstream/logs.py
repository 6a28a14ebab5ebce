"""Topics in a stream: lots, the newest of which says how the topic stands.

A lot is written to follow the one its writer saw last, so numbers have no gap and an expectation is decided
by the server. A trim is a lot without records that says how far it is forgotten; what it frees is given back
after it. Where a record lies is found by the numbers in the lots, by halves; a reader that goes on finds the
next one where the last one ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio
from warren.store.interface import Conflict, NotFound, Record, StoreError, StoreFailed, StoreFull, Trimmed
from warren.store.jetstream.engine import Engine, Found, Late
from warren.store.jetstream.spelling import Lot, below, decode_lot, encode_lot, name_of, new_mark, tokens

KNOWN: Final = 4096  # topics whose newest place is remembered
KEPT: Final = 16 << 20  # bytes of lots that are kept for the next reader
KEPT_EACH: Final = 4  # lots of one topic
WAITING: Final = 8192  # writers that wait for their turn
PURGE: Final = 256  # records forgotten until their room is given back


class Placed(NamedTuple):
    """A lot in its place; place 0 is before the first."""

    at: int
    lot: Lot


NONE: Final = Placed(0, Lot(b"", 0, 1, ()))


class Logs:
    """All topics of a store."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.writing = 0
        self._tails: OrderedDict[str, Placed] = OrderedDict()
        self._pens: dict[str, trio.Lock] = {}
        self._near: OrderedDict[str, OrderedDict[int, Placed]] = OrderedDict()
        self._near_bytes = 0
        self._purged: OrderedDict[str, int] = OrderedDict()

    # Writing

    async def append(self, topic: str, batch: Sequence[bytes], expect: int | None) -> range:
        """Cancelled: all are there or none is."""
        mark, records = new_mark(), tuple(batch)
        async with self._pen(topic):
            tail, sure = self._tails.get(topic), False
            while True:
                if tail is None:
                    tail, sure = await self.tail(topic), True
                last = tail.lot.last
                if expect is not None and expect != last:
                    if sure:
                        raise Conflict(topic, expect, last)
                    tail = None
                    continue
                lot = Lot(mark, tail.lot.floor, last + 1, records)
                try:
                    await self._write(topic, tail, lot)
                except Late:
                    tail = None
                    continue
                return range(last + 1, last + 1 + len(records))

    async def trim(self, topic: str, keep: int | None, through: int | None) -> tuple[int, int]:
        """Where it is forgotten through now, and how many records that forgot. Cancelled: done or not."""
        mark = new_mark()
        async with self._pen(topic):
            while True:
                tail = await self.tail(topic)
                last, old = tail.lot.last, tail.lot.floor
                floor = last - keep if keep is not None else min(through or 0, last)
                if floor <= old:
                    return old, 0
                try:
                    written = await self._write(topic, tail, Lot(mark, floor, last + 1, ()))
                except Late:
                    continue
                await self._give_back(topic, floor, written)
                return floor, floor - old

    async def _write(self, topic: str, tail: Placed, lot: Lot) -> Placed:
        engine, subject = self.engine, self._subject(topic)

        async def ours() -> int | None:
            """What follows the place that the lot was written for."""
            found = await engine.next(engine.logs, subject, tail.at + 1)
            if found is None:
                return 0
            there = decode_lot(found.data)
            if there.mark == lot.mark:
                return found.at
            if there.first != lot.first:
                raise StoreFailed(f"{topic}: what was written then is forgotten already")
            return None

        at = await engine.write(engine.logs, subject, encode_lot(lot), {}, tail.at, ours)
        written = Placed(at, lot)
        self._know(topic, written)
        return written

    async def _give_back(self, topic: str, floor: int, tail: Placed) -> None:
        """Remove lots of which all is forgotten. What fails here is done by the next trim."""
        if floor < tail.lot.last and floor - self._purged.get(topic, 0) < PURGE:
            return
        try:
            first = tail if floor == tail.lot.last else await self._find(topic, floor + 1, tail)
            if first is not None:
                await self.engine.purge(self.engine.logs, self._subject(topic), first.at)
                self._purged[topic] = floor
                if len(self._purged) > KNOWN:
                    self._purged.popitem(last=False)
        except StoreError:
            pass

    @asynccontextmanager
    async def _pen(self, topic: str) -> AsyncIterator[None]:
        """The turn to write to a topic, in the order of asking."""
        if self.writing >= WAITING:
            raise StoreFull(f"{self.writing} writes wait for the cluster; try again when some are done")
        lock = self._pens.setdefault(topic, trio.Lock())
        self.writing += 1
        try:
            async with lock:
                yield
        finally:
            self.writing -= 1
            if not lock.locked() and self._pens.get(topic) is lock:
                del self._pens[topic]

    # Reading

    async def tail(self, topic: str) -> Placed:
        """The newest lot, perhaps without its records. Cancelled has no effect."""
        engine, subject = self.engine, self._subject(topic)
        # What comes after a known lot is mostly nothing, and that is quickly said.
        known = self._tails.get(topic)
        if known and await engine.next(engine.logs, subject, known.at + 1) is None:
            return known
        found = await engine.newest(engine.logs, subject, lambda: self._tails.get(topic, NONE).at)
        return self._know(topic, _placed(found)) if found else NONE

    async def read(self, topic: str, seq: int) -> Record:
        """Cancelled has no effect."""
        while True:
            tail = await self.tail(topic)
            if 0 < seq <= tail.lot.floor:
                raise Trimmed(topic, tail.lot.floor)
            if not 0 < seq <= tail.lot.last:
                raise NotFound(f"{topic}: no record {seq}")
            if found := await self._find(topic, seq, tail):
                return _record(found.lot, seq)

    async def first_after(self, topic: str, seq: int) -> Record | None:
        """The oldest kept record after SEQ, if there is one. Cancelled has no effect."""
        while True:
            tail = await self.tail(topic)
            wanted = max(seq, tail.lot.floor) + 1
            if wanted > tail.lot.last:
                return None
            if found := await self._find(topic, wanted, tail):
                return _record(found.lot, wanted)

    async def topics(self, under: str) -> set[str]:
        """Every topic at or under a name. Cancelled has no effect."""
        names: set[str] = set()
        for pattern in below(self.engine.log_root, under):
            found, _ = await self.engine.subjects(self.engine.logs, pattern)
            names.update(self.name(subject) for subject in found)
        return names

    def name(self, subject: str) -> str:
        return name_of(subject[len(self.engine.log_root) + 1 :])

    def _subject(self, topic: str) -> str:
        return f"{self.engine.log_root}.{tokens(topic)}"

    async def _find(self, topic: str, seq: int, tail: Placed) -> Placed | None:
        """The lot with a record that is kept; None when it is forgotten meanwhile."""
        if tail.lot.first <= seq:
            return tail
        low, high, probe = 1, tail.at, 0  # it lies from low to high
        for known in self._near.get(topic, {}).values():
            if known.lot.first <= seq <= known.lot.last:
                return known
            if known.lot.last < seq and known.at >= low:
                low = known.at + 1
                probe = low if known.lot.last == seq - 1 else 0
            elif known.lot.first > seq:
                high = min(high, known.at - 1)
        while low <= high:
            place = probe or (low + high) // 2
            probe = 0
            found = await self.engine.next(self.engine.logs, self._subject(topic), place)
            if found is None or found.at > high:
                high = place - 1
                continue
            lot = decode_lot(found.data)
            if lot.first <= seq <= lot.last:
                here = Placed(found.at, lot)
                self._keep(topic, here)
                return here
            if lot.first > seq:
                high = place - 1
            else:
                low = found.at + 1
        return None

    def _know(self, topic: str, placed: Placed) -> Placed:
        """Remember how the topic stands; of two lots the one in the later place says it."""
        if placed.lot.records:
            self._keep(topic, placed)
        known = self._tails.pop(topic, NONE)
        if placed.at > known.at:  # without the records: those that are kept for readers are bounded in bytes
            known = Placed(placed.at, Lot(b"", placed.lot.floor, placed.lot.last + 1, ()))
        self._tails[topic] = known
        if len(self._tails) > KNOWN:
            self._tails.popitem(last=False)
        return placed

    def _keep(self, topic: str, placed: Placed) -> None:
        near = self._near.setdefault(topic, OrderedDict())
        self._near.move_to_end(topic)
        self._drop(near, placed.at)
        near[placed.at] = placed
        self._near_bytes += _size(placed.lot)
        while len(near) > KEPT_EACH:
            self._drop(near, next(iter(near)))
        while self._near_bytes > KEPT and len(self._near) > 1:
            _, oldest = self._near.popitem(last=False)
            for at in list(oldest):
                self._drop(oldest, at)

    def _drop(self, near: OrderedDict[int, Placed], at: int) -> None:
        if known := near.pop(at, None):
            self._near_bytes -= _size(known.lot)


def _placed(found: Found) -> Placed:
    return Placed(found.at, decode_lot(found.data))


def _record(lot: Lot, seq: int) -> Record:
    return Record(seq, lot.records[seq - lot.first])


def _size(lot: Lot) -> int:
    return sum(map(len, lot.records)) + 128 * (len(lot.records) + 1)
