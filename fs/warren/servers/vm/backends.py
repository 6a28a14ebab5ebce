"""The back ends that there are, and whether each works here.

    backends = Backends([QemuBackend("tcg"), ...])
    await backends.ready("")              the first that works, in order of PREFERRED; or one by name
    await backends.lines()                /vm/backends

A probe boots a tiny image, so it costs seconds: it is made when somebody first asks, once, and the answer is
kept until `probe` is written to /vm/ctl. Whoever reads the file waits at most PATIENCE for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trio
from warren.servers.vm.backend import Backend, Works
from warren.tree import Refused
from warren.tree.report import pairs

PATIENCE: Final = 3.0
PREFERRED: Final = ("qemu-kvm", "qemu-tcg")


class Backends:
    """All of them."""

    def __init__(self, made: Iterable[Backend], preferred: Iterable[str] = PREFERRED) -> None:
        self.all = {backend.name: backend for backend in made}
        self.preferred = tuple(preferred)
        self.known: dict[str, Works] = {}
        self._nursery: trio.Nursery | None = None
        self._asked: dict[str, trio.Event] = {}
        self._one = trio.Lock()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the probes. Cancelled ends those under way."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def forget(self) -> None:
        """Probe again when somebody asks."""
        if any(not event.is_set() for event in self._asked.values()):
            raise Refused(409, "they are being probed now", retry_after=1)
        self.known.clear()
        self._asked.clear()

    def _ask(self, name: str) -> trio.Event:
        event = self._asked.get(name)
        if event is None:
            if self._nursery is None:
                raise Refused(503, "this role runs no machines now; try again when it is online")
            event = self._asked[name] = trio.Event()
            self._nursery.start_soon(self._probe, name, event)
        return event

    async def _probe(self, name: str, event: trio.Event) -> None:
        try:
            async with self._one:  # two at once would find each other slow
                self.known[name] = await self.all[name].probe()
        except OSError as e:
            self.known[name] = Works(False, e.strerror or str(e))
        finally:
            event.set()

    async def works(self, name: str) -> Works:
        """Whether that one works here. Cancelled has no effect."""
        await self._ask(name).wait()
        return self.known.get(name, Works(False, "the probe was given up"))

    async def ready(self, name: str) -> Backend:
        """The one to use; Refused (503) says why there is none."""
        why = []
        for wanted in [name] if name else [one for one in self.preferred if one in self.all]:
            found = await self.works(wanted)
            if found.works:
                return self.all[wanted]
            why.append(f"{wanted}: {found.why}")
        raise Refused(503, "; ".join(why) or "there is no back end")

    async def lines(self) -> str:
        """A line for each. One that has not answered yet has a question mark."""
        with trio.move_on_after(PATIENCE):
            for event in [self._ask(name) for name in self.all]:
                await event.wait()
        out = []
        for name in self.all:
            found = self.known.get(name)
            said: dict[str, object] = {name: "?" if found is None else int(found.works)}
            if found is None:
                said["why"] = "it is being tried; read again"
            elif found.why:
                said["why"] = found.why
            out.append(pairs(said))
        return "\n".join(out)


def usual(known: Path | None = None) -> list[Backend]:
    """Those of this package. KNOWN is a file that says what was found of accelerators before."""
    from warren.boot.machines.accel import Accelerators
    from warren.servers.vm.firecracker import FirecrackerBackend
    from warren.servers.vm.libvirt import LibvirtBackend
    from warren.servers.vm.qemu import QemuBackend

    tried = Accelerators(known)
    kinds = [QemuBackend("tcg", tried), QemuBackend("kvm", tried)]
    return [*kinds, LibvirtBackend(), FirecrackerBackend()]
