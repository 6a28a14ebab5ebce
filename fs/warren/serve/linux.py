"""What 9P2000.L asks beyond the common calls, in the terms of Linux system calls."""

from __future__ import annotations

import errno
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from warren.auth.rights import CREATE, CTL, READ, REMOVE, WRITE
from warren.p9 import messages as p9
from warren.p9.codec import untext
from warren.p9.fields import QTDIR, QTSYMLINK
from warren.serve.calls import (
    CALLS,
    READ_OVERHEAD,
    check_name,
    may_gain,
    new_fid,
    open_fid,
    rename,
    rread,
    still_free,
    take,
)
from warren.serve.fid import Fid, Place
from warren.serve.session import Frame, Reply, Session
from warren.tree import NOW, Attr, Bytes, Changes, Dirent, Handle, Lock, Maybe, Node, Refused, Statfs

T = TypeVar("T")
_HEAD = struct.Struct("<IBHQ")
_BASIC = 0x7FF  # every field of stat(2)
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _CTIME, _ATIME_SET, _MTIME_SET = (1 << n for n in range(9))
_REMOVEDIR = 0x200
_S_IFMT, _S_IFREG = 0o170000, 0o100000
_DT = {QTDIR: 4, QTSYMLINK: 10}
MAX_XATTR = 65536
XATTR_REPLACE = 2


def tgetattr(s: Session, m: p9.Tgetattr) -> Reply:
    f = s.fids.get(m.fid)
    if f is None or f.seq != s.export.seq:
        f = s.fid(m.fid)
    s.at = f.place.path
    attr = f.node.attr()
    if attr.__class__ is Attr:
        # A node that answers with the same object has not changed, and neither has what we packed of it.
        if attr is not f.attr:
            f.attr, f.packed = attr, s.pack.Rgetattr(0, 0, *_told(s, attr))[_HEAD.size :]
        return _HEAD.pack(_HEAD.size + len(f.packed), 25, m.tag, m.mask & _BASIC) + f.packed
    return _getattr_later(s, m, attr)  # type: ignore[arg-type]


async def _getattr_later(s: Session, m: p9.Tgetattr, coming: Awaitable[Attr]) -> Frame:
    return s.pack.Rgetattr(m.tag, m.mask & _BASIC, *_told(s, await coming))


def _told(s: Session, attr: Attr) -> Attr:
    """What word a file is, our own clients are told; to others `gen` is a generation, and we keep none."""
    dialect = s.half.dialect
    ours = dialect is not None and dialect.name == p9.WARREN
    attr = attr if ours or not attr.gen else attr._replace(gen=0)
    if s.export.shown_to_all:
        own = attr.mode & 0o700
        attr = attr._replace(mode=attr.mode | own >> 3 | own >> 6)
    return attr


def tlopen(s: Session, m: p9.Tlopen) -> Reply:
    f = s.fid(m.fid)
    return open_fid(
        s, m.trace, f, m.flags,
        lambda: s.pack.Rlopen(m.tag, f.node.qid(), s.half.iounit),
    )  # fmt: skip


def tlcreate(s: Session, m: p9.Tlcreate) -> Reply:
    f = s.fid(m.fid)
    check_name(m.name)
    if f.handle is not None:
        raise Refused(400, "the fid is open already", errno=errno.EBADF)
    path = s.at_child(f.place, m.name, CREATE, "create")
    _may_use(s, path, m.flags)

    def created(made: tuple[Node, Handle]) -> Frame:
        become(s, f, m.name, path, *made, m.flags)
        return s.pack.Rlcreate(m.tag, f.node.qid(), s.half.iounit)

    return s.effect(
        "create", path, "", m.trace,
        lambda: f.node.create(m.name, m.flags, m.mode, m.gid, s), created,
    )  # fmt: skip


def _may_use(s: Session, path: str, flags: int) -> None:
    """Creating opens, and on a name that exists it opens what is there: reading needs read."""
    mask = s.grants.at(path).mask
    if flags & 3 in (0, 2) and not mask & READ:
        raise Refused(403, f"you may not read {path}")
    if (flags & 3 or flags & 0o1000) and not mask & WRITE:
        raise Refused(403, f"you may not write {path}")


def become(s: Session, f: Fid, name: str, path: str, node: Node, handle: Handle, flags: int) -> None:
    """A create moves its fid to what was made."""
    still_free(f, handle)
    if f.place.held is not None:
        f.place.held.release()
    f.place = Place(node, name, f.place, path)
    f.node = node
    if f.place.held is not None:
        f.place.held.hold()
    f.allowed = s.grants.at(path)
    take(s, f, handle, flags)


