"""/log: what happened in this role.

    /events                      Stream  the newest, one record a read: `seq= ts= kind= …`
    /events.log                  grows   the same lines, kept
    /events.log.1 …              the ones before it
    /audit                       grows   who did what, as the audit has it: a JSON object a line
    /net_trace_secure9p.log      grows   every denial: ts= actor= via= op= path= code= reason= trace=
    /net_trace_secure9p.log.1 …  the ones before it
    /ctl                         Ctl     verbs: note
    /metrics  /stats             Text    events by kind, denials by reason, crashes by service

A file that grows is for `tail -f` and `grep`; /events waits for the next record. Nobody writes any of
them: `note` adds an event, and says who noted it. The audit is evidence and chained; these logs are for
people, and they are bounded: a file that is full is rotated, and a flood of denials is counted by
subject once it is over EACH in a second (`n=1207 Tlopen=1200 …`).

A disk that is full harms nobody: lines are lost, which /stats counts and /events says once.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from warren.servers.log.lines import BOUND, KEPT, DiskLines, Growing, Lines, MemoryLines
from warren.traces.audit import Event
from warren.traces.audit.denials import Denials
from warren.traces.denial import Denial
from warren.tree import Caller, Ctl, Dir, File, Maybe, Node, Refused, Stream, verb
from warren.tree.node import QTAPPEND
from warren.tree.ports import Clock
from warren.tree.report import Count, Events, one, pairs
from warren.tree.report import counts as counted_in

EVENTS: Final = "events.log"
DENIED: Final = "net_trace_secure9p.log"
DEPTH: Final = 1024
NAMES: Final = 64  # kinds, reasons and services that are counted by name; the rest are OTHERS
OTHERS: Final = "(others)"
CRASHED: Final = "crashed"  # the event by which a supervisor tells of a service that ended by itself
SERVICE_CRASHED: Final = "ServiceCrashed"
_KEY: Final = re.compile(r"[a-z_][a-z0-9_]{0,31}")
_KIND: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_TAKEN: Final = frozenset(("seq", "ts", "kind", "by"))
_PAIRS, _LONG = 16, 1024


class Log(Dir):
    """The tree. `event` and `denied` are how the role itself writes; neither waits nor raises."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        clock: Clock,
        tell: Callable[[str], None] = lambda said: None,
        audit: Growing | None = None,
        bound: int = BOUND,
        kept: int = KEPT,
    ) -> None:
        self.clock = clock
        self.directory = Path(directory) if directory is not None else None
        self.kept = kept
        self._tell, self._bound = tell, bound
        self._files: dict[str, Lines] = {name: self._lines(name) for name in (EVENTS, DENIED)}
        self.ring = Events(clock.now, DEPTH)
        self.ring.seq = _sequence(self._files[EVENTS].newest())
        self.kinds: Counter[tuple[str, ...]] = Counter()
        self.reasons: Counter[tuple[str, ...]] = Counter()
        self.crashes: Counter[tuple[str, ...]] = Counter()
        self._flood = Denials(clock.monotonic)
        self._older: dict[str, Node] = {}
        super().__init__(
            {
                "events": Stream(self.ring),
                **{name: GrowingFile(lines) for name, lines in self._files.items()},
                **({"audit": GrowingFile(audit)} if audit is not None else {}),
                "ctl": LogCtl(self),
                **counted_in(self._counted),
            }
        )

    def _lines(self, name: str) -> Lines:
        if self.directory is None:
            return MemoryLines()
        return DiskLines(self.directory / name, bound=self._bound, kept=self.kept, tell=self._disk)

    # What the role writes

    def event(self, kind: str, **values: object) -> None:
        """Something happened."""
        _count(self.kinds, kind)
        if kind == CRASHED:
            _count(self.reasons, SERVICE_CRASHED)
            _count(self.crashes, str(values.get("service", "-")), str(values.get("reason", "-")))
        record = self.ring.tell(kind, **values)
        self._files[EVENTS].append(record[:-1].decode())

    def denied(self, denial: Denial) -> None:
        """Somebody was refused."""
        self.flush()
        _count(self.reasons, denial.reason)
        seen = Event(0, denial.actor, denial.op, denial.path)
        admitted = self._flood.admit(seen)
        if admitted is not None:
            self._deny(denial._asdict() | {"path": admitted.path, "trace": f"{denial.trace:016x}"})

    def flush(self, *, now: bool = False) -> None:
        """Write the counts of a flood that is over; NOW also those of this second."""
        for counted in self._flood.due(now=now):
            n, _, ops = counted.detail.partition(" ")
            self._deny({"actor": counted.subject, "op": counted.op, "n": n.removeprefix("n=")}, ops)

    def _deny(self, values: dict[str, object], ops: str = "") -> None:
        line = f"ts={self.clock.now():.3f} {pairs(values)}"
        self._files[DENIED].append(f"{line} {ops}" if ops else line)

    async def keep(self) -> None:
        """Write the counts of floods each second. Runs until cancelled, which leaves them for `close`."""
        while True:
            await self.clock.sleep_until(self.clock.monotonic() + 1)
            self.flush()

    def close(self) -> None:
        """Write what is left; nothing is written any more."""
        self.flush(now=True)
        for lines in self._files.values():
            lines.close()

    def _disk(self, said: str) -> None:
        """A file cannot be written, or can again. The event itself stays in memory: the disk is full."""
        self._tell(said)
        self.ring.tell("log", said=said)

    # The tree

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.entries.get(name) or self._predecessor(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        numbered = (f"{name}.{n}" for name in self._files for n in range(1, self.kept + 1))
        older = ((name, self._predecessor(name)) for name in numbered)
        return [*self.entries.items(), *((name, node) for name, node in older if node is not None)]

    def _predecessor(self, name: str) -> Node | None:
        stem, _, number = name.rpartition(".")
        lines = self._files.get(stem)
        if lines is None or not (number.isascii() and number.isdigit() and number == str(int(number))):
            return None
        if lines.older(int(number)) is None:
            return None
        if name not in self._older:
            self._older[name] = GrowingFile(_Older(lines, int(number)))
        return self._older[name]

    def _counted(self) -> Iterable[Count]:
        lost: dict[tuple[str, ...], float] = {(name,): lines.lost for name, lines in self._files.items()}
        failing: dict[tuple[str, ...], float] = {(n,): bool(lines.failed) for n, lines in self._files.items()}
        rejected = "denials by reason, and services that crashed"
        crashed, labels = "services that ended by themselves", ("service", "reason")
        return (
            Count("events_total", "events by kind", self.kinds, ("kind",)),
            Count("rejected_total", rejected, self.reasons, ("reason",)),
            Count("service_crashed_total", crashed, self.crashes, labels),
            Count("log_lost_total", "lines that could not be written", lost, ("file",)),
            Count("log_failing", "whether the file cannot be written now", failing, ("file",), "gauge"),
            one("log_seq", "the newest event", self.ring.seq, "gauge"),
        )


class GrowingFile(File):
    """A file that grows at its end, by nobody's write."""

    qtype = QTAPPEND

    def __init__(self, text: Growing) -> None:
        super().__init__(text.read_at, size=text.size)


class _Older:
    """A predecessor by its number: another file each time there was a rotation."""

    def __init__(self, lines: Lines, number: int) -> None:
        self.lines, self.number = lines, number

    def size(self) -> int:
        found = self.lines.older(self.number)
        return found.size() if found else 0

    def read_at(self, offset: int, count: int) -> bytes:
        found = self.lines.older(self.number)
        return found.read_at(offset, count) if found else b""


class LogCtl(Ctl):
    """How others add to the log."""

    def __init__(self, log: Log) -> None:
        self.log = log

    @verb
    def note(self, kind: str, *pairs: str, caller: Caller) -> None:
        """Add an event of this KIND, with key=value pairs of your own."""
        if not _KIND.fullmatch(kind):
            raise Refused(400, f"{kind!r} is no kind: a word of letters, digits and _ . -")
        if len(pairs) > _PAIRS or sum(map(len, pairs)) > _LONG:
            raise Refused(413, f"an event has at most {_PAIRS} pairs and {_LONG} characters")
        values: dict[str, object] = {}
        for pair in pairs:
            key, eq, value = pair.partition("=")
            if not eq or not _KEY.fullmatch(key):
                raise Refused(400, f"{pair!r} is not key=value")
            if key in _TAKEN or key in values:
                raise Refused(400, f"{key} is set already; choose another key")
            values[key] = value
        self.log.event(kind, **values, by=caller.subject)


def _count(counter: Counter[tuple[str, ...]], *name: str) -> None:
    """Count by name while there are few of them: whoever provokes a count may choose its name."""
    if name not in counter and len(counter) >= NAMES:
        name = (OTHERS,) * len(name)
    counter[name] += 1


def _sequence(line: str) -> int:
    """The number of an event, from its line."""
    found = re.match(r"seq=(\d{1,18}) ", line)
    return int(found[1]) if found else 0
