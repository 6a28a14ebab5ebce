"""A mailbox under test: where it stands in a tree, and clients of it."""

import os
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from warren.mount import Files
from warren.serve.export import Export
from warren.servers.mailbox import Limits, Mailbox
from warren.store import MemoryStore, Store
from warren.tree import Dir, split

from tests.servers.clock import TrioClock
from tests.servers.reach import reached
from tests.wire import EVERYTHING, export_of

O_RDWR, O_STREAM = os.O_RDWR, os.O_RDONLY | os.O_NONBLOCK
T = "/mailbox/t"


def a_mailbox(store: Store | None = None, limits: Limits | None = None, seed: int = 1) -> Mailbox:
    """A mailbox whose chance is always the same."""
    return Mailbox(store or MemoryStore(), TrioClock(), limits=limits, chance=random.Random(seed))


@asynccontextmanager
async def kept(mailbox: Mailbox, allow: Sequence[str] = EVERYTHING) -> AsyncIterator[Export]:
    """The mailbox at /mailbox, with somebody who keeps its time."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.keep)
        yield export_of(Dir({"mailbox": mailbox}), allow)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def box(mailbox: Mailbox | None = None, subject: str = "ann") -> AsyncIterator["Box"]:
    """A topic `t`, and a client of it."""
    async with kept(mailbox or a_mailbox()) as export, reached(export, subject) as files:
        if "t" not in [entry.name for entry in await files.ls("/mailbox")]:
            await files.mkdir(T)
        yield Box(files, export)


class Got:
    """One message as `recv` shows it."""

    def __init__(self, data: bytes) -> None:
        head, _, self.rest = data.partition(b"\n\n")
        self.head = head.decode()
        self.values = dict(word.split("=", 1) for word in split(self.head))
        size = int(self.values["len"])
        self.body, self.rest = self.rest[:size], self.rest[size:]
        assert len(self.body) == size

    def __getattr__(self, name: str) -> str:
        return self.values[name]


class Box:
    """What a test does to a topic, through the wire."""

    def __init__(self, files: Files, export: Export, topic: str = T) -> None:
        self.files, self.export, self.topic = files, export, topic

    @asynccontextmanager
    async def by(self, subject: str) -> AsyncIterator["Box"]:
        """The same topic, as somebody else has it."""
        async with reached(self.export, subject) as files:
            yield Box(files, self.export, self.topic)

    def path(self, name: str) -> str:
        return f"{self.topic}/{name}"

    async def send(self, body: bytes = b"x", headers: str = "") -> dict[str, str]:
        """Send one, and what is answered. With headers through send.h, its length declared."""
        if not headers:
            return await self.said("send", body)
        return await self.said("send.h", f"{headers} len={len(body)}\n\n".encode() + body)

    async def said(self, name: str, data: bytes) -> dict[str, str]:
        async with await self.files.open(self.path(name), O_RDWR) as file:
            await file.write(data)
            return dict(re.findall(r"(\w+)=(\S+)", (await file.pread(4000, 0)).decode()))

    async def recv(self, options: str = "", queue: str = "") -> Got:
        """The next message; it stays leased."""
        got = await self.all(options, queue)
        assert got, "no message came"
        assert not got[1:]
        return got[0]

    async def all(self, options: str = "", queue: str = "") -> list[Got]:
        """A batch."""
        found = []
        data = await self.raw(options, queue)
        while data:
            found.append(Got(data))
            data = found[-1].rest
        return found

    async def raw(self, options: str = "", queue: str = "") -> bytes:
        path = self.path(f"{queue}recv")
        async with await self.files.open(path, O_RDWR if options else os.O_RDONLY) as file:
            if options:
                await file.write(options.encode())
            return await file.read()

    async def none(self, queue: str = "") -> bool:
        """Whether there is nothing to receive now."""
        return not await self.raw("wait=0s", queue)

    async def ack(self, *words: str, queue: str = "") -> None:
        await self.files.write(self.path(f"{queue}ack"), " ".join(words).encode(), truncate=False)

    async def ctl(self, line: str, name: str = "ctl") -> None:
        await self.files.write(self.path(name), line.encode(), truncate=False)

    async def stats(self, queue: str = "") -> dict[str, float]:
        text = (await self.files.read(self.path(f"{queue}stats"))).decode()
        return {name: float(value) for name, value in (line.split("=") for line in text.splitlines())}