def later(s: Session, done: Maybe[T], pack: Callable[[T], Frame]) -> Reply:
    """Pack a result that may still be coming."""
    if isinstance(done, Awaitable):
        return _later(done, pack)
    return pack(done)


async def _later(coming: Awaitable[object], pack: object) -> Frame:
    return pack(await coming)  # type: ignore[operator,no-any-return]


def tsymlink(s: Session, m: p9.Tsymlink) -> Reply:
    f, path = _new(s, m.dfid, m.name)
    return s.effect("symlink", path, m.target, m.trace, lambda: f.node.symlink(m.name, m.target, m.gid),
                    lambda node: s.pack.Rsymlink(m.tag, node.qid()))  # fmt: skip


def tmkdir(s: Session, m: p9.Tmkdir) -> Reply:
    f, path = _new(s, m.dfid, m.name)
    return s.effect("mkdir", path, "", m.trace, lambda: f.node.mkdir(m.name, m.mode, m.gid, s),
                    lambda node: s.pack.Rmkdir(m.tag, node.qid()))  # fmt: skip


def tmknod(s: Session, m: p9.Tmknod) -> Reply:
    f, path = _new(s, m.dfid, m.name)
    if m.mode & _S_IFMT in (0, _S_IFREG):

        def made(made: tuple[Node, Handle]) -> Frame:
            made[1].abandon()
            return s.pack.Rmknod(m.tag, made[0].qid())

        return s.effect("create", path, "", m.trace,
                        lambda: f.node.create(m.name, 0o200, m.mode & 0o7777, m.gid, s), made)  # fmt: skip
    return s.effect("mknod", path, f"mode={m.mode:o}", m.trace,
                    lambda: f.node.mknod(m.name, m.mode, m.major, m.minor, m.gid),
                    lambda node: s.pack.Rmknod(m.tag, node.qid()))  # fmt: skip


def _new(s: Session, number: int, name: str) -> tuple[Fid, str]:
    f = s.fid(number)
    check_name(name)
    return f, s.at_child(f.place, name, CREATE, "create")


def tlink(s: Session, m: p9.Tlink) -> Reply:
    f, path = _new(s, m.dfid, m.name)
    source = s.fid(m.fid)
    may_gain(s, source.place.path, path)
    return s.effect("link", path, f"to {source.place.path}", m.trace,
                    lambda: f.node.link(m.name, source.node), lambda _: s.pack.Rlink(m.tag))  # fmt: skip


def trename(s: Session, m: p9.Trename) -> Reply:
    f, into = s.fid(m.fid), s.fid(m.dfid)
    above = f.place.above
    if above is None:
        raise Refused(403, "the root of an attachment cannot be renamed")
    return rename(s, m.trace, above, f.place.name, into.place, m.name, f.node, lambda: s.pack.Rrename(m.tag))


def trenameat(s: Session, m: p9.Trenameat) -> Reply:
    old_dir, new_dir = s.fid(m.olddirfid).place, s.fid(m.newdirfid).place
    return rename(s, m.trace, old_dir, m.oldname, new_dir, m.newname, None, lambda: s.pack.Rrenameat(m.tag))


def tunlinkat(s: Session, m: p9.Tunlinkat) -> Reply:
    f = s.fid(m.dfid)
    check_name(m.name)
    path = s.at_child(f.place, m.name, REMOVE, "remove")
    return s.effect("remove", path, "", m.trace,
                    lambda: f.node.unlink(m.name, bool(m.flags & _REMOVEDIR)),
                    lambda _: s.pack.Runlinkat(m.tag))  # fmt: skip


def treadlink(s: Session, m: p9.Treadlink) -> Reply:
    f = s.fid(m.fid)
    s.need(f, READ, "read")
    return later(s, f.node.readlink(), lambda target: fitting(s, s.pack.Rreadlink(m.tag, target)))


def fitting(s: Session, frame: bytes) -> bytes:
    """A reply whose length nobody could choose, if this session can carry it."""
    if len(frame) > s.half.msize:
        raise Refused(413, f"the answer does not fit the session's msize of {s.half.msize}")
    return frame


def tstatfs(s: Session, m: p9.Tstatfs) -> Reply:
    def packed(found: Statfs) -> Frame:
        return s.pack.Rstatfs(m.tag, *found)

    return later(s, s.fid(m.fid).node.statfs(), packed)


