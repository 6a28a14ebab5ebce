"""Files: the native client of a tree.

    async with dial("unix!/run/warren/sock") as files:
        await files.read("/motd")
        await files.write("/ctl", b"trim keep=10\\n")
        async with await files.open("/log/events", os.O_RDONLY | os.O_NONBLOCK) as events:
            while record := await events.record(): ...

Errors are OSErrors with the server's text and the path. Symbolic links are followed, as by the
functions of `os` with the same names; `follow=False` names the link itself.

**Cancelled** means that the request had no effect, unless a line says otherwise: a cancelled request
is flushed and settled before Cancelled is raised, and if its reply came first the method returns.

**Deadline.** Every request is answered within `deadline` seconds or raises TimeoutError.

**A lost connection** is dialled again by the next call that needs it (not if this was made from a
stream), with pauses that grow from 50 ms to 5 s, until the deadline. What only looks (read, stat, ls,
readlink, …) is then done once more. What changes something is not: if it was under way it raises
ConnectionResetError, and its outcome is unknown. Open files come back each at its next use.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable

from warren.mount.entry import Entry
from warren.mount.file import Buffer, File
from warren.mount.link import Link, Op
from warren.mount.session import Path, Session, T
from warren.mount.walk import Reached, reach, split
from warren.mount.words import Request
from warren.p9.fields import QTDIR
from warren.p9.messages import PLAIN, Rread, Tread, Tremove
from warren.tree.node import Changes, Dirent, Statfs

_FIRST_READ = 64 * 1024  # of a file whose size is not known
_MOST_READ = 8 << 20  # at once, of one whose size is


class Files(Session):
    """A tree within reach. Made by `dial`."""

    # Looking

    async def stat(self, path: Path, *, follow: bool = False) -> Entry:
        """Attributes of a file; of the link itself unless FOLLOW."""

        async def work(link: Link, op: Op) -> Entry:
            got = await reach(link, op, op.path, link.words.stat(), follow=follow)
            link.forget(got.fid)
            return link.words.entry(got.replies[0], (split(op.path) or [""])[-1])

        return await self._do(path, work)

    async def walk_exists(self, path: Path) -> bool:
        """Whether a path leads to something. What is hidden does not exist."""

        async def work(link: Link, op: Op, got: Reached) -> None:
            pass

        try:
            await self._at(path, work)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def ls(self, path: Path = "/") -> list[Entry]:
        """The names of a directory with their attributes, in the server's order."""

        async def work(link: Link, op: Op, walked: Reached) -> list[Entry]:
            self._must_be_directory(op, walked)
            fid = (await reach(link, op, op.path, link.words.open(os.O_RDONLY | os.O_DIRECTORY))).fid
            try:
                return await link.words.entries(op, walked.fid, fid)
            finally:
                link.forget(fid)

        return await self._at(path, work)

    async def readdir(self, path: Path = "/") -> list[Dirent]:
        """The names of a directory with their qids; cheaper than `ls`."""

        async def work(link: Link, op: Op) -> list[Dirent]:
            got = await reach(link, op, op.path, link.words.open(os.O_RDONLY | os.O_DIRECTORY))
            try:
                self._must_be_directory(op, got)
                return await link.words.names(op, got.fid)
            finally:
                link.forget(got.fid)

        return await self._do(path, work)

    @staticmethod
    def _must_be_directory(op: Op, got: Reached) -> None:
        if not got.qid.type & QTDIR:
            raise op.error(errno.ENOTDIR, "not a directory")

    async def read(self, path: Path) -> bytes:
        """All of a file, until its size is reached or a read brings nothing."""

        async def work(link: Link, op: Op) -> bytes:
            words = link.words
            then: list[Request] = [words.open(os.O_RDONLY), words.stat()]
            first = min(_FIRST_READ, link.payload)
            if link.in_order:
                then.append((Tread, (0, first)))
            got = await reach(link, op, op.path, *then)
            file = File(self, op.path, os.O_RDONLY, link, got.fid, got.qid, words.opened(got.replies[0]))
            try:
                size = words.entry(got.replies[1], "").size
                pieces: list[bytes | memoryview] = []
                at = 0
                if link.in_order:
                    reply = got.replies[2]
                    assert isinstance(reply, Rread)
                    pieces, at = [reply.data], len(reply.data)
                    if not at:
                        return b""
                while at < size or not size:
                    more = await file._read(op, link, min(size - at, _MOST_READ) if size else first, at)
                    if not more:
                        break
                    pieces += more
                    at += sum(map(len, more))
                return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
            finally:
                link.forget(got.fid)

        return await self._do(path, work)

    async def readlink(self, path: Path) -> str:
        """Where a symbolic link points."""

        async def work(link: Link, op: Op, got: Reached) -> str:
            return await link.words.readlink(op, got.fid)

        return await self._at(path, work, follow=False)

    async def statfs(self, path: Path = "/") -> Statfs:
        """The file system that a path lies on."""

        async def work(link: Link, op: Op, got: Reached) -> Statfs:
            return await link.words.statfs(op, got.fid)

        return await self._at(path, work)

    async def getxattr(self, path: Path, name: str, *, follow: bool = True) -> bytes:
        """One extended attribute."""

        async def work(link: Link, op: Op, got: Reached) -> bytes:
            return await link.words.getxattr(op, got.fid, name)

        return await self._at(path, work, follow=follow)

    async def listxattr(self, path: Path, *, follow: bool = True) -> list[str]:
        """The names of the extended attributes."""
        raw = await self.getxattr(path, "", follow=follow)
        return [name.decode("utf-8", "surrogateescape") for name in raw.split(b"\0") if name]

    # Opening

    async def open(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> File:
        """Open with the flags of open(2). O_NONBLOCK means a stream: see `File.record`.

        With O_CREAT or O_TRUNC it is a change, and not done again. Cancelled may leave a file that was
        created or truncated, never an open one.
        """

        async def work(link: Link, op: Op) -> File:
            creates, excl = flags & os.O_CREAT, flags & os.O_EXCL
            plainly = flags & ~(os.O_CREAT | os.O_EXCL)
            while True:
                if not (creates and excl):
                    op.effect = bool(flags & os.O_TRUNC)
                    try:
                        got = await reach(link, op, op.path, link.words.open(plainly))
                    except FileNotFoundError:
                        if not creates:
                            raise
                    else:
                        opened = link.words.opened(got.replies[0])
                        return File(self, op.path, plainly, link, got.fid, got.qid, opened)
                try:
                    return await self._create(link, op, flags, mode)
                except FileExistsError:
                    if excl:
                        raise

        return await self._do(path, work)

    async def _create(self, link: Link, op: Op, flags: int, mode: int) -> File:
        directory, name = self._parent(op)
        got = await reach(link, op, directory)
        try:
            op.effect = True
            opened = await link.words.create(op, got.fid, name, flags | os.O_CREAT, mode)
        except BaseException:
            link.forget(got.fid)
            raise
        return File(self, op.path, flags, link, got.fid, None, opened)

    async def create(self, path: Path, flags: int = os.O_RDWR, mode: int = 0o666) -> File:
        """Open, making the file if there is none; with O_EXCL only then."""
        return await self.open(path, flags | os.O_CREAT, mode)

    async def stream(self, path: Path) -> File:
        """Open for `File.record`."""
        return await self.open(path, os.O_RDONLY | os.O_NONBLOCK)

    # Changing

    async def write(
        self,
        path: Path,
        data: Buffer,
        *,
        create: bool = False,
        truncate: bool = True,
        append: bool = False,
        mode: int = 0o666,
    ) -> int:
        """Open, write all of DATA, close. Returns its size. The close counts: it may be what commits.

        Cancelled may leave the file truncated, or with some of DATA if that is more than one message.
        """
        flags = os.O_WRONLY | (os.O_CREAT if create else 0)
        flags |= os.O_APPEND if append else os.O_TRUNC if truncate else 0
        async with await self.open(path, flags, mode) as file:
            return await file.write(data)

    @staticmethod
    def _parent(op: Op, path: str | None = None) -> tuple[str, str]:
        directory, _, name = (op.path if path is None else path).rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise op.error(errno.EINVAL, "that names no file")
        return directory, name

    async def _in_parent(self, path: Path, work: Callable[[Link, Op, int, str], Awaitable[T]]) -> T:
        """Walk to the directory of PATH and change something in it."""

        async def inner(link: Link, op: Op) -> T:
            directory, name = self._parent(op)
            got = await reach(link, op, directory)
            try:
                op.effect = True
                return await work(link, op, got.fid, name)
            finally:
                link.forget(got.fid)

        return await self._do(path, inner)

    async def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make a directory."""

        async def work(link: Link, op: Op, fid: int, name: str) -> None:
            await link.words.mkdir(op, fid, name, mode)

        await self._in_parent(path, work)

    async def symlink(self, target: str, path: Path) -> None:
        """Make a symbolic link at PATH."""

        async def work(link: Link, op: Op, fid: int, name: str) -> None:
            await link.words.symlink(op, fid, name, target)

        await self._in_parent(path, work)

    async def mknod(self, path: Path, mode: int, major: int = 0, minor: int = 0) -> None:
        """Make a node of the kind that MODE says."""

        async def work(link: Link, op: Op, fid: int, name: str) -> None:
            await link.words.mknod(op, fid, name, mode, major, minor)

        await self._in_parent(path, work)

    async def link(self, old: Path, path: Path) -> None:
        """Give the file OLD the further name PATH."""

        async def work(link: Link, op: Op, fid: int, name: str) -> None:
            op.effect = False
            source = await reach(link, op, os.fspath(old), follow=False)
            try:
                op.effect = True
                await link.words.link_to(op, fid, name, source.fid)
            finally:
                link.forget(source.fid)

        await self._in_parent(path, work)

    async def remove(self, path: Path, *, directory: bool | None = None) -> None:
        """Remove a name; a directory must be empty. DIRECTORY insists on what it is, as rmdir and unlink."""

        async def either(link: Link, op: Op) -> None:
            got = await reach(link, op, op.path, follow=False)
            if directory is not None and directory is not bool(got.qid.type & QTDIR):
                link.forget(got.fid)
                number = errno.ENOTDIR if directory else errno.EISDIR
                raise op.error(number, os.strerror(number))
            op.effect = True
            await link.ask(op, Tremove, got.fid)

        async def work(link: Link, op: Op, fid: int, name: str) -> None:
            await link.words.unlink(op, fid, name, bool(directory))

        if directory is None or self.version == PLAIN:
            await self._do(path, either)
        else:
            await self._in_parent(path, work)

    async def rename(self, old: Path, new: Path) -> None:
        """Move OLD to NEW, replacing what rename(2) replaces; in 9P2000 only within a directory (EXDEV)."""

        async def work(link: Link, op: Op) -> None:
            olddir, oldname = self._parent(op)
            newdir, newname = self._parent(op, os.fspath(new))
            across = link.words.renames_across
            if not across and split(olddir) != split(newdir):
                raise op.error(errno.EXDEV, f"{link.version} renames only within a directory")
            got = await reach(link, op, olddir if across else op.path, follow=across)
            try:
                if not across:
                    op.effect = True
                    await link.words.rename_here(op, got.fid, newname)
                    return
                into = await reach(link, op, newdir)
                try:
                    op.effect = True
                    await link.words.renameat(op, got.fid, oldname, into.fid, newname)
                finally:
                    link.forget(into.fid)
            finally:
                link.forget(got.fid)

        await self._do(old, work)

    async def setattr(self, path: Path, changes: Changes, *, follow: bool = True) -> None:
        """Change attributes, all or none."""

        async def work(link: Link, op: Op, got: Reached) -> None:
            op.effect = True
            await link.words.setattr(op, got.fid, changes)

        await self._at(path, work, follow=follow)

    async def chmod(self, path: Path, mode: int) -> None:
        """Set the permission bits."""
        await self.setattr(path, Changes(mode=mode))

    async def utimens(self, path: Path, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set times in nanoseconds; None leaves one alone, `warren.tree.NOW` asks the server's clock."""
        await self.setattr(path, Changes(atime=atime_ns, mtime=mtime_ns))

    async def truncate(self, path: Path, size: int) -> None:
        """Make a file SIZE bytes long."""
        await self.setattr(path, Changes(size=size))

    async def setxattr(
        self, path: Path, name: str, value: bytes, flags: int = 0, *, follow: bool = True
    ) -> None:
        """Set an extended attribute, with the flags of setxattr(2)."""

        async def work(link: Link, op: Op) -> None:
            got = await reach(link, op, op.path, follow=follow)
            op.effect = True
            await link.words.setxattr(op, got.fid, name, value, flags)

        await self._do(path, work)

    async def removexattr(self, path: Path, name: str, *, follow: bool = True) -> None:
        """Remove an extended attribute. On the wire that is an empty value that must replace one."""
        await self.setxattr(path, name, b"", os.XATTR_REPLACE, follow=follow)
