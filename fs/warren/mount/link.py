"""One live connection: many tasks ask, one reader settles, one write carries what they asked.

    link = Link(channel, peer)
    nursery.start_soon(link.run)
    await link.hello(op, uname, aname)
    reply = await link.ask(op, Tgetattr, fid, mask)

A task that asks while nobody else waits sends at once. With others waiting, its request is left to
the writer task, which runs once all tasks of this turn of the loop have asked and sends everything
in one `sendmsg`.

**Cancellation.** A cancelled request is not just left: Tflush goes out, and the task stays, shielded,
until the request is settled. If its reply came first, `finish` *returns the reply* and the
cancellation is delivered at the next checkpoint; otherwise it raises Cancelled, and the request had
no effect. A server that settles neither within 2 s forfeits that promise: Cancelled is raised, the
outcome is unknown, and whatever the late reply makes is thrown away.

**Deadlines.** Every request has one (`Op.limit`; math.inf for a parked read), watched by one task for
all of them. It ends as a cancellation does: with the reply if that came first, else TimeoutError.
"""

from __future__ import annotations

import errno
import math
import random
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio
from warren.mount.address import Channel, Present, SocketChannel, rest
from warren.mount.errors import refusal
from warren.p9.client import MSIZE, VERSIONS, Call, Client, State
from warren.p9.codec import BadFrame, BadValue
from warren.p9.fields import NOFID, NONUNAME, Qid
from warren.p9.messages import (
    PLAIN,
    WARREN,
    Message,
    Rattach,
    Rread,
    Rversion,
    Tauth,
    Tclunk,
    Tread,
    Twrite,
)

if TYPE_CHECKING:
    from warren.mount.words import Words

_NONCE = 32  # bytes of a server's nonce

FLUSH_PATIENCE = 2.0
_HEADER = 24  # what the protocol reserves of an msize for the rest of a Tread or Twrite
_TRACE = 8
_ABANDONED = object()


class Op:
    """One thing that a caller asked for: what its errors name, and whether it can be done again."""

    __slots__ = ("effect", "limit", "path", "trace")

    def __init__(self, path: str, limit: float = math.inf) -> None:
        self.path = path
        self.limit = limit
        self.trace = random.getrandbits(64) | 1
        self.effect = False  # set before the first request that changes something is sent

    def error(self, number: int, words: str, path: str | None = None) -> OSError:
        """An OSError of our own making, worded as a server's would be."""
        return OSError(number, f"{words} trace={self.trace:016x}", self.path if path is None else path)


class Lost(ConnectionResetError):
    """The connection went away under a request; whether it was done is not known here."""


class Barred(PermissionError):
    """The peer will have nothing to do with who we are. Nothing that was asked on the link was done."""


