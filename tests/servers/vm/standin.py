"""A back end whose machines run in this process: a stand-in, which passes the same suite as QEMU.

Its guests are tasks. What they say on their channel is said by the real client, over memory streams; there is
no processor and no memory, so a paused guest is one that waits at its next step, and a snapshot is a copy of
what its program counts.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair
from warren.mount import Files, dial
from warren.servers.vm.backend import Ended, Place, Spec, Usage, Works
from warren.servers.vm.lent import Lent
from warren.tree import Refused


class End(Exception):
    """The guest ends the machine, with a status as QEMU would have it."""

    def __init__(self, status: int) -> None:
        self.status = status


class Inside:
    """What a guest's program has: its channels, and a gate that is shut while it is paused."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def log(self, text: str) -> None:
        await self.stage.gate.wait()
        with trio.CancelScope(shield=True):
            await self.stage.far_console.send_all(text.encode())

    async def step(self) -> None:
        """One step of the program, once the processors go."""
        await self.stage.gate.wait()
        self.stage.memory["steps"] = self.stage.memory.get("steps", 0) + 1


Program = Callable[[Inside], Awaitable[None]]


async def usual(inside: Inside) -> None:
    """As the stand-in image: say so, be ready, follow ctl."""
    await inside.log("stand-in: begins\n")
    async with dial(Lent(inside.stage.far_channel), uname="nobody", deadline=10) as files:
        await inside.step()
        await files.write("/proc/boot", b"state=ready\nkernel=stage\n")
        await inside.log("stand-in: ready\n")
        await follow(inside, files)


async def follow(inside: Inside, files: Files) -> None:
    async with await files.open("/ctl", os.O_RDONLY | os.O_NONBLOCK) as ctl:
        while record := await ctl.record():
            await inside.step()
            words = record.decode().split()
            if words[0] == "exit":
                code = int(words[1])
                raise End((0x2A if code == 0 else code) << 1 | 1)
            if words[0] == "say":
                await inside.log(" ".join(words[1:]) + "\n")
            await files.write("/proc/boot", f"said={' '.join(words)[:500]}\n".encode())


class Stage:
    """One machine."""

    def __init__(self, spec: Spec, program: Program) -> None:
        self.spec, self.program = spec, program
        self.console, self.far_console = memory_stream_pair()
        self.export: trio.abc.Stream | None = None
        self.far_export: trio.StapledStream[MemorySendStream, MemoryReceiveStream] | None = None
        self.wire()
        self.gate = trio.Event()
        self.gate.set()
        self.memory: dict[str, Any] = {}
        self.kept: dict[str, dict[str, Any]] = {}
        self.ended: Ended | None = None
        self.over = trio.Event()
        self._scope = trio.CancelScope()
        self._begun = trio.current_time()
        self._begins: Callable[[], None] | None = None

    def wire(self) -> None:
        """New lines for 9P."""
        self.channel, self.far_channel = memory_stream_pair()
        if self.spec.export:
            self.export, self.far_export = memory_stream_pair()

    async def run(self) -> None:
        """The machine, until it ends."""
        try:
            while True:
                with trio.CancelScope() as self._scope:
                    try:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._echo)
                            await self.program(Inside(self))
                            await trio.sleep_forever()  # a guest that has nothing to do halts
                    except* End as group:
                        self._end(_first(group).status)
                if self._begins is None:
                    return
                begins, self._begins = self._begins, None
                _close(self.far_channel, self.far_export)
                self.wire()
                begins()
        finally:
            self._end(-9)

    async def _echo(self) -> None:
        while data := await self.far_console.receive_some():
            await Inside(self).log(f"typed {bytes(data).decode().strip()}\n")

    def _end(self, status: int) -> None:
        if self.ended is None:
            self.ended = Ended(status)
            _close(self.far_console, self.far_channel, self.far_export)
            self.over.set()

    def _alive(self) -> None:
        if self.ended is not None:
            raise Refused(502, "the machine has ended")

    async def wait(self) -> Ended:
        await self.over.wait()
        assert self.ended is not None
        return self.ended

    async def stop(self) -> None:
        raise Refused(405, "a stand-in has no power button")

    async def kill(self) -> None:
        self._scope.cancel()
        self._end(-9)
        await trio.lowlevel.checkpoint()

    async def pause(self) -> None:
        self._alive()
        self.gate = trio.Event()

    async def resume(self) -> None:
        self._alive()
        self.gate.set()

    async def reset(self, begins: Callable[[], None]) -> None:
        self._alive()
        if not self.gate.is_set():
            raise Refused(409, "the stand-in stands still")
        begun = trio.Event()

        def again() -> None:
            begins()
            begun.set()

        self._begins = again
        self.memory = {}
        self._scope.cancel()
        await begun.wait()

    async def snapshot(self, name: str) -> None:
        self._alive()
        self.kept[name] = dict(self.memory)

    async def restore(self, name: str) -> None:
        self._alive()
        if name not in self.kept:
            raise Refused(404, f"there is no snapshot {name!r}")
        self.memory = dict(self.kept[name])

    async def qmp(self, command: bytes) -> bytes:
        raise Refused(405, "a stand-in has no protocol of its own")

    def usage(self) -> Usage:
        return Usage(trio.current_time() - self._begun, 0 if self.ended is not None else 1 << 20)


def _close(*ends: trio.StapledStream[MemorySendStream, MemoryReceiveStream] | None) -> None:
    for end in ends:
        if end is not None:
            end.send_stream.close()
            end.receive_stream.close()


def _first(group: BaseExceptionGroup[End]) -> End:
    e: BaseException = group
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    assert isinstance(e, End)
    return e


WORKS = Works(True)


class StandIn:
    """The back end. PROGRAM is what its guests do; BEFORE is awaited while a machine starts."""

    name = "stand-in"

    def __init__(
        self, program: Program = usual, *, works: Works = WORKS,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self.program, self.works, self.before = program, works, before
        self.probes = 0
        self.up: list[Stage] = []
        self.specs: list[Spec] = []

    async def probe(self) -> Works:
        self.probes += 1
        return self.works

    @asynccontextmanager
    async def started(self, spec: Spec, place: Place) -> AsyncIterator[Stage]:
        assert place.folder.stat().st_mode & 0o777 == 0o700
        assert not any(place.folder.iterdir())
        self.specs.append(spec)
        if spec.kernel is not None and not spec.kernel.read_bytes():
            raise Refused(502, "the emulator says: the kernel is empty")
        if self.before is not None:
            await self.before()
        stage = Stage(spec, self.program)
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.run)
            self.up.append(stage)
            try:
                yield stage
            except Exception as e:
                failed = e
            finally:
                self.up.remove(stage)
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
