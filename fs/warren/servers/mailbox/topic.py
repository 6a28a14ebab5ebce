"""One topic at work: it decides, writes down what it decided, and answers when that is durable.

A decision is made on the state as it will be once everything noted before is written: state first, log
behind it, answer last. Since the log keeps that order, an answer never rests on something that can be lost.
If the store refuses a record, the state is read again from the log, and all who were not answered are refused.

Another process may own the same topic at another time, or by mistake at the same time: each append is fenced,
so one of two is refused (503), reads what the other wrote, and goes on from there.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Final

import msgspec
import trio
from warren.servers.mailbox.journal import Batch, Journal
from warren.servers.mailbox.line import Line, Reader, Taken
from warren.servers.mailbox.queue import Item, Kept, Queue
from warren.servers.mailbox.records import (
    MAIN,
    Back,
    Bury,
    Change,
    Delete,
    Done,
    End,
    Extend,
    Group,
    Lease,
    Message,
    Record,
    Redrive,
    Seen,
    Send,
    Settings,
    Snap,
    Ungroup,
    pack,
    unpack,
)
from warren.servers.mailbox.state import State
from warren.servers.mailbox.tidy import EVERY, Pointer, tidy, wants_tidying
from warren.servers.mailbox.words import BATCH_BYTES, Answer, Draft
from warren.store import Conflict, NotFound, Store, StoreError
from warren.tree import Refused
from warren.tree.ports import Clock
from warren.tree.report import Events

CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
BACKOFF_MOST: Final = 60.0
COUNTED: Final = (
    "sent", "delivered", "acked", "nacked", "given_back", "timed_out", "redelivered", "dead", "redriven",
    "expired", "dropped", "purged", "deleted",
)  # fmt: skip
ROOM: Final = 1 << 14  # of a record, for what stands beside the body


@dataclass(frozen=True)
class Limits:
    """What a mailbox gives; each topic's own settings lie within."""

    topics: int = 256
    groups: int = 16  # of a topic
    readers: int = 1024  # of a topic, that wait
    keys: int = 100_000  # idempotency keys that a topic remembers
    cache: int = 2 << 20  # bytes of bodies that a topic keeps at hand