class Link:
    """One connection and the session on it. `words` says things in its dialect, once that is settled."""

    words: Words

    def __init__(
        self, channel: Channel, peer: str, msize: int = MSIZE, versions: Sequence[str] = VERSIONS
    ) -> None:
        self.peer = peer
        self.half = Client(msize, versions)
        self.root = NOFID
        self.root_qid = Qid(0, 0, 0)
        self.why = ""  # why it is lost, once it is
        self._barred = False
        self._channel = channel
        self._waiting = 0
        self._unsent: list[bytes | memoryview] = []
        self._writer: trio.lowlevel.Task | None = None
        self._writer_due = True
        self._next_check = math.inf
        self._check = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._taken: socket.socket | None = None
        self.on_loss: Callable[[], None] | None = None
        self.on_receipt: Callable[[], None] | None = None  # when owners were told by our own reader

    @property
    def lost(self) -> bool:
        return bool(self.why)

    @property
    def version(self) -> str:
        return self.half.version

    @property
    def in_order(self) -> bool:
        """Whether the server begins requests in the order they came (see `walk`)."""
        return self.version == WARREN

    @property
    def payload(self) -> int:
        """The most bytes that one Tread or Twrite carries."""
        return self.half.msize - _HEADER - (_TRACE if self.version == WARREN else 0)

    async def hello(self, op: Op, uname: str, aname: str) -> None:
        """Settle the version and attach. Raises OSError; Cancelled leaves a link to be dropped."""
        reply = await self.finish(op, self._mark(self.half.begin()))
        if not isinstance(reply, Rversion) or not self.version:
            raise op.error(errno.EPROTONOSUPPORT, f"{self.peer} speaks none of our versions of 9P")
        afid = NOFID
        if self._channel.present is not None:
            afid = await self._present(op, uname, aname, self._channel.present)
        fid = self.half.fids.take()
        call = self.half.attach(fid, afid, uname, aname)
        call.trace = op.trace
        attached = await self.finish(op, self._mark(call))
        assert isinstance(attached, Rattach)
        self.root, self.root_qid = fid, attached.qid
        if afid != NOFID:
            self.forget(afid)

    async def _present(self, op: Op, uname: str, aname: str, present: Present) -> int:
        """Show our token on an afid; NOFID where no token is asked for, and who we are decides."""
        afid = self.half.fids.take()
        labels = (uname, aname) if self.version == PLAIN else (uname, aname, NONUNAME)
        try:
            await self.ask(op, Tauth, afid, *labels)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.EOPNOTSUPP) or "not required" in (e.strerror or ""):
                return NOFID
            raise
        nonce = await self.ask(op, Tread, afid, 0, _NONCE)
        assert isinstance(nonce, Rread)
        await self.ask(op, Twrite, afid, 0, present(bytes(nonce.data)))
        return afid

    # Asking

    def start(self, op: Op, cls: type[Message], *fields: Any, after: Call | None = None) -> Call:
        """Queue a request; it is sent when somebody waits. Every call must be finished or abandoned."""
        if self.why:
            raise self._gone(op)
        try:
            return self.half.request(cls, *fields, trace=op.trace, after=after)
        except BadValue as e:
            raise OSError(errno.EINVAL, str(e), op.path) from None
        except BlockingIOError as e:
            raise OSError(errno.EAGAIN, str(e), op.path) from None

    async def ask(self, op: Op, cls: type[Message], *fields: Any) -> Any:
        """start and finish."""
        return await self.finish(op, self.start(op, cls, *fields))

    async def finish(self, op: Op, call: Call, flush: bool = True) -> Message:
        """The reply; a refusal as OSError, Lost, or TimeoutError. Cancelled: see above.

        Without FLUSH a cancelled request is waited for, but not given up: a clunk is never flushed.
        """
        if not call.settled:
            await self._settle(op, call, flush)
        return self.outcome(op, call)

    def outcome(self, op: Op, call: Call) -> Message:
        """What `finish` returns or raises, of a call that is settled or was given up."""
        if call.state is State.LOST:
            raise self._gone(op)
        if call.reply is None:
            raise op.error(errno.ETIMEDOUT, f"{self.peer} gave no answer in {op.limit:g} s")
        if call.refused:
            raise refusal(call.reply, op.path)
        return call.reply

    async def _settle(self, op: Op, call: Call, flush: bool) -> None:
        call.deadline = trio.current_time() + op.limit
        if call.deadline < self._next_check:
            self._next_check = self._check.deadline = call.deadline
        self._push()
        try:
            await self._wait(call)
        except trio.Cancelled:
            if not call.settled:
                await self._give_up(call, flush)
            if call.state is not State.ANSWERED:
                raise
        else:
            if not call.settled:  # the deadline
                await self._give_up(call, flush)

    async def _wait(self, call: Call) -> None:
        """Until the call is settled or its deadline has passed."""

        def abort(_: object) -> trio.lowlevel.Abort:
            call.owner = None
            self._waiting -= 1
            return trio.lowlevel.Abort.SUCCEEDED

        if call.settled:
            return
        call.owner = trio.lowlevel.current_task()
        self._waiting += 1
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self, call: Call) -> None:
        if isinstance(call.owner, trio.lowlevel.Task):
            trio.lowlevel.reschedule(call.owner)
            call.owner = None
            self._waiting -= 1
        elif callable(call.owner):
            told, call.owner = call.owner, None
            told()

    async def _give_up(self, call: Call, flush: bool) -> None:
        if not self.version:
            self._lose("it did not answer Tversion")
            return
        if flush:
            self.half.flush(call)
            self._push()
        call.deadline = math.inf
        with trio.move_on_after(FLUSH_PATIENCE, shield=True):
            await self._wait(call)
        if not call.settled:
            call.owner = _ABANDONED

    def abandon(self, call: Call) -> None:
        """Give up on a request without waiting; what its reply makes is thrown away."""
        if not call.settled and not self.why:
            call.owner = _ABANDONED
            self.half.flush(call)
            self._wake_writer()

    def ignore(self, call: Call) -> None:
        """Let a request be done and never look at its reply."""
        if not call.settled:
            call.owner = _ABANDONED
            self._wake_writer()

    async def clunk(self, op: Op, fid: int) -> None:
        """Clunk a fid and learn how that went; it is gone in any case, a cancelled one too."""
        await self.finish(op, self.start(op, Tclunk, fid), flush=False)

    def forget(self, fid: int) -> None:
        """Clunk a fid and do not wait for it."""
        if not self.why:
            self.half.request(Tclunk, fid)
            self._wake_writer()

    def _gone(self, op: Op) -> OSError:
        if self._barred:
            return Barred(errno.EACCES, self.why, self.peer)
        words = f"the connection to {self.peer} was lost: {self.why} trace={op.trace:016x}"
        return Lost(errno.ECONNRESET, words, op.path)

    def _mark(self, call: Call) -> Call:
        if self.why:
            call.state = State.LOST
        return call

    # Without a task of one's own. `call.owner = f` has f() called when the call is settled, in the task
    # that settles it; f must not raise.

    def send(self) -> None:
        """Send what was queued, as far as that needs no waiting. The rest follows by itself, unless the
        socket was taken over: then it is for the caller to send again when that takes more (`unsent`)."""
        if self.why or (self._unsent and self._taken is None):
            return
        parts = self._unsent + self.half.take()
        if not parts:
            return
        try:
            n = self._channel.send_now(parts)
        except OSError as e:
            self._broke(e)
            return
        self._unsent = rest(parts, n)
        if self._unsent:
            self._wake_writer()

    @property
    def unsent(self) -> bool:
        """Whether the socket did not take everything yet."""
        return bool(self._unsent)

    def let_go(self, fid: int) -> None:
        """Clunk a fid with whatever is sent next, and do not wait for it."""
        if not self.why:
            self.half.request(Tclunk, fid)

    def take_over(self) -> socket.socket | None:
        """From now on the caller receives, by `receive_now` whenever this socket is readable.

        None for a channel that is no plain socket; there the link goes on receiving by itself.
        """
        if not isinstance(self._channel, SocketChannel):
            return None
        self._taken = self._channel.socket
        self._reading.cancel()
        return self._taken

    def receive_now(self) -> None:
        """Take what came on the socket that was taken over."""
        assert self._taken is not None
        try:
            if n := self._taken.recv_into(self.half.space()):
                self._settled(n)
            else:
                self._lose("the peer closed it")
        except BlockingIOError:
            pass
        except OSError as e:
            self._broke(e)
        except BadFrame as e:
            self._lose(f"the peer broke the protocol: {e}")

    # Sending

    def _push(self) -> None:
        """Send what is queued: now if we are alone, with the others if we are not."""
        if self._waiting or self._unsent:
            self._wake_writer()
            return
        parts = self.half.take()
        if not parts:
            return
        try:
            n = self._channel.send_now(parts)
        except OSError as e:
            self._broke(e)
            return
        if n < sum(map(len, parts)):
            self._unsent = rest(parts, n)
            self._wake_writer()

    def _wake_writer(self) -> None:
        if self._taken is not None:
            return
        self._writer_due = True
        if self._writer is not None:
            writer, self._writer = self._writer, None
            trio.lowlevel.reschedule(writer)

    async def _write(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._writer_due:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            self._writer_due = False
            if self._taken is not None:
                continue
            while parts := self._unsent + self.half.take():
                self._unsent = parts
                try:
                    await self._channel.send(parts)
                except OSError as e:
                    self._broke(e)
                    return
                self._unsent = []

    # The three tasks

    async def run(self) -> None:
        """Carry bytes until the connection is lost or this is cancelled. Raises nothing of its own."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    with self._reading:
                        await self._read()
                    if self._taken is not None and not self.why:
                        await trio.sleep_forever()
                    nursery.cancel_scope.cancel()
        finally:
            self._lose("closed")
            with trio.CancelScope(shield=True):
                await self._channel.aclose()

    def drop(self, why: str) -> None:
        """Close the connection; whoever waits gets Lost."""
        self._lose(why)

    def _broke(self, e: OSError) -> None:
        if not self.why:
            self._barred = isinstance(e, Barred)
            self._lose((e.strerror if self._barred else "") or str(e))

    def _lose(self, why: str) -> None:
        if self.why:
            return
        self.why = why or "closed"
        for call in self.half.lost():
            self._wake(call)
        self._unsent = []
        self._scope.cancel()
        if self.on_loss is not None:
            self.on_loss()

    async def _read(self) -> None:
        half, receive = self.half, self._channel.receive
        try:
            while n := await receive(half.space()):
                self._settled(n)
                if self.on_receipt is not None:
                    self.on_receipt()
                if half.pending and not half.version:
                    self._wake_writer()  # the next dialect is offered
            self._lose("the peer closed it")
        except OSError as e:
            self._broke(e)
        except BadFrame as e:
            self._lose(f"the peer broke the protocol: {e}")

    def _settled(self, n: int) -> None:
        """N bytes came: tell the owners of what they settle."""
        for call in self.half.received(n):
            owner = call.owner
            if owner is None:
                continue
            if owner is _ABANDONED:
                self._throw_away(call)
                continue
            call.owner = None
            if isinstance(owner, trio.lowlevel.Task):
                self._waiting -= 1
                trio.lowlevel.reschedule(owner)
            else:
                owner()

    def _throw_away(self, call: Call) -> None:
        """A reply that nobody waits for came late; do not keep the fid it made."""
        if call.state is State.ANSWERED and call.makes:
            self.forget(call.fid)

    async def _watch(self) -> None:
        """Wake the owners of requests whose deadline has passed."""
        while True:
            with trio.CancelScope(deadline=self._next_check) as self._check:
                await trio.sleep_forever()
            now, soonest = trio.current_time(), math.inf
            for call in list(self.half.calls.values()):
                if isinstance(call.owner, trio.lowlevel.Task):
                    if call.deadline <= now:
                        self._wake(call)
                    else:
                        soonest = min(soonest, call.deadline)
            self._next_check = soonest
