"""The state of a topic: a pure function of its records.

    state = State()
    for seq, record in log: state.apply(record, seq)

`apply` is given what was decided and when; it reads no clock, waits for nothing and chooses nothing. Two
who read the same log have the same state, and `dump` gives both the same bytes. Before a record is applied
the time goes on to its own: what falls due until then happens in the order of its times, so it makes no
difference how often anybody looked in between.

It does not hold a body. A message's record is read again when it is handed out.

`dump` is a snapshot; `State.load` goes on from it. What happened that somebody may want to hear of
gathers in `news`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import Any, Final

import msgspec
from warren.servers.mailbox.queue import BLOCKED, DELAYED, LEASED, WAITING, Item, Kept, Queue
from warren.servers.mailbox.records import (
    MAIN,
    Back,
    Bury,
    Carry,
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
)

_EXPIRES: Final = "\0"  # in the agenda, where the name of a queue stands
MARK_EVERY: Final = 256
MARKS: Final = 1024
_STALE: Final = 4096  # keys that were forgotten before their time, and are still noted
_COST: Final = 128  # what a message is charged besides its bytes

News = tuple[str, dict[str, object]]


class State:
    """What a topic knows. Everything changes through `apply` and `advance`."""

    def __init__(self) -> None:
        self.t = 0.0
        self.next = 1  # number of the next message
        self.settings = Settings()
        self.ended = False
        self.messages: dict[int, Kept] = {}
        self.ids: dict[str, int] = {}
        self.bytes = 0
        self.seen: dict[bytes, Seen] = {}
        self.counts: Counter[str] = Counter()
        self.marks: list[tuple[int, float, int, int]] = []  # number, time, seq, bytes so far: where to find
        self.written = 0  # bytes of bodies ever sent
        self.news: list[News] = []
        self._agenda: list[tuple[float, int, str]] = []
        self._windows: list[tuple[float, list[bytes]]] = []  # when keys are forgotten, and which
        self._noted = 0  # how many stand there
        self.queues: dict[str, Queue] = {MAIN: self._queue(MAIN)}

    def _queue(self, name: str) -> Queue:
        return Queue(name, lambda when, number: self._later(when, number, name), self._forget)

    @property
    def due(self) -> float | None:
        """When something happens by itself next. It may turn out to be nothing."""
        return self._agenda[0][0] if self._agenda else None

    @property
    def dead(self) -> int:
        return sum(len(queue.dead) for queue in self.queues.values())

    def full(self, count: int, size: int) -> bool:
        """Whether so many messages of so many bytes are too much now."""
        s = self.settings
        return len(self.messages) + count > s.count or self.bytes + size + count * _COST > s.bytes

    # Time

    def advance(self, t: float) -> bool:
        """Let everything happen that is due until T; whether anything was."""
        agenda, most = self._agenda, self.settings.attempts
        happens = bool(agenda) and agenda[0][0] <= t
        while agenda and agenda[0][0] <= t:
            when, number, name = heappop(agenda)
            if name == _EXPIRES:
                self._expire(number, when)
            elif (queue := self.queues.get(name)) is not None and (what := queue.due(number, when, most)):
                self._ended(queue, number, what, when)
        while self._windows and self._windows[0][0] <= t:
            until, keys = heappop(self._windows)
            self._noted -= len(keys)
            for key in keys:
                if (seen := self.seen.get(key)) is not None and seen.until == until:
                    del self.seen[key]
        if t > self.t:
            self.t = t
        return happens

    def _later(self, when: float, number: int, name: str) -> None:
        heappush(self._agenda, (when, number, name))
        if len(self._agenda) > 256 and len(self._agenda) > 4 * sum(map(len, self.queues.values())):
            self._plan()

    def _plan(self) -> None:
        """Forget what will turn out to be nothing."""
        self._agenda[:] = {
            (item.when, number, name)
            for name, queue in self.queues.items()
            for number, item in queue.items.items()
            if item.state in (DELAYED, LEASED)
        } | {(kept.expires, kept.number, _EXPIRES) for kept in self.messages.values() if kept.expires}
        # An expiry that is past finds nobody waiting: it is nothing, however often it comes.
        heapify(self._agenda)

    def _expire(self, number: int, t: float) -> None:
        """A message is of no use any more. Who has it leased may still finish."""
        kept = self.messages.get(number)
        if kept is None or kept.expires != t:
            return
        for queue in self.queues.values():
            item = queue.items.get(number)
            if item is not None and item.state in (WAITING, DELAYED, BLOCKED):
                queue.remove(number, t)
                self._ended(queue, number, "expired", t)

    def _ended(self, queue: Queue, number: int, what: str, t: float) -> None:
        if what == "again":
            self.counts["timed_out"] += 1
            return
        self.counts[what] += 1
        if what == "dead":
            item = queue.dead[number]
            if item.why == "timed_out":
                self.counts["timed_out"] += 1
            said: dict[str, object] = {"id": item.kept.id, "attempts": item.attempts, "last": item.why}
            self._tell("dead", queue, said)
        else:
            self._tell(what, queue, {"message": number})

    def _tell(self, kind: str, queue: Queue | None, said: dict[str, object]) -> None:
        if queue is not None and queue.name:
            said["group"] = queue.name
        self.news.append((kind, said))

    # Records

    def apply(self, record: Record, seq: int) -> None:
        """What RECORD says has happened; SEQ is its number in the log."""
        t = record.t
        self.advance(t)
        match record:
            case Send():
                self._send(record, seq)
            case Lease():
                self._lease(record)
            case Done():
                for number in record.numbers:
                    self.queues[record.group].remove(number, t)
                self.counts["acked"] += len(record.numbers)
            case Back():
                queue, most = self.queues[record.group], self.settings.attempts
                for number in record.numbers:
                    if what := queue.back(number, record.after, record.counted, most, t):
                        self._ended(queue, number, what, t)
                self.counts["nacked" if record.counted else "given_back"] += len(record.numbers)
            case Extend():
                for number in record.numbers:
                    self.queues[record.group].extend(number, record.until)
            case Change():
                self._change(record.settings)
            case Delete():
                self._delete(record)
            case Redrive():
                for queue, number in self._letters(record.letters):
                    queue.revive(number, t)
                    self.counts["redriven"] += 1
                self._tell("redriven", None, {})
            case Bury():
                for queue, number in self._letters(record.letters):
                    queue.remove(number, t)
            case Group():
                queue = self.queues[record.name] = self._queue(record.name)
                for kept in self.messages.values() if record.waiting else ():
                    if not 0 < kept.expires <= t:
                        queue.add(kept, t)
                self._tell("group", queue, {})
            case Ungroup():
                self._clear(self.queues.pop(record.name), t)
                self._tell("ungroup", None, {"group": record.name})
            case Carry():
                for index, number in enumerate(record.numbers):
                    if (old := self.messages.get(number)) is not None:
                        old.at, old.index = seq, index
            case End():
                self.ended = True
            case Snap():
                pass  # for those who begin here

    def _send(self, record: Send, seq: int) -> None:
        number, t = record.first, record.t
        if self.settings.full == "drop":
            size = sum(len(message.body) for message in record.messages)
            self._make_room(len(record.messages), size)
        queues = [queue for queue in self.queues.values() if queue.name or self.settings.queue]
        for index, m in enumerate(record.messages):
            if not (number - 1) % MARK_EVERY:
                self._mark(number, t, seq)
            size = len(m.body)
            kept = Kept(number, m.id, seq, index, size, m.prio, m.after, m.expires, m.key, t)
            self.written += size
            for queue in queues:
                queue.add(kept, t)
            if queues:
                self._remember(kept)
            number += 1
        self.counts["sent"] += number - record.first
        self.next = number
        for key in record.heard:
            self.seen.pop(key, None)
        if record.seen:
            self._note(record.seen)

    def _note(self, found: list[Seen]) -> None:
        """Remember idempotency keys, until the window of each is over."""
        known, keys, until = self.seen, list[bytes](), found[0].until
        for seen in found:
            known[seen.key] = seen
            if seen.until != until:
                heappush(self._windows, (until, keys))
                keys, until = [], seen.until
            keys.append(seen.key)
        heappush(self._windows, (until, keys))
        self._noted += len(found)
        if self._noted > 2 * len(known) + _STALE:
            again: dict[float, list[bytes]] = {}
            for each in known.values():
                again.setdefault(each.until, []).append(each.key)
            self._windows = list(again.items())
            heapify(self._windows)
            self._noted = len(known)

    def _remember(self, kept: Kept) -> None:
        self.messages[kept.number] = kept
        self.ids[kept.id] = kept.number
        self.bytes += kept.size + _COST
        if kept.expires:
            self._later(kept.expires, kept.number, _EXPIRES)

    def _forget(self, kept: Kept) -> None:
        if self.messages.pop(kept.number, None) is not None:
            del self.ids[kept.id]
            self.bytes -= kept.size + _COST

    def _mark(self, number: int, t: float, seq: int) -> None:
        self.marks.append((number, t, seq, self.written))
        if len(self.marks) > MARKS:
            self.marks = self.marks[: MARKS // 2 : 2] + self.marks[MARKS // 2 :]

    def _make_room(self, count: int, size: int) -> None:
        """Drop the oldest that nobody has leased."""
        while self.full(count, size):
            free = (n for n in self.messages if not any(n in queue.leased for queue in self.queues.values()))
            if (number := next(free, None)) is None:
                return
            self._tell("dropped", None, {"id": self.messages[number].id})
            self._remove(number, self.t)
            self.counts["dropped"] += 1

    def _lease(self, record: Lease) -> None:
        queue = self.queues[record.group]
        self.counts["delivered"] += len(record.numbers)
        for number in record.numbers:
            self.counts["redelivered"] += queue.items[number].attempts > 0
            queue.lease(number, record.lease, record.by, record.until)
            if not record.lease:
                queue.remove(number, record.t)

    def _change(self, settings: Settings) -> None:
        closed = self.settings.queue and not settings.queue
        self.settings = settings
        if closed:
            self._clear(self.queues[MAIN], self.t)
        self._tell("set", None, {})

    def _clear(self, queue: Queue, t: float) -> None:
        for number in list(queue.items):
            queue.remove(number, t)

    def _delete(self, record: Delete) -> None:
        if record.numbers is not None:
            for number in record.numbers:
                self._remove(number, record.t)
            self.counts["deleted"] += len(record.numbers)
            return
        before = len(self.messages)
        for queue in self.queues.values():
            for number in [n for n in queue.items if n not in queue.leased and n not in queue.dead]:
                queue.remove(number, record.t)
        self.counts["purged"] += before - len(self.messages)
        self._tell("purged", None, {"n": before - len(self.messages)})

    def _remove(self, number: int, t: float) -> None:
        for queue in self.queues.values():
            if number in queue.items:
                queue.remove(number, t)

    def _letters(self, named: list[tuple[str, int]] | None) -> list[tuple[Queue, int]]:
        if named is None:
            return [(queue, number) for queue in self.queues.values() for number in list(queue.dead)]
        return [(self.queues[name], number) for name, number in named]

    # Where things are in the log

    def oldest(self) -> int | None:
        """The first record that holds a message which somebody still wants."""
        return min((kept.at for kept in self.messages.values()), default=None)

    def history(self) -> int | None:
        """The first record that is kept for replay; None for no such wish."""
        if not self.settings.replay:
            return None
        long_ago = bisect_right(self.marks, self.t - self.settings.replay, key=itemgetter(1)) - 1
        far = bisect_right(self.marks, self.written - self.settings.bytes, key=itemgetter(3)) - 1
        at = max(long_ago, far, 0)
        return self.marks[at][2] if self.marks else None

    def before(self, number: int | None = None, t: float | None = None) -> int:
        """A record at or before the message of that number, or the first sent at that time or later."""
        sought, place = (number, 0) if number is not None else (t, 1)
        at = bisect_right(self.marks, sought, key=itemgetter(place)) - 1
        return self.marks[at][2] if at >= 0 else 0

    # Snapshots

    def dump(self) -> bytes:
        """All of it, always in the same words."""
        return msgspec.msgpack.encode(
            {
                "t": self.t,
                "next": self.next,
                "settings": self.settings,
                "ended": self.ended,
                "written": self.written,
                "messages": [kept.packed() for _, kept in sorted(self.messages.items())],
                "seen": sorted(self.seen.values(), key=lambda seen: seen.key),
                "counts": dict(sorted((k, n) for k, n in self.counts.items() if n)),
                "marks": self.marks,
                "queues": {
                    name: [item.packed() for _, item in sorted(queue.items.items())]
                    for name, queue in sorted(self.queues.items())
                },
            }
        )

    @classmethod
    def load(cls, data: bytes) -> State:
        """The state that `dump` gave these bytes."""
        raw: dict[str, Any] = msgspec.msgpack.decode(data)
        state = cls()
        state.t, state.next, state.ended = raw["t"], raw["next"], raw["ended"]
        state.settings = msgspec.convert(raw["settings"], Settings)
        state.written = raw["written"]
        state.counts.update(raw["counts"])
        state.marks = [tuple(mark) for mark in raw["marks"]]
        for fields in raw["messages"]:
            state._remember(Kept(*fields))
        if raw["seen"]:
            state._note(msgspec.convert(raw["seen"], list[Seen]))
        for name, items in raw["queues"].items():
            queue = state.queues[name] = state._queue(name)
            for number, word, when, attempts, lease, by, why in items:
                item = Item(state.messages[number], word, when)
                item.attempts, item.lease, item.by, item.why = attempts, lease, by, why
                queue.restore(item.kept, item)
        return state


__all__ = ["MARK_EVERY", "Message", "News", "State"]
