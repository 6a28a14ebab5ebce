"""One queue at work: its state, its log, its time, and who waits for a task.

A decision is made on the state as it will be once everything noted before is written: state first, log behind
it, answer last. Since the log keeps that order, an answer never rests on something that can be lost. If the
store refuses a record, the state is read again from the log, and who was not answered is refused.

    state = await queue.fresh()        as of now; from here to `do` nothing may wait
    batch = queue.do(record)           decided
    await queue.settle(batch)          durable

Another process may own the same queue at another time, or by mistake at the same time: each append is fenced,
so one of two is refused (503), reads what the other wrote, and goes on from there.

The log is kept short by snapshots: after so many records the whole state is written behind them, the store's
table points there, and what lies before is forgotten. Whoever follows the log and lost records by that finds
the snapshot next. The order makes it safe to stop anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

import msgspec
import trio
from warren.servers.task.places import DEAD, DELAYED, LEASED, Task
from warren.servers.task.records import End, Made, Record, pack, unpack
from warren.servers.task.state import COUNTED, State
from warren.store import Batch, Conflict, Journal, NotFound, Store, StoreError
from warren.tree import Refused, Ring
from warren.tree.ports import Clock
from warren.tree.report import Events

EVERY: Final = 4096


@dataclass(frozen=True)
class Limits:
    """What a server of queues gives; each queue's own settings lie within."""

    queues: int = 256
    readers: int = 1024  # of a queue, that wait
    effects: int = 16_384  # that a queue remembers
    effect_bytes: int = 8 << 20
    bytes: int = 256 << 20  # of tasks in all queues, which are kept in memory
    every: int = EVERY  # records until a snapshot, and at least
    growth: int = 2  # times as many as it has parts


class Taken(NamedTuple):
    """What a worker was given."""

    number: int
    attempt: int
    head: dict[str, object]
    body: bytes
    batch: Batch


class Reader:
    """One open of `lease` that is being read."""

    __slots__ = ("error", "subject", "taken", "task", "term", "wait")

    def __init__(self, subject: str, term: float | None = None, wait: float | None = None) -> None:
        self.subject, self.term, self.wait = subject, term, wait
        self.taken: Taken | None = None
        self.error: Refused | None = None
        self.task: trio.lowlevel.Task | None = None

    def wake(self) -> None:
        """There is something for it, or nothing will come."""
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class Pressure(Ring):
    """Every crossing of a water mark, for whoever reads."""

    def tell(self, now: float, said: dict[str, object]) -> None:
        words = " ".join(f"{name}={value}" for name, value in said.items())
        self.append(f"seq={self.seq + 1} ts={now:.3f} {words}\n".encode())


