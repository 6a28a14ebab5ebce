"""A file of a disk, of whatever kind: `Entry`, which is one O_PATH descriptor.

Every name goes to the system together with the descriptor of its directory. Whatever changes the
disk passes `effect`, or opens for writing; both ask whether the disk is read-only before they look
at anything else.
"""

import errno
import functools
import os
import stat as S
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

import trio
from warren.servers.disk import attributes
from warren.servers.disk.handle import (
    ACCESS,
    DIRECTORY,
    EXCL,
    SAFE,
    TRUNCATE,
    OpenDirectory,
    host_flags,
    open_file,
    reopen,
    told,
)
from warren.servers.disk.volume import PLAIN_INODE, Volume
from warren.tree import Attr, Caller, Changes, Handle, Lock, Maybe, Node, Refused, Statfs
from warren.tree.locks import Key
from warren.tree.node import QTDIR, QTFILE, QTSYMLINK, Qid
from warren.tree.waiting import wait

P = ParamSpec("P")
R = TypeVar("R")

_NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS: Final = 8
_SECOND: Final = 1_000_000_000
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1
_KIND: Final = 0o170000
_PERMISSIONS: Final = 0o1777
_DOTS: Final = frozenset(("", ".", ".."))
_QTYPE: Final = {S.S_IFDIR: QTDIR, S.S_IFLNK: QTSYMLINK}
_NEVER_OPENED: Final = {
    S.S_IFIFO: "a FIFO",
    S.S_IFSOCK: "a socket",
    S.S_IFCHR: "a character device",
    S.S_IFBLK: "a block device",
}


class Stat(Protocol):
    """os.stat_result as it is: unpacked, its times are whole seconds."""

    st_mtime_ns: int
    st_ctime_ns: int
    st_atime_ns: int
    st_blksize: int
    st_blocks: int
    st_rdev: int

    def __iter__(self) -> Iterator[int]: ...


_fstat = cast(Callable[[int], Stat], os.fstat)
_nothing = cast(Stat, os.stat_result([0] * 10))
_new = tuple.__new__  # a NamedTuple's own constructor costs three times as much, and attr is the hot path


def effect(
    operation: "Callable[Concatenate[Entry, P], R]",
) -> "Callable[Concatenate[Entry, P], R]":
    """What changes the disk: refused on a read-only one before anything is looked at."""

    @functools.wraps(operation)
    def run(self: "Entry", /, *args: P.args, **kw: P.kwargs) -> R:
        self._must_be_writable()
        try:
            return operation(self, *args, **kw)
        except OSError as e:
            raise told(e) from None

    return run


