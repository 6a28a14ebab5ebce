"""The thread that writes: everything that waits is one transaction, and one COMMIT answers it all.

While a COMMIT waits for the disk, others come to wait; so the busier it is, the more share one. The thread
takes jobs from a queue, evaluates each in its turn, commits, and hands the whole group back to the loop.
A job that is cancelled before its turn is not done. One whose turn has come is waited for: else its effect
could come after what its caller did next.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final

import trio
from warren.store.interface import StoreError, StoreFailed, StoreFull
from warren.store.sqlite.engine import Engine
from warren.store.sqlite.file import Trouble, busy, told
from warren.tree.promise import Promise

GROUP: Final = 1024
GROUP_BYTES: Final = 16 << 20
SMALL: Final = 4096  # bytes of a write that may use the reserve
ROOM: Final = "there is room for small writes only; make room on the disk, or trim"


class Job:
    """One write: its work in the thread, what its answer means to others, and who is told it."""

    __slots__ = (
        "_chance", "alone", "answer", "begun", "done", "error", "owed", "size", "task", "tell", "work",
    )  # fmt: skip

    def __init__(
        self,
        work: Callable[[Engine], Any],
        tell: Callable[[Any], None],
        size: int,
        task: trio.lowlevel.Task | None = None,
        *,
        owed: Promise | None = None,
        alone: bool = False,
    ) -> None:
        self.alone = alone  # it is no part of a transaction, and nothing else is done meanwhile
        self.work, self.tell, self.size, self.task, self.owed = work, tell, size, task, owed
        self.answer: Any = None
        self.error: StoreError | None = None
        self.begun = self.done = False
        self._chance = [True]  # the thread begins it or the loop cancels it: whoever pops this

    def begin(self) -> bool:
        """In the thread: whether it is to be done."""
        if not self.begun:
            try:
                self.begun = self._chance.pop()
            except IndexError:
                return False
        return True

    def cancel(self) -> bool:
        """In the loop: whether it will not be done."""
        try:
            return self._chance.pop()
        except IndexError:
            return False


class Writer:
    """One thread, one engine. `deliver` is called in the loop with each group, and what failed the store."""

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[list[Job], StoreFailed | None], None],
        ended: Callable[[], None],
    ) -> None:
        self._engine, self._deliver, self._ended = engine, deliver, ended
        self._token = trio.lowlevel.current_trio_token()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._failed: StoreFailed | None = None
        self._next: Job | None = None  # one that is done alone, after what came before it
        self.commits = 0
        # A daemon: a loop that was torn down without closing must not keep the process.
        self._thread = threading.Thread(target=self._run, name="warren-store", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def stop(self) -> None:
        """End after what was submitted before."""
        self._queue.put(None)

    def _run(self) -> None:
        try:
            going = True
            while going:
                group, going = self._next_group()
                try:
                    if self._failed is not None:
                        pass  # they are answered with that
                    elif group:
                        self._commit(group)
                    elif going:
                        self._sweep()
                except Exception as e:  # a defect, or no memory: those who wait must hear of it
                    self._failed = StoreFailed(f"{self._engine.path}: {e!r}")
                self._answer(group)
        except trio.RunFinishedError:
            pass  # nobody is left to answer
        finally:
            self._engine.close()
            try:
                self._token.run_sync_soon(self._ended)
            except trio.RunFinishedError:
                pass

    def _next_group(self) -> tuple[list[Job], bool]:
        """What waits, and whether to go on. Nothing waits where there is something to sweep meanwhile."""
        group: list[Job] = []
        size = 0
        while len(group) < GROUP and size < GROUP_BYTES:
            try:
                idle = bool(self._engine.unswept) and self._failed is None
                job = self._next or self._queue.get(block=not group and not idle)
                self._next = None
            except queue.Empty:
                break
            if job is None:
                return group, False
            if job.alone:
                if not group:
                    return [job], True
                self._next = job
                break
            group.append(job)
            size += job.size
        return group, True

    def _answer(self, group: list[Job]) -> None:
        for job in group:
            if self._failed is not None and not job.done and job.error is None:
                job.error = self._failed
        if group or self._failed is not None:
            self._token.run_sync_soon(self._deliver, group, self._failed)

    def _commit(self, group: list[Job]) -> None:
        engine = self._engine
        try:
            if engine.tight:
                engine.loosen()
            if group[0].alone:
                if group[0].begin():
                    _evaluate(group[0], engine)
                return
            engine.begin()
        except Trouble as e:
            self._give_up(group, told(engine.path, e), harmless=busy(e))
            return
        try:
            for job in group:
                if engine.tight and job.size > SMALL:
                    job.error = StoreFull(f"{engine.path}: {ROOM}")
                elif job.begin():
                    _evaluate(job, engine)
            engine.commit()
        except Trouble as e:
            self._rolled_back(group, e)
        except Exception as e:
            self._rolled_back(group, Trouble(f"a defect: {e!r}"))
        else:
            self.commits += 1

    def _rolled_back(self, group: list[Job], e: Trouble) -> None:
        error = told(self._engine.path, e)
        try:
            self._engine.rollback()
        except Trouble as worse:
            error = told(self._engine.path, worse)
        for job in group:
            job.answer, job.error, job.done = None, None, False
        full = isinstance(error, StoreFull)
        if full and len(group) > 1:
            for job in group:
                if self._failed is None:
                    self._commit([job])
        elif full and not self._engine.tight and group[0].size <= SMALL:
            self._engine.tighten()
            self._commit(group)
        else:
            self._give_up(group, error, harmless=full)

    def _give_up(self, group: list[Job], error: StoreError, *, harmless: bool) -> None:
        if not harmless:
            self._failed = error if isinstance(error, StoreFailed) else StoreFailed(str(error))
        for job in group:
            job.error = error

    def _sweep(self) -> None:
        engine = self._engine
        try:
            engine.begin()
            engine.sweep(next(iter(engine.unswept)))
            engine.commit()
        except Trouble as e:
            # A sweep is no one's write: what does not fit, or is not had now, waits for another time.
            engine.rollback()
            engine.unswept.clear()
            if not isinstance(error := told(engine.path, e), StoreFull) and not busy(e):
                self._failed = StoreFailed(str(error))


def _evaluate(job: Job, engine: Engine) -> None:
    try:
        job.answer = job.work(engine)
        job.done = True
    except StoreError as e:
        job.error = e

