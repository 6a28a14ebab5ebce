"""The back end `libvirt`: the machines of `warren.boot.libvirt.machine`, as /vm wants them.

libvirt's own driver for QEMU runs inside this process, so no daemon is needed, and nobody else sees the
machines. It starts QEMU itself, so the place's prefix cannot go before QEMU's command line: limits are set on
the process, by `adopt`, before its first instruction.

Disks and snapshots are as with `qemu`: overlays in the place, and QEMU's own snapshots of memory, processors
and overlays in a file that is made with the first of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from warren.boot.libvirt.driver import folder
from warren.boot.libvirt.library import lacking
from warren.boot.libvirt.machine import Machine, Wanted
from warren.boot.libvirt.xml import suitable
from warren.boot.machines.accel import Accelerators
from warren.boot.machines.probe import PATIENCE, image
from warren.boot.machines.qemu import Drive
from warren.boot.machines.recipe import BadRecipe, Recipe, load
from warren.servers.vm.backend import Ended, Place, Spec, Usage, Works
from warren.servers.vm.qcow2 import make
from warren.tree import Refused

USUAL: Final = "linux-pc"  # for a kernel that somebody brings
PROBE: Final = "standin-pc"
SNAPSHOT: Final = 120.0  # seconds that one may take
_STATE: Final = "vmstate"
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
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
            drives=tuple(_drives(spec, place)), mem=spec.mem, cpus=spec.cpus, export=spec.export,
            accel=await self.accelerators.choose(recipe),
        )  # fmt: skip
        made = Machine.started(recipe, wanted, place.folder, adopt=place.adopt, cache=self.cache)
        async with made as machine:
            yield RunningLibvirt(machine, recipe, place)


def _way_out(said: str) -> str:
    if "Failed to parse user" in said:
        return _USER
    return _DRIVER if "no connection driver" in said else ""


def _drives(spec: Spec, place: Place) -> list[Drive]:
    drives = []
    for number, disk in enumerate(spec.disks):
        if disk.file is not None and disk.read_only:
            drives.append(Drive(disk.file))
            continue
        overlay = place.folder / f"disk{number}.qcow2"
        try:
            make(overlay, disk.file.stat().st_size if disk.file is not None else disk.size, disk.file)
        except ValueError as e:
            raise Refused(400, f"disk {number}: {e}") from None
        drives.append(Drive(overlay, "qcow2", read_only=False))
    return drives


class RunningLibvirt:
    """A machine that libvirt runs."""

    def __init__(self, machine: Machine, recipe: Recipe, place: Place) -> None:
        self.machine, self.recipe, self.place = machine, recipe, place
        self.console, self.channel, self.export = machine.console, machine.channel, machine.export
        self.snapshots: set[str] = set()
        self._jobs = 0
        self._one = trio.Lock()
        self._last = Usage()

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
        await self.machine.domain.suspend()

    async def resume(self) -> None:
        await self.machine.domain.resume()

    async def reset(self) -> None:
        await self.machine.reset()

    async def snapshot(self, name: str) -> None:
        async with self._one:
            path = self.place.folder / "snapshots.qcow2"
            if not path.exists():
                make(path, 1 << 20)
                file = {"driver": "file", "filename": str(path)}
                await self._execute("blockdev-add", driver="qcow2", node_name=_STATE, file=file)
            if name in self.snapshots:
                await self._job("snapshot-delete", name)
                self.snapshots.discard(name)
            await self._job("snapshot-save", name, vmstate=_STATE)
            self.snapshots.add(name)

    async def restore(self, name: str) -> None:
        async with self._one:
            if name not in self.snapshots:
                there = ", ".join(sorted(self.snapshots)) or "none"
                raise Refused(404, f"there is no snapshot {name!r}; there are {there}")
            await self._job("snapshot-load", name, vmstate=_STATE)

    async def _job(self, command: str, name: str, **arguments: Any) -> None:
        """Do one of QEMU's jobs to its end. Cancelled: QEMU goes on to the end of it."""
        self._jobs += 1
        job = f"warren{self._jobs}"
        devices = [_STATE, *await self._writable()]
        since = self.machine.domain.seen
        await self._execute(command, job_id=job, tag=name, devices=devices, **arguments)
        with trio.move_on_after(SNAPSHOT) as late:
            concluded = f'"id":"{job}","status":"concluded"'
            await self.machine.domain.happened("JOB_STATUS_CHANGE", since=since, has=concluded)
        if late.cancelled_caught:
            raise Refused(504, f"the snapshot took longer than {SNAPSHOT:g} s")
        said = [found.get("error") for found in await self._execute("query-jobs") if found["id"] == job]
        await self._execute("job-dismiss", id=job)
        if said and said[0]:
            raise Refused(502, f"QEMU says: {said[0]}")

    async def _writable(self) -> list[str]:
        found = [block.get("inserted") for block in await self._execute("query-block")]
        return [inserted["node-name"] for inserted in found if inserted and not inserted["ro"]]

    async def _execute(self, command: str, **arguments: Any) -> Any:
        return await self.machine.domain.execute(command, **arguments)

    async def qmp(self, command: bytes) -> bytes:
        return await self.machine.domain.monitor(command)

    def usage(self) -> Usage:
        try:
            with open(f"/proc/{self.machine.pid}/stat") as file:
                words = file.read().rpartition(")")[2].split()
            self._last = Usage((int(words[11]) + int(words[12])) / _TICK, int(words[21]) * _PAGE)
        except (OSError, IndexError, ValueError):
            pass  # it has ended
        return self._last


__all__ = ["LibvirtBackend", "RunningLibvirt"]
