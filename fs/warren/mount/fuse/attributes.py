"""What a node is: attributes, extended attributes, the file system it lies on, and what may be done to it.

Attributes of stored files hold for a second; those of synthetic files for the millisecond that the kernel
needs to make one stat(2) of a look-up and a question, because what they say was true at one moment only.
"""

from __future__ import annotations

import errno
import os
import stat as S
from typing import TYPE_CHECKING, Any, Final

from warren.mount.fuse import messages as m
from warren.mount.fuse.line import BASIC, Answer, Job
from warren.mount.fuse.nodes import Node
from warren.p9.fields import NOFID
from warren.p9.messages import Tclunk, Tgetattr, Tread, Tsetattr, Tstatfs, Twrite, Txattrcreate, Txattrwalk

if TYPE_CHECKING:
    from warren.mount.fuse.opened import OpenFile

HELD: Final = (1, 0)  # seconds, nanoseconds
BRIEFLY: Final = (0, 1_000_000)
AT_ONCE: Final = (0, 0)
_ATTR = m.REPLIES["Attr"].fixed
_ENTRY = m.REPLIES["Entry"].fixed
_HEAD = m.REPLIES["Attributes"].fixed
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1

# What SETATTR names, and what Tsetattr calls it. The times of the kernel's own clock come as values too.
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_NOW, _MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256
_KILL_SUIDGID: Final = 1 << 11
SUIDGID: Final = S.S_ISUID | S.S_ISGID
XATTR_REPLACE: Final = 2
_MAX_XATTR: Final = 1 << 16


def attr(a: Any, node: Node) -> bytes:
    """Rgetattr as the kernel has it; what is too large for it is as large as it can be."""
    node.mode = a.mode
    return _ATTR.pack(
        a.qid.path or _U64, a.size, a.blocks, a.atime & _U64, a.mtime & _U64, a.ctime & _U64,
        a.atime_ns % 10**9, a.mtime_ns % 10**9, a.ctime_ns % 10**9, a.mode, min(a.nlink, _U32), a.uid, a.gid,
        a.rdev & _U32, min(a.blksize, 1 << 20), 0,
    )  # fmt: skip


def holds(job: Job, node: Node) -> tuple[int, int]:
    if job.session.each_user:
        return AT_ONCE
    return HELD if node.stored else BRIEFLY


def entry(job: Job, node: Node, a: Any) -> bytes:
    """A reply that makes the kernel know a node."""
    seconds, ns = holds(job, node)
    return _ENTRY.pack(node.id, 1, seconds, seconds, 0, ns) + attr(a, node)


def attributes(job: Job, node: Node, a: Any) -> bytes:
    seconds, ns = holds(job, node)
    return _HEAD.pack(seconds, ns, 0) + attr(a, node)


def _nameless(job: Job, node: Node) -> OpenFile | None:
    """An open of a file that has lost its name and that no fid is kept for."""
    if node.names or node.parent is None or node.fid != NOFID:
        return None
    return job.session.opens.of(node)


async def getattr_(job: Job, body: m.Getattr) -> Answer:
    node = job.node
    if (found := _nameless(job, node)) is not None:
        return attributes(job, node, await job.ask(Tgetattr, await found.live(job), BASIC))
    (a,) = await job.on(node, (Tgetattr, (BASIC,)))
    node.qid = a.qid
    return attributes(job, node, a)


async def setattr_(job: Job, body: m.Setattr) -> Answer:
    valid = body.valid & (_MODE | _UID | _GID | _SIZE | _ATIME | _MTIME)
    if body.valid & _ATIME and not body.valid & _ATIME_NOW:
        valid |= _ATIME_NOW
    if body.valid & _MTIME and not body.valid & _MTIME_NOW:
        valid |= _MTIME_NOW  # in 9P this bit means that a value is given
    mode = body.mode & 0o7777
    if body.valid & _KILL_SUIDGID and not valid & _MODE and job.node.mode & SUIDGID:
        valid, mode = valid | _MODE, job.node.mode & 0o7777 & ~SUIDGID
    times = (body.atime, body.atime_ns, body.mtime, body.mtime_ns)
    fields = (valid, mode, body.uid, body.gid, body.size, *times)
    node = job.node
    if (found := _nameless(job, node)) is not None:
        fid = await found.live(job)
        await job.ask(Tsetattr, fid, *fields)
        return attributes(job, node, await job.ask(Tgetattr, fid, BASIC))
    await job.on(node, (Tsetattr, fields))
    (a,) = await job.on(node, (Tgetattr, (BASIC,)))
    node.qid = a.qid
    return attributes(job, node, a)


