"""Denials have a quota of their own, so that a flood of them leaves room for evidence of effects.

A denial is a line of its own while its subject had fewer than EACH in this second and the bucket of
all denials (BURST lines, RATE more each second) is not empty. Beyond that it is counted, by subject and
op, and when the second is over each counted subject is one line: `n=1207 Tlopen=1200 Twalk=7`. At most
SUBJECTS are named; the rest are one line with the subject `(others)`.
"""

from collections.abc import Callable, Iterator

from warren.traces.audit.lines import Event

DENIED = (401, 403)
EACH = 16
BURST = 256
RATE = 8
SUBJECTS = 16
OPS = 16
OTHERS = "(others)"  # no subject has parentheses
PATH = 1024


class Denials:
    """Which denials are written, and the counts of those that are not."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second = int(clock())
        self._left = BURST
        self._each: dict[str, int] = {}
        self._counts: dict[str, dict[str, int]] = {}

    def admit(self, event: Event) -> Event | None:
        """EVENT as it is to be written, or None: it was counted. Take `due` first."""
        had = self._each.get(event.subject, 0)
        if had < EACH and self._left > 0:
            self._left -= 1
            self._each[event.subject] = had + 1
            return event._replace(path=event.path[:PATH], detail=event.detail[:PATH])
        named = event.subject in self._counts or len(self._counts) < SUBJECTS
        ops = self._counts.setdefault(event.subject if named else OTHERS, {})
        op = event.op if event.op in ops or len(ops) < OPS else OTHERS
        ops[op] = ops.get(op, 0) + 1
        return None

    def due(self, *, now: bool = False) -> Iterator[Event]:
        """The counts of a second that is over; NOW also those of this one."""
        second = int(self._clock())
        if second == self._second and not now:
            return
        self._left = min(BURST, self._left + RATE * (second - self._second))
        self._second = second
        self._each.clear()
        counts, self._counts = self._counts, {}
        for subject, ops in counts.items():
            said = " ".join(f"{op}={n}" for op, n in sorted(ops.items(), key=lambda item: -item[1]))
            yield Event(0, subject, "denials", "", f"n={sum(ops.values())} {said}")
