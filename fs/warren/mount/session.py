"""A session that outlives its connections: dialled at first, and again by the next call that needs it.

`Files` says what callers may expect of this; here is how. An operation is a coroutine that takes a link
and an `Op`. It sets `op.effect` before it sends its first change. Losing the link before that point is
harmless, so the operation runs once more on a new one; after it, nobody knows, and that is what is told.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio
from warren.mount.address import Channel
from warren.mount.link import Link, Lost, Op
from warren.mount.linux import Linux
from warren.mount.plain import Plain
from warren.mount.walk import Reached, reach
from warren.p9.messages import PLAIN

T = TypeVar("T")
Path = str | os.PathLike[str]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


class Session:
    """Who is dialled, as whom, and the link that is up now."""

    def __init__(
        self,
        nursery: trio.Nursery,
        connect: Callable[[], Awaitable[Channel]],
        *,
        peer: str,
        uname: str,
        aname: str,
        deadline: float,
        msize: int,
        versions: Sequence[str],
        redials: bool,
    ) -> None:
        self.peer = peer
        self.deadline = deadline
        self.redials = redials
        self._nursery = nursery
        self._connect = connect
        self._uname, self._aname = uname, aname
        self._msize, self._versions = msize, versions
        self._link: Link | None = None
        self._dialling = trio.Lock()
        self._failures = 0
        self._not_before = 0.0

    @property
    def version(self) -> str:
        """The dialect that is spoken."""
        return self._link.version if self._link else ""

    @property
    def msize(self) -> int:
        """The largest message."""
        return self._link.half.msize if self._link else 0

    async def live(self, op: Op) -> Link:
        """A link that is up, as far as is known; dials again if need be."""
        link = self._link
        if link is not None and not link.lost:
            return link
        if link is not None and not self.redials:
            raise op.error(errno.ECONNRESET, f"the connection to {self.peer} was lost: {link.why}")
        limit = min(op.limit, self.deadline)
        with trio.move_on_after(limit) as patience:
            async with self._dialling:
                if self._link is None or self._link.lost:
                    self._link = await self._dial_until(op, patience.deadline, limit)
                return self._link
        raise op.error(errno.ETIMEDOUT, f"{self.peer} did not answer in {limit:g} s")

    async def _dial_until(self, op: Op, give_up: float, limit: float) -> Link:
        while True:
            # A pause that others earned is no reason to say that nobody answers when nobody was asked.
            await trio.sleep_until(min(self._not_before, give_up - limit / 2))
            try:
                return await self.attach(op)
            except (Lost, ConnectionError, TimeoutError, FileNotFoundError, BlockingIOError) as e:
                pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE) * random.uniform(0.5, 1)
                self._failures = min(self._failures + 1, 16)
                self._not_before = trio.current_time() + pause
                if self._not_before >= give_up:
                    raise op.error(e.errno or errno.EHOSTUNREACH, str(e.strerror)) from None

    async def attach(self, op: Op) -> Link:
        """Dial once and attach. Raises OSError."""
        channel = await self._connect()
        link = Link(channel, self.peer, self._msize, self._versions)
        self._nursery.start_soon(link.run)
        try:
            await link.hello(op, self._uname, self._aname)
        except BaseException:
            link.drop("it did not attach")
            raise
        link.words = Plain(link) if link.version == PLAIN else Linux(link)
        self._failures = 0
        self._not_before = 0.0
        return link

    async def begin(self) -> None:
        """The first connection; a failure is the caller's at once."""
        op = Op(self._aname or "/", self.deadline)
        with trio.move_on_after(self.deadline):
            self._link = await self.attach(op)
        if self._link is None:
            raise op.error(errno.ETIMEDOUT, f"{self.peer} did not answer in {self.deadline:g} s")

    def unknown(self, op: Op, e: OSError) -> ConnectionResetError:
        """What a change under way raises when the connection is lost."""
        return ConnectionResetError(errno.ECONNRESET, f"{e.strerror}; the outcome is unknown", op.path)

    async def _do(self, path: Path, work: Callable[[Link, Op], Awaitable[T]]) -> T:
        op = Op(os.fspath(path), self.deadline)
        again = self.redials
        while True:
            link = await self.live(op)
            try:
                return await work(link, op)
            except Lost as e:
                if op.effect:
                    raise self.unknown(op, e) from None
                if not again:
                    raise
                again = False

    async def _at(
        self, path: Path, work: Callable[[Link, Op, Reached], Awaitable[T]], *, follow: bool = True
    ) -> T:
        """Walk, work on the fid, forget it."""

        async def inner(link: Link, op: Op) -> T:
            got = await reach(link, op, op.path, follow=follow)
            try:
                return await work(link, op, got)
            finally:
                link.forget(got.fid)

        return await self._do(path, inner)
