"""A machine's console: what it said, from the oldest byte that is kept, and what people type. And its events.

A reader begins at the oldest byte and its stream ends when the machine has; one that was too slow finds one
line `lost n=BYTES` in place of what it missed. What is written goes to the machine as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from warren.tree import Bytes, Caller, Cursor, Handle, Maybe, Refused, Stream
from warren.tree.report import Events
from warren.tree.stream import Ended, RingCursor, StreamHandle, WouldBlock

KEPT: Final = 256 << 10
PIECE: Final = 32 << 10

Type = Callable[[bytes], Awaitable[None]]


class Console(Stream):
    """The file, and what is kept for it. TYPE takes what is written."""

    mode = 0o600

    def __init__(self, type: Type, kept: int = KEPT) -> None:
        super().__init__(lambda: ConsoleCursor(self))
        self.type, self.limit = type, kept
        self.data = bytearray()
        self.base = 0  # the number of the oldest byte
        self.over = False
        self._news = trio.lowlevel.ParkingLot()

    @property
    def end(self) -> int:
        """How many bytes there were."""
        return self.base + len(self.data)

    def append(self, data: bytes) -> None:
        self.data += data
        if (extra := len(self.data) - self.limit) > 0:
            del self.data[:extra]
            self.base += extra
        self._news.unpark_all()

    def close(self) -> None:
        """The machine has ended: there will be no more."""
        self.over = True
        self._news.unpark_all()

    async def wait(self) -> None:
        await self._news.park()

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return ConsoleHandle(self)


class ConsoleCursor(Cursor):
    def __init__(self, console: Console) -> None:
        self.console, self.at = console, console.base

    def next_nowait(self) -> bytes:
        console = self.console
        if (missed := console.base - self.at) > 0:
            self.at = console.base
            return b"lost n=%d\n" % missed
        start = self.at - console.base
        piece = bytes(console.data[start : start + PIECE])
        if not piece:
            raise Ended if console.over else WouldBlock
        self.at += len(piece)
        return piece

    async def next(self) -> bytes:
        while True:
            try:
                return self.next_nowait()
            except WouldBlock:
                await self.console.wait()


class ConsoleHandle(StreamHandle):
    """An open console."""

    def __init__(self, console: Console) -> None:
        super().__init__(ConsoleCursor(console))
        self.console = console

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if self.console.over:
            raise Refused(409, "the machine has ended")
        return self._typed(bytes(data))

    async def _typed(self, data: bytes) -> int:
        await self.console.type(data)
        return len(data)


class History(Events):
    """The events of something that ends: a reader begins at the oldest record kept, and its stream ends when
    there will be no further one."""

    over = False

    def close(self) -> None:
        self.over = True
        self._news.unpark_all()

    def __call__(self) -> Cursor:
        return HistoryCursor(self)


class HistoryCursor(RingCursor):
    def __init__(self, history: History) -> None:
        super().__init__(history, history.first)
        self.history = history

    def next_nowait(self) -> bytes:
        try:
            return super().next_nowait()
        except WouldBlock:
            if self.history.over:
                raise Ended from None
            raise
