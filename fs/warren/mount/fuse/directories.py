"""Reading directories: names with their kinds, or names with everything (READDIRPLUS).

The offsets are the server's own. Names that came and did not fit are kept for the next request, which goes
on where the last one ended. With attributes, the walks to all names of a reply travel together.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, Final, NamedTuple

from warren.mount.fuse import messages as m
from warren.mount.fuse.attributes import entry
from warren.mount.fuse.line import BASIC, Answer, Job
from warren.mount.fuse.nodes import Node
from warren.mount.fuse.opened import OpenFile, opened
from warren.mount.linux import wire_flags
from warren.p9.client import Call
from warren.p9.codec import text
from warren.p9.fields import QTDIR, QTSYMLINK, Qid
from warren.p9.messages import Tfsync, Tgetattr, Tlopen, Treaddir, Twalk

_9P: Final = struct.Struct("<BIQQBH")
_DIRENT: Final = m.REPLIES["Dirent"].fixed
_ENTRY: Final = m.REPLIES["Entry"].fixed.size + m.REPLIES["Attr"].fixed.size
_LEAST: Final = 24 + 255  # bytes in which a server can give at least one name
_MOST: Final = 1 << 16
_DT: Final = {QTDIR: 4, QTSYMLINK: 10}
_DOTS: Final = (".", "..")
_WINDOW: Final = 32  # names asked about at once


class _Name(NamedTuple):
    qid: Qid
    after: int  # the offset behind it
    kind: int
    name: str


class OpenDirectory(OpenFile):
    """An open directory, and the names that came and were not given yet."""

    names: list[_Name]
    at = 0  # the offset of the first of them


async def opendir(job: Job, body: m.Open) -> Answer:
    node = job.node
    base, names = job.place(node)
    flags = wire_flags(os.O_RDONLY | os.O_DIRECTORY)
    fid, _, _ = await job.walked(base, names, (Tlopen, (flags,)))
    file = OpenDirectory(node, os.O_RDONLY | os.O_DIRECTORY, job.link, fid)
    file.names = []
    return m.packed(m.Opened(job.session.opens.add(file), 0, 0))


def _size(name: str, plus: bool) -> int:
    raw = _DIRENT.size + len(name.encode("utf-8", "surrogateescape"))
    return (raw + 7 & ~7) + (_ENTRY if plus else 0)


async def _next(job: Job, body: m.Read, plus: bool) -> tuple[OpenDirectory, list[_Name]]:
    """The names that the reply has room for."""
    file = opened(job, body.fh)
    if not isinstance(file, OpenDirectory):
        raise job.op.error(errno.ENOTDIR, "this is not an open directory")
    fid = await file.live(job)
    if not file.names or body.offset != file.at or not body.offset:
        # An entry takes more room in the reply than in what the server sends.
        count = min(max(body.size // (4 if plus else 1), _LEAST), job.link.payload, _MOST)
        reply = await job.ask(Treaddir, fid, body.offset, count)
        file.names, file.at = _parsed(reply.data), body.offset
    room, fitting = body.size, 0
    for found in file.names:
        room -= _size(found.name, plus)
        if room < 0:
            break
        fitting += 1
    given, file.names = file.names[:fitting], file.names[fitting:]
    if given:
        file.at = given[-1].after
    elif file.names:
        raise job.op.error(errno.EINVAL, "the buffer has no room for one name")
    return file, given


def _parsed(data: Any) -> list[_Name]:
    view, at, found = memoryview(data), 0, []
    while at + _9P.size <= len(view):
        kind, version, path, after, dt, n = _9P.unpack_from(view, at)
        at += _9P.size
        name = text(view[at : at + n])
        at += n
        if name and "/" not in name and "\0" not in name and n <= 255:
            found.append(_Name(Qid(kind, version, path), after, dt or _DT.get(kind, 8), name))
    return found


def _dirent(found: _Name) -> bytes:
    raw = found.name.encode("utf-8", "surrogateescape")
    packed = _DIRENT.pack(found.qid.path or (1 << 64) - 1, found.after, len(raw), found.kind) + raw
    return packed + bytes(-len(packed) % 8)


async def readdir(job: Job, body: m.Read) -> Answer:
    _, names = await _next(job, body, False)
    return b"".join(map(_dirent, names))


async def readdirplus(job: Job, body: m.Read) -> Answer:
    file, names = await _next(job, body, True)
    wanted = [f.name for f in names if f.name not in _DOTS]
    attributes: dict[str, bytes] = {}
    for i in range(0, len(wanted), _WINDOW):
        attributes |= await _looked_up(job, file.node, wanted[i : i + _WINDOW])
    out = []
    for found in names:
        # Without an entry the name is given all the same, and looked up when it is needed.
        out += [attributes.get(found.name) or bytes(_ENTRY), _dirent(found)]
    return b"".join(out)


async def _looked_up(job: Job, directory: Node, names: list[str]) -> dict[str, bytes]:
    """Entries of names; what has gone since, or may not be looked at, has none."""
    link = job.link
    base, prefix = job.place(directory)
    borrowed = bool(prefix)
    if borrowed:
        base, _, _ = await job.walked(base, prefix)
    out: dict[str, bytes] = {}
    fids = [link.half.fids.take() for _ in names]
    walks = [job.start(Twalk, base, fid, [name]) for fid, name in zip(fids, names, strict=True)]
    asked: list[Call | None] = []
    if link.in_order:
        asked = [job.start(Tgetattr, fid, BASIC, after=w) for fid, w in zip(fids, walks, strict=True)]
    for walk in walks:
        await job.settle(walk)
    asked = asked or [None] * len(names)
    for call in asked:
        if call is not None:
            await job.settle(call)
    for i, (fid, walk) in enumerate(zip(fids, walks, strict=True)):
        # The first time here, or refused because the walk had not ended yet.
        if walk.makes and ((call := asked[i]) is None or call.refused):
            asked[i] = job.start(Tgetattr, fid, BASIC)
    for call in asked:
        if call is not None:
            await job.settle(call)
    if borrowed:
        link.let_go(base)
    for name, fid, walk, call in zip(names, fids, walks, asked, strict=True):
        if not walk.makes:
            continue
        if call is None or call.refused or call.reply is None:
            link.let_go(fid)
            continue
        a: Any = call.reply
        node = job.session.nodes.entered(directory, name, a.qid, a.mode, job.word(a))
        if node.stored:
            job.keep(node, fid)
        else:
            link.let_go(fid)
        job.count(node)
        out[name] = entry(job, node, a)
    return out


async def fsyncdir(job: Job, body: m.Fsync) -> Answer:
    file = opened(job, body.fh)
    await job.ask(Tfsync, await file.live(job), body.fsync_flags & 1)
    return b""


OPERATIONS: dict[int, Any] = {
    m.OPENDIR: opendir, m.READDIR: readdir, m.READDIRPLUS: readdirplus, m.FSYNCDIR: fsyncdir,
}  # fmt: skip
