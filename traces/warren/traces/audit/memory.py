"""The audit of a server without a directory for it: the newest lines, and no promise."""

import time
from collections import deque
from collections.abc import Callable

from warren.traces.audit.denials import DENIED, Denials
from warren.traces.audit.lines import Event, Line, Recorded


class Sequence:
    """Numbering, and the quota of denials: what every audit has."""

    def __init__(self, clock: Callable[[], float], now: Callable[[], float] = time.time) -> None:
        self.seq = 0
        self._now = now
        self._denials = Denials(clock)

    def _write(self, line: Line) -> None:
        raise NotImplementedError

    def _line(self, kind: str, event: Event, of: int = 0, code: int = 0) -> Line:
        self.seq += 1
        trace = f"{event.trace:016x}" if event.trace else ""
        return Line(
            self.seq, self._now(), kind, event.session, event.subject, event.op, event.path, event.detail,
            trace, of, code,
        )  # fmt: skip

    def outcome(self, intent: int, event: Event, code: int) -> None:
        """Record how it ended."""
        self._write(self._line("outcome", event, intent, code))

    def note(self, event: Event, code: int) -> None:
        """Record what needs no intent."""
        if code in DENIED:
            self._write_counts()
            admitted = self._denials.admit(event)
            if admitted is None:
                return
            event = admitted
        self._write(self._line("note", event, code=code))

    def _write_counts(self, *, now: bool = False) -> None:
        for counted in self._denials.due(now=now):
            self._write(self._line("note", counted, code=403))


class AuditMemory(Sequence):
    """The newest lines."""

    def __init__(self, depth: int = 4096, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.lines: deque[Line] = deque(maxlen=depth)

    def _write(self, line: Line) -> None:
        self.lines.append(line)

    def intent(self, event: Event) -> Recorded:
        """Recorded at once."""
        self._write(self._line("intent", event))
        return Recorded(self.seq, None)
