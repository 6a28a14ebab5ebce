"""What a program has to send to one topic at the same time goes together.

The first message goes at once, and so does a second. What comes while two are under way waits, and goes as
one batch as soon as an answer is there. So nothing is delayed for the sake of a batch, and the more senders
there are, the more messages share a write, a record in the topic's log, and an answer.

**Each message is answered as if it were alone.** It has its own idempotency key, and its own id, `dup` or
error. A batch counts all or none; if it is refused, its messages are sent one by one, so that each is told
what is wrong with it and none suffers for another. A lost answer is asked for again, with the same keys.

**Messages of one key** are sent in the order of the calls. While one of them waits to be sent again, later
ones of that key wait behind it, and no others.

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
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
from warren.mount.file import File
from warren.mount.sdk.patience import UNKNOWN, Tries, code, unsure
from warren.mount.sdk.wire import ask, exchange, opened

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

SAFE: Final = 240.0
AT_ONCE: Final = 2  # batches under way: while one is written to the disk, the other is on its way
BATCH: Final = 32  # messages that a topic takes at once, of so many bytes together
BATCH_BYTES: Final = 512 << 10
_LINES: Final = 8192
_SAID: Final = re.compile(r"id=(\S*) seq=(\d+) dup=([01])")


class Sent(NamedTuple):
    """What became of a message: its id and number, and whether an earlier try had sent it.

    Who may write `send.h` and not read it is told nothing: the id is then empty, and the message is sent.
    """

    id: str
    seq: int
    dup: bool


class Draft:
    """A message that somebody waits for."""

    __slots__ = ("body", "error", "head", "idem", "key", "limit", "sent", "task", "until")

    def __init__(self, idem: str, key: str, head: bytes, body: bytes, limit: float) -> None:
        self.idem, self.key, self.head, self.body = idem, key, head, body
        self.limit = limit
        self.until = trio.current_time() + limit
        self.sent: Sent | None = None
        self.error: OSError | None = None
        self.task: trio.lowlevel.Task | None = None

    def within(self, limit: float) -> None:
        """It is to be done in so many seconds."""
        self.until += limit - self.limit
        self.limit = limit

    def wake(self) -> None:
        """It is known what became of it."""
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


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
            return trio.lowlevel.Abort.SUCCEEDED

        self._go()
        self._waiting.append(draft)
        draft.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        if draft.error is not None:
            raise draft.error
        assert draft.sent is not None
        return draft.sent

    # Together

    def _go(self) -> None:
        if self._pumps < AT_ONCE:
            self.node.background.start_soon(self._pump)
            self._pumps += 1

    async def _pump(self) -> None:
        """Send what waits, and what comes meanwhile."""
        batch: list[Draft] = []
        try:
            while batch := self._next():
                for chain in await self._deliver(batch):
                    self._chains += 1
                    self.node.background.start_soon(self._one_by_one, *chain)
        finally:
            self._pumps -= 1
            self._leave(batch)

    def _leave(self, left: Sequence[Draft]) -> None:
        """If anything is still here, the node was left, and nobody sees to it any more."""
        for draft in left:
            if draft.sent is None and draft.error is None:
                self._fail(draft, _lost(self.path, UNKNOWN))
        if self.idle:
            while self._waiting:
                self._fail(self._waiting.popleft(), _lost(self.path, "it was not sent"))

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
                text = f"not done within {draft.limit:g} s; it was not sent"
                self._fail(draft, TimeoutError(errno.ETIMEDOUT, text, self.path))
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

        async def work(tries: Tries) -> list[Sent]:
            nonlocal last
            last = tries
            return await self._ship(batch, tries)

        try:
            answers = await self.node.do(self.path, work, deadline=batch[-1].until - trio.current_time())
            for draft, sent in zip(batch, answers, strict=True):
                draft.sent = sent
                draft.wake()
        except _Refused:
            return [(chain, last is not None and last.unsure) for chain in _chains(batch)]
        except OSError as e:
            for draft in batch:
                self._fail(draft, _same(e))
        self._held.difference_update([draft.key for draft in batch if draft.key])
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
        parts: list[bytes] = [b"batch=%d " % len(batch)] if len(batch) > 1 else []
        for draft in batch:
            parts += (draft.head, draft.body)
        data = b"".join(parts)
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            await file.pwrite(data, 0)
            return [Sent("", 0, False)] * len(batch)
        lines = (await exchange(file, data, _LINES)).decode()
        said = [Sent(id, int(seq), dup == "1") for id, seq, dup in _SAID.findall(lines)]
        if len(said) != len(batch):
            raise OSError(errno.EBADMSG, f"{len(said)} of {len(batch)} messages were answered", self.path)
        return said

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
            draft.sent = await alone(self.node, self.path, draft)
        except OSError as e:
            if before:
                e.add_note(f"an earlier try may have been done; {UNKNOWN}")
            self._fail(draft, e)
        else:
            draft.wake()


async def alone(node: Node, path: str, draft: Draft) -> Sent:
    """Send one message by itself. Cancelled: it was sent, or not."""

    async def work(tries: Tries) -> Sent:
        told = await ask(node, path, draft.head + draft.body)
        return Sent(told.get("id", ""), int(told.get("seq", "0")), told.get("dup") == "1")

    return await node.do(path, work, deadline=max(draft.until - trio.current_time(), 0.0))


def _chains(batch: Sequence[Draft]) -> list[list[Draft]]:
    """Those of each key, in their order; each without a key by itself."""
    keyed: dict[str, list[Draft]] = {}
    for draft in batch:
        if draft.key:
            keyed.setdefault(draft.key, []).append(draft)
    return [*keyed.values(), *([draft] for draft in batch if not draft.key)]


def _lost(path: str, outcome: str) -> OSError:
    return ConnectionResetError(errno.ECONNRESET, f"the node was left; {outcome}", path)


def _same(e: OSError) -> OSError:
    """E for one more who waits: what one does to it does not concern the other."""
    copy = type(e)(e.errno, e.strerror, e.filename)
    for note in getattr(e, "__notes__", ()):
        copy.add_note(note)
    copy.__cause__ = e
    return copy
