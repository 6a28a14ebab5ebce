"""The locks of a file in another tree.

They are held by one fid of their own: what is locked through a fid is given up when that is clunked, and
here the fid of a caller may be gone before the file. The other server knows a lock's owner as
(connection, client, process), and several sessions of ours may share the connection; so the client's name
there begins with the session's number here.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import trio
from warren.mount.link import Link, Op
from warren.mount.words import Range
from warren.namespaces.opened import passed_on
from warren.p9.client import Call
from warren.p9.messages import Tlock
from warren.tree import Lock, Maybe, Refused

_UNLOCK: Final = 2
_WAIT: Final = (0.01, 0.5)  # between tries at a server that does not wait for us


def wanted(lock: Lock, kind: int) -> Range:
    """A lock as the other server is to know it."""
    session, client, process = lock.owner
    return Range(kind, lock.start, lock.length, process, f"{session}/{client}")


def found(there: Range) -> Lock | None:
    """What the other server says stands in the way, as we know it."""
    if there.kind == _UNLOCK:
        return None
    session, slash, client = there.client_id.partition("/")
    ours = bool(slash) and session.isdigit()
    owner = (int(session) if ours else 0, client if ours else there.client_id, there.proc_id)
    return Lock(there.kind == 1, there.start, there.length, owner)


class Held:
    """The fid that holds locks, and whose they are. OP made it, and has its path and deadline."""

    def __init__(self, link: Link, fid: int, op: Op) -> None:
        self.link, self.fid, self.path, self.deadline = link, fid, op.path, op.limit
        self.owners: set[tuple[int, str, int]] = set()
        self.taking = 0  # requests for a lock that are under way

    def op(self, limit: float | None = None) -> Op:
        op = Op(self.path, self.deadline if limit is None else limit)
        op.effect = True
        return op


class Sent:
    """A request that is on its way, whether or not somebody waits for what comes of it."""

    def __init__(self, link: Link, op: Op, call: Call) -> None:
        self.link, self.op, self.call = link, op, call
        link.ignore(call)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        await self.link.finish(self.op, self.call)


class FarLocks:
    """The locks of one node. HOLDER makes a fid for them."""

    def __init__(self, address: str, holder: Callable[[], Awaitable[Held]]) -> None:
        self.address = address
        self._holder = holder
        self._making = trio.Lock()
        self._held: Held | None = None

    async def _have(self) -> Held:
        async with self._making:
            held = self._held
            if held is not None and not held.link.lost:
                return held
            self._held = None
            if held is not None and held.owners:
                said = f"{self.address}: the connection was lost, and the locks with it; lock again"
                raise Refused(502, said, errno=errno.ENOLCK)
            self._held = await self._holder()
            return self._held

    async def take(self, lock: Lock, wait: bool, limit: float | None = None) -> bool:
        """Take it; False if another has it, and the server does not WAIT. Cancelled: it was not taken."""
        held = await self._have()
        held.taking += 1
        try:
            with passed_on(self.address):
                want = wanted(lock, int(lock.exclusive))
                got = await held.link.words.lock(held.op(limit), held.fid, want, wait)
            if got:
                held.owners.add(lock.owner)
            return got
        finally:
            held.taking -= 1
            self._drop(held)

    def _drop(self, held: Held) -> None:
        if not held.owners and not held.taking:
            held.link.forget(held.fid)
            self._held = None if self._held is held else self._held

    async def wait(self, lock: Lock) -> None:
        """Take it, however long that is. Cancelled: it was not taken."""
        pause, longest = _WAIT
        while not await self.take(lock, True, math.inf):
            await trio.sleep(pause)
            pause = min(pause * 2, longest)

    def give(self, lock: Lock) -> Maybe[None]:
        """Sent at once: whoever lets go of a fid does not wait for what becomes of its locks."""
        held = self._held
        if held is None or held.link.lost:
            return None
        op = held.op()
        sent = Sent(
            held.link, op, held.link.start(op, Tlock, held.fid, _UNLOCK, 0, *wanted(lock, _UNLOCK)[1:])
        )
        if (lock.start, lock.length) == (0, 0):
            held.owners.discard(lock.owner)
            self._drop(held)
        return sent
