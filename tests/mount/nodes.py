"""A node to program against: mailboxes, queues and a storage on a socket, and a line to it that can be cut.

    async with serving(tmp) as there: ...            there.address, there.mailbox, there.tree
    async with Line(there.address, tmp / "l") as line: ...     line.address leads to the same, until it is cut

`line.cut` is where: after so many bytes towards the server, or towards the client. Then both ends are hung
up, once; who dials again gets through.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import trio
from warren.mount.sdk import Patience
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.servers.mailbox import Mailbox
from warren.servers.storage import Storage
from warren.servers.task import Tasks
from warren.store import MemoryStore
from warren.tree import Dir, Node

from tests.servers.clock import TrioClock
from tests.wire import EVERYTHING, export_of

QUICK = Patience(base=0.001, longest=0.01)


@dataclass
class There:
    """What is served, and where."""

    address: str
    export: Export
    mailbox: Mailbox
    tasks: Tasks


@asynccontextmanager
async def serving(
    tmp: Path, more: dict[str, Node] | None = None, allow: Sequence[str] = EVERYTHING
) -> AsyncIterator[There]:
    """A node on a socket in TMP."""
    store, clock = MemoryStore(), TrioClock()
    mailbox = Mailbox(store, clock, chance=random.Random(1))
    tasks = Tasks(store, clock, chance=random.Random(2))
    storage = Storage(tmp / "blobs", store, clock)
    export = export_of(Dir({"mailbox": mailbox, "task": tasks, "storage": storage, **(more or {})}), allow)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.keep)
            nursery.start_soon(tasks.keep)
            async with listening(export, [f"unix!{tmp / 'node'}"]) as [address]:
                yield There(address, export, mailbox, tasks)
            nursery.cancel_scope.cancel()
    finally:
        storage.close()


class Cut(NamedTuple):
    """After so many bytes that way; from the client to the server is `up`."""

    way: str
    after: int


class Line:
    """A socket that passes everything on to another one, and counts it."""

    def __init__(self, address: str, path: Path) -> None:
        self.address = f"unix!{path}"
        self.cut: Cut | None = None
        self.passed = {"up": 0, "down": 0}
        self.dialled = 0
        self._to, self._path = address.removeprefix("unix!"), path
        self.cuts = 0

    async def __aenter__(self) -> Line:
        self._opening = trio.open_nursery()
        self._nursery = await self._opening.__aenter__()
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(self._path))
        sock.listen()
        self._listener = trio.SocketListener(sock)
        self._nursery.start_soon(self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._opening.__aexit__(None, None, None)
        self._listener.socket.close()
        self._path.unlink()

    def again(self, cut: Cut | None) -> None:
        """Count from the beginning, and cut there."""
        self.cut, self.cuts, self.dialled = cut, 0, 0
        self.passed = {"up": 0, "down": 0}

    async def _accept(self) -> None:
        while True:
            self._nursery.start_soon(self._join, await self._listener.accept())

    async def _join(self, near: trio.SocketStream) -> None:
        self.dialled += 1
        far = await trio.open_unix_socket(self._to)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, near, far, "up", nursery.cancel_scope)
            nursery.start_soon(self._pass, far, near, "down", nursery.cancel_scope)

    async def _pass(
        self, here: trio.SocketStream, there: trio.SocketStream, way: str, both: trio.CancelScope
    ) -> None:
        try:
            while True:
                if self._over(way, 0) is not None:
                    break
                data = bytes(await here.receive_some(65536))
                if not data:
                    break
                left = self._over(way, len(data))
                await there.send_all(data if left is None else data[:left])
                if left is not None:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel()

    def _over(self, way: str, more: int) -> int | None:
        """How many of MORE bytes still pass if the line is cut within them."""
        before = self.passed[way]
        self.passed[way] += more
        if self.cut is None or self.cuts or way != self.cut.way or before + more < self.cut.after:
            return None
        if not more and before < self.cut.after:
            return None
        self.cuts += 1
        return self.cut.after - before
