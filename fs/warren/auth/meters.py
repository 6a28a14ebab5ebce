"""Meters: what the rate and byte caveats of tokens have left, on this server.

A caveat counts against the block that states it, so all sessions under that block share one counter,
and whoever narrows a token further cannot start afresh. A counter lives until its block expires: to
forget it earlier would be to give its bytes a second time. Every holder can make blocks without end,
therefore each block 0 has room for so many counters and no more, and none is taken from another's.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from warren.auth.caveats import Meter

PER_ROOT = 256
IN_ALL = 65536


class NoRoom(Exception):
    """There are as many counters as may be; the token cannot be taken now."""


@dataclass
class _Counter:
    meter: Meter
    tokens: float
    at: float
    left: int

    def fill(self, now: float) -> None:
        if self.meter.rate is not None:
            # A clock that steps back gives nothing, and what follows is counted from where it stands.
            earned = max(0.0, now - self.at) * self.meter.rate[0]
            self.tokens = min(float(self.meter.rate[1]), self.tokens + earned)
            self.at = now


class Metered:
    """The counters of one session."""

    def __init__(self, counters: tuple[_Counter, ...]) -> None:
        self._counters = counters

    def take(self, now: float, size: int = 0) -> float:
        """Count one operation with SIZE bytes of file data against every counter, or against none.

        Returns 0 if it may go on; else after how many seconds it may be tried again, `inf` for never.
        """
        wait = 0.0
        for counter in self._counters:
            counter.fill(now)
            if counter.meter.rate is not None and counter.tokens < 1:
                wait = max(wait, (1 - counter.tokens) / counter.meter.rate[0])
            if counter.meter.bytes is not None and (size > counter.left or counter.left <= 0):
                return float("inf")
        if not wait:
            for counter in self._counters:
                counter.tokens -= 1
                counter.left -= size
        return wait

    def spend(self, size: int) -> None:
        """SIZE bytes were moved by an operation that was let in; they are gone even if that was too many."""
        for counter in self._counters:
            counter.left -= size


class Meters:
    """All counters of a server."""

    def __init__(self, *, per_root: int = PER_ROOT, in_all: int = IN_ALL) -> None:
        self._per_root, self._in_all = per_root, in_all
        self._counters: dict[bytes, _Counter] = {}
        self._roots: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counters)

    def of(self, meters: Iterable[Meter], now: float) -> Metered:
        """The counters for the meters of a verified token; NoRoom if there are too many."""
        meters = tuple(meters)
        new = [m for m in meters if m.block not in self._counters]
        if new and not self._room(new):
            self._forget(now)
            if not self._room(new):
                raise NoRoom
        for meter in new:
            burst = float(meter.rate[1]) if meter.rate else 0.0
            self._counters[meter.block] = _Counter(meter, burst, now, meter.bytes or 0)
            self._roots[meter.root] += 1
        return Metered(tuple(self._counters[meter.block] for meter in meters))

    def _room(self, new: list[Meter]) -> bool:
        mine = self._roots[new[0].root]
        return mine + len(new) <= self._per_root and len(self._counters) + len(new) <= self._in_all

    def _forget(self, now: float) -> None:
        for block, counter in list(self._counters.items()):
            if counter.meter.until <= now:
                del self._counters[block]
                self._roots[counter.meter.root] -= 1
        self._roots += Counter()  # drops the roots with none left
