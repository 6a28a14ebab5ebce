"""What a fid can point at: `Node`, and what an open fid holds: `Handle`.

Server authors rarely write these; they write the words (`Dir`, `Text`, `Ctl`, …) that are made
from them. A server over something that already is a file system (a directory, an archive) derives
from them directly. Every operation has a default that refuses with a fixed sentence: **absent
means refused**.

**Guarantees.** An operation may return its result, or an awaitable of it when it must wait. A plain
result costs no task. The protocol's own rules (open before read, names without `/`, rights, the
size of a reply) were checked before the call. A call is made from one task at a time per
connection, but two connections interleave at every await. When an awaitable is cancelled, the
operation must have had no effect, or have completed; a `finally` in it must not await.

`data` given to `write` is valid only during the call, or until the first await; keep `bytes(data)`.
"""

import errno
import itertools
import stat as S
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from warren.p9.fields import QTAPPEND, QTDIR, QTFILE, QTSYMLINK, Qid
from warren.tree.errors import Refused, absent

T = TypeVar("T")
Maybe: TypeAlias = T | Awaitable[T]
Bytes: TypeAlias = bytes | bytearray | memoryview

_numbers = itertools.count(1)

# What word a synthetic file is, for clients of ours: it travels as `Attr.gen` in the dialect
# 9P2000.L.warren. A proxy learns from it what needs the right ctl, a FUSE mount what is a stream.
STORED, TEXT, BYTES, CTL, STREAM, SINK, BLOB, CLONE = range(8)


class Attr(NamedTuple):
    """Attributes in the order of the wire, without the mask."""

    qid: Qid
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    rdev: int = 0
    size: int = 0
    blksize: int = 4096
    blocks: int = 0
    atime: int = 0
    atime_ns: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    ctime: int = 0
    ctime_ns: int = 0
    btime: int = 0
    btime_ns: int = 0
    gen: int = 0
    data_version: int = 0


