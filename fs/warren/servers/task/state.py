"""What a queue is, as its log says it: a pure function of the records.

Where each task stands is the business of `places`; here is what the records do to them, what is remembered of
those that were done, and what of all that a snapshot holds.

Nothing here knows of clocks, readers or the store. `apply` first lets happen what is due by the time of the
record, and the same records always lead to the same state; `dump` and `load` are such records too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, Final

import msgspec
from warren.servers.task.places import DEAD, DELAYED, LEASED, Places, Task
from warren.servers.task.records import (
    ALL,
    Back,
    Done,
    Drain,
    Effect,
    End,
    Enq,
    Finish,
    Hb,
    Item,
    Lease,
    Made,
    Part,
    Record,
    Requeue,
    Resume,
    Set,
    Settings,
    Snapshot,
)

COUNTED: Final = ("enqueued", "leased", "done", "failed", "expired", "returned", "died", "requeued")
FINISHED: Final = 1024
DRAINED: Final = "the queue was drained"
_COST: Final = 256  # of an effect, besides its words
_SETTINGS: Final = Settings.__struct_fields__


class State:
    """A queue."""

    def __init__(self) -> None:
        self.t = 0.0
        self.generation = 0
        self.next = 1
        self.settings = Settings()
        self.drained = self.ended = False
        self.pressed = False  # depth went over the high mark and has not come down to the low one
        self.places = Places()
        self.tasks = self.places.tasks
        self.claims: dict[str, int] = {}  # effects that a task which is not done will have
        self.effects: dict[str, Effect] = {}
        self.finished: dict[int, Finish] = {}
        self.bytes = 0
        self.effect_bytes = 0
        self.counts: Counter[str] = Counter()
        self.news: list[tuple[str, dict[str, object]]] = []
        self._windows: list[tuple[float, str]] = []
        self._coming: State | None = None
        self._parts = 0

    # What is asked

    @property
    def depth(self) -> int:
        """How many wait."""
        return self.places.depth

    def number_of(self, state: str) -> int:
        """How many stand there."""
        return self.places.number_of(state)

    def first(self) -> Task | None:
        """What would be handed out next."""
        return self.places.first()

    @property
    def due(self) -> float | None:
        """When something happens by itself next."""
        if self.drained:
            return None
        times = [self.places.due, self._windows[0][0] if self._windows else None]
        return min((t for t in times if t is not None), default=None)

    # What happens

    def apply(self, record: Record) -> None:
        """What RECORD says is so."""
        if isinstance(record, Part):
            self._part(record)
            return
        self._coming = None
        if isinstance(record, Snapshot):
            self._begin(record)
            return
        if isinstance(record, Resume):
            self.drained = False
        self.advance(record.t)
        match record:
            case Made():
                self.generation = record.generation
            case Enq():
                self._enqueue(record)
            case Lease():
                self._lease(record)
            case Hb():
                self.places.extend(self.tasks[record.task], record.until)
            case Done():
                self._done(record)
            case Back():
                self._back(record)
            case Requeue():
                self._requeue(record)
            case Set():
                self.settings = _settings(record)
                self._tell("set")
            case Drain():
                self._drain()
            case Resume():
                self.generation = record.generation
                self._tell("resumed", generation=record.generation)
            case End():
                self.ended = True
        self._press()

    def advance(self, t: float) -> bool:
        """Let happen what is due until then; whether anything was. A drained queue stands still: it stays
        what was given."""
        if self.drained:
            return False
        due = self.due
        for when, task in self.places.ending(t):
            self._end(when, task)
        while self._windows and self._windows[0][0] <= t:
            until, name = heappop(self._windows)
            known = self.effects.get(name)
            if known is not None and known.until == until:
                self._forget(name)
        self.t = max(self.t, t)
        return due is not None and due <= t

    def _end(self, when: float, task: Task) -> None:
        """A delay or a lease is over."""
        if task.state == DELAYED:
            self.places.stand(task, when)
        else:
            self.t = max(self.t, when)
            self.counts["expired"] += 1
            self._tell("expired", task=task.number, attempt=task.attempt, worker=task.worker)
            task.why = "its lease ended"
            self._return(task, when, counted=True, bury=False)
        self._press()

    def _enqueue(self, record: Enq) -> None:
        task = Task(
            record.task, record.t, record.prio, record.key, record.effect, record.most, record.by, record.body
        )
        self.next = record.task + 1
        self.counts["enqueued"] += 1
        self._remember(task)
        task.when = record.after
        self.places.enter(task, self.t)

    def _lease(self, record: Lease) -> None:
        task = self.tasks[record.task]
        self.places.lease(task, record.until)
        task.attempt, task.mark, task.worker = record.attempt, record.mark, record.by
        self.counts["leased"] += 1

    def _done(self, record: Done) -> None:
        task = self.tasks.pop(record.task)
        self.places.leave(task, self.t)
        self.bytes -= task.size
        self.counts["done"] += 1
        if task.effect:
            del self.claims[task.effect]
        if record.effect and record.effect not in self.effects:
            until = record.t + self.settings.keep
            self._know(Effect(record.effect, task.number, record.result, until))
        self.finished[task.number] = Finish(
            task.number, record.t, task.attempt, task.mark, task.worker, record.effect, record.result
        )
        if len(self.finished) > FINISHED:
            del self.finished[next(iter(self.finished))]

    def _back(self, record: Back) -> None:
        task = self.tasks[record.task]
        task.why = record.why
        self.counts["failed" if record.counted else "returned"] += 1
        self._return(task, record.after, record.counted, record.bury)

    def _return(self, task: Task, after: float, counted: bool, bury: bool) -> None:
        """A lease ends, and the task is not done."""
        task.tries += counted
        task.mark = ""
        if bury or (counted and task.tries >= (task.most or self.settings.attempts)):
            self.places.bury(task, self.t)
            self.counts["died"] += 1
            self._tell("dead", task=task.number, attempt=task.attempt, why=task.why)
            return
        self.places.back(task, after, self.t)

    def _requeue(self, record: Requeue) -> None:
        dead = [number for number, task in self.tasks.items() if task.state == DEAD]
        numbers = dead if record.task == ALL else [record.task]
        for number in numbers:
            task = self.tasks[number]
            task.tries, task.when, task.why = 0, record.t, ""
            self.places.enter(task, self.t)
        self.counts["requeued"] += len(numbers)
        self._tell("requeued", tasks=len(numbers))

    def _drain(self) -> None:
        for task in [task for task in self.tasks.values() if task.state == LEASED]:
            task.why = DRAINED
            self._return(task, self.t, counted=False, bury=False)
        self.drained = True
        self._tell("drained", tasks=len(self.tasks))

    def _press(self) -> None:
        depth, s = self.depth, self.settings
        if self.pressed != (pressed := depth > s.low if self.pressed else depth >= s.high):
            self.pressed = pressed
            said: dict[str, object] = {"state": "high" if pressed else "low", "depth": depth}
            self._tell("pressure", **said, high=s.high, low=s.low)

    def _tell(self, kind: str, **values: object) -> None:
        self.news.append((kind, values))

    # What is remembered

    def _remember(self, task: Task) -> None:
        self.tasks[task.number] = task
        self.bytes += task.size
        if task.effect:
            self.claims[task.effect] = task.number

    def _know(self, effect: Effect) -> None:
        self.effects[effect.effect] = effect
        self.effect_bytes += effect_size(effect.effect, effect.result)
        heappush(self._windows, (effect.until, effect.effect))

    def _forget(self, name: str) -> None:
        known = self.effects.pop(name)
        self.effect_bytes -= effect_size(name, known.result)

    # Snapshots

    def dump(self) -> list[Record]:
        """All of it, as records from which it can be had again."""
        parts: list[Part] = [task.item() for _, task in sorted(self.tasks.items())]
        parts += sorted(self.effects.values(), key=lambda known: known.effect)
        parts += self.finished.values()
        head = Snapshot(
            **_fields(self.settings), t=self.t, parts=len(parts), generation=self.generation, next=self.next,
            drained=self.drained, pressed=self.pressed, **{name: self.counts[name] for name in COUNTED},
        )  # fmt: skip
        return [head, *parts]

    @classmethod
    def load(cls, records: Iterable[Record]) -> State:
        """The state that `dump` gave these records."""
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def settled(self) -> State:
        """The same with nobody at work, and each task in the place that is its own, whatever was said of it.

        This state is worth nothing afterwards.
        """
        state = State()
        for name in ("t", "generation", "next", "settings", "pressed", "counts", "finished"):
            setattr(state, name, getattr(self, name))
        for known in self.effects.values():
            state._know(known)
        for _, task in sorted(self.tasks.items()):
            state._remember(task)
            if task.state == LEASED:
                task.mark, task.when, task.why = "", self.t, DRAINED
            state.places.settle(task, self.t)
        return state

    @property
    def whole(self) -> bool:
        """Whether no part of a snapshot is missing."""
        return self._coming is None

    def _begin(self, record: Snapshot) -> None:
        coming = State()
        coming.t, coming.generation, coming.next = record.t, record.generation, record.next
        coming.settings = _settings(record)
        coming.drained, coming.pressed = record.drained, record.pressed
        coming.counts.update({name: getattr(record, name) for name in COUNTED})
        coming.news = self.news
        self._coming, self._parts = coming, record.parts
        self._adopt()

    def _part(self, record: Part) -> None:
        coming = self._coming
        if coming is None:
            return
        match record:
            case Item():
                coming._restore(record)
            case Effect():
                coming._know(record)
            case Finish():
                coming.finished[record.task] = record
        self._parts -= 1
        self._adopt()

    def _adopt(self) -> None:
        if not self._parts and self._coming is not None:
            coming = self._coming
            self.__dict__.update(coming.__dict__)

    def _restore(self, item: Item) -> None:
        if item.task in self.tasks:
            raise ValueError(f"task {item.task} comes twice")
        task = Task(item.task, item.sent, item.prio, item.key, item.effect, item.most, item.by, item.body)
        task.when, task.attempt, task.tries = item.when, item.attempt, item.tries
        task.mark, task.worker, task.why = item.mark, item.worker, item.why
        self._remember(task)
        self.places.restore(task, item.state)


def effect_size(name: str, result: str) -> int:
    """What an effect is charged."""
    return len(name) + len(result) + _COST


def _settings(record: Set | Snapshot) -> Settings:
    return Settings(**{name: getattr(record, name) for name in _SETTINGS})


def _fields(settings: Settings) -> dict[str, Any]:
    return msgspec.structs.asdict(settings)
