"""Every message of the three dialects, each declared once. It is long because it is one table.

A class below is the whole truth about its message: the annotations are the Python types and
the wire layout (see `fields`), ``need`` is the right a caller must hold (see `warren.auth.rights`;
a request without one is refused by the server), ``dialects`` says who may send it. Encoders,
decoders, `repr`, examples for tests and the rows of docs/protocol.md are derived from these
lines and from nothing else.

Needs are words, because a few depend on more than the message: ``open`` looks at the mode,
``write`` becomes ``ctl`` on a ctl file, ``rename`` is remove and create at two paths.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar, dataclass_transform, get_args

from warren.p9.fields import (
    Data,
    Kind,
    Names,
    Qid,
    QidField,
    Qids,
    Stat,
    StatField,
    Str,
    Str_warren,
    u8,
    u16,
    u32,
    u32_dotl,
    u64,
)

PLAIN, DOTL, WARREN = "9P2000", "9P2000.L", "9P2000.L.warren"
ALL = (PLAIN, DOTL, WARREN)
LINUX = (DOTL, WARREN)


class Message:
    """One message. `tag` and `trace` belong to the envelope and do not count in comparisons."""

    __slots__ = ("tag", "trace")
    type: ClassVar[int]
    need: ClassVar[str | None]
    dialects: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[tuple[str, Kind], ...]] = ()
    tag: int
    trace: int

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, n) == getattr(other, n) for n, _ in self.fields)

    __hash__ = None  # type: ignore[assignment]  # messages are mutable values

    def __repr__(self) -> str:
        parts = []
        for name, kind in self.fields:
            value = getattr(self, name)
            if kind.name == "data":
                parts.append(f"{name}=<{len(value)} bytes>")
            else:
                parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @classmethod
    def layout(cls) -> str:
        """One line in the notation of the manual: ``size[4] Tread tag[2] fid[4] …``."""
        words = [f"size[4] {cls.__name__} tag[2]"]
        for name, kind in cls.fields:
            word = _NOTATION.get(kind.name, f"{{0}}[{_WIDTH.get(kind.fmt, 0)}]").format(name)
            if kind.only:
                word = f"({word} only in {DOTL if kind.only == 'L' else WARREN})"
            words.append(word)
        if cls.__name__[0] == "T" and cls.type != 100 and WARREN in cls.dialects:
            words.append(f"(trace[8] only in {WARREN})")
        return " ".join(words)

    @classmethod
    def examples(cls) -> Iterator["Message"]:
        """Values at the edges of every field: the least, the most, and something usual."""
        for column in range(3):
            yield cls(**{name: _EXAMPLES[kind.name, kind.fmt][column] for name, kind in cls.fields})


_WIDTH = {"B": 1, "H": 2, "I": 4, "Q": 8}
_NOTATION = {
    "str": "{0}[s]",
    "names": "n[2] n*(name[s])",
    "qid": "{0}[13]",
    "qids": "n[2] n*(qid[13])",
    "data": "count[4] {0}[count]",
    "stat": "n[2] {0}[n]",
}
_QIDS = (Qid(0, 0, 0), Qid(255, 2**32 - 1, 2**64 - 1), Qid(0x80, 7, 123456789))
_STATS = (
    Stat(0, 0, _QIDS[0], 0, 0, 0, 0, "", "", "", ""),
    Stat(65535, 2**32 - 1, _QIDS[1], 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**64 - 1, "n" * 255, "u", "g", "m"),
    Stat(0, 1, _QIDS[2], 0o644, 1, 2, 3, "héllo", "glenda", "sys", "glenda"),
)
_EXAMPLES: dict[tuple[str, str], tuple[Any, Any, Any]] = {
    ("int", "B"): (0, 255, 1),
    ("int", "H"): (0, 65535, 9),
    ("int", "I"): (0, 2**32 - 1, 4096),
    ("int", "Q"): (0, 2**64 - 1, 1 << 33),
    ("str", ""): ("", "x" * 255, "naïve \udcff name"),
    ("names", ""): ([], ["x"] * 16, ["usr", "glenda", ".."]),
    ("qid", ""): _QIDS,
    ("qids", ""): ([], [_QIDS[1]] * 16, list(_QIDS)),
    ("data", ""): (b"", b"\xff" * 300, b"hello, world\n"),
    ("stat", ""): _STATS,
}

MESSAGES: dict[str, type[Message]] = {}
M = TypeVar("M", bound=type[Message])


def absent_value(kind: Kind) -> str | int:
    """What a field reads as in a dialect that does not carry it."""
    return "" if kind.name == "str" else 0xFFFFFFFF


@dataclass_transform(eq_default=False)
def message(
    number: int, *, need: str | None = None, dialects: tuple[str, ...] = ALL
) -> Callable[[M], M]:
    """Turn an annotated class into a message with slots and a constructor."""

    def declare(cls: M) -> M:
        found = tuple(
            (name, next(k for k in get_args(hint) if isinstance(k, Kind)))
            for name, hint in inspect.get_annotations(cls).items()
        )
        names = [name for name, _ in found]

        def init(self: Message, *args: Any, **kw: Any) -> None:
            self.tag = 0
            self.trace = 0
            if len(args) > len(names):
                raise TypeError(f"{cls.__name__} takes {len(names)} fields, {len(args)} were given")
            kw.update(zip(names, args, strict=False))
            for name, kind in found:
                if name not in kw and kind.only:
                    kw[name] = absent_value(kind)
                try:
                    setattr(self, name, kw.pop(name))
                except KeyError:
                    raise TypeError(f"{cls.__name__} needs {name}") from None
            if kw:
                raise TypeError(f"{cls.__name__} has no field {', '.join(kw)}")

        body = {
            "__slots__": tuple(names),
            "__doc__": cls.__doc__,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__init__": init,
            "type": number,
            "need": need,
            "dialects": dialects,
            "fields": found,
        }
        made: Any = type(cls.__name__, cls.__bases__, body)
        MESSAGES[cls.__name__] = made
        return made  # type: ignore[no-any-return]

    return declare


@message(100, need="session")
class Tversion(Message):
    """Begin, or begin again: everything outstanding is aborted."""

    msize: u32
    version: Str


@message(101)
class Rversion(Message):
    """The size and dialect the server settled on, or `unknown`."""

    msize: u32
    version: Str


@message(102, need="session")
class Tauth(Message):
    """Open a file over which a token can be presented."""

    afid: u32
    uname: Str
    aname: Str
    n_uname: u32_dotl


@message(103)
class Rauth(Message):
    """The afid is open."""

    aqid: QidField


@message(104, need="walk")
class Tattach(Message):
    """Bind a fid to the root of a tree; uname is a label and is never believed."""

    fid: u32
    afid: u32
    uname: Str
    aname: Str
    n_uname: u32_dotl


@message(105)
class Rattach(Message):
    """The root's qid."""

    qid: QidField


