"""Gates: what a boot may cost, each named for what it measures.

    wall        milliseconds of this host from QEMU's start to READY; of many runs, the 95th percentile
    instructions    what the guest executed until READY, by QEMU's count

A wall time says what a user waits for, and is as noisy as the host. The count is the same every time, on any
host with the same QEMU, but it is no time: a slow device or a wait does not show in it. So there are two.

    measured = Measured(reports)
    wall(measured.p95, 200.0)                   Gate(name="wall", value, bound, ok)
    instructions(count, pins()["standin"])      fails where the count rose by more than `RISE`

`pinned.toml` holds the counts that were found, and the hash of the inputs that the image was made from.
Whoever makes the image better, or has a reason to make it worse, writes the new count there:

    [standin]
    recipe = "standin-microvm"
    instructions = 123456
    inputs = "64 hexadecimal digits"
    qemu = "7.2.22"
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, NamedTuple

from warren.boot.harness.harness import BOOTED, STAGES, Report

RISE: Final = 0.05
PINNED: Final = "pinned.toml"


class Gate(NamedTuple):
    """One bound and what was held against it."""

    name: str
    value: float
    bound: float
    ok: bool

    def __str__(self) -> str:
        says = "within" if self.ok else "over"
        return f"{self.name} {self.value:g} is {says} {self.bound:g}"


class Pin(NamedTuple):
    """A count as it was found once."""

    recipe: str
    instructions: int
    inputs: str
    qemu: str = ""


def wall(ms: float, budget_ms: float) -> Gate:
    """The wall time gate. What never got ready is over every budget."""
    value = ms if math.isfinite(ms) else math.inf
    return Gate("wall", round(value, 1), budget_ms, value <= budget_ms)


def instructions(count: int | None, pin: Pin) -> Gate:
    """The instruction count gate. What did not count is over it."""
    bound, value = math.floor(pin.instructions * (1 + RISE)), math.inf if count is None else count
    return Gate("instructions", value, bound, value <= bound)


def pins(text: str | None = None) -> dict[str, Pin]:
    """The counts that are pinned, by image. ValueError for a file that is wrong."""
    said = tomllib.loads((files("warren.boot.harness") / PINNED).read_text() if text is None else text)
    found: dict[str, Pin] = {}
    for image, entry in said.items():
        try:
            found[image] = Pin(**entry)
        except TypeError as e:
            raise ValueError(f"{PINNED}: {image}: {e}") from None
        count = found[image].instructions
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{PINNED}: {image}: instructions is a number from 1 on, not {count!r}")
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of VALUES that at least SHARE of them do not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


class Spread(NamedTuple):
    """Times of many runs, in milliseconds."""

    median: float
    p95: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(math.nan, math.nan, math.nan, math.nan)
        return cls(statistics.median(values), percentile(values, 0.95), min(values), max(values))


class Measured:
    """Many runs of one image. A run that did not boot has no time, and is told."""

    def __init__(self, reports: Sequence[Report], counted: Report | None = None) -> None:
        self.reports = tuple(reports)
        self.counted = counted
        self.booted = tuple(r for r in reports if r.verdict == BOOTED)

    @property
    def instructions(self) -> int | None:
        return self.counted.instructions if self.counted else None

    @property
    def total(self) -> Spread:
        return Spread.of([r.total_ms for r in self.booted])

    def stage(self, name: str) -> Spread:
        """The times of one stage, of those runs that reached its end."""
        return Spread.of([r.stages[name] for r in self.booted if name in r.stages])

    def document(self) -> dict[str, object]:
        """For JSON: numbers that are not known are null."""
        first = self.reports[0]
        total = self.total
        return {
            "image": first.image, "recipe": first.recipe, "accel": first.accel,
            "runs": len(self.reports), "booted": len(self.booted),
            "median_ms": _known(total.median), "p95_ms": _known(total.p95),
            "min_ms": _known(total.least), "max_ms": _known(total.most),
            "stages": {
                name: {"median_ms": _known(s.median), "p95_ms": _known(s.p95)}
                for name in STAGES if (s := self.stage(name))
            },
            "instructions": self.instructions,
            "instructions_by_stage": dict(self.counted.counts) if self.counted else {},
            "reasons": sorted({f"{r.verdict}: {r.reason}" for r in self.reports if r.verdict != BOOTED}),
        }  # fmt: skip

    def values(self) -> dict[str, object]:
        """For a file of `key=value` lines: numbers that are not known are left out."""
        said = self.document()
        stages, counts, reasons = (said.pop(key) for key in ("stages", "instructions_by_stage", "reasons"))
        assert isinstance(stages, dict)
        assert isinstance(counts, dict)
        assert isinstance(reasons, list)
        for name, spread in stages.items():
            said |= {f"{name[:-3]}_{key}": value for key, value in spread.items()}
        said |= {f"{name}_instructions": count for name, count in counts.items()}
        said |= {f"reason{number}": reason for number, reason in enumerate(reasons, 1)}
        return {key: value for key, value in said.items() if value is not None}


def _known(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None
