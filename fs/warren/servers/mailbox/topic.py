"""One topic at work: its state, its log, its time.

A decision is made on the state as it will be once everything noted before is written: state first, log
behind it, answer last. Since the log keeps that order, an answer never rests on something that can be lost.
If the store refuses a record, the state is read again from the log, and who was not answered is refused.

    state = await topic.fresh()        as of now; from here to `do` nothing may wait
    batch = topic.do(record)           decided
    await topic.settle(batch)          durable

Another process may own the same topic at another time, or by mistake at the same time: each append is fenced,
so one of two is refused (503), reads what the other wrote, and goes on from there.

What is decided stands in `sending`, `leasing` and `operating`; what keeps the log short in `tidy`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Final

import msgspec
import trio
from warren.servers.mailbox.leasing import serve
from warren.servers.mailbox.line import Line, Reader
from warren.servers.mailbox.queue import Kept, Queue
from warren.servers.mailbox.records import MAIN, Carry, Message, Record, Send, Snap, pack, unpack
from warren.servers.mailbox.state import State
from warren.servers.mailbox.tidy import EVERY, Pointer, tidy, wants_tidying
from warren.store import Batch, Conflict, Journal, NotFound, Store, StoreError
from warren.tree import Refused
from warren.tree.ports import Clock
from warren.tree.report import Events

COUNTED: Final = (
    "sent", "delivered", "acked", "nacked", "given_back", "timed_out", "redelivered", "dead", "redriven",
    "expired", "dropped", "purged", "deleted",
)  # fmt: skip
_COST: Final = 256  # of a body at hand, besides its bytes


@dataclass(frozen=True)
class Limits:
    """What a mailbox gives; each topic's own settings lie within."""

    topics: int = 256
    groups: int = 16  # of a topic
    readers: int = 1024  # of a topic, that wait
    keys: int = 100_000  # idempotency keys that a topic remembers
    cache: int = 2 << 20  # bytes of bodies that a topic keeps at hand


