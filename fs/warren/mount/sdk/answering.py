"""What a process says to one `ack`: done, not done, longer. Together, as `together` has it.

An answer names its lease, so one whose reply was lost is given again: while the lease lives, 409 says then
that the earlier try was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import trio
from warren.mount.file import File
from warren.mount.sdk.drafts import Draft, Sent
from warren.mount.sdk.patience import Tries, done_before
from warren.mount.sdk.together import Together
from warren.mount.sdk.wire import tell

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

_TAKEN: Final = Sent("", 0, False)


class Line(Draft):
    """One line that somebody waits for."""

    __slots__ = ("good",)

    def __init__(self, key: str, line: str, limit: float, good: float) -> None:
        super().__init__("", key, f"{line}\n".encode(), b"", limit, made=False)
        self.good = good  # until when the lease lives that it ends


class Answers(Together[Line]):
    """What is under way to one `ack`."""

    most: ClassVar[int] = 256

    def __init__(self, node: Node, path: str) -> None:
        super().__init__(node, path, node.patience.deadline)

    async def say(self, id: str, line: str, good: float, limit: float | None = None) -> None:
        """One LINE about the message ID, which ends a lease that lives until GOOD (see `done_before`).
        Cancelled: it was taken, or not.

        With a LIMIT of its own it goes alone.
        """
        said = Line(id, line, self.limit if limit is None else limit, good)
        await (self.send(said) if limit is None else self.alone(said))

    async def _write(self, file: File, batch: list[Line]) -> list[Sent]:
        await file.pwrite(b"".join([line.head for line in batch]), 0)
        return [_TAKEN] * len(batch)

    def _settled(self, draft: Line, e: OSError, tries: Tries) -> Sent | None:
        return _TAKEN if done_before(e, tries, draft.good) else None

    async def alone(self, draft: Line, before: bool = False) -> Sent:
        async def work(tries: Tries) -> Sent:
            tries.unsure = tries.unsure or before
            try:
                await tell(self.node, self.path, draft.head)
            except OSError as e:
                if self._settled(draft, e, tries) is None:
                    raise
            return _TAKEN

        return await self.node.do(self.path, work, deadline=max(draft.until - trio.current_time(), 0.0))
