"""The way from one user of a mount to the server: a connection that comes back, and the requests on it.

    line.ready(job)         begin JOB now, or when the connection is up again, or refuse it soon
    job.start(Tgetattr, ..) queue a request; job.done(call) awaits its reply
    await job.on(node, (Tgetattr, (mask,)))          requests about a node
    await job.walked(base, names, (Tlopen, (0,)))    a new fid, and requests on it

A job is one request of the kernel's, and its work is a coroutine, but not a task: what it awaits is a 9P
reply, and whoever receives that goes on with the coroutine there and then. A job that asks one thing costs
a few microseconds beside the two system calls.

**Errors** are OSErrors, as everywhere. A job that was given up (a signal, a deadline) is given EINTR or
ETIMEDOUT once its request is settled: by a flush, so that it had no effect, or by a reply, which counts.

**A lost connection** ends every job on it with ECONNRESET. The next job has it dialled again, `PATIENCE`
seconds at most; jobs that come meanwhile wait for that and share its end.
"""

from __future__ import annotations

import errno
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from warren.mount.errors import refusal
from warren.mount.files import Files
from warren.mount.fuse.messages import Header
from warren.mount.fuse.nodes import Kept, Node
from warren.mount.link import Link, Lost, Op
from warren.mount.words import Request
from warren.p9.client import Call, State
from warren.p9.fields import MAXWELEM, NOFID, Qid
from warren.p9.messages import PLAIN, Message, Rlerror, Rwalk, Tgetattr, Twalk

if TYPE_CHECKING:
    from warren.mount.fuse.session import Session

M = TypeVar("M", bound=Message)
Parts = list[bytes | memoryview]
Answer = bytes | Parts | None

PATIENCE: Final = 1.0  # seconds for a connection to come back, while callers wait
DEADLINE: Final = 30.0  # for an answer that nothing stands in the way of
_AFTER_FAILURE: Final = 0.1  # seconds in which a server that was away is not dialled again
_WAITING: Final = 1024
_AT_ONCE: Final = 96  # jobs under way; beyond that many requests servers answer 429
BASIC: Final = 0x7FF