class Topic:
    """One topic. What waits raises Refused, and 503 when the store does not answer."""

    def __init__(
        self, name: str, under: str, store: Store, clock: Clock, limits: Limits, chance: Random,
        soon: Callable[[float], None],
    ) -> None:  # fmt: skip
        self.name, self.key = name, f"{under}/{name}"
        self.store, self.clock, self.limits, self.chance = store, clock, limits, chance
        self.journal = Journal(store, self.key, self._written, self._lost)
        self.events = Events(self.time)
        self.state = State()
        self.revision = 0
        self.base = 0  # the record behind which replay begins
        self.kept = 0  # the record behind which the log is kept
        self.settled = 1  # number of the message after the newest durable one
        self.stale = True  # the state is not that of the log
        self.gone = False
        self.every, self.tidied, self.tidying = EVERY, 0, False
        self.pinned: dict[int, int] = {}  # records whose bodies are being read
        self.lines: dict[str, Line] = {}
        self.dups = 0
        self._soon = soon  # tell whoever keeps time that something is due at this monotonic time
        self._loading = trio.Lock()
        self._bodies: OrderedDict[int, Message] = OrderedDict()
        self._bytes = 0
        self._waits: list[tuple[float, int, Reader]] = []
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
            raise Refused(404, "the topic was removed")
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
            start = msgspec.msgpack.decode(entry.value, type=Pointer).start
            last = await self.store.last(self.key)
            state = await self._replay(start, last)
        except NotFound:
            self.end()
            return
        except StoreError as e:
            raise refusal(e) from e
        except (msgspec.MsgspecError, LookupError) as e:
            raise Refused(422, f"the log of {self.name} cannot be read: {type(e).__name__}: {e}") from e
        self.state, self.revision, self.base = state, entry.revision, start
        self.kept = min(start, (state.oldest() or start + 1) - 1)
        self.settled = state.next
        self._began = (max(self.clock.now(), state.t), self.clock.monotonic())
        self.journal.begin(last)
        self.stale = False
        if state.ended:
            self.end()

    async def _replay(self, start: int, last: int) -> State:
        """The state at LAST, from a snapshot that begins behind START, or from nothing."""
        state, at = State(), start
        parts: list[bytes] = []
        while at < last:
            found = await self.store.first_after(self.key, at)
            at, record = found.seq, unpack(found.data)
            if isinstance(record, Snap) and at == start + 1 + record.part and record.part == len(parts):
                parts.append(record.data)
                if len(parts) == record.parts:
                    state = State.load(b"".join(parts))
            else:
                state.apply(record, at)
        state.news.clear()
        return state

    def end(self) -> None:
        """The topic is no more."""
        self.gone, self.stale = True, False
        for line in self.lines.values():
            line.end(Refused(404, "the topic was removed"))

    def do(self, record: Record) -> Batch:
        """What RECORD says is so from here on, once the batch is settled."""
        seq = self.journal.next
        try:
            self.state.apply(record, seq)
        except BaseException:
            self._lost()
            raise
        batch = self.journal.add(pack(record), self.state.next)
        self._changed(seq)
        return batch

    async def settle(self, batch: Batch) -> None:
        """Wait until a decision is durable. Cancelled: not before."""
        try:
            await self.journal.settle(batch)
        except StoreError as e:
            raise refusal(e) from e
        if wants_tidying(self):
            with trio.CancelScope(shield=True):
                await tidy(self)

    async def barrier(self) -> None:
        """Wait until all that was decided is durable. Cancelled: not before."""
        try:
            await self.journal.flush()
        except StoreError as e:
            raise refusal(e) from e

    def _written(self, batch: Batch) -> None:
        self.settled = batch.number
        self._announce()

    def _lost(self) -> None:
        """What was decided last is not in the log: the state is worth nothing."""
        self.stale = True
        self._news.clear()
        self._bodies.clear()
        self._bytes = 0
        self.hurry()

    def _changed(self, seq: int) -> None:
        """The state is another one: tell who should know, and serve who waits."""
        if self.state.news:
            self._news += [(seq, kind, said) for kind, said in self.state.news]
            self.state.news.clear()
            self._announce()
        if not self._serving:
            self._serving = True
            try:
                for name in [name for name, line in self.lines.items() if line]:
                    serve(self, name)
            finally:
                self._serving = False
        if (due := self.due()) is not None:
            self._soon(due)

    def _announce(self) -> None:
        while self._news and self._news[0][0] <= self.journal.last:
            _, kind, said = self._news.popleft()
            self.events.tell(kind, **said)

    # Bodies

    def remember(self, number: int, message: Message) -> None:
        """Have a body at hand while there is room."""
        self._bodies[number] = message
        self._bytes += len(message.body) + _COST
        while self._bytes > self.limits.cache:
            _, old = self._bodies.popitem(last=False)
            self._bytes -= len(old.body) + _COST

    async def message(self, number: int, at: int, index: int) -> Message:
        """A message as it was sent, from a record that is durable. Cancelled: no effect."""
        if (known := self._bodies.get(number)) is not None:
            return known
        try:
            record = unpack((await self.store.read(self.key, at)).data)
        except StoreError as e:
            raise refusal(e) from e
        if not isinstance(record, Send | Carry):
            raise Refused(422, f"record {at} of {self.name} holds no message")
        return record.messages[index]

    async def body(self, kept: Kept) -> Message:
        """A message that is known now. Cancelled: no effect."""
        at, index = kept.at, kept.index
        self.pin(at)
        try:
            await self.barrier()
            return await self.message(kept.number, at, index)
        finally:
            self.unpin(at)

    def pin(self, at: int) -> None:
        """Do not forget this record while it is being read."""
        self.pinned[at] = self.pinned.get(at, 0) + 1

    def unpin(self, at: int) -> None:
        """It was read."""
        self.pinned[at] -= 1
        if not self.pinned[at]:
            del self.pinned[at]

    # Time

    def time(self) -> float:
        """Seconds since the epoch. They never go back while the topic lives, whatever the wall clock does."""
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
        times += [self._waits[0][0]] if self._waits else []
        return min(times, default=None)

    def hurry(self) -> None:
        """Something was noted that nobody may wait for."""
        self._soon(self.clock.monotonic())

    def wake_at(self, until: float, reader: Reader) -> None:
        """This reader waits no longer than that."""
        if len(self._waits) > 2 * self.limits.readers:
            self._waits = sorted(wait for wait in self._waits if wait[2].task is not None)
        heappush(self._waits, (until, id(reader), reader))
        self._soon(until)

    async def tick(self) -> None:
        """Let happen what is due, for those who wait. Cancelled: as far as it came."""
        now = self.clock.monotonic()
        while self._waits and self._waits[0][0] <= now:
            _, _, reader = heappop(self._waits)
            if (line := self.lines.get(reader.group)) is not None:
                line.leave(reader)
            reader.wake()
        await self.fresh()
        await self.barrier()

    # What is shown

    def queue(self, group: str) -> Queue:
        """The queue of a group, or the topic's own."""
        queue = self.state.queues.get(group)
        if queue is None:
            raise Refused(404, f"the group {group} was removed")
        return queue

    def readers(self) -> int:
        """How many wait."""
        return sum(map(len, self.lines.values()))

    def measures(self) -> dict[str, float]:
        """What there is now, and what happened ever since the topic was made."""
        state = self.state
        queues = state.queues.values()
        oldest = next(iter(state.messages.values()), None)
        return {
            "depth": state.queues[MAIN].depth,
            "inflight": sum(len(queue.leased) for queue in queues),
            "delayed": sum(queue.delayed for queue in queues),
            "dlq": state.dead,
            "groups": len(queues) - 1,
            "messages": len(state.messages),
            "bytes": state.bytes,
            "readers": self.readers(),
            "oldest_age": max(0.0, self.time() - oldest.sent) if oldest else 0.0,
            "log": self.journal.last - self.kept,
            **{name: state.counts[name] for name in COUNTED},
            "dup": self.dups,
        }

    def measures_of(self, group: str) -> dict[str, float]:
        """What there is now in one queue."""
        queue = self.queue(group)
        return {
            "depth": queue.depth, "inflight": len(queue.leased), "delayed": queue.delayed,
            "dlq": len(queue.dead),
        }  # fmt: skip


def refusal(e: StoreError) -> Refused:
    """What the store said, as the tree says it."""
    if isinstance(e, Conflict):
        says = "another process wrote to this topic; what it wrote counts, try again"
        return Refused(503, says, retry_after=1)
    return Refused(e.code, str(e), retry_after=1 if e.code in (503, 507) else None)