class Entry(Node):
    """A file of any kind. The inode behind the descriptor is fixed, so its kind and number are, too."""

    kind = S.S_IFREG
    _walked: os.stat_result | None
    _attr: Attr
    _qid: Qid
    _fresh: float  # until when _qid needs no look
    _qid_written: int
    _seen = _nothing
    _written = 0

    def __init__(self, volume: Volume, fd: int) -> None:
        self.fd = fd
        self.volume = volume
        self._walked = st = os.fstat(fd)
        inode, device = st.st_ino, st.st_dev
        if device != volume.home or inode > PLAIN_INODE:
            inode = volume.number(device, inode)
        self._number = inode
        self._fresh, self._qid_written = time.monotonic() + 0.001, volume.written.get(inode, 0)
        kind = st.st_mode & _KIND
        if kind != S.S_IFREG:
            self.kind = kind
            self.qtype = _QTYPE.get(kind, QTFILE)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)

    @property
    def _path(self) -> str:
        """For the calls that know no O_PATH descriptors. It leads to the inode, not through names."""
        return f"/proc/self/fd/{self.fd}"

    # Looking

    def qid(self) -> Qid:
        """Looked up, unless we looked within the last millisecond: the system's time stamps, from which the
        version is made, are coarser than that. (A walk and the open that follows ask twice.)"""
        now = time.monotonic()
        written = self.volume.written.get(self._number, 0)
        st, fresh = self._walked, now < self._fresh and written == self._qid_written
        if fresh and st is None:
            return self._qid
        if not fresh or st is None:
            st = os.fstat(self.fd)
        self._walked = None
        version = hash((st.st_mtime_ns, st.st_ctime_ns, st.st_size, written)) & _U32
        self._fresh, self._qid_written = now + 0.001, written
        self._qid = _new(Qid, (self.qtype, version, self._number))
        return self._qid

    def attr(self) -> Attr:
        """The same object as last time if nothing changed, which is usual, and spares a third of the work."""
        st = _fstat(self.fd)
        written, seen = self.volume.written.get(self._number, 0), self._seen
        if (
            st == seen
            and st.st_mtime_ns == seen.st_mtime_ns
            and st.st_ctime_ns == seen.st_ctime_ns
            and st.st_atime_ns == seen.st_atime_ns
            and st.st_blocks == seen.st_blocks
            and written == self._written
        ):
            return self._attr
        mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = st
        mtime_ns, ctime_ns = st.st_mtime_ns, st.st_ctime_ns
        version = hash((mtime_ns, ctime_ns, size, written)) & _U32
        if atime | mtime | ctime < 0:  # before 1970: two's complement, as Linux reads it back
            atime, mtime, ctime = atime & _U64, mtime & _U64, ctime & _U64
        self._seen, self._written = st, written
        self._attr = _new(
            Attr,
            (
                _new(Qid, (self.qtype, version, self._number)), mode, uid, gid, nlink, st.st_rdev,
                size, st.st_blksize, st.st_blocks, atime, st.st_atime_ns % _SECOND,
                mtime, mtime_ns % _SECOND, ctime, ctime_ns % _SECOND, 0, 0, 0, 0,
            ),
        )  # fmt: skip
        return self._attr

    def walk(self, name: str) -> "Entry":
        if name in _DOTS or "/" in name or "\0" in name:
            raise _no_name()
        try:
            fd = os.open(name, _NAME, dir_fd=self.fd)
        except OSError as e:
            raise told(e) from None
        return Entry(self.volume, fd)

    def readlink(self) -> str:
        if self.kind != S.S_IFLNK:
            raise Refused(400, "not a symbolic link", errno=errno.EINVAL)
        return os.readlink("", dir_fd=self.fd)

    async def statfs(self) -> Statfs:
        st = await trio.to_thread.run_sync(self._statvfs, abandon_on_cancel=True)
        return Statfs(
            bsize=st.f_frsize, blocks=st.f_blocks, bfree=st.f_bfree, bavail=st.f_bavail,
            files=st.f_files, ffree=st.f_ffree, fsid=st.f_fsid, namelen=st.f_namemax,
        )  # fmt: skip

    def _statvfs(self) -> os.statvfs_result:
        return os.statvfs(self.fd)

    # Opening

    def open(self, flags: int, caller: Caller) -> Handle:
        if self.kind == S.S_IFREG:
            if flags & DIRECTORY:
                raise Refused(400, "not a directory", errno=errno.ENOTDIR)
            if flags & (ACCESS | TRUNCATE):
                self._must_be_writable()
                attributes.must_not_set_id(os.fstat(self.fd).st_mode)
            fd = reopen(self.fd, host_flags(flags))
            if flags & TRUNCATE:
                self.volume.changed(self._number)
            return open_file(fd, flags, self.volume, self._number)
        if self.kind == S.S_IFDIR:
            if flags & (ACCESS | TRUNCATE):
                raise Refused(400, "a directory is opened for reading only", errno=errno.EISDIR)
            return OpenDirectory(reopen(self.fd, SAFE | os.O_RDONLY | os.O_DIRECTORY), self.volume)
        if self.kind == S.S_IFLNK:
            raise Refused(403, "a symbolic link is read and followed by the client", errno=errno.ELOOP)
        what = _NEVER_OPENED.get(self.kind, "a special file")
        raise Refused(403, f"{what} is never opened by this server")

    # Making

    @effect
    def create(self, name: str, flags: int, mode: int, gid: int, caller: Caller) -> "tuple[Entry, Handle]":
        """The gid is a label, and a server chowns nothing for a label."""
        attributes.must_give_no_id(mode)
        _check(name)
        how = host_flags(flags & ~TRUNCATE) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        for _ in range(_ATTEMPTS):
            # Without O_EXCL the system would open whatever it finds, a FIFO too.
            try:
                fd = os.open(name, how, mode & _PERMISSIONS, dir_fd=self.fd)
            except FileExistsError:
                if flags & EXCL:
                    raise
            else:
                return self._created(name, fd, flags)
            try:
                found = self.walk(name)
            except FileNotFoundError:
                continue
            return found, found.open(flags, caller)
        raise Refused(429, "the name comes and goes", retry_after=0.1)

    def _created(self, name: str, fd: int, flags: int) -> "tuple[Entry, Handle]":
        try:
            entry = Entry(self.volume, reopen(fd, os.O_PATH | os.O_CLOEXEC))
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=self.fd)
            raise
        return entry, open_file(fd, flags, self.volume, entry._number)

    @effect
    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> "Entry":
        """Clients copy setgid from the directory above. Here the system does that by itself."""
        attributes.must_give_no_id(mode & ~S.S_ISGID)
        _check(name)
        os.mkdir(name, mode & _PERMISSIONS, dir_fd=self.fd)
        return self._made(name, directory=True)

    @effect
    def symlink(self, name: str, target: str, gid: int) -> "Entry":
        _check(name)
        if "\0" in target:
            raise Refused(400, "a link's text has no NUL")
        os.symlink(target, name, dir_fd=self.fd)
        return self._made(name)

    @effect
    def mknod(self, name: str, mode: int, major: int, minor: int, gid: int) -> "Entry":
        """Regular files, FIFOs and sockets: names that clients meet at. Never a device."""
        attributes.must_give_no_id(mode)
        _check(name)
        kind = S.S_IFMT(mode) or S.S_IFREG
        if kind not in (S.S_IFREG, S.S_IFIFO, S.S_IFSOCK):
            raise Refused(403, "device nodes are not made here", errno=errno.EPERM)
        os.mknod(name, kind | mode & _PERMISSIONS, dir_fd=self.fd)
        return self._made(name)

    def _made(self, name: str, directory: bool = False) -> "Entry":
        """What was just made. If it cannot be opened (no descriptor is left), it is unmade."""
        try:
            return self.walk(name)
        except OSError:
            self._remove(name, directory)
            raise

    @effect
    def link(self, name: str, node: Node) -> None:
        _check(name)
        entry = self._ours(node)
        if entry.kind == S.S_IFDIR:
            raise Refused(403, "a directory has one name", errno=errno.EPERM)
        os.link(entry._path, name, dst_dir_fd=self.fd, follow_symlinks=True)

    # Removing and renaming

    @effect
    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        _check(name)
        self._expect(name, expect)
        if directory is None:
            directory = S.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        self._remove(name, directory)

    def _remove(self, name: str, directory: bool) -> None:
        if directory:
            os.rmdir(name, dir_fd=self.fd)
        else:
            os.unlink(name, dir_fd=self.fd)

    @effect
    def rename(self, name: str, into: Node, newname: str, expect: Node | None = None) -> None:
        _check(name)
        _check(newname)
        target = self._ours(into)
        self._expect(name, expect)
        os.rename(name, newname, src_dir_fd=self.fd, dst_dir_fd=target.fd)

    def _expect(self, name: str, expect: Node | None) -> None:
        """No client can come between this look and what follows; another process of this machine can."""
        if expect is None:
            return
        try:
            st = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            st = None
        if st is None or not os.path.samestat(st, os.fstat(self._ours(expect).fd)):
            raise Refused(404, "this name is another file's by now", errno=errno.ESTALE)

    def _ours(self, node: Node) -> "Entry":
        if not isinstance(node, Entry) or node.volume is not self.volume:
            raise Refused(409, "the two files are of different trees", errno=errno.EXDEV)
        return node

    # Attributes

    @effect
    def setattr(self, changes: Changes) -> None:
        attributes.change(self._path, self.kind, os.fstat(self.fd), changes)
        if changes.size is not None:
            self.volume.changed(self._number)

    def xattrs(self) -> Sequence[str]:
        return attributes.extended(self._path, self.kind)

    def getxattr(self, name: str) -> bytes:
        return attributes.extended_value(self._path, self.kind, name)

    @effect
    def setxattr(self, name: str, value: bytes, flags: int) -> None:
        attributes.set_extended(self._path, self.kind, name, value, flags)

    def _must_be_writable(self) -> None:
        if self.volume.read_only:
            raise Refused(403, "this tree is read-only", errno=errno.EROFS)

    # Locks

    def _key(self) -> Key:
        if self.kind != S.S_IFREG:
            raise Refused(405, "only regular files are locked")
        st = os.fstat(self.fd)
        return st.st_dev, st.st_ino

    def lock(self, lock: Lock) -> bool:
        return self.volume.locks.take(self._key(), lock)

    def unlock(self, lock: Lock) -> None:
        if self.kind == S.S_IFREG:
            self.volume.locks.release(self._key(), lock)

    def test_lock(self, lock: Lock) -> Lock | None:
        return self.volume.locks.obstacle(self._key(), lock)

    def wait_lock(self, lock: Lock) -> Maybe[None]:
        key = self._key()
        return None if self.volume.locks.take(key, lock) else wait(self.volume.locks, key, lock)


def _check(name: str) -> None:
    """Whoever checked names before: one that is more than a name goes no further."""
    if name in _DOTS or "/" in name or "\0" in name:
        raise _no_name()


def _no_name() -> Refused:
    return Refused(400, "this is not a file name")
