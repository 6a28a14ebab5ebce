"""The files of a tree in memory. A node lives as long as a name, a fid or a handle has it, and so does its
room: what nobody has any more gives its pages back by itself.
"""

from __future__ import annotations

import errno
import os
import stat as S
from collections.abc import Sequence
from typing import Final

from warren.servers.ram.volume import PAGE, Data, Volume
from warren.tree import (
    NOW,
    Attr,
    Bytes,
    Caller,
    Changes,
    Dirent,
    Handle,
    Lock,
    Maybe,
    Node,
    Refused,
    Statfs,
    absent,
)
from warren.tree.node import QTDIR, QTFILE, QTSYMLINK, Qid
from warren.tree.waiting import wait

_EXCL, _TRUNC, _APPEND, _DIRECTORY, _ACCESS = 0o200, 0o1000, 0o2000, 0o200000, 0o3
_SECOND: Final = 1_000_000_000
_KIND: Final = {QTFILE: S.S_IFREG, QTDIR: S.S_IFDIR, QTSYMLINK: S.S_IFLNK}
_LONGEST_LINK: Final = 4095
_U32: Final = (1 << 32) - 1


class Item(Node):
    """What files, directories and links have in common."""

    def __init__(self, volume: Volume, permissions: int) -> None:
        self.kept = False  # whether it has a place among the files: __del__ runs on what was refused, too
        self.volume = volume
        _must_give_no_id(permissions)
        volume.take_file()
        self.kept = True
        self.permissions = permissions & 0o1777
        self.nlink = 1
        self.version = 1
        self.atime = self.mtime = self.ctime = volume.now()

    def __del__(self) -> None:
        if self.kept:
            self.volume.files_used -= 1

    def size(self) -> int:
        return 0

    def blocks(self) -> int:
        return 0

    def qid(self) -> Qid:
        number = super().qid().path
        return Qid(self.qtype, self.version, number)

    def attr(self) -> Attr:
        a, m, c = (divmod(t, _SECOND) for t in (self.atime, self.mtime, self.ctime))
        return Attr(
            self.qid(), _KIND[self.qtype] | self.permissions, os.geteuid(), os.getegid(), self.nlink, 0,
            self.size(), PAGE, self.blocks(), *a, *m, *c,
        )  # fmt: skip

    def touch(self, content: bool = True) -> None:
        """It was changed: a cache of it is stale."""
        now = self.volume.now()
        self.ctime = now
        if content:
            self.mtime = now
        self.version = self.version % _U32 + 1

    def setattr(self, changes: Changes) -> None:
        mode, uid, gid, size, atime, mtime = changes
        if uid not in (None, os.geteuid()) or gid not in (None, os.getegid()):
            raise Refused(403, "files keep their owner and group here", errno=errno.EPERM)
        if mode is not None and self.qtype == QTSYMLINK:
            raise Refused(405, "a symbolic link has no mode of its own")
        _must_give_no_id(mode or 0)
        for when in (atime, mtime):
            if when is not None and when != NOW and not 0 <= when // _SECOND < 1 << 63:
                raise Refused(400, "the time is out of range")
        if size is not None:
            self.resize(size)
        self.touch(content=size is not None)
        if mode is not None:
            self.permissions = mode & 0o1777
        if atime is not None:
            self.atime = self.ctime if atime == NOW else atime
        if mtime is not None:
            self.mtime = self.ctime if mtime == NOW else mtime

    def resize(self, size: int) -> None:
        raise Refused(400, "only a regular file has a size to set")

    def statfs(self) -> Statfs:
        v = self.volume
        free = v.pages - v.pages_used
        return Statfs(bsize=PAGE, blocks=v.pages, bfree=free, bavail=free, files=v.files,
                      ffree=v.files - v.files_used)  # fmt: skip


