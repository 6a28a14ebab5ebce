"""An answer that is owed: what was asked is decided, and somebody else will say when it is done.

    owed = Promise().then(told).otherwise(worded)      what becomes of the answer on its way
    owed.keep(value)                                   it is done
    owed.fail(error)                                   it never will be

An operation may return one where it would return an awaitable, and whoever asked may await it as one. The
difference is the price: an awaitable wants a task that waits for it, and a cancel scope, and a promise
wants neither. So a write that only waits for a log to be durable costs no task, and a hundred of them are
answered by whoever wrote the log.

**It cannot be cancelled**, for what it is about was decided before it was made. Who awaits it and is
cancelled meanwhile is told so at the next checkpoint behind it.

Steps run in order, in the task of whoever keeps or fails the promise; they do not wait. A step that raises
an exception makes that the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import trio


def _never(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


class Promise:
    """One answer, for one who asked."""

    __slots__ = ("_otherwise", "_steps", "_tells", "error", "settled", "value")

    def __init__(self) -> None:
        self.settled = False
        self.value: Any = None
        self.error: Exception | None = None
        self._steps: list[Callable[[Any], Any]] = []
        self._otherwise: Callable[[Exception], Exception] | None = None
        self._tells: list[Callable[[Promise], object]] = []

    def then(self, step: Callable[[Any], Any]) -> Promise:
        """Let STEP make the answer out of what it would have been."""
        if self.settled:
            self._step(step)
        else:
            self._steps.append(step)
        return self

    def otherwise(self, worded: Callable[[Exception], Exception]) -> Promise:
        """Let WORDED make the error out of what it would have been, if it comes to that."""
        self._otherwise = worded
        if self.error is not None:
            self.error = worded(self.error)
        return self

    def keep(self, value: object = None) -> None:
        """It is done."""
        self.value = value
        for step in self._steps:
            if self.error is None:
                self._step(step)
        self._settle()

    def fail(self, error: Exception) -> None:
        """It never will be."""
        self.error = error if self._otherwise is None else self._otherwise(error)
        self._settle()

    def told(self, tell: Callable[[Promise], object]) -> None:
        """TELL is called once it is settled, by whoever settles it. It does not wait and raises nothing."""
        if self.settled:
            tell(self)
        else:
            self._tells.append(tell)

    def _step(self, step: Callable[[Any], Any]) -> None:
        if self.error is None:
            try:
                self.value = step(self.value)
            except Exception as e:
                self.error = e

    def _settle(self) -> None:
        self.settled = True
        self._steps.clear()
        tells, self._tells = self._tells, []
        for tell in tells:
            tell(self)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.wait().__await__()

    async def wait(self) -> Any:
        """The answer. Cancelled: not before it is there."""
        if not self.settled:
            task = trio.lowlevel.current_task()
            self.told(lambda _: trio.lowlevel.reschedule(task))
            await trio.lowlevel.wait_task_rescheduled(_never)
        if self.error is not None:
            raise self.error
        return self.value
