"""Streams: blocking reads, one record each.

**A reader is a cursor, not a generator.** A cancelled async generator is finished for good; a
cursor whose `next` was cancelled has taken nothing and can be asked again.

    class Cursor:
        next_nowait() -> bytes      raises WouldBlock, or Ended
        async next() -> bytes       Cancelled means nothing was taken
        seek(seq)                   `from <seq>` was written before the first read

Two sources cover most servers:

    Ring     every reader sees every record; the oldest are overwritten. A reader that lagged finds one
             `lost n=<k>` in place of what it missed: a loss is visible, in band.
    Queue    every record goes to one reader. Full means `refuse` (429, the default, for a blocked write
             cannot be killed by some callers), `drop` (oldest first, counted) or `block`.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

import trio
from warren.tree.errors import Refused
from warren.tree.node import STREAM, Bytes, Caller, Changes, Handle, Maybe, Node

WouldBlock = trio.WouldBlock


class Ended(Exception):
    """There will be no further record: the read returns 0 bytes."""


class Cursor:
    """One reader's place in a stream."""

    def next_nowait(self) -> bytes:
        """The next record, or raises WouldBlock, or Ended."""
        raise WouldBlock

    async def next(self) -> bytes:
        """The next record, waiting for it. Cancelled means nothing was taken."""
        raise NotImplementedError

    def seek(self, seq: int) -> None:
        """Begin at record SEQ."""
        raise Refused(405, "this stream cannot be sought")

    def close(self) -> None:
        """The reader is gone. Must not fail and must not wait."""


class Stream(Node):
    """A file whose reads wait for records: `start` makes a cursor for each open."""

    mode = 0o400
    swallows_truncate = True
    word = STREAM

    def __init__(self, start: Callable[[], Cursor]) -> None:
        self.start = start

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return StreamHandle(self.start())

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class StreamHandle(Handle):
    """An open stream: one record a read, the rest of a long one in the reads that follow.

    A kernel client goes on asking inside one read(2) until the caller's buffer is full. Such a
    continuation (offset and count moved by exactly what was given) is answered with nothing, so
    that `cat` shows each record as it comes. Offsets mean nothing else here. Linux 6.12 sends one
    even where the file was opened with O_NONBLOCK, which older kernels take as "one record".
    """

    record = True
    parks = True
    tells = True

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.rest: bytes = b""
        self.began = False
        self.follows: tuple[int, int] | None = None

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        if (offset, count) == self.follows and not self.rest:
            self.follows = None
            return b""
        if self.rest:
            return self._give(self.rest, offset, count)
        self.began = True
        try:
            return self._give(self.cursor.next_nowait(), offset, count)
        except WouldBlock:
            return self._wait(offset, count)
        except Ended:
            return b""

    async def _wait(self, offset: int, count: int) -> Bytes:
        try:
            record = await self.cursor.next()
        except Ended:
            return b""
        return self._give(record, offset, count)  # no checkpoint since the take

    def _give(self, record: bytes, offset: int, count: int) -> bytes:
        piece, self.rest = record[:count], record[count:]
        self.follows = (offset + len(piece), count - len(piece))
        return piece

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        words = bytes(data).split()
        if len(words) != 2 or words[0] != b"from" or not words[1].isdigit():
            raise Refused(400, "a stream takes only: from SEQ")
        if self.began:
            raise Refused(409, "the first record was read already; open the stream again to seek")
        self.cursor.seek(int(words[1]))
        return len(data)

    def close(self) -> None:
        self.cursor.close()

    def abandon(self) -> None:
        self.cursor.close()


class Ring:
    """A bounded history that every reader sees whole, or is told what it missed."""

    def __init__(self, depth: int = 1024) -> None:
        self.depth = depth
        self.seq = 0
        self.kept: deque[bytes] = deque(maxlen=depth)
        self._news = trio.lowlevel.ParkingLot()

    @property
    def first(self) -> int:
        """Sequence number of the oldest record kept."""
        return self.seq - len(self.kept) + 1

    def append(self, record: bytes) -> int:
        """Add a record and wake every reader; returns its sequence number."""
        self.seq += 1
        self.kept.append(record)
        self._news.unpark_all()
        return self.seq

    def __call__(self) -> Cursor:
        """A cursor that begins with the next record."""
        return RingCursor(self, self.seq + 1)

    async def wait(self) -> None:
        await self._news.park()


class RingCursor(Cursor):
    def __init__(self, ring: Ring, at: int) -> None:
        self.ring = ring
        self.at = at

    def next_nowait(self) -> bytes:
        if self.at > self.ring.seq:
            raise WouldBlock
        if (missed := self.ring.first - self.at) > 0:
            self.at = self.ring.first
            return f"lost n={missed}\n".encode()
        record = self.ring.kept[self.at - self.ring.first]
        self.at += 1
        return record

    async def next(self) -> bytes:
        while True:
            try:
                return self.next_nowait()
            except WouldBlock:
                await self.ring.wait()

    def seek(self, seq: int) -> None:
        if seq > self.ring.seq + 1:
            raise Refused(416, f"the newest record is {self.ring.seq}")
        self.at = max(seq, 1)


class Queue:
    """Records that each go to one reader."""

    def __init__(self, depth: int, full: Literal["refuse", "drop", "block"] = "refuse") -> None:
        self.depth = depth
        self.full = full
        self.kept: deque[bytes] = deque()
        self.lost = 0
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    def put(self, record: bytes) -> Maybe[None]:
        """Add a record; what happens when full was declared. Cancelled means it was not added."""
        if len(self.kept) >= self.depth:
            if self.full == "refuse":
                raise Refused(429, f"{self.depth} records wait to be read", retry_after=1)
            if self.full == "block":
                return self._put_later(bytes(record))
            self.kept.popleft()
            self.lost += 1
        self._add(bytes(record))
        return None

    async def _put_later(self, record: bytes) -> None:
        while len(self.kept) >= self.depth:
            await self._writers.park()
        self._add(record)

    def _add(self, record: bytes) -> None:
        self.kept.append(record)
        self._readers.unpark()

    def __call__(self) -> Cursor:
        return QueueCursor(self)


class QueueCursor(Cursor):
    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def next_nowait(self) -> bytes:
        queue = self.queue
        if queue.lost:
            n, queue.lost = queue.lost, 0
            return f"lost n={n}\n".encode()
        if not queue.kept:
            raise WouldBlock
        record = queue.kept.popleft()
        queue._writers.unpark()
        return record

    async def next(self) -> bytes:
        while True:
            try:
                return self.next_nowait()
            except WouldBlock:
                pass
            try:
                await self.queue._readers.park()
            except trio.Cancelled:
                # A record may have come for us while we were being cancelled: wake the next in line.
                if self.queue.kept:
                    self.queue._readers.unpark()
                raise
