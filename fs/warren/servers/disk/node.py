"""A name on a disk: `Entry`, one O_PATH descriptor, and `Volume`, what all entries of a disk share."""

import errno
import functools
import hashlib
import os
import stat as S
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Concatenate, Final, NoReturn, ParamSpec, TypeVar

import trio

from warren.servers.disk.handle import (
    ACCESS,
    APPEND,
    CREATED_HERE,
    DIRECTORY,
    SAFE,
    TRUNCATE,
    OpenDirectory,
    OpenFile,
    host_flags,
    open_file,
    reopen,
    told,
)
from warren.servers.disk.locks import Locks
from warren.tree import NOW, Attr, Caller, Changes, Handle, Lock, Maybe, Node, Refused, Statfs, absent
from warren.tree.node import QTDIR, QTFILE, QTSYMLINK, Qid

P = ParamSpec("P")
R = TypeVar("R")

_NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS: Final = 8
_WRITTEN_MAX: Final = 4096
_SECOND: Final = 1_000_000_000
_GREATEST: Final = (1 << 63) - 1
_PLAIN_INODE: Final = (1 << 62) - 1
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1
_KIND: Final = 0o170000
_MODE: Final = 0o7777
_PERMISSIONS: Final = 0o1777
_SET_ID: Final = S.S_ISUID | S.S_ISGID
_DOTS: Final = frozenset(("", ".", ".."))
_USER: Final = "user."
_QTYPE: Final = {S.S_IFDIR: QTDIR, S.S_IFLNK: QTSYMLINK}
_WITH_XATTRS: Final = (S.S_IFREG, S.S_IFDIR)
_NEVER_OPENED: Final = {
    S.S_IFIFO: "a FIFO",
    S.S_IFSOCK: "a socket",
    S.S_IFCHR: "a character device",
    S.S_IFBLK: "a block device",
}
_new = tuple.__new__  # a NamedTuple's own constructor costs three times as much, and attr is the hot path


class Volume:
    """What all entries of one disk share."""

    def __init__(self, read_only: bool) -> None:
        self.read_only = read_only
        self.locks = Locks()
        self.home: int | None = None  # the root's device
        self.written: dict[int, int] = {}
        self._writes = 0

    def number(self, device: int, inode: int) -> int:
        """A qid path: the inode itself on the root's device. Other devices get numbers that are exact
        for inodes of up to 31 bits and a 62-bit hash beyond; the two top bits tell the three apart."""
        if self.home is None:
            self.home = device
        if device == self.home and inode <= _PLAIN_INODE:
            return inode
        if device <= _U32 and inode < 1 << 31:
            return 1 << 63 | device << 31 | inode
        digest = hashlib.blake2b(b"%d %d" % (device, inode), digest_size=8).digest()
        return 1 << 62 | int.from_bytes(digest, "little") >> 2

    def changed(self, number: int) -> None:
        """A file was written. Older kernels stamp files every few milliseconds, too coarse for a version:
        so our own writes are counted into it. The count of a file long untouched can be forgotten."""
        self._writes += 1
        self.written[number] = self._writes
        if len(self.written) > _WRITTEN_MAX:
            self.written = {number: self._writes}


def told_plainly(
    operation: "Callable[Concatenate[Entry, P], R]",
) -> "Callable[Concatenate[Entry, P], R]":
    """The system's errors in our words."""

    @functools.wraps(operation)
    def run(self: "Entry", /, *args: P.args, **kw: P.kwargs) -> R:
        try:
            return operation(self, *args, **kw)
        except OSError as e:
            raise told(e) from None

    return run


def effect(
    operation: "Callable[Concatenate[Entry, P], R]",
) -> "Callable[Concatenate[Entry, P], R]":
    """Everything that changes the disk: refused on a read-only one before anything is looked at."""
    inner = told_plainly(operation)

    @functools.wraps(operation)
    def run(self: "Entry", /, *args: P.args, **kw: P.kwargs) -> R:
        self._must_be_writable()
        return inner(self, *args, **kw)

    return run


