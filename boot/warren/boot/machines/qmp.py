"""QMP, the protocol by which QEMU is told things: JSON objects over a socket.

    qmp = Qmp(end)                       nursery.start_soon(qmp.run)
    await qmp.ready()                    once QEMU has greeted and been greeted
    await qmp.execute("stop")            what it returned; Refused has QEMU's own words
    await qmp.event("RESUME", "STOP")    the next event of these names
    await qmp.raw(b'{"execute": ...}')   one command as somebody wrote it, one answer as QEMU gave it

The protocol is spoken by qemu.qmp, which QEMU's own project has made (see `client`); `lacking` says why it
cannot be, where that package is not installed. One command is under way at a time, as in QEMU itself. Whoever
is cancelled, or has waited too long, leaves the next one sound: what is answered then is dropped.

Only a machine's own owner may have this protocol: whoever speaks it can read and write files as QEMU can.
"""

from __future__ import annotations

import json
import math
import socket
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.boot.machines.client import Client
    from warren.tree.loop import Loop

LONGEST: Final = 1 << 20  # bytes of one message, either way
PATIENCE: Final = 10.0
GREETS: Final = 60.0  # seconds for QEMU to start
KEPT: Final = 64  # events
_GONE: Final = 502, "QEMU has ended"
_RUBBISH: Final = 502, "QEMU said what is no QMP, and is not heard any more"
_LACKING: Final = "qemu.qmp is not installed: pip install 'warren-9p[vm]'"


def lacking() -> str:
    """Why QEMU cannot be told anything; nothing if it can."""
    try:
        import_module("warren.boot.machines.client")
        import_module("warren.tree.loop")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] == "warren":
            raise
        return _LACKING
    return ""


class Event(NamedTuple):
    """Something that happened to the machine, and when QEMU says it did, in seconds since the epoch."""

    name: str
    data: dict[str, Any]
    time: float


class Qmp:
    """One conversation over END, a socket that it closes. `run` must run beside; every call ends with it."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self.version = ""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self.seen = 0  # events, also those no longer kept
        self._why = _GONE
        self._client: Client
        self._loop: Loop
        self._ready, self._over = trio.Event(), trio.Event()
        self._news = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    async def ready(self) -> None:
        """Return once QEMU can be told things. Raises Refused if it ended, or said no."""
        await self._ready.wait()
        if self.ended:
            raise self._gone()

    async def execute(self, command: str, patience: float = PATIENCE, **arguments: Any) -> Any:
        """Do one command. Cancelled: it was done, or not."""
        return result(await self._ask(spelt(command, arguments), patience))

    async def give(self, name: str, fd: int) -> None:
        """Give QEMU a copy of FD, which is NAME in the next command. Cancelled: it has it, or not."""
        result(await self._ask(spelt("getfd", {"fdname": name}), PATIENCE, fd))

    async def raw(self, command: bytes, patience: float = PATIENCE) -> bytes:
        """One command as it was written, and the whole answer. Refused if it is no command at all."""
        asked, theirs = parsed(command)
        return answered(await self._ask(asked, patience), theirs)

    async def event(self, *names: str, since: int | None = None) -> Event:
        """The next event of one of these NAMES; SINCE is a `seen` of before. Cancelled: nothing was taken."""
        at = self.seen if since is None else since
        while True:
            for event in list(self.events)[max(0, len(self.events) - (self.seen - at)) :]:
                if event.name in names:
                    return event
            at = self.seen
            if self.ended:
                raise self._gone()
            await self._news.park()

    async def run(self) -> None:
        """Speak with QEMU, until it ends."""
        from warren.boot.machines.client import Client
        from warren.tree.loop import open_loop

        try:
            async with open_loop() as self._loop:
                self._client = Client(LONGEST, self._happened)
                try:
                    await self._converse()
                finally:
                    with trio.CancelScope(shield=True), trio.move_on_after(PATIENCE):
                        if not await self._loop.do(self._client.part):
                            self._why = _RUBBISH
        finally:
            self.end.close()
            self._over.set()
            self._ready.set()
            self._news.unpark_all()

    async def _converse(self) -> None:
        try:
            with trio.move_on_after(GREETS) as scope:
                self.version = _version(await self._loop.do(self._client.meet, self.end))
                self._ready.set()
                scope.deadline = math.inf
                await self._loop.do(self._client.lasts)
        except ConnectionError:
            return  # it has ended
        except ValueError:
            self._why = _RUBBISH
        if scope.cancelled_caught:
            self._why = 504, f"QEMU did not greet within {GREETS:g} s"

    def _happened(self, said: Mapping[str, Any]) -> None:
        if isinstance(name := said.get("event"), str):
            data = said.get("data")
            when = _time(said.get("timestamp"))
            self.events.append(Event(name, data if isinstance(data, dict) else {}, when))
            self.seen += 1
            self._news.unpark_all()

    async def _ask(self, asked: dict[str, Any], patience: float, fd: int = -1) -> Mapping[str, Any]:
        with trio.move_on_after(patience):
            async with self._turn:
                await self.ready()
                try:
                    return await self._loop.do(self._client.ask, asked, fd)
                except ConnectionError:
                    await self._over.wait()  # then it is known why
                    raise self._gone() from None
                except ValueError:
                    raise Refused(502, f"what QEMU answers to {asked['execute']!r} is no answer") from None
        raise Refused(504, f"QEMU did not answer {asked['execute']!r} within {patience:g} s")

    def _gone(self) -> Refused:
        return Refused(*self._why)


def parsed(command: bytes) -> tuple[dict[str, Any], Any]:
    """A command that somebody wrote, and the id that they gave it. Refused if it is none."""
    if len(command) > LONGEST:
        raise Refused(413, f"a command has at most {LONGEST} bytes")
    try:
        asked = json.loads(command)
    except (ValueError, RecursionError):
        raise Refused(400, 'a command is a JSON object, such as {"execute": "query-status"}') from None
    if not isinstance(asked, dict) or not isinstance(asked.get("execute"), str):
        raise Refused(400, 'a command names what to execute, such as {"execute": "query-status"}')
    try:
        json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        # Python reads more than QEMU does, and QEMU complains of it without saying who it was.
        raise Refused(400, "a command has numbers that are finite, and text that is Unicode") from None
    return asked, asked.pop("id", None)  # commands are numbered by whoever carries them


def answered(answer: Mapping[str, Any], theirs: Any) -> bytes:
    """An answer as a line, with the id of whoever asked."""
    said = {key: value for key, value in answer.items() if key != "id"}
    return _line(said if theirs is None else {**said, "id": theirs})


def spelt(command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A command of ours; QEMU's words have hyphens where Python's names have none."""
    words = {name.replace("_", "-"): value for name, value in arguments.items()}
    return {"execute": command, **({"arguments": words} if words else {})}


def result(answer: Mapping[str, Any]) -> Any:
    """What a command returned. Refused (502) has QEMU's words."""
    if (error := answer.get("error")) is not None:
        said = error.get("desc") if isinstance(error, dict) else None
        raise Refused(502, f"QEMU says: {said or error}")
    return answer.get("return")


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\r\n"


def _version(said: Mapping[str, Any]) -> str:
    try:
        found = said["qemu"]
        return ".".join(str(int(found[part])) for part in ("major", "minor", "micro"))
    except (KeyError, TypeError, ValueError):
        return "unknown"


def _time(stamp: Any) -> float:
    try:
        return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    except (KeyError, TypeError, ValueError):
        return math.nan