class Plain(Item):
    """A regular file."""

    def __init__(self, volume: Volume, permissions: int) -> None:
        super().__init__(volume, permissions)
        self.data = Data(volume)

    def __del__(self) -> None:
        super().__del__()
        if self.kept:
            self.data.free()

    def size(self) -> int:
        return self.data.size

    def blocks(self) -> int:
        return len(self.data.pages) * (PAGE // 512)

    def open(self, flags: int, caller: Caller) -> Handle:
        if flags & _DIRECTORY:
            raise _as_the_system(errno.ENOTDIR)
        if flags & _TRUNC:
            self.resize(0)
            self.touch()
        return OpenPlain(self, bool(flags & _APPEND))

    def resize(self, size: int) -> None:
        self.data.truncate(size)

    # Locks

    def _key(self) -> tuple[int, int]:
        return 0, self.qid().path

    def lock(self, lock: Lock) -> bool:
        return self.volume.locks.take(self._key(), lock)

    def wait_lock(self, lock: Lock) -> Maybe[None]:
        locks = self.volume.locks
        return None if locks.take(self._key(), lock) else wait(locks, self._key(), lock)

    def unlock(self, lock: Lock) -> None:
        self.volume.locks.release(self._key(), lock)

    def test_lock(self, lock: Lock) -> Lock | None:
        return self.volume.locks.obstacle(self._key(), lock)


class OpenPlain(Handle):
    def __init__(self, file: Plain, append: bool) -> None:
        self.file, self.append = file, append

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.file.data.read(offset, count)

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        file = self.file
        file.data.write(file.data.size if self.append else offset, data)
        file.touch()
        return len(data)


class Link(Item):
    """A symbolic link: a text that the client follows."""

    qtype = QTSYMLINK

    def __init__(self, volume: Volume, target: str) -> None:
        super().__init__(volume, 0o777)
        self.target = target

    def size(self) -> int:
        return len(os.fsencode(self.target))

    def readlink(self) -> str:
        return self.target

    def open(self, flags: int, caller: Caller) -> Handle:
        raise Refused(403, "a symbolic link is read and followed by the client", errno=errno.ELOOP)


class Folder(Item):
    """A directory."""

    qtype = QTDIR

    def __init__(self, volume: Volume, permissions: int, above: Folder | None = None) -> None:
        super().__init__(volume, permissions)
        self.names: dict[str, Item] = {}
        self.above = above
        self.gone = False
        self.nlink = 2

    def walk(self, name: str) -> Item:
        found = self.names.get(name)
        if found is None:
            raise absent()
        return found

    def open(self, flags: int, caller: Caller) -> Handle:
        if flags & (_ACCESS | _TRUNC):
            raise Refused(400, "a directory is opened for reading only", errno=errno.EISDIR)
        return OpenFolder(self)

    # Making

    def create(self, name: str, flags: int, mode: int, gid: int, caller: Caller) -> tuple[Item, Handle]:
        found = self.names.get(name)
        if found is not None:
            if flags & _EXCL:
                raise _taken()
            handle = found.open(flags, caller)
            assert isinstance(handle, Handle)
            return found, handle
        file = Plain(self.volume, mode)
        self._put(name, file)
        return file, OpenPlain(file, bool(flags & _APPEND))

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Item:
        return self.make(name, mode & ~S.S_ISGID)  # clients copy it from the directory above

    def make(self, name: str, permissions: int) -> Folder:
        """A directory of that name."""
        self._must_be_free(name)
        folder = Folder(self.volume, permissions, self)
        self._put(name, folder)
        return folder

    def symlink(self, name: str, target: str, gid: int) -> Item:
        self._must_be_free(name)
        if not target or "\0" in target:
            raise Refused(400, "a link's text is not empty and has no NUL")
        if len(os.fsencode(target)) > _LONGEST_LINK:
            raise Refused(413, f"a link's text is at most {_LONGEST_LINK} bytes", errno=errno.ENAMETOOLONG)
        link = Link(self.volume, target)
        self._put(name, link)
        return link

    def link(self, name: str, node: Node) -> None:
        item = self._ours(node)
        if isinstance(item, Folder):
            raise Refused(403, "a directory has one name", errno=errno.EPERM)
        if not item.nlink:
            raise absent()
        self._must_be_free(name)
        self._put(name, item)
        item.nlink += 1
        item.touch(content=False)

    def _must_be_free(self, name: str) -> None:
        if name in self.names:
            raise _taken()

    def _put(self, name: str, item: Item) -> None:
        if self.gone:
            raise absent()
        self.names[name] = item
        if isinstance(item, Folder):
            self.nlink += 1
        self.touch()

    # Removing and renaming

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        item = self._expected(name, expect)
        if directory is not None and directory != isinstance(item, Folder):
            raise _as_the_system(errno.ENOTDIR if directory else errno.EISDIR)
        self._drop(name, item)

    def _drop(self, name: str, item: Item) -> None:
        """Take the last look at what NAME is, and the name away."""
        if isinstance(item, Folder):
            if item.names:
                raise _as_the_system(errno.ENOTEMPTY)
            item.gone, item.above, item.nlink = True, None, 0
            self.nlink -= 1
        else:
            item.nlink -= 1
            item.touch(content=False)
        del self.names[name]
        self.touch()

    def rename(self, name: str, into: Node, newname: str, expect: Node | None = None) -> None:
        item, target = self._expected(name, expect), self._ours(into)
        if not isinstance(target, Folder):
            raise _as_the_system(errno.ENOTDIR)
        if target.gone:
            raise absent()
        there = target.names.get(newname)
        if there is item:
            return  # two names of one file, or one name: rename(2) does nothing
        if isinstance(item, Folder):
            item.must_not_hold(target)
            if there is not None and not isinstance(there, Folder):
                raise _as_the_system(errno.ENOTDIR)
        elif isinstance(there, Folder):
            raise _as_the_system(errno.EISDIR)
        if there is not None:
            target._drop(newname, there)
        del self.names[name]
        target.names[newname] = item
        if isinstance(item, Folder):
            item.above = target
            self.nlink -= 1
            target.nlink += 1
        item.touch(content=False)
        self.touch()
        target.touch()

    def must_not_hold(self, folder: Folder) -> None:
        """Refuse if FOLDER is this directory or lies below it."""
        at: Folder | None = folder
        while at is not None:
            if at is self:
                raise Refused(400, "a directory cannot be moved into itself")
            at = at.above

    def _expected(self, name: str, expect: Node | None) -> Item:
        item = self.walk(name)
        if expect is not None and expect is not item:
            raise Refused(404, "this name is another file's by now", errno=errno.ESTALE)
        return item

    def _ours(self, node: Node) -> Item:
        if not isinstance(node, Item) or node.volume is not self.volume:
            raise Refused(409, "the two files are of different trees", errno=errno.EXDEV)
        return node


class OpenFolder(Handle):
    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def entries(self) -> Maybe[Sequence[Dirent]]:
        return [Dirent(name, item.qid()) for name, item in self.folder.names.items()]


def _must_give_no_id(mode: int) -> None:
    if mode & (S.S_ISUID | S.S_ISGID):
        raise Refused(403, "setuid and setgid are not given here", errno=errno.EPERM)


def _taken() -> Refused:
    return Refused(409, "the name is taken")


def _as_the_system(number: int) -> OSError:
    """The system's own words: clients of the plain dialect know what they mean."""
    return OSError(number, os.strerror(number))
