"""Every message between the kernel and a FUSE server that we use, each declared once.

A class below is the whole truth about its message: the annotations are the Python types and the layout.
Encoder, decoder, bounds and the tests' examples are derived from these lines and from nothing else.

    len[4] opcode[4] unique[8] nodeid[8] uid[4] gid[4] pid[4] extlen[2] pad[2]   before every request
    len[4] error[4] unique[8]                                                    before every reply

It is long because it is one table.

Numbers are the machine's own, which are little-endian wherever Linux has a `/dev/fuse` of this layout.
Names end in NUL. A length is checked before it is used, a field is never longer than its message, and
bytes left over are refused where the declaration leaves none: what `parse` takes is what was declared.

`unused` and `padding` fields are written as zero and read as anything.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, NamedTuple, TypeVar, get_args, get_type_hints

u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
i32 = Annotated[int, "i"]
u64 = Annotated[int, "Q"]
i64 = Annotated[int, "q"]
Name = Annotated[str, "name"]  # ended by NUL
Data = Annotated[bytes | memoryview, "data"]  # all the rest

HEAD: Final = struct.Struct("<IIQQIIIHH")
REPLY: Final = struct.Struct("<IiQ")
MAX_NAME: Final = 4095  # of a link's text; the server is asked about names, which are shorter

VERSION: Final = (7, 31)  # what we speak; a newer kernel comes down to it
ROOT: Final = 1

# What is agreed on in INIT
ASYNC_READ, POSIX_LOCKS, ATOMIC_O_TRUNC, BIG_WRITES = 1 << 0, 1 << 1, 1 << 3, 1 << 5
FLOCK_LOCKS, AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO = 1 << 10, 1 << 12, 1 << 13, 1 << 14
ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES, HANDLE_KILLPRIV_V2 = 1 << 15, 1 << 18, 1 << 22, 1 << 28
INIT_EXT = 1 << 30

FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_STREAM, FOPEN_NOFLUSH = 1 << 0, 1 << 1, 1 << 4, 1 << 5

# Notices, in place of an error number, to a request that there is not
NOTIFY_POLL, NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 1, 2, 3


class BadRequest(ValueError):
    """These bytes are no request of the kernel's."""


class Header(NamedTuple):
    """What stands before every request."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int  # a thread's number; 0 where nobody in particular asks
    extlen: int
    padding: int


N = TypeVar("N", bound=type[Any])


class Shape:
    """The layout of one message: fixed fields, then names, then perhaps data."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.name: str = cls.__name__
        hints = get_type_hints(cls, include_extras=True)
        kinds = [next(k for k in get_args(hints[name]) if isinstance(k, str)) for name in cls._fields]
        self.fixed = struct.Struct("<" + "".join(k for k in kinds if len(k) == 1))
        self.kinds = kinds
        self.tail = [k for k in kinds if len(k) > 1]
        if kinds[: len(kinds) - len(self.tail)] != [k for k in kinds if len(k) == 1]:
            raise TypeError(f"{cls.__name__}: names and data come last")

    def parse(self, view: memoryview) -> Any:
        """The message that VIEW holds. Raises BadRequest."""
        at = self.fixed.size
        if len(view) < at:
            raise BadRequest(f"{self.name} has {at} bytes at least, not {len(view)}")
        values = self.fixed.unpack_from(view)
        if not self.tail:
            if len(view) != at:
                raise BadRequest(f"{self.name} has {at} bytes, not {len(view)}")
            return self.cls._make(values)
        rest: list[Any] = []
        for kind in self.tail:
            if kind == "data":
                rest.append(view[at:])
                at = len(view)
            else:
                found, at = self._name(view, at)
                rest.append(found)
        if at != len(view):
            raise BadRequest(f"{self.name} has {len(view) - at} bytes too many")
        return self.cls._make((*values, *rest))

    def _name(self, view: memoryview, at: int) -> tuple[str, int]:
        raw = bytes(view[at : at + MAX_NAME + 1])
        end = raw.find(b"\0")
        if end < 0:
            raise BadRequest(f"{self.name}: a name does not end")
        if not end and self.name not in ("Symlink",):
            raise BadRequest(f"{self.name}: a name is empty")
        return raw[:end].decode("utf-8", "surrogateescape"), at + end + 1

    def pack(self, message: Any) -> bytes:
        """The bytes of a message."""
        fixed = len(self.kinds) - len(self.tail)
        out = [self.fixed.pack(*message[:fixed])]
        for kind, value in zip(self.tail, message[fixed:], strict=True):
            out.append(bytes(value) if kind == "data" else value.encode("utf-8", "surrogateescape") + b"\0")
        return b"".join(out)

    def examples(self) -> Iterator[Any]:
        """The least, the most, and something usual in every field."""
        for column in range(3):
            yield self.cls._make(_EXAMPLES[kind][column] for kind in self.kinds)


