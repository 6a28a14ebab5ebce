"""A message that is to be sent, and what becomes of it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import trio


class Sent(NamedTuple):
    """What became of a message: its id and number, and whether an earlier try had sent it.

    Who may write `send.h` and not read it is told nothing: the id is then empty, and the message is sent.
    """

    id: str
    seq: int
    dup: bool


class Draft:
    """A message that somebody waits for."""

    __slots__ = ("body", "error", "head", "idem", "key", "limit", "made", "sent", "task", "until")

    def __init__(self, idem: str, key: str, head: bytes, body: bytes, limit: float, made: bool) -> None:
        self.idem, self.key, self.head, self.body = idem, key, head, body
        self.made = made  # the idempotency key, by us; and nobody was told it
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


D = TypeVar("D", bound=Draft)


def chains(batch: Sequence[D]) -> list[list[D]]:
    """Those of each key, in their order; each without a key by itself."""
    keyed: dict[str, list[D]] = {}
    for draft in batch:
        if draft.key:
            keyed.setdefault(draft.key, []).append(draft)
    return [*keyed.values(), *([draft] for draft in batch if not draft.key)]


def lost(path: str, outcome: str) -> OSError:
    """What is said to those who still wait when a node is left."""
    return ConnectionResetError(errno.ECONNRESET, f"the node was left; {outcome}", path)


def same(e: OSError) -> OSError:
    """E for one more who waits: what one does to it does not concern the other."""
    copy = type(e)(e.errno, e.strerror, e.filename)
    for note in getattr(e, "__notes__", ()):
        copy.add_note(note)
    copy.__cause__ = e
    return copy
