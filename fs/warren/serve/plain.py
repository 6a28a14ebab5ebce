"""What plain 9P2000 asks beyond the common calls: open, create, stat, wstat, and directories as bytes."""

from __future__ import annotations

import inspect
import pwd
from collections.abc import Awaitable
from functools import lru_cache

from warren.auth.rights import CREATE, READ, REMOVE, WRITE
from warren.p9 import messages as p9
from warren.p9.codec import pack_stat
from warren.p9.fields import QTDIR, Stat
from warren.serve import tokens
from warren.serve.calls import (
    CALLS,
    READ_OVERHEAD,
    check_name,
    may_gain,
    open_fid,
    rread,
    tread,
)
from warren.serve.fid import Fid
from warren.serve.linux import become, change, fitting, later, visible
from warren.serve.session import Frame, Reply, Session
from warren.tree import Attr, Changes, Handle, Maybe, Node, Refused
from warren.tree.errors import absent

OEXEC, OTRUNC, ORCLOSE = 3, 0x10, 0x40
DMDIR = 0x80000000
_U16, _U32, _U64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_S_IFMT, _S_IFDIR = 0o170000, 0o040000


def _flags(s: Session, mode: int, path: str) -> int:
    """Linux flags of an open mode. ORCLOSE asks for the right to remove now, not at the clunk."""
    if mode & ~(3 | OTRUNC | ORCLOSE):
        raise Refused(400, f"open mode {mode:#x} is not known")
    if mode & ORCLOSE and not s.grants.at(path).mask & REMOVE:
        raise Refused(403, f"you may not remove {path}")
    access = 0 if mode & 3 == OEXEC else mode & 3
    return access | (0o1000 if mode & OTRUNC else 0)


def tauth(s: Session, m: p9.Tauth) -> Reply:
    if s.export.verifier is not None:
        return tokens.tauth(s, m)
    return s.pack.Rerror(m.tag, "authentication not required")  # the words that clients know


def topen(s: Session, m: p9.Topen) -> Reply:
    f = s.fid(m.fid)
    flags = _flags(s, m.mode, f.place.path)

    def done() -> Frame:
        if m.mode & ORCLOSE:
            f.on_clunk = "remove"
        return s.pack.Ropen(m.tag, f.node.qid(), s.half.iounit)

    return open_fid(s, m.trace, f, flags, done)


def tcreate(s: Session, m: p9.Tcreate) -> Reply:
    f = s.fid(m.fid)
    check_name(m.name)
    if f.handle is not None:
        raise Refused(400, "the fid is open already", errno=9)
    path = s.at_child(f.place, m.name, CREATE, "create")
    flags = _flags(s, m.mode, path)
    if m.perm & ~(DMDIR | 0o7777):
        raise Refused(405, "only plain files and directories can be created")
    mask = s.grants.at(path).mask
    reads, writes = flags & 3 in (0, 2), bool(flags & 3)
    if (reads and not mask & READ) or (writes and not mask & WRITE):
        raise Refused(403, f"you may not open {path}")

    def created(made: tuple[Node, Handle]) -> Frame:
        become(s, f, m.name, path, *made, flags)
        if m.mode & ORCLOSE:
            f.on_clunk = "remove"
        return s.pack.Rcreate(m.tag, f.node.qid(), s.half.iounit)

    if m.perm & DMDIR:
        if writes:
            raise Refused(400, "a directory cannot be written", errno=21)
        return s.effect("mkdir", path, "", m.trace, lambda: _mkdir(s, f, m), created)
    # In this dialect create must fail on a name that is taken: O_EXCL.
    flags |= 0o200
    return s.effect("create", path, "", m.trace,
                    lambda: f.node.create(m.name, flags, m.perm & 0o777, _U32, s), created)  # fmt: skip


async def _mkdir(s: Session, f: Fid, m: p9.Tcreate) -> tuple[Node, Handle]:
    made = f.node.mkdir(m.name, m.perm & 0o777, _U32, s)
    node = await made if inspect.isawaitable(made) else made
    opened = node.open(0, s)
    return node, await opened if inspect.isawaitable(opened) else opened


@lru_cache(1024)
def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def stat_of(name: str, a: Attr) -> Stat:
    """An attribute record as the plain dialect's directory entry."""
    mode = a.mode & 0o777 | (DMDIR if a.mode & _S_IFMT == _S_IFDIR else 0)
    length = 0 if a.mode & _S_IFMT == _S_IFDIR else a.size
    return Stat(
        0, 0, a.qid, mode, a.atime & _U32, a.mtime & _U32, length, name, _name_of(a.uid), _name_of(a.gid), ""
    )


def tstat(s: Session, m: p9.Tstat) -> Reply:
    f = s.fid(m.fid)
    return later(s, f.node.attr(), lambda a: fitting(s, s.pack.Rstat(m.tag, stat_of(f.place.name, a))))


