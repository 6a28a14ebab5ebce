"""Open files and directories of a disk, and the one place that opens them."""

import errno
import functools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

import trio
from warren.servers.disk.volume import PLAIN_INODE, Volume
from warren.tree import Bytes, Dirent, Handle, Maybe, Refused, absent
from warren.tree.node import QTDIR, QTFILE, QTSYMLINK, Qid

# open(2) flags as they are on the wire: those of x86, whatever this machine's are.
ACCESS: Final = 0o3
EXCL: Final = 0o200
TRUNCATE: Final = 0o1000
APPEND: Final = 0o2000
DATA_SYNC: Final = 0o10000
DIRECTORY: Final = 0o200000
SYNC: Final = 0o4010000  # includes DATA_SYNC, as in Linux
_KEPT: Final = ACCESS | TRUNCATE | APPEND

# A file with a lease would make open(2) wait for its holder; O_NONBLOCK makes that a refusal.
SAFE: Final = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_GREATEST: Final = (1 << 63) - 1
_AT_ONCE: Final = 8192  # names read from a directory before others get a turn


def told(e: OSError) -> OSError:
    """The same error, in our words where the system's would mislead."""
    if e.errno in (errno.EMFILE, errno.ENFILE):
        return Refused(429, "no descriptor is left; clunk some fids", errno=e.errno, retry_after=1)
    if e.errno == errno.ENOENT:
        return absent()
    return e


def host_flags(flags: int) -> int:
    """Wire flags as this machine's. What is neither access, truncation nor append is dropped:
    durability is kept by `Synced`, and the rest is about the client's own descriptor."""
    return _host_flags(flags & _KEPT)


@functools.cache
def _host_flags(kept: int) -> int:
    if kept & ACCESS == ACCESS:
        raise Refused(400, "open for reading, writing or both")
    flags = SAFE | (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)[kept & ACCESS]
    if kept & TRUNCATE:
        flags |= os.O_TRUNC
    if kept & APPEND:
        flags |= os.O_APPEND
    return flags


# Resolved once: a name below it is half a microsecond nearer than the whole path.
_descriptors: Final = os.open("/proc/self/fd", os.O_PATH | os.O_CLOEXEC)


def reopen(fd: int, flags: int) -> int:
    """A new descriptor of the very inode that FD names, wherever it lies by now."""
    try:
        return os.open(str(fd), flags, dir_fd=_descriptors)
    except OSError as e:
        raise told(e) from None


class Opened(Handle):
    """What files and directories have in common. The descriptor is closed with the last reference, so
    a thread that is still syncing it never finds another file behind its number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)

    def fsync(self) -> Maybe[None]:
        return self._sync(os.fsync)

    async def _sync(self, sync: Callable[[int], None]) -> None:
        """Cancelled means it may still happen, which harms nobody."""

        def run() -> None:
            sync(self.fd)

        await trio.to_thread.run_sync(run, abandon_on_cancel=True)


class OpenFile(Opened):
    """A regular file."""

    def __init__(self, fd: int, volume: Volume, number: int) -> None:
        super().__init__(fd)
        self._changed = volume.changed
        self._number = number

    def read(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self.fd, count, offset)
        except OverflowError:
            return b""  # beyond the greatest offset there is nothing
        except OSError:
            if offset + count <= _GREATEST:
                raise
            return os.pread(self.fd, _GREATEST - offset, offset)  # the system refuses to look past it

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        try:
            n = os.pwrite(self.fd, data, offset)
        except OverflowError:
            raise Refused(413, "no file reaches that far") from None
        self._changed(self._number)
        return n


class Synced(OpenFile):
    """A file opened with O_SYNC or O_DSYNC: a write is answered when it is durable."""

    def __init__(self, fd: int, volume: Volume, number: int, data_only: bool) -> None:
        super().__init__(fd, volume, number)
        self._how = os.fdatasync if data_only else os.fsync

    def write(self, offset: int, data: Bytes) -> Awaitable[int]:
        n = super().write(offset, data)
        assert isinstance(n, int)
        return self._durable(n)

    async def _durable(self, n: int) -> int:
        """The bytes were taken before; cancelled means only that nobody learns when they are durable."""
        await self._sync(self._how)
        return n


def open_file(fd: int, flags: int, volume: Volume, number: int) -> OpenFile:
    """The handle on FD, an opened regular file, that keeps the promises of the wire's FLAGS."""
    if flags & SYNC and flags & ACCESS:
        return Synced(fd, volume, number, data_only=flags & SYNC == DATA_SYNC)
    return OpenFile(fd, volume, number)


class OpenDirectory(Opened):
    """A directory. Its entries are taken to lie on its own device: all do but those mounted on."""

    def __init__(self, fd: int, volume: Volume) -> None:
        super().__init__(fd)
        self._volume = volume
        self._device = os.fstat(fd).st_dev

    def read(self, offset: int, count: int) -> Bytes:
        raise Refused(400, "a directory is read by its entries", errno=errno.EISDIR)

    def entries(self) -> Maybe[Sequence[Dirent]]:
        try:
            scan = os.scandir(self.fd)
        except OSError as e:
            raise told(e) from None
        found = self._some(scan)
        if len(found) < _AT_ONCE:
            scan.close()
            return found
        return self._rest(scan, found)

    async def _rest(
        self, scan: AbstractContextManager[Iterator[os.DirEntry[str]]], found: list[Dirent]
    ) -> Sequence[Dirent]:
        with scan as names:
            while more := self._some(names):
                found += more
                await trio.lowlevel.checkpoint()
        return found

    def _some(self, names: Iterator[os.DirEntry[str]]) -> list[Dirent]:
        volume, device, new = self._volume, self._device, tuple.__new__
        greatest = PLAIN_INODE if device == volume.home else 0
        found = []
        for entry in islice(names, _AT_ONCE):
            if entry.is_symlink():
                kind = QTSYMLINK
            else:
                kind = QTDIR if entry.is_dir(follow_symlinks=False) else QTFILE
            number = entry.inode()
            if number > greatest:
                number = volume.number(device, number)
            found.append(new(Dirent, (entry.name, new(Qid, (kind, 0, number)))))
        return found
