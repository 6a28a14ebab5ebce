"""The back end `libvirt`: the machines of `warren.boot.libvirt.machine`, as /vm wants them.

libvirt's own driver for QEMU runs inside this process, so no daemon is needed, and nobody else sees the
machines. It starts QEMU itself, so the place's prefix cannot go before QEMU's command line: limits are set on
the process, by `adopt`, before its first instruction.

Disks, snapshots and usage are as with every QEMU: see `emulator`.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio
from warren.boot.libvirt.driver import folder
from warren.boot.libvirt.library import lacking
from warren.boot.libvirt.machine import Machine, Wanted
from warren.boot.libvirt.xml import suitable
from warren.boot.machines.accel import Accelerators
from warren.boot.machines.probe import PATIENCE, image
from warren.boot.machines.recipe import BadRecipe, Recipe, load
from warren.servers.vm.backend import Ended, Place, Spec, Usage, Works
from warren.servers.vm.emulator import USUAL, Snapshots, Used, overlays
from warren.tree import Refused

PROBE: Final = "standin-pc"
_USER: Final = "; as root it wants that user: useradd --system libvirt-qemu, or install libvirt-daemon-system"
_DRIVER: Final = "; its driver for QEMU is in the package libvirt-daemon-driver-qemu"


class LibvirtBackend:
    """QEMU by libvirt. CACHE is where libvirt keeps what it learnt about QEMU; if None, with the user's."""

    def __init__(self, cache: Path | None = None, accelerators: Accelerators | None = None) -> None:
        self.name = "libvirt"
        self.cache, self.accelerators = cache, accelerators or Accelerators()

    async def probe(self) -> Works:
        """Boot the image of the probe by it. It takes seconds, and more when libvirt sees this QEMU for the
        first time. Cancelled leaves nothing."""
        if why := lacking():
            return Works(False, why)
        try:
            # In the driver's folder it goes with that, whatever happens.
            with tempfile.TemporaryDirectory(prefix="probe-", dir=folder(self.cache)) as made:
                place, recipe = Path(made), load(PROBE)
                kernel = place / "probe.elf"
                kernel.write_bytes(image())
                wanted = Wanted("probe", kernel, accel=await self.accelerators.choose(recipe))
                async with Machine.started(recipe, wanted, place, cache=self.cache) as machine:
                    with trio.move_on_after(PATIENCE):
                        await machine.wait()
                        return Works(True)
        except Refused as e:
            return Works(False, f"{e.detail}{_way_out(e.detail)}")
        return Works(False, f"the probe image did not end within {PATIENCE:g} s")

    @asynccontextmanager
    async def started(self, spec: Spec, place: Place) -> AsyncIterator[RunningLibvirt]:
        try:
            recipe = suitable(load(spec.recipe or USUAL))
        except BadRecipe as e:
            raise Refused(400, str(e)) from None
        wanted = Wanted(
            name=spec.name, kernel=spec.kernel, initrd=spec.initrd, cmdline=spec.cmdline,
            drives=tuple(overlays(spec, place)), mem=spec.mem, cpus=spec.cpus, export=spec.export,
            accel=await self.accelerators.choose(recipe),
        )  # fmt: skip
        made = Machine.started(recipe, wanted, place.folder, adopt=place.adopt, cache=self.cache)
        async with made as machine:
            yield RunningLibvirt(machine, recipe, place)


def _way_out(said: str) -> str:
    if "Failed to parse user" in said:
        return _USER
    return _DRIVER if "no connection driver" in said else ""


class RunningLibvirt:
    """A machine that libvirt runs."""

    def __init__(self, machine: Machine, recipe: Recipe, place: Place) -> None:
        self.machine, self.recipe, self.place = machine, recipe, place
        self.console = machine.console
        self.snapshots = Snapshots(place.folder, machine.domain.execute, self._changed)
        self.used = Used(machine.pid)

    @property
    def channel(self) -> trio.abc.Stream:
        return self.machine.channel

    @property
    def export(self) -> trio.abc.Stream | None:
        return self.machine.export

    async def wait(self) -> Ended:
        end = await self.machine.wait()
        return Ended(end.status, end.said or f"libvirt: {end.why}")

    async def stop(self) -> None:
        if "acpi=off" in self.recipe.machine:
            raise Refused(405, f"a machine of the recipe {self.recipe.name} has no power button")
        await self.machine.domain.shutdown()

    async def kill(self) -> None:
        await self.machine.kill()

    async def pause(self) -> None:
        await self.machine.pause()

    async def resume(self) -> None:
        await self.machine.resume()

    async def reset(self, begins: Callable[[], None]) -> None:
        await self.machine.reset(begins)

    async def snapshot(self, name: str) -> None:
        await self.snapshots.keep(name)

    async def restore(self, name: str) -> None:
        await self.snapshots.take_up(name)

    def _changed(self) -> Callable[[], Awaitable[object]]:
        domain = self.machine.domain
        return partial(domain.happened, "JOB_STATUS_CHANGE", since=domain.seen)

    async def qmp(self, command: bytes) -> bytes:
        return await self.machine.domain.monitor(command)

    def usage(self) -> Usage:
        return self.used.last if self.machine.domain.stopped else self.used.now()


__all__ = ["LibvirtBackend", "RunningLibvirt"]
