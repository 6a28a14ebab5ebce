"""How 9P2000.L and 9P2000.L.warren say it."""

import errno
import os
import stat as S
import struct
from typing import Any

from warren.mount.entry import Entry
from warren.mount.link import Link, Op
from warren.mount.words import MOST_NAMES, Opened, Range, Request, Words, plain_name
from warren.p9.codec import text
from warren.p9.fields import QTDIR, Qid
from warren.p9.messages import (
    WARREN,
    Rgetattr,
    Rreaddir,
    Tfsync,
    Tgetattr,
    Tgetlock,
    Tlcreate,
    Tlink,
    Tlock,
    Tlopen,
    Tmkdir,
    Tmknod,
    Tread,
    Treaddir,
    Treadlink,
    Tremove,
    Trename,
    Trenameat,
    Tsetattr,
    Tstatfs,
    Tsymlink,
    Tunlinkat,
    Twalk,
    Twrite,
    Txattrcreate,
    Txattrwalk,
)
from warren.tree.node import NOW, Changes, Dirent, Statfs

_BASIC = 0x7FF
_DIRENT = struct.Struct("<BIQQBH")
_WINDOW = 64  # names asked about at once

# The wire has the numbers of the generic Linux ABI, which are not everybody's.
_FLAGS = (
    (os.O_CREAT, 0o100), (os.O_EXCL, 0o200), (os.O_TRUNC, 0o1000), (os.O_APPEND, 0o2000),
    (os.O_NONBLOCK, 0o4000), (os.O_DSYNC, 0o10000), (os.O_DIRECTORY, 0o200000), (os.O_NOFOLLOW, 0o400000),
)  # fmt: skip
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_SET, _MTIME_SET = 1, 2, 4, 8, 0x10, 0x20, 0x80, 0x100
_AT_REMOVEDIR = 0x200
_LOCK_BLOCK = 1
_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOSYS)


def wire_flags(flags: int) -> int:
    """The flags of open(2) here as the wire has them."""
    return flags & os.O_ACCMODE | sum(wire for ours, wire in _FLAGS if flags & ours == ours)


