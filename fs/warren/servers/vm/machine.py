"""One machine, from the moment it was cloned until nobody holds it any more.

    new ──start──> starting ──> running ──the guest says so──> ready
                                   │ <──resume── paused <──pause──  │
                                   └────────── stopping ────────────┴──> ended

`STATES` says which verb may be given in which state; every other is refused (409). Whatever the way, it ends
in `ended`, once, with a reason: `exit` (by itself), `stop`, `kill`, `limit`, `gone` (nobody held it), `down`
(its role went down), `error` (it could not run) or `fault` (the emulator died). Its verdict is `booted` if
the guest was ready and all went well from there, `refused` if it said no itself, `error` for all else, and
`none` if it never ran.

What a machine has on the host is in one folder: `in/` and `out/` for as long as it is listed, and `run/`,
which its emulator has, and which goes with it (see `run`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from warren.boot.machines.guest import Guest
from warren.servers.vm.asked import Asked
from warren.servers.vm.console import Console, History
from warren.servers.vm.made import USUAL_MEM
from warren.servers.vm.run import Run
from warren.servers.vm.shelf import Shelf
from warren.tree import Caller, Refused
from warren.tree.report import attributes, pairs

if TYPE_CHECKING:
    from warren.servers.vm.tree import Vm

NEW, STARTING, RUNNING, READY, PAUSED, STOPPING, ENDED = (
    "new", "starting", "running", "ready", "paused", "stopping", "ended",
)  # fmt: skip
_UP: Final = (RUNNING, READY, PAUSED)
STATES: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("image", "recipe", "kernel", "arg", "mem", "cpus", "disk", "share", "limit", "backend", "name",
         "role", "stay", "start"), (NEW,),
    ),
    "stop": (STARTING, *_UP), "pause": (RUNNING, READY), "resume": (PAUSED,), "reset": (RUNNING, READY),
    "tell": (RUNNING, READY), "snapshot": _UP, "restore": _UP, "type": (*_UP, STOPPING),
    "qmp": (*_UP, STOPPING),
}  # fmt: skip
OWN: Final = frozenset((*Guest().entries, "dev"))  # names that a guest has for itself
DISK: Final = 4 << 30  # bytes that a machine may leave, if nobody says otherwise
INPUTS: Final = 8 << 30
_WELL: Final = ("exit", "stop", "kill", "gone", "down")


class Machine:
    """What stands behind one directory of /vm."""

    def __init__(self, vm: Vm, id: str, owner: Caller, folder: Path) -> None:
        self.vm, self.id, self.owner, self.folder = vm, id, owner.subject, folder
        self.asked = Asked()
        self.state, self.before_pause = NEW, RUNNING
        self.created, self.over = vm.clock.now(), 0.0
        self.ended: dict[str, object] = {}
        self.events = History(vm.clock.now)
        self.console = Console(self.type)
        for name in ("in", "out"):
            (folder / name).mkdir(mode=0o700)
        self.inputs, self.output = Shelf(folder / "in", INPUTS), Shelf(folder / "out", DISK)
        self.run = Run(self)
        self.finished = trio.Event()
        self.events.tell("made", id=id, owner=self.owner)

    @property
    def disk_most(self) -> int:
        return self.asked.bounds.disk or DISK

    @property
    def label(self) -> str:
        """What it is called at /n, and by its emulator."""
        return self.asked.name or f"vm-{self.id}"

    @property
    def memory(self) -> int:
        """Bytes that the guest has, as far as that is known."""
        return self.run.memory or self.asked.mem or USUAL_MEM

    @property
    def uptime(self) -> float:
        return (self.over or self.vm.clock.monotonic()) - self.run.begun if self.run.begun else 0.0

    def must(self, verb: str) -> None:
        """Refuse what this state does not allow."""
        allowed = STATES[verb]
        if self.state in allowed:
            return
        out = "; open clone for another" if NEW in allowed else ""
        said = f"{verb} is for a machine that is {' or '.join(allowed)}; this one is {self.state}{out}"
        raise Refused(409, said)

    def to(self, state: str, **said: object) -> None:
        """It is in another state, and that is told. One that has ended stays so, whatever was on its way."""
        if self.state == ENDED:
            return
        self.state = state
        self.events.tell(state, **said)

    def begins_again(self) -> None:
        """Its guest was reset."""
        if self.state in _UP:
            self.to(RUNNING, by="reset")

    def is_ready(self, boot_ms: int) -> None:
        """Its guest says so."""
        if self.state == RUNNING:
            self.to(READY, boot_ms=boot_ms)
        elif self.state == PAUSED:
            self.before_pause = READY

    # Verbs

    def start(self) -> None:
        """Begin; how it goes on is told by `events`."""
        self.must("start")
        if not self.asked.image and not self.asked.kernel:
            raise Refused(409, "say what it boots first: image NAME, or kernel FILE")
        self.vm.room_for(self)
        self.vm.spawn(self.run.life)
        self.to(STARTING)

    async def stop(self) -> None:
        """Ask the guest to end; after the grace that /vm gives it is ended."""
        self.must("stop")
        if self.run.running is None:
            self.run.end({"ended": "stop"})
            return
        if self.state == PAUSED:
            await self.run.running.resume()
            self.must("stop")
        self.to(STOPPING)
        await self.run.stop(self.vm.grace)

    async def kill(self, why: str = "kill") -> None:
        """End it now, and return when it has ended; ended already is no error."""
        if self.state == NEW:
            self.finish({"ended": why})
        if self.state != ENDED:
            self.run.end({"ended": why})
            await self.finished.wait()

    async def pause(self) -> None:
        self.must("pause")
        await self.run.up().pause()
        # Somebody else may have been quicker: another who pauses, or stops it.
        if self.state in STATES["pause"]:
            self.before_pause = self.state
            self.to(PAUSED)

    async def resume(self) -> None:
        self.must("resume")
        await self.run.up().resume()
        if self.state == PAUSED:
            self.to(self.before_pause)

    async def reset(self) -> None:
        """The guest begins again, and so does what is served to it."""
        self.must("reset")
        await self.run.reset()

    async def snapshot(self, name: str) -> None:
        self.must("snapshot")
        await self.run.up().snapshot(name)
        self.events.tell("snapshot", name=name)

    async def restore(self, name: str) -> None:
        self.must("restore")
        await self.run.up().restore(name)
        self.events.tell("restored", name=name)

    def tell(self, line: str) -> None:
        self.must("tell")
        self.run.guest.tell(line)

    async def type(self, data: bytes) -> None:
        self.must("type")
        await self.run.type(data)

    async def qmp(self, command: bytes) -> bytes:
        self.must("qmp")
        return await self.run.up().qmp(command)

    def finish(self, cause: Mapping[str, str]) -> None:
        """It has ended, and this is why. What is said later counts no more."""
        if self.state == ENDED:
            return
        self.over = self.vm.clock.monotonic()
        well = cause.get("code", "0") == "0" and cause["ended"] in _WELL
        verdict = "booted" if self.run.boot_ms >= 0 and well else "error"
        if not self.run.begun and cause["ended"] != "error":
            verdict = "none"
        self.ended = {"ended": cause["ended"], **cause, "verdict": cause.get("verdict", verdict)}
        self.to(ENDED, **self.ended)
        self.events.close()
        self.console.close()
        self.vm.has_ended(self)
        self.finished.set()

    # What is shown

    def status(self) -> dict[str, object]:
        asked, run, bounds = self.asked, self.run, self.asked.bounds
        found: dict[str, object] = {"id": self.id, "name": self.label, "state": self.state}
        found |= {"owner": self.owner, "boots": asked.image or asked.kernel or "-"}
        found |= {"backend": run.backend or asked.backend or "-", "mem": self.memory, "cpus": asked.cpus or 1}
        found["shares"] = ",".join(share.path for share in asked.shares) or "-"
        said = {"cpu": bounds.cpu, "mem": bounds.mem, "disk": self.disk_most, "wall": bounds.wall}
        found |= {f"limit_{key}": value for key, value in said.items() if value}
        if run.cage is not None:
            found["limits_by"] = run.cage.how
        found |= {"kept": self.vm.kept(self.id), "created": self.created, "uptime": float(self.uptime)}
        if run.boot_ms >= 0:
            found["boot_ms"] = run.boot_ms
        found |= {"cpu_seconds": run.used.cpu, "rss": run.used.rss, "throttled": run.throttled}
        found |= {f"guest_{key}": value for key, value in run.guest.report.items() if key != "state"}
        return found | self.ended

    def image(self) -> str:
        """What it boots."""
        built = self.run.built
        if built is None:
            return attributes({"name": self.asked.image or "-", "kernel": self.asked.kernel or "-"})
        shown = {"name": built.name, "kind": built.kind, "recipe": built.recipe}
        return attributes({**shown, "input_hash": built.input_hash})

    def verdict(self) -> str:
        """One line, for whoever waits."""
        shown = {"id": self.id, **self.ended}
        if self.run.boot_ms >= 0:
            shown["boot_ms"] = self.run.boot_ms
        return f"{pairs(shown)}\n"
