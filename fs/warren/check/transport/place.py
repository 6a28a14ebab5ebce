"""What the checks of a transport serve, and how they speak without a client of ours.

`Yard` is a tree whose files say who waits at them, so that a check waits for the thing itself and
never for time to pass. `Raw` sends and receives frames on a bare byte channel.
"""

import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from warren.auth.rights import Policy
from warren.check.tree.place import ALL
from warren.mount import Files
from warren.p9.client import Call, Client
from warren.p9.fields import NOFID
from warren.p9.messages import WARREN, Message
from warren.serve.export import Export
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Bytes, Cursor, Dir, File, Handle, Lock, Refused, Ring, Sink, Stream, Text, WouldBlock

Attaching = Callable[[Export], AbstractAsyncContextManager[Files]]
Channel = Callable[[Export], AbstractAsyncContextManager[trio.abc.Stream]]
BULK = (4 << 20) + 17
NUMBERS = 64


def noise(seed: int, size: int = BULK) -> bytes:
    """Bytes that no accident makes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def digest(data: Bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class News:
    """Somebody came or went."""

    def __init__(self) -> None:
        self._readers = trio.lowlevel.ParkingLot()

    def tell(self) -> None:
        self._readers.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._readers.park()


class Source:
    """Records that each go to one reader, and how many readers wait."""

    def __init__(self, news: News) -> None:
        self.news = news
        self.kept: deque[bytes] = deque()
        self.waiting = 0
        self._more = trio.lowlevel.ParkingLot()

    def put(self, record: bytes) -> None:
        self.kept.append(record)
        self._more.unpark_all()

    async def wait(self) -> None:
        self.waiting += 1
        self.news.tell()
        try:
            await self._more.park()
        finally:
            self.waiting -= 1
            self.news.tell()


class Tap(Cursor):
    """A reader of a source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def next_nowait(self) -> bytes:
        if not self.source.kept:
            raise WouldBlock
        return self.source.kept.popleft()

    async def next(self) -> bytes:
        while True:
            try:
                return self.next_nowait()
            except WouldBlock:
                await self.source.wait()


class Slow:
    """A value that is only known when `gate` opens."""

    def __init__(self, news: News) -> None:
        self.news = news
        self.gate = trio.Event()
        self.waiting = 0

    async def get(self) -> str:
        self.waiting += 1
        self.news.tell()
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
            self.news.tell()
        return "at last"


class Bulk(File):
    """Some megabytes, the largest read and write there were, and one exclusive lock."""

    def __init__(self, news: News) -> None:
        super().__init__(self._read, self._write, lambda: len(self.data), self._truncate)
        self.news = news
        self.data = bytearray()
        self.largest_read = self.largest_write = 0
        self.holder: tuple[int, str, int] | None = None
        self.waiting = 0

    def _read(self, offset: int, count: int) -> bytes:
        self.largest_read = max(self.largest_read, count)
        return bytes(self.data[offset : offset + count])

    def _write(self, offset: int, data: Bytes) -> int:
        self.largest_write = max(self.largest_write, len(data))
        if offset + len(data) > 4 * BULK:
            raise Refused(413, "this is more than any check writes")
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data
        self.news.tell()
        return len(data)

    def _truncate(self, size: int) -> None:
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))

    def lock(self, lock: Lock) -> bool:
        if self.holder not in (None, lock.owner):
            return False
        self.holder = lock.owner
        return True

    async def wait_lock(self, lock: Lock) -> None:
        self.waiting += 1
        self.news.tell()
        try:
            await self.news.until(lambda: self.holder is None)
            self.holder = lock.owner
        finally:
            self.waiting -= 1
            self.news.tell()

    def unlock(self, lock: Lock) -> None:
        if self.holder == lock.owner:
            self.holder = None
            self.news.tell()


class Leaving(Text):
    """A file whose handles say when a connection took them along."""

    def __init__(self, news: News) -> None:
        super().__init__(lambda: "here")
        self.news = news
        self.left = 0

    def open(self, flags: int, caller: object) -> Handle:
        place = self

        class Open(Handle):
            def read(self, offset: int, count: int) -> bytes:
                return b"here"[offset : offset + count]

            def abandon(self) -> None:
                place.left += 1
                place.news.tell()

        return Open()


class Yard:
    """The tree that is served: /queue /ring /put /slow /bulk /leaving /numbers/<n>, each number a value."""

    def __init__(self) -> None:
        self.news = News()
        self.queue = Source(self.news)
        self.ring = Ring(depth=1024)
        self.slow = Slow(self.news)
        self.bulk = Bulk(self.news)
        self.leaving = Leaving(self.news)
        self.root = Dir(
            {
                "queue": Stream(lambda: Tap(self.queue)),
                "ring": Stream(self.ring),
                "put": Sink(self.queue.put),
                "slow": Text(self.slow.get),
                "bulk": self.bulk,
                "leaving": self.leaving,
                "numbers": Dir({str(n): Text(lambda n=n: str(n)) for n in range(NUMBERS)}),  # type: ignore[misc]
            }
        )
        self.export = Export(self.root, Policy([ALL]), AuditMemory(), TraceRing())

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.news.until(condition)


class Raw:
    """Frames on a byte channel, sent and received when the check says so."""

    def __init__(self, stream: trio.abc.Stream, version: str = WARREN, msize: int = 1 << 20) -> None:
        self.stream = stream
        self.half = Client(msize, [version])
        self._got = b""

    def ask(self, cls: type[Message], *fields: Any) -> Call:
        return self.half.request(cls, *fields)

    async def send(self, piece: int = 0, keep: int = 0) -> None:
        """What was asked for, PIECE bytes at a time; the last KEEP bytes are never sent."""
        data = b"".join(self.half.take())
        data = data[: len(data) - keep]
        for at in range(0, len(data), piece or len(data)):
            await self.stream.send_all(data[at : at + (piece or len(data))])

    async def settle(self, *calls: Call) -> None:
        """Receive until all of CALLS are answered. EOFError when the peer closes before."""
        while not all(call.settled for call in calls):
            if not self._got:
                self._got = bytes(await self.stream.receive_some())
                if not self._got:
                    raise EOFError
            space = self.half.space()
            n = min(len(space), len(self._got))
            space[:n], self._got = self._got[:n], self._got[n:]
            self.half.received(n)

    async def hello(self, piece: int = 0) -> int:
        """Version and attach; returns the root's fid."""
        version = self.half.begin()
        await self.send(piece)
        await self.settle(version)
        fid = self.half.fids.take()
        attach = self.half.attach(fid, NOFID, "check", "")
        await self.send(piece)
        await self.settle(attach)
        return fid


@dataclass
class Place:
    """How a client, or a bare channel, gets to an export."""

    attach: Attaching
    channel: Channel | None

    @asynccontextmanager
    async def yard(self) -> AsyncIterator[tuple[Yard, Files]]:
        yard = Yard()
        async with self.attach(yard.export) as files:
            yield yard, files
        crashed = [e for e in yard.export.trace.errors if e.code == 500]
        if crashed:
            raise AssertionError(f"{crashed[0].path}: {crashed[0].op} ended in 500: {crashed[0].text[-200:]}")
