"""What every dialect can ask: attach, walk, read, write, clunk, remove, and opening.

Each function answers one message: it finds the fid, checks the protocol's own rules, then the right,
and only then calls the node. The order is the guard; keep it.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from warren.auth.rights import CREATE, CTL, READ, REMOVE, WALK, WRITE
from warren.p9.fields import NOFID, QTDIR, Qid
from warren.p9.messages import Tattach, Tauth, Tclunk, Tread, Tremove, Twalk, Twrite
from warren.serve.fid import Fid, Place
from warren.serve.session import Frame, Parts, Reply, Session
from warren.serve.tokens import present, tauth
from warren.tree import Bytes, Clone, CloneHandle, Command, Control, Handle, Node, Refused, absent
from warren.tree.node import CLONE
from warren.tree.promise import Promise

O_ACCMODE, O_WRONLY, O_RDWR = 0o3, 0o1, 0o2
O_CREAT, O_EXCL, O_TRUNC, O_NONBLOCK = 0o100, 0o200, 0o1000, 0o4000
_RREAD = struct.Struct("<IBHI").pack
READ_OVERHEAD = 11  # size type tag count: what a reply carries beside the data
_JOIN = 8192  # a reply below this is one buffer, above it the data is sent from where it lies


def tattach(s: Session, m: Tattach) -> Reply:
    s.at = "/"
    s.unused(m.fid)
    if m.afid != NOFID:
        present(s, m)
    s.attached = True
    if not s.grants.at("/").mask & WALK:
        raise Refused(403, f"{s.subject} may not attach; the server's policy has no row for it")
    names = [name for name in m.aname.split("/") if name]
    for name in names:
        check_name(name)
    root = Place(s.export.root.attach(s), "/", None, "/")

    def attached(f: Fid) -> Frame:
        f.place.above = None  # `..` never leads above the attach point
        return s.pack.Rattach(m.tag, f.node.qid())

    return _bind(s, m.fid, root, names, attached)


def _bind(s: Session, number: int, start: Place, names: list[str], done: Callable[[Fid], Frame]) -> Reply:
    """Walk all of NAMES or refuse; then NUMBER is a new fid there."""
    place = start
    for at, name in enumerate(names):
        found = step(s, place, name)
        if not isinstance(found, Node):
            return _bind_later(s, number, place, names, at, found, done)
        place = Place(found, name, place, place.child(name))
    return done(new_fid(s, number, place))


async def _bind_later(
    s: Session, number: int, place: Place, names: list[str], at: int,
    coming: Awaitable[Node], done: Callable[[Fid], Frame],
) -> Frame:  # fmt: skip
    place = Place(await coming, names[at], place, place.child(names[at]))
    for name in names[at + 1 :]:
        found = step(s, place, name)
        node = found if isinstance(found, Node) else await found
        place = Place(node, name, place, place.child(name))
    s.unused(number)
    return done(new_fid(s, number, place))


def new_fid(s: Session, number: int, place: Place) -> Fid:
    f = s.fids[number] = Fid(place, s.grants.at(place.path), s.export.seq)
    return f


def check_name(name: str) -> None:
    """Refuse a name that no file can have. `..` is the walk's own affair."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise Refused(400, f"{name!r} is not a file name")
    if len(name) > 63 and len(name.encode("utf-8", "surrogateescape")) > 255:
        raise Refused(413, "a name is at most 255 bytes", errno=36)


def step(s: Session, place: Place, name: str) -> Node | Awaitable[Node]:
    """The node of NAME below PLACE. What one may not walk to is not there, and is not asked about."""
    check_name(name)
    s.at = path = place.child(name)
    if not s.grants.at(path).mask & WALK:
        raise absent()
    return place.node.walk(name)


def twalk(s: Session, m: Twalk) -> Reply:
    f = s.fid(m.fid)
    if m.newfid != m.fid:
        s.unused(m.newfid)
    elif f.handle is not None:
        raise Refused(400, "an open fid cannot be walked", errno=9)
    if not m.names:
        if m.newfid != m.fid:
            new_fid(s, m.newfid, f.place)
        return s.pack.Rwalk(m.tag, [])
    place = f.place
    qids: list[Qid] = []
    for at, name in enumerate(m.names):
        if name in (".", ".."):  # diod's tools walk to both
            place = (place.above or place) if name == ".." else place
        else:
            try:
                found = step(s, place, name)
            except OSError:
                if not at:
                    raise
                return s.pack.Rwalk(m.tag, qids)  # how far it went; no fid was made
            if not isinstance(found, Node):
                return _walk_later(s, m, f, place, at, qids, found)
            place = Place(found, name, place, s.at)
        qids.append(place.node.qid())
    return _walked(s, m, f, place, qids)