@message(107, dialects=(PLAIN,))
class Rerror(Message):
    """A refusal, in words."""

    ename: Str


@message(7, dialects=LINUX)
class Rlerror(Message):
    """A refusal, as a Linux errno; between Warren peers with its text."""

    ecode: u32
    ename: Str_warren


@message(108, need="session")
class Tflush(Message):
    """Give up on a request; answered once the request is settled."""

    oldtag: u16


@message(109)
class Rflush(Message):
    """The old tag may be used again."""


@message(110, need="walk")
class Twalk(Message):
    """Follow up to 16 names from a fid; no names clones it."""

    fid: u32
    newfid: u32
    names: Names


@message(111)
class Rwalk(Message):
    """A qid for each name that was followed."""

    qids: Qids


@message(112, need="open", dialects=(PLAIN,))
class Topen(Message):
    """Prepare a fid for reading or writing."""

    fid: u32
    mode: u8


@message(113, dialects=(PLAIN,))
class Ropen(Message):
    """The file is open; iounit 0 means whatever fits."""

    qid: QidField
    iounit: u32


@message(114, need="create", dialects=(PLAIN,))
class Tcreate(Message):
    """Make a file or directory and open it; the fid moves to it."""

    fid: u32
    name: Str
    perm: u32
    mode: u8


