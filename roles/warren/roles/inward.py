"""Those who dialled us to be used: a queen's workers.

    inward = Inward(identity, changed)
    gate.exports = inward.offer               a worker's connection has come
    channel = await inward.take("drone-1")    one of them, to be dialled over

A worker keeps one idle connection waiting here and dials another when that is taken into use (see
`outward`), so there is one for each caller on whose behalf the queen acts. A worker is known by the last
word of its name. It is *here* as long as it has a connection, idle or in use, and for a moment of GRACE
after; CHANGED is told its name and whether it is, so that the role can mount it.

An idle connection says nothing until we do. If it becomes readable, it has ended, or its worker does not
know the protocol: it is closed. A newer idle connection is taken before an older one, and of more than
SPARE the oldest is closed, so a worker that was cut off and came back is not looked for on a line that is
dead. Another member of the hive with the same last word in its name is turned away as long as the first
is here: two workers are never one place.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

import trio
from warren.auth import tls
from warren.auth.identity import Identity
from warren.mount.secure import SecureChannel
from warren.tree import Refused

SPARE: Final = 4
WORKERS: Final = 1024
IN_USE: Final = 64  # of one worker
LOOK: Final = 1.0


class Inbound(SecureChannel):
    """A connection that a worker made, in use."""

    def __init__(self, sock: ssl.SSLSocket, who: tls.Peer, done: Callable[[Inbound], None]) -> None:
        super().__init__(sock)
        self.who = who
        self.uri = who.uri or ""
        self.certificate = (who.issuer, who.serial)
        self._done = done

    def cut(self) -> None:
        """End it, whoever reads from it."""
        try:
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close_now(self) -> None:
        """Close what nobody uses."""
        self._sock.close()
        self._done(self)

    async def aclose(self) -> None:
        await super().aclose()
        self._done(self)


class Idle:
    """One that waits to be taken, and whoever watches it."""

    def __init__(self, channel: Inbound) -> None:
        self.channel = channel
        self.scope = trio.CancelScope()
        self.left = trio.Event()
        self.taken = False


class Worker:
    """Who offers."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.idle: list[Idle] = []
        self.using: set[Inbound] = set()
        self.news = trio.Event()


class Inward:
    """All workers of a queen. `run` must be running before one is offered."""

    def __init__(
        self,
        identity: Identity,
        changed: Callable[[str, bool], None] = lambda name, here: None,
        *,
        patience: float = 5.0,
        grace: float = 1.0,
    ) -> None:
        self.identity = identity
        self.changed = changed
        self.patience = patience
        self.grace = grace
        self.workers: dict[str, Worker] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch what is idle, and whose certificate still holds. Cancelled closes what is idle."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(LOOK)
                    self.recheck()
        finally:
            self._nursery = None
            for worker in list(self.workers.values()):
                for idle in worker.idle:
                    idle.channel.close_now()

    def recheck(self) -> None:
        """End the connections of those whose certificate has run out, or is revoked by now."""
        for worker in list(self.workers.values()):
            for channel in [*worker.using, *(idle.channel for idle in worker.idle)]:
                assert channel.who is not None
                until = channel.who.not_after
                if (until is not None and time.time() > until.timestamp()) or self.identity.revoked(
                    *channel.certificate
                ):
                    channel.cut()

    def offer(self, sock: ssl.SSLSocket, who: tls.Peer) -> None:
        """A connection that is there to be used. What cannot be is closed: its worker dials again."""
        name = who.name
        if self._nursery is None or name is None or name.parts[0] != "role":
            sock.close()
            return
        known = self.workers.get(name.parts[-1])
        crowded = known is None and len(self.workers) >= WORKERS
        if crowded or (known is not None and (known.uri != who.uri or len(known.using) >= IN_USE)):
            sock.close()
            return
        worker = known or self.workers.setdefault(name.parts[-1], Worker(who.uri or ""))
        idle = Idle(Inbound(sock, who, lambda channel: self._ended(name.parts[-1], worker, channel)))
        worker.idle.append(idle)
        for old in worker.idle[:-SPARE]:
            old.scope.cancel()
        self._nursery.start_soon(self._watch, name.parts[-1], worker, idle)
        worker.news.set()
        worker.news = trio.Event()
        if known is None:
            self.changed(name.parts[-1], True)

    async def _watch(self, name: str, worker: Worker, idle: Idle) -> None:
        with idle.scope:
            await trio.lowlevel.wait_readable(idle.channel.socket)
        idle.left.set()
        if not idle.taken:
            if idle in worker.idle:
                worker.idle.remove(idle)
            idle.channel.close_now()

    async def take(self, name: str) -> Inbound:
        """A connection to the worker of that name, to be closed by the taker. Cancelled takes none."""
        with trio.move_on_after(self.patience):
            while True:
                worker = self.workers.get(name)
                if worker is None:
                    said = f"{name} is not connected to us; it dials by itself as soon as it runs"
                    raise Refused(502, said, errno=errno.EHOSTUNREACH)
                if not worker.idle:
                    await worker.news.wait()
                    continue
                idle = worker.idle.pop()
                idle.taken = True
                worker.using.add(idle.channel)
                dead = idle.left.is_set()
                idle.scope.cancel()
                try:
                    await idle.left.wait()  # two may not wait for one socket
                    dead = dead or not idle.scope.cancelled_caught
                except trio.Cancelled:
                    dead = True
                    raise
                finally:
                    if dead:
                        idle.channel.close_now()
                if not dead:
                    return idle.channel
        raise Refused(502, f"{name} offers no further connection", errno=errno.EHOSTUNREACH, retry_after=1)

    def _ended(self, name: str, worker: Worker, channel: Inbound) -> None:
        worker.using.discard(channel)
        if self._nursery is not None and not worker.idle and not worker.using:
            self._nursery.start_soon(self._miss, name, worker)

    async def _miss(self, name: str, worker: Worker) -> None:
        """A worker that dials again at once was never away."""
        with trio.move_on_after(self.grace):
            await worker.news.wait()
            return
        if not worker.idle and not worker.using and self.workers.get(name) is worker:
            del self.workers[name]
            worker.news.set()
            self.changed(name, False)
