"""The keeper of a hive: the process that founds it, supervises its roles and its mount, and serves `control`.

    with holding(state) as mine: ...            the lock, and what a dead keeper left is cleared away
    keeper = Keeper(state, hive, mount)
    await keeper.run(opened)                    until `down`, SIGTERM or Ctrl-C; then all of it is gone

A role is up when it says so at /proc/lifecycle/state of its own socket, and a worker when the queen shows it
at /n/NAME too. The mount is one more service, begun when the queen is up; it outlives her restarts. Once an
hour certificates that have lived half their life are renewed, and logs that have grown are cut.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio
from warren.auth.refusal import Refusal, Standing
from warren.auth.rights import Policy
from warren.mount import dial
from warren.roles import found
from warren.roles.control import Control
from warren.roles.library import Shelf
from warren.roles.manifest import roles as role_names
from warren.roles.mounts import WARREN, let_go, mounted
from warren.roles.processes import Born, finish, rotate
from warren.roles.state import QUEEN, Hive, State, check_roles
from warren.roles.supervise import JOINING, STARTING, STOPPED, UP, Service, Supervisor
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing

MOUNT = "mount"
CONTROL = "hive"
HOURLY = 3600.0
_PATIENCE = 2.0  # seconds for a role to answer a question
_THERE = ("ONLINE", "DEGRADED", "DRAINING", "QUIESCED")
_PROOFS = ("pid", "born", "sock")  # `addr` stays: a queen takes the port that she had

Command = Callable[[State, str], Sequence[str]]


class Mount(NamedTuple):
    """Where the hive is to be mounted, and the command that does it in the foreground."""

    point: Path
    command: Callable[[str, Path], Sequence[str]]


def role_command(state: State, name: str) -> Sequence[str]:
    """The process of one role."""
    return (sys.executable, "-P", "-m", "warren.roles", "--state", str(state.directory), "--name", name)


@contextmanager
def holding(state: State) -> Iterator[bool]:
    """The hive's lock while the block runs; False if another keeper has it."""
    with state.locked(f"{Born.of(os.getpid())}\n") as mine:
        if mine:
            clear(state)
        yield mine


def left_behind(state: State) -> list[Born]:
    """Processes of a keeper that is gone, each proved to be the one that it started."""
    alive = []
    for path in state.directory.glob("run/*/born"):
        try:
            born = Born.parse(path.read_text())
        except (OSError, UnicodeDecodeError):
            continue
        if born is not None and born.lives:
            alive.append(born)
    return alive


def clear(state: State) -> bool:
    """End what a dead keeper left, and take its mounts away. Returns whether there was anything."""
    ended = finish(left_behind(state))
    addresses = {state.address(path.name) for path in state.directory.glob("run/*")}
    kept = state.run(CONTROL) / "mount"
    ours = kept.read_text() if kept.exists() else ""
    gone = []
    for one in mounted():
        if one.kind == WARREN and one.point == ours and one.source in addresses:
            let_go(one.point, one.source)
            gone.append(one)
    for path in state.directory.glob("run/*"):
        for name in (*_PROOFS, "mount"):
            (path / name).unlink(missing_ok=True)
    return bool(ended or gone)