class Job:
    """One request of the kernel's that is being worked on."""

    __slots__ = ("begun", "buffer", "call", "coroutine", "counted", "deadline", "given_up", "header", "line",
                 "link", "node", "op", "patient", "session", "why")  # fmt: skip

    def __init__(self, session: Session, header: Header, line: Line, node: Node) -> None:
        self.session = session
        self.header = header
        self.line = line
        self.node = node
        self.op = Op("")
        self.link: Link
        self.call: Call | Moment | None = None  # what is being awaited
        self.coroutine: Coroutine[Call | Moment, None, Answer]
        self.begun = False
        self.counted: list[Node] = []  # whose lookups were counted for the reply
        self.buffer: bytearray | None = None  # lent to a request that is being sent
        self.deadline = 0.0
        self.patient = False  # it waits for an event: without a deadline, and a signal ends it at once
        self.why = 0  # the errno of its being given up
        self.given_up = 0.0  # when that was

    def go_on(self) -> None:
        """What was awaited is settled."""
        self.call = None
        self.session.step(self)

    # What operations use

    def start(self, cls: type[Message], *fields: Any, after: Call | None = None) -> Call:
        """Queue a request. Every call must be awaited, or ignored."""
        return self.link.start(self.op, cls, *fields, after=after)

    async def settle(self, call: Call) -> None:
        """Until CALL is settled, whichever way."""
        if not call.settled:
            await _settled(call)

    async def done(self, call: Call) -> Any:
        """The reply; raises the refusal."""
        if not call.settled:
            await _settled(call)
        if call.state is State.ANSWERED:
            assert call.reply is not None
            if call.refused:
                raise refusal(call.reply, "")
            return call.reply
        if call.state is State.LOST:
            return self.link.outcome(self.op, call)
        raise self.op.error(self.why or errno.EINTR, "given up before it was answered")

    async def moment(self, moment: Moment) -> None:
        """Until it comes; raises if the job is given up meanwhile."""
        if not moment.settled:
            await _settled(moment)
        if self.given_up:
            raise self.op.error(self.why, "given up before it came")

    async def ask(self, cls: type[Message], *fields: Any) -> Any:
        """start and done."""
        return await self.done(self.start(cls, *fields))

    def place(self, node: Node) -> tuple[int, list[str]]:
        """A fid, and the names that lead from there to NODE."""
        names: list[str] = []
        at: Node = node
        while at.parent is not None:
            if at.line is self.line and at.fid != NOFID:
                names.reverse()
                return at.fid, names
            if not at.names:
                raise self.op.error(errno.ESTALE, "this file has no name any more")
            names.append(at.name)
            at = at.parent
        names.reverse()
        return self.link.root, names

    async def on(self, node: Node, *then: Request) -> Sequence[Any]:
        """Requests about NODE, in order; their replies."""
        base, names = self.place(node)
        if not names:
            calls = [self.start(cls, base, *fields) for cls, fields in then]
            return await self._all(calls)
        fid, qid, replies = await self.walked(base, names, *then)
        self.found(node, fid, qid)
        return replies

    def found(self, node: Node, fid: int, qid: Qid) -> None:
        """A walk to NODE ended at FID: keep that, or let it go."""
        if qid.type != node.qid.type or (node.stored and qid.path != node.qid.path):
            self.link.let_go(fid)
            raise self.op.error(errno.ESTALE, "another file has this name now")
        if node.stored:
            self.keep(node, fid)
        else:
            self.link.let_go(fid)

    def keep(self, node: Node, fid: int) -> None:
        """FID is NODE's from now on."""
        line = self.line
        if node.fid != NOFID:
            if node.line is not line or node.fid == fid:
                self.link.let_go(fid)  # another user's connection keeps one
                return
            old, node.fid = node.fid, NOFID
            self.link.let_go(old)
        surplus = line.kept.keep(node, line, fid)
        if surplus is not None:
            gone = surplus.fid
            line.kept.drop(surplus)
            self.link.let_go(gone)

    async def walked(self, base: int, names: list[str], *then: Request) -> tuple[int, Qid, Sequence[Any]]:
        """A new fid at NAMES from BASE, and the replies to THEN on it. The caller has the fid, unless this
        raises. Cancelled cannot come here; a job that was given up raises."""
        link = self.link
        fid = link.half.fids.take()
        first, more = names[:MAXWELEM], names[MAXWELEM:]
        walk = self.start(Twalk, base, fid, first)
        if not link.in_order or more:
            qids = await self._reached(walk, base, first)
            while more:
                step, more = more[:MAXWELEM], more[MAXWELEM:]
                try:
                    qids = await self._reached(self.start(Twalk, fid, fid, step), fid, step)
                except BaseException:
                    link.let_go(fid)
                    raise
            ahead = [self.start(cls, fid, *fields) for cls, fields in then]
        else:
            ahead = [self.start(cls, fid, *fields, after=walk) for cls, fields in then]
            try:
                qids = await self._reached(walk, base, first)
            except OSError:
                for call in ahead:
                    await self.settle(call)
                raise
        try:
            for call in ahead:
                await self.settle(call)
            for i, (cls, fields) in enumerate(then):
                # A server whose walk took its time had not made the fid yet, and refused without effect.
                reply = ahead[i].reply
                if isinstance(reply, Rlerror) and reply.ecode == errno.EBADF:
                    ahead[i] = self.start(cls, fid, *fields)
            replies = await self._all(ahead)
        except BaseException:
            link.let_go(fid)
            raise
        return fid, qids[-1] if qids else Qid(0, 0, 0), replies

    async def _all(self, calls: Sequence[Call]) -> Sequence[Any]:
        for call in calls:
            await self.settle(call)
        return [await self.done(call) for call in calls]

    async def _reached(self, walk: Call, base: int, names: list[str]) -> list[Qid]:
        reply: Rwalk = await self.done(walk)
        if len(reply.qids) < len(names):
            await self._reason(base, names, len(reply.qids))
        return reply.qids

    async def _reason(self, base: int, names: list[str], n: int) -> None:
        """Why the walk stopped after N names: only a walk of one name is told. Raises that."""
        link = self.link
        fid = link.half.fids.take()
        reply: Rwalk = await self.done(self.start(Twalk, base, fid, names[:n]))
        if len(reply.qids) == n:
            try:
                reply = await self.done(self.start(Twalk, fid, fid, names[n : n + 1]))
            finally:
                link.let_go(fid)
        raise self.op.error(errno.ENOENT, "file does not exist")

    async def entered(self, parent: Node, name: str) -> tuple[Node, Any]:
        """Look NAME up in PARENT: its node, counted for the reply, and its attributes."""
        base, names = self.place(parent)
        fid, _, (attr,) = await self.walked(base, [*names, name], (Tgetattr, (BASIC,)))
        node = self.session.nodes.entered(parent, name, attr.qid, attr.mode, self.word(attr))
        if node.stored:
            self.keep(node, fid)
        else:
            self.link.let_go(fid)
        self.count(node)
        return node, attr

    def word(self, attr: Any) -> int:
        """Which word of `tree` a file is; servers that are not ours do not say."""
        return attr.gen if self.link.in_order else 0

    def count(self, node: Node) -> None:
        """The kernel will know of NODE once more, if the reply reaches it."""
        node.lookups += 1
        self.counted.append(node)