def tsetattr(s: Session, m: p9.Tsetattr) -> Reply:
    f = s.fid(m.fid)
    valid = m.valid
    if f.node.swallows_truncate and not valid & (_MODE | _UID | _GID) and (not valid & _SIZE or not m.size):
        # A shell's `>` sends this to ctl files before it writes; it does nothing to them.
        s.need(f, CTL if f.node.is_ctl else WRITE, "write")
        return s.pack.Rsetattr(m.tag)
    s.need(f, WRITE, "change")
    changes = Changes(
        m.mode & 0o7777 if valid & _MODE else None,
        m.uid if valid & _UID else None,
        m.gid if valid & _GID else None,
        m.size if valid & _SIZE else None,
        _time(valid, _ATIME, _ATIME_SET, m.atime, m.atime_ns),
        _time(valid, _MTIME, _MTIME_SET, m.mtime, m.mtime_ns),
    )
    return change(s, m.trace, f, changes, lambda: s.pack.Rsetattr(m.tag))


def _time(valid: int, asked: int, given: int, seconds: int, nanoseconds: int) -> int | None:
    if not valid & asked:
        return None
    return seconds * 10**9 + nanoseconds if valid & given else NOW


def change(s: Session, trace: int, f: Fid, changes: Changes, done: Callable[[], Frame]) -> Reply:
    """Set attributes; audit says which."""
    detail = " ".join(f"{k}={v}" for k, v in changes._asdict().items() if v is not None)
    return s.effect("setattr", f.place.path, detail, trace, lambda: f.node.setattr(changes), lambda _: done())


def txattrwalk(s: Session, m: p9.Txattrwalk) -> Reply:
    f = s.fid(m.fid)
    if m.newfid != m.fid:
        s.unused(m.newfid)
    elif f.handle is not None:
        raise Refused(400, "the fid is open already", errno=errno.EBADF)
    if not f.allowed.mask & READ:
        # Writers send this on every write and cannot help it: hidden and missing read the same.
        raise Refused(404, "no such attribute", errno=errno.ENODATA)

    def walked(value: object) -> Frame:
        raw = value if isinstance(value, bytes) else b"".join(untext(n) + b"\0" for n in value)  # type: ignore[attr-defined]
        if m.newfid != m.fid:
            s.unused(m.newfid)  # it was, but the answer may have taken its time
        made = new_fid(s, m.newfid, f.place)
        made.handle, made.reads = _XattrRead(raw), True
        if m.newfid == m.fid:
            s.release(f, "clunked")
        return s.pack.Rxattrwalk(m.tag, len(raw))

    return later(s, f.node.getxattr(m.name) if m.name else f.node.xattrs(), walked)


class _XattrRead(Handle):
    def __init__(self, value: bytes) -> None:
        self.value = value

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.value[offset : offset + count]


def txattrcreate(s: Session, m: p9.Txattrcreate) -> Reply:
    f = s.fid(m.fid)
    if f.handle is not None:
        raise Refused(400, "the fid is open already", errno=errno.EBADF)
    s.need(f, WRITE, "change")
    if m.size > MAX_XATTR:
        raise Refused(413, f"an attribute is at most {MAX_XATTR} bytes", errno=errno.E2BIG)
    if not m.name:
        raise Refused(400, "the attribute's name is empty")
    f.handle, f.writes = _XattrWrite(s, f, m), True
    return s.pack.Rxattrcreate(m.tag)


class _XattrWrite(Handle):
    """Gathers a value of the declared size; it is set at clunk, which Linux clients look at."""

    def __init__(self, s: Session, f: Fid, m: p9.Txattrcreate) -> None:
        self.session, self.f, self.m = s, f, m
        self.value = bytearray()

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if offset != len(self.value) or offset + len(data) > self.m.size:
            raise Refused(413, f"{self.m.size} bytes were declared", errno=errno.EFBIG)
        self.value += data
        return len(data)

    def close(self) -> Maybe[None]:
        m, s, f = self.m, self.session, self.f
        if len(self.value) != m.size:
            raise Refused(422, f"{m.size} bytes were declared, {len(self.value)} came")
        f.moved = 0
        s.at = f.place.path
        value = bytes(self.value)
        done = s.effect("setxattr", f.place.path, m.name, m.trace,
                        lambda: f.node.setxattr(m.name, value, m.flags), lambda _: b"")  # fmt: skip
        return _ignore(done) if isinstance(done, Awaitable) else None


async def _ignore(coming: Awaitable[object]) -> None:
    await coming


def treaddir(s: Session, m: p9.Treaddir) -> Reply:
    f = s.fid(m.fid)
    if f.handle is None or not f.node.qtype & QTDIR:
        raise Refused(400, "the fid is not an open directory", errno=errno.ENOTDIR)
    count = min(m.count, s.half.msize - READ_OVERHEAD)
    if m.offset and f.listing is not None:
        return _page(m, f.listing, count)

    def listed(found: Sequence[Dirent]) -> Frame:
        f.listing = dots(f) + visible(s, f, found)
        return _page(m, f.listing, count)

    return later(s, f.handle.entries(), listed)


