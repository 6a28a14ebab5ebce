"""What is asked of the bench, and what comes of it.

    Asked(budget=0.2, accel="tcg")      what is left out is chosen
    outcome.well                        it booted, every time, and no gate fell
    outcome.last() outcome.text()       as /boot/last and /boot/report show it
    verification.line                   as /boot/verify.log does
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from warren.boot.harness.gate import Gate, Measured
from warren.boot.harness.harness import BOOTED, Report
from warren.boot.machines.recipe import ACCELERATORS, BadRecipe, Recipe, chosen, load
from warren.boot.secure.chain import Chain
from warren.tree import Refused
from warren.tree.report import attributes, pairs


@dataclass(frozen=True)
class Asked:
    """How an image is to be booted; what is empty is chosen."""

    recipe: str = ""
    accel: str = ""
    budget: float = 0.0  # seconds; 0: no gate
    limit: float = 0.0  # seconds until a run that is not ready is an error; 0: the recipe's
    secure: bool = False

    def check(self) -> None:
        """Refuse (400) a recipe or an accelerator that there is not."""
        if self.accel and self.accel not in ACCELERATORS:
            raise Refused(400, f"there is no accelerator {self.accel!r}; there are {', '.join(ACCELERATORS)}")
        if self.recipe:
            recipe_of(self.recipe)


@dataclass(frozen=True)
class Outcome:
    """What came of a run, or of many."""

    report: Report
    gates: tuple[Gate, ...] = ()
    chain: Chain = field(default_factory=Chain)
    runs: Measured | None = None
    extra: dict[str, object] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """It booted, every time, and no gate fell."""
        every = self.runs.reports if self.runs is not None else (self.report,)
        return all(r.verdict == BOOTED for r in every) and all(g.ok for g in self.gates)

    def last(self) -> dict[str, object]:
        """`/boot/last`."""
        fallen = "; ".join(str(g) for g in self.gates if not g.ok)
        said = {**self.report.values(), **self.extra}
        said |= {"pcr": self.chain.value.hex()} if self.chain.events else {}
        said |= {f"{g.name}_bound": g.bound for g in self.gates}
        return said | ({"gates": "fell" if fallen else "held"} if self.gates else {}) | (
            {"fell": fallen} if fallen else {}
        )  # fmt: skip

    def text(self) -> str:
        """`/boot/report`: the same, and all that is known besides."""
        parts = [attributes(self.last())]
        for title, values in (("guest", self.report.said), ("image", self.report.facts)):
            if values:
                parts.append(f"\n# {title}\n{attributes(values)}")
        if self.chain.events:
            parts.append(f"\n# measured\n{self.chain.text()}")
        parts.append(f"\n# log\n{_quoted(self.report.log)}")
        return "".join(parts)


class Verification(NamedTuple):
    """Whether an image is what was signed."""

    image: str
    ok: bool
    faults: tuple[str, ...]
    value: str  # of its chain

    @property
    def line(self) -> str:
        verdict = "ok" if self.ok else "refused"
        reason = {"reason": "; ".join(self.faults)} if self.faults else {}
        return pairs({"image": self.image, "verdict": verdict, "pcr": self.value, **reason})


def recipe_of(name: str = "", kind: str = "") -> Recipe:
    """The recipe of that name, or the one for that kind of image. Refused (400) if there is none."""
    try:
        return load(name) if name else chosen(kind)
    except BadRecipe as e:
        raise Refused(400, "; ".join(e.errors)) from None


def _quoted(log: str) -> str:
    """A log as part of a text: what it says stays on its own lines and is printable."""
    lines = log.replace("\r", "").splitlines()
    return "".join("".join(c if c.isprintable() else "?" for c in line) + "\n" for line in lines)