class TaskQueue:
    """One queue. What waits raises Refused, and 503 when the store does not answer."""

    def __init__(
        self, name: str, under: str, store: Store, clock: Clock, limits: Limits, chance: Random,
        soon: Callable[[float], None], used: Callable[[], int],
    ) -> None:  # fmt: skip
        self.name, self.key = name, f"{under}/{name}"
        self.store, self.clock, self.limits, self.chance = store, clock, limits, chance
        self.journal = Journal(store, self.key, self._written, self._lost)
        self.events = Events(self.time)
        self.pressure = Pressure(256)
        self.state = State()
        self.revision = 0
        self.base = 0  # the record behind which replay begins
        self.stale = True  # the state is not that of the log
        self.gone = False
        self.readers: deque[Reader] = deque()
        self.used = used
        self.lease: Callable[[Reader, Task], None] = lambda reader, task: None
        self._tidied, self._tidying = 0, False
        self._soon = soon
        self._loading = trio.Lock()
        self._waits: list[tuple[float, Reader]] = []
        self._news: deque[tuple[int, str, dict[str, object]]] = deque()
        self._began = (0.0, 0.0)
        self._serving = False

    # The log

    async def fresh(self) -> State:
        """The state, as of now. Cancelled: no effect."""
        if self.stale:
            async with self._loading:
                if self.stale:
                    await self._load()
        if self.gone:
            raise Refused(404, "the queue was removed")
        self.advance()
        return self.state

    async def _load(self) -> None:
        """Read the log. Cancelled: it is still to be read."""
        try:
            await self.journal.flush()
        except StoreError:
            pass  # whoever decided that is told
        try:
            entry = await self.store.get(self.key)
            start = int(entry.value)
            last = await self.store.last(self.key)
            state = await self._replay(start, last)
            former = 0 if state.generation else await self._former(start)
        except NotFound:
            self.end()
            return
        except StoreError as e:
            raise refusal(e) from e
        except (msgspec.MsgspecError, LookupError, ValueError) as e:
            raise Refused(422, f"the log of {self.name} cannot be read: {type(e).__name__}: {e}") from e
        self.state, self.revision, self.base = state, entry.revision, start
        self._began = (max(self.clock.now(), state.t), self.clock.monotonic())
        self.journal.begin(last)
        self.stale = False
        if state.ended:
            self.end()
        elif not state.generation:
            await self.settle(self.do(Made(self.time(), self.newer(former))))

    async def _replay(self, start: int, last: int) -> State:
        state, at = State(), start
        while at < last:
            found = await self.store.first_after(self.key, at)
            at = found.seq
            state.apply(unpack(found.data))
        state.news.clear()
        return state

    async def _former(self, start: int) -> int:
        """The generation of the queue that had this name before."""
        if not start:
            return 0
        try:
            record = unpack((await self.store.read(self.key, start)).data)
        except NotFound:
            return 0
        return record.generation if isinstance(record, End) else 0

    @property
    def generation(self) -> int:
        """Of its fences: the store's, which rises when a copy of it is restored, before the queue's own."""
        return (self.store.generation - 1 << 32) + self.state.generation

    def newer(self, generation: int) -> int:
        """A generation that is greater, and greater than any that began in this log before."""
        return max(generation + 1, self.journal.next)

    def end(self) -> None:
        """The queue is no more."""
        self.gone, self.stale = True, False
        while self.readers:
            reader = self.readers.popleft()
            reader.error = Refused(404, "the queue was removed")
            reader.wake()

    def do(self, record: Record) -> Batch:
        """What RECORD says is so from here on, once the batch is settled."""
        seq = self.journal.next
        try:
            self.state.apply(record)
        except BaseException:
            self._lost()
            raise
        batch = self.journal.add(pack(record))
        self._changed(seq)
        return batch

    async def settle(self, batch: Batch) -> None:
        """Wait until a decision is durable. Cancelled: not before."""
        try:
            await self.journal.settle(batch)
        except StoreError as e:
            raise refusal(e) from e
        if not self._tidying and self.journal.last - max(self.base, self._tidied) > self._enough:
            with trio.CancelScope(shield=True):
                await self._tidy()

    async def barrier(self) -> None:
        """Wait until all that was decided is durable. Cancelled: not before."""
        try:
            await self.journal.flush()
        except StoreError as e:
            raise refusal(e) from e

    def _written(self, batch: Batch) -> None:
        self._announce()

    def _lost(self) -> None:
        """What was decided last is not in the log: the state is worth nothing."""
        self.stale = True
        self._news.clear()
        self.hurry()

    def _changed(self, seq: int) -> None:
        """The state is another one: tell who should know, and serve who waits."""
        if self.state.news:
            self._news += [(seq, kind, said) for kind, said in self.state.news]
            self.state.news.clear()
            self._announce()
        if not self._serving and self.state.whole:
            self._serving = True
            try:
                while self.readers and not self.state.drained and (task := self.state.first()) is not None:
                    reader = self.readers.popleft()
                    self.lease(reader, task)
                    reader.wake()
            finally:
                self._serving = False
        if (due := self.due()) is not None:
            self._soon(due)

    def _announce(self) -> None:
        while self._news and self._news[0][0] <= self.journal.last:
            _, kind, said = self._news.popleft()
            if kind == "pressure":
                self.pressure.tell(self.time(), said)
            else:
                self.events.tell(kind, **said)

    # Snapshots

    @property
    def _enough(self) -> int:
        state = self.state
        parts = len(state.tasks) + len(state.effects) + len(state.finished)
        return max(self.limits.every, self.limits.growth * parts)

    async def _tidy(self) -> None:
        """Write a snapshot and forget what lies before. A failure is an event, nobody's error."""
        self._tidying = True
        try:
            state = await self.fresh()
            first = self.journal.next
            for record in state.dump():
                batch = self.journal.add(pack(record))
            await self.journal.settle(batch)
            start = first - 1
            self.revision = await self.store.put(self.key, b"%d" % start, expect=self.revision)
            self.base = start
            await self.store.trim(self.key, through=start)
        except (StoreError, Refused) as e:
            self.events.tell("tidy_failed", why=str(e))
            self.stale = self.stale or isinstance(e, Conflict)
        finally:
            self._tidied = self.journal.last
            self._tidying = False

    # Time

    def time(self) -> float:
        """Seconds since the epoch. They never go back while the queue lives, whatever the wall clock does."""
        wall, monotonic = self._began
        return wall + (self.clock.monotonic() - monotonic)

    def advance(self) -> None:
        """Let happen what is due."""
        self.state.advance(self.time())
        self._changed(self.journal.next - 1)

    def due(self) -> float | None:
        """When something happens by itself next, in the clock's monotonic time."""
        due = self.state.due
        times = [] if due is None else [self.clock.monotonic() + (due - self.time())]
        times += [until for until, _ in self._waits]
        return min(times, default=None)

    def hurry(self) -> None:
        """Something was noted that nobody may wait for."""
        self._soon(self.clock.monotonic())

    async def tick(self) -> None:
        """Let happen what is due, for those who wait. Cancelled: as far as it came."""
        now = self.clock.monotonic()
        over = [reader for until, reader in self._waits if until <= now]
        self._waits = [wait for wait in self._waits if wait[0] > now]
        for reader in over:
            if reader in self.readers:
                self.readers.remove(reader)
                reader.wake()
        await self.fresh()
        await self.barrier()

    async def wait(self, reader: Reader) -> None:
        """Wait for a task, as long as the reader wants. Cancelled: it waits no more and was given nothing."""
        if len(self.readers) >= self.limits.readers:
            raise Refused(429, f"{self.limits.readers} readers wait here, the limit", retry_after=1)
        reader.task = trio.lowlevel.current_task()
        self.readers.append(reader)
        until = None if reader.wait is None else self.clock.monotonic() + reader.wait
        if until is not None:
            self._waits.append((until, reader))
            self._soon(until)

        def abort(_: object) -> trio.lowlevel.Abort:
            reader.task = None
            self.readers.remove(reader)
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            if until is not None:
                self._waits = [wait for wait in self._waits if wait[1] is not reader]

    # What is shown

    def measures(self) -> dict[str, float]:
        """What there is now, and what happened ever since the queue was made."""
        state = self.state
        oldest = next((task for task in state.tasks.values() if task.state not in (LEASED, DEAD)), None)
        return {
            "depth": state.depth,
            "inflight": state.number_of(LEASED),
            "delayed": state.number_of(DELAYED),
            "dead": state.number_of(DEAD),
            "bytes": state.bytes,
            "effects": len(state.effects),
            "readers": len(self.readers),
            "oldest_age": max(0.0, self.time() - oldest.sent) if oldest else 0.0,
            "log": self.journal.last - self.base,
            **{name: state.counts[name] for name in COUNTED},
        }

    def full(self, size: int) -> str:
        """Why a task of that size has no room; nothing when it has."""
        s, state = self.state.settings, self.state
        if len(state.tasks) >= s.count:
            return f"{s.count} tasks are here, the limit"
        if state.bytes + size > s.bytes:
            return f"{state.bytes} of {s.bytes} bytes are in use"
        if self.used() + size > self.limits.bytes:
            return f"all queues together hold {self.limits.bytes} bytes, the limit"
        return ""


def refusal(e: StoreError) -> Refused:
    """What the store said, as the tree says it."""
    if isinstance(e, Conflict):
        says = "another process wrote to this queue; what it wrote counts, try again"
        return Refused(503, says, retry_after=1)
    return Refused(e.code, str(e), retry_after=1 if e.code in (503, 507) else None)