@message(115, dialects=(PLAIN,))
class Rcreate(Message):
    """The new file is open."""

    qid: QidField
    iounit: u32


@message(116, need="opened")
class Tread(Message):
    """Bytes from an open fid."""

    fid: u32
    offset: u64
    count: u32


@message(117)
class Rread(Message):
    """At most the bytes that were asked for; none at the end."""

    data: Data


@message(118, need="opened")
class Twrite(Message):
    """Bytes to an open fid."""

    fid: u32
    offset: u64
    data: Data


@message(119)
class Rwrite(Message):
    """How many bytes were taken."""

    count: u32


@message(120, need="session")
class Tclunk(Message):
    """Forget a fid."""

    fid: u32


@message(121)
class Rclunk(Message):
    """The fid is free."""


@message(122, need="remove")
class Tremove(Message):
    """Remove the file and forget the fid, even if the removal is refused."""

    fid: u32


@message(123)
class Rremove(Message):
    """Removed."""


@message(124, need="walk", dialects=(PLAIN,))
class Tstat(Message):
    """Ask for a file's directory entry."""

    fid: u32


@message(125, dialects=(PLAIN,))
class Rstat(Message):
    """The entry."""

    stat: StatField


@message(126, need="write", dialects=(PLAIN,))
class Twstat(Message):
    """Change a directory entry; fields of all ones are left alone, all of them so is a sync."""

    fid: u32
    stat: StatField


@message(127, dialects=(PLAIN,))
class Rwstat(Message):
    """Changed, all of it or nothing."""


@message(8, need="walk", dialects=LINUX)
class Tstatfs(Message):
    """Ask about the file system a fid lies on."""

    fid: u32


@message(9, dialects=LINUX)
class Rstatfs(Message):
    """As statfs(2)."""

    fstype: u32
    bsize: u32
    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    fsid: u64
    namelen: u32


@message(12, need="open", dialects=LINUX)
class Tlopen(Message):
    """Open with Linux open(2) flags."""

    fid: u32
    flags: u32


@message(13, dialects=LINUX)
class Rlopen(Message):
    """The file is open."""

    qid: QidField
    iounit: u32


@message(14, need="create", dialects=LINUX)
class Tlcreate(Message):
    """Make a regular file and open it; the fid moves to it."""

    fid: u32
    name: Str
    flags: u32
    mode: u32
    gid: u32


@message(15, dialects=LINUX)
class Rlcreate(Message):
    """The new file is open."""

    qid: QidField
    iounit: u32


@message(16, need="create", dialects=LINUX)
class Tsymlink(Message):
    """Make a symbolic link."""

    dfid: u32
    name: Str
    target: Str
    gid: u32


@message(17, dialects=LINUX)
class Rsymlink(Message):
    """The link's qid."""

    qid: QidField


@message(18, need="create", dialects=LINUX)
class Tmknod(Message):
    """Make a node of the given mode."""

    dfid: u32
    name: Str
    mode: u32
    major: u32
    minor: u32
    gid: u32


@message(19, dialects=LINUX)
class Rmknod(Message):
    """The node's qid."""

    qid: QidField


@message(20, need="rename", dialects=LINUX)
class Trename(Message):
    """Move the fid's file into a directory under a new name."""

    fid: u32
    dfid: u32
    name: Str


@message(21, dialects=LINUX)
class Rrename(Message):
    """Moved."""


@message(22, need="read", dialects=LINUX)
class Treadlink(Message):
    """Where a symbolic link points."""

    fid: u32


@message(23, dialects=LINUX)
class Rreadlink(Message):
    """The link's text."""

    target: Str


@message(24, need="walk", dialects=LINUX)
class Tgetattr(Message):
    """Attributes of a file."""

    fid: u32
    mask: u64