_EXAMPLES: dict[str, tuple[Any, Any, Any]] = {
    "H": (0, 2**16 - 1, 3),
    "I": (0, 2**32 - 1, 4096),
    "i": (-(2**31), 2**31 - 1, -2),
    "Q": (0, 2**64 - 1, 1 << 33),
    "q": (-(2**63), 2**63 - 1, -1),
    "name": ("x", "y" * 255, "naïve \udcff name"),
    "data": (b"", b"\xff" * 300, b"hello, world\n"),
}

REQUESTS: dict[int, Shape] = {}
REPLIES: dict[str, Shape] = {}


def request(*numbers: int) -> Callable[[N], N]:
    """A request, with its opcode; a few shapes serve several."""

    def declare(cls: N) -> N:
        for number in numbers:
            REQUESTS[number] = Shape(cls)
        return cls

    return declare


def reply(cls: N) -> N:
    """The body of a reply or a notice, or a part of one."""
    REPLIES[cls.__name__] = Shape(cls)
    return cls


def packed(message: Any) -> bytes:
    """The bytes of a reply's body."""
    return REPLIES[type(message).__name__].pack(message)


LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 17, 18, 20, 21, 22, 23, 24
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BMAP, DESTROY = 31, 32, 33, 34, 35, 36, 37, 38
IOCTL, POLL, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK = 39, 40, 42, 43, 44, 45, 46


@request(LOOKUP, UNLINK, RMDIR, REMOVEXATTR)
class Named(NamedTuple):
    """A name in the directory, or of an attribute, that the header's node is or has."""

    name: Name


@request(READLINK, STATFS, DESTROY)
class Bare(NamedTuple):
    """Nothing but the header."""


@request(FORGET)
class Forget(NamedTuple):
    """The kernel drops so many of the lookups it was answered. No reply."""

    nlookup: u64


@request(BATCH_FORGET)
class BatchForget(NamedTuple):
    """Several at once: `many` pairs of nodeid[8] nlookup[8]. No reply."""

    many: u32
    padding: u32
    pairs: Data


@request(GETATTR)
class Getattr(NamedTuple):
    """Attributes of the node."""

    flags: u32
    padding: u32
    fh: u64


@request(SETATTR)
class Setattr(NamedTuple):
    """Change what `valid` names."""

    valid: u32
    padding: u32
    fh: u64
    size: u64
    lock_owner: u64
    atime: u64
    mtime: u64
    ctime: u64
    atime_ns: u32
    mtime_ns: u32
    ctime_ns: u32
    mode: u32
    unused: u32
    uid: u32
    gid: u32
    unused2: u32


@request(SYMLINK)
class Symlink(NamedTuple):
    """Make NAME, which says TARGET."""

    name: Name
    target: Name


@request(MKNOD)
class Mknod(NamedTuple):
    """Make a node of any kind."""

    mode: u32
    rdev: u32
    umask: u32
    padding: u32
    name: Name