async def _walk_later(
    s: Session, m: Twalk, f: Fid, place: Place, at: int, qids: list[Qid], coming: Awaitable[Node]
) -> Frame:
    for at, name in enumerate(m.names[at:], at):  # noqa: B020  # the names that are left
        if name in (".", ".."):
            place = (place.above or place) if name == ".." else place
        else:
            try:
                found = coming if at == len(qids) and coming is not None else step(s, place, name)
                node = found if isinstance(found, Node) else await found
            except OSError:
                if not at:
                    raise
                return s.pack.Rwalk(m.tag, qids)
            coming = None  # type: ignore[assignment]  # awaited once
            place = Place(node, name, place, place.child(name))
        qids.append(place.node.qid())
    if m.newfid != m.fid:
        s.unused(m.newfid)
    elif s.fids.get(m.fid) is not f:
        raise Refused(400, f"fid {m.fid} was clunked during the walk", errno=9)
    return _walked(s, m, f, place, qids)


def _walked(s: Session, m: Twalk, f: Fid, place: Place, qids: list[Qid]) -> Frame:
    new_fid(s, m.newfid, place)
    if m.newfid == m.fid:
        s.release(f, "clunked")
    return s.pack.Rwalk(m.tag, qids)


def open_fid(s: Session, m_trace: int, f: Fid, flags: int, done: Callable[[], Frame]) -> Reply:
    """Open an existing file with Linux flags; the rights of every dialect are decided here."""
    if f.handle is not None:
        raise Refused(400, "the fid is open already", errno=9)
    node, access = f.node, flags & O_ACCMODE
    if access == O_ACCMODE:
        raise Refused(400, "the open mode is neither reading nor writing")
    reads, writes = access in (0, O_RDWR), access in (O_WRONLY, O_RDWR)
    if node.is_ctl:
        s.need(f, CTL, "control")
    else:
        s.need(f, (READ if reads else 0) | (WRITE if writes or flags & O_TRUNC else 0), "open")
    if node.qtype & QTDIR and (writes or flags & O_TRUNC):
        raise Refused(400, "a directory cannot be written", errno=21)
    flags &= ~(O_CREAT | O_EXCL)
    if node.swallows_truncate:
        flags &= ~O_TRUNC

    def opened(handle: Handle) -> Frame:
        take(s, f, handle, flags)
        return done()

    if isinstance(node, Clone) and f.place.above is None:
        raise Refused(400, "what a clone file makes stands beside it: attach to its directory")
    if writes or flags & O_TRUNC or node.word == CLONE:
        detail = "truncate" if flags & O_TRUNC else ""
        return s.effect("open", f.place.path, detail, m_trace, lambda: node.open(flags, s), opened)
    handle = node.open(flags, s)
    if isinstance(handle, Handle):
        return opened(handle)
    return _open_later(handle, opened)


async def _open_later(coming: Awaitable[Handle], opened: Callable[[Handle], Frame]) -> Frame:
    return opened(await coming)


def take(s: Session, f: Fid, handle: Handle, flags: int) -> None:
    """The fid is open now. One that opened a clone file has become the new object's ctl."""
    still_free(f, handle)
    if isinstance(handle, CloneHandle):
        above = f.place.above
        assert above is not None
        life = Place(handle.life, handle.life.name, above, above.child(handle.life.name))
        old, f.place = f.place, Place(handle.life.ctl, "ctl", life, life.child("ctl"))
        f.node = handle.life.ctl
        handle.life.hold()
        if old.held is not None:
            old.held.release()
        f.allowed = s.grants.at(f.place.path)
    f.handle, f.flags = handle, flags
    f.reads, f.writes = flags & O_ACCMODE in (0, O_RDWR), flags & O_ACCMODE in (O_WRONLY, O_RDWR)


