"""Many sockets in one task.

A trio task for each socket costs 25 µs a wake-up; most requests take less than that to answer. So one
task owns an epoll set of its own, waits for *it* through trio, and then serves every socket that is
ready without changing tasks: one receive, one batch, one send each. Requests that must wait get their
tasks in the reactor's nursery, and when one is settled its reply is sent at once if the socket takes it.

What is received at a time is bounded, so no connection can keep the task; a socket whose peer does
not read is no longer read from once `unread` bytes lie in its outbox, which stalls that peer alone.
To wait through trio costs 25 µs, and a client that waits for each reply comes back sooner than that. So
after a batch the task first waits in its own set, for a millisecond at most, unless a request has a task
that somebody may be about to wake. Timers and other tasks are late by that much, never more.

A sweep every few seconds ends connections that leave a frame half sent, or replies unread, for longer
than the export's `patience`.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from warren.serve.export import Export
from warren.serve.peer import Peer
from warren.serve.pool import Pool
from warren.serve.secure import Gate, SecurePeer

_RECEIVE: Final = 32 << 10  # what one turn of a connection may bring; the rest of a large frame comes extra
_TURN: Final = 0.002  # seconds without a checkpoint
_SWEEP: Final = 1.0
_LINGER: Final = 0.001


class Reactor:
    """All socket connections of this process."""

    def __init__(self, spawn: Callable[..., object], pool: Pool) -> None:
        self.epoll = select.epoll()
        self._spawn = spawn
        self.working = 0  # requests that have a task
        self.pool = pool
        self.peers: dict[int, Peer] = {}
        self._doors: dict[int, Callable[[], None]] = {}
        self.scratch = memoryview(bytearray(_RECEIVE))
        self.draining = False

    def spawn(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """A task for a request that waits."""
        self.working += 1
        self._spawn(self._work, work, args)

    async def _work(self, work: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await work(*args)
        finally:
            self.working -= 1

    def add(self, sock: socket.socket, export: Export, subject: str) -> None:
        """Serve a connected socket, whose peer is known, until it closes."""
        sock.setblocking(False)
        peer = Peer(self, sock, export)
        peer.begin(subject)
        self.join(peer)

    def add_secure(self, sock: socket.socket, export: Export, gate: Gate, address: str) -> None:
        """Serve a connected socket under TLS, if GATE lets its peer, who is at ADDRESS, in."""
        sock.setblocking(False)
        try:
            self.join(SecurePeer(self, sock, export, gate, address))
        except (OSError, ValueError) as e:  # it hung up before we came, and TLS wants a living socket
            sock.close()
            export.refused_connection(f"a connection from {address} was gone at once: {e}")

    def release(self, peer: Peer) -> None:
        """Its socket is somebody else's from now on."""
        self.epoll.unregister(peer.sock)
        del self.peers[peer.sock.fileno()]
        peer.closed = True

    def open(self, listener: socket.socket, door: Callable[[], None]) -> None:
        """Call DOOR whenever somebody waits at LISTENER, until it is closed."""
        self._doors[listener.fileno()] = door
        self.epoll.register(listener, select.EPOLLIN)

    def rest(self, listener: socket.socket, seconds: float) -> None:
        """Do not look at LISTENER for a while: what is wrong with it would be so again at once."""
        self.epoll.modify(listener, 0)
        self._spawn(self._reopen, listener, seconds)

    async def _reopen(self, listener: socket.socket, seconds: float) -> None:
        await trio.sleep(seconds)
        self.epoll.modify(listener, select.EPOLLIN)

    def join(self, peer: Peer) -> None:
        """Look after a peer from now on."""
        self.peers[peer.sock.fileno()] = peer
        self.epoll.register(peer.sock, peer.mask)

    async def run(self) -> None:
        """Serve every connection that is added. Cancelled closes them all."""
        poll, peers = self.epoll.poll, self.peers
        fd = self.epoll.fileno()
        turn, served = time.monotonic(), False
        try:
            while True:
                events = poll(0)
                if not events and served and not self.working:
                    events = poll(_LINGER)
                if not events:
                    await trio.lowlevel.wait_readable(fd)
                    turn, served = time.monotonic(), False
                    continue
                served = True
                for number, what in events:
                    peer = peers.get(number)
                    if peer is None:
                        if door := self._doors.get(number):
                            door()
                        continue
                    if what & select.EPOLLOUT:
                        peer.writable()
                    if what & ~select.EPOLLOUT and not peer.closed:
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
        """End connections that keep us waiting, or whose certificate no longer holds."""
        while True:
            await trio.sleep(min(_SWEEP, patience / 2))
            self.look()

    def look(self) -> None:
        """One sweep, now: newer revocation lists are in force."""
        now = time.monotonic()
        for peer in list(self.peers.values()):
            peer.sweep(now)
