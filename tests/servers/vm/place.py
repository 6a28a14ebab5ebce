"""A /vm in a role of its own, reached over the wire by whoever the test says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from trio.testing import memory_stream_pair
from warren.auth.rights import Policy
from warren.mount import Files, dial
from warren.mount.file import File
from warren.namespaces import Space
from warren.namespaces.export import Cell, SpaceRoot
from warren.roles.guests import Guests
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.demo import Demo
from warren.servers.vm import Vm
from warren.servers.vm.backend import Backend
from warren.servers.vm.images import Built, Progress
from warren.servers.vm.limits import NO_GROUPS, Groups
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Caller, Dir, Node, Refused
from warren.tree.ports import Share

from tests.servers.clock import TrioClock

LOCAL = "local read,write,create,remove,ctl /**"
PATIENCE = 30


class Shelved:
    """Images that are there, or that take a moment: a name, and how it is run."""

    def __init__(self, *built: Built, missing: str = "") -> None:
        self.built = {one.name: one for one in built}
        self.missing = missing  # the name of one that cannot be had

    def names(self) -> Iterable[str]:
        return [*self.built, *([self.missing] if self.missing else [])]

    async def find(self, name: str, progress: Progress) -> Built:
        progress(f"building {name}")
        await trio.lowlevel.checkpoint()
        if name == self.missing:
            raise Refused(503, f"{name} cannot be built: run warren image build {name}")
        return self.built[name]


STANDIN = Built("standin", "standin", "0" * 64, "standin-microvm", {}, then="exit 0", stops="exit 0")
ROLE = Built("linux", "linux", "1" * 64, "linux-pc", {}, cmdline="quiet", named=True)


class NoGuests:
    """The port `Guests` of a role that lets nobody in."""

    async def serve(
        self, channel: trio.abc.Stream, subject: str, own: Node, shares: Sequence[Share] = ()
    ) -> None:
        raise Refused(403, "nobody is served here")

    async def take(
        self, channel: trio.abc.Stream, name: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        raise Refused(403, "nobody is taken here")


class Trees:
    """Those of this process."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.guests: dict[str, Node] = {}

    def local(self, address: str) -> Node | None:
        return self.root if address == "$self" else self.guests.get(address)

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        raise Refused(502, f"{address} is not there")


@dataclass
class House:
    """A role that serves /vm and /demo."""

    nursery: trio.Nursery
    vm: Vm
    export: Export
    files: Files  # as a local caller
    folder: Path
    told: list[str]

    async def as_(self, subject: str) -> Files:
        near, far = memory_stream_pair()
        self.nursery.start_soon(serve_stream, self.export, far, subject)
        held: list[Files] = []

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with dial(near, uname="x", deadline=PATIENCE) as files:
                held.append(files)
                task_status.started()
                await trio.sleep_forever()

        await self.nursery.start(hold)
        return held[0]

    @asynccontextmanager
    async def machine(self, *lines: str, files: Files | None = None) -> AsyncIterator[tuple[str, File]]:
        """Clone one, and write LINES to it; its path, and the ctl that holds it."""
        async with await (files or self.files).open("/vm/clone", os.O_RDWR) as ctl:
            id = (await ctl.record()).decode().strip()
            for line in lines:
                await ctl.write(line.encode() + b"\n")
            yield f"/vm/{id}", ctl

    async def status(self, path: str) -> dict[str, str]:
        text = (await self.files.read(f"{path}/status")).decode()
        return dict(line.split("=", 1) for line in text.splitlines())

    async def until(self, path: str, kind: str) -> list[str]:
        """The events of a machine up to that one."""
        seen = []
        async with await self.files.open(f"{path}/events", os.O_RDONLY | os.O_NONBLOCK) as events:
            while record := await events.record():
                seen.append(record.decode())
                if f" kind={kind}" in seen[-1]:
                    return seen
        raise AssertionError(f"it ended without {kind}: {seen}")

    async def gone(self, path: str) -> None:
        """Return when nothing is left of a machine."""
        id = path.rpartition("/")[2]
        async with await self.files.open("/vm/events", os.O_RDWR | os.O_NONBLOCK) as events:
            await events.write(b"from 1\n")
            while f"kind=gone id={id}\n" not in (await events.record()).decode():
                pass

    async def all_of(self, path: str) -> bytes:
        """A stream to its end."""
        got = b""
        async with await self.files.open(path, os.O_RDONLY | os.O_NONBLOCK) as stream:
            while record := await stream.record():
                got += record
        return got


@asynccontextmanager
async def house(
    folder: Path, *backends: Backend, rows: Iterable[str] = (LOCAL,), images: Shelved | None = None,
    machines: int = 8, memory: int = 1 << 40, where: Groups = NO_GROUPS, grace: float = 0.5,
    patience: float = PATIENCE,
) -> AsyncIterator[House]:  # fmt: skip
    demo = Demo()
    trees = Trees(Dir({"demo": demo}))
    cell = Cell(Space().mount("$self", "/"))
    export = Export(SpaceRoot(cell, trees), Policy.parse(rows), AuditMemory(), TraceRing())

    def post(name: str, address: str, by: str) -> None:
        cell.space = cell.space.mount(address, f"/n/{name}", flags="c")

    def withdraw(name: str) -> None:
        cell.space = cell.space.unmount(f"/n/{name}")

    guests = Guests(export, trees.guests, post, withdraw)
    told: list[str] = []
    vm = Vm(
        folder / "vm", TrioClock(), guests, images=images or Shelved(STANDIN, ROLE), backends=backends,
        standing=guests.standing, tell=told.append, machines=machines, memory=memory, where=where,
        grace=grace,
    )  # fmt: skip
    vm.backends.preferred = tuple(backend.name for backend in backends)
    trees.root = Dir({"demo": demo, "vm": vm})
    with trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            await nursery.start(vm.keep)
            made = House(nursery, vm, export, None, folder / "vm", told)  # type: ignore[arg-type]
            made.files = await made.as_("local")
            yield made
            nursery.cancel_scope.cancel()
    assert not (folder / "vm").exists(), "a role that goes down leaves nothing"
    assert not told, told
