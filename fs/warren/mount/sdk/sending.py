"""What a program has to send to one topic at the same time goes together.

The first message goes at once, and so does a second. What comes while two are under way waits, and goes as
one batch as soon as an answer is there. So nothing is delayed for the sake of a batch, and the more senders
there are, the more messages share a write, a record in the topic's log, and an answer.

**Each message is answered as if it were alone.** It has its own idempotency key, and its own id, `dup` or
error. A batch counts all or none; if it is refused, its messages are sent one by one, so that each is told
what is wrong with it and none suffers for another. A lost answer is asked for again, with the same keys.

**Messages of one key** are sent in the order of the calls. While one of them waits to be sent again, later
ones of that key wait behind it, and no others.

**A key that was made here is forgotten** by the topic when a later message says that its answer was heard,
which is said only where no try of it was lost. A key that was given, or told in an error, is not.

A message with a deadline of its own goes alone. The file is kept open from one batch to the next.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections import deque
from collections.abc import Sequence
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final

import trio
from warren.mount.file import File
from warren.mount.sdk.drafts import Draft, Sent, chains, lost, same
from warren.mount.sdk.patience import UNKNOWN, Tries, code, unsure
from warren.mount.sdk.wire import ask, exchange, opened

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

SAFE: Final = 240.0
AT_ONCE: Final = 2  # batches under way: while one is written to the disk, the other is on its way
BATCH: Final = 32  # messages that a topic takes at once, of so many bytes together
BATCH_BYTES: Final = 512 << 10
HEARD: Final = 1024  # answers that were heard and not told yet
TOLD: Final = 2 * BATCH  # of those that are told at once, so that what was left over goes too
_LINES: Final = 8192
_SAID: Final = re.compile(r"id=(\S*) seq=(\d+) dup=([01])")


class _Refused(Exception):
    """A batch was refused: nothing of it was done."""


class Sender:
    """What is under way to one `send.h`."""

    def __init__(self, node: Node, path: str) -> None:
        self.node, self.path = node, path
        self.limit = min(SAFE, node.patience.deadline)
        self._names, self._numbers = secrets.token_hex(16), count()
        self._waiting: deque[Draft] = deque()
        self._held: set[str] = set()  # keys of which some are under way
        self._heard: deque[str] = deque(maxlen=HEARD)
        self._under: list[list[Draft]] = []  # batches under way
        self._given_up = 0  # of those that wait, about
        self._watching = False
        self._handing = False
        self._pumps = 0
        self._chains = 0

    def name(self) -> str:
        """A new idempotency key."""
        return f"{self._names}.{next(self._numbers)}"

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._pumps and not self._chains

    async def send(self, draft: Draft) -> Sent:
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
        if self._given_up > BATCH and 2 * self._given_up > len(self._waiting):
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

    def _late(self, draft: Draft, now: float, outcome: str) -> None:
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
        batch: list[Draft] = []
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

    def _leave(self, left: Sequence[Draft]) -> None:
        """If anything is still here, the node was left, and nobody sees to it any more."""
        for draft in left:
            if draft.sent is None and draft.error is None:
                self._fail(draft, lost(self.path, UNKNOWN))
        if self.idle:
            while self._waiting:
                self._fail(self._waiting.popleft(), lost(self.path, "it was not sent"))

    def _next(self) -> list[Draft]:
        """What goes together next. What its sender gave up meanwhile is left out."""
        batch: list[Draft] = []
        behind: list[Draft] = []
        held = self._held
        room, now = BATCH_BYTES, trio.current_time()
        while self._waiting and len(batch) < BATCH:
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

    async def _deliver(self, batch: list[Draft]) -> list[tuple[list[Draft], bool]]:
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
            if last is not None and not last.unsure:
                self._hear(batch, answers)
            for draft, sent in zip(batch, answers, strict=True):
                draft.sent = sent
                draft.wake()
            # What they send next is on its way before others are answered, so we and the node work in turns.
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._handing = False
        except _Refused:
            self._held.difference_update(keys - {draft.key for draft in batch})
            return [(chain, last is not None and last.unsure) for chain in chains(batch)]
        except OSError as e:
            for draft in batch:
                self._fail(draft, same(e))
        self._held.difference_update(keys)
        return []

    async def _ship(self, batch: list[Draft], tries: Tries) -> list[Sent]:
        """One try. Raises _Refused if nothing was done and the messages may fare better alone."""
        shelf = self.node.shelf
        used = shelf.take(self.path)
        file = used or await opened(self.node, self.path)
        try:
            said = await self._write(file, batch)
        except ConnectionError:
            shelf.drop(file)
            if used is None:
                raise
            # It may have been lost long ago. With its keys the same batch does no harm.
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

    async def _write(self, file: File, batch: list[Draft]) -> list[Sent]:
        heard = self._told()
        parts = [b"batch=%d " % len(batch)] if len(batch) > 1 else []
        if heard:
            parts.append(f"heard={','.join(heard)} ".encode())
        for draft in batch:
            parts += (draft.head, draft.body)
        try:
            return await self._asked(file, b"".join(parts), batch)
        except OSError as e:
            if not unsure(e):
                self._heard.extendleft(reversed(heard))  # nothing was done, that neither
            raise

    async def _asked(self, file: File, data: bytes, batch: list[Draft]) -> list[Sent]:
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            await file.pwrite(data, 0)
            return [Sent("", 0, False)] * len(batch)
        lines = (await exchange(file, data, _LINES)).decode()
        said = [Sent(id, int(seq), dup == "1") for id, seq, dup in _SAID.findall(lines)]
        if len(said) != len(batch):
            raise OSError(errno.EBADMSG, f"{len(said)} of {len(batch)} messages were answered", self.path)
        return said

    def _told(self) -> list[str]:
        """Some of the keys whose answers were heard, to be said with what goes next."""
        heard = self._heard
        return [heard.popleft() for _ in range(min(len(heard), TOLD))]

    def _hear(self, batch: Sequence[Draft], answers: Sequence[Sent]) -> None:
        """They were answered, and no try of them is on its way: nobody will ask for their keys again."""
        made = [(draft, sent) for draft, sent in zip(batch, answers, strict=True) if draft.made]
        self._heard.extend([draft.idem for draft, sent in made if draft.error is None and not sent.dup])

    def _fail(self, draft: Draft, e: OSError) -> None:
        e.add_note(f"idem={draft.idem}")
        draft.error = e
        draft.wake()

    # One by one

    async def _one_by_one(self, chain: Sequence[Draft], before: bool) -> None:
        """Messages of one key, or one without. BEFORE: an earlier try may have sent them."""
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

    async def _one(self, draft: Draft, before: bool) -> None:
        try:
            await self.alone(draft, before)
        except OSError as e:
            if before:
                e.add_note(f"an earlier try may have been done; {UNKNOWN}")
            self._fail(draft, e)
        else:
            draft.wake()


    async def alone(self, draft: Draft, before: bool = False) -> Sent:
        """Send one message by itself; BEFORE as above. Cancelled: it was sent, or not."""

        async def work(tries: Tries) -> Sent:
            heard = self._told()
            head = f"heard={','.join(heard)} ".encode() + draft.head if heard else draft.head
            try:
                told = await ask(self.node, self.path, head + draft.body)
            except OSError as e:
                if not unsure(e):
                    self._heard.extendleft(reversed(heard))
                raise
            draft.sent = Sent(told.get("id", ""), int(told.get("seq", "0")), told.get("dup") == "1")
            if not before and not tries.unsure:
                self._hear([draft], [draft.sent])
            return draft.sent

        return await self.node.do(self.path, work, deadline=max(draft.until - trio.current_time(), 0.0))
