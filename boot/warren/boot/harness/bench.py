"""The bench: images by name, booted, measured and verified. `/boot` and `warren boot` do their work here.

    bench = Bench(images, serve, accelerators, folder)
    await bench.run("standin")                    Outcome: a report, its gates, the chain of what was booted
    await bench.measure("standin", 20)            Outcome of many runs, and of one that counts
    await bench.verify("linux")                   Verification: the signature, every file, every ELF

A missing image is built first. One that is not what was signed is refused before a machine starts; with
`secure` that is left to the firmware. What came of it is kept in the folder, and read there by whoever asks:

    last report measure       of the newest run, and of the newest measurement
    verify.log                a line for each verification, the newest `LINES`

What this machine keeps is the word of whoever may write there. It is no evidence for anybody else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio
from warren.boot.harness import gate, harness
from warren.boot.harness.gate import Gate, Measured, Pin
from warren.boot.harness.harness import Job, Report
from warren.boot.harness.outcome import Asked, Outcome, Verification, recipe_of
from warren.boot.harness.prepare import judged, measured, prepare
from warren.boot.images.shelf import Image, Shelf
from warren.boot.machines.accel import INTERPRETER, Accelerators
from warren.boot.machines.qemu import Boots
from warren.boot.machines.recipe import Recipe
from warren.boot.secure.chain import Chain
from warren.boot.sel4 import kernel as sel4
from warren.tree import Node, Refused
from warren.tree.report import attributes

MOST_RUNS: Final = 1000
LINES: Final = 1000
WRITTEN: Final = ("last", "report", "measure", "verify.log")

AS_IT_IS: Final = Asked()

Serve = Callable[[trio.abc.Stream, str, Node], Awaitable[None]]
Tell = Callable[..., object]


def silent(kind: str, **said: object) -> None:
    """Nobody wants to know how it goes."""


class Bench:
    """One place where images are booted. It does one thing at a time only if it is asked so."""

    def __init__(
        self, images: Shelf, serve: Serve, accelerators: Accelerators, folder: Path,
        secure: Callable[[Image, Recipe, Path], Job] | None = None,
    ) -> None:  # fmt: skip
        self.images, self.serve, self.accelerators = images, serve, accelerators
        self.folder = folder
        self.secure = secure
        self.number = 0

    # What there is to be done

    async def run(self, name: str, asked: Asked = AS_IT_IS, tell: Tell = silent) -> Outcome:
        """Boot an image once. Cancelled leaves no machine, and the files of the run before."""
        image = await self._image(name, tell)
        async with self._job(image, asked, tell) as (job, accel):
            report = await self._boot(job, accel, asked, tell)
        outcome = Outcome(report, _walls(report.total_ms, asked), await self._chain(image))
        self._keep(last=attributes(outcome.last()), report=outcome.text())
        return outcome

    async def measure(
        self, name: str, runs: int, asked: Asked = AS_IT_IS, tell: Tell = silent,
        pin: Pin | None = None,
    ) -> Outcome:  # fmt: skip
        """Boot an image many times, and once more to count its instructions where that can be done."""
        if not 1 <= runs <= MOST_RUNS:
            raise Refused(400, f"an image is measured by 1 to {MOST_RUNS} runs")
        image = await self._image(name, tell)
        reports: list[Report] = []
        counted: Report | None = None
        async with self._job(image, asked, tell) as (job, accel):
            for _ in range(runs):
                reports.append(await self._boot(job, accel, asked, tell))
            if accel == INTERPRETER and job.recipe.exits and not job.refusal:
                counted = await self._boot(job, accel, asked, tell, counted=True)
        every = Measured(reports, counted)
        gates = _walls(every.total.p95, asked)
        if pin is not None and counted is not None and pin.recipe == counted.recipe:
            gates += (gate.instructions(every.instructions, pin),)
        outcome = Outcome(reports[-1], gates, await self._chain(image), every)
        said = every.values() | {f"{g.name}_bound": g.bound for g in gates}
        said |= {"gates": "held" if all(g.ok for g in gates) else "fell"} if gates else {}
        self._keep(last=attributes(outcome.last()), report=outcome.text(), measure=attributes(said))
        return outcome

    async def genuine(
        self, kernel: Path | None, sdk: Path | None, asked: Asked = AS_IT_IS, tell: Tell = silent
    ) -> Outcome:
        """Boot the root task on a kernel that somebody brought. Cancelled leaves no machine."""
        if kernel is None:
            raise Refused(400, "no kernel is part of Warren; give yours")
        image = await self._image("standin", tell)
        recipe = recipe_of(asked.recipe, "sel4")
        accel = await self.accelerators.choose(recipe, asked.accel)
        with self._place() as place:
            root = image.files["root"].read_bytes()
            made = await trio.to_thread.run_sync(sel4.prepare, kernel, sdk, root, place, accel)
            facts = {key: str(value) for key, value in made.facts.items()}
            boots = Boots(made.kernel, made.initrd)
            job = Job("sel4", recipe, boots, cpu=made.cpu, folder=place, facts=facts)
            report = await self._boot(job, accel, asked, tell)
        outcome = Outcome(report, _walls(report.total_ms, asked))
        self._keep(last=attributes(outcome.last()), report=outcome.text())
        return outcome

    async def verify(self, name: str) -> Verification:
        """Look at every file of a built image. Refused (404) if it was never built."""
        image = await trio.to_thread.run_sync(self.images.latest, name)
        if image is None:
            raise Refused(404, f"{name} is not built; warren image build {name}")
        checked = await trio.to_thread.run_sync(self.images.verify, image)
        faults = list(checked.faults)
        if checked.ok and "root" in image.files:
            kernel, root = image.files["kernel"].read_bytes(), image.files["root"].read_bytes()
            faults += filter(None, [judged(kernel, root)])
        value = (await self._chain(image)).value.hex()
        found = Verification(name, not faults and checked.ok, tuple(faults), value)
        self._log(found.line)
        return found

    def read(self, name: str) -> str:
        """One of `WRITTEN`, as it is now."""
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return ""

    # How it is done

    async def _image(self, name: str, tell: Tell) -> Image:
        if (found := await trio.to_thread.run_sync(self.images.find, name)) is not None:
            return found
        tell("building", image=name)

        def progress(said: str) -> None:
            tell("building", image=name, says=said)

        return await self.images.build(name, progress)

    @asynccontextmanager
    async def _job(self, image: Image, asked: Asked, tell: Tell) -> AsyncIterator[tuple[Job, str]]:
        """What to boot, in a folder of its own that goes with the block, and the accelerator for it."""
        recipe = recipe_of(asked.recipe, "secure" if asked.secure else image.kind)
        accel = await self.accelerators.choose(recipe, asked.accel)
        with self._place() as place:
            if asked.secure:
                if self.secure is None:
                    raise Refused(405, "there are no keys for Secure Boot here")
                job = await trio.to_thread.run_sync(self.secure, image, recipe, place)
            else:
                job = await trio.to_thread.run_sync(prepare, image, recipe, place)
                job = replace(job, refusal=job.refusal or await self._unsound(image))
            yield job, accel

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """A folder of one machine's own, which goes with the block; those of processes that died go too."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in self.folder.glob("run-*"):
            if not Path("/proc", other.name.split("-")[1]).exists():
                shutil.rmtree(other, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=self.folder))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    async def _unsound(self, image: Image) -> str:
        checked = await trio.to_thread.run_sync(self.images.verify, image)
        return "" if checked.ok else f"it is not what was signed: {'; '.join(checked.faults)}"

    async def _boot(self, job: Job, accel: str, asked: Asked, tell: Tell, counted: bool = False) -> Report:
        self.number += 1
        subject = f"vm/boot-{self.number}"
        tell("starting", image=job.image, recipe=job.recipe.name, accel=accel, counted=counted)

        async def serve(channel: trio.abc.Stream, own: Node) -> None:
            await self.serve(channel, subject, own)

        report = await harness.run(job, serve, accel=accel, limit=asked.limit, counted=counted)
        tell(report.verdict, **{k: v for k, v in report.values().items() if k != "verdict"})
        return report

    async def _chain(self, image: Image) -> Chain:
        return await trio.to_thread.run_sync(measured, image)

    def _keep(self, **files: str) -> None:
        for name, text in files.items():
            self._write(name, text)

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.folder / f".{name}.{os.getpid()}"
        fresh.write_text(text)
        os.replace(fresh, self.folder / name)

    def _log(self, line: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        kept = self.read("verify.log").splitlines()[-(LINES - 1) :]
        self._write("verify.log", "".join(f"{said}\n" for said in [*kept, f"ts={now} {line}"]))


def _walls(ms: float, asked: Asked) -> tuple[Gate, ...]:
    return (gate.wall(ms, asked.budget * 1000),) if asked.budget else ()
