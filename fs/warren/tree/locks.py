"""Byte-range locks of one file system: who holds what, who waits, and who is served next. No I/O, no trio.

    take(key, lock)            now or not at all
    enqueue(key, lock, tell)   wait: tell(None) when it was granted, tell(error) when it cannot be
    cancel(waiter)             stop waiting; nothing was taken
    release(key, lock)         give a range up
    obstacle(key, lock)        what stands in the way

A key is a file, an owner whatever the lock says. An owner never conflicts with itself: what it
takes replaces what it held there, so the same call upgrades and downgrades. The change is one step,
and an owner that waits for an upgrade keeps what it has.

**Order.** First come, first served, as far as ranges conflict. A request stands behind what others
hold and also behind every earlier waiter it conflicts with, or readers that overlap each other
without end would starve a writer. That goes for `take` too, which then says no.

There is one exception. An earlier waiter that itself waits, directly or through others, for the one
who asks now is passed over: to stand behind it would be a deadlock that fairness alone had made. So
whoever holds part of a file can always widen its hold there. Since a new waiter makes new paths
through the graph of who waits for whom, those it leads to are looked at again.

**Deadlock.** A circle in that graph made of held ranges alone can never be resolved, and whoever
would close it is refused (EDEADLK). A circle that needs someone's place in a queue does not arise, by
the exception above. As in a kernel, an owner counts as stuck when any of its requests waits: two
threads of one owner may meet a refusal where patience would have done.

**Limits.** `MAX_RANGES` held and `MAX_WAITERS` waiting on one file; beyond them, ENOLCK. An unlock
that would split a range into one too many is refused the same way; unlocking everything never is.
"""

import errno
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from warren.tree.errors import Refused
from warren.tree.node import Lock

MAX_RANGES: Final = 4096
MAX_WAITERS: Final = 256
END: Final = 1 << 64

Key: TypeAlias = tuple[int, int]
Owner: TypeAlias = tuple[int, str, int]
Tell: TypeAlias = Callable[[Refused | None], None]


class Range(NamedTuple):
    """Bytes from START to before STOP."""

    start: int
    stop: int
    exclusive: bool
    owner: Owner

    @classmethod
    def of(cls, lock: Lock) -> "Range":
        stop = lock.start + lock.length if lock.length else END
        if not lock.start < stop <= END:
            raise Refused(400, "the range reaches beyond the greatest offset", errno=errno.EOVERFLOW)
        return cls(lock.start, stop, lock.exclusive, lock.owner)

    def lock(self) -> Lock:
        length = 0 if self.stop == END else self.stop - self.start
        return Lock(self.exclusive, self.start, length, self.owner)

    def conflicts(self, other: "Range") -> bool:
        return (
            self.start < other.stop
            and other.start < self.stop
            and (self.exclusive or other.exclusive)
            and self.owner != other.owner
        )


class Waiter:
    """A request that could not be granted yet."""

    __slots__ = ("file", "tell", "wanted")

    def __init__(self, file: "File", wanted: Range, tell: Tell) -> None:
        self.file = file
        self.wanted = wanted
        self.tell = tell


class File:
    """One file's ranges, by owner, and its queue. The ranges of an owner never overlap or touch in kind."""

    __slots__ = ("count", "held", "key", "queue")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.held: dict[Owner, list[Range]] = {}
        self.count = 0
        self.queue: list[Waiter] = []

    def against(self, wanted: Range) -> Iterator[Range]:
        """What others hold that WANTED conflicts with."""
        for owner, ranges in self.held.items():
            if owner != wanted.owner:
                first = bisect_right(ranges, wanted.start, key=_stop)
                last = bisect_left(ranges, wanted.stop, key=_start)
                yield from filter(wanted.conflicts, ranges[first:last])


_start, _stop = attrgetter("start"), attrgetter("stop")


def replaced(ranges: list[Range], start: int, stop: int, new: Range | None) -> list[Range]:
    """RANGES of one owner with NEW, or a hole, from START to STOP; what touches in kind is merged."""
    parts = [new] if new else []
    for r in ranges:
        if r.start < start:
            parts.append(r._replace(stop=min(r.stop, start)))
        if r.stop > stop:
            parts.append(r._replace(start=max(r.start, stop)))
    parts.sort()
    merged: list[Range] = []
    for r in parts:
        if merged and merged[-1].stop == r.start and merged[-1].exclusive == r.exclusive:
            merged[-1] = merged[-1]._replace(stop=r.stop)
        else:
            merged.append(r)
    return merged


