"""The root of /vm and the directory of each machine. See the package for the picture."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
from warren.boot.machines.recipe import BadRecipe, Recipe, load
from warren.servers.vm.asked import is_local
from warren.servers.vm.backend import Backend
from warren.servers.vm.backends import Backends, usual
from warren.servers.vm.ctl import MachineCtl
from warren.servers.vm.images import Images, NoImages
from warren.servers.vm.limits import Groups, groups, sweep
from warren.servers.vm.machine import ENDED, NEW, STARTING, STATES, Machine
from warren.tree import (
    Caller,
    Clone,
    CloneHandle,
    Ctl,
    Cursor,
    Dir,
    Handle,
    Life,
    Maybe,
    Node,
    Refused,
    Sink,
    Stream,
    Text,
    verb,
)
from warren.tree.ports import Clock, Guests
from warren.tree.report import Count, Events, attributes, counts, one
from warren.tree.stream import Ended

MACHINES: Final = 64
GRACE: Final = 10.0  # seconds that a guest has after `stop`
MEMORY: Final = 0.75  # of the host's, all machines together


Standing = Callable[[Caller], Caller]


class Vm(Dir):
    """The tree. FOLDER is where machines have their files; nobody else may use it. `keep` must run beside."""

    def __init__(
        self, folder: Path, clock: Clock, guests: Guests, *, images: Images | None = None,
        backends: Iterable[Backend] | None = None, standing: Standing = lambda caller: caller,
        tell: Callable[[str], None] = lambda said: None, machines: int = MACHINES, memory: int = 0,
        where: Groups | None = None, grace: float = GRACE,
    ) -> None:  # fmt: skip
        self.folder, self.clock, self.guests, self.standing, self.tell = folder, clock, guests, standing, tell
        self.images: Images = images or NoImages()
        self.backends = Backends(usual() if backends is None else backends)
        self.grace = grace
        self.most, self.memory = machines, memory or int(_host_memory() * MEMORY)
        self.groups = groups() if where is None else where
        self.prefix = f"warren-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}-"
        self.events = Events(clock.now)
        self.lives: dict[str, Life] = {}
        self.machines: dict[str, Machine] = {}
        self.made = 0
        self.reasons: Counter[str] = Counter()
        self._nursery: trio.Nursery | None = None
        super().__init__(
            {
                "clone": Cloning(self),
                "backends": Text(self.backends.lines),
                "ctl": VmCtl(self),
                "events": Stream(self.events),
                **counts(self._counted),
            }
        )

    # The names

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.entries.get(name) or self.lives.get(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [*self.entries.items(), *self.lives.items()]

    def make(self, caller: Caller) -> Life:
        """A new machine, held by whoever cloned it."""
        if self._nursery is None:
            raise Refused(503, "this role runs no machines now; try again when it is online")
        if len(self.lives) >= self.most:
            raise Refused(507, f"there are {self.most} machines, the limit; let one go first")
        return self.add(caller)

    def add(self, caller: Caller) -> Life:
        """The same, whatever there is already and whether or not it could be started."""
        self.made += 1
        id = str(self.made)
        folder = self.folder / id
        folder.mkdir(mode=0o700)
        machine = self.machines[id] = Machine(self, id, caller, folder)
        life = self.lives[id] = Life(id, _files(machine), lambda: self._let_go(machine))
        self.events.tell("made", id=id, owner=caller.subject)
        return life

    def _let_go(self, machine: Machine) -> None:
        """Nobody holds it any more."""
        del self.lives[machine.id]
        if machine.state == NEW:
            machine.finish({"ended": "gone"})
        if self._nursery is None:
            return  # we are going down, and it is seen to there
        self._nursery.start_soon(self._bury, machine)

    async def _bury(self, machine: Machine) -> None:
        if machine.state != ENDED:
            await machine.kill("gone")
        self.machines.pop(machine.id, None)
        await trio.to_thread.run_sync(_remove, machine.folder)
        self.events.tell("gone", id=machine.id)

    def kept(self, id: str) -> bool:
        life = self.lives.get(id)
        return life is not None and life.kept

    def keep_machine(self, id: str) -> None:
        if (life := self.lives.get(id)) is not None:
            life.keep()

    def finish_machine(self, id: str) -> None:
        if (life := self.lives.get(id)) is not None:
            life.finish()

    # What machines ask of it

    def recipe(self, name: str) -> Recipe:
        try:
            return load(name)
        except BadRecipe as e:
            raise Refused(404, str(e)) from None

    def free_name(self, name: str, but: Machine) -> None:
        """Refuse a name that another machine has, or will have because nobody gives it one."""
        if re.fullmatch(r"vm-\d+", name) and name != f"vm-{but.id}":
            raise Refused(409, f"{name} is what machine {name[3:]} is called; choose another name")
        if any(m.label == name and m is not but for m in self.machines.values() if m.state != ENDED):
            raise Refused(409, f"a machine is called {name} already; choose another name")

    def room_for(self, machine: Machine) -> None:
        """Refuse one that would take more memory than machines may have together."""
        up = [m for m in self.machines.values() if m.state not in (NEW, ENDED) and m is not machine]
        wanted = machine.memory + sum(m.memory for m in up)
        if wanted > self.memory:
            raise Refused(507, f"machines may have {self.memory >> 20}M together; this makes {wanted >> 20}M")

    def group(self, id: str) -> str:
        return f"{self.prefix}{id}"

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is None:
            raise Refused(503, "this role runs no machines now; try again when it is online")
        self._nursery.start_soon(work)

    def has_ended(self, machine: Machine) -> None:
        """It has ended."""
        self.reasons[str(machine.ended["ended"])] += 1
        self.events.tell("ended", id=machine.id, **machine.ended)

    # Running

    async def keep(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the machines, once what a killed role has left is swept up. Cancelled ends them all."""
        await self.sweep()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.backends.run)
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for machine in self.machines.values():
                if machine.state != ENDED:
                    machine.finish({"ended": "down"})
            _remove(self.folder)

    async def sweep(self) -> None:
        """No machine is ours yet: whatever is there was left."""
        found = await sweep(self.groups, self.prefix)
        left = list(self.folder.iterdir()) if self.folder.exists() else []
        if found or left:
            self.events.tell("swept", groups=found, folders=len(left))
        await trio.to_thread.run_sync(_remove, self.folder)
        self.folder.mkdir(mode=0o700, parents=True)

    def _counted(self) -> Iterable[Count]:
        states = Counter(m.state for m in self.machines.values())
        names = dict.fromkeys([NEW, STARTING, *(s for found in STATES.values() for s in found), ENDED])
        values: dict[tuple[str, ...], float] = {(state,): float(states[state]) for state in names}
        yield Count("vm_machines", "machines that are there", values, ("state",), "gauge")
        yield one("vm_made_total", "machines that were made", self.made)
        ended: dict[tuple[str, ...], float] = {(why,): float(n) for why, n in sorted(self.reasons.items())}
        yield Count("vm_ended_total", "machines that have ended", ended, ("reason",))
        up = [m for m in self.machines.values() if m.state not in (NEW, ENDED)]
        yield one("vm_memory_bytes", "memory that machines may have", sum(m.memory for m in up), "gauge")
        rss = sum(m.run.used.rss for m in up)
        yield one("vm_rss_bytes", "memory of the host that machines use", rss, "gauge")


