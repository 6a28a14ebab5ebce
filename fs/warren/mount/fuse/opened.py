"""Open files: how they are opened, read and written, and how they come back.

How a file is to be used depends on what it is, which servers of ours say (`tree.node`) and others show by
the qid's version:

    stored          through the page cache, which is kept from one open to the next while the version is
                    the same
    stream          one read is one record, however large the reader's buffer; what does not fit is kept
                    for its next read. Nothing is cached, and a read holds up no write.
    everything else straight to the server, one write(2) one Twrite

**A write is whole or refused.** The kernel cuts what is larger than it was allowed to send at once. On a
stored file nobody minds; on a file where a write means something, one that may be a piece is EFBIG.

**Reading the answer.** A descriptor that wrote to a ctl file or a body reads the reply behind what it
wrote, since that is where its position is: `exec 3<>ctl; echo verb >&3; cat <&3`.

**After a lost connection** an open file comes back at its next use: opened again by name, if it is the same
file (ESTALE if not). Where going on in silence would hide a loss (a stream, a lock, a body that was not
committed), that use says ECONNRESET once. What a clone file made is gone.
"""

from __future__ import annotations

import errno
import math
import os
import select
from typing import TYPE_CHECKING, Any, Final

from warren.mount.fuse import messages as m
from warren.mount.fuse.attributes import SUIDGID, entry
from warren.mount.fuse.errstr import text_of
from warren.mount.fuse.line import BASIC, Moment
from warren.mount.link import Lost
from warren.mount.linux import wire_flags
from warren.p9.client import Call
from warren.p9.fields import NOFID
from warren.p9.messages import Tfsync, Tgetattr, Tlcreate, Tlopen, Tread, Tsetattr, Twrite
from warren.tree.node import BLOB, CLONE, CTL, SINK, STORED, STREAM, TEXT

if TYPE_CHECKING:
    from warren.mount.fuse.line import Answer, Job
    from warren.mount.fuse.nodes import Node
    from warren.mount.link import Link

_ONCE: Final = os.O_CREAT | os.O_EXCL | os.O_TRUNC
_AHEAD: Final = 1 << 16  # what is asked of a stream, however little its reader wants
_PAGE: Final = 4096
_KILL: Final = 1 << 2
_AT_HAND: Final = 0.01  # seconds in which a record that is there has come
_READABLE: Final = select.POLLIN | select.POLLRDNORM
_WRITABLE: Final = select.POLLOUT | select.POLLWRNORM
_ANSWERS: Final = (CTL, CLONE, BLOB)
_WHOLE: Final = (TEXT, CTL, SINK, CLONE)


class OpenFile:
    """One open of one file."""

    def __init__(self, node: Node, flags: int, link: Link, fid: int) -> None:
        self.node = node
        self.flags = flags
        self.link = link
        self.fid = fid
        self.word = node.word
        self.stored = node.stored
        self.unsure = False  # bytes were written that a loss may have discarded
        self.locked: set[int] = set()  # owners of locks taken through this
        self.position = 0  # of a stream
        self.base = 0  # where the reply to what was written begins
        self.rest = b""  # of a record, or all of one that came while nobody read
        self.ended = False
        self.failed: OSError | None = None
        self.told: Link | None = None  # the connection of whose loss its user knows
        self.reading: Call | None = None  # a read of a stream that nobody in particular waits for
        self.news: list[Moment] = []  # whom to tell when it came
        self.pollers: set[int] = set()
        self.said: bytes | None = None  # what this mount answers by itself
        self.closed = False

    async def live(self, job: Job) -> int:
        """The fid, on a connection that is up."""
        if self.link is job.link:
            return self.fid
        if self.word == CLONE:
            raise job.op.error(errno.ESTALE, "it lived as long as its connection")
        lossy = (self.word == STREAM or self.locked or self.unsure) and self.told is not self.link
        what = "records" if self.word == STREAM else "locks" if self.locked else "bytes written before"
        self.locked.clear()
        self.unsure = False
        flags = wire_flags(self.flags & ~_ONCE) if self.word != STREAM else wire_flags(os.O_NONBLOCK)
        base, names = job.place(self.node)
        fid, qid, _ = await job.walked(base, names, (Tlopen, (flags,)))
        if self.stored and names and qid.path != self.node.qid.path:
            job.link.let_go(fid)
            raise job.op.error(errno.ESTALE, "another file has this name now")
        if self.link is job.link:
            job.link.let_go(fid)  # somebody else was first
        else:
            self.link, self.fid, self.position, self.base = job.link, fid, 0, 0
            self.rest, self.reading, self.ended = b"", None, False
        if lossy:
            raise job.op.error(errno.ECONNRESET, f"the connection was lost; {what} may be lost with it")
        return self.fid

    def let_go(self) -> None:
        """Nobody has it open any more."""
        self.closed = True
        if self.reading is not None and not self.reading.settled:
            self.link.abandon(self.reading)
        if self.fid != NOFID:
            self.link.let_go(self.fid)