class Entry(Node):
    """A file of any kind. The inode behind the descriptor is fixed, so its kind and number are, too."""

    kind = S.S_IFREG
    _walked: os.stat_result | None = None

    def __init__(self, volume: Volume, fd: int) -> None:
        self.fd = fd
        self.volume = volume
        st = os.fstat(fd)
        inode, device = st[1], st[2]
        if device != volume.home or inode > _PLAIN_INODE:
            inode = volume.number(device, inode)
        self._number = inode
        kind = st[0] & _KIND
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
        # A walk is answered by the look that it took, unless that was used up.
        st = self._walked
        if st is None:
            st = os.fstat(self.fd)
        else:
            self._walked = None
        written = self.volume.written.get(self._number)
        version = hash((st.st_mtime_ns, st.st_ctime_ns, st[6], written)) & _U32
        return _new(Qid, (self.qtype, version, self._number))

    def attr(self) -> Attr:
        st = os.fstat(self.fd)
        mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = st
        mtime_ns, ctime_ns, number = st.st_mtime_ns, st.st_ctime_ns, self._number
        version = hash((mtime_ns, ctime_ns, size, self.volume.written.get(number))) & _U32
        if atime | mtime | ctime < 0:  # before 1970: two's complement, as Linux reads it back
            atime, mtime, ctime = atime & _U64, mtime & _U64, ctime & _U64
        return _new(
            Attr,
            (
                _new(Qid, (self.qtype, version, number)), mode, uid, gid, nlink, st.st_rdev,
                size, st.st_blksize, st.st_blocks, atime, st.st_atime_ns % _SECOND,
                mtime, mtime_ns % _SECOND, ctime, ctime_ns % _SECOND, 0, 0, 0, 0,
            ),
        )  # fmt: skip

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
            self._before_opening(flags)
            fd = reopen(self.fd, host_flags(flags))
            if flags & TRUNCATE:
                self.volume.changed(self._number)
            return open_file(fd, flags, self.volume, self._number)
        if self.kind == S.S_IFDIR:
            if flags & (ACCESS | TRUNCATE):
                raise Refused(400, "a directory is opened for reading only", errno=errno.EISDIR)
            return OpenDirectory(reopen(self.fd, SAFE | os.O_RDONLY | os.O_DIRECTORY), self._neighbour)
        if self.kind == S.S_IFLNK:
            raise Refused(403, "a symbolic link is read and followed by the client", errno=errno.ELOOP)
        what = _NEVER_OPENED.get(self.kind, "a special file")
        raise Refused(403, f"{what} is never opened by this server")

    def _before_opening(self, flags: int) -> None:
        if flags & (ACCESS | TRUNCATE):
            self._must_be_writable()
            self._must_not_set_id(os.fstat(self.fd))

    def _neighbour(self) -> Callable[[int], int]:
        """What number an inode of this directory has."""
        return functools.partial(self.volume.number, os.fstat(self.fd).st_dev)

    # Making

    @effect
    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> "tuple[Entry, Handle]":
        """The gid is a label, and a server chowns nothing for a label."""
        _must_give_no_id(mode)
        _check(name)
        how = host_flags(flags & ~TRUNCATE) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        for _ in range(_ATTEMPTS):
            # Without O_EXCL the system would open whatever it finds, a FIFO too.
            try:
                fd = os.open(name, how, mode & _PERMISSIONS, dir_fd=self.fd)
            except FileExistsError:
                if flags & EXCLUSIVE:
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
        _must_give_no_id(mode & ~S.S_ISGID)
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
        _must_give_no_id(mode)
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
        """Everything that can be known to fail is asked first; the size, which may fail for want of
        space, is changed before what cannot."""
        st = os.fstat(self.fd)
        self._check_changes(changes, st)
        mode, _, _, size, atime, mtime = changes
        if size is not None:
            os.truncate(self._path, size)
            self.volume.changed(self._number)
        if mode is not None:
            os.chmod(self._path, mode & _MODE)
        if atime == mtime == NOW:
            os.utime(self._path)
        elif atime is not None or mtime is not None:
            now = time.time_ns()
            st = os.fstat(self.fd)
            os.utime(self._path, ns=(_time(atime, st.st_atime_ns, now), _time(mtime, st.st_mtime_ns, now)))

    def _check_changes(self, changes: Changes, st: os.stat_result) -> None:
        mode, uid, gid, size, atime, mtime = changes
        if uid not in (None, st.st_uid) or gid not in (None, st.st_gid):
            raise Refused(403, "files keep their owner and group here", errno=errno.EPERM)
        if mode is not None:
            if self.kind == S.S_IFLNK:
                raise Refused(405, "a symbolic link has no mode of its own")
            _must_give_no_id(mode & ~st.st_mode)
        if size is not None:
            if self.kind == S.S_IFDIR:
                raise Refused(400, "a directory has no size to set", errno=errno.EISDIR)
            if self.kind != S.S_IFREG:
                raise Refused(400, "only a regular file has a size to set")
            if size > _GREATEST:
                raise Refused(413, "no file is that large")
            self._must_not_set_id(st)
        for when in (atime, mtime):
            if when is not None and when != NOW and not 0 <= when // _SECOND <= _GREATEST:
                raise Refused(400, "the time is out of range")
        theirs = mode is not None or not {atime, mtime} <= {None, NOW}
        if theirs and os.geteuid() not in (0, st.st_uid):
            raise Refused(403, "only the owner of a file sets its mode and times", errno=errno.EPERM)

    def _must_be_writable(self) -> None:
        if self.volume.read_only:
            raise Refused(403, "this tree is read-only", errno=errno.EROFS)

    def _must_not_set_id(self, st: os.stat_result) -> None:
        """Root's writes do not clear these bits, so new contents would inherit an old trust."""
        if st.st_mode & _SET_ID:
            raise Refused(403, "a setuid or setgid file is not written; chmod it first", errno=errno.EPERM)

    # Extended attributes

    def xattrs(self) -> Sequence[str]:
        if self.kind not in _WITH_XATTRS:
            return ()
        try:
            return [name for name in os.listxattr(self._path) if name.startswith(_USER)]
        except OSError as e:
            if e.errno == errno.ENOTSUP:
                return ()
            raise told(e) from None

    def getxattr(self, name: str) -> bytes:
        """One that is hidden and one that is missing read the same: kernels ask for security.* often."""
        if self._has_xattr(name):
            try:
                return os.getxattr(self._path, name)
            except OSError as e:
                if e.errno != errno.ENOTSUP:
                    raise told(e) from None
        raise Refused(404, "no such attribute", errno=errno.ENODATA)

    @effect
    def setxattr(self, name: str, value: bytes, flags: int) -> None:
        if not self._has_xattr(name):
            raise Refused(403, "only user.* attributes of files and directories can be set", errno=errno.EPERM)
        if flags == os.XATTR_REPLACE and not value:
            os.removexattr(self._path, name)
        else:
            os.setxattr(self._path, name, value, flags)

    def _has_xattr(self, name: str) -> bool:
        return name.startswith(_USER) and "\0" not in name and self.kind in _WITH_XATTRS

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


def _must_give_no_id(mode: int) -> None:
    if mode & _SET_ID:
        raise Refused(403, "setuid and setgid are not given here", errno=errno.EPERM)


def _time(wanted: int | None, current: int, now: int) -> int:
    if wanted is None:
        return current
    return now if wanted == NOW else wanted