def still_free(f: Fid, handle: Handle) -> None:
    """While an open waited (for the audit, for the disk) the fid may have been opened or clunked."""
    if f.handle is not None or f.gone:
        handle.abandon()
        raise Refused(400, "the fid was opened or clunked meanwhile", errno=9)


def tread(s: Session, m: Tread) -> Reply:
    f = s.fids.get(m.fid)
    if f is None or f.seq != s.export.seq:
        f = s.fid(m.fid)
    s.at = f.place.path
    handle = f.handle
    if handle is None or not f.reads:
        raise Refused(400, "the fid is not open for reading", errno=9)
    count = m.count
    if count > s.half.msize - READ_OVERHEAD:
        count = s.half.msize - READ_OVERHEAD
    if f.told is not None:
        return rread(m.tag, f.told[m.offset : m.offset + count], count)
    data = handle.read(m.offset, count)
    if data.__class__ is bytes:
        n = len(data)
        if n > count:
            raise AssertionError(f"{type(handle).__name__} returned {n} bytes, {count} were asked for")
        head = _RREAD(READ_OVERHEAD + n, 117, m.tag, n)
        return head + data if n < _JOIN else [head, data]
    if isinstance(data, bytearray | memoryview):
        return rread(m.tag, bytes(data), count)
    if isinstance(data, Promise):
        return data.then(lambda found: rread(m.tag, found, count))
    return _read_later(m.tag, data, count)  # type: ignore[arg-type]


def rread(tag: int, data: Bytes, count: int, kind: int = 117) -> Frame:
    """Rread, or Rreaddir, which is laid out alike."""
    n = len(data)
    if n > count:
        raise AssertionError(f"{n} bytes were returned, {count} were asked for")
    head = _RREAD(READ_OVERHEAD + n, kind, tag, n)
    parts: Parts = [head, data]
    return parts


async def _read_later(tag: int, coming: Awaitable[Bytes], count: int) -> Frame:
    return rread(tag, await coming, count)


def twrite(s: Session, m: Twrite) -> Reply:
    f = s.fids.get(m.fid)
    if f is None or f.seq != s.export.seq:
        f = s.fid(m.fid)
    s.at = f.place.path
    handle = f.handle
    if handle is None or not f.writes:
        raise Refused(400, "the fid is not open for writing", errno=9)
    if handle.record:
        if len(m.data) >= s.half.iounit:
            raise Refused(413, f"a record is less than {s.half.iounit} bytes here")
        if isinstance(handle, Control):
            return _control(s, m, f, handle)
    done = handle.write(m.offset, m.data)
    if done.__class__ is int:
        f.moved += done
        f.told = None
        return s.pack.Rwrite(m.tag, done)
    if done.__class__ is Promise:
        return done.then(partial(_written, s, m.tag, f))
    return _write_later(s, m.tag, f, done)  # type: ignore[arg-type]


def _written(s: Session, tag: int, f: Fid, n: int) -> bytes:
    f.moved += n
    f.told = None
    if f.gone:
        s.account(f)  # it was accounted for when it was let go, without this
    return s.pack.Rwrite(tag, n)


async def _write_later(s: Session, tag: int, f: Fid, coming: Awaitable[int]) -> Frame:
    return _written(s, tag, f, await coming)


def _control(s: Session, m: Twrite, f: Fid, handle: Control) -> Reply:
    """Parse every line, decide every verb, then run them in order, each with its own audit record."""
    size = len(m.data)
    commands = handle.commands(bytes(m.data))
    for command in commands:
        _may_run(f, command)
    return _run_commands(s, m.tag, m.trace, f, handle, commands, size)


def _may_run(f: Fid, command: Command) -> None:
    for name in command.names:
        if not f.allowed.verb(name):
            raise Refused(403, f"you may not {name} on {f.place.path}")


async def _run_commands(
    s: Session, tag: int, trace: int, f: Fid, handle: Control, commands: Sequence[Command], size: int
) -> Frame:
    said = []
    for command in commands:
        if f.seq != s.export.seq:
            s.decide(f)
        _may_run(f, command)

        def keep(result: str | None) -> Frame:
            if result is not None:
                said.append(result if result.endswith("\n") else result + "\n")
            return b""

        try:
            path = f"{f.place.path}#{','.join(command.names)}"
            run = partial(handle.run, command, s)
            done = s.effect("ctl", path, command.shown, trace, run, keep)
            if inspect.isawaitable(done):
                await done
        except OSError as e:
            if len(commands) > 1:
                raise _on_line(command.line, e) from e
            raise
    if said:
        handle.says = "".join(said).encode()
    f.told = None
    return s.pack.Rwrite(tag, size)