class Locks:
    """All locks of one file system."""

    def __init__(self) -> None:
        self._files: dict[Key, File] = {}
        self._waiting: dict[Owner, list[Waiter]] = {}
        self._holding: Counter[Owner] = Counter()  # in how many files

    def take(self, key: Key, lock: Lock) -> bool:
        wanted = Range.of(lock)
        file = self._file(key)
        try:
            if self._obstacle(file, wanted, file.queue):
                return False
            self._put(file, wanted.owner, wanted.start, wanted.stop, wanted)
            self._serve(file)  # a downgrade makes room
        finally:
            self._forget(file)
        return True

    def release(self, key: Key, lock: Lock) -> None:
        unwanted = Range.of(lock)
        file = self._files.get(key)
        if file is not None and unwanted.owner in file.held:
            self._put(file, unwanted.owner, unwanted.start, unwanted.stop, None)
            self._serve(file)
            self._forget(file)

    def obstacle(self, key: Key, lock: Lock) -> Lock | None:
        wanted = Range.of(lock)
        file = self._files.get(key)
        found = self._obstacle(file, wanted, file.queue) if file else None
        return found.lock() if found else None

    def enqueue(self, key: Key, lock: Lock, tell: Tell) -> Waiter:
        """Wait for what `take` refused. TELL is called once, unless the waiter is cancelled before."""
        wanted = Range.of(lock)
        file = self._file(key)
        try:
            if len(file.queue) >= MAX_WAITERS:
                raise Refused(429, f"{MAX_WAITERS} requests wait for this file already", errno=errno.ENOLCK)
            awaited = wanted.owner in self._holding or wanted.owner in self._waiting
            if awaited and wanted.owner in self._reach({r.owner for r in file.against(wanted)}, fair=False):
                raise Refused(409, "to wait here would be a deadlock", errno=errno.EDEADLK)
            waiter = Waiter(file, wanted, tell)
            file.queue.append(waiter)
            self._waiting.setdefault(wanted.owner, []).append(waiter)
            if awaited:
                self._serve_many(self._reach({wanted.owner}))
        finally:
            self._forget(file)
        return waiter

    def cancel(self, waiter: Waiter) -> None:
        self._leave(waiter)
        self._serve(waiter.file)
        self._forget(waiter.file)

    def empty(self) -> bool:
        """Nobody holds or waits for anything."""
        return not (self._files or self._waiting or self._holding)

    # Who stands in whose way

    def _obstacle(self, file: File, wanted: Range, earlier: Collection[Waiter]) -> Range | None:
        for r in file.against(wanted):
            return r
        for w in earlier:
            if w.wanted.conflicts(wanted) and not self._waits_for(w.wanted.owner, wanted.owner):
                return w.wanted
        return None

    def _waits_for(self, owner: Owner, other: Owner) -> bool:
        if other not in self._holding and other not in self._waiting:
            return False  # usual, and spares the search: nobody can be waiting for it
        return other in self._reach({owner})

    def _reach(self, owners: set[Owner], fair: bool = True) -> set[Owner]:
        """OWNERS and all they wait for; FAIR counts places in queues, too."""
        found = set(owners)
        todo = list(owners)
        while todo:
            for w in self._waiting.get(todo.pop(), ()):
                ahead = {r.owner for r in w.file.against(w.wanted)}
                if fair:
                    before = w.file.queue[: w.file.queue.index(w)]
                    ahead.update(b.wanted.owner for b in before if b.wanted.conflicts(w.wanted))
                todo += ahead - found
                found |= ahead
        return found

    # Changes

    def _file(self, key: Key) -> File:
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = File(key)
        return file

    def _forget(self, file: File) -> None:
        if not file.held and not file.queue:
            self._files.pop(file.key, None)

    def _put(self, file: File, owner: Owner, start: int, stop: int, new: Range | None) -> None:
        mine = file.held.get(owner, [])
        first = bisect_left(mine, start, key=_stop)
        last = bisect_right(mine, stop, key=_start)
        parts = replaced(mine[first:last], start, stop, new)
        grown = len(parts) - (last - first)
        if grown > 0 and file.count + grown > MAX_RANGES:
            raise Refused(429, f"more than {MAX_RANGES} ranges of this file are locked", errno=errno.ENOLCK)
        file.count += grown
        held_before = bool(mine)
        mine[first:last] = parts
        if mine and not held_before:
            file.held[owner] = mine
            self._holding[owner] += 1
        elif held_before and not mine:
            del file.held[owner]
            self._holding[owner] -= 1
            if not self._holding[owner]:
                del self._holding[owner]

    def _leave(self, waiter: Waiter) -> None:
        waiter.file.queue.remove(waiter)
        mine = self._waiting[waiter.wanted.owner]
        mine.remove(waiter)
        if not mine:
            del self._waiting[waiter.wanted.owner]

    def _serve(self, file: File) -> None:
        """Grant what can be granted. A grant may make room for those before it, so begin again."""
        at = 0
        while at < len(file.queue):
            w = file.queue[at]
            if self._obstacle(file, w.wanted, file.queue[:at]):
                at += 1
                continue
            self._leave(w)
            at = 0
            try:
                self._put(file, w.wanted.owner, w.wanted.start, w.wanted.stop, w.wanted)
            except Refused as e:
                w.tell(e)
            else:
                w.tell(None)

    def _serve_many(self, owners: set[Owner]) -> None:
        files = {w.file.key: w.file for owner in owners for w in self._waiting.get(owner, ())}
        for file in files.values():
            self._serve(file)
