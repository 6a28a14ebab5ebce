"""How plain 9P2000 says it: names for owners, seconds for times, one message for all attributes."""

import errno
import os
import stat as S
import time
from typing import Any

from warren.mount.entry import Entry
from warren.mount.link import Op
from warren.mount.words import MOST_NAMES, Opened, Request, Words, lacks, plain_name
from warren.p9.codec import BadFrame, parse_stat
from warren.p9.fields import Qid, Stat
from warren.p9.messages import Rread, Rstat, Tcreate, Topen, Tread, Tstat, Twstat
from warren.tree.node import NOW, Changes, Dirent

_DMDIR, _DMSYMLINK = 0x80000000, 0x02000000
_OTRUNC = 0x10
_NOBODY = 65534
_U16, _U32, _U64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_KEEP = Stat(_U16, _U32, Qid(0xFF, _U32, _U64), _U32, _U32, _U32, _U64, "", "", "", "")


def _mode(flags: int) -> int:
    return flags & os.O_ACCMODE | (_OTRUNC if flags & os.O_TRUNC else 0)


def _entry(stat: Stat, name: str) -> Entry:
    kind = S.S_IFDIR if stat.mode & _DMDIR else S.S_IFLNK if stat.mode & _DMSYMLINK else S.S_IFREG
    mtime = stat.mtime * 10**9
    return Entry(
        name, stat.qid, kind | stat.mode & 0o777, stat.length, stat.atime * 10**9, mtime, mtime, 0,
        int(stat.uid) if stat.uid.isdigit() else _NOBODY, int(stat.gid) if stat.gid.isdigit() else _NOBODY,
        blocks=-(-stat.length // 512), owner=stat.uid, group=stat.gid,
    )  # fmt: skip


class Plain(Words):
    """The dialect of Plan 9, its ports, Inferno and small kernels."""

    def stat(self) -> Request:
        return Tstat, ()

    def entry(self, reply: Any, name: str) -> Entry:
        answer: Rstat = reply
        return _entry(answer.stat, name)

    def open(self, flags: int) -> Request:
        return Topen, (_mode(flags),)

    async def create(self, op: Op, fid: int, name: str, flags: int, mode: int) -> Opened:
        reply = await self.link.ask(op, Tcreate, fid, name, mode & 0o777, _mode(flags) & ~_OTRUNC)
        return self.opened(reply)

    async def mkdir(self, op: Op, fid: int, name: str, mode: int) -> None:
        await self.link.ask(op, Tcreate, fid, name, _DMDIR | mode & 0o777, os.O_RDONLY)

    async def _stats(self, op: Op, fid: int) -> list[Stat]:
        found: list[Stat] = []
        offset = 0
        while True:
            reply: Rread = await self.link.ask(op, Tread, fid, offset, min(self.link.payload, 1 << 16))
            view, at = memoryview(reply.data), 0
            if not view:
                return found
            offset += len(view)
            while at < len(view):
                size = int.from_bytes(view[at : at + 2], "little") + 2
                try:
                    stat = parse_stat(view[at : at + size])
                except BadFrame as e:
                    raise op.error(errno.EPROTO, f"{self.link.peer} lists nonsense: {e}") from None
                if len(found) == MOST_NAMES:
                    raise op.error(errno.EFBIG, f"{self.link.peer} lists more than {MOST_NAMES} names")
                if not plain_name(stat.name):
                    said = f"{self.link.peer} lists nonsense: the name {stat.name!r}"
                    raise op.error(errno.EPROTO, said)
                found.append(stat)
                at += size

    async def names(self, op: Op, fid: int) -> list[Dirent]:
        return [Dirent(s.name, s.qid) for s in await self._stats(op, fid)]

    async def entries(self, op: Op, walked: int, fid: int) -> list[Entry]:
        return [_entry(s, s.name) for s in await self._stats(op, fid)]

    async def rename_here(self, op: Op, fid: int, new: str) -> None:
        await self.link.ask(op, Twstat, fid, _KEEP._replace(name=new))

    async def setattr(self, op: Op, fid: int, changes: Changes) -> None:
        c = changes
        if c.uid is not None or c.gid is not None:
            lacks(self.link, op, "numeric owners")
        if c.atime is not None and c.mtime is None:
            lacks(self.link, op, "way to set the time of access alone")
        mode, mtime, size = _U32, _U32, _U64
        if c.mode is not None:
            # The directory bit must be said as it is, so it has to be asked for first.
            old = (await self.link.ask(op, Tstat, fid)).stat.mode
            mode = old & ~0o777 | c.mode & 0o777
        if c.mtime is not None:
            mtime = (time.time_ns() if c.mtime == NOW else c.mtime) // 10**9
        if c.size is not None:
            size = c.size
        await self.link.ask(op, Twstat, fid, _KEEP._replace(mode=mode, mtime=mtime, length=size))

    async def fsync(self, op: Op, fid: int, datasync: bool) -> None:
        await self.link.ask(op, Twstat, fid, _KEEP)
