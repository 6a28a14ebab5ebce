"""Queues under test: where they stand in a tree, and clients of them."""

import os
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from warren.mount import Files
from warren.serve.export import Export
from warren.servers.task import Limits, Tasks
from warren.store import MemoryStore, Store
from warren.tree import Dir, split

from tests.servers.clock import TrioClock
from tests.servers.reach import attributes_of, reached
from tests.wire import EVERYTHING, export_of

Q = "/task/q"
STREAM = os.O_RDONLY | os.O_NONBLOCK


def some_tasks(store: Store | None = None, limits: Limits | None = None, seed: int = 1) -> Tasks:
    """A server whose chance is always the same."""
    return Tasks(store or MemoryStore(), TrioClock(), limits=limits, chance=random.Random(seed))


class Got:
    """One task as `lease` shows it."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\n\n")
        self.values = dict(word.split("=", 1) for word in split(head.decode()))
        assert len(self.body) == int(self.values["len"])

    def __getattr__(self, name: str) -> str:
        return self.values[name]


class Desk:
    """What a test does to a queue, through the wire."""

    def __init__(self, files: Files, export: Export, queue: str = Q) -> None:
        self.files, self.export, self.queue = files, export, queue

    @asynccontextmanager
    async def by(self, subject: str) -> AsyncIterator["Desk"]:
        """The same queue, as somebody else has it."""
        async with reached(self.export, subject) as files:
            yield Desk(files, self.export, self.queue)

    def path(self, name: str) -> str:
        return f"{self.queue}/{name}"

    async def says(self, name: str, data: bytes) -> str:
        """Write, and read what is answered."""
        async with await self.files.open(self.path(name), os.O_RDWR) as file:
            await file.write(data)
            return (await file.pread(8000, 0)).decode().removesuffix("\n")

    async def said(self, name: str, data: bytes) -> dict[str, str]:
        return dict(word.split("=", 1) for word in split(await self.says(name, data)))

    async def enq(self, body: bytes = b"x", headers: str = "") -> dict[str, str]:
        if not headers:
            return await self.said("enq", body)
        return await self.said("enq.h", f"{headers} len={len(body)}\n\n".encode() + body)

    async def ctl(self, line: str) -> dict[str, str]:
        """Write a line. What has no answer leaves the help there, which is none."""
        says = await self.says("ctl", line.encode())
        return {} if "\n" in says else dict(word.split("=", 1) for word in split(says))

    async def raw(self, options: str = "") -> bytes:
        async with await self.files.open(self.path("lease"), os.O_RDWR | os.O_NONBLOCK) as file:
            if options:
                await file.write(options.encode())
            data = b""
            while piece := await file.record():
                data += piece
            return data

    async def lease(self, options: str = "wait=0s") -> Got:
        """The next task; it stays leased."""
        data = await self.raw(options)
        assert data, "no task came"
        return Got(data)

    async def bodies(self) -> list[bytes]:
        """Whatever can be leased now, in order; each is left leased."""
        found = []
        while data := await self.raw("wait=0s"):
            found.append(Got(data).body)
        return found

    async def stats(self) -> dict[str, str]:
        return attributes_of(await self.files.read(self.path("stats")))

    async def tasks(self) -> list[dict[str, str]]:
        text = (await self.files.read(self.path("tasks"))).decode()
        return [dict(word.split("=", 1) for word in split(line)) for line in text.splitlines()]

    async def log(self, since: int, count: int) -> list[bytes]:
        async with await self.files.open(self.path("log"), os.O_RDWR | os.O_NONBLOCK) as file:
            await file.write(f"from {since}".encode())
            return [await file.record() for _ in range(count)]


@asynccontextmanager
async def kept(tasks: Tasks, allow: Sequence[str] = EVERYTHING) -> AsyncIterator[Export]:
    """The queues at /task, with somebody who keeps their time."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tasks.keep)
        yield export_of(Dir({"task": tasks}), allow)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def desk(
    tasks: Tasks | None = None, subject: str = "ann", allow: Sequence[str] = EVERYTHING
) -> AsyncIterator[Desk]:
    """A queue `q`, and a client of it."""
    async with kept(tasks or some_tasks(), allow) as export, reached(export, subject) as files:
        if "q" not in [entry.name for entry in await files.ls("/task")]:
            await files.mkdir(Q)
        yield Desk(files, export)


def unsaid(drained: bytes) -> bytes:
    """What drain gave, without what differs from queue to queue."""
    text = drained.partition(b"\n")[2]
    return re.sub(rb" generation=\d+", b"", text, count=1)
