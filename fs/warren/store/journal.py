"""A log as its one owner writes it: decided first, written in order, answered last.

    batch = journal.add(data)          noted, in its order; the seq it will have was `journal.next`
    await journal.settle(batch)        durable, or refused
    journal.promise(batch)             the same, for who has no task to wait with

What was added is written when somebody wants it settled: all there is as the loop turns, then all that came
meanwhile, until there is nothing more. So sixty-four writers share a commit, and one waits for nobody. It
takes no task: the store calls back (`Store.appending`).

Each append expects the last seq that we know of: that is the fence of a log's owner. If somebody else wrote
meanwhile, or the store failed, what was added is refused, and so is everything behind it. Then `lost` is
called, for the state that was ahead of the log is worth nothing and must be read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio
from warren.store.interface import Store, StoreError, StoreFailed
from warren.tree.promise import Promise

_BYTES: Final = 1 << 20  # of a batch


class Batch:
    """Records that are appended together."""

    __slots__ = ("bytes", "done", "error", "number", "owed", "records", "tasks")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.bytes = 0
        self.number = 0  # what the owner said with the last record in here
        self.done = False
        self.error: StoreError | None = None
        self.tasks: list[trio.lowlevel.Task] = []
        self.owed: list[Promise] = []


class Journal:
    """The end of a log. `written(batch)` is called when one is durable, `lost` when one is refused."""

    def __init__(
        self, store: Store, name: str, written: Callable[[Batch], None], lost: Callable[[], None]
    ) -> None:
        self.store, self.name = store, name
        self._written, self._lost = written, lost
        self.last = 0  # the newest durable record
        self.next = 1  # the seq of what is added next
        self._queue: deque[Batch] = deque()
        self._flying: Batch | None = None
        self._soon = False  # it begins when the loop turns

    def begin(self, last: int) -> None:
        """Go on behind LAST."""
        self.last, self.next = last, last + 1

    @property
    def idle(self) -> bool:
        """Whether all that was added is durable."""
        return not self._queue and self._flying is None

    def add(self, data: bytes, number: int = 0) -> Batch:
        """Note a record, to be appended behind all before it."""
        batch = self._queue[-1] if self._queue else None
        if batch is None or len(batch.records) >= self.store.limits.batch or batch.bytes + len(data) > _BYTES:
            batch = Batch()
            self._queue.append(batch)
        batch.records.append(data)
        batch.bytes += len(data)
        batch.number = number
        self.next += 1
        return batch

    async def settle(self, batch: Batch) -> None:
        """Wait until a batch is durable; raises what the store says if it never will be.

        Cancelled: not before that is decided.
        """
        if not batch.done:
            batch.tasks.append(trio.lowlevel.current_task())
            self._write_on()
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        if batch.error is not None:
            raise batch.error

    def promise(self, batch: Batch | None) -> Promise:
        """Kept when a batch is durable; fails with what the store says if it never will be."""
        owed = Promise()
        if batch is None or batch.done:
            _answer(owed, batch.error if batch is not None else None)
        else:
            batch.owed.append(owed)
            self._write_on()
        return owed

    async def flush(self) -> None:
        """Wait until all that was added is durable. Cancelled: as `settle`."""
        if (batch := self.newest) is not None:
            await self.settle(batch)

    @property
    def newest(self) -> Batch | None:
        """What was added last, if it is not durable yet."""
        return self._queue[-1] if self._queue else self._flying

    def _write_on(self) -> None:
        """Begin when the loop turns, so that what is decided until then goes too."""
        if self._flying is None and not self._soon:
            self._soon = True
            trio.lowlevel.current_trio_token().run_sync_soon(self._begin)

    def _begin(self) -> None:
        self._soon = False
        if self._queue and self._flying is None:
            batch = self._flying = self._queue.popleft()
            self.store.appending(self.name, batch.records, expect_last=self.last).told(
                partial(self._done, batch)
            )

    def _done(self, batch: Batch, appended: Promise) -> None:
        """The store has answered. What waited is on its way to the disk before anybody is told."""
        self._flying = None
        error = appended.error
        try:
            if error is None:
                self.last = appended.value[-1]
                self._written(batch)
        except Exception as e:  # a defect, and nobody above to hear of it but those who wait
            error = e
        if error is not None and not isinstance(error, StoreError):
            error = StoreFailed(f"{self.name}: {error!r}")
        batch.error = error
        self._end(batch)
        if error is not None:
            self._refuse(error)
        elif self._queue:
            self._begin()
        for owed in batch.owed:
            _answer(owed, error)

    def _end(self, batch: Batch) -> None:
        batch.done = True
        for task in batch.tasks:
            trio.lowlevel.reschedule(task)
        batch.tasks.clear()

    def _refuse(self, error: StoreError) -> None:
        """Nothing that was decided on top of a refused record may come into the log."""
        refused = list(self._queue)
        self._queue.clear()
        for batch in refused:
            batch.error = error
            self._end(batch)
        self._lost()
        for batch in refused:
            for owed in batch.owed:
                owed.fail(error)


def _answer(owed: Promise, error: StoreError | None) -> None:
    if error is None:
        owed.keep()
    else:
        owed.fail(error)
