"""Namespaces to test with: trees of this process, and trees behind an export on a memory stream.

    async with hops() as trees:
        trees.here["$self"] = Demo()
        trees.there["$far"] = export_of(Demo())
        SpaceRoot(Cell(space), trees)

Each caller has a connection of their own to each tree there, with their own subject.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import memory_stream_pair
from warren.mount import Files, dial
from warren.p9.client import MSIZE, VERSIONS
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.tree import Caller, Node, Refused


class Hops:
    """A `Trees` for tests."""

    def __init__(self, nursery: trio.Nursery, versions: tuple[str, ...], msize: int) -> None:
        self.here: dict[str, Node] = {}
        self.there: dict[str, Export] = {}
        self.files: dict[tuple[str, str], Files] = {}
        self.ends: dict[Files, trio.CancelScope] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.versions, self.msize = versions, msize
        self._nursery = nursery

    def local(self, address: str) -> Node | None:
        return self.here.get(address)

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        self.asked.append((address, caller.subject, path))
        if address not in self.there:
            raise Refused(502, f"{address} is not connected")
        key = (address, caller.subject)
        files = self.files.get(key)
        if files is None or (await self._lost(files)):
            files = self.files[key] = await self._nursery.start(self._hold, self.there[address], key[1])
        return files

    @staticmethod
    async def _lost(files: Files) -> bool:
        return files._link is None or files._link.lost

    async def _hold(
        self, export: Export, subject: str, task_status: trio.TaskStatus[Files] = trio.TASK_STATUS_IGNORED
    ) -> None:
        near, far = memory_stream_pair()

        async def serve() -> None:
            async with far:
                await serve_stream(export, far, subject)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                async with dial(near, versions=self.versions, msize=self.msize) as files:
                    self.ends[files] = scope
                    task_status.started(files)
                    await trio.sleep_forever()

    def lose(self) -> None:
        """Every connection goes away."""
        for files in self.files.values():
            self.ends[files].cancel()


@asynccontextmanager
async def hops(versions: tuple[str, ...] = VERSIONS, msize: int = MSIZE) -> AsyncIterator[Hops]:
    async with trio.open_nursery() as nursery:
        yield Hops(nursery, versions, msize)
        nursery.cancel_scope.cancel()
