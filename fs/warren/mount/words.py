"""The operations of a tree, whatever the dialect: what each one must be able to say.

`linux` and `plain` derive from `Words`. What a dialect lacks it inherits, and the caller reads which
operation that was and which dialect has it. Fids are the caller's: an operation leaves them as they
were unless its line says otherwise. Cancelled means no effect, as `Link.finish` has it; operations
of several requests say what may remain.
"""

import errno
from typing import Any, Final, NamedTuple, NoReturn

from warren.mount.entry import Entry
from warren.mount.link import Link, Op
from warren.p9.fields import Qid
from warren.p9.messages import DOTL, Message
from warren.tree.node import Changes, Dirent, Statfs

Request = tuple[type[Message], tuple[Any, ...]]  # a message and its fields after the fid


MOST_NAMES: Final = 1 << 20  # of one directory: a server may list for ever


def plain_name(name: str) -> bool:
    """Whether a directory may list it: a name that leads elsewhere must reach no caller."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


class Opened(NamedTuple):
    """What an open or a create answered."""

    qid: Qid
    iounit: int


class Range(NamedTuple):
    """A byte-range lock as the wire has it; kind 0 shared, 1 exclusive, 2 none."""

    kind: int
    start: int
    length: int
    proc_id: int
    client_id: str


def lacks(link: Link, op: Op, what: str) -> NoReturn:
    raise op.error(errno.EOPNOTSUPP, f"{link.version} has no {what}; {DOTL} has")


class Words:
    """One dialect's way to say things on one link."""

    def __init__(self, link: Link) -> None:
        self.link = link

    links = False  # whether symbolic links can be followed
    renames_across = False  # whether it has renameat

    def stat(self) -> Request:
        """The request that `entry` understands."""
        raise NotImplementedError

    def entry(self, reply: Any, name: str) -> Entry:
        raise NotImplementedError

    def open(self, flags: int) -> Request:
        """The request that `opened` understands."""
        raise NotImplementedError

    def opened(self, reply: Any) -> Opened:
        return Opened(reply.qid, reply.iounit)

    async def create(self, op: Op, fid: int, name: str, flags: int, mode: int) -> Opened:
        """Make a regular file in the directory FID, which becomes that file, open."""
        raise NotImplementedError

    async def mkdir(self, op: Op, fid: int, name: str, mode: int) -> None:
        """FID may become the directory."""
        raise NotImplementedError

    async def names(self, op: Op, fid: int) -> list[Dirent]:
        """All names of the open directory FID."""
        raise NotImplementedError

    async def entries(self, op: Op, walked: int, fid: int) -> list[Entry]:
        """All names of the open directory FID with their attributes; WALKED is it, not open."""
        raise NotImplementedError

    async def renameat(self, op: Op, olddir: int, old: str, newdir: int, new: str) -> None:
        """Move a name from one directory to another, replacing what rename(2) replaces."""
        lacks(self.link, op, "rename across directories")

    async def rename_here(self, op: Op, fid: int, new: str) -> None:
        """Give FID's file another name in its directory."""
        raise NotImplementedError

    async def setattr(self, op: Op, fid: int, changes: Changes) -> None:
        raise NotImplementedError

    async def fsync(self, op: Op, fid: int, datasync: bool) -> None:
        raise NotImplementedError

    async def unlink(self, op: Op, fid: int, name: str, directory: bool) -> None:
        lacks(self.link, op, "unlinkat")

    async def symlink(self, op: Op, fid: int, name: str, target: str) -> None:
        lacks(self.link, op, "symbolic links")

    async def readlink(self, op: Op, fid: int) -> str:
        lacks(self.link, op, "symbolic links")

    async def link_to(self, op: Op, fid: int, name: str, old: int) -> None:
        """Give the file OLD the further name NAME in the directory FID."""
        lacks(self.link, op, "hard links")

    async def mknod(self, op: Op, fid: int, name: str, mode: int, major: int, minor: int) -> None:
        lacks(self.link, op, "special files")

    async def statfs(self, op: Op, fid: int) -> Statfs:
        lacks(self.link, op, "statfs")

    async def getxattr(self, op: Op, fid: int, name: str) -> bytes:
        """The value, or with an empty NAME the names, each followed by NUL."""
        lacks(self.link, op, "extended attributes")

    async def setxattr(self, op: Op, fid: int, name: str, value: bytes, flags: int) -> None:
        """FID is used up."""
        lacks(self.link, op, "extended attributes")

    async def lock(self, op: Op, fid: int, want: Range, wait: bool) -> bool:
        """Take the lock; False if it is held by another (a server may say so even if we can wait)."""
        lacks(self.link, op, "byte-range locks")

    async def getlock(self, op: Op, fid: int, want: Range) -> Range:
        lacks(self.link, op, "byte-range locks")