class Linux(Words):
    """Both dialects of .L; their difference is in the codec."""

    links = True
    renames_across = True

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._gid = os.getegid()
        self._has_at = True  # Trenameat and Tunlinkat; diod 1.0 answers both with EOPNOTSUPP

    def stat(self) -> Request:
        return Tgetattr, (_BASIC,)

    def entry(self, reply: Any, name: str) -> Entry:
        r: Rgetattr = reply
        return Entry(
            name, r.qid, r.mode, r.size,
            r.atime * 10**9 + r.atime_ns, r.mtime * 10**9 + r.mtime_ns,
            r.ctime * 10**9 + r.ctime_ns, r.btime * 10**9 + r.btime_ns,
            r.uid, r.gid, r.nlink, r.rdev, r.blocks, r.blksize, str(r.uid), str(r.gid),
            r.gen if self.link.version == WARREN else 0,
        )  # fmt: skip

    def open(self, flags: int) -> Request:
        return Tlopen, (wire_flags(flags),)

    async def create(self, op: Op, fid: int, name: str, flags: int, mode: int) -> Opened:
        reply = await self.link.ask(op, Tlcreate, fid, name, wire_flags(flags), S.S_IMODE(mode), self._gid)
        return self.opened(reply)

    async def mkdir(self, op: Op, fid: int, name: str, mode: int) -> None:
        await self.link.ask(op, Tmkdir, fid, name, S.S_IMODE(mode), self._gid)

    async def names(self, op: Op, fid: int) -> list[Dirent]:
        """What a directory lists. A server may list for ever, cut an entry, or name what is elsewhere."""
        found: list[Dirent] = []
        seen = offset = 0
        while True:
            reply: Rreaddir = await self.link.ask(op, Treaddir, fid, offset, min(self.link.payload, 1 << 16))
            view, at = memoryview(reply.data), 0
            if not view:
                return found
            while at < len(view):
                if len(view) - at < _DIRENT.size:
                    raise self._nonsense(op, "an entry that is cut")
                kind, version, path, offset, _, n = _DIRENT.unpack_from(view, at)
                at += _DIRENT.size + n
                if at > len(view):
                    raise self._nonsense(op, "an entry that is cut")
                name = text(view[at - n : at])
                if (seen := seen + 1) > MOST_NAMES:
                    raise op.error(errno.EFBIG, f"{self.link.peer} lists more than {MOST_NAMES} names")
                if name in (".", ".."):
                    continue
                if not plain_name(name):
                    raise self._nonsense(op, f"the name {name!r}")
                found.append(Dirent(name, Qid(kind, version, path)))

    def _nonsense(self, op: Op, what: str) -> OSError:
        return op.error(errno.EPROTO, f"{self.link.peer} lists nonsense: {what}")

    async def entries(self, op: Op, walked: int, fid: int) -> list[Entry]:
        found = []
        names = await self.names(op, fid)
        for i in range(0, len(names), _WINDOW):
            found += await self._stats(op, walked, names[i : i + _WINDOW])
        return found

    async def _stats(self, op: Op, walked: int, names: list[Dirent]) -> list[Entry]:
        """Attributes of some names of a directory; what has gone since is left out."""
        link = self.link
        fids = [link.half.fids.take() for _ in names]
        calls = [link.start(op, Twalk, walked, f, [d.name]) for f, d in zip(fids, names, strict=True)]
        made: list[tuple[int, str]] = []
        found = []
        try:
            for call, fid, d in zip(calls, fids, names, strict=True):
                try:
                    await link.finish(op, call)
                except FileNotFoundError:
                    continue
                made.append((fid, d.name))
            calls = [link.start(op, Tgetattr, fid, _BASIC) for fid, _ in made]
            for call, (_, name) in zip(calls, made, strict=True):
                try:
                    found.append(self.entry(await link.finish(op, call), name))
                except FileNotFoundError:
                    continue
        finally:
            for call in calls:
                link.abandon(call)
            for fid, _ in made:
                link.forget(fid)
        return found

    async def renameat(self, op: Op, olddir: int, old: str, newdir: int, new: str) -> None:
        if self._has_at:
            try:
                await self.link.ask(op, Trenameat, olddir, old, newdir, new)
                return
            except OSError as e:
                if e.errno not in _UNKNOWN:
                    raise
                self._has_at = False
        fid, _ = await self._child(op, olddir, old)
        try:
            await self.link.ask(op, Trename, fid, newdir, new)
        finally:
            self.link.forget(fid)

    async def setattr(self, op: Op, fid: int, changes: Changes) -> None:
        c, valid, times = changes, 0, [0, 0, 0, 0]
        for value, bit in ((c.mode, _MODE), (c.uid, _UID), (c.gid, _GID), (c.size, _SIZE)):
            valid |= bit if value is not None else 0
        dated = ((c.atime, _ATIME, _ATIME_SET), (c.mtime, _MTIME, _MTIME_SET))
        for i, (value, bit, given) in enumerate(dated):
            if value is not None:
                valid |= bit if value == NOW else bit | given
                times[2 * i : 2 * i + 2] = divmod(value, 10**9) if value != NOW else (0, 0)
        numbers = (c.mode or 0, c.uid or 0, c.gid or 0, c.size or 0, *times)
        await self.link.ask(op, Tsetattr, fid, valid, *numbers)

    async def fsync(self, op: Op, fid: int, datasync: bool) -> None:
        await self.link.ask(op, Tfsync, fid, int(datasync))

    async def unlink(self, op: Op, fid: int, name: str, directory: bool) -> None:
        if self._has_at:
            try:
                await self.link.ask(op, Tunlinkat, fid, name, _AT_REMOVEDIR if directory else 0)
                return
            except OSError as e:
                if e.errno not in _UNKNOWN:
                    raise
                self._has_at = False
        child, qid = await self._child(op, fid, name)
        if directory is not bool(qid.type & QTDIR):
            self.link.forget(child)
            number = errno.ENOTDIR if directory else errno.EISDIR
            raise op.error(number, os.strerror(number))
        await self.link.ask(op, Tremove, child)

    async def _child(self, op: Op, fid: int, name: str) -> tuple[int, Qid]:
        new = self.link.half.fids.take()
        reply = await self.link.ask(op, Twalk, fid, new, [name])
        return new, reply.qids[0]

    async def symlink(self, op: Op, fid: int, name: str, target: str) -> None:
        await self.link.ask(op, Tsymlink, fid, name, target, self._gid)

    async def readlink(self, op: Op, fid: int) -> str:
        return str((await self.link.ask(op, Treadlink, fid)).target)

    async def link_to(self, op: Op, fid: int, name: str, old: int) -> None:
        await self.link.ask(op, Tlink, fid, old, name)

    async def mknod(self, op: Op, fid: int, name: str, mode: int, major: int, minor: int) -> None:
        await self.link.ask(op, Tmknod, fid, name, mode, major, minor, self._gid)

    async def statfs(self, op: Op, fid: int) -> Statfs:
        r = await self.link.ask(op, Tstatfs, fid)
        return Statfs(*(getattr(r, name) for name in Statfs._fields))

    async def getxattr(self, op: Op, fid: int, name: str) -> bytes:
        new = self.link.half.fids.take()
        size = (await self.link.ask(op, Txattrwalk, fid, new, name)).size
        value = b""
        try:
            while len(value) < size:
                count = min(size - len(value), self.link.payload)
                piece = (await self.link.ask(op, Tread, new, len(value), count)).data
                if not piece:
                    break
                value += piece
        finally:
            self.link.forget(new)
        return value

    async def setxattr(self, op: Op, fid: int, name: str, value: bytes, flags: int) -> None:
        try:
            await self.link.ask(op, Txattrcreate, fid, name, len(value), flags)
            at = 0
            while at < len(value):
                piece = value[at : at + self.link.payload]
                at += (await self.link.ask(op, Twrite, fid, at, piece)).count
        except BaseException:
            self.link.forget(fid)
            raise
        await self.link.clunk(op, fid)  # the attribute is set now, or refused

    async def lock(self, op: Op, fid: int, want: Range, wait: bool) -> bool:
        reply = await self.link.ask(op, Tlock, fid, want.kind, _LOCK_BLOCK if wait else 0, *want[1:])
        if reply.status in (0, 1):
            return bool(reply.status == 0)
        raise op.error(errno.ENOLCK, f"{self.link.peer} gave no lock (status {reply.status})")

    async def getlock(self, op: Op, fid: int, want: Range) -> Range:
        r = await self.link.ask(op, Tgetlock, fid, *want)
        return Range(r.kind, r.start, r.length, r.proc_id, r.client_id)


__all__ = ["Linux", "wire_flags"]
