"""Files that can be written: their bytes, their size, their attributes."""

import errno
import os
import secrets
import stat as S
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from warren.check.tree.place import Place, below, holds, refused, same
from warren.mount import Files
from warren.serve.export import Export
from warren.tree import Changes

UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS)
BLOCK, BLOCKS, WRITERS = 1000, 24, 3


@dataclass
class Yard:
    """A directory of one check's own, in the writable one."""

    export: Export
    files: Files
    path: str

    def __call__(self, name: str) -> str:
        return below(self.path, name)

    async def make(self, name: str, data: bytes = b"") -> str:
        """A file with that name and contents; returns its path."""
        await self.files.write(self(name), data, create=True)
        return self(name)


@asynccontextmanager
async def yard(at: Place) -> AsyncIterator[Yard]:
    async with at.served() as export, at.files(export) as files:
        path = below(at.writable or "/", f"check-{secrets.token_hex(4)}")
        await files.mkdir(path)
        yield Yard(export, files, path)
        await _clear(files, path)


async def _clear(files: Files, path: str) -> None:
    for d in await files.readdir(path):
        if d.qid.type & 0x80:
            await _clear(files, below(path, d.name))
        else:
            await files.remove(below(path, d.name))
    await files.remove(path)


async def created(at: Place) -> None:
    """A file is made once, is listed, and holds what was written to it"""
    async with yard(at) as y:
        files, path = y.files, y("file")
        async with await files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640) as file:
            same(await file.write(b"hello, world"), 12, path, "the count of a write")
            same(await file.pread(100, 0), b"hello, world", path, "what the fid that made it reads")
            await file.pwrite(b"W", 7)
            await file.fsync()
            number = file.qid.path
        same(await files.read(path), b"hello, World", path, "what it holds")
        same([d.name for d in await files.readdir(y.path)], ["file"], y.path, "what it lists")
        entry = await files.stat(path)
        same((entry.size, S.S_IFMT(entry.mode)), (12, S.S_IFREG), path, "its size and kind")
        same(entry.qid.path, number, path, "its qid.path, by a walk,")
        await refused(
            path,
            "O_CREAT|O_EXCL on a name that is taken",
            files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL),
            errno.EEXIST,
        )
        async with await files.open(path, os.O_RDWR | os.O_CREAT) as file:
            same(await file.pread(100, 0), b"hello, World", path, "what O_CREAT leaves of it")
            same(file.qid, (await file.stat()).qid, path, "its qid by open, against getattr,")
        version = entry.qid.version
        await files.write(path, b"J", truncate=False)
        entry = await files.stat(path)
        same(entry.qid.path, number, path, "its qid.path after a write")
        holds(entry.qid.version != version, path, f"a write left its qid.version as it was, {version}")
        same(await files.read(path), b"Jello, World", path, "what it holds after a write without truncation")


async def modes(at: Place) -> None:
    """A fid reads and writes only what it was opened for"""
    async with yard(at) as y, at.talk(y.export) as talk:
        path = await y.make("file", b"data")
        for flags, reads, writes in (
            (os.O_RDONLY, True, False),
            (os.O_WRONLY, False, True),
            (os.O_RDWR, True, True),
        ):
            fid = await talk.opened(path, flags)
            if reads:
                same(await talk.read(fid, path), b"data", path, f"what a fid opened with {flags} reads")
            else:
                await refused(path, "a read through a fid opened for writing", talk.read(fid, path))
            if writes:
                same(await talk.write(fid, path, b"data"), 4, path, f"the count written with flags {flags}")
            else:
                await refused(path, "a write through a fid opened for reading", talk.write(fid, path, b"x"))
            await refused(path, "a second open of the same fid", talk.open(fid, path))
            await talk.clunk(fid, path)
            await refused(path, "a read of a clunked fid", talk.read(fid, path))


async def truncated(at: Place) -> None:
    """Truncation cuts, grows with zeros, and is what O_TRUNC does"""
    async with yard(at) as y:
        files, path = y.files, await y.make("file", b"0123456789")
        await files.truncate(path, 4)
        same(await files.read(path), b"0123", path, "what a truncation to 4 leaves")
        await files.truncate(path, 8)
        same(await files.read(path), b"0123\0\0\0\0", path, "what a truncation to 8 gives")
        same((await files.stat(path)).size, 8, path, "its size")
        await files.write(path, b"ab")
        same(await files.read(path), b"ab", path, "what O_TRUNC and a write leave")
        await (await files.open(path, os.O_WRONLY | os.O_TRUNC)).close()
        same(await files.read(path), b"", path, "what O_TRUNC leaves")
        await refused(y.path, "a truncation of a directory", files.truncate(y.path, 0))


async def sparse(at: Place) -> None:
    """A write beyond the end leaves zeros before it"""
    async with yard(at) as y:
        files, path = y.files, await y.make("file", b"a")
        far = (1 << 20) + 3
        async with await files.open(path, os.O_RDWR) as file:
            await file.pwrite(b"z", far)
            same((await file.stat()).size, far + 1, path, "its size")
            same(await file.pread(16, 0), b"a" + bytes(15), path, "its beginning")
            same(await file.pread(16, far - 3), b"\0\0\0z", path, "its end")
            whole = await file.pread(far + 16, 0)
            holds(whole == b"a" + bytes(far - 1) + b"z", path, "the hole is not all zeros")
            for offset in ((1 << 63) - 1, (1 << 64) - 16):
                await refused(path, f"a write at {offset}", file.pwrite(b"xx", offset))
                same(await file.pread(16, offset), b"", path, f"a read at {offset}")


