"""One topic at work: a ledger, with the bodies of its messages and those who wait for one.

What is decided stands in `sending`, `leasing` and `operating`; what keeps the log short in `tidy`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import msgspec
from warren.servers.mailbox.leasing import serve
from warren.servers.mailbox.line import Line, Reader
from warren.servers.mailbox.queue import Kept, Queue
from warren.servers.mailbox.records import MAIN, Carry, Message, Record, Send, Snap, pack, unpack
from warren.servers.mailbox.sending import Ids
from warren.servers.mailbox.state import State
from warren.servers.mailbox.tidy import EVERY, Pointer, shorten, wants_tidying
from warren.store import Batch, Ledger, Store, StoreError
from warren.tree import Refused
from warren.tree.ports import Clock

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


class Topic(Ledger[State, Record, Reader]):
    """One topic. What waits raises Refused, and 503 when the store does not answer."""

    noun = "topic"

    def __init__(
        self, name: str, under: str, store: Store, clock: Clock, limits: Limits, chance: Random,
        soon: Callable[[float], None],
    ) -> None:  # fmt: skip
        super().__init__(name, under, store, clock, State(), soon)
        self.limits, self.chance, self.ids = limits, chance, Ids(chance)
        self.kept = 0  # the record behind which the log is kept
        self.settled = 1  # number of the message after the newest durable one
        self.every = EVERY
        self.pinned: dict[int, int] = {}  # records whose bodies are being read
        self.lines: dict[str, Line] = {}
        self.dups = 0
        self._bodies: OrderedDict[int, Message] = OrderedDict()
        self._bytes = 0

    # As a ledger

    def _start(self, value: bytes) -> int:
        return msgspec.msgpack.decode(value, type=Pointer).start

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

    async def _loaded(self, start: int) -> None:
        self.kept = min(start, (self.state.oldest() or start + 1) - 1)
        self.settled = self.state.next

    def _note(self, record: Record, seq: int) -> Batch:
        self.state.apply(record, seq)
        return self.journal.add(pack(record), self.state.next)

    def _written(self, batch: Batch) -> None:
        self.settled = batch.number
        super()._written(batch)

    def _lost(self) -> None:
        super()._lost()
        self._bodies.clear()
        self._bytes = 0

    def _serve(self) -> None:
        if self.lines:
            for name in [name for name, line in self.lines.items() if line]:
                serve(self, name)

    def _leave(self, reader: Reader) -> None:
        if (line := self.lines.get(reader.group)) is not None:
            line.leave(reader)

    def _shut(self, error: Refused) -> None:
        for line in self.lines.values():
            line.end(error)

    def wants_tidying(self) -> bool:
        return wants_tidying(self)

    async def _shorten(self) -> None:
        await shorten(self)

    # Bodies

    def remember(self, first: int, messages: Sequence[Message]) -> None:
        """Have bodies at hand while there is room; FIRST is the number of the first."""
        bodies, size = self._bodies, self._bytes
        for number, message in enumerate(messages, first):
            bodies[number] = message
            size += len(message.body) + _COST
        while size > self.limits.cache:
            _, old = bodies.popitem(last=False)
            size -= len(old.body) + _COST
        self._bytes = size

    async def messages(self, places: Iterable[tuple[int, int, int]]) -> list[Message]:
        """Messages as they were sent, by number, record and index in it; the records are durable.

        Cancelled: no effect.
        """
        found: list[Message] = []
        records: dict[int, list[Message]] = {}  # those that were sent together are mostly wanted together
        for number, at, index in places:
            if (known := self._bodies.get(number)) is None:
                if at not in records:
                    records = {at: await self._sent(at)}
                known = records[at][index]
            found.append(known)
        return found

    async def _sent(self, at: int) -> list[Message]:
        try:
            record = unpack((await self.store.read(self.key, at)).data)
        except StoreError as e:
            raise self.refusal(e) from e
        if not isinstance(record, Send | Carry):
            raise Refused(422, f"record {at} of {self.name} holds no message")
        return record.messages

    async def body(self, kept: Kept) -> Message:
        """A message that is known now. Cancelled: no effect."""
        at, index = kept.at, kept.index
        self.pin(at)
        try:
            await self.barrier()
            [message] = await self.messages([(kept.number, at, index)])
            return message
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

