"""Supervision: one process a service, started again when it ends unasked.

    supervisor = Supervisor(state, nursery)
    supervisor.add(Service(...)); supervisor.start(name); await supervisor.stop(name)

A service that crashed is started again at once, then after 1, 2, 4 … seconds, a minute at most; a minute of
life makes that good. A crash has a reason, `exit_3` or `signal_9`; it is an event, a count, and a note for
the queen's /log, which is delivered when the queen answers.

    stopped ──start──▶ starting ──answers──▶ up
       ▲                  ▲  │ends             │ends unasked
       └──────stop────────│──┴─▶ waiting ◀─────┘
                          └───────pause over
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio
from warren.auth import keyfiles
from warren.roles.processes import PATIENCE, Born, Child
from warren.roles.state import State
from warren.tree import Ring, quote

STEADY = 60.0  # seconds of life that make earlier crashes good
LONGEST = 60.0
STOPPED, STARTING, JOINING, UP, WAITING, STOPPING = (
    "stopped", "starting", "joining", "up", "waiting", "stopping",
)  # fmt: skip
_NOTES = 64
_LOOK, _SELDOM = 0.03, 0.5  # seconds between questions whether a service is there yet
_GRACE = 1.5  # seconds for one that is DEGRADED at its beginning, while it has not heard from all others yet


class Backoff:
    """How long to wait before the next start: 0, 1, 2, 4 … seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self.crashes = 0  # in a row

    def began(self) -> None:
        """It was started."""
        self._began = self._clock()

    def died(self) -> float:
        """It ended unasked; seconds until it is to be started again."""
        if self._clock() - self._began >= STEADY:
            self.crashes = 0
        self.crashes += 1
        return 0.0 if self.crashes == 1 else min(2.0 ** (self.crashes - 2), LONGEST)


class Process(Protocol):
    """What a supervisor needs of a child."""

    pid: int
    born: Born | None

    async def ended(self) -> str:
        """How it ended. Cancelled leaves it running."""

    def signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""

    def kill(self) -> None:
        """End it now, and wait for that."""


class Probe(Protocol):
    """Whether a service is there, by its own word."""

    async def __call__(self) -> tuple[str, str, str]:
        """(STARTING, JOINING or UP; what it says its state is; why). Cancelled has no effect."""


def _nothing() -> None:
    pass


@dataclass
class Service:
    """One thing that is to run. What stands behind `state` is the supervisor's."""

    name: str
    role: str
    argv: Sequence[str]
    probe: Probe
    clear: Callable[[], None] = _nothing  # takes away what the last process left; may wait a little
    after: Service | None = None  # the one that must be up before the first start
    state: str = STOPPED
    lifecycle: str = ""
    reason: str = ""
    restarts: int = 0
    since: float = 0.0
    wanted: bool = False
    child: Process | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(trio.current_time))
    _asked: bool = False
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def changed(self) -> None:
        """Return at the next change of `state`. Cancelled has no effect."""
        await self._changed.park()

    def line(self) -> str:
        """As /status shows it."""
        pairs = {
            "name": self.name, "role": self.role, "pid": self.child.pid if self.child else "-",
            "state": self.state, "lifecycle": self.lifecycle or "-", "restarts": self.restarts,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since)) if self.since else "-",
            "reason": self.reason or "-",
        }  # fmt: skip
        return " ".join(f"{k}={quote(str(v))}" for k, v in pairs.items())


