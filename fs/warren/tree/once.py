"""An open file that gives one thing, which it waits for, and then the end of the file.

    class RecvHandle(Once):
        def _told(self, data): ...          options, which come before the first read
        async def _wanted(self) -> bytes    wait for it. Cancelled: nothing was taken

A kernel keeps no offsets for streams, so a read at the offset of the first one goes on where the last one
ended; a read beyond is taken at its word, because clients ask for several pieces at once. Options that were
written before may have moved the position.

`given` says how much was read without a gap; `read_whole` whether that is all of it. What a handle that
closes early does with the rest is for the kind to say.
"""

from __future__ import annotations

from typing import Final

import trio
from warren.tree.errors import Refused
from warren.tree.node import Bytes, Handle, Maybe

AHEAD: Final = 256  # pieces read out of order that are noted


class Once(Handle):
    """One thing an open."""

    record = True
    parks = True
    tells = True

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.given = 0  # bytes that were read, without a gap
        self.began = False
        self.base = 0  # where reading begins: behind the options, for those who count on from there
        self._ahead: list[tuple[int, int]] = []  # pieces that were read before those in front of them
        self._taking = False
        self._others = trio.lowlevel.ParkingLot()

    def _told(self, data: bytes) -> None:
        """Options."""
        raise NotImplementedError

    async def _wanted(self) -> bytes:
        """Wait for it. Cancelled: nothing was taken."""
        raise NotImplementedError

    def _again(self) -> bool:
        """Whether who writes options once more gets another thing; then nothing is left of the one before."""
        return False

    @property
    def read_whole(self) -> bool:
        """Whether all of it was read; there may have been nothing to wait for."""
        return self.data is not None and self.given >= len(self.data)

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if self.began:
            if not self._again():
                raise Refused(409, "this open was read already; options come before the first read")
            self.data, self.given, self.began, self.base = None, 0, False, 0
            self._ahead.clear()
        self._told(bytes(data))
        self.base = offset + len(data)
        return len(data)

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        if not self.began:
            self.began, self.base = True, self.base if offset == self.base else 0
        return self._take(offset, count) if self.data is None else self._piece(offset, count)

    def _piece(self, offset: int, count: int) -> bytes:
        assert self.data is not None
        at = offset - self.base if offset > self.base else self.given
        piece = self.data[at : at + count]
        if piece and len(self._ahead) < AHEAD:
            self._ahead.append((at, at + len(piece)))
            self._ahead.sort()
        while self._ahead and self._ahead[0][0] <= self.given:
            self.given = max(self.given, self._ahead.pop(0)[1])
        return piece

    async def _take(self, offset: int, count: int) -> bytes:
        while self.data is None:
            if self._taking:
                await self._others.park()
                continue
            self._taking = True
            try:
                self.data = await self._wanted()
            finally:
                self._taking = False
                self._others.unpark_all()
        return self._piece(offset, count)  # no checkpoint since it was taken
