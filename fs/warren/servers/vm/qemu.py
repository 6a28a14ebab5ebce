"""The back ends qemu-tcg and qemu-kvm: QEMU as a process of ours (see `warren.boot.machines.qemu`).

Disks, snapshots and usage are as with every QEMU: see `emulator`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio
from warren.boot.machines.accel import Accelerators
from warren.boot.machines.qemu import Boots, Qemu
from warren.boot.machines.qmp import Qmp, lacking
from warren.boot.machines.recipe import BadRecipe, Recipe, load
from warren.servers.vm.backend import Ended, Place, Spec, Usage, Works
from warren.servers.vm.emulator import USUAL, Snapshots, Used, overlays
from warren.tree import Refused

AGAIN: Final = 2.0  # seconds for firmware to reset the machine a second time


class QemuBackend:
    """QEMU with one accelerator."""

    def __init__(self, accel: str, accelerators: Accelerators | None = None) -> None:
        self.name, self.accel = f"qemu-{accel}", accel
        self.accelerators = accelerators or Accelerators()

    async def probe(self) -> Works:
        if why := lacking():
            return Works(False, why)
        found = await self.accelerators.tried(self.accel)
        return Works(found.works, found.why)

    @asynccontextmanager
    async def started(self, spec: Spec, place: Place) -> AsyncIterator[RunningQemu]:
        try:
            recipe = load(spec.recipe or USUAL)
        except BadRecipe as e:
            raise Refused(400, str(e)) from None
        boots = Boots(spec.kernel, spec.initrd, spec.cmdline, tuple(overlays(spec, place)))
        made = Qemu.started(
            recipe, boots, accel=self.accel, mem=spec.mem, cpus=spec.cpus, name=spec.name, export=spec.export,
            prefix=place.prefix, folder=place.folder,
        )  # fmt: skip
        async with made as q:
            yield RunningQemu(q, recipe, place)


class RunningQemu:
    """A machine that QEMU runs."""

    def __init__(self, q: Qemu, recipe: Recipe, place: Place) -> None:
        self.q, self.recipe, self.place = q, recipe, place
        self.console = q.console
        self.snapshots = Snapshots(place.folder, q.qmp.execute, self._changed)
        self.used = Used(q.pid)

    @property
    def channel(self) -> trio.abc.Stream:
        return self.q.channel

    @property
    def export(self) -> trio.abc.Stream | None:
        return self.q.export

    async def wait(self) -> Ended:
        status = await self.q.wait()
        return Ended(status, self.q.said)

    async def stop(self) -> None:
        if "acpi=off" in self.recipe.machine:
            raise Refused(405, f"a machine of the recipe {self.recipe.name} has no power button")
        await self.q.power_button()

    async def kill(self) -> None:
        await self.q.kill()

    async def pause(self) -> None:
        await self.q.pause()

    async def resume(self) -> None:
        await self.q.resume()

    async def reset(self, begins: Callable[[], None]) -> None:
        # A guest that resets itself ends, and so would this: for one turn a reset is what it says. A PC's
        # firmware that finds it has run before resets the machine once more, or twice.
        qmp = self.q.qmp
        await qmp.execute("set-action", reboot="reset")
        try:
            await self.q.reset(begins)
            if not self.recipe.machine.startswith("microvm"):
                await self._settled(qmp)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await self._quietly("set-action", reboot="shutdown")

    async def _settled(self, qmp: Qmp) -> None:
        """Return once the firmware resets the machine no more."""
        patience = AGAIN
        while True:
            since = qmp.seen
            with trio.move_on_after(patience) as quiet:
                await qmp.event("RESET", since=since)
            if quiet.cancelled_caught:
                return
            patience = AGAIN / 10

    async def _quietly(self, command: str, **arguments: Any) -> None:
        try:
            await self.q.qmp.execute(command, **arguments)
        except Refused:
            pass  # it has ended; there is nothing to set right

    async def snapshot(self, name: str) -> None:
        await self.snapshots.keep(name)

    async def restore(self, name: str) -> None:
        await self.snapshots.take_up(name)

    def _changed(self) -> Callable[[], Awaitable[object]]:
        return partial(self.q.qmp.event, "JOB_STATUS_CHANGE", since=self.q.qmp.seen)

    async def qmp(self, command: bytes) -> bytes:
        return await self.q.qmp.raw(command)

    def usage(self) -> Usage:
        return self.used.now() if self.q.status is None else self.used.last
