"""QMP, the protocol by which QEMU is told things: JSON objects over a stream.

    qmp = Qmp(stream)                    nursery.start_soon(qmp.run)
    await qmp.ready()                    once QEMU greeted and took what was asked of it at once
    await qmp.execute("stop")            what it returned; Refused has QEMU's own words
    await qmp.event("RESUME", "STOP")    the next event of these names
    await qmp.raw(b'{"execute": ...}')   one command as somebody wrote it, one answer as QEMU gave it

Commands may be sent before QEMU reads anything: `begin` sends the first ones with the capabilities, so a
machine that starts still goes on without another turn between the two processes. An answer has the number
of its command; what comes with a number that nobody waits for is dropped, as of a call that was cancelled.

Only a machine's own owner may have this protocol: whoever speaks it can read and write files as QEMU can.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import trio
from warren.tree import Refused

LONGEST: Final = 1 << 20  # bytes of one message, either way
PATIENCE: Final = 10.0
KEPT: Final = 64  # events


class Event(NamedTuple):
    """Something that happened to the machine, and when QEMU says it did, in seconds since the epoch."""

    name: str
    data: dict[str, Any]
    time: float


class Qmp:
    """One conversation. `run` must run beside; when it ends, every call is refused."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.version = ""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self.seen = 0  # events, also those no longer kept
        self.ended = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._ready = trio.Event()
        self._news = trio.lowlevel.ParkingLot()
        self._sending = trio.Lock()
        self._first: list[int] = []

    async def begin(self, *commands: str) -> None:
        """Ask for the protocol, and at once for COMMANDS. Their failure shows in `ready`."""
        lines = []
        for command in ("qmp_capabilities", *commands):
            self._first.append(number := next(self._numbers))
            self._waiting[number] = trio.Event()
            lines.append(_line({"execute": command, "id": number}))
        await self._send(b"".join(lines))

    async def ready(self) -> None:
        """Return once all of `begin` is done. Raises Refused if QEMU ended, or said no."""
        for number in self._first:
            result(await self._answer(number))
        self._first = []

    async def execute(self, command: str, patience: float = PATIENCE, **arguments: Any) -> Any:
        """Do one command. Cancelled: it was done, or not."""
        return result(await self._ask(spelt(command, arguments), patience))

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
                raise _gone()
            await self._news.park()

    async def run(self) -> None:
        """Take what QEMU sends, until it ends."""
        rest = bytearray()
        try:
            while data := await self.stream.receive_some(65536):
                rest += data
                while (end := rest.find(b"\n")) >= 0:
                    line, rest = bytes(rest[:end]), rest[end + 1 :]
                    self._take(line)
                if len(rest) > LONGEST:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended = True
            for event in self._waiting.values():
                event.set()
            self._news.unpark_all()

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        if "QMP" in said:
            self.version = _version(said["QMP"])
        elif isinstance(said.get("event"), str):
            self.events.append(Event(said["event"], said.get("data") or {}, _time(said.get("timestamp"))))
            self.seen += 1
            self._news.unpark_all()
        elif (number := said.get("id")) in self._waiting:
            self._answers[number] = said
            self._waiting[number].set()

    async def _ask(self, asked: dict[str, Any], patience: float) -> dict[str, Any]:
        number = next(self._numbers)
        self._waiting[number] = trio.Event()
        try:
            with trio.move_on_after(patience):
                await self._send(_line({**asked, "id": number}))
                return await self._answer(number)
        finally:
            self._waiting.pop(number, None)
            self._answers.pop(number, None)
        raise Refused(504, f"QEMU did not answer {asked['execute']!r} within {patience:g} s")

    async def _answer(self, number: int) -> dict[str, Any]:
        if not self.ended:
            await self._waiting[number].wait()
        self._waiting.pop(number, None)
        if (answer := self._answers.pop(number, None)) is None:
            raise _gone()
        return answer

    async def _send(self, data: bytes) -> None:
        # Whole lines only: half of one, left by somebody who was cancelled, would spoil the next.
        async with self._sending:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE) as scope:
                try:
                    await self.stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise _gone() from None
            if scope.cancelled_caught:
                raise Refused(504, f"QEMU takes no commands since {PATIENCE:g} s")


def _gone() -> Refused:
    return Refused(502, "QEMU has ended")


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


def _version(greeting: Any) -> str:
    try:
        found = greeting["version"]["qemu"]
        return ".".join(str(int(found[part])) for part in ("major", "minor", "micro"))
    except (KeyError, TypeError, ValueError):
        return "unknown"


def _time(stamp: Any) -> float:
    try:
        return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    except (KeyError, TypeError, ValueError):
        return math.nan
