"""/boot: images, whether they are what was signed, and how they boot.

    /ctl                 Ctl     verbs: run, measure, verify, cancel
    /images/<n>/         every image that there is a recipe for
        manifest         Text    what it was built from and what came out, as it was signed
        sig              Text    the signature of that
        elf              Text    what the validator finds in its kernel and its root task
        chain            Text    its files folded into one value: PCR = SHA256(PCR | SHA256(x))
        verify           Text    read it, and every file is held against the manifest now; all that there
                                 is of an image that is not built
    /last                Text    the newest run: run= state= verdict= total_ms= qemu_ms= fw_ms= kernel_ms= …
    /report              Text    all that is known of it: what the guest said, the chain, the log's end
    /measure             Text    the newest measurement: median_ms= p95_ms= instructions= and each stage
    /verify.log          Text    a line for each verification
    /events              Stream  queued, building, starting, booted, refused, error, verified, cancelled
    /stats /metrics      Text    counts

    $ echo run image=standin budget=200ms > /boot/ctl; cat /boot/last

**Verdicts.** `booted`: the guest was ready on the wire. `refused`: the validator, the firmware or a self-test
of the guest would not have it. `error`: all else, and a time-out always.

A boot takes as long as it takes: `run` and `measure` answer with a number at once, and `last` and `events`
say what becomes of it. One is done at a time, so that they do not spoil each other's times; `WAITING` may
wait, and more are refused (429). An image that is not built is built first. `keep` does the work; run it
beside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from warren.boot.harness.bench import Bench
from warren.boot.harness.gate import pins
from warren.boot.harness.outcome import Asked
from warren.servers.boot.images import ImagesDir
from warren.servers.boot.work import WAITING, Work, Works
from warren.tree import Ctl, Dir, Duration, Refused, Stream, Text, verb
from warren.tree.ports import Clock
from warren.tree.report import Count, attributes, counts, one

MOST_MEASURED: Final = 200
NONE: Final = Duration(0)
LONGEST: Final = 3600.0  # seconds: as long one run may have the bench for itself, as a recipe may say


class Boot(Dir):
    """The tree of one bench."""

    mode = 0o755

    def __init__(self, bench: Bench, clock: Clock) -> None:
        self.bench = bench
        self.works = Works(bench, clock)
        self.keep = self.works.keep
        super().__init__(
            {
                "ctl": BootCtl(self),
                "images": ImagesDir(bench.images),
                "last": Text(self._last),
                "report": Text(lambda: bench.read("report")),
                "measure": Text(lambda: bench.read("measure")),
                "verify.log": Text(lambda: bench.read("verify.log")),
                "events": Stream(self.works.events),
                **counts(self._counted),
            }
        )

    def _last(self) -> str:
        newest = self.works.newest
        if newest is None:
            return self.bench.read("last")
        return attributes(newest.values()) + (newest.said or "")

    def _counted(self) -> Iterable[Count]:
        works = self.works
        verdicts: dict[tuple[str, ...], float] = {(v,): n for v, n in sorted(works.verdicts.items())}
        yield Count("boot_runs", "boots, by what became of them", verdicts, ("verdict",))
        yield one("boot_waiting", "runs that wait for their turn", len(works.waiting), "gauge")
        yield one("boot_last_ms", "from QEMU's start to READY, of the newest", works.last_ms, "gauge")


class BootCtl(Ctl):
    """What an operator does here."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot

    @verb
    def run(
        self, image: str, *, budget: Duration = NONE, limit: Duration = NONE, recipe: str = "",
        accel: str = "", secure: bool = False,
    ) -> str:  # fmt: skip
        """Boot IMAGE once; with a budget, later than that is a gate that fell."""
        asked = _asked(budget, limit, recipe, accel, secure)
        return self._queue("run", image, asked)

    @verb
    def measure(
        self, image: str, runs: int = 20, *, budget: Duration = NONE, recipe: str = "", accel: str = ""
    ) -> str:
        """Boot IMAGE many times, and once more to count its instructions."""
        if not 1 <= runs <= MOST_MEASURED:
            raise Refused(400, f"runs is a number from 1 to {MOST_MEASURED}")
        return self._queue("measure", image, _asked(budget, NONE, recipe, accel, False), runs)

    @verb
    async def verify(self, image: str) -> str:
        """Hold every file of IMAGE against what was signed, and the ELFs against the validator."""
        found = await self.boot.bench.verify(self._known(image))
        self.boot.works.events.tell("verified", image=image, verdict="ok" if found.ok else "refused")
        if not found.ok:
            raise Refused(422, f"{image}: {'; '.join(found.faults)}")
        return found.line

    @verb
    def cancel(self, run: int) -> str:
        """Do not do RUN, or end it where it is."""
        return self.boot.works.cancel(run)

    def _known(self, image: str) -> str:
        if image not in (names := self.boot.bench.images.names()):
            raise Refused(404, f"there is no image {image!r}; there are {', '.join(names) or 'none'}")
        return image

    def _queue(self, kind: str, image: str, asked: Asked, runs: int = 1) -> str:
        known = self._known(image)
        pin = pins().get(known) if kind == "measure" else None
        return str(self.boot.works.add(Work(kind, known, asked, runs, pin)))


def _asked(budget: float, limit: float, recipe: str, accel: str, secure: bool) -> Asked:
    if not (0 <= budget <= LONGEST and 0 <= limit <= LONGEST):
        raise Refused(400, f"a time is from 0 to {LONGEST:g} s")
    asked = Asked(recipe, accel, float(budget), float(limit), secure)
    asked.check()
    return asked


__all__ = ["WAITING", "Boot"]
