"""A log as its one owner writes it: decided first, written in order, answered last.

    batch = journal.add(data)          noted, in its order; the seq it will have was `journal.next`
    await journal.settle(batch)        durable, or refused; whoever waits writes for all who wait

There is no writing task. The first who waits for something that is not written yet writes all there is; those
who come meanwhile wait for the next turn. So sixty-four writers share a commit, and one waits for nobody.

Each append expects the last seq that we know of: that is the fence of a log's owner. If somebody else wrote
meanwhile, or the store failed, what was added is refused, and so is everything behind it. Then `lost` is
called, for the state that was ahead of the log is worth nothing and must be read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from warren.store.interface import Store, StoreError, StoreFailed

_BYTES: Final = 1 << 20  # of a batch


class Batch:
    """Records that are appended together."""

    __slots__ = ("bytes", "done", "error", "lot", "number", "records")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.bytes = 0
        self.number = 0  # what the owner said with the last record in here
        self.done = False
        self.error: StoreError | None = None
        self.lot = trio.lowlevel.ParkingLot()


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
        with trio.CancelScope(shield=True):
            while not batch.done:
                if self._flying is not None:
                    await batch.lot.park()
                else:
                    await self._write()
        if batch.error is not None:
            raise batch.error

    async def flush(self) -> None:
        """Wait until all that was added is durable. Cancelled: as `settle`."""
        batch = self._queue[-1] if self._queue else self._flying
        if batch is not None:
            await self.settle(batch)

    async def _write(self) -> None:
        batch = self._flying = self._queue.popleft()
        batch.error = StoreFailed(f"{self.name}: the write was broken off")
        try:
            seqs = await self.store.append_batch(self.name, batch.records, expect_last=self.last)
            self.last = seqs[-1]
            batch.error = None
            self._written(batch)
        except StoreError as e:
            batch.error = e
        finally:
            self._flying = None
            batch.done = True
            batch.lot.unpark_all()
            if batch.error is not None:
                self._refuse(batch.error)
            for other in self._queue:
                if other.lot:
                    other.lot.unpark()  # it is their turn to write
                    break

    def _refuse(self, error: StoreError) -> None:
        """Nothing that was decided on top of a refused record may come into the log."""
        for batch in self._queue:
            batch.error, batch.done = error, True
            batch.lot.unpark_all()
        self._queue.clear()
        self._lost()
