"""Readers that wait for a message, and whose turn it is.

Fair between subjects, then the oldest reader: the subject that was served longest ago comes first, however
many readers another one has. A subject takes its place when its first reader comes to wait, so one that
takes a message and comes back at once stands behind those who waited meanwhile.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import trio
from warren.servers.mailbox.queue import Kept
from warren.servers.mailbox.words import Options
from warren.store import Batch
from warren.store import Reader as Waiting
from warren.tree import Refused


class Taken(NamedTuple):
    """What a reader was given: each with its attempt and the place of its body, under one lease."""

    messages: list[tuple[Kept, int, int, int]]  # attempt, seq and index
    lease: str
    until: float
    batch: Batch


class Reader(Waiting):
    """One open of `recv` that is being read."""

    __slots__ = ("group", "options", "taken")

    def __init__(self, group: str, subject: str, options: Options) -> None:
        super().__init__(subject)
        self.group, self.options = group, options
        self.taken: Taken | None = None


class Line:
    """Who waits at one queue."""

    def __init__(self) -> None:
        self._subjects: dict[str, deque[Reader]] = {}  # the one served longest ago first

    def __len__(self) -> int:
        return sum(map(len, self._subjects.values()))

    def __bool__(self) -> bool:
        return bool(self._subjects)

    async def wait(self, reader: Reader) -> None:
        """Wait for `wake`. Cancelled: it waits no more and was given nothing."""
        reader.task = trio.lowlevel.current_task()
        self._subjects.setdefault(reader.subject, deque()).append(reader)

        def abort(_: object) -> trio.lowlevel.Abort:
            reader.task = None
            self.leave(reader)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def leave(self, reader: Reader) -> None:
        """Out of turn."""
        readers = self._subjects.get(reader.subject)
        if readers is not None and reader in readers:
            readers.remove(reader)
            if not readers:
                del self._subjects[reader.subject]

    def next(self) -> Reader:
        """Whose turn it is; its subject goes to the end."""
        subject, readers = next(iter(self._subjects.items()))
        del self._subjects[subject]
        reader = readers.popleft()
        if readers:
            self._subjects[subject] = readers
        return reader

    def end(self, error: Refused) -> None:
        """Nobody will get anything here any more."""
        while self:
            reader = self.next()
            reader.error = error
            reader.wake()
