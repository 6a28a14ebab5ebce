"""What the tasks of a process want of one file at the same time goes there together.

The first goes at once, and so does a second. What comes while two are under way waits, and goes as one batch
as soon as an answer is there. So nothing is delayed for the sake of a batch, and the more there are who ask,
the more share a write and its answer.

**Each is answered as if it were alone.** A batch counts all or none; if it is refused, what was in it is sent
one by one, so that each is told what is wrong with it and none suffers for another. A lost answer is asked
for again.

**What has the same key** is sent in the order of the calls. While one waits to be sent again, later ones of
that key wait behind it, and no others.

What was cancelled or is late is not sent again for the sake of others. The file is kept open from one batch
to the next.

A kind says how a batch is written (`_write`), how one alone (`alone`), and what it does besides.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, ClassVar, Final, Generic, TypeVar

import trio
from warren.mount.file import File
from warren.mount.sdk.drafts import Draft, Sent, chains, lost, same
from warren.mount.sdk.patience import UNKNOWN, Tries, code, unsure
from warren.mount.sdk.wire import opened

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

D = TypeVar("D", bound=Draft)

AT_ONCE: Final = 2  # batches under way: while one is written to the disk, the other is on its way
BATCH_BYTES: Final = 512 << 10


class _Refused(Exception):
    """A batch was refused: nothing of it was done."""


class Together(Generic[D]):
    """What is under way to one file."""

    most: ClassVar[int] = 32  # that the server takes at once, of so many bytes together

    def __init__(self, node: Node, path: str, limit: float) -> None:
        self.node, self.path, self.limit = node, path, limit
        self._waiting: deque[D] = deque()
        self._held: set[str] = set()  # keys of which some are under way
        self._under: list[list[D]] = []  # batches under way
        self._given_up = 0  # of those that wait, about
        self._watching = False
        self._handing = False
        self._pumps = 0
        self._chains = 0

    # What a kind says

    async def _write(self, file: File, batch: list[D]) -> list[Sent]:
        """Write a batch, and read what is answered to each."""
        raise NotImplementedError

    async def alone(self, draft: D, before: bool = False) -> Sent:
        """Send one by itself. BEFORE: an earlier try may have done it. Cancelled: it was done, or not."""
        raise NotImplementedError

    def _done(self, batch: Sequence[D], answers: Sequence[Sent]) -> None:
        """They were answered, and no try of them is on its way any more."""

    def _settled(self, draft: D, e: OSError, tries: Tries) -> Sent | None:
        """What a refusal answers after all, where it says that an earlier try was done."""
        return None

    def _fail(self, draft: D, e: OSError) -> None:
        draft.error = e
        draft.wake()

    # Who waits

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._pumps and not self._chains

    async def send(self, draft: D) -> Sent:
        """Send it, with others that are there. Cancelled: it was sent, or not."""

        def abort(_: object) -> trio.lowlevel.Abort:
            draft.task = None
            self._tidy()
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            self._go()
        except RuntimeError:  # the nursery of the node takes nothing more
            raise lost(self.path, "it was not sent") from None
        self._waiting.append(draft)
        draft.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        if draft.error is not None:
            raise draft.error
        assert draft.sent is not None
        return draft.sent

    def _tidy(self) -> None:
        """One was given up. What waits behind a node that does not answer must not grow by those."""
        self._given_up += 1
        if self._given_up > self.most and 2 * self._given_up > len(self._waiting):
            self._waiting = deque(draft for draft in self._waiting if draft.task is not None)
            self._given_up = 0

    # In time

    async def _watch(self) -> None:
        """Tell each when its time is over, whatever becomes of the batch that it is in."""
        try:
            while (soonest := self._soonest()) < inf:
                await trio.sleep_until(soonest)
                now = trio.current_time()
                for draft in self._waiting:
                    self._late(draft, now, "it was not sent")
                for batch in self._under:
                    for draft in batch:
                        self._late(draft, now, UNKNOWN)
        finally:
            self._watching = False

    def _soonest(self) -> float:
        """When the time of somebody is over next. Those who wait stand in the order of their times."""
        first = next((draft.until for draft in self._waiting if draft.task is not None), inf)
        under = (draft.until for batch in self._under for draft in batch if draft.task is not None)
        return min(first, *under, inf)

    def _late(self, draft: D, now: float, outcome: str) -> None:
        if draft.task is not None and draft.until <= now:
            text = f"not done within {draft.limit:g} s; {outcome}"
            self._fail(draft, TimeoutError(errno.ETIMEDOUT, text, self.path))

    # Together

    def _go(self) -> None:
        if self._pumps < AT_ONCE:
            self.node.background.start_soon(self._pump)
            self._pumps += 1
        if not self._watching:
            self.node.background.start_soon(self._watch)
            self._watching = True

    async def _pump(self) -> None:
        """Send what waits, and what comes meanwhile."""
        batch: list[D] = []
        try:
            while batch := self._next():
                self._under.append(batch)
                try:
                    apart = await self._deliver(batch)
                finally:
                    self._under = [each for each in self._under if each is not batch]
                for chain in apart:
                    self._chains += 1
                    self.node.background.start_soon(self._one_by_one, *chain)
        finally:
            self._pumps -= 1
            self._leave(batch)

    def _leave(self, left: Sequence[D]) -> None:
        """If anything is still here, the node was left, and nobody sees to it any more."""
        for draft in left:
            if draft.sent is None and draft.error is None:
                self._fail(draft, lost(self.path, UNKNOWN))
        if self.idle:
            while self._waiting:
                self._fail(self._waiting.popleft(), lost(self.path, "it was not sent"))

    def _next(self) -> list[D]:
        """What goes together next. What was given up meanwhile is left out."""
        batch: list[D] = []
        behind: list[D] = []
        held = self._held
        room, now = BATCH_BYTES, trio.current_time()
        while self._waiting and len(batch) < self.most:
            draft = self._waiting.popleft()
            if draft.task is None:
                continue
            if draft.until <= now:
                self._late(draft, now, "it was not sent")
            elif draft.key and draft.key in held:
                behind.append(draft)
            elif batch and len(draft.body) > room:
                behind.append(draft)
                break
            else:
                room -= len(draft.body)
                batch.append(draft)
        self._waiting.extendleft(reversed(behind))
        held.update([draft.key for draft in batch if draft.key])
        return batch

    async def _deliver(self, batch: list[D]) -> list[tuple[list[D], bool]]:
        """See to it that each of a batch is answered; or what is to be sent one by one, if they do not go
        together, and whether an earlier try may have sent it."""
        last: Tries | None = None
        keys = {draft.key for draft in batch if draft.key}

        async def work(tries: Tries) -> list[Sent]:
            nonlocal last
            last = tries
            if tries.failures:  # what was given up meanwhile is not sent again for the sake of the others
                batch[:] = [draft for draft in batch if draft.task is not None]
            return await self._ship(batch, tries) if batch else []

        try:
            answers = await self.node.do(self.path, work, deadline=batch[-1].until - trio.current_time())
            while self._handing:
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._handing = True
            try:
                if last is not None and not last.unsure:
                    self._done(batch, answers)
                for draft, sent in zip(batch, answers, strict=True):
                    draft.sent = sent
                    draft.wake()
                # What they send next is on its way before others are answered: we and the node work in turns.
                await trio.lowlevel.cancel_shielded_checkpoint()
            finally:
                self._handing = False
        except _Refused:
            self._held.difference_update(keys - {draft.key for draft in batch})
            return [(chain, last is not None and last.unsure) for chain in chains(batch)]
        except OSError as e:
            for draft in batch:
                draft.sent = self._settled(draft, e, last) if last is not None else None
                if draft.sent is None:
                    self._fail(draft, same(e))
                else:
                    draft.wake()
        self._held.difference_update(keys)
        return []

    async def _ship(self, batch: list[D], tries: Tries) -> list[Sent]:
        """One try. Raises _Refused if nothing was done and what is in it may fare better alone."""
        shelf = self.node.shelf
        used = shelf.take(self.path)
        file = used or await opened(self.node, self.path)
        try:
            said = await self._write(file, batch)
        except ConnectionError:
            shelf.drop(file)
            if used is None:
                raise
            # It may have been lost long ago. The same batch again does no harm.
            tries.unsure = True
            return await self._ship(batch, tries)
        except OSError as e:
            shelf.drop(file)
            if code(e) and not unsure(e) and (used is not None or len(batch) > 1):
                raise _Refused from e
            raise
        except BaseException:
            shelf.drop(file)
            raise
        shelf.put(self.path, file)
        return said

    # One by one

    async def _one_by_one(self, chain: Sequence[D], before: bool) -> None:
        """What has one key, or one without. BEFORE: an earlier try may have sent them."""
        try:
            for draft in chain:
                if draft.task is not None:
                    await self._one(draft, before)
        finally:
            self._chains -= 1
            self._held.discard(chain[0].key)
            if self._waiting:
                self._go()
            self._leave(chain)

    async def _one(self, draft: D, before: bool) -> None:
        try:
            draft.sent = await self.alone(draft, before)
        except OSError as e:
            if before:
                e.add_note(f"an earlier try may have been done; {UNKNOWN}")
            self._fail(draft, e)
        else:
            draft.wake()
