"""The store: the interface over logs and values, and who waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

import trio
from warren.store.interface import (
    Conflict,
    Entry,
    Limits,
    Record,
    Statistics,
    Store,
    StoreClosed,
    StoreFailed,
    Watch,
    check_name,
    check_under,
)
from warren.store.jetstream.engine import Engine
from warren.store.jetstream.follow import Follower
from warren.store.jetstream.line import Line
from warren.store.jetstream.logs import Logs
from warren.store.jetstream.spelling import OVERHEAD, read_address
from warren.store.jetstream.values import Values

GRACE: Final = 10.0  # seconds that a process may be behind the others
PATIENCE: Final = 15.0  # seconds for one call, and for a cluster to choose another leader


@asynccontextmanager
async def open_jetstream(
    address: str,
    *,
    prefix: str = "warren",
    tombstones: int = 1024,
    patience: float = PATIENCE,
    grace: float = GRACE,
) -> AsyncIterator[JetStreamStore]:
    """The store at nats://HOST:PORT[,HOST:PORT...][/PREFIX][?replicas=3] while the block runs.

    StoreFailed says why it is not to be had. Of deleted keys the newest TOMBSTONES are remembered for
    watches; the others are removed after GRACE seconds. PATIENCE is the time in which a call is answered, or
    fails.
    """
    where = read_address(address, prefix)
    again: list[Follower] = []
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:

        def came_back() -> None:
            for follower in again:
                follower.begin_again()

        line = Line(where.servers, where.shown, came_back)
        try:
            await nursery.start(line.run, patience)
            if not line.up:
                raise StoreFailed(f"{line.shown}: nobody answers there: {line.trouble or 'no reason given'}")
            engine = Engine(line, where.prefix, where.replicas, patience)
            await engine.prepare()
            store = JetStreamStore(engine, max(tombstones, 1), grace)
            again += store.followers
            for follower in store.followers:
                await nursery.start(follower.run)
            nursery.start_soon(store.values.sweep)
            try:
                yield store
            finally:
                await store.aclose()
        except BaseException as e:
            raised = e  # it is the caller's, and no business of the tasks here
        line.close()
        nursery.cancel_scope.shield = True
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


@dataclass(frozen=True, slots=True)
class JetStreamStatistics(Statistics):
    """The counts of every store, how often the connection was lost, and how many writes wait."""

    lost: int
    queued: int


class JetStreamStore(Store):
    """A store that a cluster keeps. Made by `open_jetstream`."""

    def __init__(self, engine: Engine, tombstones: int, grace: float) -> None:
        self.engine = engine
        room = engine.line.max_payload - OVERHEAD
        usual = Limits()
        self.limits = Limits(min(usual.record, room), usual.batch, min(usual.batch_bytes, room))
        self.logs = Logs(engine)
        self.values = Values(engine, tombstones, grace, self._check_open)
        appended = Follower(
            engine, engine.logs, engine.log_root, self._appended_to, self._missed, history=False
        )
        self.followers = (self.values.follower, appended)
        self._readers: dict[str, trio.lowlevel.ParkingLot] = {}
        self._news = 0
        self._waiting = 0
        self._appended = self._trimmed = self._put = self._removed = self._conflicts = 0
        self._closed = False

    @property
    def generation(self) -> int:
        return self.values.generation

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
        await self._turn()
        try:
            seqs = await self.logs.append(topic, batch, expect)
        except Conflict:
            self._conflicts += 1
            raise
        self._appended += len(seqs)
        return seqs

    async def read(self, topic: str, seq: int) -> Record:
        check_name(topic)
        await self._turn()
        return await self.logs.read(topic, seq)

    def first_after_nowait(self, topic: str, seq: int) -> Record:
        """Nothing is ever at hand: what there is lies with the servers."""
        check_name(topic)
        self._check_open()
        raise trio.WouldBlock

    async def first_after(self, topic: str, seq: int) -> Record:
        check_name(topic)
        self._waiting += 1
        try:
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                news = self._news
                if record := await self.logs.first_after(topic, seq):
                    self._check_open()
                    return record
                if news == self._news:
                    await self._park(topic)
        finally:
            self._waiting -= 1

    async def _park(self, topic: str) -> None:
        lot = self._readers.setdefault(topic, trio.lowlevel.ParkingLot())
        try:
            await lot.park()
        finally:
            if not lot and self._readers.get(topic) is lot:
                del self._readers[topic]

    async def last(self, topic: str) -> int:
        check_name(topic)
        await self._turn()
        return (await self.logs.tail(topic)).lot.last

    async def trim(self, topic: str, keep: int | None = None, *, through: int | None = None) -> int:
        check_name(topic)
        if (keep is None) == (through is None) or min(keep or 0, through or 0) < 0:
            raise ValueError("trim takes keep or through, one of them, and not below 0")
        await self._turn()
        floor, gone = await self.logs.trim(topic, keep, through)
        self._trimmed += gone
        return floor

    async def topics(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        _check_list(under, limit)
        await self._turn()
        return nsmallest(limit, (name for name in await self.logs.topics(under) if name > after))

    # Values

    async def get(self, key: str) -> Entry:
        check_name(key)
        await self._turn()
        return await self.values.get(key)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        check_name(key)
        self.limits.check_record(key, value)
        await self._turn()
        try:
            revision = await self.values.put(key, bytes(value), expect)
        except Conflict:
            self._conflicts += 1
            raise
        self._put += 1
        return revision

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        check_name(key)
        await self._turn()
        try:
            revision = await self.values.delete(key, expect)
        except Conflict:
            self._conflicts += 1
            raise
        self._removed += 1
        return revision

    async def keys(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        _check_list(under, limit)
        await self._turn()
        return nsmallest(limit, (name for name in await self.values.keys(under) if name > after))

    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        check_under(under)
        if after is not None and after < 0:
            raise ValueError(f"no revision is {after}")
        await self._turn()
        return await self.values.watch(under, after)

    # What the follower tells

    def _appended_to(self, subject: str, place: int, headers: dict[str, str]) -> None:
        self._news += 1
        if place != self.followers[1].seen + 1:
            self._missed(0, 0)  # a trim made the server leave out places, perhaps some of other topics
        elif lot := self._readers.get(self.logs.name(subject)):
            lot.unpark_all()

    def _missed(self, seen: int, last: int) -> None:
        self._news += 1
        for lot in self._readers.values():
            lot.unpark_all()

    # The store itself

    async def restored(self) -> int:
        """Say that this store was restored from a copy: answers the generation that begins with it.

        Cancelled: it has begun or not.
        """
        await self._turn()
        return await self.values.restored()

    async def _turn(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")

    def statistics(self) -> JetStreamStatistics:
        watches = [watch for beside in self.values.watches.values() for watch in beside]
        return JetStreamStatistics(
            appended=self._appended,
            trimmed=self._trimmed,
            put=self._put,
            deleted=self._removed,
            conflicts=self._conflicts,
            waiting=self._waiting + sum(watch.waiting for watch in watches),
            watches=len(watches),
            lost=self.engine.line.lost,
            queued=self.logs.writing + self.values.writing,
        )

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._missed(0, 0)
            self.values.wake_all()
            self.values.watches.clear()
            self.engine.line.close()
        await trio.lowlevel.checkpoint()


def _check_list(under: str, limit: int) -> None:
    check_under(under)
    if limit < 1:
        raise ValueError(f"a list of {limit} names")
