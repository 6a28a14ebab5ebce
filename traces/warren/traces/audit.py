"""The audit: who did what, written before it is done.

    event = Event(...)
    wait = audit.intent(event)       None: recorded. Else await it; a failure means: refuse the effect.
    audit.outcome(event, code)       synchronous, so that it can stand in a finally
    audit.note(event, code)          what needs no intent: a denial, the bytes of a closed fid

`AuditFile` appends one JSON line a record to DIR/audit.log (0600). A line is in the kernel before
`intent` returns and on the disk before the effect runs: intents that wait together share one
fdatasync. `AuditMemory` keeps the newest lines and promises nothing beyond the process.

A flood of denials is aggregated: beyond DENIALS a second they are counted, and the count is one line.
"""

import os
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import trio

DENIALS = 100


class Event(NamedTuple):
    """What is about to happen, or did."""

    session: int
    subject: str
    op: str
    path: str
    detail: str = ""
    trace: int = 0


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the audit log."""

    seq: int
    ts: float
    kind: str  # intent, outcome, note
    session: int
    subject: str
    op: str
    path: str
    detail: str = ""
    trace: str = ""
    of: int = 0  # the intent that this is the outcome of
    code: int = 0


class Audit(Protocol):
    """Where effects are recorded. `intent` returns a number for `outcome`, once recorded."""

    def intent(self, event: Event) -> "Recorded":
        """Record that EVENT is about to happen; OSError means it must not."""

    def outcome(self, intent: int, event: Event, code: int) -> None:
        """Record how it ended; 0 is success. Never waits and never raises."""

    def note(self, event: Event, code: int) -> None:
        """Record what needs no intent."""


class Recorded(NamedTuple):
    """An intent's number, and what to wait for before the effect (None: nothing)."""

    number: int
    wait: "Commit | None"


class Commit:
    """Lines up to a number are on the disk once this was waited for."""

    __slots__ = ("file", "number")

    def __init__(self, file: "AuditFile", number: int) -> None:
        self.file = file
        self.number = number

    async def durable(self) -> None:
        """Cancelled leaves the line recorded and the effect undone."""
        await self.file.commit(self.number)


class _Lines:
    """Numbering, and the aggregation of denials."""

    def __init__(self) -> None:
        self.seq = 0
        self._second = 0
        self._denied = 0
        self._dropped = 0

    def _write(self, line: Line) -> None:
        raise NotImplementedError

    def _line(self, kind: str, event: Event, of: int = 0, code: int = 0) -> Line:
        self.seq += 1
        trace = f"{event.trace:016x}" if event.trace else ""
        return Line(
            self.seq, time.time(), kind, event.session, event.subject, event.op, event.path, event.detail,
            trace, of, code,
        )  # fmt: skip

    def outcome(self, intent: int, event: Event, code: int) -> None:
        """Record how it ended."""
        self._write(self._line("outcome", event, intent, code))

    def note(self, event: Event, code: int) -> None:
        """Record what needs no intent."""
        if code in (401, 403):
            second = int(time.monotonic())
            if second != self._second:
                if self._dropped:
                    flood = Event(0, "", "denials", "", f"{self._dropped} more were not written one by one")
                    self._write(self._line("note", flood, code=403))
                self._second, self._denied, self._dropped = second, 0, 0
            self._denied += 1
            if self._denied > DENIALS:
                self._dropped += 1
                return
        self._write(self._line("note", event, code=code))


class AuditMemory(_Lines):
    """The newest lines, for servers without an audit directory."""

    def __init__(self, depth: int = 4096) -> None:
        super().__init__()
        self.lines: deque[Line] = deque(maxlen=depth)

    def _write(self, line: Line) -> None:
        self.lines.append(line)

    def intent(self, event: Event) -> Recorded:
        """Recorded at once."""
        self._write(self._line("intent", event))
        return Recorded(self.seq, None)


class AuditFile(_Lines):
    """A durable file of JSON lines."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(directory) / "audit.log"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.seq = self._resume()
        self._encode = msgspec.json.Encoder().encode
        self._synced = self.seq
        self._syncing = False
        self._turn = trio.lowlevel.ParkingLot()
        self.failed: OSError | None = None

    def _resume(self) -> int:
        """Continue the numbering of an earlier run; a torn last line is ended so that it stays apart."""
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, 65536, max(0, size - 65536))
        if tail and not tail.endswith(b"\n"):
            os.write(self._fd, b"\n")
        for raw in reversed(tail.split(b"\n")):
            try:
                return msgspec.json.decode(raw, type=Line).seq
            except msgspec.DecodeError:
                continue
        return 0

    def _write(self, line: Line) -> None:
        raw = self._encode(line) + b"\n"
        try:
            if os.write(self._fd, raw) != len(raw):
                raise OSError(28, "the audit line was cut short")
        except OSError as e:
            self.failed = e  # from here on every intent is refused: no effect without evidence

    def intent(self, event: Event) -> Recorded:
        """Recorded; wait for `wait.durable()` before the effect."""
        self._write(self._line("intent", event))
        if self.failed:
            raise self.failed
        return Recorded(self.seq, Commit(self, self.seq))

    async def commit(self, number: int) -> None:
        """Return once line NUMBER is on the disk. Whoever comes first syncs for all that wait."""
        while self._synced < number:
            if self._syncing:
                await self._turn.park()
                continue
            self._syncing, upto = True, self.seq
            try:
                await trio.to_thread.run_sync(os.fdatasync, self._fd)
                self._synced = upto
            except OSError as e:
                self.failed = e
                raise
            finally:
                self._syncing = False
                self._turn.unpark_all()
        if self.failed:
            raise self.failed

    def close(self) -> None:
        """Nothing can be recorded any more."""
        os.close(self._fd)
