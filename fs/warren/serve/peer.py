"""One socket of the reactor: receive, answer, send, and the end of it."""

from __future__ import annotations

import select
import socket
import time
import traceback
from typing import TYPE_CHECKING, Final

from warren.p9.codec import BadFrame
from warren.serve.connection import EMPTY, Connection
from warren.serve.export import Export
from warren.serve.session import Parts

if TYPE_CHECKING:
    from warren.serve.reactor import Reactor

_IOV: Final = 512
_JOIN: Final = 64 << 10
READ, WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT


class Peer:
    """One socket and its connection."""

    __slots__ = ("begun", "closed", "conn", "export", "mask", "queued", "reactor", "since", "sock", "stuck")
    conn: Connection

    def __init__(self, reactor: Reactor, sock: socket.socket, export: Export) -> None:
        self.reactor = reactor
        self.sock = sock
        self.export = export
        self.closed = False
        self.mask = READ
        self.queued = 0  # bytes that the socket did not take
        self.begun = 0  # which frame it is that is half here
        self.since = time.monotonic()  # of the frame that is half here, or of the connection
        self.stuck = 0.0  # since when the peer has not read

    def begin(self, subject: str) -> None:
        """It is known who the peer is: serve them."""
        self.conn = Connection(self.export, subject, self.reactor.pool, self.reactor.spawn, self.send)

    def receive(self, into: memoryview) -> int:
        """What the socket has, 0 at its end; BlockingIOError when it has nothing."""
        return self.sock.recv_into(into)

    def transmit(self, out: Parts) -> int:
        """Give the socket as much as it takes; BlockingIOError when that is nothing."""
        if len(out) == 1:
            return self.sock.send(out[0])
        batch = out[:_IOV] if len(out) > _IOV else out
        if sum(map(len, batch)) <= _JOIN:
            return self.sock.send(b"".join(batch))
        return self.sock.sendmsg(batch)

    def readable(self) -> None:
        """One receive, one batch, one send."""
        conn = self.conn
        space = conn.half.space()
        try:
            if space is None:
                scratch = self.reactor.scratch
                n = self.receive(scratch)
                view = scratch[:n]
            else:
                n = self.receive(space)
                conn.half.received(n)
                view = EMPTY
        except BlockingIOError:
            return
        except OSError:
            self.close("the connection was lost")
            return
        if n == 0:
            self.close("")
            return
        self._serve(view)

    def _serve(self, view: memoryview) -> None:
        conn, half = self.conn, self.conn.half
        try:
            conn.consume(view)
        except (BadFrame, BufferError) as e:
            self.send()
            self.close(str(e))
            return
        except Exception as e:
            self.fault(e)
            return
        if not half.partial:
            self.since = 0.0
        elif half.begun != self.begun:
            self.begun, self.since = half.begun, time.monotonic()
        if half.out:
            self.send()

    def send(self) -> None:
        """Send what the socket takes; the rest waits for it, and beyond a limit so does the peer."""
        out: Parts = self.conn.half.out
        if not out or self.closed:
            return
        if self.queued and not self.reactor.draining:
            self._watch()
            return
        try:
            while out:
                _drop(out, self.transmit(out))
        except BlockingIOError:
            pass
        except OSError:
            self.close("the connection was lost")
            return
        self._watch()

    def _watch(self) -> None:
        """Ask epoll for what this peer's state needs."""
        out = self.conn.half.out
        if len(out) > _IOV:
            out[:] = [b"".join(out)]  # a peer that does not read must not cost a walk over every reply
        self.queued = sum(map(len, out)) if out else 0
        mask = READ
        stalled = self.conn.half.stalled
        if self.queued or stalled:
            self.stuck = self.stuck or time.monotonic()
            wait = stalled or self.queued > self.export.limits.unread
            mask = WRITE if wait else READ | WRITE
        else:
            self.stuck = 0.0
        if mask != self.mask:
            self.mask = mask
            self.reactor.epoll.modify(self.sock, mask)

    def writable(self) -> None:
        self.stuck = time.monotonic()  # there is room: the peer has read
        self.reactor.draining = True
        self.send()
        self.reactor.draining = False
        if self.conn.half.stalled and self.queued <= self.export.limits.unread:
            self._serve(EMPTY)
        if not self.closed:
            self._watch()

    def sweep(self, now: float) -> None:
        """End it if it has kept us waiting too long."""
        patience = self.export.limits.patience
        if ended := self.conn.session.lapsed(time.time()):
            self.close(ended)
        elif self.since and now - self.since > patience:
            begun = self.conn.half.dialect is not None
            self.close("a frame took too long to arrive" if begun else "no version exchange came in time")
        elif self.stuck and now - self.stuck > patience:
            self.close("replies were not read in time")

    def close(self, why: str) -> None:
        """The end of this connection. WHY is empty when the peer hung up."""
        if self.closed:
            return
        self.closed = True
        fd = self.sock.fileno()
        if fd >= 0:
            self.reactor.epoll.unregister(fd)
        self.reactor.peers.pop(fd, None)
        self.ended(why)
        self.sock.close()

    def fault(self, e: Exception) -> None:
        """A defect of ours ends the connection that met it, and no other."""
        told = "".join(traceback.format_exception(e)).rstrip()
        self.export.failed(self.conn.session, "connection", "-", 500, told, self.export.new_trace())
        self.close("")

    def ended(self, why: str) -> None:
        """Let go of what was served, and say why it ended unless the peer hung up."""
        if why:
            self.export.failed(self.conn.session, "connection", "-", 400, why, self.export.new_trace())
        self.conn.close()


def _drop(out: Parts, n: int) -> None:
    """N bytes of OUT were sent."""
    if n == len(out[0]) and len(out) == 1:
        out.clear()
        return
    at = 0
    while n >= len(out[at]):
        n -= len(out[at])
        at += 1
        if at == len(out):
            break
    if at < len(out) and n:
        out[at] = memoryview(out[at])[n:]
    del out[:at]
