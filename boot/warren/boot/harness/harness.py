"""The boot harness: an image on a machine, and one of three verdicts.

    report = await run(Job("standin", recipe, boots), serve)

    booted     the guest wrote `state=ready` to its /proc/boot: it is ready on the wire
    refused    something would not have it: a validator here, the firmware, or a self-test of the guest
    error      everything else. A time-out is always an error, and so is a machine that ends without a word

**Stages.** Marks cut the time from QEMU's start to READY in four:

    qemu_ms      to the first instruction of the machine, by QEMU's own word
    fw_ms        to the first byte on the first serial line, which is the kernel's
    kernel_ms    to the first byte on the channel, which is the first process's
    user_ms      to `state=ready`

A stage that was not reached has no time. Of a kernel that says nothing on that line the second stage and
the third are not told apart: `kernel_ms` is both, and there is no `fw_ms`. Times are of this host, whatever
else it is doing meanwhile.

**Instructions.** With `counted`, time in the guest is the number of its instructions (`-icount shift=0`),
so a guest that reads its time-stamp counter counts them. It reports `tsc.ready`, the count at READY, and
`tsc.waited`, what of that it spent waiting for us; the difference is the same in every run of the same image,
but for the few instructions of a tick of its clock or of one more wait. It is no time, and is never called
so.

`serve` gives a tree on a channel to somebody with all rights in it, until the channel ends; this package
knows no protocol. After READY the guest is told `then`, and is to end; one that goes on is an error too.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from warren.boot.machines.guest import Guest
from warren.boot.machines.qemu import Boots, Qemu
from warren.boot.machines.recipe import Recipe
from warren.tree import Node, Refused
from warren.tree.report import legible

BOOTED, REFUSED, ERROR = "booted", "refused", "error"
STAGES: Final = ("qemu_ms", "fw_ms", "kernel_ms", "user_ms")
WELL: Final = 0x2A << 1 | 1  # what QEMU ends with when the debug-exit device was given 0x2a
FAILED: Final = 0x2B << 1 | 1
TAIL: Final = 64 << 10  # bytes of the log that are kept
ENDING: Final = 5.0

Serve = Callable[[trio.abc.Stream, Node], Awaitable[None]]


@dataclass(frozen=True)
class Job:
    """What is booted, on what. `seen` reads the serial line of a machine whose firmware may refuse."""

    image: str
    recipe: Recipe
    boots: Boots
    cpu: str = ""
    then: str = "exit 0"
    role: str = ""
    signature: str = ""
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    seen: Callable[[bytes], str | None] = lambda serial: None
    folder: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # what is known of the image, for its report
    refusal: str = ""  # why it must not be started at all
    ending: float = ENDING  # seconds to end in, after being told


@dataclass(frozen=True)
class Report:
    """What came of one run."""

    image: str
    verdict: str
    reason: str
    recipe: str = ""
    accel: str = ""
    total_ms: float = math.nan
    stages: Mapping[str, float] = field(default_factory=dict)
    exit: int | None = None
    instructions: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)  # of instructions, by stage
    said: Mapping[str, str] = field(default_factory=dict)  # by the guest, in /proc/boot
    facts: Mapping[str, str] = field(default_factory=dict)
    log: str = ""
    code: int = 0  # of the class of what went wrong, as in `tree.errors`; 0: nothing did

    def values(self) -> dict[str, object]:
        """As `last` shows it: what is not known is left out."""
        known: dict[str, object] = {"image": self.image, "verdict": self.verdict}
        known |= {"reason": self.reason} if self.reason else {}
        known |= {"recipe": self.recipe} if self.recipe else {}
        known |= {"accel": self.accel} if self.accel else {}
        known |= {"total_ms": round(self.total_ms, 1)} if math.isfinite(self.total_ms) else {}
        known |= {name: round(self.stages[name], 1) for name in STAGES if name in self.stages}
        known |= {"exit": self.exit} if self.exit is not None else {}
        known |= {"instructions": self.instructions} if self.instructions is not None else {}
        return known


async def run(
    job: Job, serve: Serve, *, accel: str = "tcg", limit: float = 0, counted: bool = False,
    heard: Callable[[bytes], None] = lambda data: None,
) -> Report:  # fmt: skip
    """Boot it once. HEARD gets the log as it comes. Cancelled leaves no machine."""
    if job.refusal:
        return Report(job.image, REFUSED, job.refusal, job.recipe.name, facts=job.facts, code=403)
    going = _Run(job, serve, heard)
    patience = limit or job.recipe.limit
    try:
        with trio.move_on_after(patience) as scope:
            async with Qemu.started(
                job.recipe, job.boots, accel=accel, name=job.image, cpu=job.cpu, counted=counted,
                folder=job.folder,
            ) as q:  # fmt: skip
                await going.follow(q)
    except Refused as e:
        going.decide(ERROR, e.detail, e.code)
    if scope.cancelled_caught:
        late = "it did not end when it was told to" if going.ready else "it was not ready"
        going.decide(ERROR, f"{late} within {patience:g} s{going.last_words()}", 504)
    return going.report(accel, counted)


class _Run:
    """A machine from its start to its verdict."""

    def __init__(self, job: Job, serve: Serve, heard: Callable[[bytes], None]) -> None:
        self.job, self.serve, self.heard = job, serve, heard
        self.guest = Guest(
            role=job.role, signature=job.signature, inputs=job.inputs, on_report=self._reported
        )
        self.verdict, self.reason, self.code = "", "", 0
        self.exit: int | None = None
        self.log = bytearray()
        self.marks: dict[str, float] = {}
        self.begun = math.nan
        self._decided, self._quiet = trio.Event(), trio.Event()

    @property
    def ready(self) -> bool:
        return self.guest.ready.is_set()

    def decide(self, verdict: str, reason: str = "", code: int = 0) -> None:
        """The first verdict is the verdict."""
        if not self.verdict:
            self.verdict, self.reason = verdict, legible(reason)
            self.code = code or {BOOTED: 0, REFUSED: 403}.get(verdict, 500)
        self._decided.set()

    async def follow(self, q: Qemu) -> None:
        self.begun = q.begun
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._started, q)
            nursery.start_soon(self._listen, q)
            nursery.start_soon(self._serve, _Noticed(q.channel, lambda: self._mark("user")))
            nursery.start_soon(self._ended, q)
            nursery.start_soon(self._told)
            await self._decided.wait()
            nursery.cancel_scope.cancel()

    def _mark(self, name: str) -> None:
        self.marks.setdefault(name, trio.current_time())

    async def _started(self, q: Qemu) -> None:
        # QEMU's clock is the wall's. It is read for a difference of milliseconds, and a step of the clock
        # between the two readings shows as a time that cannot be.
        try:
            event = await q.qmp.event("RESUME", since=0)
        except Refused:
            return  # it ended at once, and `_ended` says so
        if 0 <= (took := event.time - q.begun_wall) <= trio.current_time() - q.begun:
            self.marks["machine"] = q.begun + took

    async def _listen(self, q: Qemu) -> None:
        try:
            while data := await q.console.receive_some(65536):
                self._mark("kernel")
                self.log += data
                del self.log[:-TAIL]
                self.heard(bytes(data))
                if self.job.seen(bytes(self.log)) == REFUSED:
                    self.decide(REFUSED, f"the firmware does not have it{self.last_words()}")
        except trio.BrokenResourceError:
            pass
        self._quiet.set()

    async def _serve(self, channel: trio.abc.Stream) -> None:
        try:
            await self.serve(channel, self.guest)
        except OSError as e:
            self.decide(ERROR, f"its channel could not be served: {e.strerror or e}")

    def _reported(self, said: Mapping[str, str]) -> None:
        if self.ready:
            self._mark("ready")
        if said.get("state") == "refused":
            self.decide(REFUSED, said.get("reason") or "the guest says so")
        if said.get("state") == "ended" and self.ready and not self.job.recipe.exits:
            # Where there is no button to end the machine with, this word is all that there will be.
            if (code := said.get("code", "0")) == "0":
                self.decide(BOOTED)
            else:
                self.decide(ERROR, f"the guest ended with {code}")

    async def _told(self) -> None:
        await self.guest.ready.wait()
        if not self.job.then:
            self.decide(BOOTED)
            return
        self.guest.tell(self.job.then)
        await trio.sleep(patience := self.job.ending)
        self.decide(ERROR, f"it was ready, and did not end within {patience:g} s of being told to", 504)

    async def _ended(self, q: Qemu) -> None:
        self.exit = status = await q.wait()
        with trio.move_on_after(1):
            await self._quiet.wait()
        well = status == (WELL if self.job.recipe.exits else 0)
        if self.ready and well:
            self.decide(BOOTED)
        elif status == FAILED and self.job.recipe.exits:
            self.decide(REFUSED, f"a self-test failed{self.last_words()}")
        else:
            when = "ready, and then ended" if self.ready else "ended before it was ready"
            how = f"signal {-status}" if status < 0 else f"status {status}"
            said = f": {q.said.splitlines()[-1]}" if q.said else ""
            self.decide(ERROR, f"{when}, {how}{said}{self.last_words()}")

    def last_words(self) -> str:
        """The last line of the log, as the end of a sentence."""
        said = self.log.decode("utf-8", "replace").strip().splitlines()
        return f"; the log ends with: {said[-1].strip()[:200]}" if said else "; the log is empty"

    def _counts(self) -> dict[str, int]:
        """The instructions of each stage of the guest, as far as it told them."""
        # What is longer than a counter is no count, and no float either.
        said = {
            key: word for key, word in self.guest.report.items()
            if word.isascii() and word.isdecimal() and int(word) < 1 << 64
        }  # fmt: skip
        if not {"tsc.ready", "tsc.waited"} <= said.keys():
            return {}
        kernel, root = int(said.get("tsc.kernel", "0")), int(said.get("tsc.root", "0"))
        user = int(said["tsc.ready"]) - int(said["tsc.waited"]) - root
        return {"fw": kernel, "kernel": root - kernel, "user": user}

    def report(self, accel: str, counted: bool) -> Report:
        marks = {"begun": self.begun, **self.marks}
        if {"kernel", "user"} <= marks.keys():  # both may be noticed in one turn, in either order
            marks["kernel"] = min(marks["kernel"], marks["user"])
        stages, at = {}, "begun"
        for stage, end in zip(STAGES, ("machine", "kernel", "user", "ready"), strict=True):
            if end in marks:
                stages[stage], at = (marks[end] - marks[at]) * 1000, end
        counts = self._counts() if counted else {}
        return Report(
            self.job.image, self.verdict, self.reason, self.job.recipe.name, accel,
            (marks.get("ready", math.nan) - self.begun) * 1000, stages, self.exit,
            sum(counts.values()) if counts else None, counts,
            dict(self.guest.report), self.job.facts, self.log.decode("utf-8", "replace"),
            self.code,
        )  # fmt: skip


class _Noticed(trio.abc.Stream):
    """A channel whose first bytes are noticed."""

    def __init__(self, stream: trio.abc.Stream, notice: Callable[[], None]) -> None:
        self.stream, self.notice = stream, notice

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        if data:
            self.notice()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()
