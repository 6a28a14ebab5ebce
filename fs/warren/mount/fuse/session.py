"""One mount at work: requests from the kernel in, 9P out, replies back.

    session = Session(device, lines)
    await session.run(...)              until it is unmounted, or cancelled

**One task waits.** It has an epoll set of its own, in which /dev/fuse lies beside the sockets of the
connections; whatever is readable is served at once, and only when nothing has come for a millisecond does
it wait through trio, which costs more than most requests do.

**Every request is answered once.** Its work is a coroutine (see `line`): what that returns is the reply,
what it raises is the errno, and a defect in it is EIO. Whoever waits for an answer that never comes could
not be killed.

**FUSE_INTERRUPT** gives up a request that waits for an event (a stream's record, a lock) at once. Any other
is given `GRACE` to end by itself, since programs take signals all the time and do not expect EINTR from a
disk. It is given up by Tflush and answered when that is settled, or after `FLUSH_PATIENCE` in any case.

**Unmounting** shows as the end of the device. What is in flight is then dropped, and with the connection
goes what the server held for it.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio
from warren.mount.files import Files
from warren.mount.fuse import messages as m
from warren.mount.fuse.commits import Commits
from warren.mount.fuse.device import BUFFER, Channel
from warren.mount.fuse.errstr import Errors, text_of
from warren.mount.fuse.line import DEADLINE, Answer, Job, Line, Moment
from warren.mount.fuse.nodes import Node, Nodes
from warren.mount.fuse.notices import Notices
from warren.mount.fuse.opened import Opens
from warren.mount.fuse.operations import AT_ONCE, OPERATIONS
from warren.mount.link import FLUSH_PATIENCE, Link
from warren.p9.client import Call

GRACE: Final = 0.25
LENT: Final = 1 << 16  # a write of this many bytes keeps the buffer it came in
USERS: Final = 64
_LINGER: Final = 0.001
_TURN: Final = 0.002
_BATCH: Final = 32
_SWEEP: Final = 0.25
_BUFFERS: Final = 8
_PAGE: Final = 4096

# Asked of the whole connection and not of a node: the kernel does without and never asks again.
_UNKNOWN: Final = {52: errno.ENOSYS, 47: errno.EOPNOTSUPP}  # statx, copy_file_range


# Requests whose refusal says something of the node that was asked about, and not of a name in it.
_OF_ITSELF: Final = {
    m.GETATTR, m.SETATTR, m.OPEN, m.READ, m.WRITE, m.READLINK, m.ACCESS, m.OPENDIR, m.READDIR, m.READDIRPLUS,
}  # fmt: skip


class Session:
    """A mounted tree."""

    def __init__(
        self,
        device: Channel,
        files: Files,
        *,
        introduce: Callable[[int], AbstractAsyncContextManager[Files]] | None = None,
        tell: Callable[[str], None] = lambda said: None,
    ) -> None:
        self.device = device
        self.nodes = Nodes()
        self.opens = Opens()
        self.errors = Errors()
        self.notices = Notices(tell)
        self.each_user = introduce is not None
        self.tell = tell
        self.jobs: dict[int, Job] = {}
        self.max_io = 1 << 20  # bytes of one read or write, once that is agreed
        self.ended = False
        self._introduce_to = introduce
        self._mine = os.geteuid() if self.each_user else 0
        self._lines = {self._mine: Line(self, files)}
        self._links: dict[int, Link] = {}  # by the descriptor of their sockets
        self._epoll = select.epoll()
        self._buffer = bytearray(BUFFER)
        self._buffers: list[bytearray] = []
        self._used: set[Link] = set()  # which have something to send
        self.commits = Commits(self)
        self._full: set[Link] = set()  # whose sockets do not take all that there is to send
        self._leftover: set[Link] = set()  # which have something to send that can wait
        self._busy = trio.Event()
        self._coming: dict[int, list[Job]] = {}  # the first requests of users who are being introduced
        self._nursery: trio.Nursery

    # Life

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Call READY and serve until the device ends. Cancelled drops what is in flight."""
        self._epoll.register(self.device.fileno(), select.EPOLLIN)
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._sweep)
                self._nursery.start_soon(self.notices.run, self.device)
                ready()
                await self._pump()
                self._nursery.cancel_scope.cancel()
        finally:
            self.ended = True
            for job in self.jobs.values():
                if job.call is not None:
                    job.call.owner = None
                job.coroutine.close()
            self.jobs.clear()
            self._epoll.close()

    async def first(self) -> None:
        """Have a connection for the one who mounts. Raises OSError."""
        await self._lines[self._mine].connect()

    def spawn(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Work that needs a task, until the mount ends."""
        self._nursery.start_soon(work, *args)

    async def _pump(self) -> None:
        poll, fd, device = self._epoll.poll, self._epoll.fileno(), self.device.fileno()
        turn, served = time.monotonic(), False
        while not self.ended:
            events = poll(_LINGER if served else 0)
            if not events:
                self._send_leftover()
                await trio.lowlevel.wait_readable(fd)
                turn, served = time.monotonic(), False
                continue
            served = True
            for number, what in events:
                if number == device:
                    self._requests(_BATCH if len(self.jobs) > 1 else 1)
                elif (link := self._links.get(number)) is not None:
                    if what & select.EPOLLOUT:
                        self._used.add(link)
                    if what & ~select.EPOLLOUT:
                        link.receive_now()
            self.send()
            if (now := time.monotonic()) - turn > _TURN:
                self._send_leftover()
                await trio.lowlevel.checkpoint()
                turn = now

    def send(self) -> None:
        """Send what was asked since; whatever asks outside a turn of the pump calls this."""
        for line in self._lines.values():
            if line.crowd:
                line.admit()
        while self._used:
            link = self._used.pop()
            self._leftover.discard(link)
            self._send_on(link)

    def _send_on(self, link: Link) -> None:
        """Send what there is; while the socket does not take it all, the pump waits for that too."""
        link.send()
        if link.unsent != (link in self._full):
            number = next((n for n, known in self._links.items() if known is link), None)
            if number is None:
                return
            if link.unsent:
                self._full.add(link)
                self._epoll.modify(number, select.EPOLLIN | select.EPOLLOUT)
            else:
                self._full.discard(link)
                self._epoll.modify(number, select.EPOLLIN)

    def _received(self) -> None:
        """Something came that did not come through the pump."""
        self.send()
        self._send_leftover()

    def _send_leftover(self) -> None:
        """Fids that were let go travel with the next request, or when there is none: to wake the server for
        them alone costs as much as a request."""
        while self._leftover:
            self._send_on(self._leftover.pop())

    def queued(self, link: Link) -> None:
        """Something was queued on LINK that nobody waits for."""
        self._leftover.add(link)

    def asked(self, link: Link) -> None:
        """Something was queued on LINK that is to leave with this turn."""
        self._used.add(link)

    def later(self, seconds: float, moment: Moment) -> None:
        """Let a moment come after a while."""

        async def wait() -> None:
            await trio.sleep(seconds)
            if not moment.settled:
                moment.come()
                self.send()

        self.spawn(wait)

    def connected(self, line: Line, link: Link) -> None:
        """LINE has a connection, perhaps a new one."""

        def lost() -> None:
            if self._links.pop(number, None) is not None and not self.ended:
                self._epoll.unregister(number)
            line.lost(link)
            self._used.discard(link)
            self._leftover.discard(link)
            self._full.discard(link)
            self.everything_changed()

        link.on_loss = lost
        link.on_receipt = self._received
        sock = link.take_over()
        number = sock.fileno() if sock is not None else -1
        if sock is not None:
            self._links[number] = link
            self._epoll.register(number, select.EPOLLIN)
        self.nodes.root.qid = link.root_qid
        if link.payload < self.max_io - _PAGE:
            # Otherwise a message and a little one behind it carry what the kernel sends at once.
            self.max_io = link.payload // _PAGE * _PAGE or link.payload

    # Requests

    def _requests(self, most: int) -> None:
        """Begin what the kernel asks, MOST at most. One that comes alone is not followed by another."""
        for _ in range(most):
            try:
                n = self.device.read(self._buffer)
            except BlockingIOError:
                return
            if not n:
                self.ended = True
                return
            self.request(memoryview(self._buffer)[:n])

    def request(self, raw: memoryview) -> None:
        """One request. Whatever it holds, its answer is seen to."""
        try:
            head = m.header(raw)
        except m.BadRequest as e:
            self.tell(f"the kernel sent what is no request: {e}")
            return
        try:
            body = m.body(head, raw)
        except KeyError:
            self._answer_error(head.unique, _UNKNOWN.get(head.opcode, errno.EOPNOTSUPP))
            return
        except m.BadRequest as e:
            self.tell(f"opcode {head.opcode}: {e}")
            if head.opcode not in (m.FORGET, m.BATCH_FORGET, m.INTERRUPT):
                self._answer_error(head.unique, errno.EIO)
            return
        if (at_once := AT_ONCE.get(head.opcode)) is not None:
            at_once(self, head, body)
            return
        node = self.nodes.by_id.get(head.nodeid)
        if node is None:
            self._answer_error(head.unique, errno.ESTALE)
        elif head.unique in self.jobs:
            self.tell(f"request {head.unique} came twice")
        else:
            self._take(head, body, node)

    def _take(self, head: m.Header, body: Any, node: Node) -> None:
        uid = head.uid if self.each_user else 0
        line = self._lines.get(uid)
        job = Job(self, head, line or self._lines[self._mine], node)
        operation = OPERATIONS[head.opcode]
        if isinstance(body, m.Write):
            if len(body.data) >= LENT:
                job.buffer, self._buffer = self._buffer, self._spare()
            else:
                body = body._replace(data=bytes(body.data))
        elif isinstance(body, m.Setxattr):
            body = body._replace(value=bytes(body.value))
        job.coroutine = operation(job, body)
        self.jobs[head.unique] = job
        if line is not None:
            if not self.commits.holds(job):
                line.ready(job)
        elif uid in self._coming:
            self._coming[uid].append(job)
        elif len(self._lines) + len(self._coming) >= USERS:
            self.refuse(job, OSError(errno.EUSERS, f"{USERS} users have this mount open; that is all it has"))
        else:
            self._coming[uid] = [job]
            self.spawn(self._introduce, uid)

    async def _introduce(self, uid: int) -> None:
        """A user who has no connection yet. The task stays with the connection."""
        assert self._introduce_to is not None
        try:
            async with self._introduce_to(uid) as files:
                line = self._lines[uid] = Line(self, files)
                for job in self._coming.pop(uid):
                    if self.jobs.get(job.header.unique) is job:  # it may have been given up
                        job.line = line
                        line.ready(job)
                self.send()
                await trio.sleep_forever()
        except OSError as e:
            for job in self._coming.pop(uid, ()):
                if self.jobs.get(job.header.unique) is job:
                    self.refuse(job, e)

    def _spare(self) -> bytearray:
        return self._buffers.pop() if self._buffers else bytearray(BUFFER)

    # Jobs

    def begin(self, job: Job) -> None:
        """There is a connection: go."""
        job.begun = True
        job.deadline = time.monotonic() + DEADLINE
        self._busy.set()
        self.step(job)

    def step(self, job: Job) -> None:
        """Go on with a job until it must wait, or is done."""
        try:
            call = job.coroutine.send(None)
        except StopIteration as done:
            self._finish(job, done.value)
        except OSError as e:
            self.refuse(job, e)
        except Exception as e:  # a defect of ours must not leave a caller that nobody can kill
            self.tell(f"defect in opcode {job.header.opcode}: {type(e).__name__}: {e}")
            self.refuse(job, OSError(errno.EIO, f"500 internal: {type(e).__name__} in the mount"))
        else:
            job.call = call
            call.owner = job.go_on
            if job.given_up:
                self._break_off(job)
            self._used.add(job.link)
            return
        self._leftover.add(job.link)

    def _finish(self, job: Job, answer: Answer) -> None:
        """The reply; a job whose opcode has none answers None."""
        self._end(job)
        if answer is None:
            return
        parts = [answer] if isinstance(answer, bytes) else answer
        size = m.REPLY.size + sum(map(len, parts))
        try:
            delivered = self.device.write([m.REPLY.pack(size, 0, job.header.unique), *parts])
        except OSError as e:
            self.tell(f"the kernel does not take the answer to opcode {job.header.opcode}: {e}")
            self._answer_error(job.header.unique, errno.EIO)
            delivered = False
        if not delivered:
            for node in job.counted:
                self.forget(node.id, 1)

    def refuse(self, job: Job, e: OSError) -> None:
        """An errno, with its text left where the caller may look for it."""
        head = job.header
        if not job.begun:
            job.coroutine.close()
        self._end(job)
        for node in job.counted:
            self.forget(node.id, 1)
        number = e.errno or errno.EIO
        looked = head.opcode in (m.LOOKUP, m.GETXATTR, m.LISTXATTR)
        expected = looked and number in (errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP, errno.ERANGE)
        if not expected and number != errno.EINTR:
            self.errors.record(head.pid, head.uid, text_of(e))
        if head.opcode in _OF_ITSELF and number in (errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOENT):
            if job.node.stored:
                self.notices.stale(job.node)
            if number in (errno.ESTALE, errno.ENOENT):
                self.notices.gone(job.node)
        # To the kernel ENOSYS is an answer for good, and for every node.
        self._answer_error(head.unique, errno.EOPNOTSUPP if number == errno.ENOSYS else number)

    def _end(self, job: Job) -> None:
        del self.jobs[job.header.unique]
        buffer, job.buffer = job.buffer, None
        if buffer is not None and not job.given_up and len(self._buffers) < _BUFFERS:
            self._buffers.append(buffer)

    def _answer_error(self, unique: int, number: int) -> None:
        if not 0 < number < 512:
            number = errno.EIO
        try:
            self.device.write([m.REPLY.pack(m.REPLY.size, -number, unique)])
        except OSError as e:
            self.tell(f"the kernel does not take an error: {e}")

    def answer_at_once(self, head: m.Header, body: bytes = b"") -> None:
        """The reply to what needs no server."""
        self.device.write([m.REPLY.pack(m.REPLY.size + len(body), 0, head.unique), body])

    def answer_error(self, head: m.Header, number: int) -> None:
        """The same, for a request that fails."""
        self._answer_error(head.unique, number)

    def forget(self, number: int, count: int) -> None:
        """The kernel knows a node so many times less."""
        node = self.nodes.forget(number, count)
        if node is not None and isinstance(line := node.line, Line):
            fid = node.fid
            line.kept.drop(node)
            if line.link is not None:
                line.link.let_go(fid)
                self._leftover.add(line.link)

    # Giving up

    def interrupt(self, unique: int) -> None:
        """Whoever waits for this request has had a signal."""
        job = self.jobs.get(unique)
        if job is None or job.why:
            return
        job.why = errno.EINTR
        if not job.begun:
            for queue in (job.line.waiting, job.line.crowd):
                if job in queue:
                    queue.remove(job)
            self.refuse(job, OSError(errno.EINTR, "interrupted"))
        elif job.patient:
            self._give_up(job)
        else:
            job.deadline = min(job.deadline, time.monotonic() + GRACE)

    def _give_up(self, job: Job) -> None:
        """Flush what is awaited. The job goes on when that is settled."""
        job.given_up = time.monotonic()
        self._busy.set()
        job.why = job.why or errno.ETIMEDOUT
        self._break_off(job)

    def _break_off(self, job: Job) -> None:
        if isinstance(job.call, Moment):
            job.call.come()
        elif job.call is not None:
            job.link.half.flush(job.call)
            self._used.add(job.link)

    async def _sweep(self) -> None:
        """Look after what takes too long."""
        while True:
            await self._busy.wait()
            await trio.sleep(_SWEEP)
            self.sweep(time.monotonic())
            if all(job.patient and not job.given_up for job in self.jobs.values()):
                self._busy = trio.Event()

    def sweep(self, now: float) -> None:
        """One look, at NOW."""
        for job in list(self.jobs.values()):
            if not job.begun:
                continue
            if job.given_up:
                if now - job.given_up > FLUSH_PATIENCE and isinstance(job.call, Call):
                    job.link.ignore(job.call)
                    self._used.add(job.link)
                    self._throw(job)
            elif now > job.deadline and (not job.patient or job.why):
                self._give_up(job)
        self.send()

    def _throw(self, job: Job) -> None:
        """The server settles nothing: the caller at least is let go. The outcome is unknown."""
        coroutine, job.call = job.coroutine, None
        try:
            coroutine.throw(job.op.error(job.why, "given up; the server does not say what became of it"))
        except StopIteration as done:
            self._finish(job, done.value)
        except OSError as e:
            self.refuse(job, e)
        else:
            coroutine.close()
            self.refuse(job, job.op.error(job.why, "given up"))

    # Notices

    def everything_changed(self) -> None:
        """A connection went, and with it whatever rights there were."""
        if not self.ended:
            self.notices.stale(*(node for node in self.nodes.by_id.values() if node.cached >= 0))

    def wake_pollers(self, handles: set[int]) -> None:
        """There is something to read for whoever polls."""
        self.notices.ready(self.device, handles)
