"""A blob as a file: ranges by offset, and no byte that was not compared with its hash.

A small read goes through a cache of chunks, so that neighbours and tiles that everybody wants are hashed
once. A large one is read and hashed in a thread, past the cache, which it would only flush. For one who
reads from the beginning to the end a thread works ahead, a window at a time, so that hashing and sending go
on together.

What was compared counts as right while the file's inode, size and times are what they were: chunks in the
cache, which are bytes that were right when they were read, and for FRESH seconds the windows that a thread
went through, which are then read again without being hashed again. Whoever meddles with the file changes its
times, and a disk that forgets is asked again soon.
"""

import errno
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import trio
from warren.servers.storage.shelf import CHUNK, Damaged, Shelf, Whole
from warren.tree import Attr, Bytes, Caller, Handle, Maybe, Node, Refused, absent
from warren.tree.node import QTFILE, Qid

SMALL: Final = 2  # chunks that are hashed in the loop: a tenth of a millisecond
WINDOW: Final = 16 * CHUNK
WINDOWS: Final = 64  # that all readers together may have
FRESH: Final = 2.0  # seconds
_REMEMBERED: Final = 256  # blobs of which we know what is fresh
_WRITES: Final = 0o3 | 0o1000
Stamp = tuple[int, int, int, int]


class Reads:
    """What all readers share: the cache, and counts."""

    def __init__(self, shelf: Shelf, room: int, monotonic: Callable[[], float]) -> None:
        self.shelf, self.room, self._now = shelf, room, monotonic
        self.given = self.hashed = self.hits = self.damaged = 0
        self.held = 0
        self.windows = WINDOWS
        self._chunks: OrderedDict[tuple[str, int], tuple[Stamp, bytes]] = OrderedDict()
        self._fresh: OrderedDict[str, tuple[Stamp, dict[int, float]]] = OrderedDict()

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

    def compared(self, hex: str, stamp: Stamp, window: int) -> None:
        """All of a window was right, just now."""
        found = self._fresh.pop(hex, None)
        known = found[1] if found is not None and found[0] == stamp else {}
        known[window] = self._now()
        self._fresh[hex] = stamp, known
        if len(self._fresh) > _REMEMBERED:
            self._fresh.popitem(last=False)

    def is_fresh(self, hex: str, stamp: Stamp, windows: range) -> bool:
        """Whether all of these were right a moment ago, in a file that has not changed since."""
        found = self._fresh.get(hex)
        if found is None or found[0] != stamp:
            return False
        since = self._now() - FRESH
        return all(n in found[1] and found[1][n] >= since for n in windows)

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


class Corrupt(Exception):
    """A chunk is not what was stored."""

    def __init__(self, chunk: int) -> None:
        super().__init__(chunk)
        self.chunk = chunk