class Keeper:
    """One run of a hive."""

    def __init__(
        self, state: State, hive: Hive, mount: Mount | None, command: Command = role_command,
        tell: Callable[[str], None] = lambda said: None,
    ) -> None:  # fmt: skip
        self.state, self.hive, self.mount, self.command, self.tell = state, hive, mount, command, tell
        self.code = 0
        self.supervisor: Supervisor

    async def run(
        self, opened: Callable[[], None], beside: Callable[[], Awaitable[None]] | None = None
    ) -> int:
        """Keep the hive until it is to end; 130 if Ctrl-C said so. OPENED is called once `control` answers.

        Cancelled kills the processes.
        """
        ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        heeded = [number for number in ends if signal.getsignal(number) != signal.SIG_IGN]
        with trio.open_signal_receiver(*heeded) as signals:
            async with trio.open_nursery() as nursery:
                self.supervisor = supervisor = Supervisor(self.state, nursery, send=self._note)
                try:
                    self._begin()
                    control = Control(supervisor, self.about, self.admit, self.look)
                    export = Export(control, Policy.parse(["local read,ctl /**"]), AuditMemory(), TraceRing())
                    async with listening(export, [self.state.address(CONTROL)]):
                        opened()
                        nursery.start_soon(supervisor.deliver)
                        nursery.start_soon(self._hourly)
                        nursery.start_soon(self._heed, signals)
                        if beside is not None:
                            nursery.start_soon(beside)
                        await supervisor.ending.wait()
                        await supervisor.end()
                finally:
                    supervisor.kill()
                nursery.cancel_scope.cancel()
        return self.code

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            self.code = 130 if number == signal.SIGINT else 0
            self.supervisor.ending.set()

    def _begin(self) -> None:
        for name in self.hive.roles:
            self.supervisor.add(self._service(name))
            self.supervisor.start(name)
        if self.mount is not None:
            self._add_mount(self.mount)

    def _service(self, name: str) -> Service:
        self.state.make_for(name)

        async def probe() -> tuple[str, str, str]:
            return await self._probe(name)

        return Service(name, self.hive.roles[name], self.command(self.state, name), probe)

    def _add_mount(self, mount: Mount) -> None:
        self.state.make_for(MOUNT)
        of = next(iter(self.hive.roles)) if self.hive.joined else QUEEN
        source = self.state.address(of)

        async def probe() -> tuple[str, str, str]:
            return await _is_mounted(mount.point, source), "", ""

        service = Service(
            MOUNT, of, mount.command(source, mount.point), probe,
            clear=lambda: let_go(mount.point, source), after=self.supervisor.services[of],
        )  # fmt: skip
        (self.state.run(CONTROL) / "mount").write_text(str(mount.point))
        self.supervisor.add(service)
        self.supervisor.start(MOUNT)

    # What control shows and takes

    def about(self) -> str:
        """The hive as a whole."""
        point = self.mount.point if self.mount is not None else "-"
        joined = self.hive.queen or "-"
        return f"hive={self.hive.hive}\nmount={point}\npid={os.getpid()}\njoined={joined}"

    async def admit(self, name: str, role: str) -> None:
        """Make NAME known in ROLE. What is not known yet needs a role, and an identity."""
        known = self.supervisor.services.get(name)
        if known is not None:
            if role in ("", known.role):
                return
            if known.state != STOPPED or name == MOUNT:
                raise Standing(f"{name} runs as {known.role}", f"end it first: warren down {name}")
        if not role:
            raise Refusal(f"there is no service {name!r} yet, so it needs a role", "say NAME=ROLE")
        changed = with_roles(self.state, self.hive, {name: role})
        if changed.joined and not (self.state.pki(name) / "key.pem").exists():
            raise Refusal(f"{name} is nobody in {changed.hive}", "let it join: warren join")
        self.state.make_for(name)
        await trio.to_thread.run_sync(found.keep, self.state, changed, self.tell)
        self.state.write(changed)
        self.hive = changed
        self.supervisor.add(self._service(name))

    async def look(self) -> None:
        """Ask every service how it is. Cancelled has no effect."""
        async with trio.open_nursery() as nursery:
            for one in self.supervisor.services.values():
                if one.state == UP and one.name != MOUNT:
                    nursery.start_soon(self._look_at, one)

    async def _look_at(self, service: Service) -> None:
        state, lifecycle, why = await service.probe()
        if service.state == UP:
            service.lifecycle = lifecycle or "silent"
            service.reason = "the queen does not show it at /n" if state == JOINING else why

    # How they are

    async def _probe(self, name: str) -> tuple[str, str, str]:
        word = await self._read(name, "/proc/lifecycle/state")
        if word not in _THERE:
            return STARTING, word, ""
        why = await self._read(name, "/proc/lifecycle/reason") if word == "DEGRADED" else ""
        joins = name != QUEEN and not self.hive.joined
        if joins and not await self._read(QUEEN, f"/n/{name}/proc/lifecycle/state"):
            return JOINING, word, why
        return UP, word, why

    async def _read(self, name: str, path: str) -> str:
        """A line of a role's tree; nothing if it cannot be had."""
        if not self.state.sock(name).exists():
            return ""
        with trio.move_on_after(_PATIENCE):
            try:
                async with dial(self.state.address(name), deadline=_PATIENCE) as files:
                    return (await files.read(path)).decode("utf-8", "replace").strip()
            except OSError:
                pass
        return ""

    async def _note(self, note: str) -> None:
        """A line for the queen's log; one whose queen is elsewhere keeps it in its own."""
        at = QUEEN if QUEEN in self.hive.roles else next(iter(self.hive.roles))
        async with dial(self.state.address(at), deadline=_PATIENCE) as files:
            await files.write("/log/ctl", note.encode() + b"\n")

    async def _hourly(self) -> None:
        while True:
            await trio.sleep(HOURLY)
            try:
                await trio.to_thread.run_sync(found.keep, self.state, self.hive, self.tell)
                for log in self.state.directory.glob("log/*/stderr.log"):
                    rotate(log)
            except (OSError, ValueError) as e:  # a full disk, an authority that was moved: the hive goes on
                self.tell(f"nothing was renewed: {e}")


def with_roles(state: State, hive: Hive, roles: Mapping[str, str]) -> Hive:
    """HIVE with ROLES too. Refuses what no process could be."""
    check_roles(roles)
    shelf, there_are = Shelf([state.roles]), role_names([state.roles])
    for name, role in roles.items():
        try:
            shelf.read(f"{role}.role")
        except OSError:
            near = get_close_matches(role, there_are, 1)
            meant = f" (is {near[0]} meant?)" if near else ""
            text = f"{name}={role}: there is no role {role}{meant}"
            raise Refusal(text, f"the roles are {', '.join(there_are)}") from None
    merged = msgspec.structs.replace(hive, roles={**hive.roles, **roles})
    if not merged.joined and QUEEN not in merged.roles:
        raise Refusal("a hive needs a queen", "say queen=QueenPrimary too")
    return merged


async def _is_mounted(point: Path, source: str) -> str:
    if not any(one == (str(point), WARREN, source) for one in mounted()):
        return STARTING
    with trio.move_on_after(_PATIENCE):
        try:
            # A mount that hangs keeps this thread, and nothing else.
            await trio.to_thread.run_sync(os.statvfs, point, abandon_on_cancel=True)
            return UP
        except OSError:
            pass
    return STARTING