@request(MKDIR)
class Mkdir(NamedTuple):
    """Make a directory."""

    mode: u32
    umask: u32
    name: Name


@request(RENAME)
class Rename(NamedTuple):
    """Move a name of the node into another directory."""

    newdir: u64
    name: Name
    newname: Name


@request(RENAME2)
class Rename2(NamedTuple):
    """The same, with the flags of renameat2(2)."""

    newdir: u64
    flags: u32
    padding: u32
    name: Name
    newname: Name


@request(LINK)
class Link(NamedTuple):
    """Give another node a further name."""

    oldnode: u64
    name: Name


@request(OPEN, OPENDIR)
class Open(NamedTuple):
    """Open with the flags of open(2), O_CREAT excepted."""

    flags: u32
    open_flags: u32


@request(CREATE)
class Create(NamedTuple):
    """Make a file and open it."""

    flags: u32
    mode: u32
    umask: u32
    open_flags: u32
    name: Name


@request(READ, READDIR, READDIRPLUS)
class Read(NamedTuple):
    """Bytes, or entries, from an offset on."""

    fh: u64
    offset: u64
    size: u32
    read_flags: u32
    lock_owner: u64
    flags: u32
    padding: u32


@request(WRITE)
class Write(NamedTuple):
    """Bytes to an offset."""

    fh: u64
    offset: u64
    size: u32
    write_flags: u32
    lock_owner: u64
    flags: u32
    padding: u32
    data: Data


@request(RELEASE, RELEASEDIR)
class Release(NamedTuple):
    """The last descriptor of an open is closed."""

    fh: u64
    flags: u32
    release_flags: u32
    lock_owner: u64


@request(FLUSH)
class Flush(NamedTuple):
    """One descriptor of an open is closed; there may be others."""

    fh: u64
    unused: u32
    padding: u32
    lock_owner: u64


@request(FSYNC, FSYNCDIR)
class Fsync(NamedTuple):
    """Make durable."""

    fh: u64
    fsync_flags: u32
    padding: u32


@request(SETXATTR)
class Setxattr(NamedTuple):
    """Set an attribute to the SIZE bytes behind its name."""

    size: u32
    flags: u32
    name: Name
    value: Data


@request(GETXATTR)
class Getxattr(NamedTuple):
    """An attribute; size 0 asks how long it is."""

    size: u32
    padding: u32
    name: Name


@request(LISTXATTR)
class Listxattr(NamedTuple):
    """The names of all attributes."""

    size: u32
    padding: u32