def _files(machine: Machine) -> dict[str, Node]:
    def measured() -> Iterable[Count]:
        yield one("vm_cpu_seconds_total", "processor time of the host", machine.run.used.cpu)
        yield one("vm_rss_bytes", "memory of the host", machine.run.used.rss, "gauge")
        yield one("vm_uptime_seconds", "since the emulator was started", machine.uptime, "gauge")
        yield one("vm_boot_ms", "from its start to ready; -1: not yet", machine.run.boot_ms, "gauge")
        yield one("vm_console_bytes_total", "what the console said", machine.console.end)
        yield one("vm_throttled_total", "times it waited for a processor", machine.run.throttled)
        yield one("vm_in_bytes", "files for the guest", machine.inputs.used, "gauge")
        yield one("vm_out_bytes", "files that it left", machine.output.used, "gauge")

    return {
        "ctl": MachineCtl(machine),
        "status": Text(lambda: attributes(machine.status())),
        "console": machine.console,
        "events": Stream(machine.events),
        "wait": Stream(lambda: Waiting(machine)),
        "image": Text(machine.image),
        "ns": Text(machine.asked.namespace),
        "qmp": Qmp(machine),
        "in": machine.inputs,
        "out": machine.output,
        **counts(measured),
    }


class Cloning(Clone):
    """/vm/clone. Whoever opens it owns the machine."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(self._nobody)
        self.vm = vm

    def _nobody(self) -> Life:
        raise Refused(403, "a machine is made for whoever opens the file")

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return CloneHandle(self.vm.make(caller))


class Waiting(Cursor):
    """One record: how it ended."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.told = machine, False

    def next_nowait(self) -> bytes:
        if self.told:
            raise Ended
        if not self.machine.finished.is_set():
            raise trio.WouldBlock
        self.told = True
        return self.machine.verdict().encode()

    async def next(self) -> bytes:
        await self.machine.finished.wait()
        return self.next_nowait()


class Qmp(Sink):
    """The emulator's own protocol. With it one reads and writes files as this role's user can: so it is for
    local callers, who are that user; the machine's owner, if that is somebody else, may look."""

    mode = 0o600

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.qmp)
        self.machine = machine

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        if is_local(caller):
            return super().open(flags, caller)
        if caller.subject != self.machine.owner:
            raise Refused(403, f"only {self.machine.owner}, whose machine this is, and local callers may")
        return Sink(self._look).open(flags, caller)

    async def _look(self, command: bytes) -> bytes:
        try:
            asked = json.loads(command)["execute"]
        except (ValueError, TypeError, KeyError, RecursionError):
            asked = ""
        if not isinstance(asked, str) or not asked.startswith("query-"):
            raise Refused(403, "from elsewhere only queries are taken; the rest is for local callers")
        return await self.machine.qmp(command)


class VmCtl(Ctl):
    """All machines."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm

    @verb
    async def kill(self, *ids: str) -> None:
        """End these machines now."""
        for id in ids:
            machine = self.vm.machines.get(id)
            if machine is None:
                raise Refused(404, f"there is no machine {id}")
            await machine.kill()

    @verb
    async def probe(self) -> None:
        """Try the back ends again when somebody asks for them."""
        self.vm.backends.forget()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _host_memory() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) << 10
    return 4 << 30
