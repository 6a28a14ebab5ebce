"""One queue at work: a ledger, and who waits for a task of it.

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

import trio
from warren.servers.task.places import DEAD, DELAYED, LEASED, Task
from warren.servers.task.records import End, Made, Record, pack, unpack
from warren.servers.task.state import COUNTED, State
from warren.store import Batch, Ledger, NotFound, Store
from warren.store import Reader as Waiting
from warren.tree import Refused, Ring
from warren.tree.ports import Clock

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


class Reader(Waiting):
    """One open of `lease` that is being read."""

    __slots__ = ("taken", "term", "wait")

    def __init__(self, subject: str, term: float | None = None, wait: float | None = None) -> None:
        super().__init__(subject)
        self.term, self.wait = term, wait
        self.taken: Taken | None = None


class Pressure(Ring):
    """Every crossing of a water mark, for whoever reads."""

    def tell(self, now: float, said: dict[str, object]) -> None:
        words = " ".join(f"{name}={value}" for name, value in said.items())
        self.append(f"seq={self.seq + 1} ts={now:.3f} {words}\n".encode())


class TaskQueue(Ledger[State, Record, Reader]):
    """One queue. What waits raises Refused, and 503 when the store does not answer."""

    noun = "queue"

    def __init__(
        self, name: str, under: str, store: Store, clock: Clock, limits: Limits, chance: Random,
        soon: Callable[[float], None], used: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(name, under, store, clock, State(), soon)
        self.limits, self.chance = limits, chance
        self.pressure = Pressure(256)
        self.readers: deque[Reader] = deque()
        self.used = used
        self.lease: Callable[[Reader, Task], None] = lambda reader, task: None
        self._former = 0  # the generation of the queue that had this name before

    # As a ledger

    async def _replay(self, start: int, last: int) -> State:
        state, at = State(), start
        while at < last:
            found = await self.store.first_after(self.key, at)
            at = found.seq
            state.apply(unpack(found.data))
        state.news.clear()
        if not state.generation:
            self._former = await self._before(start)
        return state

    async def _before(self, start: int) -> int:
        """The generation of the queue that had this name before."""
        if not start:
            return 0
        try:
            record = unpack((await self.store.read(self.key, start)).data)
        except NotFound:
            return 0
        return record.generation if isinstance(record, End) else 0

    async def _loaded(self, start: int) -> None:
        if not self.state.generation:
            await self.settle(self.do(Made(self.time(), self.newer(self._former))))

    def _note(self, record: Record, seq: int) -> Batch:
        self.state.apply(record)
        return self.journal.add(pack(record))

    def _serve(self) -> None:
        state = self.state
        while self.readers and state.whole and not state.drained and (task := state.first()) is not None:
            reader = self.readers.popleft()
            self.lease(reader, task)
            reader.wake()

    def _say(self, kind: str, said: dict[str, object]) -> None:
        if kind == "pressure":
            self.pressure.tell(self.time(), said)
        else:
            super()._say(kind, said)

    def _leave(self, reader: Reader) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def _shut(self, error: Refused) -> None:
        while self.readers:
            reader = self.readers.popleft()
            reader.error = error
            reader.wake()

    @property
    def generation(self) -> int:
        """Of its fences: the store's, which rises when a copy of it is restored, before the queue's own."""
        return (self.store.generation - 1 << 32) + self.state.generation

    def newer(self, generation: int) -> int:
        """A generation that is greater, and greater than any that began in this log before."""
        return max(generation + 1, self.journal.next)

    # Snapshots

    def wants_tidying(self) -> bool:
        since = self.journal.last - max(self.base, self.tidied)
        return since > self.limits.every and not self.tidying and since > self._enough

    @property
    def _enough(self) -> int:
        state = self.state
        parts = len(state.tasks) + len(state.effects) + len(state.finished)
        return max(self.limits.every, self.limits.growth * parts)

    async def _shorten(self) -> None:
        """Write a snapshot and forget what lies before."""
        state = await self.fresh()
        first = self.journal.next
        for record in state.dump():
            batch = self.journal.add(pack(record))
        await self.journal.settle(batch)
        start = first - 1
        self.revision = await self.store.put(self.key, b"%d" % start, expect=self.revision)
        self.base = start
        await self.store.trim(self.key, through=start)

    # Waiting

    async def wait(self, reader: Reader) -> None:
        """Wait for a task, as long as the reader wants. Cancelled: it waits no more and was given nothing."""
        if len(self.readers) >= self.limits.readers:
            raise Refused(429, f"{self.limits.readers} readers wait here, the limit", retry_after=1)
        reader.task = trio.lowlevel.current_task()
        self.readers.append(reader)
        if reader.wait is not None:
            self.wake_at(self.clock.monotonic() + reader.wait, reader)

        def abort(_: object) -> trio.lowlevel.Abort:
            reader.task = None
            self._leave(reader)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

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
