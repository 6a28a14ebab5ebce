"""The trace ring: the newest operations and every recent error, in memory.

An entry of a success is the bare tuple the session hands over (time, session, the message's class,
path, 0); it becomes text only when somebody looks. Errors are kept in a ring of their own, so that a
busy second of successes cannot push out the failure one is looking for. Both are bounded; `lost`
counts what was overwritten.
"""

from collections import deque
from typing import NamedTuple


class Entry(NamedTuple):
    """One operation. `code` is 0 for success, else as in the error's text."""

    time: float
    session: int
    op: str
    path: str
    code: int
    trace: int = 0
    text: str = ""

    def __str__(self) -> str:
        tail = f" trace={self.trace:016x}" if self.trace else ""
        said = f" {self.text}" if self.text else ""
        return f"{self.time:.6f} session={self.session} {self.op} {self.path} {self.code or 'ok'}{tail}{said}"


class TraceRing:
    """Successes and errors, each in a ring of its own."""

    def __init__(self, depth: int = 4096, errors: int = 4096) -> None:
        self.recent: deque[tuple[float, int, type, str, int]] = deque(maxlen=depth)
        self.errors: deque[Entry] = deque(maxlen=errors)
        self.failed = 0

    def fail(self, entry: Entry) -> None:
        """Keep an error."""
        self.failed += 1
        self.errors.append(entry)

    def entries(self) -> list[Entry]:
        """Everything kept, in order of time."""
        return sorted([Entry(t, s, op.__name__, p, c) for t, s, op, p, c in self.recent] + list(self.errors))

    def find(self, trace: int) -> Entry | None:
        """The error with that trace id, if it is still kept."""
        return next((e for e in reversed(self.errors) if e.trace == trace), None)

    @property
    def lost(self) -> int:
        """How many errors were overwritten."""
        return self.failed - len(self.errors)
