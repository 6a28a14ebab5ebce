"""Locks, and the ends of open files that let them go.

A lock belongs to whom the kernel says (`owner`: a process's files for fcntl(2), one open for flock(2)), and
travels as (client_id: this mount and owner, proc_id: the process, for those who ask who holds it). It is
taken through an open fid and goes with it. Waiting has no deadline and ends at a signal.

FLUSH comes at each close(2) of a descriptor, and bash sends one before it writes: it lets go of the locks of
whoever closed, and commits nothing. RELEASE comes at the last; its errors reach nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from warren.mount.fuse import messages as m
from warren.mount.fuse.line import Answer, Job, Moment
from warren.mount.fuse.opened import OpenFile, opened
from warren.p9.messages import Tgetlock, Tlock

if TYPE_CHECKING:
    from warren.mount.fuse.session import Session

_KINDS: Final = {fcntl.F_RDLCK: 0, fcntl.F_WRLCK: 1, fcntl.F_UNLCK: 2}
_TYPES: Final = {wire: ours for ours, wire in _KINDS.items()}
_UNLOCK: Final = 2
_BLOCK: Final = 1
_END: Final = (1 << 63) - 1
_PAUSE: Final = 0.05  # between tries at a server that does not wait for us


@cache
def _client() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _fields(job: Job, file: OpenFile, body: m.Lk) -> tuple[int, int, int, int, str]:
    """kind, start, length, proc_id, client_id."""
    kind = _KINDS.get(body.type)
    if kind is None or body.start > _END or body.end < body.start:
        raise job.op.error(errno.EINVAL, "this is no range to lock")
    length = 0 if body.end >= _END else body.end - body.start + 1
    return kind, body.start, length, file.node.owners.get(body.owner, body.pid), f"{_client()}:{body.owner:x}"


async def getlk(job: Job, body: m.Lk) -> Answer:
    file = opened(job, body.fh)
    r = await job.ask(Tgetlock, await file.live(job), *_fields(job, file, body))
    if r.kind == _UNLOCK:
        return m.packed(m.Locked(body.start, body.end, fcntl.F_UNLCK, 0))
    end = r.start + r.length - 1 if r.length else _END
    return m.packed(m.Locked(r.start, end, _TYPES.get(r.kind, fcntl.F_WRLCK), r.proc_id))


async def setlk(job: Job, body: m.Lk) -> Answer:
    return await _lock(job, body, False)


async def setlkw(job: Job, body: m.Lk) -> Answer:
    job.patient = True
    return await _lock(job, body, True)


async def _lock(job: Job, body: m.Lk, wait: bool) -> Answer:
    file = opened(job, body.fh)
    kind, start, length, process, client = _fields(job, file, body)
    owners = file.node.owners
    while True:
        fid = await file.live(job)
        flags = _BLOCK if wait else 0
        status = (await job.ask(Tlock, fid, kind, flags, start, length, process, client)).status
        if status == 0:
            break
        if status != 1:
            raise job.op.error(errno.ENOLCK, f"the server gave no lock (status {status})")
        if not wait:
            raise job.op.error(errno.EAGAIN, "another holds a lock there")
        moment = Moment()
        job.session.later(_PAUSE, moment)
        await job.moment(moment)
    if kind != _UNLOCK:
        owners.setdefault(body.owner, process)
        file.locked.add(body.owner)
    elif (start, length) == (0, 0):
        owners.pop(body.owner, None)
        for other in job.session.opens.all():
            if other.node is file.node:
                other.locked.discard(body.owner)
    return b""


def _unlock(session: Session, file: OpenFile, owner: int) -> None:
    """All that OWNER has locked of this file, through whichever open; nobody waits for the answer."""
    process = file.node.owners.pop(owner, None)
    if process is None:
        return
    for other in session.opens.all():
        if other.node is file.node and owner in other.locked:
            other.locked.discard(owner)
            link = other.link
            if not link.lost:
                link.half.request(Tlock, other.fid, _UNLOCK, 0, 0, 0, process, f"{_client()}:{owner:x}")
                session.queued(link)


def flush(session: Session, head: m.Header, body: m.Flush) -> None:
    file = session.opens.get(body.fh)
    if file is not None:
        _unlock(session, file, body.lock_owner)
        if file.unsure and file.link.lost:
            # The last chance to say that a body may have been discarded; the next close is none.
            file.unsure = False
            session.answer_error(head, errno.ECONNRESET)
            return
    session.answer_at_once(head)


def release(session: Session, head: m.Header, body: m.Release) -> None:
    file = session.opens.get(body.fh)
    if file is not None:
        _unlock(session, file, body.lock_owner)
        session.opens.pop(body.fh)
        session.commits.close(file)
    session.answer_at_once(head)


OPERATIONS: dict[int, Any] = {m.GETLK: getlk, m.SETLK: setlk, m.SETLKW: setlkw}
