"""Where each task of a queue stands, and whose turn it is.

    READY      can be handed out: the highest priority first, then the one that came first
    DELAYED    not before `when`
    BLOCKED    another task of the same key has its turn
    LEASED     handed out, until `when`
    DEAD       was tried as often as it may be, or was given up

A task keeps its number for ever, so one that is tried again is in its old place. Of the tasks with one key at
most one is ready, delayed or leased: the first of them, unless a later one was leased before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from warren.servers.task.records import Item

READY, DELAYED, BLOCKED, LEASED, DEAD = "ready", "delayed", "blocked", "leased", "dead"
_COST: Final = 256  # of a task, besides its body
_STALE: Final = 64


class Task:
    """A task that is not done."""

    __slots__ = (
        "attempt", "body", "by", "effect", "key", "mark", "most", "number", "prio", "sent", "state", "tries",
        "when", "why", "worker",
    )  # fmt: skip

    def __init__(
        self, number: int, sent: float, prio: int, key: str, effect: str, most: int, by: str, body: bytes
    ) -> None:
        self.number, self.sent, self.prio, self.key, self.effect = number, sent, prio, key, effect
        self.most, self.by, self.body = most, by, body
        self.state, self.when = "", 0.0
        self.attempt = 0  # how often it was handed out
        self.tries = 0  # how often that counted, since it came or was requeued
        self.mark = self.worker = self.why = ""

    @property
    def size(self) -> int:
        return len(self.body) + _COST

    def item(self) -> Item:
        return Item(
            self.number, self.sent, self.prio, self.key, self.effect, self.most, self.by, self.state,
            self.when, self.attempt, self.tries, self.mark, self.worker, self.why, self.body,
        )  # fmt: skip


class Places:
    """The tasks of a queue, each in its place."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self._in: Counter[str] = Counter()
        self._heap: list[tuple[int, int]] = []
        self._timers: list[tuple[float, int]] = []
        self._chains: dict[str, list[int]] = {}
        self._turns: dict[str, int] = {}  # which of a key is not blocked

    @property
    def depth(self) -> int:
        """How many wait."""
        return self._in[READY] + self._in[DELAYED] + self._in[BLOCKED]

    def number_of(self, state: str) -> int:
        """How many stand there."""
        return self._in[state]

    @property
    def due(self) -> float | None:
        """When a delay or a lease ends next, or may have."""
        return self._timers[0][0] if self._timers else None

    def ending(self, t: float) -> Iterator[tuple[float, Task]]:
        """The delays and leases that end until then, one after the other."""
        while self._timers and self._timers[0][0] <= t:
            when, number = heappop(self._timers)
            task = self.tasks.get(number)
            if task is not None and task.when == when and task.state in (DELAYED, LEASED):
                yield when, task

    def first(self) -> Task | None:
        """What would be handed out next."""
        while self._heap:
            task = self.tasks.get(self._heap[0][1])
            if task is not None and task.state == READY:
                return task
            heappop(self._heap)
        return None

    # What happens to a task, at T

    def enter(self, task: Task, t: float) -> None:
        """Take a place, behind those of the same key that came before."""
        if task.key:
            insort(self._chains.setdefault(task.key, []), task.number)
            self._to(task, BLOCKED)
            self._turn(task.key, t)
        else:
            self.stand(task, t)

    def stand(self, task: Task, t: float) -> None:
        """Wait for `when`, or be ready."""
        if task.when > t:
            self._to(task, DELAYED)
            self._later(task.when, task.number)
        else:
            self._to(task, READY)
            self._offer(task)

    def lease(self, task: Task, until: float) -> None:
        """Handed out."""
        self._to(task, LEASED)
        self.extend(task, until)

    def extend(self, task: Task, until: float) -> None:
        """Leased until then instead."""
        task.when = until
        self._later(until, task.number)

    def back(self, task: Task, after: float, t: float) -> None:
        """No longer leased. An older one of the same key goes first."""
        task.when = after
        if task.key:
            self._to(task, BLOCKED)
            del self._turns[task.key]
            self._turn(task.key, t)
        else:
            self.stand(task, t)

    def bury(self, task: Task, t: float) -> None:
        """Dead."""
        self.leave(task, t)
        self._to(task, DEAD)
        task.when = t

    def leave(self, task: Task, t: float) -> None:
        """Make room for the next of its key."""
        self._to(task, "")
        if task.key:
            chain = self._chains[task.key]
            del chain[bisect_left(chain, task.number)]
            if self._turns.get(task.key) == task.number:
                del self._turns[task.key]
            if chain:
                self._turn(task.key, t)
            else:
                del self._chains[task.key]

    def restore(self, task: Task, state: str) -> None:
        """A task that stands where a snapshot says."""
        self._to(task, state)
        if state == DEAD:
            return
        if task.key:
            insort(self._chains.setdefault(task.key, []), task.number)
            if state != BLOCKED:
                self._turns[task.key] = task.number
        if state == READY:
            self._offer(task)
        elif state in (DELAYED, LEASED):
            self._later(task.when, task.number)

    def settle(self, task: Task, t: float) -> None:
        """A task that was dead, or stood anywhere, takes the place that is its own."""
        was, task.state = task.state, ""
        if was == DEAD:
            self._to(task, DEAD)
        else:
            self.enter(task, t)

    def _to(self, task: Task, state: str) -> None:
        if task.state:
            self._in[task.state] -= 1
        task.state = state
        if state:
            self._in[state] += 1

    def _turn(self, key: str, t: float) -> None:
        """See that it is the first one's turn, unless one is leased."""
        first, now = self._chains[key][0], self._turns.get(key)
        if now is not None:
            if now == first or self.tasks[now].state == LEASED:
                return
            self._to(self.tasks[now], BLOCKED)
        self._turns[key] = first
        self.stand(self.tasks[first], t)

    def _offer(self, task: Task) -> None:
        heappush(self._heap, (-task.prio, task.number))
        if len(self._heap) > 2 * self._in[READY] + _STALE:
            self._heap = sorted((-k.prio, k.number) for k in self.tasks.values() if k.state == READY)

    def _later(self, when: float, number: int) -> None:
        heappush(self._timers, (when, number))
        if len(self._timers) > 2 * (self._in[LEASED] + self._in[DELAYED]) + _STALE:
            timed = [task for task in self.tasks.values() if task.state in (LEASED, DELAYED)]
            self._timers = sorted((task.when, task.number) for task in timed)
