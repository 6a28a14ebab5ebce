"""The back ends qemu-tcg and qemu-kvm: QEMU as a process of ours (see `warren.boot.machines.qemu`).

A disk that may be written is an overlay in the place, over what it shows. Snapshots are QEMU's own, kept in a
file of the place that is made with the first of them: memory, processors and overlays together.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from warren.boot.machines.accel import Accelerators
from warren.boot.machines.qemu import Boots, Drive, Qemu
from warren.boot.machines.qmp import Qmp
from warren.boot.machines.recipe import BadRecipe, Recipe, load
from warren.servers.vm.backend import Ended, Place, Spec, Usage, Works
from warren.servers.vm.qcow2 import make
from warren.tree import Refused

USUAL: Final = "linux-pc"  # for a kernel that somebody brings
AGAIN: Final = 2.0  # seconds for firmware to reset the machine a second time
SNAPSHOT: Final = 120.0  # seconds that one may take
_STATE: Final = "vmstate"
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class QemuBackend:
    """QEMU with one accelerator."""

    def __init__(self, accel: str, accelerators: Accelerators | None = None) -> None:
        self.name, self.accel = f"qemu-{accel}", accel
        self.accelerators = accelerators or Accelerators()

    async def probe(self) -> Works:
        found = await self.accelerators.tried(self.accel)
        return Works(found.works, found.why)

    @asynccontextmanager
    async def started(self, spec: Spec, place: Place) -> AsyncIterator[RunningQemu]:
        try:
            recipe = load(spec.recipe or USUAL)
        except BadRecipe as e:
            raise Refused(400, str(e)) from None
        boots = Boots(spec.kernel, spec.initrd, spec.cmdline, tuple(_drives(spec, place)))
        made = Qemu.started(
            recipe, boots, accel=self.accel, mem=spec.mem, cpus=spec.cpus, name=spec.name, export=spec.export,
            prefix=place.prefix, folder=place.folder,
        )  # fmt: skip
        async with made as q:
            yield RunningQemu(q, recipe, place)


def _drives(spec: Spec, place: Place) -> list[Drive]:
    drives = []
    for number, disk in enumerate(spec.disks):
        if disk.file is not None and disk.read_only:
            drives.append(Drive(disk.file))
            continue
        overlay = place.folder / f"disk{number}.qcow2"
        size = disk.file.stat().st_size if disk.file is not None else disk.size
        try:
            make(overlay, size, disk.file)
        except ValueError as e:
            raise Refused(400, f"disk {number}: {e}") from None
        drives.append(Drive(overlay, "qcow2", read_only=False))
    return drives


class RunningQemu:
    """A machine that QEMU runs."""

    def __init__(self, q: Qemu, recipe: Recipe, place: Place) -> None:
        self.q, self.recipe, self.place = q, recipe, place
        self.console, self.channel, self.export = q.console, q.channel, q.export
        self.snapshots: set[str] = set()
        self._jobs = 0
        self._one = trio.Lock()
        self._last = Usage()

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
        await self.q.qmp.execute("stop")

    async def resume(self) -> None:
        await self.q.qmp.execute("cont")

    async def reset(self) -> None:
        # A guest that resets itself ends, and so would this: for one turn a reset is what it says. A PC's
        # firmware that finds it has run before resets the machine once more, or twice.
        qmp = self.q.qmp
        since = qmp.seen
        await qmp.execute("set-action", reboot="reset")
        try:
            await qmp.execute("system_reset")
            with trio.move_on_after(10) as late:
                await qmp.event("RESET", since=since)
            if late.cancelled_caught:
                raise Refused(504, "the machine did not begin again")
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
        async with self._one:
            if not self.snapshots:
                path = self.place.folder / "snapshots.qcow2"
                if not path.exists():
                    make(path, 1 << 20)
                    file = {"driver": "file", "filename": str(path)}
                    await self.q.qmp.execute(
                        "blockdev-add", driver="qcow2", node_name=_STATE, file=file
                    )
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
            running = (await self.q.qmp.execute("query-status"))["running"]
            await self._job("snapshot-load", name, vmstate=_STATE)
            if running:
                await self.q.qmp.execute("cont")

    async def _job(self, command: str, name: str, **arguments: Any) -> None:
        """Do one of QEMU's jobs to its end. Cancelled: QEMU goes on to the end of it."""
        self._jobs += 1
        job = f"warren{self._jobs}"
        since = self.q.qmp.seen
        devices = [_STATE, *await self._writable()]
        await self.q.qmp.execute(command, job_id=job, tag=name, devices=devices, **arguments)
        with trio.move_on_after(SNAPSHOT):
            while True:
                event = await self.q.qmp.event("JOB_STATUS_CHANGE", since=since)
                since = self.q.qmp.seen
                jobs = {found["id"]: found for found in await self.q.qmp.execute("query-jobs")}
                found = jobs.get(job)
                if found is None or found["status"] == "concluded":
                    break
                del event
            said = found.get("error", "") if found is not None else ""
            await self._quietly("job-dismiss", id=job)
            if said:
                raise Refused(502, f"QEMU says: {said}")
            return
        raise Refused(504, f"the snapshot took longer than {SNAPSHOT:g} s")

    async def _writable(self) -> list[str]:
        found = await self.q.qmp.execute("query-block")
        inserted = [block["inserted"] for block in found if block.get("inserted")]
        return [one["node-name"] for one in inserted if not one["ro"]]

    async def qmp(self, command: bytes) -> bytes:
        return await self.q.qmp.raw(command)

    def usage(self) -> Usage:
        if self.q.status is None:
            try:
                with open(f"/proc/{self.q.pid}/stat") as file:
                    words = file.read().rpartition(")")[2].split()
                self._last = Usage((int(words[11]) + int(words[12])) / _TICK, int(words[21]) * _PAGE)
            except (OSError, IndexError, ValueError):
                pass
        return self._last
