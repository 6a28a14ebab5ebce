"""Many sockets in one task.

A trio task for each socket costs 25 µs a wake-up; most requests take less than that to answer. So one
task owns an epoll set of its own, waits for *it* through trio, and then serves every socket that is
ready without changing tasks: one receive, one batch, one send each. Requests that must wait get their
tasks in the reactor's nursery, and when one is settled its reply is sent at once if the socket takes it.

What is received at a time is bounded, so no connection can keep the task; a socket whose peer does
not read is no longer read from once `unread` bytes lie in its outbox, which stalls that peer alone.
A sweep every few seconds ends connections that leave a frame half sent, or replies unread, for longer
than the export's `patience`.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

import trio
from warren.p9.codec import BadFrame
from warren.serve.connection import EMPTY, Connection
from warren.serve.export import Export
from warren.serve.pool import Pool
from warren.serve.session import Parts

_RECEIVE: Final = 32 << 10  # what one turn of a connection may bring; the rest of a large frame comes extra
_IOV: Final = 512
_JOIN: Final = 64 << 10
_TURN: Final = 0.002  # seconds without a checkpoint
_SWEEP: Final = 5.0
_READ, _WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT


class Peer:
    """One socket and its connection."""

    __slots__ = ("begun", "conn", "mask", "queued", "reactor", "since", "sock", "stuck")

    def __init__(self, reactor: Reactor, sock: socket.socket, export: Export, subject: str) -> None:
        self.reactor = reactor
        self.sock = sock
        self.conn = Connection(export, subject, reactor.pool, reactor.spawn, self.send)
        self.mask = _READ
        self.queued = 0  # bytes that the socket did not take
        self.begun = 0  # which frame it is that is half here
        self.since = time.monotonic()  # of the frame that is half here, or of the connection
        self.stuck = 0.0  # since when the peer has not read

    def readable(self) -> None:
        """One receive, one batch, one send."""
        conn = self.conn
        space = conn.half.space()
        try:
            if space is None:
                scratch = self.reactor.scratch
                n = self.sock.recv_into(scratch)
                view = scratch[:n]
            else:
                n = self.sock.recv_into(space)
                conn.half.received(n)
                view = EMPTY
        except (BlockingIOError, ssl.SSLWantReadError):
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
        if not half.partial:
            self.since = 0.0
        elif half.begun != self.begun:
            self.begun, self.since = half.begun, time.monotonic()
        if half.out:
            self.send()

    def send(self) -> None:
        """Send what the socket takes; the rest waits for it, and beyond a limit so does the peer."""
        out: Parts = self.conn.half.out
        if not out or self.conn.closed:
            return
        if self.queued and not self.reactor.draining:
            self._watch()
            return
        try:
            while out:
                if len(out) == 1:
                    n = self.sock.send(out[0])
                    whole = n == len(out[0])
                else:
                    batch = out[:_IOV] if len(out) > _IOV else out
                    size = sum(map(len, batch))
                    n = self.sock.send(b"".join(batch)) if size <= _JOIN else self.sock.sendmsg(batch)
                    whole = n == size and batch is out
                if whole:
                    out.clear()
                    break
                _drop(out, n)
        except (BlockingIOError, ssl.SSLWantWriteError):
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
        mask = _READ
        stalled = self.conn.half.stalled
        if self.queued or stalled:
            self.stuck = self.stuck or time.monotonic()
            wait = stalled or self.queued > self.conn.export.limits.unread
            mask = _WRITE if wait else _READ | _WRITE
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
        if self.conn.half.stalled and self.queued <= self.conn.export.limits.unread:
            self._serve(EMPTY)
        if not self.conn.closed:
            self._watch()

    def sweep(self, now: float) -> None:
        """End it if it has kept us waiting too long."""
        patience = self.conn.export.limits.patience
        if self.since and now - self.since > patience:
            begun = self.conn.half.dialect is not None
            self.close("a frame took too long to arrive" if begun else "no version exchange came in time")
        elif self.stuck and now - self.stuck > patience:
            self.close("replies were not read in time")

    def close(self, why: str) -> None:
        """The end of this connection. WHY is empty when the peer hung up."""
        if self.conn.closed:
            return
        fd = self.sock.fileno()
        if fd >= 0:
            self.reactor.epoll.unregister(fd)
        self.reactor.peers.pop(fd, None)
        export, session = self.conn.export, self.conn.session
        if why:
            export.failed(session, "connection", "-", 400, why, export.new_trace())
        self.conn.close()
        self.sock.close()


def _drop(out: Parts, n: int) -> None:
    """N bytes of OUT were sent."""
    at = 0
    while n >= len(out[at]):
        n -= len(out[at])
        at += 1
        if at == len(out):
            break
    if at < len(out) and n:
        out[at] = memoryview(out[at])[n:]
    del out[:at]


class Reactor:
    """All socket connections of this process."""

    def __init__(self, spawn: Callable[..., object], pool: Pool) -> None:
        self.epoll = select.epoll()
        self.spawn = spawn
        self.pool = pool
        self.peers: dict[int, Peer] = {}
        self.scratch = memoryview(bytearray(_RECEIVE))
        self.draining = False

    def add(self, sock: socket.socket, export: Export, subject: str) -> None:
        """Serve a connected socket until it closes."""
        sock.setblocking(False)
        peer = Peer(self, sock, export, subject)
        self.peers[sock.fileno()] = peer
        self.epoll.register(sock, peer.mask)

    async def run(self) -> None:
        """Serve every connection that is added. Cancelled closes them all."""
        poll, peers = self.epoll.poll, self.peers
        fd = self.epoll.fileno()
        turn = time.monotonic()
        try:
            while True:
                events = poll(0)
                if not events:
                    await trio.lowlevel.wait_readable(fd)
                    turn = time.monotonic()
                    continue
                for number, what in events:
                    peer = peers.get(number)
                    if peer is None:
                        continue
                    if what & select.EPOLLOUT:
                        peer.writable()
                    if what & ~select.EPOLLOUT and not peer.conn.closed:
                        peer.readable()
                now = time.monotonic()
                if now - turn > _TURN:
                    await trio.lowlevel.checkpoint()
                    turn = now
        finally:
            for peer in list(peers.values()):
                peer.close("")
            self.epoll.close()

    async def sweep(self, patience: float) -> None:
        """End connections that keep us waiting."""
        while True:
            await trio.sleep(min(_SWEEP, patience / 2))
            now = time.monotonic()
            for peer in list(self.peers.values()):
                peer.sweep(now)