class Ahead:
    """A window that is being read and hashed by a thread, or was."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.wanted = True
        self.data: bytes | None = None  # None at last: something in it is corrupt

    def arrive(self, data: bytes | None) -> None:
        """The thread is done."""
        self.data = data
        self.ready.set()


class StoredHandle(Handle):
    """An open blob. Its descriptor is closed with the last reference, a reading thread's included."""

    def __init__(self, reads: Reads, hex: str, whole: Whole) -> None:
        self._reads, self._hex = reads, hex
        self._fd, self._size, self._digests = whole
        self._next = self._run = 0  # where the next read begins if it goes on, and since how many bytes
        self._windows: dict[int, Ahead] = {}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._fd)

    def close(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        for n in list(self._windows):
            self._drop(n)

    def _drop(self, n: int) -> None:
        """A window is not wanted any more. Its room is free once no thread is at it."""
        window = self._windows.pop(n)
        if window.ready.is_set():
            self._reads.windows += 1
        else:
            window.wanted = False

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        count = min(count, self._size - offset)
        if count <= 0:
            return b""
        self._reads.given += count
        self._run = self._run + count if offset == self._next else 0
        self._next = offset + count
        if max(self._run, count) <= SMALL * CHUNK:
            return self._exactly(offset, count)
        windows = range(offset // WINDOW, (offset + count - 1) // WINDOW + 1)
        if self._reads.is_fresh(self._hex, self._stamp(), windows):
            return os.pread(self._fd, count, offset)
        if self._run and self._look_ahead(windows):
            return self._from_windows(windows, offset, count)
        return self._exactly(offset, count)

    def _stamp(self) -> Stamp:
        st = os.fstat(self._fd)
        return st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns

    # In order

    def _look_ahead(self, windows: range) -> bool:
        """See that the windows of a read and the one behind it are under way, if there is room for them."""
        for n in [n for n in self._windows if n < windows[0]]:
            self._drop(n)
        end = (self._size - 1) // WINDOW
        wanted = [n for n in range(windows[0], min(windows[-1] + 1, end) + 1) if n not in self._windows]
        if len(wanted) > self._reads.windows:
            return all(n in self._windows for n in windows)
        for n in wanted:
            self._reads.windows -= 1
            self._windows[n] = self._start(n)
        return True

    def _start(self, n: int) -> Ahead:
        window, token, stamp = Ahead(), trio.lowlevel.current_trio_token(), self._stamp()

        def arrive(data: bytes | None) -> None:
            window.arrive(data)
            if not window.wanted:
                self._reads.windows += 1
            if data is not None:
                self._reads.hashed += len(data)
                self._reads.compared(self._hex, stamp, n)

        def deliver(outcome: Any) -> None:
            try:
                token.run_sync_soon(arrive, outcome.unwrap())
            except trio.RunFinishedError:
                pass  # nobody is left to read it

        trio.lowlevel.start_thread_soon(lambda: self._window(n), deliver)
        return window

    def _window(self, n: int) -> bytes | None:
        per = WINDOW // CHUNK
        try:
            return self._verified(n * per, min((n + 1) * per - 1, (self._size - 1) // CHUNK))
        except (Corrupt, OSError):
            return None  # whoever asks for the part that is corrupt will hear so

    def _from_windows(self, wanted: range, offset: int, count: int) -> Maybe[Bytes]:
        windows = [self._windows[n] for n in wanted]
        if all(window.ready.is_set() for window in windows):
            return self._joined(windows, offset, count)
        return self._wait(windows, offset, count)

    async def _wait(self, windows: list[Ahead], offset: int, count: int) -> Bytes:
        """Cancelled has no effect."""
        for window in windows:
            await window.ready.wait()
        data = self._joined(windows, offset, count)
        return data if isinstance(data, Bytes) else await data

    def _joined(self, windows: list[Ahead], offset: int, count: int) -> Maybe[Bytes]:
        parts, at, left = [], offset % WINDOW, count
        for window in windows:
            if window.data is None:
                return self._exactly(offset, count)
            part = memoryview(window.data)[at : at + left]
            parts.append(part)
            left, at = left - len(part), 0
        return b"".join(parts)

    # Here and there

    def _exactly(self, offset: int, count: int) -> Maybe[Bytes]:
        """These chunks and no others."""
        first, last = offset // CHUNK, (offset + count - 1) // CHUNK
        if last - first >= SMALL:
            return self._much(offset, count, first, last)
        stamp = self._stamp()
        data = self._small(first, stamp)
        start = offset - first * CHUNK
        if first == last:
            return data if count == len(data) else data[start : start + count]
        return data[start:] + self._small(last, stamp)[: start + count - CHUNK]

    def _small(self, n: int, stamp: Stamp) -> bytes:
        data = self._reads.get(self._hex, n, stamp)
        if data is None:
            try:
                data = self._verified(n, n)
            except Corrupt as e:
                raise self._refusal(e) from None
            self._reads.hashed += len(data)
            self._reads.keep(self._hex, n, stamp, data)
        return data

    async def _much(self, offset: int, count: int, first: int, last: int) -> Bytes:
        """Cancelled has no effect; the thread finishes for nobody."""
        try:
            data = await trio.to_thread.run_sync(self._verified, first, last, abandon_on_cancel=True)
        except Corrupt as e:
            raise self._refusal(e) from None
        self._reads.hashed += len(data)
        start = offset - first * CHUNK
        return data if count == len(data) else memoryview(data)[start : start + count]

    def _verified(self, first: int, last: int) -> bytes:
        """These chunks as they were stored, or Corrupt with the first that is not. In any thread."""
        begin, end = first * CHUNK, min((last + 1) * CHUNK, self._size)
        data = os.pread(self._fd, end - begin, begin)
        view, digests = memoryview(data), self._digests
        for n in range(first, last + 1):
            chunk = view[n * CHUNK - begin : (n + 1) * CHUNK - begin]
            if hashlib.sha256(chunk).digest() != digests[32 * n : 32 * n + 32]:
                raise Corrupt(n)
        return data

    def _refusal(self, e: Corrupt) -> Refused:
        at, to = e.chunk * CHUNK, min((e.chunk + 1) * CHUNK, self._size)
        return self._reads.complain(self._hex, f"chunk {e.chunk}, bytes {at} to {to}, is corrupt")
