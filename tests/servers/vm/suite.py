"""What every back end of /vm has to do, run on a machine whose guest follows the usual ctl.

    await conforms_starting(backend, spec, folder)      and so on, one function for each promise of `backend`
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.auth.rights import Policy
from warren.boot.machines.guest import Guest
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.vm.backend import Backend, Place, Running, Spec
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Refused

PATIENCE = 60
LONG = " x" * 480


class Watched:
    """A machine that was started, with what is needed to see what it does."""

    def __init__(self, running: Running, place: Path) -> None:
        self.running, self.place = running, place
        self.guest = Guest()
        policy = Policy.parse(["any read,write,create,remove,ctl /**"])
        self.export = Export(self.guest, policy, AuditMemory(), TraceRing())
        self.said = bytearray()
        self.quiet = trio.Event()
        self.news = trio.lowlevel.ParkingLot()
        self.again = trio.Event()

    async def hear(self) -> None:
        try:
            while data := await self.running.console.receive_some(65536):
                self.said += data
                self.news.unpark_all()
        except trio.BrokenResourceError:
            pass
        self.quiet.set()

    async def saying(self, text: bytes) -> None:
        while text not in self.said:
            await self.news.park()

    async def serve(self) -> None:
        while True:
            again = self.again
            await serve_stream(self.export, self.running.channel, "vm/1")
            await again.wait()

    def begins(self) -> None:
        self.guest.ready = trio.Event()
        self.again.set()
        self.again = trio.Event()

    async def reset(self) -> None:
        await self.running.reset(self.begins)

    async def waits(self) -> None:
        """Return when the guest waits for what it is told, and has heard every reply but that."""
        while self.export.statistics()["parked"] != 1:
            await trio.lowlevel.checkpoint()

    async def ready(self) -> None:
        await self.guest.ready.wait()


@asynccontextmanager
async def machine(backend: Backend, spec: Spec, folder: Path) -> AsyncIterator[Watched]:
    os.mkdir(folder, 0o700)
    with trio.fail_after(PATIENCE):
        async with backend.started(spec, Place(folder)) as running, trio.open_nursery() as nursery:
            watched = Watched(running, folder)
            nursery.start_soon(watched.hear)
            nursery.start_soon(watched.serve)
            yield watched
            nursery.cancel_scope.cancel()


def children() -> set[int]:
    """Processes that we started, however far below, by /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if words[0] != "Z":
                parents[int(name)] = int(words[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


async def says_that_it_is_ready_and_ends_as_it_is_told(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        await m.ready()
        m.guest.tell("say hello there")
        await m.saying(b"hello there")
        assert m.running.usage().cpu > 0
        m.guest.tell("exit 0")
        end = await m.running.wait()
        assert end.status in (85, None), end
        assert await m.running.wait() == end
        await m.quiet.wait()


async def ends_when_it_is_killed(backend: Backend, spec: Spec, folder: Path) -> None:
    before = children()
    async with machine(backend, spec, folder) as m:
        await m.ready()
        await m.running.kill()
        end = await m.running.wait()
        assert end.status in (-9, None), end
        await m.running.kill()
        assert children() <= before
        for late in (m.running.pause, m.running.resume, m.reset):
            with pytest.raises(Refused):
                await late()


async def leaves_nothing_when_its_block_ends(backend: Backend, spec: Spec, folder: Path) -> None:
    before = children()
    async with machine(backend, spec, folder) as m:
        await m.ready()
    assert children() <= before
    with pytest.raises((KeyError, ExceptionGroup)):
        async with machine(backend, spec, folder.with_name("other")):
            raise KeyError
    assert children() <= before


async def leaves_nothing_when_it_is_cancelled(backend: Backend, spec: Spec, folder: Path) -> None:
    before = children()
    for number, after in enumerate((0.0, 0.004, 0.02, 0.08)):
        with trio.move_on_after(after):
            async with machine(backend, spec, folder.with_name(f"cut{number}")):
                await trio.sleep_forever()
        assert children() <= before, after


async def stands_still_and_goes_on(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        await m.ready()
        await m.running.pause()
        m.guest.tell("say again")
        with trio.move_on_after(0.3) as patience:
            await m.saying(b"again")
        assert patience.cancelled_caught, "a paused machine spoke"
        await m.running.resume()
        await m.saying(b"again")


async def begins_again_when_it_is_reset(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        await m.ready()
        await m.waits()
        before = m.running.channel
        await m.reset()
        await m.ready()
        assert m.running.channel is not before
        await m.waits()
        m.guest.tell("exit 0")
        assert (await m.running.wait()).status in (85, None)


async def forgets_what_was_on_its_way_when_it_is_reset(backend: Backend, spec: Spec, folder: Path) -> None:
    """The answer to what it waits for is too long for any line to take at once."""
    async with machine(backend, spec, folder) as m:
        for time in range(4):
            await m.ready()
            await m.waits()
            m.guest.tell(f"say {time}" + LONG)
            if time % 2:
                await trio.testing.wait_all_tasks_blocked()  # all of it has been sent, as far as it goes
            await m.reset()
        await m.ready()
        m.guest.tell("say all is well")
        await m.saying(b"all is well")
        m.guest.tell("exit 0")
        assert (await m.running.wait()).status in (85, None)


async def is_not_reset_while_it_stands_still(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        await m.ready()
        await m.running.pause()
        with pytest.raises(Refused, match="stands still") as refused:
            await m.reset()
        assert refused.value.code == 409
        await m.running.resume()
        await m.waits()
        m.guest.tell("say again")
        await m.saying(b"again")


async def goes_on_after_a_snapshot_and_after_a_restore(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        await m.ready()
        with pytest.raises(Refused) as refused:
            await m.running.restore("none")
        assert refused.value.code == 404
        await m.running.snapshot("one")
        await m.waits()  # a guest kept in the middle of a message would be answered for another
        await m.running.snapshot("one")
        m.guest.tell("say between")
        await m.saying(b"between")
        await m.waits()
        await m.running.restore("one")
        await m.running.kill()


async def answers_what_its_own_protocol_is_asked(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        await m.ready()
        try:
            answer = await m.running.qmp(b'{"execute": "query-status"}')
        except Refused as e:
            assert e.code == 405  # noqa: PT017  # a back end without one says so
        else:
            assert b'"running"' in answer
            with pytest.raises(Refused):
                await m.running.qmp(b"no json")


async def has_what_its_spec_asks_for(backend: Backend, spec: Spec, folder: Path) -> None:
    async with machine(backend, spec, folder) as m:
        assert (m.running.export is not None) == spec.export


PROMISES: list[Callable[[Backend, Spec, Path], Awaitable[None]]] = [
    says_that_it_is_ready_and_ends_as_it_is_told,
    ends_when_it_is_killed,
    leaves_nothing_when_its_block_ends,
    leaves_nothing_when_it_is_cancelled,
    stands_still_and_goes_on,
    begins_again_when_it_is_reset,
    forgets_what_was_on_its_way_when_it_is_reset,
    is_not_reset_while_it_stands_still,
    goes_on_after_a_snapshot_and_after_a_restore,
    answers_what_its_own_protocol_is_asked,
    has_what_its_spec_asks_for,
]