def dots(f: Fid) -> list[Dirent]:
    above = f.place.above or f.place
    return [Dirent(".", f.node.qid()), Dirent("..", above.node.qid())]


def visible(s: Session, f: Fid, found: Sequence[Dirent]) -> list[Dirent]:
    """Without the names that the caller may not walk to."""
    if s.grants.sees_all:
        return list(found)
    place, grants = f.place, s.grants
    return [d for d in found if grants.at(place.child(d.name)).mask]


def _page(m: p9.Treaddir, listing: Sequence[Dirent], count: int) -> Frame:
    """Whole entries from the offset on: one that is cut in two would be an EIO in Linux."""
    out = bytearray()
    for at in range(m.offset, len(listing)):
        name, (kind, version, path) = listing[at]
        raw = untext(name)
        if len(out) + 24 + len(raw) > count:
            if not out:
                raise Refused(413, "the entry does not fit the count", errno=errno.EINVAL)
            break
        out += kind.to_bytes(1, "little") + version.to_bytes(4, "little") + path.to_bytes(8, "little")
        out += (at + 1).to_bytes(8, "little")
        out.append(_DT.get(kind & (QTDIR | QTSYMLINK), 8))
        out += len(raw).to_bytes(2, "little") + raw
    return rread(m.tag, out, count, p9.Rreaddir.type)


def tfsync(s: Session, m: p9.Tfsync) -> Reply:
    f = s.fid(m.fid)
    if f.handle is None:
        return s.pack.Rfsync(m.tag)
    return later(s, f.handle.fsync(), lambda _: s.pack.Rfsync(m.tag))


_UNLOCK, _BLOCK = 2, 1


def _lock(s: Session, m: p9.Tlock | p9.Tgetlock) -> Lock:
    """Locks belong to (session, client_id, proc_id): a process never conflicts with itself."""
    if m.kind > 2:
        raise Refused(400, f"lock type {m.kind} is none of 0 (read), 1 (write), 2 (unlock)")
    return Lock(m.kind == 1, m.start, m.length, (s.number, m.client_id, m.proc_id))


def tlock(s: Session, m: p9.Tlock) -> Reply:
    f = s.fid(m.fid)
    s.need(f, WRITE, "lock")
    lock = _lock(s, m)
    if m.kind == _UNLOCK:
        return later(s, f.node.unlock(lock), lambda _: s.pack.Rlock(m.tag, 0))

    def locked(got: bool | None) -> Frame:
        if got is False:
            return s.pack.Rlock(m.tag, 1)
        if s.fids.get(m.fid) is not f:
            f.node.unlock(lock)
            raise Refused(408, "the fid was clunked while the lock was waited for", errno=errno.EINTR)
        f.locked = (f.locked or set()) | {lock.owner}
        return s.pack.Rlock(m.tag, 0)

    got = f.node.lock(lock)
    if isinstance(got, Awaitable):
        return _lock_later(got, f.node, lock, bool(m.flags & _BLOCK), locked)
    if not got and m.flags & _BLOCK:
        return later(s, f.node.wait_lock(lock), lambda _: locked(True))
    return locked(got)


async def _lock_later(
    coming: Awaitable[bool], node: Node, lock: Lock, block: bool, locked: Callable[[bool | None], Frame]
) -> Frame:
    got = await coming
    if not got and block:
        waiting = node.wait_lock(lock)
        if isinstance(waiting, Awaitable):
            await waiting
        got = True
    return locked(got)


def tgetlock(s: Session, m: p9.Tgetlock) -> Reply:
    f = s.fid(m.fid)
    s.need(f, WRITE, "lock")
    lock = _lock(s, m)

    def found(other: Lock | None) -> Frame:
        if other is None:
            return s.pack.Rgetlock(m.tag, _UNLOCK, m.start, m.length, m.proc_id, m.client_id)
        _, client, proc = other.owner
        return s.pack.Rgetlock(m.tag, int(other.exclusive), other.start, other.length, proc, client)

    return later(s, f.node.test_lock(lock), found)


LINUX = CALLS | {
    p9.Tgetattr: tgetattr, p9.Tlopen: tlopen, p9.Tlcreate: tlcreate, p9.Tsymlink: tsymlink, p9.Tmkdir: tmkdir,
    p9.Tmknod: tmknod, p9.Tlink: tlink, p9.Trename: trename, p9.Trenameat: trenameat,
    p9.Tunlinkat: tunlinkat, p9.Treadlink: treadlink, p9.Tstatfs: tstatfs, p9.Tsetattr: tsetattr,
    p9.Txattrwalk: txattrwalk, p9.Txattrcreate: txattrcreate, p9.Treaddir: treaddir, p9.Tfsync: tfsync,
    p9.Tlock: tlock, p9.Tgetlock: tgetlock,
}  # fmt: skip
