"""The messages that a process sends to one topic, together as `together` has it.

Each message has its own idempotency key, and its own id, `dup` or error. A lost answer is asked for again
with the same keys, so it does no harm.

**A key that was made here is forgotten** by the topic when a later message says that its answer was heard,
which is said only where no try of it was lost. A key that was given, or told in an error, is not.

A message with a deadline of its own goes alone.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

import trio
from warren.mount.file import File
from warren.mount.sdk.drafts import Draft, Sent
from warren.mount.sdk.patience import Tries, unsure
from warren.mount.sdk.together import Together
from warren.mount.sdk.wire import ask, exchange, number
from warren.tree.headers import HEAD

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

SAFE: Final = 240.0
HEARD: Final = 1024  # answers that were heard and not told yet
TOLD: Final = 2 * Together.most  # of those that are told at once, so that what was left over goes too
_NAME: Final = 54  # bytes of a key that was made here, and of a comma, at most
_BESIDE: Final = len(b"batch=32 heard= ")
_LINES: Final = 8192
_SAID: Final = re.compile(r"id=(\S*) seq=([0-9]{1,15}) dup=([01])\n")


class Sender(Together[Draft]):
    """What is under way to one `send.h`."""

    def __init__(self, node: Node, path: str) -> None:
        super().__init__(node, path, min(SAFE, node.patience.deadline))
        self._names, self._numbers = secrets.token_hex(16), count()
        self._heard: deque[str] = deque(maxlen=HEARD)

    def name(self) -> str:
        """A new idempotency key."""
        return f"{self._names}.{next(self._numbers)}"

    async def _write(self, file: File, batch: list[Draft]) -> list[Sent]:
        heard = self._told(batch[0])
        parts = [b"batch=%d " % len(batch)] if len(batch) > 1 else []
        if heard:
            parts.append(_hearing(heard))
        for draft in batch:
            parts += (draft.head, draft.body)
        try:
            return await self._asked(file, b"".join(parts), batch)
        except OSError as e:
            self._untold(heard, e)
            raise

    async def _asked(self, file: File, data: bytes, batch: list[Draft]) -> list[Sent]:
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            await file.pwrite(data, 0)
            return [Sent("", 0, False)] * len(batch)
        lines = (await exchange(file, data, _LINES)).decode("utf-8", "replace")
        said = [Sent(id, int(seq), dup == "1") for id, seq, dup in _SAID.findall(lines)]
        if len(said) != len(batch):
            raise OSError(errno.EBADMSG, f"{len(said)} of {len(batch)} messages were answered", self.path)
        return said

    async def alone(self, draft: Draft, before: bool = False) -> Sent:
        async def work(tries: Tries) -> Sent:
            heard = self._told(draft)
            try:
                told = await ask(self.node, self.path, _hearing(heard) + draft.head + draft.body)
            except OSError as e:
                self._untold(heard, e)
                raise
            seq = number(told, "seq") if told else 0
            sent = Sent(told.get("id", ""), seq, told.get("dup") == "1")
            if not before and not tries.unsure:
                self._done([draft], [sent])
            return sent

        return await self.node.do(self.path, work, deadline=max(draft.until - trio.current_time(), 0.0))

    def _fail(self, draft: Draft, e: OSError) -> None:
        e.add_note(f"idem={draft.idem}")
        super()._fail(draft, e)

    # Which answers came

    def _done(self, batch: Sequence[Draft], answers: Sequence[Sent]) -> None:
        """Nobody will ask for their keys again."""
        made = [(draft, sent) for draft, sent in zip(batch, answers, strict=True) if draft.made]
        self._heard.extend([draft.idem for draft, sent in made if draft.error is None and not sent.dup])

    def _told(self, first: Draft) -> list[str]:
        """Some of the keys whose answers were heard, to be said with what goes next: as many as there is room
        for in the head of its first message."""
        heard, room = self._heard, HEAD - len(first.head) - _BESIDE
        return [heard.popleft() for _ in range(min(len(heard), TOLD, max(room // _NAME, 0)))]

    def _untold(self, heard: list[str], e: OSError) -> None:
        if not unsure(e):
            self._heard.extendleft(reversed(heard))  # nothing was done, that neither


def _hearing(heard: Sequence[str]) -> bytes:
    return f"heard={','.join(heard)} ".encode() if heard else b""