async def together(at: Place) -> None:
    """Several sessions that write to one file at once each find their bytes in place"""
    async with yard(at) as y:
        path = await y.make("file")
        wanted = b"".join(bytes([65 + i % 26]) * BLOCK for i in range(BLOCKS))

        async def write(first: int) -> None:
            async with at.files(y.export) as files, await files.open(path, os.O_RDWR) as file:
                for i in range(first, BLOCKS, WRITERS):
                    await file.pwrite(wanted[i * BLOCK : (i + 1) * BLOCK], i * BLOCK)

        async with trio.open_nursery() as nursery:
            for first in range(WRITERS):
                nursery.start_soon(write, first)
        found = await y.files.read(path)
        wrong = next(
            (i for i in range(max(len(found), len(wanted))) if found[i : i + 1] != wanted[i : i + 1]), None
        )
        holds(wrong is None, path, f"concurrent writers left a wrong byte at {wrong}")


async def unlinked(at: Place) -> None:
    """An open file goes on after its name was removed"""
    async with yard(at) as y:
        files, path = y.files, await y.make("file", b"before")
        async with await files.open(path, os.O_RDWR) as file:
            async with at.files(y.export) as other:
                await other.remove(path)
            await refused(path, "the walk to a removed name", files.stat(path), errno.ENOENT)
            same([d.name for d in await files.readdir(y.path)], [], y.path, "what it lists after the removal")
            same(await file.pread(100, 0), b"before", path, "what a fid opened before the removal reads")
            await file.pwrite(b"after!", 0)
            same(await file.pread(100, 0), b"after!", path, "what it reads after a write")
        await y.make("file", b"another")
        same(await files.read(path), b"another", path, "what a new file of that name holds")


async def attributes(at: Place) -> None:
    """Mode, times and size are set as asked, and what was not asked for stays"""
    async with yard(at) as y:
        files, path = y.files, await y.make("file", b"data")
        for mode in (0o600, 0o755, 0o640):
            await files.chmod(path, mode)
            same((await files.stat(path)).mode & 0o777, mode, path, "its mode")
        fine = 0 if at.plain else 123_456_789
        when = 1_234_567_890 * 10**9 + fine
        await files.setattr(path, Changes(mtime=when))
        entry = await files.stat(path)
        same(entry.mtime_ns, when, path, "its mtime")
        same(
            (entry.mode & 0o777, entry.size), (0o640, 4), path, "its mode and size, after a change of mtime,"
        )
        if not at.plain:
            await files.setattr(path, Changes(atime=when + 1))
            entry = await files.stat(path)
            same((entry.atime_ns, entry.mtime_ns), (when + 1, when), path, "its atime and mtime")
        await files.chmod(y.path, 0o700)
        same((await files.stat(y.path)).mode & 0o777, 0o700, y.path, "the mode of a directory")
        same(await files.read(path), b"data", path, "what it holds after all that")


async def appended(at: Place) -> None:
    """With O_APPEND a write goes to the end, whatever offset it names and whoever else writes"""
    async with yard(at) as y, at.talk(y.export) as one, at.talk(y.export) as two:
        path = await y.make("file", b"0")
        fids = [(t, await t.opened(path, os.O_WRONLY | os.O_APPEND)) for t in (one, two)]
        for piece in (b"1", b"22", b"333"):
            for talk, fid in fids:
                same(await talk.write(fid, path, piece), len(piece), path, "the count of an append")
        same(await y.files.read(path), b"0" + b"11" + b"2222" + b"333333", path, "what appending gave")
        await y.files.write(path, b"end", append=True)
        same((await y.files.read(path))[-4:], b"3end", path, "its end")
        for talk, fid in fids:
            await talk.clunk(fid, path)


async def extended(at: Place) -> None:
    """Extended attributes, where there are any, are set, listed, replaced and removed"""
    async with yard(at) as y:
        files, path = y.files, await y.make("file")
        await refused(
            path, "an attribute that is not there", files.getxattr(path, "user.none"), errno.ENODATA
        )
        try:
            await files.setxattr(path, "user.one", b"1")
        except OSError as e:
            holds(e.errno in (*UNSUPPORTED, errno.ENOSPC), path, f"setxattr is refused with {e}")
            return
        large = bytes(range(256)) * 8
        await files.setxattr(path, "user.two", large)
        same(
            sorted(await files.listxattr(path)), ["user.one", "user.two"], path, "the list of its attributes"
        )
        same(await files.getxattr(path, "user.one"), b"1", path, "user.one")
        same(await files.getxattr(path, "user.two"), large, path, "user.two")
        await refused(
            path,
            "XATTR_CREATE of one that exists",
            files.setxattr(path, "user.one", b"x", os.XATTR_CREATE),
            errno.EEXIST,
        )
        await refused(
            path,
            "XATTR_REPLACE of one that does not",
            files.setxattr(path, "user.new", b"x", os.XATTR_REPLACE),
            errno.ENODATA,
        )
        await files.removexattr(path, "user.one")
        same(await files.listxattr(path), ["user.two"], path, "the list after a removal")


CHECKS = (created, modes, truncated, sparse, together, unlinked, attributes)
LINUX = (appended, extended)
