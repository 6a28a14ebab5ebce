"""What QEMU is told in the same words, whoever runs it: overlays for disks, snapshots, and what it has used.

    overlays(spec, place)                     the disks of a machine: what is written goes into the place
    Snapshots(folder, execute, changed)       memory, processors and overlays, kept and taken up again
    Used(pid).now()                           what the process has used

Snapshots are QEMU's own, in a file that is made with the first of them. EXECUTE does one command of QEMU's
protocol; CHANGED gives a wait for the next change of a job, counted from when it was called.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from warren.boot.machines.qemu import Drive
from warren.servers.vm.backend import Place, Spec, Usage
from warren.servers.vm.qcow2 import make
from warren.tree import Refused

USUAL: Final = "linux-pc"  # the recipe for a kernel that somebody brings
SNAPSHOT: Final = 120.0  # seconds that one may take
_STATE: Final = "vmstate"
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Execute(Protocol):
    """One command of QEMU's own protocol, and what it returned."""

    def __call__(self, command: str, **arguments: Any) -> Awaitable[Any]: ...


def overlays(spec: Spec, place: Place) -> list[Drive]:
    """What the machine has as disks. Refused (400) for a file that no overlay can lie on."""
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


class Snapshots:
    """Those of one machine. One is made or taken up at a time."""

    def __init__(
        self, folder: Path, execute: Execute, changed: Callable[[], Callable[[], Awaitable[object]]]
    ) -> None:
        self.folder, self.execute, self.changed = folder, execute, changed
        self.kept: set[str] = set()
        self._jobs = 0
        self._one = trio.Lock()

    async def keep(self, name: str) -> None:
        """As `Running.snapshot`."""
        async with self._one:
            path = self.folder / "snapshots.qcow2"
            if not path.exists():
                make(path, 1 << 20)
                file = {"driver": "file", "filename": str(path)}
                await self.execute("blockdev-add", driver="qcow2", node_name=_STATE, file=file)
            if name in self.kept:
                await self._job("snapshot-delete", name)
                self.kept.discard(name)
            await self._job("snapshot-save", name, vmstate=_STATE)
            self.kept.add(name)

    async def take_up(self, name: str) -> None:
        """As `Running.restore`. It runs afterwards if it ran before: QEMU sees to that."""
        async with self._one:
            if name not in self.kept:
                there = ", ".join(sorted(self.kept)) or "none"
                raise Refused(404, f"there is no snapshot {name!r}; there are {there}")
            await self._job("snapshot-load", name, vmstate=_STATE)

    async def _job(self, command: str, name: str, **arguments: Any) -> None:
        """Do one of QEMU's jobs to its end. Cancelled: QEMU goes on to the end of it."""
        self._jobs += 1
        job = f"warren{self._jobs}"
        devices = [_STATE, *await self._writable()]
        changes = self.changed()
        await self.execute(command, job_id=job, tag=name, devices=devices, **arguments)
        with trio.move_on_after(SNAPSHOT) as late:
            while (found := await self._found(job)) and found["status"] != "concluded":
                await changes()
                changes = self.changed()
        if late.cancelled_caught:
            raise Refused(504, f"the snapshot took longer than {SNAPSHOT:g} s")
        if found:
            await self.execute("job-dismiss", id=job)
            if said := found.get("error"):
                raise Refused(502, f"QEMU says: {said}")

    async def _found(self, job: str) -> dict[str, Any]:
        jobs = await self.execute("query-jobs")
        return next((found for found in jobs if found["id"] == job), {})

    async def _writable(self) -> list[str]:
        blocks = [block.get("inserted") for block in await self.execute("query-block")]
        return [inserted["node-name"] for inserted in blocks if inserted and not inserted["ro"]]


class Used:
    """What the emulator's process has used; once it has ended, what was seen last."""

    def __init__(self, pid: int) -> None:
        self.pid, self.last = pid, Usage()

    def now(self) -> Usage:
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                words = file.read().rpartition(")")[2].split()
            self.last = Usage((int(words[11]) + int(words[12])) / _TICK, int(words[21]) * _PAGE)
        except (OSError, IndexError, ValueError):
            pass  # it has ended
        return self.last


__all__ = ["USUAL", "Snapshots", "Used", "overlays"]