def twstat(s: Session, m: p9.Twstat) -> Reply:
    f = s.fid(m.fid)
    st = m.stat
    if st.uid:  # muid is ignored: Linux fills it in when it renames
        raise Refused(403, "the owner of a file cannot be changed", errno=1)
    if st.gid:
        raise Refused(403, "the group of a file cannot be changed", errno=1)
    if st.type != _U16 or st.dev != _U32 or st.qid != (0xFF, _U32, _U64):
        raise Refused(400, "type, dev and qid of a file cannot be changed")
    changes = Changes(
        mode=None if st.mode == _U32 else st.mode & 0o777,
        size=None if st.length == _U64 else st.length,
        atime=None if st.atime == _U32 else st.atime * 10**9,
        mtime=None if st.mtime == _U32 else st.mtime * 10**9,
    )
    changing = any(c is not None for c in changes)
    if st.mode != _U32 and bool(st.mode & DMDIR) != bool(f.node.qtype & QTDIR):
        raise Refused(400, "the directory bit of a mode cannot be changed")
    if not changing and not st.name:
        # Everything is don't-touch: by the manual, a request to make the file durable.
        done = f.handle.fsync() if f.handle is not None else None
        return later(s, done, lambda _: s.pack.Rwstat(m.tag))
    if changing and f.node.swallows_truncate and not changes.size and changes.mode is None:
        changing = False
        if not f.allowed.mask & (16 if f.node.is_ctl else WRITE):
            raise Refused(403, f"you may not change {f.place.path}")
    if changing:
        s.need(f, WRITE, "change")
    if st.name and st.name != f.place.name:
        return _rename(s, m, f, changes if changing else None)
    if changing:
        return change(s, m.trace, f, changes, lambda: s.pack.Rwstat(m.tag))
    return s.pack.Rwstat(m.tag)


def _rename(s: Session, m: p9.Twstat, f: Fid, changes: Changes | None) -> Reply:
    """A new name in the same directory, and the other changes with it. The name is the last step,
    because it is the likeliest to fail and everything before it can be checked first."""
    above = f.place.above
    if above is None:
        raise Refused(403, "the root of an attachment cannot be renamed")
    check_name(m.stat.name)
    old, new = f.place.path, above.child(m.stat.name)
    mask = s.grants.at(new).mask
    s.need(f, REMOVE, "rename")
    if not mask & CREATE:
        raise Refused(403, f"you may not create {new}")
    may_gain(s, old, new)

    def act() -> Maybe[bool]:
        return _renamed(f, m.stat.name, changes)

    detail = f"to {new}" + (f" {changes}" if changes else "")
    return s.effect("rename", old, detail, m.trace, act,
                    lambda _: _moved(s, m, f, old, new))  # fmt: skip


async def _renamed(f: Fid, name: str, changes: Changes | None) -> bool:
    above = f.place.above
    assert above is not None
    try:
        taken = above.node.walk(name)
        if inspect.isawaitable(taken):
            await taken
    except OSError as e:
        if e.errno != absent().errno:
            raise
    else:
        raise Refused(409, f"{name} is taken; this dialect does not replace by renaming")
    if changes is not None:
        set_ = f.node.setattr(changes)
        if inspect.isawaitable(set_):
            await set_
    done = above.node.rename(f.place.name, above.node, name, f.node)
    if inspect.isawaitable(done):
        await done
    return True


def _moved(s: Session, m: p9.Twstat, f: Fid, old: str, new: str) -> Frame:
    assert f.place.above is not None
    s.export.moved(s, old, new, f.place.above)
    return s.pack.Rwstat(m.tag)


def tread_plain(s: Session, m: p9.Tread) -> Reply:
    """Reading a directory gives whole stats, from the beginning or from where the last read ended.

    A count that is too small for the next one is refused at the beginning and ends the read later: Linux
    asks on with what its buffer has left.
    """
    f = s.fids.get(m.fid)
    if f is None or not f.node.qtype & QTDIR:
        return tread(s, m)
    f = s.fid(m.fid)
    if f.handle is None or not f.reads:
        raise Refused(400, "the fid is not open for reading", errno=9)
    return _read_directory(s, m, f, f.handle)


class Pages:
    """A directory being read: the stats that are left, and where the next read must begin."""

    def __init__(self, stats: list[bytes]) -> None:
        self.stats = stats
        self.at = 0
        self.offset = 0


async def _read_directory(s: Session, m: p9.Tread, f: Fid, handle: Handle) -> Frame:
    pages = f.pages
    if m.offset == 0:
        pages = f.pages = Pages(await _stats(s, f, handle))
    elif not isinstance(pages, Pages) or m.offset != pages.offset:
        raise Refused(416, "a directory is read from 0 or from where the last read ended")
    count = min(m.count, s.half.msize - READ_OVERHEAD)
    out = b""
    while pages.at < len(pages.stats) and len(out) + len(pages.stats[pages.at]) <= count:
        out += pages.stats[pages.at]
        pages.at += 1
    if not out and not m.offset and pages.stats:
        raise Refused(413, "the count is less than one directory entry", errno=22)
    pages.offset += len(out)
    return rread(m.tag, out, count)


async def _stats(s: Session, f: Fid, handle: Handle) -> list[bytes]:
    entries = handle.entries()
    found = await entries if isinstance(entries, Awaitable) else entries
    stats = []
    for entry in visible(s, f, found):
        try:
            child = f.node.walk(entry.name)
            node = await child if isinstance(child, Awaitable) else child
            attr = node.attr()
            stats.append(pack_stat(stat_of(entry.name, await attr if isinstance(attr, Awaitable) else attr)))
        except OSError:
            continue  # it went away, or it is nothing that this dialect can show
    return stats


PLAIN = CALLS | {
    p9.Tauth: tauth, p9.Topen: topen, p9.Tcreate: tcreate, p9.Tstat: tstat, p9.Twstat: twstat,
    p9.Tread: tread_plain,
}  # fmt: skip