@message(25, dialects=LINUX)
class Rgetattr(Message):
    """As stat(2), with seconds and nanoseconds apart. In 9P2000.L.warren `gen` is the word of the file."""

    valid: u64
    qid: QidField
    mode: u32
    uid: u32
    gid: u32
    nlink: u64
    rdev: u64
    size: u64
    blksize: u64
    blocks: u64
    atime: u64
    atime_ns: u64
    mtime: u64
    mtime_ns: u64
    ctime: u64
    ctime_ns: u64
    btime: u64
    btime_ns: u64
    gen: u64
    data_version: u64


@message(26, need="write", dialects=LINUX)
class Tsetattr(Message):
    """Change the attributes that valid names."""

    fid: u32
    valid: u32
    mode: u32
    uid: u32
    gid: u32
    size: u64
    atime: u64
    atime_ns: u64
    mtime: u64
    mtime_ns: u64


@message(27, dialects=LINUX)
class Rsetattr(Message):
    """Changed."""


@message(30, need="read", dialects=LINUX)
class Txattrwalk(Message):
    """Open an extended attribute, or with no name their list, for reading on newfid."""

    fid: u32
    newfid: u32
    name: Str


@message(31, dialects=LINUX)
class Rxattrwalk(Message):
    """How many bytes it has."""

    size: u64


@message(32, need="write", dialects=LINUX)
class Txattrcreate(Message):
    """Turn the fid into one that gathers an attribute's value, set at clunk."""

    fid: u32
    name: Str
    size: u64
    flags: u32


@message(33, dialects=LINUX)
class Rxattrcreate(Message):
    """Write the value now."""


@message(40, need="opened", dialects=LINUX)
class Treaddir(Message):
    """Entries of an open directory."""

    fid: u32
    offset: u64
    count: u32


@message(41, dialects=LINUX)
class Rreaddir(Message):
    """Whole entries: qid[13] offset[8] type[1] name[s]."""

    data: Data


@message(50, need="opened", dialects=LINUX)
class Tfsync(Message):
    """Make what was written durable; commits a gathered body."""

    fid: u32
    datasync: u32


@message(51, dialects=LINUX)
class Rfsync(Message):
    """It is durable."""


@message(52, need="write", dialects=LINUX)
class Tlock(Message):
    """Take or release a byte-range lock for (client_id, proc_id)."""

    fid: u32
    kind: u8
    flags: u32
    start: u64
    length: u64
    proc_id: u32
    client_id: Str


@message(53, dialects=LINUX)
class Rlock(Message):
    """0 success, 1 blocked, 2 error, 3 grace."""

    status: u8


@message(54, need="write", dialects=LINUX)
class Tgetlock(Message):
    """Ask which lock would be in the way."""

    fid: u32
    kind: u8
    start: u64
    length: u64
    proc_id: u32
    client_id: Str


@message(55, dialects=LINUX)
class Rgetlock(Message):
    """That lock, or kind 2 (unlocked) when there is none."""

    kind: u8
    start: u64
    length: u64
    proc_id: u32
    client_id: Str


@message(70, need="create", dialects=LINUX)
class Tlink(Message):
    """Give the fid's file a further name."""

    dfid: u32
    fid: u32
    name: Str


@message(71, dialects=LINUX)
class Rlink(Message):
    """Linked."""


@message(72, need="create", dialects=LINUX)
class Tmkdir(Message):
    """Make a directory."""

    dfid: u32
    name: Str
    mode: u32
    gid: u32


@message(73, dialects=LINUX)
class Rmkdir(Message):
    """The directory's qid."""

    qid: QidField


@message(74, need="rename", dialects=LINUX)
class Trenameat(Message):
    """Move a name from one directory to another."""

    olddirfid: u32
    oldname: Str
    newdirfid: u32
    newname: Str


@message(75, dialects=LINUX)
class Rrenameat(Message):
    """Moved."""


@message(76, need="remove", dialects=LINUX)
class Tunlinkat(Message):
    """Remove a name; flags 0x200 means a directory."""

    dfid: u32
    name: Str
    flags: u32


@message(77, dialects=LINUX)
class Runlinkat(Message):
    """Removed."""
