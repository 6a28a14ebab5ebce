"""What happens to names: looking them up, making and removing them, moving them."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from warren.mount.fuse import messages as m
from warren.mount.fuse.attributes import entry
from warren.mount.fuse.line import Answer, Job
from warren.mount.fuse.nodes import Node
from warren.p9.fields import NOFID
from warren.p9.messages import (
    Tlink,
    Tmkdir,
    Tmknod,
    Treadlink,
    Tremove,
    Trename,
    Trenameat,
    Tsymlink,
    Tunlinkat,
    Twalk,
)

_REMOVEDIR: Final = 0x200
_UNKNOWN: Final = (errno.EOPNOTSUPP, errno.ENOSYS)


async def lookup(job: Job, body: m.Named) -> Answer:
    return entry(job, *await job.entered(job.node, body.name))


async def _made(job: Job, name: str, *then: Any) -> Answer:
    """Make NAME in the directory that was asked, and say what it became."""
    await job.on(job.node, then)
    return entry(job, *await job.entered(job.node, name))


async def mkdir(job: Job, body: m.Mkdir) -> Answer:
    return await _made(job, body.name, Tmkdir, (body.name, body.mode & 0o7777, job.header.gid))


async def symlink(job: Job, body: m.Symlink) -> Answer:
    return await _made(job, body.name, Tsymlink, (body.name, body.target, job.header.gid))


async def mknod(job: Job, body: m.Mknod) -> Answer:
    major, minor = os.major(body.rdev), os.minor(body.rdev)
    return await _made(job, body.name, Tmknod, (body.name, body.mode, major, minor, job.header.gid))


async def readlink(job: Job, body: m.Bare) -> Answer:
    (reply,) = await job.on(job.node, (Treadlink, ()))
    target: str = reply.target
    return target.encode("utf-8", "surrogateescape")


class _Borrowed:
    """A fid at a node for as long as a request of two fids needs it."""

    def __init__(self, job: Job, node: Node) -> None:
        self.job, self.node = job, node
        self.fid = NOFID
        self.ours = False

    async def get(self) -> int:
        base, names = self.job.place(self.node)
        self.fid = base
        if names:
            self.fid, _, _ = await self.job.walked(base, names)
            self.ours = True
        return self.fid

    def let_go(self) -> None:
        if self.ours:
            self.job.link.let_go(self.fid)


def _node(job: Job, number: int) -> Node:
    node = job.session.nodes.by_id.get(number)
    if node is None:
        raise job.op.error(errno.ESTALE, "this node was forgotten")
    return node


async def link(job: Job, body: m.Link) -> Answer:
    old, into = _Borrowed(job, _node(job, body.oldnode)), _Borrowed(job, job.node)
    try:
        await job.ask(Tlink, await into.get(), await old.get(), body.name)
    finally:
        old.let_go()
        into.let_go()
    return entry(job, *await job.entered(job.node, body.name))


async def _child(job: Job, directory: int, name: str) -> int:
    fid = job.link.half.fids.take()
    await job.ask(Twalk, directory, fid, [name])
    return fid


async def _remove(job: Job, name: str, directory: bool) -> Answer:
    try:
        await job.on(job.node, (Tunlinkat, (name, _REMOVEDIR if directory else 0)))
    except OSError as e:
        if e.errno not in _UNKNOWN or job.link.in_order:
            raise
        within = _Borrowed(job, job.node)  # diod 1.0 has no unlinkat
        try:
            await job.ask(Tremove, await _child(job, await within.get(), name))
        finally:
            within.let_go()
    job.session.nodes.removed(job.node, name)
    return b""


async def unlink(job: Job, body: m.Named) -> Answer:
    return await _remove(job, body.name, False)


async def rmdir(job: Job, body: m.Named) -> Answer:
    return await _remove(job, body.name, True)


async def rename(job: Job, body: m.Rename) -> Answer:
    target = _node(job, body.newdir)
    old, new = _Borrowed(job, job.node), _Borrowed(job, target)
    try:
        olddir = await old.get()
        newdir = olddir if target is job.node else await new.get()
        try:
            await job.ask(Trenameat, olddir, body.name, newdir, body.newname)
        except OSError as e:
            if e.errno not in _UNKNOWN or job.link.in_order:
                raise
            child = await _child(job, olddir, body.name)
            try:
                await job.ask(Trename, child, newdir, body.newname)
            finally:
                job.link.let_go(child)
    finally:
        old.let_go()
        new.let_go()
    job.session.nodes.renamed(job.node, body.name, target, body.newname)
    return b""


async def rename2(job: Job, body: m.Rename2) -> Answer:
    """Flags are for what 9P cannot do at once (no replacing, exchanging); EINVAL has callers do without."""
    if body.flags:
        raise job.op.error(errno.EINVAL, "9P renames without flags")
    return await rename(job, m.Rename(body.newdir, body.name, body.newname))


OPERATIONS: dict[int, Any] = {
    m.LOOKUP: lookup, m.MKDIR: mkdir, m.SYMLINK: symlink, m.MKNOD: mknod, m.READLINK: readlink, m.LINK: link,
    m.UNLINK: unlink, m.RMDIR: rmdir, m.RENAME: rename, m.RENAME2: rename2,
}  # fmt: skip