class Supervisor:
    """The services of one hive. Its tasks live in NURSERY; `end` lets go of everything."""

    def __init__(
        self, state: State, nursery: trio.Nursery,
        launch: Callable[[Sequence[str], Path], Process] = Child,
        send: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self.state, self.nursery, self.launch, self.send = state, nursery, launch, send
        self.services: dict[str, Service] = {}
        self.events = Ring(depth=256)
        self.crashes: Counter[tuple[str, str]] = Counter()
        self.ending = trio.Event()
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._noted = trio.lowlevel.ParkingLot()

    def tell(self, kind: str, service: str, **values: object) -> None:
        """An event, for who reads /events."""
        pairs = "".join(f" {key}={quote(str(value))}" for key, value in values.items())
        head = f"seq={self.events.seq + 1} ts={time.time():.3f} kind={kind} service={service}"
        self.events.append(f"{head}{pairs}\n".encode())

    def add(self, service: Service) -> None:
        """Know a service; it is stopped."""
        self.services[service.name] = service

    def start(self, name: str) -> None:
        """See that it runs, from now on."""
        service = self.services[name]
        if service.wanted:
            return
        service.wanted = True
        if service.state == STOPPED:
            service.backoff = Backoff(trio.current_time)
            self._becomes(service, STARTING)
            self.nursery.start_soon(self._keep, service)

    async def stop(self, name: str) -> None:
        """End it and leave it so: kindly, and after PATIENCE seconds not so. Cancelled leaves it ending."""
        service = self.services[name]
        service.wanted = False
        self._end_child(service)
        with trio.move_on_after(PATIENCE):
            await self._until_stopped(service)
        if service.state != STOPPED and service.child is not None:
            service.child.signal(9)
            await self._until_stopped(service)

    async def _until_stopped(self, service: Service) -> None:
        while not service.wanted and service.state != STOPPED:
            await service.changed()

    def restart(self, name: str) -> None:
        """End its process and start another at once; that is no crash."""
        service = self.services[name]
        if not service.wanted:
            self.start(name)
            return
        service.backoff = Backoff(trio.current_time)
        if service.state == WAITING:
            self._becomes(service, STARTING)
        self._end_child(service)

    def _end_child(self, service: Service) -> None:
        if service.child is not None:
            service._asked = True
            service.child.signal(15)
            self._becomes(service, STOPPING)
        else:
            service._changed.unpark_all()

    async def end(self) -> None:
        """Stop everything: the mount first, for the others are below it. Cancelled leaves some running."""
        last = [name for name, one in self.services.items() if one.after is not None]
        for names in (last, [name for name in self.services if name not in last]):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(self.stop, name)

    def kill(self) -> None:
        """End what is left, at once and without waiting for anybody's turn."""
        for service in self.services.values():
            if service.child is not None:
                service.child.kill()

    def _becomes(self, service: Service, state: str) -> None:
        service.state = state
        service.since = time.time()
        service._changed.unpark_all()

    async def _keep(self, service: Service) -> None:
        """Run its processes one after the other, until it is not wanted."""
        while service.after is not None and service.after.state != UP and service.wanted:
            await self._either_changes(service, service.after)
        while service.wanted:
            reason = await self._run(service)
            service.lifecycle = ""
            if service._asked:
                service._asked = False
                continue
            pause = service.backoff.died()
            self._crashed(service, reason, pause)
            with trio.move_on_after(pause):
                while service.wanted and service.state == WAITING and pause:
                    await service.changed()
            if service.wanted:
                self._becomes(service, STARTING)
        self._becomes(service, STOPPED)
        self.tell("stopped", service.name)

    async def _either_changes(self, one: Service, other: Service) -> None:
        async with trio.open_nursery() as nursery:

            async def wait(service: Service) -> None:
                await service.changed()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, one)
            nursery.start_soon(wait, other)

    async def _run(self, service: Service) -> str:
        """One process, from its start to its end; returns how it ended."""
        service.backoff.began()
        service.child = child = self.launch(service.argv, self.state.log(service.name) / "stderr.log")
        try:
            self._write_pid(service.name, child)
            self._becomes(service, STARTING)
            self.tell("started", service.name, pid=child.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._see_up, service)
                reason = await child.ended()
                nursery.cancel_scope.cancel()
        finally:
            service.child = None
            for name in ("pid", "born"):
                (self.state.run(service.name) / name).unlink(missing_ok=True)
        try:
            await trio.to_thread.run_sync(service.clear)
        except OSError as e:
            self.tell("stuck", service.name, reason=str(e))
        return reason.replace(" ", "_")

    def _write_pid(self, name: str, child: Process) -> None:
        where = self.state.run(name)
        keyfiles.write_whole(where / "born", f"{child.born}\n".encode())
        keyfiles.write_whole(where / "pid", f"{child.pid}\n".encode())

    async def _see_up(self, service: Service) -> None:
        """Ask until it is there."""
        pause, began = _LOOK, trio.current_time()
        there = 0.0
        while service.state in (STARTING, JOINING):
            state, lifecycle, why = await service.probe()
            if service.state not in (STARTING, JOINING):
                return
            service.lifecycle, service.reason = lifecycle, why
            if state == UP:
                there = there or trio.current_time()
            if state == UP and (lifecycle != "DEGRADED" or trio.current_time() - there > _GRACE):
                self._becomes(service, UP)
                took = f"{trio.current_time() - began:.1f}"
                self.tell("ready", service.name, seconds=took, state=lifecycle or "-", reason=why or "-")
            elif state not in (UP, service.state):
                self._becomes(service, state)
            else:
                await trio.sleep(pause)
                pause = min(pause * 1.2, _SELDOM)

    def _crashed(self, service: Service, reason: str, pause: float) -> None:
        self.crashes[service.name, reason] += 1
        service.restarts += 1
        service.reason = reason
        self._becomes(service, WAITING)
        self.tell(
            "crashed", service.name, reason=reason, in_a_row=service.backoff.crashes, again_in=f"{pause:g}"
        )
        self._notes.append(f"note crashed service={service.name} reason={reason}")
        self._noted.unpark_all()

    async def deliver(self) -> None:
        """Hand the notes to whoever keeps the log, in order, the newest 64 if it is away long."""
        pause = 0.1
        while self.send is not None:
            while not self._notes:
                await self._noted.park()
            note = self._notes[0]
            try:
                await self.send(note)
            except OSError:
                await trio.sleep(pause)
                pause = min(pause * 2, 5.0)
                continue
            pause = 0.1
            if self._notes and self._notes[0] is note:
                self._notes.popleft()

    def metrics(self) -> str:
        """Prometheus text."""
        total = sum(self.crashes.values())
        up = sum(one.state == UP for one in self.services.values())
        lines = [
            "# TYPE rejected_total counter", f'rejected_total{{reason="ServiceCrashed"}} {total}',
            "# TYPE service_crashed_total counter",
            *(f'service_crashed_total{{service="{name}",reason="{reason}"}} {n}'
              for (name, reason), n in sorted(self.crashes.items())),
            "# TYPE services gauge", f"services {len(self.services)}",
            "# TYPE services_up gauge", f"services_up {up}",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"
