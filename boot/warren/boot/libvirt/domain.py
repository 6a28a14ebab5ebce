"""One machine that libvirt knows: what can be done with it, and what happens to it.

    await domain.resume()                      and suspend reset shutdown destroy state
    await domain.monitor(b'{"execute": …}')    one command of QEMU's own, one answer
    await domain.happened("stopped")           a change in its life, and what libvirt calls the cause
    await domain.happened("RESET")             or one of the events of QEMU that are passed on

Made by `Host.create` (see `libvirt`), which makes the calls.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
from warren.boot.machines.qmp import answered, parsed, result, spelt
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.boot.libvirt.library import Host

KEPT: Final = 64  # events of one machine
# By their numbers, which are libvirt's ABI.
_LIFE: Final = (
    "defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "suspended", "crashed",
)  # fmt: skip
_STOPPED: Final = ("shut down", "destroyed", "crashed", "migrated", "saved", "failed", "a snapshot took over")
_STATES: Final = ("nothing", "running", "blocked", "paused", "shutting down", "off", "crashed", "suspended")


class Happened(NamedTuple):
    """A change in a machine's life. WHY is libvirt's word for the cause, if it has one. For an event of QEMU
    it is its data: JSON without a space, keys in order."""

    kind: str
    why: str = ""

    @classmethod
    def by(cls, event: int, detail: int) -> Happened:
        """From the numbers of libvirt."""
        kind = _word(_LIFE, event)
        return cls(kind, _word(_STOPPED, detail) if kind == "stopped" else "")


class Domain:
    """A machine that libvirt knows. Made by `Host.create`."""

    def __init__(self, host: Host, uuid: str) -> None:
        self.host, self.uuid = host, uuid
        self.known: Any = None  # libvirt's own object
        self.events: deque[Happened] = deque(maxlen=KEPT)
        self.seen = 0  # events, also those no longer kept
        self.stopped: Happened | None = None
        self._news = trio.lowlevel.ParkingLot()

    def take(self, what: Happened) -> None:
        """Something happened."""
        self.events.append(what)
        self.seen += 1
        if what.kind == "stopped":
            self.stopped = what
        self._news.unpark_all()

    async def happened(self, *kinds: str, since: int | None = None, has: str = "") -> Happened:
        """The next event of these KINDS, or the first after SINCE events, that has HAS in its cause. Refused
        (409) if the machine ends and that was not asked for. Cancelled means nothing was taken."""
        since = self.seen if since is None else since
        while True:
            new = min(self.seen - since, len(self.events))
            for event in list(self.events)[len(self.events) - new :]:
                if event.kind in kinds and has in event.why:
                    await trio.lowlevel.checkpoint()
                    return event
            if self.stopped and "stopped" not in kinds:
                raise Refused(409, "the machine has ended")
            await self._news.park()

    async def _do(self, what: str, *arguments: Any) -> Any:
        if self.known is None:
            raise Refused(409, "the machine has ended")
        return await self.host.call(what, getattr(self.known, what), *arguments)

    async def state(self) -> str:
        """A word. Cancelled has no effect."""
        return _word(_STATES, (await self._do("state"))[0])

    async def suspend(self) -> None:
        """The processors stand still. Cancelled: they do, or not."""
        await self._do("suspend")

    async def resume(self) -> None:
        """They go on. Cancelled: they do, or not."""
        await self._do("resume")

    async def reset(self) -> None:
        """Press the reset button. Cancelled: it was pressed, or not."""
        await self._do("reset", 0)

    async def shutdown(self) -> None:
        """Press the power button. Cancelled: it was pressed, or not."""
        await self._do("shutdown")

    async def destroy(self) -> None:
        """End it; ended already is no error. Not to be cancelled: when this returns libvirt has let go."""
        with trio.CancelScope(shield=True):
            try:
                if self.known is not None:
                    await self.host.thread(self.known.destroy, abandon=False)
            except Refused as e:
                if e.code != 409:
                    raise

    async def monitor(self, command: bytes) -> bytes:
        """A command of QEMU's own protocol and its answer, JSON both. Cancelled: it was done, or not."""
        asked, theirs = parsed(command)
        return answered(await self._asked(asked), theirs)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """As `monitor`, for us: what the command returned. Refused (502) has QEMU's words."""
        return result(await self._asked(spelt(command, arguments)))

    async def give(self, name: str, fd: int) -> None:
        """Give QEMU a copy of FD, which is NAME in the next command. Cancelled: it has it, or not."""
        if self.known is None:
            raise Refused(409, "the machine has ended")
        give = self.host.qemu.qemuMonitorCommandWithFiles
        asked = json.dumps(spelt("getfd", {"fdname": name}))
        said, _ = await self.host.call("getfd", give, self.known, asked, [fd], 0)
        result(json.loads(said))

    async def _asked(self, asked: dict[str, Any]) -> Any:
        if self.known is None:
            raise Refused(409, "the machine has ended")
        ask = self.host.qemu.qemuMonitorCommand
        return json.loads(await self.host.call(asked["execute"], ask, self.known, json.dumps(asked), 0))


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if 0 <= number < len(words) else f"unknown ({number})"


__all__ = ["Domain", "Happened"]
