"""Moving a queue: `drain` gives all that is left, `restore` takes it, `log` shows how it came about.

All three speak the records of the log as text. What drain gives has a line before them:

    drained queue=builds bytes=5120 sha256=…      so that a restore can tell that it is whole
    seq=1 ts=… kind=snapshot parts=12 …           all of the queue: tasks in any state, effects, what was done
    seq=2 kind=item task=7 …                      …

A restore takes that, or what was read from `log` from its beginning or from a snapshot on, up to anywhere. It
has the same tasks in the same order, with their attempts and effects, in a generation of its own: leases do
not move. What does not hold together is refused whole, since it may come from anybody.
"""

from __future__ import annotations

import hashlib
from collections import deque
from errno import ENOTEMPTY
from math import isfinite
from typing import Final

import msgspec
import trio
from warren.servers.task.places import BLOCKED, DEAD, DELAYED, LEASED, READY
from warren.servers.task.queue import TaskQueue
from warren.servers.task.records import Drain, End, Made, Record, Resume, Snapshot, read, shown, unpack
from warren.servers.task.settings import checked
from warren.servers.task.state import State
from warren.servers.task.working import RESULT, longest
from warren.store import StoreError
from warren.tree import Cursor, Ended, Refused, WouldBlock
from warren.tree.headers import WORD
from warren.tree.report import pairs

RESTORE: Final = 64 << 20
_FIRST: Final = 512
_NUMBERS: Final = 10**15
_STATES: Final = frozenset((READY, DELAYED, BLOCKED, LEASED, DEAD))


async def drain(queue: TaskQueue) -> deque[bytes]:
    """Give all that is left, and take nothing any more. Again gives the same. Cancelled: drained, or not."""
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    if not state.drained:
        await queue.settle(queue.do(Drain(state.t)))
    else:
        await queue.barrier()
    return given(queue.name, queue.state)


def given(name: str, state: State) -> deque[bytes]:
    """A queue as text, a record each."""
    records = deque(shown(seq, record) for seq, record in enumerate(state.dump(), 1))
    digest = hashlib.sha256()
    for record in records:
        digest.update(record)
    said = {"queue": name, "bytes": sum(map(len, records)), "sha256": digest.hexdigest()}
    records.appendleft(f"drained {pairs(said)}\n".encode())
    return records


async def resume(queue: TaskQueue) -> str:
    """Go on with a drained queue. Cancelled: resumed, or not."""
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    if not state.drained:
        return f"generation={state.generation}"
    generation = queue.newer(state.generation)
    await queue.settle(queue.do(Resume(queue.time(), generation)))
    return f"generation={generation}"


# Restoring


def _first(data: bytes) -> tuple[int, str, int] | None:
    """What the line before the records says: bytes, digest, where they begin. None without such a line."""
    end = data.find(b"\n", 0, _FIRST)
    if not data.startswith(b"drained ") or end < 0:
        return None
    said = dict(word.partition("=")[::2] for word in data[:end].decode("utf-8", "replace").split())
    size, digest = said.get("bytes", ""), said.get("sha256", "")
    if not (size.isascii() and size.isdigit() and len(size) < 12 and len(digest) == 64):
        raise Refused(422, "the first line does not say bytes= and sha256=")
    return int(size), digest, end + 1


def measure(data: bytes) -> int | None:
    """How long all of it will be, once that is said."""
    first = _first(data)
    return None if first is None else first[0] + first[2]


def replay(data: bytes) -> State:
    """The queue that these records lead to, or the refusal that names what is wrong with them."""
    first, at = _first(data), 0
    if first is not None:
        size, digest, at = first
        if len(data) - at != size:
            raise Refused(422, f"{size} bytes were drained, {len(data) - at} came")
        if hashlib.sha256(data[at:]).hexdigest() != digest:
            raise Refused(422, "the bytes are not those that were drained: their SHA-256 is another")
    state, last = State(), 0
    while at < len(data):
        begins = at
        seq, record, at = read(data, at)
        if last and seq != last + 1:
            raise Refused(422, f"record {last + 1} is missing; {seq} follows on {last}")
        if not last and not isinstance(record, Made | Snapshot):
            says = "begin with what made the queue (from 1), or with a snapshot"
            raise Refused(422, f"record {seq} is neither the beginning nor a snapshot; {says}")
        try:
            _sane(record)
            state.apply(record)
        except (LookupError, ValueError, OverflowError) as e:
            raise Refused(422, f"the record at byte {begins} does not fit: {type(e).__name__}: {e}") from None
        state.news.clear()
        last = seq
    if not last:
        raise Refused(422, "nothing to restore")
    if not state.whole:
        raise Refused(422, "the snapshot ends before its last part")
    return state


def _sane(record: Record) -> None:
    """What a queue of ours could have written."""
    for name, value in ((name, getattr(record, name)) for name in type(record).__struct_fields__):
        if isinstance(value, float) and not (isfinite(value) and 0 <= value < 1e11):
            raise ValueError(f"{name} is out of range")
        if isinstance(value, int) and not 0 <= value < _NUMBERS:
            raise ValueError(f"{name} is out of range")
        if isinstance(value, str) and (not value.isprintable() or len(value) > RESULT):
            raise ValueError(f"{name} is no text of ours")
        if name in ("key", "effect") and isinstance(value, str) and len(value) > WORD:
            raise ValueError(f"{name} is longer than {WORD}")
        if name == "state" and value not in _STATES:
            raise ValueError(f"{value!r} is no state")
        if name == "prio" and not 0 <= value <= 9:
            raise ValueError("prio is out of range")


