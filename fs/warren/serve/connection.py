"""A connection: bytes in, requests answered, bytes out; no I/O of its own.

`consume` takes what one receive brought: every complete request in it is dispatched at once and its
reply queued, so that a batch costs one receive and one send; large replies go out in bursts. Only a
request that must wait costs a task. A driver (`reactor`, `stream`) owns the socket, calls `consume`, and
sends `half.out`.

**Parked requests.** The request's cancel scope exists from the moment it is read, so a Tread and its
Tflush in one segment work. Between a record being taken and its reply being queued there is no
checkpoint. A flush, a clunk of the fid, a change of policy and the end of the connection cancel the
scope; which of them it was decides what the client hears.

**Promises.** What a call returns may be a promise instead of work: it is decided, and its reply is owed until
somebody else, a log that is durable now, keeps it. It has neither task nor scope and cannot be cancelled; a
flush waits for it. One task sends what became of all that is owed.

**Limits.** At most `running` requests of a connection are worked on and `waiting` wait for that;
reads and locks that wait for an event count against `parked`. Beyond each the answer is 429.
At most as many as may run and wait are owed. Tflush, Tclunk and Tversion never wait for anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from warren.p9.codec import BadFrame
from warren.p9.messages import (
    PLAIN,
    Message,
    Tclunk,
    Tflush,
    Tlock,
    Tread,
    Tversion,
    Twrite,
)
from warren.p9.server import Pending, Server
from warren.serve.calls import READ_OVERHEAD
from warren.serve.export import Export
from warren.serve.fid import Fid
from warren.serve.linux import LINUX as LINUX_CALLS
from warren.serve.plain import PLAIN as PLAIN_CALLS
from warren.serve.pool import Pool
from warren.serve.session import Frame, Packers, Parts, Session
from warren.tree import Refused
from warren.tree.promise import Promise

Call = Callable[[Session, Message], object]
_OWING = (Tread, Twrite)  # what may be answered by a promise
_FREE = (Tclunk, Tflush)  # a token that is used up must still be able to let go
EMPTY = memoryview(b"")
# Bytes of replies, after which they are sent before more requests are answered: a segment of small reads
# can ask for more than memory holds, and what has left the processor's cache by then is sent at half speed.
_BURST = 256 << 10


class Parked:
    """A request that a task is working on, or that waits for its turn."""

    __slots__ = ("begin", "busy", "cause", "coming", "event", "fid", "path", "pending", "scope", "session")

    def __init__(self, session: Session, pending: Pending, coming: Awaitable[Frame], fid: Fid | None) -> None:
        self.session = session
        self.pending = pending
        self.coming = coming
        self.path = session.at
        self.fid = fid
        self.scope = trio.CancelScope()
        self.cause = ""
        self.busy = ""  # which limit it was one too many for
        self.event = False  # waits for an event, and counts as parked rather than running
        self.begin: Callable[[Parked], None] | None = None  # set while it waits for its turn

    def cancel(self, cause: str) -> None:
        """Stop it. The first cause is the one the client hears of."""
        self.cause = self.cause or cause
        self.scope.cancel()
        if self.begin is not None:
            self.begin(self)  # its turn would come too late: a cancelled request is settled at once

    def refuse(self, why: str) -> None:
        """It is one too many. It was begun, so it ends as cancelled work does, in its own task."""
        self.busy = why
        self.cancel("busy")


class Owed:
    """A request that was decided, and whose reply was promised."""

    __slots__ = ("fid", "path", "pending")

    def __init__(self, pending: Pending, path: str) -> None:
        self.pending = pending
        self.path = path
        self.fid = None

    def cancel(self, cause: str) -> None:
        """It is too late for that."""


class Connection:
    """One peer of an export."""

    def __init__(
        self, export: Export, subject: str, pool: Pool, spawn: Callable[..., object], kick: Callable[[], None]
    ) -> None:
        self.export = export
        self.half = Server(pool)
        self.session = Session(export, subject, self.half)
        self.closed = False
        self._spawn = spawn  # how a task is started that outlives the call: a nursery's start_soon
        self._kick = kick  # tell the driver that half.out has something
        self._calls: dict[type[Message], Call] = {}
        self._parked: dict[Pending, Parked | Owed] = {}
        self._owed = 0
        self._owed_most = export.limits.running + export.limits.waiting
        self._telling = False  # a task is there that sends what became of what is owed
        self._teller: trio.lowlevel.Task | None = None  # it waits for something to send
        self._running = 0
        self._waiting: deque[Parked] = deque()

    def consume(self, view: memoryview) -> None:
        """Answer every request that VIEW completes. Raises BadFrame: close the connection."""
        session, half, calls = self.session, self.half, self._calls
        out, note, now = half.out.append, self.export.trace.recent.append, time.time()
        number, done, room = session.number, 0, _BURST
        if session.lapsed(now):
            raise BadFrame(session.ended)
        batch, held = half.requests(view), session.token
        if held is not None and not held.meters:
            held = None
        for m in batch:
            cls = m.__class__
            try:
                call = calls.get(cls)
                if call is None:
                    calls = self._special(m)
                    continue
                if held is not None and cls not in _FREE:
                    held.charge(m, now)
                if self._owed >= self._owed_most and cls in _OWING:
                    raise self._busy(f"{self._owed} requests are waiting")
                reply = call(session, m)
            except BadFrame:
                raise
            except Exception as e:
                out(session.refusal(m, e, session.at))
                continue
            done += 1
            if reply.__class__ is bytes:
                out(reply)
                room -= len(reply)
                note((now, number, cls, session.at, 0))
                if held is not None:
                    held.spent(m, len(reply) - READ_OVERHEAD)
            elif reply.__class__ is list:
                half.out += reply
                if held is not None:
                    held.spent(m, len(reply[-1]))
                room -= len(reply[-1])
                note((now, number, cls, session.at, 0))
                if room < 0:
                    batch.close()
                    break
            elif reply.__class__ is Promise:
                self._owe(m, reply)
            else:
                self._park(m, reply)  # type: ignore[arg-type]
        session.operations += done
        session.sent += _BURST - room

    def _special(self, m: Message) -> dict[type[Message], Call]:
        """What has no call: a version exchange, a flush, or a message without a right."""
        if isinstance(m, Tversion):
            self.half.version(m)
            for parked in list(self._parked.values()):
                parked.cancel("gone")
            self._parked.clear()
            self.session.reset()
            self.session.pack = Packers(self.half)
            dialect = self.half.dialect
            self._calls = {} if dialect is None else PLAIN_CALLS if dialect.name == PLAIN else LINUX_CALLS  # type: ignore[assignment]
        elif isinstance(m, Tflush):
            pending = self.half.flush(m)
            if pending is not None:
                self.export.flushed += 1
                self._parked[pending].cancel("flushed")
        else:
            raise BadFrame(f"{type(m).__name__} is no request")
        return self._calls

    # Requests that wait

    def _park(self, m: Message, coming: Awaitable[Frame]) -> None:
        limits, session = self.export.limits, self.session
        fid = session.fids.get(getattr(m, "fid", -1))
        parked = Parked(session, self.half.park(m), coming, fid)
        self._parked[parked.pending] = parked
        if fid is not None:
            fid.parked = fid.parked or set()
            fid.parked.add(parked)
        handle = fid.handle if fid is not None else None
        parked.event = isinstance(m, Tlock) or (isinstance(m, Tread) and handle is not None and handle.parks)
        if parked.event:
            if session.parked >= limits.parked:
                parked.refuse(f"{limits.parked} reads are parked")
            session.parked += 1
        elif self._running >= limits.running and not isinstance(m, Tclunk):
            if len(self._waiting) < limits.waiting:
                self._waiting.append(parked)
                parked.begin = self._begin_out_of_turn
                return
            parked.refuse(f"{limits.waiting} requests are waiting")
            self._running += 1
        else:
            self._running += 1
        self._spawn(self._work, parked)

    def _begin_out_of_turn(self, parked: Parked) -> None:
        self._waiting.remove(parked)
        self._begin(parked)

    def _begin(self, parked: Parked) -> None:
        parked.begin = None
        self._running += 1
        self._spawn(self._work, parked)

    async def _work(self, parked: Parked) -> None:
        """Wait for one parked request and settle it. No checkpoint after the work is done."""
        reply: Parts | None = None
        failed: Exception | None = None
        with parked.scope:
            try:
                frame = await parked.coming
                reply = [frame] if isinstance(frame, bytes) else frame
            except Exception as e:
                failed = e
        m, session = parked.pending.message, self.session
        if reply is not None:
            self._count(m, parked.path, reply)
        elif failed is not None:
            reply = [session.refusal(m, failed, parked.path)] if self._alive(parked) else None
        elif parked.cause == "busy" and self._alive(parked):
            reply = [session.refusal(m, self._busy(parked.busy), parked.path)]
        elif parked.cause in ("clunked", "revoked") and self._alive(parked):
            code = 408 if parked.cause == "clunked" else 403
            gone = Refused(code, f"the fid was {parked.cause}", errno=4 if code == 408 else 13)
            reply = [session.refusal(m, gone, parked.path)]
        if parked.event:
            session.parked -= 1
        else:
            self._running -= 1
        self._settle(parked, reply)
        self._next()

    def _count(self, m: Message, path: str, reply: Parts) -> None:
        """It was done, and that is the answer."""
        session, size = self.session, sum(map(len, reply))
        session.operations += 1
        session.sent += size
        if session.token is not None:
            session.token.spent(m, size - READ_OVERHEAD)
        session.trace_ok(m, path)

    def _busy(self, what: str) -> Refused:
        return Refused(429, f"{what}, the limit of a connection", retry_after=1)

    def _alive(self, parked: Parked | Owed) -> bool:
        return parked.pending.generation == self.half.generation

    def _settle(self, parked: Parked, reply: Parts | None) -> None:
        self._parked.pop(parked.pending, None)
        if parked.fid is not None and parked.fid.parked is not None:
            parked.fid.parked.discard(parked)
        if self.half.settle(parked.pending, reply):
            self._kick()

    # Replies that are owed

    def _owe(self, m: Message, promise: Promise) -> None:
        if promise.settled:
            self.half.out += self._answer(m, promise, self.session.at)
            return
        owed = Owed(self.half.park(m), self.session.at)
        self._parked[owed.pending] = owed
        self._owed += 1
        if not self._telling:
            self._telling = True
            self._spawn(self._tell)
        promise.told(partial(self._kept, owed))

    def _kept(self, owed: Owed, promise: Promise) -> None:
        """The reply of one is there, and is sent with the others that are there by then."""
        self._owed -= 1
        self._parked.pop(owed.pending, None)
        if promise.error is None or self._alive(owed):  # what was done counts, whoever has left meanwhile
            reply = self._answer(owed.pending.message, promise, owed.path)
            self.half.settle(owed.pending, reply)
        teller, self._teller = self._teller, None
        if teller is not None:
            trio.lowlevel.reschedule(teller)
        if not self._owed:
            self._kick()  # nothing else will be there by then

    def _answer(self, m: Message, promise: Promise, path: str) -> Parts:
        """The reply that a settled promise is worth."""
        if promise.error is not None:
            return [self.session.refusal(m, promise.error, path)]
        reply: Parts = promise.value if promise.value.__class__ is list else [promise.value]
        self._count(m, path, reply)
        return reply

    async def _tell(self) -> None:
        """Send what became of what is owed, until nothing is. By this task a driver knows that it will."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._teller = None
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            while self._owed:
                self._kick()  # also what was there before this task had its first turn
                self._teller = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            self._kick()
        finally:
            self._telling = False

    def _next(self) -> None:
        while self._waiting and self._running < self.export.limits.running:
            self._begin(self._waiting.popleft())

    def close(self) -> None:
        """The peer is gone: everything outstanding is cancelled, every fid let go."""
        if self.closed:
            return
        self.closed = True
        self.half.close()
        for parked in list(self._parked.values()):
            parked.cancel("gone")
        self.session.close()
