"""Runs that wait for their turn, and the one that has it."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

import trio
from warren.boot.harness.bench import Bench
from warren.boot.harness.gate import Pin
from warren.boot.harness.outcome import Asked, Outcome
from warren.tree import Refused
from warren.tree.ports import Clock
from warren.tree.report import Events, attributes, legible

WAITING: Final = 8
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"


@dataclass
class Work:
    """One thing to be done with an image."""

    kind: str
    image: str
    asked: Asked
    runs: int = 1
    pin: Pin | None = None
    number: int = 0
    state: str = QUEUED
    said: str = ""  # what came of it, for `last`
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def values(self) -> dict[str, object]:
        known: dict[str, object] = {"run": self.number, "kind": self.kind, "state": self.state}
        return known if self.said else known | {"image": self.image}


class Works:
    """All of it, in order."""

    def __init__(self, bench: Bench, clock: Clock) -> None:
        self.bench, self.clock = bench, clock
        self.events = Events(clock.now)
        self.waiting: deque[Work] = deque()
        self.newest: Work | None = None  # the one that was begun last, or waits alone
        self.current: Work | None = None
        self.verdicts: Counter[str] = Counter()
        self.last_ms = 0.0
        self._numbers = 0
        self._news = trio.lowlevel.ParkingLot()

    def add(self, work: Work) -> int:
        """Put it behind the others; its number. Refused (429) if too many wait."""
        if len(self.waiting) >= WAITING:
            raise Refused(429, f"{WAITING} runs wait, the limit; cancel one, or wait for one", retry_after=5)
        self._numbers += 1
        work.number = self._numbers
        self.waiting.append(work)
        if self.current is None:
            self.newest = work
        self.events.tell("queued", run=work.number, what=work.kind, image=work.image)
        self._news.unpark()
        return work.number

    def cancel(self, number: int) -> str:
        """Take it out of the queue, or end it."""
        if self.current is not None and self.current.number == number:
            self.current.scope.cancel()
            return f"{number} is being ended"
        for work in self.waiting:
            if work.number == number:
                self.waiting.remove(work)
                self._end(work, CANCELLED)
                return f"{number} will not be done"
        raise Refused(404, f"no run {number} waits or is being done; /boot/last has the newest")

    async def keep(self) -> None:
        """Do what there is to do, one after the other. Runs until cancelled, which ends the one that has its
        turn, and its machine."""
        while True:
            while not self.waiting:
                await self._news.park()
            self.current = self.newest = work = self.waiting.popleft()
            work.state = RUNNING
            try:
                with work.scope:
                    await self._do(work)
                if work.scope.cancelled_caught:
                    self._end(work, CANCELLED)
            finally:
                self.current = None

    async def _do(self, work: Work) -> None:
        def tell(kind: str, **said: object) -> None:
            if kind in ("booted", "refused", "error"):
                self.verdicts[kind] += 1
            self.events.tell(kind, run=work.number, **said)

        try:
            if work.kind == "run":
                came = await self.bench.run(work.image, work.asked, tell)
            else:
                came = await self.bench.measure(work.image, work.runs, work.asked, tell, work.pin)
        except OSError as e:
            work.said = attributes({"image": work.image, "verdict": "error", "reason": e.strerror or str(e)})
            self._end(work, FAILED, reason=legible(e.strerror or str(e)))
            return
        self._came(work, came)

    def _came(self, work: Work, came: Outcome) -> None:
        if came.report.verdict == "booted":
            self.last_ms = round(came.report.total_ms, 1)
        work.said = attributes(came.last())
        self._end(work, DONE, well=came.well, **{g.name: str(g) for g in came.gates})

    def _end(self, work: Work, state: str, **said: object) -> None:
        work.state = state
        self.events.tell(state, run=work.number, **said)