def _fitting(queue: TaskQueue, state: State) -> None:
    """Whether the queue may have all this, and whether it holds together."""
    checked(state.settings)
    limits = queue.limits
    most = max((len(task.body) for task in state.tasks.values()), default=0)
    if most > longest(queue):
        raise Refused(413, f"a task is at most {longest(queue)} bytes, one has {most}")
    if len(state.tasks) > state.settings.count or state.bytes > state.settings.bytes:
        raise Refused(413, f"{len(state.tasks)} tasks of {state.bytes} bytes are over the queue's own limits")
    if len(state.effects) > limits.effects or state.effect_bytes > limits.effect_bytes:
        raise Refused(413, f"{len(state.effects)} effects, the limit is {limits.effects}")
    if queue.used() + state.bytes > limits.bytes:
        raise Refused(429, f"all queues together hold {limits.bytes} bytes, the limit", retry_after=60)
    for number in (*state.tasks, *state.finished):
        if not 0 < number < state.next:
            raise Refused(422, f"task {number} is not below the next, {state.next}")
    if len(state.claims) != sum(task.effect != "" for task in state.tasks.values()):
        raise Refused(422, "two tasks have one effect")
    if set(state.tasks) & set(state.finished):
        raise Refused(422, "a task is done and not done")


async def restore(queue: TaskQueue, data: bytes) -> str:
    """Take what drain gave. Cancelled: restored, or not."""
    await trio.lowlevel.checkpoint_if_cancelled()
    now = await queue.fresh()
    if now.tasks and not now.drained:
        raise Refused(409, f"{len(now.tasks)} tasks are here; restore into an empty queue", errno=ENOTEMPTY)
    state = (await trio.to_thread.run_sync(replay, data) if len(data) > 1 << 20 else replay(data)).settled()
    _fitting(queue, state)
    now = await queue.fresh()
    if now.tasks and not (now.drained and _same(now, state)):
        says = "what is left in it is not what you restore; resume it, or make another queue"
        raise Refused(409, f"{len(now.tasks)} tasks are here: {says}", errno=ENOTEMPTY)
    if now.effects.keys() - state.effects.keys():
        says = "it remembers effects that are not in what you restore; make another queue"
        raise Refused(409, f"the queue would forget what was done: {says}", errno=ENOTEMPTY)
    head, *parts = state.dump()
    assert isinstance(head, Snapshot)
    generation = queue.newer(max(now.generation, state.generation))
    head = msgspec.structs.replace(
        head, t=queue.time(), generation=generation, next=max(now.next, state.next), drained=False
    )
    batch = queue.do(head)
    for part in parts:
        batch = queue.do(part)
    queue.advance()
    await queue.settle(batch)
    queue.events.tell("restored", tasks=len(state.tasks), generation=queue.state.generation)
    return f"tasks={len(state.tasks)} effects={len(state.effects)} generation={queue.state.generation}\n"


def _same(one: State, other: State) -> bool:
    """Whether these are the same tasks, so that nothing is lost when one takes the place of the other."""
    return [task.item() for task in one.tasks.values()] == [task.item() for task in other.tasks.values()]


# Removing


async def remove(queue: TaskQueue) -> None:
    """End a queue that is empty or drained. The log says so first: what is left undone, anybody may do."""
    state = await queue.fresh()
    if state.tasks and not state.drained:
        says = f"{len(state.tasks)} tasks are here; drain the queue, or let them be done"
        raise Refused(409, says, errno=ENOTEMPTY)
    with trio.CancelScope(shield=True):
        await queue.settle(queue.do(End(state.t, state.generation)))
        queue.end()
        try:
            await queue.store.trim(queue.key, 1)
            await queue.store.delete(queue.key, expect=queue.revision)
        except StoreError:
            pass  # somebody was first, or whoever looks for it next does it


# Streams


class Drained(Cursor):
    """`drain`: the first read drains; then one record a read, then the end."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.left: deque[bytes] | None = None

    def next_nowait(self) -> bytes:
        if self.left is None:
            raise WouldBlock
        if not self.left:
            raise Ended
        return self.left.popleft()

    async def next(self) -> bytes:
        if self.left is None:
            self.left = await drain(self.queue)
        return self.next_nowait()


class Log(Cursor):
    """`log`: what was decided, in order. What was forgotten before it was read is followed by a snapshot."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.at = queue.journal.last
        self.lost = 0

    def seek(self, seq: int) -> None:
        if seq > self.queue.journal.last + 1:
            raise Refused(416, f"the newest record is {self.queue.journal.last}")
        self.at = max(seq - 1, 0)

    def next_nowait(self) -> bytes:
        try:
            record = self.queue.store.first_after_nowait(self.queue.key, self.at)
        except StoreError as e:
            raise self.queue.refusal(e) from e
        return self._record(record.seq, record.data)

    async def next(self) -> bytes:
        try:
            record = await self.queue.store.first_after(self.queue.key, self.at)
        except StoreError as e:
            raise self.queue.refusal(e) from e
        return self._record(record.seq, record.data)

    def _record(self, seq: int, data: bytes) -> bytes:
        if (missed := seq - self.at - 1) > 0:
            self.at = seq - 1
            return f"lost n={missed}\n".encode()
        self.at = seq
        record = unpack(data)
        if isinstance(record, End):
            raise Ended
        return shown(seq, record)