class Opens:
    """What is open, by the numbers that the kernel was given."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._files)

    def add(self, file: OpenFile) -> int:
        number = self._next
        self._next += 1
        self._files[number] = file
        return number

    def get(self, number: int) -> OpenFile | None:
        return self._files.get(number)

    def pop(self, number: int) -> OpenFile | None:
        return self._files.pop(number, None)

    def all(self) -> list[OpenFile]:
        return list(self._files.values())

    def of(self, node: Node) -> OpenFile | None:
        """Some open of a node, for what has lost its name."""
        return next((f for f in self._files.values() if f.node is node and f.said is None), None)


def opened(job: Job, fh: int) -> OpenFile:
    file = job.session.opens.get(fh)
    if file is None:
        raise job.op.error(errno.EBADF, "this is not open")
    return file


def _is_errstr(node: Node) -> bool:
    return node.name == "errstr" and node.parent is not None and node.parent.name == "dev" and bool(node.word)


def _keep(job: Job, file: OpenFile, qid: Any) -> bytes:
    """Give an open file a number and say how it is to be treated."""
    node = file.node
    flags = 0
    if file.word == STREAM:
        flags = m.FOPEN_DIRECT_IO | m.FOPEN_STREAM | m.FOPEN_NOFLUSH
    elif not file.stored:
        # Of our words none is locked, and only of a body there may be something to say at a close.
        flags = m.FOPEN_DIRECT_IO | (m.FOPEN_NOFLUSH if file.word not in (STORED, BLOB) else 0)
    else:
        if node.cached == qid.version:
            flags = m.FOPEN_KEEP_CACHE
        node.cached = qid.version
    return m.packed(m.Opened(job.session.opens.add(file), flags, 0))


async def open_(job: Job, body: m.Open) -> Answer:
    node = job.node
    if _is_errstr(node):
        file = OpenFile(node, os.O_RDONLY, job.link, NOFID)
        text = job.session.errors.newest(job.header.pid, job.header.uid)
        file.said = (text and text + "\n").encode("utf-8", "surrogateescape")
        return m.packed(m.Opened(job.session.opens.add(file), m.FOPEN_DIRECT_IO, 0))
    flags = body.flags & ~os.O_NONBLOCK
    if node.word == STREAM:
        flags |= os.O_NONBLOCK
    base, names = job.place(node)
    fid, qid, (reply,) = await job.walked(base, names, (Tlopen, (wire_flags(flags),)))
    if node.stored and names and qid.path != node.qid.path:
        job.link.let_go(fid)
        raise job.op.error(errno.ESTALE, "another file has this name now")
    file = OpenFile(node, body.flags, job.link, fid)
    if body.open_flags & 1:
        await _no_setid(job, file, fid)
    return _keep(job, file, reply.qid)


async def _no_setid(job: Job, file: OpenFile, fid: int) -> None:
    """The contents change, so they no longer deserve the trust that these bits lend."""
    if file.node.mode & SUIDGID:
        mode = file.node.mode & 0o7777 & ~SUIDGID
        await job.ask(Tsetattr, fid, 1, mode, 0, 0, 0, 0, 0, 0, 0)


async def create(job: Job, body: m.Create) -> Answer:
    """Make a file and open it: its directory's fid becomes the file's."""
    directory = job.node
    flags = body.flags & ~os.O_NONBLOCK | os.O_CREAT
    base, names = job.place(directory)
    make = (Tlcreate, (body.name, wire_flags(flags), body.mode & 0o7777, job.header.gid))
    fid, _, (made,) = await job.walked(base, names, make)
    try:
        a = await job.ask(Tgetattr, fid, BASIC)  # not before: what has an effect may take its time
    except BaseException:
        job.link.let_go(fid)
        raise
    node = job.session.nodes.entered(directory, body.name, a.qid, a.mode, job.word(a))
    job.count(node)
    file = OpenFile(node, body.flags, job.link, fid)
    return entry(job, node, a) + _keep(job, file, made.qid)


async def read(job: Job, body: m.Read) -> Answer:
    file = opened(job, body.fh)
    if file.said is not None:
        return file.said[body.offset : body.offset + body.size]
    fid = await file.live(job)
    if file.word == STREAM:
        try:
            return await _record(job, file, body)
        except Lost:
            file.told = file.link
            raise
    offset = body.offset
    if file.base and offset >= file.base and file.word in _ANSWERS:
        offset -= file.base
    job.patient = not file.stored
    payload = job.link.payload
    if body.size <= payload or not file.stored:
        return [(await job.ask(Tread, fid, offset, min(body.size, payload))).data]
    counts = [min(payload, body.size - at) for at in range(0, body.size, payload)]
    calls = [job.start(Tread, fid, offset + i * payload, count) for i, count in enumerate(counts)]
    pieces: list[bytes | memoryview] = []
    for call in calls:
        await job.settle(call)
    for call, count in zip(calls, counts, strict=True):
        pieces.append((await job.done(call)).data)
        if len(pieces[-1]) < count:
            break  # what lies behind a short read does not join on to it
    return pieces


async def _record(job: Job, file: OpenFile, body: m.Read) -> Answer:
    """The next record, or what is left of one."""
    job.patient = True
    if not file.rest and not file.ended and file.failed is None:
        if file.reading is not None or body.flags & os.O_NONBLOCK:
            await _prefetched(job, file, bool(body.flags & os.O_NONBLOCK))
        else:
            count = min(max(body.size, _AHEAD), job.link.payload)
            reply = await job.ask(Tread, file.fid, file.position, count)
            file.rest = bytes(reply.data)
            file.position += len(reply.data)
    if file.failed is not None:
        failed, file.failed = file.failed, None
        raise failed
    piece, file.rest = file.rest[: body.size], file.rest[body.size :]
    if not piece:
        file.ended = False
    return piece


async def _prefetched(job: Job, file: OpenFile, at_once: bool) -> None:
    """See to it that the record after the last is on its way; wait for it unless AT_ONCE."""
    fetch(job, file)
    if at_once:
        # Only a server knows whether a record is there, and it says so by giving it: wait for a moment.
        moment = Moment()
        job.session.later(_AT_HAND, moment)
        await _news(job, file, moment)
        if file.rest or file.ended or file.failed is not None:
            return
        raise job.op.error(errno.EAGAIN, "no record is there yet")
    while file.reading is not None and not (file.rest or file.ended or file.failed is not None):
        await _news(job, file, Moment())


async def _news(job: Job, file: OpenFile, moment: Moment) -> None:
    """Until the read ahead is settled, or MOMENT comes otherwise."""
    if file.reading is not None:
        file.news.append(moment)
        try:
            await job.moment(moment)
        finally:
            if moment in file.news:
                file.news.remove(moment)


def fetch(job: Job, file: OpenFile) -> None:
    """Read a stream ahead by one record, for those who poll it or will not wait."""
    if file.reading is not None or file.rest or file.ended or file.failed is not None:
        return
    count = min(_AHEAD, job.link.payload)
    call = file.reading = job.start(Tread, file.fid, file.position, count)
    session, link, op = job.session, job.link, job.op

    def came() -> None:
        if file.reading is call:
            file.reading = None
        if file.closed:
            return
        try:
            reply: Any = link.outcome(op, call)
        except OSError as e:
            file.failed = OSError(e.errno, text_of(e))
        else:
            file.rest = bytes(reply.data)
            file.position += len(reply.data)
            file.ended = not file.rest
        session.wake_pollers(file.pollers)
        news, file.news = file.news, []
        for moment in news:
            moment.come()

    call.owner = came


async def write(job: Job, body: m.Write) -> Answer:
    file = opened(job, body.fh)
    data = body.data
    if len(data) != body.size:
        raise job.op.error(errno.EIO, f"{body.size} bytes were announced, {len(data)} came")
    fid = await file.live(job)
    payload = job.link.payload
    if not file.stored:
        if file.word in _WHOLE and len(data) > min(job.session.max_io - _PAGE, payload):
            raise job.op.error(errno.EFBIG, f"one write here is at most {job.session.max_io - _PAGE} bytes")
        file.unsure = True
        job.deadline = math.inf  # a verb takes what it takes; a signal ends it
    offset = 0 if file.word == STREAM else body.offset
    done = await _written(job, file, fid, offset, data)
    file.base = body.offset + done
    if file.word == STREAM:
        file.position = 0
    if body.write_flags & _KILL:
        await _no_setid(job, file, fid)
    return m.packed(m.Written(done, 0))


async def _written(job: Job, file: OpenFile, fid: int, offset: int, data: Any) -> int:
    """Write DATA, in messages as large as they come; how many bytes of it lie in a row."""
    payload = job.link.payload
    if len(data) <= payload:
        return int((await job.ask(Twrite, fid, offset, data)).count)
    pieces = [data[at : at + payload] for at in range(0, len(data), payload)]
    done = 0
    if not file.stored or file.flags & os.O_APPEND:
        for piece in pieces:  # one after the other, so that none is written behind one that was refused
            count = (await job.ask(Twrite, fid, offset + done, piece)).count
            done += count
            if count < len(piece):
                break
        return done
    calls = [job.start(Twrite, fid, offset + i * payload, piece) for i, piece in enumerate(pieces)]
    for call in calls:
        await job.settle(call)
    for call, piece in zip(calls, pieces, strict=True):
        try:
            count = (await job.done(call)).count
        except OSError:
            if not done:
                raise
            break
        done += count
        if count < len(piece):
            break
    return done


async def fsync(job: Job, body: m.Fsync) -> Answer:
    file = opened(job, body.fh)
    fid = await file.live(job)
    await job.ask(Tfsync, fid, body.fsync_flags & 1)
    file.unsure = False
    return b""


async def lseek(job: Job, body: m.Lseek) -> Answer:
    """9P knows no holes: all is data, up to one hole at the end."""
    file = opened(job, body.fh)
    size = (await job.ask(Tgetattr, await file.live(job), BASIC)).size
    if body.offset >= size:
        raise job.op.error(errno.ENXIO, "there is nothing behind the end")
    return m.packed(m.Sought(body.offset if body.whence == os.SEEK_DATA else size))


async def poll(job: Job, body: m.Poll) -> Answer:
    file = opened(job, body.fh)
    ready = _WRITABLE | _READABLE
    if file.word == STREAM and file.said is None:
        await file.live(job)
        if body.events & _READABLE:
            fetch(job, file)
            if file.reading is not None:
                await job.ask(Tgetattr, file.fid, 0)  # comes behind a record that is there
        if not (file.rest or file.ended or file.failed is not None):
            ready = _WRITABLE
            if body.flags & 1:
                file.pollers.add(body.kh)
    return m.packed(m.Ready(ready & (body.events | select.POLLERR | select.POLLHUP), 0))


async def fallocate(job: Job, body: m.Fallocate) -> Answer:
    raise job.op.error(errno.EOPNOTSUPP, "9P reserves no space")


async def ioctl(job: Job, body: m.Ioctl) -> Answer:
    raise job.op.error(errno.ENOTTY, "files here have no ioctl")


async def bmap(job: Job, body: m.Bmap) -> Answer:
    raise job.op.error(errno.EINVAL, "files here lie on no device")


OPERATIONS: dict[int, Any] = {
    m.OPEN: open_, m.CREATE: create, m.READ: read, m.WRITE: write, m.FSYNC: fsync, m.LSEEK: lseek,
    m.POLL: poll, m.FALLOCATE: fallocate, m.IOCTL: ioctl, m.BMAP: bmap,
}  # fmt: skip
