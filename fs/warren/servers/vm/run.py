"""The one time that a machine runs: from its start until nothing of it is left but in/ and out/.

    run = Run(machine)
    nursery.start_soon(run.life)
    run.end({"ended": "kill"})            it ends soon; whoever says so first is right
    await machine.finished.wait()

Beside the emulator run the reader of its console, the server of its guest, and the watch on what it uses.
They are all of one nursery, which ends when the emulator has.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from warren.boot.machines.guest import Guest
from warren.servers.vm.backend import Ended, Place, Running, Usage
from warren.servers.vm.lent import Lent
from warren.servers.vm.limits import LOOK, Cage, disk_usage
from warren.servers.vm.made import bounds_of, guest_of, spec_of
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.servers.vm.images import Built
    from warren.servers.vm.machine import Machine

TYPING: Final = 5.0  # seconds for a guest to take what is typed
LAST_WORDS: Final = 1.0  # seconds to read what the console said before it ended
_REFUSED: Final = 0x2B  # what our own root task leaves with when its self-test failed
_LEFT: Final = {0x2A: 0, _REFUSED: 1}
_OUR_KEYS: Final = ("self", "seq", "ts", "kind")  # no record has room for them; status shows them all


class Run:
    """One run."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.vm, self.asked = machine, machine.vm, machine.asked
        self.built: Built | None = None
        self.guest = Guest()
        self.running: Running | None = None
        self.cage: Cage | None = None
        self.backend, self.memory = "", 0
        self.begun, self.boot_ms = 0.0, -1  # on the clock, when the emulator was started
        self.used, self.throttled = Usage(), 0
        self.cause: dict[str, str] = {}
        self._left: str | None = None  # the code that the guest says it ended with
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._again = trio.Event()  # it was reset
        self._resetting = False  # so that its line ends is nothing to tell
        self._taking: trio.CancelScope | None = None  # of the tree that the guest serves
        self._typing = trio.Lock()

    # From outside

    def end(self, cause: Mapping[str, str]) -> None:
        """End it, at once, whatever it is at."""
        self.cause = self.cause or dict(cause)
        self._scope.cancel()

    def up(self) -> Running:
        """The machine that runs."""
        if self.running is None:
            raise Refused(409, "the machine has ended, or is not there yet")
        return self.running

    async def stop(self, grace: float) -> None:
        """Ask the guest in every way there is; GRACE later it is ended."""
        running, nursery = self.up(), self._nursery
        if nursery is None:
            raise Refused(409, "the machine has ended")
        self.cause = self.cause or {"ended": "stop"}
        nursery.start_soon(self._after, grace, running.kill)
        heard = self.guest.ready.is_set()
        if heard:
            self.guest.tell(self.built.stops if self.built is not None else "stop")
        try:
            await running.stop()
        except Refused as e:
            if not heard:
                self.machine.events.tell("unheard", said=e.detail)
                await running.kill()

    async def reset(self) -> None:
        """The guest begins again. It may be ready before this returns: firmware takes its time. Cancelled: it
        was reset, or not."""
        running = self.up()
        self._resetting = True
        try:
            await running.reset(self._begins)
        finally:
            self._resetting = False

    def _begins(self) -> None:
        """The guest was reset: what it said of itself counts no more, and its lines are new."""
        guest = self.guest
        guest.ready = trio.Event()
        guest.report.clear()
        self.boot_ms, self.begun = -1, self.vm.clock.monotonic()
        if self._taking is not None:
            self._taking.cancel()
        self._again.set()
        self._again = trio.Event()
        self._resetting = False
        self.machine.begins_again()

    async def type(self, data: bytes) -> None:
        """Bytes for the console. Cancelled: some of them may have gone."""
        running = self.up()
        async with self._typing:
            with trio.move_on_after(TYPING):
                try:
                    return await running.console.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise Refused(409, "the machine has ended") from None
        raise Refused(504, "the guest does not take what is typed", retry_after=1)

    # The whole of it

    async def life(self) -> None:
        """Cancelled, it ends at once and leaves nothing."""
        try:
            with self._scope:
                await self._live()
        except* OSError as group:
            self.cause = self.cause or {"ended": "error", "said": _words(_first(group))}
        except* Exception as group:
            # A defect of ours ends the machine that met it, and no other.
            self.vm.tell("".join(traceback.format_exception(group)))
            self.cause = self.cause or {"ended": "error", "said": f"a defect: {_first(group)!r}"}
        finally:
            shutil.rmtree(self.machine.folder / "run", ignore_errors=True)
            self.machine.finish(self.cause or {"ended": "down"})

    async def _live(self) -> None:
        machine, vm = self.machine, self.vm
        if self.asked.image:
            self.built = await vm.images.find(self.asked.image, lambda said: self._tell("building", said))
        backend = await vm.backends.ready(self.asked.backend)
        self.backend = backend.name
        spec = spec_of(machine, self.built)
        self.memory = spec.mem
        vm.room_for(machine)  # it is known only now how much it needs
        self.guest = guest_of(machine, self._reported)
        cage = self.cage = Cage.made_at(vm.groups, vm.group(machine.id), bounds_of(machine, spec))
        try:
            folder = machine.folder / "run"
            folder.mkdir(mode=0o700)
            self.begun = vm.clock.monotonic()
            async with backend.started(spec, Place(folder, cage.prefix, cage.adopt)) as self.running:
                machine.to("running", backend=self.backend)
                end = await self._beside(self.running)
            self._judge(end, cage)
        except Refused:
            if limit := cage.bitten(None):  # it bit before the emulator could say anything
                self.cause = self.cause or {"ended": "limit", "limit": limit}
            raise
        finally:
            self.running = None
            await cage.remove()

    async def _beside(self, running: Running) -> Ended:
        """All that goes on while it runs, and how it ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            heard = trio.Event()
            nursery.start_soon(self._hear, running, heard)
            nursery.start_soon(self._serve, running)
            nursery.start_soon(self._watch, running)
            if wall := self.asked.bounds.wall:
                nursery.start_soon(self._after, wall, lambda: self._bite("wall"))
            end = await running.wait()
            with trio.move_on_after(LAST_WORDS):
                await heard.wait()
            self._measure()
            self._nursery = None
            nursery.cancel_scope.cancel()
        return end

    def _tell(self, kind: str, said: str) -> None:
        self.machine.events.tell(kind, said=said)

    # Beside it

    async def _hear(self, running: Running, heard: trio.Event) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await running.console.receive_some(65536):
                self.machine.console.append(bytes(data))
        heard.set()

    async def _serve(self, running: Running) -> None:
        """The guest's 9P. One that broke the protocol is not heard again before it is reset."""
        subject = f"vm/{self.machine.id}"
        while True:
            again = self._again
            await self.vm.guests.serve(running.channel, subject, self.guest, self.asked.shares)
            if not self._resetting:
                self.machine.events.tell("hung-up")
            await again.wait()

    async def _take(self, channel: trio.abc.Stream) -> None:
        """The tree that the guest serves, at /n, for as long as it does."""
        label = self.machine.label
        try:
            with trio.CancelScope() as self._taking:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.vm.guests.take, Lent(channel), label)
                    self.machine.events.tell("serving", at=f"/n/{label}")
        except* OSError as group:
            self._tell("not-serving", _words(_first(group)))

    def _reported(self, said: Mapping[str, str]) -> None:
        """The guest wrote to /proc/boot."""
        machine, running, nursery = self.machine, self.running, self._nursery
        machine.events.tell("report", **{key: value for key, value in said.items() if key not in _OUR_KEYS})
        if running is None or nursery is None:
            return
        self._measure()
        if said.get("state") == "ended":  # it cannot power itself off, and says so
            self._left = said.get("code", "0")
            nursery.start_soon(self._after, LAST_WORDS / 2, running.kill)
        if said.get("state") != "ready" or self.boot_ms >= 0:
            return
        self.boot_ms = round((self.vm.clock.monotonic() - self.begun) * 1000)
        machine.is_ready(self.boot_ms)
        if running.export is not None:
            nursery.start_soon(self._take, running.export)
        stays = self.asked.stays or self.asked.shares or self.vm.kept(machine.id)
        if self.built is not None and self.built.then and not stays:
            self.guest.tell(self.built.then)

    async def _watch(self, running: Running) -> None:
        """See what it uses, and end it for what no control group holds."""
        machine = self.machine
        while True:
            await trio.sleep(LOOK)
            self._measure()
            if self.cage is not None and self.cage.watch_mem(self.used.rss):
                await self._bite("mem")
            used = 0
            for name in ("run", "out"):  # what is in in/ has a bound of its own
                used += await trio.to_thread.run_sync(disk_usage, machine.folder / name)
            if used > machine.disk_most:
                await self._bite("disk")

    def _measure(self) -> None:
        if self.running is not None:
            self.used = self.running.usage()
        if self.cage is not None:
            now = self.cage.throttled
            if now > self.throttled == 0:
                self.machine.events.tell("limit", limit="cpu", said="it waits for a processor")
            self.throttled = now

    async def _bite(self, limit: str) -> None:
        self.cause = self.cause or {"ended": "limit", "limit": limit}
        self.machine.events.tell("limit", limit=limit)
        if self.running is not None:
            await self.running.kill()

    async def _after(self, seconds: float, then: Callable[[], Awaitable[None]]) -> None:
        await trio.sleep(seconds)
        await then()

    def _judge(self, end: Ended, cage: Cage) -> None:
        """Why the emulator is no more."""
        status = end.status
        if not self.cause:
            self.cause = self._by_itself(end, cage)
        if status is not None:
            self.cause["status"] = str(status)

    def _by_itself(self, end: Ended, cage: Cage) -> dict[str, str]:
        status, said = end.status, end.said.splitlines()
        if limit := cage.bitten(status):
            return {"ended": "limit", "limit": limit}
        if status is None:
            return {"ended": "exit", **({"said": said[-1]} if said else {})}
        if self._left is not None and status < 0:
            return {"ended": "exit", "code": self._left}
        if status == 0:
            return {"ended": "exit", "code": "0"}
        if status > 0 and status & 1 and not said:  # as the debug-exit device leaves
            left = status >> 1
            found = {"ended": "exit", "code": str(_LEFT.get(left, left))}
            return {**found, "verdict": "refused"} if left == _REFUSED else found
        return {"ended": "fault", "said": said[-1] if said else f"the emulator left with {status}"}


def _words(e: BaseException) -> str:
    return getattr(e, "detail", "") or str(e)


def _first(e: BaseException) -> BaseException:
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    return e