class Moment:
    """Something that a job awaits and that is no reply."""

    def __init__(self) -> None:
        self.settled = False
        self.owner: Callable[[], None] | None = None

    def come(self) -> None:
        """It is here: whoever awaits it goes on."""
        self.settled = True
        told, self.owner = self.owner, None
        if told is not None:
            told()


@types.coroutine
def _settled(call: Call | Moment) -> Generator[Call | Moment, None, None]:
    yield call


class Line:
    """One user's connection."""

    def __init__(self, session: Session, files: Files) -> None:
        self.session = session
        self.files = files
        self.link: Link | None = None
        self.kept = Kept()
        self.waiting: deque[Job] = deque()
        self.crowd: deque[Job] = deque()  # more than the server would take
        self._dialling = False
        self._failed: tuple[float, OSError] | None = None

    def ready(self, job: Job) -> None:
        """Begin JOB as soon as there is a connection."""
        link = self.link
        if link is not None and not link.why:
            if len(self.session.jobs) > _AT_ONCE and self._crowded():
                self.crowd.append(job)
                return
            job.link = link
            self.session.begin(job)
            return
        if self._failed is not None and time.monotonic() - self._failed[0] < _AFTER_FAILURE:
            self.session.refuse(job, self._failed[1])
        elif len(self.waiting) >= _WAITING:
            self.session.refuse(job, job.op.error(errno.EAGAIN, "too many wait for the server to come back"))
        else:
            self.waiting.append(job)
            if not self._dialling:
                self._dialling = True
                self.session.spawn(self._dial)

    def admit(self) -> None:
        """Let in of the crowd as many as there is room for."""
        while self.crowd and not self._crowded():
            self.ready(self.crowd.popleft())

    def _crowded(self) -> bool:
        """Whether as much is under way as a server takes; what waits for an event is counted apart."""
        return sum(j.begun and not j.patient for j in self.session.jobs.values()) >= _AT_ONCE

    async def _dial(self) -> None:
        """Dial, and give all who wait the connection or the reason. Cancelled leaves them to the session."""
        failed: OSError | None = None
        try:
            await self.connect()
        except OSError as e:
            failed = self._away(e)
        self._dialling = False
        self._failed = (time.monotonic(), failed) if failed is not None else None
        waiting, self.waiting = self.waiting, deque()
        for job in waiting:
            if failed is not None:
                self.session.refuse(job, failed)
            else:
                self.ready(job)
        self.session.send()

    @staticmethod
    def _away(e: OSError) -> OSError:
        """Why there is no connection, without an errno that would be read as the file's own."""
        number = e.errno if e.errno in (errno.EACCES, errno.EPERM, errno.ETIMEDOUT) else errno.ECONNREFUSED
        return OSError(number, f"503 unavailable: the server is away: {e.strerror}")

    async def connect(self) -> None:
        """Have a connection. Raises OSError."""
        op = Op("/", PATIENCE)
        link: Link | None = None
        if self.link is None:
            link = await self.files.live(op)  # what the dialling has made already
        else:
            with trio.move_on_after(PATIENCE):
                link = await self.files.attach(op)
            if link is None:
                raise op.error(errno.ETIMEDOUT, f"no answer in {PATIENCE:g} s")
        if link.version == PLAIN:
            raise OSError(errno.EPROTONOSUPPORT, f"{link.peer} speaks {PLAIN} only; a mount needs {PLAIN}.L")
        if link is not self.link:
            self.link = link
            self.session.connected(self, link)

    def lost(self, link: Link) -> None:
        """The connection went away."""
        if link is self.link:
            self.kept.clear()
            crowd, self.crowd = self.crowd, deque()
            for job in crowd:
                self.ready(job)


__all__ = ["BASIC", "DEADLINE", "Answer", "Job", "Line", "Lost", "Parts"]