class Topic:
    """One topic. Every async method raises Refused, and 503 when the store does."""

    def __init__(
        self, name: str, under: str, store: Store, clock: Clock, limits: Limits, chance: Random,
        soon: Callable[[float], None],
    ) -> None:  # fmt: skip
        self.name, self.key = name, f"{under}/{name}"
        self.store, self.clock, self.limits, self.chance = store, clock, limits, chance
        self._soon = soon  # tell whoever keeps time that something is due at this monotonic time
        self.journal = Journal(store, self.key, self._written, self._lost)
        self.events = Events(self.time)
        self.state = State()
        self.revision = 0
        self.base = 0  # the record behind which replay begins
        self.kept = 0  # the record behind which the log is kept
        self.gone = False
        self.tidying = False
        self.every = EVERY
        self.pinned: dict[int, int] = {}  # records whose bodies are being read
        self.settled = 1  # number of the message after the newest durable one
        self.lines: dict[str, Line] = {}
        self.stale = True
        self._loading = trio.Lock()
        self._cache: OrderedDict[int, Message] = OrderedDict()
        self._cached = 0
        self._waits: list[tuple[float, int, Reader]] = []
        self._news: list[tuple[int, str, dict[str, object]]] = []
        self._began = (0.0, 0.0)
        self._serving = False
        self.dups = 0

    def time(self) -> float:
        """Seconds since the epoch, which never go back while the topic lives, whatever the wall clock does."""
        wall, monotonic = self._began
        return wall + (self.clock.monotonic() - monotonic)

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
        try:
            entry = await self.store.get(self.key)
            start, last = msgspec.msgpack.decode(entry.value, type=Pointer).start, await self.store.last(self.key)
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
        except NotFound:
            self._end()
            return
        except StoreError as e:
            raise refusal(e) from e
        except (msgspec.MsgspecError, KeyError) as e:
            raise Refused(422, f"the log of {self.name} cannot be read: {type(e).__name__}: {e}") from e
        state.news.clear()
        self.state, self.revision, self.base = state, entry.revision, start
        self.kept = min(start, (state.oldest() or start + 1) - 1)
        self.settled = state.next
        self._began = (max(self.clock.now(), state.t), self.clock.monotonic())
        self.journal.begin(last)
        self.stale = False
        if state.ended:
            self._end()

    def _end(self) -> None:
        self.gone, self.stale = True, False
        for line in self.lines.values():
            line.end(Refused(404, "the topic was removed"))

    def _lost(self) -> None:
        """What was decided last is not in the log: the state is worth nothing."""
        self.stale = True
        self._news.clear()
        self._cache.clear()
        self._cached = 0
        self._soon(self.clock.monotonic())

    def _written(self, batch: Batch) -> None:
        self.settled = batch.number
        self._announce()

    def _announce(self) -> None:
        while self._news and self._news[0][0] <= self.journal.last:
            _, kind, said = self._news.pop(0)
            self.events.tell(kind, **said)

    def do(self, record: Record) -> Batch:
        """What RECORD says is so from here on, once the batch is settled."""
        seq = self.journal.next
        self.state.apply(record, seq)
        batch = self.journal.add(pack(record), self.state.next)
        self._changed(seq)
        return batch

    def advance(self) -> None:
        """Let happen what is due."""
        self.state.advance(self.time())
        self._changed(self.journal.next - 1)

    def _changed(self, seq: int) -> None:
        if self.state.news:
            self._news += [(seq, kind, said) for kind, said in self.state.news]
            self.state.news.clear()
            self._announce()
        if not self._serving:
            self._serving = True
            try:
                for name in [name for name, line in self.lines.items() if line]:
                    self._serve(name)
            finally:
                self._serving = False
        if (due := self.due()) is not None:
            self._soon(due)

    async def settle(self, batch: Batch) -> None:
        """Wait until a decision is durable. Cancelled: not before."""
        try:
            await self.journal.settle(batch)
            if wants_tidying(self):
                with trio.CancelScope(shield=True):
                    await tidy(self)
        except StoreError as e:
            raise refusal(e) from e

    # Sending

    @property
    def most(self) -> int:
        """The longest body."""
        return self.store.limits.record - ROOM

    async def send(self, drafts: Sequence[Draft], by: str) -> list[tuple[str, int, bool]]:
        """Send all or none; answers id, number and whether it was sent before.

        Cancelled: none, or all.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        state = await self.fresh()
        if not state.settings.queue and len(state.queues) == 1:
            raise Refused(409, "nobody would get it: the queue is off, and there is no group")
        for draft in drafts:
            if len(draft.body) > self.most:
                raise Refused(413, f"a message is at most {self.most} bytes")
        known, fresh = self._sort(drafts)
        if fresh:
            self._admit(fresh)
            batch = self.do(self._record(drafts, fresh, known, by))
            await self.settle(batch)
        else:
            await self._barrier()
        return [known[n] for n in range(len(drafts))]

    def _sort(self, drafts: Sequence[Draft]) -> tuple[dict[int, tuple[str, int, bool]], list[tuple[int, Draft]]]:
        """What was sent before, by its idempotency key, and what is new."""
        known: dict[int, tuple[str, int, bool]] = {}
        fresh: list[tuple[int, Draft]] = []
        named = [draft.idem for draft in drafts if draft.idem]
        if len(set(named)) < len(named):
            raise Refused(400, "an idempotency key is given twice in one batch")
        for n, draft in enumerate(drafts):
            seen = self.state.seen.get(_key(draft.idem)) if draft.idem else None
            if seen is None:
                fresh.append((n, draft))
            elif not hmac.compare_digest(seen.payload, draft.payload()):
                raise Refused(409, f"idem={draft.idem} was used for another message, {seen.id}; choose a new key")
            else:
                known[n] = (seen.id, seen.number, True)
                self.dups += 1
        return known, fresh

    def _admit(self, fresh: Sequence[tuple[int, Draft]]) -> None:
        state, s = self.state, self.state.settings
        size = sum(len(draft.body) for _, draft in fresh)
        if s.full == "refuse" and state.full(len(fresh), size):
            says = f"{len(state.messages)} of {s.count} messages, {state.bytes} of {s.bytes} bytes"
            raise Refused(429, f"the topic is full: {says}; let them be received, or purge", retry_after=1)
        if len(fresh) > s.count or size > s.bytes:
            raise Refused(413, f"the topic takes {s.count} messages and {s.bytes} bytes in all")
        keys = sum(bool(draft.idem) for _, draft in fresh)
        if keys and len(state.seen) + keys > self.limits.keys:
            raise Refused(429, f"{len(state.seen)} idempotency keys are remembered, the limit", retry_after=1)

    def _record(
        self, drafts: Sequence[Draft], fresh: Sequence[tuple[int, Draft]],
        known: dict[int, tuple[str, int, bool]], by: str,
    ) -> Send:  # fmt: skip
        state, s, t = self.state, self.state.settings, self.state.t
        messages, seen = [], []
        for place, (n, draft) in enumerate(fresh):
            number = state.next + place
            ends = [t + life for life in (draft.ttl, s.age) if life]
            message = Message(
                self.ulid(t), draft.body, draft.prio, t + draft.delay if draft.delay else 0.0,
                min(ends, default=0.0), draft.key, draft.corr, draft.type, by, draft.whole,
            )  # fmt: skip
            messages.append(message)
            self._keep(number, message)
            known[n] = (message.id, number, False)
            if draft.idem and s.dedupe:
                seen.append(Seen(_key(draft.idem), message.id, number, draft.payload(), t + s.dedupe))
        return Send(t, state.next, messages, seen)

    def ulid(self, t: float) -> str:
        """A new id: 48 bits of milliseconds, 80 of chance."""
        value = int(t * 1000) << 80 | self.chance.getrandbits(80)
        return "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))

    async def _barrier(self) -> None:
        """What was found may be decided and not durable yet."""
        try:
            await self.journal.flush()
        except StoreError as e:
            raise refusal(e) from e

    # Bodies

    def _keep(self, number: int, message: Message) -> None:
        self._cache[number] = message
        self._cached += len(message.body) + 256
        while self._cached > self.limits.cache:
            _, old = self._cache.popitem(last=False)
            self._cached -= len(old.body) + 256

    async def message(self, number: int, at: int, index: int) -> Message:
        """A message as it was sent, from the record that is known to be in the log."""
        if (kept := self._cache.get(number)) is not None:
            return kept
        try:
            record = unpack((await self.store.read(self.key, at)).data)
        except StoreError as e:
            raise refusal(e) from e
        assert not isinstance(record, Lease) and hasattr(record, "messages")
        found: Message = record.messages[index]
        return found

    async def body(self, kept: Kept) -> Message:
        """A message that is known now."""
        at, index = kept.at, kept.index
        self.pin(at)
        try:
            await self._barrier()
            return await self.message(kept.number, at, index)
        finally:
            self.unpin(at)

    def pin(self, at: int) -> None:
        self.pinned[at] = self.pinned.get(at, 0) + 1

    def unpin(self, at: int) -> None:
        self.pinned[at] -= 1
        if not self.pinned[at]:
            del self.pinned[at]

    # Receiving

    def queue(self, group: str) -> Queue:
        queue = self.state.queues.get(group)
        if queue is None:
            raise Refused(404, f"the group {group} was removed")
        if not group and not self.state.settings.queue:
            raise Refused(409, "the queue of this topic is off; read from one of its groups")
        return queue

    async def take(self, reader: Reader) -> Taken | None:
        """Messages for a reader, leased and durable; None when it waited as long as it wanted.

        Cancelled: nothing was taken.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.fresh()
        queue, line = self.queue(reader.group), self.lines.setdefault(reader.group, Line())
        if line or not self._lease(queue, reader):
            if self.readers() >= self.limits.readers:
                raise Refused(429, f"{self.limits.readers} readers wait here, the limit", retry_after=1)
            if (wait := reader.options.wait) is not None:
                self._wait_until(self.clock.monotonic() + wait, reader)
            await line.wait(reader)
        if reader.error is not None:
            raise reader.error
        if (taken := reader.taken) is None:
            return None
        try:
            await self.settle(taken.batch)
        except Refused:
            self._unpin(taken)
            raise
        return taken

    def _wait_until(self, until: float, reader: Reader) -> None:
        if len(self._waits) > 2 * self.limits.readers:
            self._waits = sorted(wait for wait in self._waits if wait[2].task is not None)
        heappush(self._waits, (until, id(reader), reader))
        self._soon(until)

    async def bodies(self, taken: Taken) -> list[Message]:
        """What was taken. Cancelled: not while it is read."""
        try:
            with trio.CancelScope(shield=True):
                return [await self.message(k.number, at, index) for k, _, at, index in taken.messages]
        finally:
            self._unpin(taken)

    def _unpin(self, taken: Taken) -> None:
        for _, _, at, _ in taken.messages:
            self.unpin(at)

    def _serve(self, group: str) -> None:
        """Give what there is to those whose turn it is."""
        line, queue = self.lines[group], self.state.queues.get(group)
        if queue is None:
            line.end(Refused(404, f"the group {group} was removed"))
        while line and queue is not None and queue.ready and len(queue.leased) < self.state.settings.inflight:
            reader = line.next()
            self._lease(queue, reader)
            reader.wake()

    def _lease(self, queue: Queue, reader: Reader) -> bool:
        s, t, o = self.state.settings, self.state.t, reader.options
        picked = queue.pick(min(o.max, s.inflight - len(queue.leased)), BATCH_BYTES)
        if not picked:
            return False
        level = o.ack or s.ack
        lease = "" if level == "none" else f"{self.chance.getrandbits(96):024x}"
        until = t + (s.lease if o.vis is None else o.vis) if lease else 0.0
        given = [(item.kept, item.attempts + 1, item.kept.at, item.kept.index) for item in picked]
        for _, _, at, _ in given:
            self.pin(at)
        numbers = [kept.number for kept, _, _, _ in given]
        # Before the record is applied: others who wait may be served in the course of that.
        reader.taken = Taken(given, lease, until, self.do(Lease(t, queue.name, numbers, lease, reader.subject, until)))
        return True

    def release(self, group: str, taken: Taken, counted: bool = False) -> Batch | None:
        """Give back what nobody could read; what is not leased by that lease any more stays as it is."""
        numbers = self._still(group, taken)
        if not numbers:
            return None
        return self.do(Back(self.state.t, group, numbers, self.state.t, counted))

    def finish(self, group: str, taken: Taken) -> Batch | None:
        """Acknowledge what was read to its end (`ack=auto`)."""
        numbers = self._still(group, taken)
        return self.do(Done(self.state.t, group, numbers)) if numbers else None

    def _still(self, group: str, taken: Taken) -> list[int]:
        if self.stale or self.gone or not taken.lease:
            return []
        self.advance()
        leased = self.state.queues[group].leased if group in self.state.queues else {}
        return [
            kept.number for kept, _, _, _ in taken.messages
            if kept.number in leased and leased[kept.number].lease == taken.lease
        ]  # fmt: skip

    async def answer(self, group: str, subject: str, answers: Sequence[Answer]) -> None:
        """Acknowledge, give back or extend, all or none. Cancelled: none, or all."""
        await trio.lowlevel.checkpoint_if_cancelled()
        state = await self.fresh()
        queue = self.queue(group)
        found = [(answer, self._leased(queue, subject, answer)) for answer in answers]
        t, batch = state.t, None
        if done := [item.kept.number for answer, item in found if answer.verb == "ack"]:
            batch = self.do(Done(t, group, done))
        for answer, item in found:
            number, delay = [item.kept.number], answer.delay
            if answer.verb == "nack":
                after = t + (self._backoff(item) if delay is None else delay)
                batch = self.do(Back(t, group, number, after, True))
            elif answer.verb == "extend":
                batch = self.do(Extend(t, group, number, t + (delay or 0.0)))
        if batch is not None:
            await self.settle(batch)

    def _leased(self, queue: Queue, subject: str, answer: Answer) -> Item:
        item = queue.leased.get(self.state.ids.get(answer.id, 0))
        mine = item is not None and item.by == subject
        if item is None or not mine or (answer.lease and not hmac.compare_digest(item.lease, answer.lease)):
            why = "it ran out, it was answered before, or it is another's"
            raise Refused(409, f"you have no such lease on {answer.id}: {why}")
        return item

    def _backoff(self, item: Item) -> float:
        """Full jitter: as likely at once as at the end of a time that doubles with every attempt."""
        most = self.state.settings.backoff * 2.0 ** min(item.attempts - 1, 30)
        return self.chance.uniform(0.0, min(most, BACKOFF_MOST))

    # What operators do

    async def change(self, record: Callable[[State], Record]) -> None:
        """Decide on a record by the state as it is, and make it so. Cancelled: not done, or done."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.settle(self.do(record(await self.fresh())))

    async def set(self, settings: Callable[[Settings], Settings]) -> None:
        await self.change(lambda state: Change(state.t, settings(state.settings)))

    async def delete(self, ids: Sequence[str]) -> None:
        """Take messages away from everybody, whoever has them leased. Cancelled: as `change`."""

        def decided(state: State) -> Record:
            for id in ids:
                if id not in state.ids:
                    raise Refused(404, f"{id} is not here (any more)")
            return Delete(state.t, [state.ids[id] for id in ids])

        await self.change(decided)

    async def purge(self) -> None:
        """Delete all that waits. Cancelled: as `change`."""
        await self.change(lambda state: Delete(state.t, None))

    async def letters(self, name: str, redrive: bool) -> None:
        """Put dead letters back, or delete them: one, or `all`. Cancelled: as `change`."""

        def decided(state: State) -> Record:
            some = None if name == "all" else [self.letter(name)]
            return Redrive(state.t, some) if redrive else Bury(state.t, some)

        await self.change(decided)

    def letter(self, name: str) -> tuple[str, int]:
        """The queue and number of a dead letter, by the name it is listed under."""
        id, _, group = name.partition(".")
        number, queue = self.state.ids.get(id, 0), self.state.queues.get(group)
        if queue is None or number not in queue.dead:
            raise Refused(404, f"there is no dead letter {name[:100]!r}")
        return group, number

    async def group(self, name: str, waiting: bool) -> None:
        """Make a consumer group. Cancelled: as `change`."""

        def decided(state: State) -> Record:
            if name in state.queues:
                raise Refused(409, f"there is a group {name}")
            if len(state.queues) > self.limits.groups:
                raise Refused(507, f"{self.limits.groups} groups exist, the limit of a topic; remove one")
            return Group(state.t, name, waiting)

        await self.change(decided)

    async def ungroup(self, name: str) -> None:
        """Remove a consumer group that has nothing left to do. Cancelled: as `change`."""

        def decided(state: State) -> Record:
            if name == MAIN or name not in state.queues:
                raise Refused(404, "file does not exist")
            return Ungroup(state.t, name)

        await self.change(decided)

    async def remove(self) -> None:
        """End the topic, if it is empty. Cancelled: not begun, or done as soon as somebody looks for it."""
        state = await self.fresh()
        if state.messages:
            says = f"{len(state.messages)} messages are here; receive or purge them, and see dlq"
            raise Refused(409, says, errno=39)
        with trio.CancelScope(shield=True):
            await self.settle(self.do(End(state.t)))
            self._end()
            await forget(self.store, self.key, self.revision)

    def readers(self) -> int:
        """How many wait."""
        return sum(map(len, self.lines.values()))

    # What is shown

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
        """Of one queue, what there is now."""
        queue = self.queue(group)
        return {"depth": queue.depth, "inflight": len(queue.leased), "delayed": queue.delayed,
                "dlq": len(queue.dead)}  # fmt: skip

    def hurry(self) -> None:
        """Something was noted that nobody may wait for."""
        self._soon(self.clock.monotonic())

    # Time

    def due(self) -> float | None:
        """When something happens by itself next, in the clock's monotonic time."""
        due = self.state.due
        times = [] if due is None else [self.clock.monotonic() + (due - self.time())]
        times += [self._waits[0][0]] if self._waits else []
        return min(times, default=None)

    async def tick(self) -> None:
        """Let happen what is due, for those who wait. Cancelled: as far as it came."""
        now = self.clock.monotonic()
        while self._waits and self._waits[0][0] <= now:
            _, _, reader = heappop(self._waits)
            self.lines[reader.group].leave(reader)
            reader.wake()
        await self.fresh()
        await self._barrier()


def refusal(e: StoreError) -> Refused:
    """What the store said, as the tree says it."""
    if isinstance(e, Conflict):
        return Refused(503, "another process wrote to this topic; what it wrote counts, try again", retry_after=1)
    return Refused(e.code, str(e), retry_after=1 if e.code in (503, 507) else None)


async def forget(store: Store, key: str, revision: int) -> None:
    """Remove an ended topic from the store. Cancelled: as far as it came; the rest may be done again."""
    try:
        await store.trim(key, 1)
        await store.delete(key, expect=revision)
    except (Conflict, NotFound):
        pass  # somebody did, and somebody may have made it anew
    except StoreError as e:
        raise refusal(e) from e


def _key(idem: str) -> bytes:
    return blake2b(idem.encode(), digest_size=16).digest()