@request(INIT)
class Init(NamedTuple):
    """The first request. Newer kernels say more, which we do not need."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    more: Data


@request(GETLK, SETLK, SETLKW)
class Lk(NamedTuple):
    """Ask for, take, or wait for a lock."""

    fh: u64
    owner: u64
    start: u64
    end: u64
    type: u32
    pid: u32
    lk_flags: u32
    padding: u32


@request(ACCESS)
class Access(NamedTuple):
    """Would this be allowed?"""

    mask: u32
    padding: u32


@request(INTERRUPT)
class Interrupt(NamedTuple):
    """Whoever waits for that request has had a signal. No reply."""

    unique: u64


@request(BMAP)
class Bmap(NamedTuple):
    """Where a block lies; for file systems on a device."""

    block: u64
    blocksize: u32
    padding: u32


@request(IOCTL)
class Ioctl(NamedTuple):
    """Anything."""

    fh: u64
    flags: u32
    cmd: u32
    arg: u64
    in_size: u32
    out_size: u32
    data: Data


@request(POLL)
class Poll(NamedTuple):
    """What may be done without waiting; with flag 1, say so under `kh` when that changes."""

    fh: u64
    kh: u64
    flags: u32
    events: u32


@request(FALLOCATE)
class Fallocate(NamedTuple):
    """Reserve space."""

    fh: u64
    offset: u64
    length: u64
    mode: u32
    padding: u32


@request(LSEEK)
class Lseek(NamedTuple):
    """Find data or a hole."""

    fh: u64
    offset: u64
    whence: u32
    padding: u32


@reply
class Entry(NamedTuple):
    """A node by its name; an Attr follows."""

    nodeid: u64
    generation: u64
    entry_valid: u64
    attr_valid: u64
    entry_valid_ns: u32
    attr_valid_ns: u32


@reply
class Attributes(NamedTuple):
    """How long they hold; an Attr follows."""

    valid: u64
    valid_ns: u32
    padding: u32


@reply
class Attr(NamedTuple):
    """As stat(2)."""

    ino: u64
    size: u64
    blocks: u64
    atime: u64
    mtime: u64
    ctime: u64
    atime_ns: u32
    mtime_ns: u32
    ctime_ns: u32
    mode: u32
    nlink: u32
    uid: u32
    gid: u32
    rdev: u32
    blksize: u32
    flags: u32


@reply
class Opened(NamedTuple):
    """A number for the open, and how the kernel is to treat it."""

    fh: u64
    flags: u32
    padding: u32


@reply
class Written(NamedTuple):
    """How many bytes were taken, or an attribute has."""

    size: u32
    padding: u32


@reply
class Kstatfs(NamedTuple):
    """As statfs(2)."""

    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    bsize: u32
    namelen: u32
    frsize: u32
    padding: u32
    spare: u64
    spare2: u64
    spare3: u64


@reply
class Locked(NamedTuple):
    """A lock that stands in the way, or type 2."""

    start: u64
    end: u64
    type: u32
    pid: u32


@reply
class Ready(NamedTuple):
    """What poll(2) answers."""

    revents: u32
    padding: u32


@reply
class Sought(NamedTuple):
    """Where it was found."""

    offset: u64


@reply
class Agreed(NamedTuple):
    """What we answer to INIT."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    max_background: u16
    congestion: u16
    max_write: u32
    time_gran: u32
    max_pages: u16
    map_alignment: u16
    flags2: u32
    unused: u32
    unused2: u64
    unused3: u64
    unused4: u64


@reply
class Dirent(NamedTuple):
    """Before a name of `namelen` bytes and zeros up to a multiple of eight."""

    ino: u64
    off: u64
    namelen: u32
    type: u32


@reply
class PollReady(NamedTuple):
    """Notice: ask again about the poll KH."""

    kh: u64


@reply
class InvalInode(NamedTuple):
    """Notice: drop the attributes of a node, and its pages from OFF on if that is not negative."""

    nodeid: u64
    off: i64
    len: i64


@reply
class InvalEntry(NamedTuple):
    """Notice: forget a name."""

    parent: u64
    namelen: u32
    flags: u32
    name: Name


def header(view: memoryview) -> Header:
    """The header of a request that VIEW holds whole. Raises BadRequest."""
    if len(view) < HEAD.size:
        raise BadRequest(f"a request has {HEAD.size} bytes at least, not {len(view)}")
    h = Header._make(HEAD.unpack_from(view))
    if h.length != len(view):
        raise BadRequest(f"a request says {h.length} bytes and has {len(view)}")
    return h


def body(h: Header, view: memoryview) -> Any:
    """What follows the header. Raises BadRequest; KeyError for an opcode that is not in the table."""
    end = len(view) - 8 * h.extlen
    if end < HEAD.size:
        raise BadRequest(f"{8 * h.extlen} bytes of extensions in a request of {len(view)}")
    return REQUESTS[h.opcode].parse(view[HEAD.size : end])


def pack_request(opcode: int, message: Any, unique: int, nodeid: int, uid: int, gid: int, pid: int) -> bytes:
    """A request as the kernel would send it, for tests and stand-ins."""
    tail = REQUESTS[opcode].pack(message)
    return HEAD.pack(HEAD.size + len(tail), opcode, unique, nodeid, uid, gid, pid, 0, 0) + tail
