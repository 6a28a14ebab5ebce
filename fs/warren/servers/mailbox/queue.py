"""One queue's view of the messages of a topic: the topic's own, or that of a consumer group.

    WAITING    can be handed out: the highest priority first, then the one sent first
    DELAYED    not before `when`
    BLOCKED    an older message of the same key has not been done with
    LEASED     handed out, until `when`
    DEAD       a dead letter, since `when`

Messages of one key are handed out one after the other, in the order in which they were sent: at most one
of them is waiting, delayed or leased, the others are blocked behind it. Without a key the order is that of
sending as far as leases, delays and priorities let it be.

Nothing here knows of the log, of readers or of clocks: `State` calls these methods with the time of a
record, and the same calls always lead to the same queue.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

import msgspec

WAITING, DELAYED, BLOCKED, LEASED, DEAD = range(5)
_STALE: Final = 64


class Kept(msgspec.Struct, eq=False, gc=False):
    """A message as the topic remembers it; its body is in the log."""

    number: int
    id: str
    at: int
    index: int
    size: int
    prio: int
    after: float
    expires: float
    key: str
    sent: float
    refs: int = 0  # queues that have it

    def packed(self) -> tuple[object, ...]:
        return (self.number, self.id, self.at, self.index, self.size, self.prio, self.after, self.expires,
                self.key, self.sent)  # fmt: skip


class Item(msgspec.Struct, eq=False, gc=False):
    """A message in a queue."""

    kept: Kept
    state: int = WAITING
    when: float = 0.0
    attempts: int = 0
    noted: bool = False  # in the heap, whether it waits or not
    lease: str = ""
    by: str = ""
    why: str = ""

    def packed(self) -> tuple[object, ...]:
        return (self.kept.number, self.state, self.when, self.attempts, self.lease, self.by, self.why)


class Queue:
    """The items of one queue. `later(when, number)` asks to be called back with `due` at that time."""

    def __init__(
        self, name: str, later: Callable[[float, int], None], forget: Callable[[Kept], None]
    ) -> None:
        self.name = name
        self._later, self._forget = later, forget
        self.items: dict[int, Item] = {}
        self.leased: dict[int, Item] = {}
        self.dead: dict[int, Item] = {}
        self.ready = 0  # how many are WAITING
        self._heap: list[tuple[int, int]] = []
        self._chains: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.items)

    @property
    def depth(self) -> int:
        """How many are neither leased nor dead."""
        return len(self.items) - len(self.leased) - len(self.dead)

    @property
    def delayed(self) -> int:
        """How many wait for a time."""
        return sum(item.state == DELAYED for item in self.items.values())

    def add(self, kept: Kept, t: float) -> None:
        """A new message."""
        kept.refs += 1
        item = self.items[kept.number] = Item(kept, WAITING, kept.after)
        if kept.key or kept.after > t:
            self._enter(item, kept.after, t)
        else:
            self.ready += 1
            item.noted = True
            heappush(self._heap, (-kept.prio, kept.number))

    def restore(self, kept: Kept, item: Item) -> None:
        """An item out of a snapshot."""
        kept.refs += 1
        number = kept.number
        self.items[number] = item
        if item.state == DEAD:
            self.dead[number] = item
            return
        if kept.key:
            insort(self._chains.setdefault(kept.key, []), number)
        if item.state == WAITING:
            self._offer(item)
        elif item.state != BLOCKED:
            self._later(item.when, number)
            if item.state == LEASED:
                self.leased[number] = item

    def pick(self, most: int, size: int) -> list[Item]:
        """What is handed out next, at most so many of at most so many bytes, but one in any case.

        Whoever picks leases them before anything else happens here.
        """
        picked: list[Item] = []
        while len(picked) < most and (item := self.first()) is not None:
            size -= item.kept.size
            if picked and size < 0:
                break
            heappop(self._heap)
            item.noted = False
            picked.append(item)
        return picked

    def first(self) -> Item | None:
        """What would be handed out next; it stays."""
        while self._heap:
            item = self.items.get(self._heap[0][1])
            if item is not None and item.state == WAITING:
                return item
            heappop(self._heap)
            if item is not None:
                item.noted = False
        return None

    def lease(self, number: int, lease: str, by: str, until: float) -> None:
        """Hand one out. It was WAITING."""
        item = self.items[number]
        self._wait_no_more(item)
        item.state, item.lease, item.by, item.when = LEASED, lease, by, until
        item.attempts += 1
        self.leased[number] = item
        self._later(until, number)

    def extend(self, number: int, until: float) -> None:
        """Let a lease end at another time."""
        self.items[number].when = until
        self._later(until, number)

    def back(self, number: int, after: float, counted: bool, most: int, t: float) -> str:
        """End a lease unacknowledged; answers what became of the message: "", `expired` or `dead`."""
        item = self.items[number]
        del self.leased[number]
        if not counted:
            item.attempts -= 1
        if 0 < item.kept.expires <= t:
            self.remove(number, t)
            return "expired"
        if counted and item.attempts >= most:
            self._bury(item, t)
            return "dead"
        item.lease = item.by = item.why = ""
        self._stand(item, after, t)
        return ""

    def due(self, number: int, when: float, most: int) -> str:
        """It is `when`: a delay is over, or a lease has run out. Answers as `back`, or `again`."""
        item = self.items.get(number)
        if item is None or item.when != when:
            return ""
        if item.state == DELAYED:
            item.state = WAITING
            self._offer(item)
        elif item.state == LEASED:
            item.why = "timed_out"
            return self.back(number, when, True, most, when) or "again"
        return ""

    def remove(self, number: int, t: float) -> None:
        """Done with, as far as this queue is concerned."""
        item = self.items.pop(number)
        self.leased.pop(number, None)
        if self.dead.pop(number, None) is None:
            self._leave(item, t)
        item.kept.refs -= 1
        if not item.kept.refs:
            self._forget(item.kept)

    def revive(self, number: int, t: float) -> None:
        """A dead letter waits again, as if it had just been sent, but in its old place and without expiry."""
        item = self.dead.pop(number)
        item.kept.expires = 0.0
        item.attempts, item.lease, item.by, item.why = 0, "", "", ""
        self._enter(item, t, t)

    def _bury(self, item: Item, t: float) -> None:
        self._leave(item, t)
        item.state, item.when = DEAD, t
        item.why, item.lease = item.why or "nacked", ""
        self.dead[item.kept.number] = item

    # States

    def _enter(self, item: Item, after: float, t: float) -> None:
        """Take a place: behind the older ones of its key, if it has one."""
        key, number = item.kept.key, item.kept.number
        if key:
            chain = self._chains.setdefault(key, [])
            insort(chain, number)
            active = next((n for n in chain if n != number and self.items[n].state != BLOCKED), 0)
            if active:
                if active < number or self.items[active].state == LEASED:
                    item.state, item.when = BLOCKED, after
                    return
                self._block(self.items[active])
        self._stand(item, after, t)

    def _stand(self, item: Item, after: float, t: float) -> None:
        """Wait, or be delayed. An older one of the same key goes first."""
        key, number = item.kept.key, item.kept.number
        if key and (first := self._chains[key][0]) < number:
            item.state, item.when = BLOCKED, after
            older = self.items[first]
            self._stand(older, older.when, t)
        elif after > t:
            item.state, item.when = DELAYED, after
            self._later(after, number)
        else:
            item.state, item.when = WAITING, after
            self._offer(item)

    def _block(self, item: Item) -> None:
        self._wait_no_more(item)
        item.state = BLOCKED

    def _leave(self, item: Item, t: float) -> None:
        """Make room for the next of its key."""
        self._wait_no_more(item)
        active = item.state != BLOCKED
        item.state = DEAD  # so that what is still noted of it in the heap means nothing
        key = item.kept.key
        if not key:
            return
        chain = self._chains[key]
        del chain[bisect_left(chain, item.kept.number)]
        if not chain:
            del self._chains[key]
        elif active:
            following = self.items[chain[0]]
            self._stand(following, following.when, t)

    def _offer(self, item: Item) -> None:
        self.ready += 1
        if not item.noted:
            item.noted = True
            heappush(self._heap, (-item.kept.prio, item.kept.number))
        if len(self._heap) > 2 * self.ready + _STALE:
            for each in self.items.values():
                each.noted = each.state == WAITING
            noted = (each.kept for each in self.items.values() if each.noted)
            self._heap = sorted((-kept.prio, kept.number) for kept in noted)

    def _wait_no_more(self, item: Item) -> None:
        if item.state == WAITING:
            self.ready -= 1