def _on_line(number: int, e: OSError) -> Refused:
    """The same refusal, naming its line."""
    if isinstance(e, Refused):
        return Refused(
            e.code, f"line {number}: {e.detail}", errno=e.errno, reason=e.reason, retry_after=e.retry_after
        )
    return Refused(500 if e.errno is None else 400, f"line {number}: {e.strerror}", errno=e.errno)


def tclunk(s: Session, m: Tclunk) -> Reply:
    f = s.fids.get(m.fid) or s.fid(m.fid)  # whatever was revoked, letting go is allowed
    s.at = f.place.path
    if f.on_clunk == "remove":
        return _remove(s, m.tag, m.trace, m.fid, f, s.pack.Rclunk)
    del s.fids[m.fid]
    if f.seq != s.export.seq and f.writes and not f.node.is_ctl:
        try:
            s.decide(f)
        except Refused:
            s.release(f)  # what was gathered may no longer be committed
            raise
    done = clunk(s, f)
    if done is None:
        return s.pack.Rclunk(m.tag)
    return _clunk_later(s, m.tag, done)


async def _clunk_later(s: Session, tag: int, coming: Awaitable[None]) -> Frame:
    await coming
    return s.pack.Rclunk(tag)


def clunk(s: Session, f: Fid) -> Awaitable[None] | None:
    """Let go of a fid that the client gave up: what it has open is closed, which may commit."""
    for parked in list(f.parked or ()):
        parked.cancel("clunked")
    f.gone = True
    if f.locked is not None:
        s.unlock(f)
    handle, f.handle = f.handle, None
    done = None
    try:
        if handle is not None:
            done = handle.close()
    finally:
        if f.moved:
            s.account(f)
        if f.place.held is not None:
            f.place.held.release()
    return done


def tremove(s: Session, m: Tremove) -> Reply:
    f = s.fids.get(m.fid) or s.fid(m.fid)
    s.at = f.place.path
    return _remove(s, m.tag, m.trace, m.fid, f, s.pack.Rremove)


def _remove(s: Session, tag: int, trace: int, number: int, f: Fid, pack: Callable[[int], bytes]) -> Reply:
    """Remove the file and forget the fid, whatever becomes of the removal."""
    place = f.place
    del s.fids[number]
    try:
        if place.above is None:
            raise Refused(403, "the root of an attachment cannot be removed")
        if f.seq != s.export.seq:
            s.decide(f)
        s.need(f, REMOVE, "remove")
        above = place.above
        return s.effect(
            "remove", place.path, "", trace,
            lambda: above.node.unlink(place.name, None, f.node), lambda _: pack(tag),
        )  # fmt: skip
    finally:
        s.release(f, "clunked")  # nothing is committed to what is being removed


def may_gain(s: Session, old: str, new: str) -> None:
    """Refuse a rename or link that would give the caller rights it does not have at the old path."""
    before, after = s.grants.at(old).mask, s.grants.at(new).mask
    if after & ~before & (READ | WRITE | CTL):
        raise Refused(403, f"{new} would give you rights that you do not have at {old}")


def rename(s: Session, trace: int, old_dir: Place, name: str, new_dir: Place, newname: str,
           expect: Node | None, done: Callable[[], Frame]) -> Reply:  # fmt: skip
    """Move a name; the fids that stand there move along."""
    check_name(name)
    check_name(newname)
    old = s.at_child(old_dir, name, REMOVE, "remove")
    new = s.at_child(new_dir, newname, CREATE, "create")
    may_gain(s, old, new)

    def renamed(_: None) -> Frame:
        s.export.moved(s, old, new, new_dir)
        return done()

    return s.effect(
        "rename", old, f"to {new}", trace,
        lambda: old_dir.node.rename(name, new_dir.node, newname, expect), renamed,
    )  # fmt: skip


CALLS = {Tauth: tauth, Tattach: tattach, Twalk: twalk, Tread: tread, Twrite: twrite, Tclunk: tclunk,
         Tremove: tremove}  # fmt: skip
