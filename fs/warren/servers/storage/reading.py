"""A blob as a file: ranges by offset, and no byte that was not compared with its hash.

A small read goes through a cache of chunks, so that neighbours and tiles that everybody wants are hashed
once. A large one is read and hashed in a thread, past the cache, which it would only flush. The cache holds
bytes, not beliefs: they were right when they were read, and they count only while the file's inode, size and
times are what they were.
"""

import errno
import hashlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from warren.servers.storage.shelf import CHUNK, Damaged, Shelf, Whole
from warren.tree import Attr, Bytes, Caller, Handle, Maybe, Node, Refused, absent
from warren.tree.node import QTFILE, Qid

SMALL: Final = 2  # chunks that are hashed in the loop: a tenth of a millisecond
_WRITES: Final = 0o3 | 0o1000
Stamp = tuple[int, int, int, int]


class Reads:
    """What all readers share: the cache, and counts."""

    def __init__(self, shelf: Shelf, room: int) -> None:
        self.shelf, self.room = shelf, room
        self.given = self.hashed = self.hits = self.damaged = 0
        self.held = 0
        self._chunks: OrderedDict[tuple[str, int], tuple[Stamp, bytes]] = OrderedDict()

    def get(self, hex: str, n: int, stamp: Stamp) -> bytes | None:
        """A chunk that was verified, of a file that has not changed since."""
        found = self._chunks.get((hex, n))
        if found is None or found[0] != stamp:
            return None
        self._chunks.move_to_end((hex, n))
        self.hits += 1
        return found[1]

    def keep(self, hex: str, n: int, stamp: Stamp, data: bytes) -> None:
        """Remember a chunk, and forget what was not wanted for longest."""
        old = self._chunks.pop((hex, n), None)
        self._chunks[hex, n] = stamp, data
        self.held += len(data) - (len(old[1]) if old else 0)
        while self.held > self.room:
            self.held -= len(self._chunks.popitem(last=False)[1][1])

    def complain(self, hex: str, what: str) -> Refused:
        """A refusal, counted."""
        self.damaged += 1
        return Refused(422, f"sha256:{hex}: {what}; put the content again to mend it")


class Stored(Node):
    """A blob. Its version is made of the file's times, so that a cache lets go when somebody meddled."""

    def __init__(self, reads: Reads, hex: str, version: int = 0) -> None:
        self.hex = hex
        self._reads = reads
        self._version = version

    def qid(self) -> Qid:
        if not self._number:
            self._number = self._reads.shelf.number(self.hex)
        return Qid(QTFILE, self._version, self._number)

    def attr(self) -> Attr:
        st = self._reads.shelf.find(self.hex)
        if st is None:
            raise absent()
        seconds, rest = divmod(st.st_mtime_ns, 1_000_000_000)
        return Attr(
            self.qid(), 0o100400, size=st.st_size, blksize=CHUNK, blocks=-(-st.st_size // 512),
            atime=seconds, atime_ns=rest, mtime=seconds, mtime_ns=rest, ctime=seconds, ctime_ns=rest,
        )  # fmt: skip

    def open(self, flags: int, caller: Caller) -> Handle:
        if flags & _WRITES:
            raise Refused(403, "a blob never changes; put another", errno=errno.EACCES)
        try:
            return StoredHandle(self._reads, self.hex, self._reads.shelf.open(self.hex))
        except Damaged as e:
            raise self._reads.complain(self.hex, str(e)) from None
        except FileNotFoundError:
            raise absent() from None


def version_of(st: os.stat_result) -> int:
    """A qid version: another one whenever the file is another, and never 0, which says synthetic."""
    return hash((st.st_ino, st.st_mtime_ns, st.st_ctime_ns, st.st_size)) & 0x7FFFFFFF | 1


class StoredHandle(Handle):
    """An open blob. Its descriptor is closed with the last reference, a reading thread's included."""

    def __init__(self, reads: Reads, hex: str, whole: Whole) -> None:
        self._reads, self._hex = reads, hex
        self._fd, self._size, self._digests = whole

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._fd)

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        count = min(count, self._size - offset)
        if count <= 0:
            return b""
        self._reads.given += count
        first, last = offset // CHUNK, (offset + count - 1) // CHUNK
        if last - first >= SMALL:
            return self._much(offset, count, first, last)
        st = os.fstat(self._fd)
        stamp = st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns
        data = self._small(first, stamp)
        start = offset - first * CHUNK
        if first == last:
            return data if count == len(data) else data[start : start + count]
        return data[start:] + self._small(last, stamp)[: start + count - CHUNK]

    def _small(self, n: int, stamp: Stamp) -> bytes:
        data = self._reads.get(self._hex, n, stamp)
        if data is None:
            data = self._verified(n, n)
            self._reads.hashed += len(data)
            self._reads.keep(self._hex, n, stamp, data)
        return data

    def _much(self, offset: int, count: int, first: int, last: int) -> Awaitable[Bytes]:
        return self._in_a_thread(offset, count, first, last)

    async def _in_a_thread(self, offset: int, count: int, first: int, last: int) -> Bytes:
        """Cancelled has no effect; the thread finishes for nobody."""
        data = await trio.to_thread.run_sync(self._verified, first, last, abandon_on_cancel=True)
        self._reads.hashed += len(data)
        start = offset - first * CHUNK
        return data if count == len(data) else memoryview(data)[start : start + count]

    def _verified(self, first: int, last: int) -> bytes:
        """These chunks as they were stored, or a refusal that names the first that is not."""
        begin, end = first * CHUNK, min((last + 1) * CHUNK, self._size)
        data = os.pread(self._fd, end - begin, begin)
        view, digests = memoryview(data), self._digests
        for n in range(first, last + 1):
            chunk = view[n * CHUNK - begin : (n + 1) * CHUNK - begin]
            if hashlib.sha256(chunk).digest() != digests[32 * n : 32 * n + 32]:
                at, to = n * CHUNK, min((n + 1) * CHUNK, self._size)
                raise self._reads.complain(self._hex, f"chunk {n}, bytes {at} to {to}, is corrupt")
        return data