async def access(job: Job, body: m.Access) -> Answer:
    """The server decides when it is asked for the thing itself; here is what the mode rules out for all."""
    (a,) = await job.on(job.node, (Tgetattr, (BASIC,)))
    for bit in (os.R_OK, os.W_OK, os.X_OK):
        if body.mask & bit and not a.mode & (bit * 0o111) and not S.S_ISLNK(a.mode):
            raise job.op.error(errno.EACCES, "the mode of this file allows it to nobody")
    return b""


async def statfs(job: Job, body: m.Bare) -> Answer:
    (r,) = await job.on(job.node, (Tstatfs, ()))
    return m.packed(m.Kstatfs(r.blocks, r.bfree, r.bavail, r.files, r.ffree, r.bsize, r.namelen, r.bsize,
                              0, 0, 0, 0))  # fmt: skip


async def _value(job: Job, name: str) -> bytes:
    """An attribute, or with no name all names."""
    base, names = job.place(job.node)
    fid = base
    if names:
        fid, qid, _ = await job.walked(base, names)
    new = job.link.half.fids.take()
    try:
        size = (await job.ask(Txattrwalk, fid, new, name)).size
    finally:
        if names:
            job.found(job.node, fid, qid)
    value = bytearray()
    try:
        while len(value) < min(size, _MAX_XATTR):
            reply = await job.ask(Tread, new, len(value), min(size - len(value), job.link.payload))
            if not reply.data:
                break
            value += reply.data
    finally:
        job.link.let_go(new)
    return bytes(value)


def _sized(job: Job, size: int, value: bytes) -> Answer:
    if not size:
        return m.packed(m.Written(len(value), 0))
    if len(value) > size:
        raise job.op.error(errno.ERANGE, f"the value has {len(value)} bytes")
    return value


def _has_none(job: Job, name: str) -> bool:
    """Words of ours have no attributes; and what a kernel asks before each write is nobody's here."""
    return bool(job.node.word) or name.startswith(("security.", "system."))


async def getxattr(job: Job, body: m.Getxattr) -> Answer:
    if _has_none(job, body.name):
        raise job.op.error(errno.ENODATA, "no such attribute")
    return _sized(job, body.size, await _value(job, body.name))


async def listxattr(job: Job, body: m.Listxattr) -> Answer:
    return _sized(job, body.size, b"" if job.node.word else await _value(job, ""))


async def _set(job: Job, name: str, value: bytes, flags: int) -> Answer:
    link = job.link
    base, names = job.place(job.node)
    create = (Txattrcreate, (name, len(value), flags))
    fid, _, _ = await job.walked(base, names, create)
    try:
        at = 0
        while at < len(value):
            at += (await job.ask(Twrite, fid, at, value[at : at + link.payload])).count or len(value)
    except BaseException:
        link.let_go(fid)
        raise
    await job.ask(Tclunk, fid)  # the attribute is set now, or refused
    return b""


async def setxattr(job: Job, body: m.Setxattr) -> Answer:
    if len(body.value) != body.size:
        raise job.op.error(errno.EINVAL, f"{body.size} bytes were declared, {len(body.value)} came")
    if body.name.startswith("system."):
        raise job.op.error(errno.EOPNOTSUPP, "access is the server's to say, and not in attributes")
    return await _set(job, body.name, bytes(body.value), body.flags)


async def removexattr(job: Job, body: m.Named) -> Answer:
    return await _set(job, body.name, b"", XATTR_REPLACE)


OPERATIONS: dict[int, Any] = {
    m.GETATTR: getattr_, m.SETATTR: setattr_, m.ACCESS: access, m.STATFS: statfs, m.GETXATTR: getxattr,
    m.LISTXATTR: listxattr, m.SETXATTR: setxattr, m.REMOVEXATTR: removexattr,
}  # fmt: skip