class Changes(NamedTuple):
    """What a setattr asks for; None is left alone. Times are nanoseconds, or NOW."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None


NOW = -1


class Statfs(NamedTuple):
    """Of the file system, in the order of the wire."""

    fstype: int = 0x01021997  # V9FS_MAGIC
    bsize: int = 4096
    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    fsid: int = 0
    namelen: int = 255


class Dirent(NamedTuple):
    """One name of a directory; `qid.type` says what it is."""

    name: str
    qid: Qid


class Lock(NamedTuple):
    """A byte range and its owner; length 0 reaches to the end of the file, wherever that is."""

    exclusive: bool
    start: int
    length: int
    owner: tuple[int, str, int]  # session, client_id, proc_id


class Caller(Protocol):
    """Who asks. Labels are never authority: rights were decided before the call."""

    @property
    def subject(self) -> str:
        """The identity the transport proved, or `any`."""

    @property
    def session(self) -> int:
        """Number of the conversation."""

    @property
    def last_error(self) -> str:
        """The newest error of this conversation, for /dev/errstr."""


class Handle:
    """An open fid. `record` handles take one write as one record and never a piece of one."""

    record = False  # a write of the greatest size may be a piece of more, and is refused
    parks = False  # reads may wait without limit: they count as parked and have no deadline
    tells = False  # an error of a write can be read back from this fid at offset 0

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        """At most COUNT bytes. Cancelled means nothing was taken."""
        raise Refused(403, "this file is not for reading", errno=errno.EACCES)

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        """Returns how many bytes were taken. Cancelled means none, or all."""
        raise Refused(403, "this file is not for writing", errno=errno.EACCES)

    def entries(self) -> Maybe[Sequence[Dirent]]:
        """All names, as of now. The session keeps them for one pass from offset 0."""
        raise Refused(400, "this is not a directory", errno=errno.ENOTDIR)

    def fsync(self) -> Maybe[None]:
        """Make durable what was written; Blob commits. Nothing to do is success."""
        return None

    def close(self) -> Maybe[None]:
        """The fid was clunked. Kernels throw this error away."""
        return None

    def abandon(self) -> None:
        """The connection is gone or the conversation was aborted: discard what is not committed."""


class Node:
    """A file or directory. Subclasses override what they support."""

    qtype = QTFILE
    mode = 0o400
    is_ctl = False  # guarded by the `ctl` right instead of read and write
    swallows_truncate = False  # truncation succeeds and does nothing (ctl, sinks, streams)
    word = STORED  # which word of `tree` it is; STORED is a directory, or bytes that a cache may keep
    _number = 0

    def qid(self) -> Qid:
        """The file's identity. Synthetic files carry version 0, so that no client caches them."""
        if not self._number:
            self._number = next(_numbers)
        return Qid(self.qtype, 0, self._number)

    def attr(self) -> Maybe[Attr]:
        """Attributes."""
        kind = {QTDIR: S.S_IFDIR, QTSYMLINK: S.S_IFLNK}.get(self.qtype & (QTDIR | QTSYMLINK), S.S_IFREG)
        return Attr(self.qid(), kind | self.mode, gen=self.word)

    def attach(self, caller: Caller) -> "Node":
        """The root as this caller is to have it: nodes that act for their caller are made for each."""
        return self

    def walk(self, name: str) -> Maybe["Node"]:
        """The child of that name, or the refusal `absent()`. `..` never comes here."""
        raise Refused(400, "not a directory", errno=errno.ENOTDIR)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        """Open with Linux flags. O_CREAT never comes here; O_TRUNC does."""
        raise Refused(405, "this file cannot be opened")

    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> Maybe[tuple["Node", Handle]]:
        """Make a regular file and open it; EEXIST if the name is taken and flags hold O_EXCL."""
        raise Refused(405, "files cannot be created here", errno=errno.EPERM)

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe["Node"]:
        """Make a directory."""
        raise Refused(405, "directories cannot be made here", errno=errno.EPERM)

    def symlink(self, name: str, target: str, gid: int) -> Maybe["Node"]:
        """Make a symbolic link."""
        raise Refused(405, "links cannot be made here", errno=errno.EPERM)

    def mknod(self, name: str, mode: int, major: int, minor: int, gid: int) -> Maybe["Node"]:
        """Make a special file."""
        raise Refused(405, "special files cannot be made here", errno=errno.EPERM)

    def link(self, name: str, node: "Node") -> Maybe[None]:
        """Give NODE, of this tree, a further name in this directory."""
        raise Refused(405, "links cannot be made here", errno=errno.EPERM)

    def unlink(self, name: str, directory: bool | None, expect: "Node | None" = None) -> Maybe[None]:
        """Remove a name. DIRECTORY says what the caller believes it is (None: either); with EXPECT
        the name must still be that node's, or the refusal is ESTALE."""
        raise Refused(405, "nothing can be removed here", errno=errno.EPERM)

    def rename(self, name: str, into: "Node", newname: str, expect: "Node | None" = None) -> Maybe[None]:
        """Move a name of this directory into INTO, replacing what rename(2) may replace."""
        raise Refused(405, "nothing can be renamed here", errno=errno.EPERM)

    def readlink(self) -> Maybe[str]:
        """The text of a symbolic link."""
        raise Refused(400, "not a symbolic link", errno=errno.EINVAL)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """Apply all of CHANGES or none."""
        raise Refused(405, "attributes cannot be changed here", errno=errno.EPERM)

    def xattrs(self) -> Maybe[Sequence[str]]:
        """Names of extended attributes; a synthetic file has none."""
        return ()

    def getxattr(self, name: str) -> Maybe[bytes]:
        """One attribute's value. "Has none" is ENODATA, never ENOSYS: kernels remember that for good."""
        raise Refused(404, "no such attribute", errno=errno.ENODATA)

    def setxattr(self, name: str, value: bytes, flags: int) -> Maybe[None]:
        """Set one; an empty value with flags XATTR_REPLACE removes it, as Linux clients do."""
        raise Refused(405, "attributes cannot be set here", errno=errno.EOPNOTSUPP)

    def statfs(self) -> Maybe[Statfs]:
        """Of the file system this node lies on."""
        return Statfs()

    def lock(self, lock: Lock) -> Maybe[bool]:
        """Take it, or False if another holds it. See `wait_lock` for the one that waits."""
        raise Refused(405, "this file cannot be locked", errno=errno.EOPNOTSUPP)

    def wait_lock(self, lock: Lock) -> Maybe[None]:
        """Take it, waiting as long as needed. Cancelled means it was not taken."""
        raise Refused(405, "this file cannot be locked", errno=errno.EOPNOTSUPP)

    def unlock(self, lock: Lock) -> Maybe[None]:
        """Give the range up, splitting what is held; what is not held is no error."""
        raise Refused(405, "this file cannot be locked", errno=errno.EOPNOTSUPP)

    def test_lock(self, lock: Lock) -> Maybe[Lock | None]:
        """The lock that stands in the way, or None."""
        raise Refused(405, "this file cannot be locked", errno=errno.EOPNOTSUPP)

    # An object that came out of `clone` lives while a fid is inside it.

    def hold(self) -> None:
        """A fid entered. Called only where `counted` is set."""

    def release(self) -> None:
        """A fid left."""

    counted = False


__all__ = [
    "BLOB",
    "BYTES",
    "CLONE",
    "CTL",
    "NOW",
    "QTAPPEND",
    "QTDIR",
    "QTFILE",
    "QTSYMLINK",
    "SINK",
    "STORED",
    "STREAM",
    "TEXT",
    "Attr",
    "Bytes",
    "Caller",
    "Changes",
    "Dirent",
    "Handle",
    "Lock",
    "Maybe",
    "Node",
    "Qid",
    "Statfs",
    "absent",
]
