"""Senders and receivers of a mailbox whose process is killed again and again; what came of it.

A sender repeats what was not answered, with the same idempotency key. A receiver acknowledges what it has
noted; what it noted twice is a duplicate, which at-least-once allows and this counts.
"""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from warren.mount import Files, dial

from tests.servers.mailbox.place import Got
from tests.sources import ROOT

T = "/mailbox/t"
SENDERS, RECEIVERS = 64, 64
BATCH, AT_ONCE = 25, 8  # messages sent, and received, together
PATIENCE = 60


@dataclass
class Outcome:
    """What was answered, by both sides."""

    sent: set[bytes] = field(default_factory=set)
    got: Counter[bytes] = field(default_factory=Counter)
    repeated: int = 0  # sends whose answer said dup=1: the first try had been done
    kills: int = 0


class Victim:
    """The serving process, which is started again whenever it was killed."""

    def __init__(self, folder: Path) -> None:
        self.command = [sys.executable, "-m", "tests.servers.mailbox.serving"]
        self.command += [str(folder / "store.db"), str(folder / "sock")]
        self.at = f"unix!{folder / 'sock'}"
        self.process: trio.Process | None = None

    async def start(self) -> None:
        self.process = await trio.lowlevel.open_process(
            self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        said = b""
        with trio.fail_after(PATIENCE):
            while not said.endswith(b"\n"):
                piece = await self.process.stdout.receive_some()
                assert piece, f"it ended with {await self.process.wait()} and said {said!r}"
                said += piece

    async def kill(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.process.kill()
        with trio.CancelScope(shield=True):
            await self.process.wait()
        await self.process.stdin.aclose()
        await self.process.stdout.aclose()


@asynccontextmanager
async def connected(victim: Victim) -> AsyncIterator[Files]:
    async with dial(victim.at, deadline=20) as files:
        yield files


async def sends(victim: Victim, outcome: Outcome, who: int, count: int) -> None:
    """COUNT messages, in batches; a batch that was not answered is sent again."""
    done = 0
    while done < count:
        try:
            async with connected(victim) as files:
                while done < count:
                    bodies = [b"%d-%d" % (who, n) for n in range(done, min(done + BATCH, count))]
                    parts = []
                    for nth, body in enumerate(bodies):
                        first = b"batch=%d " % len(bodies) if nth == 0 else b""
                        parts.append(first + b"idem=%s len=%d\n\n%s" % (body, len(body), body))
                    async with await files.open(f"{T}/send.h", os.O_RDWR) as file:
                        await file.write(b"".join(parts))
                        said = await file.pread(16_000, 0)
                    outcome.repeated += said.count(b"dup=1")
                    assert said.count(b"id=") == len(bodies)
                    outcome.sent.update(bodies)
                    done += len(bodies)
        except OSError as e:
            await pause(e)


async def receives(victim: Victim, outcome: Outcome, total: int) -> None:
    """Until everything was noted by somebody."""
    while len(outcome.got) < total:
        try:
            async with connected(victim) as files:
                while len(outcome.got) < total:
                    async with await files.open(f"{T}/recv", os.O_RDWR) as file:
                        await file.write(b"max=%d vis=2s wait=300ms" % AT_ONCE)
                        data = await file.read()
                    ids = []
                    while data:
                        got = Got(data)
                        ids.append(got.id)
                        outcome.got[got.body] += 1
                        data = got.rest
                    if ids:
                        await files.write(f"{T}/ack", "\n".join(ids).encode(), truncate=False)
        except OSError as e:
            await pause(e)


async def pause(e: OSError) -> None:
    """The process is gone, or it is busy, or a lease has run out: come again when others had their turn."""
    assert not isinstance(e, PermissionError), e
    for _ in range(50):
        await trio.lowlevel.checkpoint()


async def torment(folder: Path, total: int, kills: int, seed: int = 1) -> Outcome:
    """Send and receive TOTAL messages while the server is killed so often."""
    victim, outcome, dice = Victim(folder), Outcome(), random.Random(seed)
    await victim.start()
    try:
        async with connected(victim) as files:
            await files.mkdir(T)
            await files.write(f"{T}/ctl", b"set count=100000 attempts=1000", truncate=False)
        async with trio.open_nursery() as nursery:
            for who in range(SENDERS):
                nursery.start_soon(sends, victim, outcome, who, total // SENDERS)
            for _ in range(RECEIVERS):
                nursery.start_soon(receives, victim, outcome, total)
            for nth in range(kills):
                # Not by the clock: wherever the work stands by then.
                until = total * (nth + dice.random()) / (kills + 1)
                while len(outcome.got) < until:
                    await trio.lowlevel.checkpoint()
                await victim.kill()
                outcome.kills += 1
                await victim.start()
        async with connected(victim) as files:
            async with await files.open(f"{T}/recv", os.O_RDWR) as file:
                await file.write(b"wait=3s")
                assert not await file.read() or outcome.kills
    finally:
        await victim.kill()
    return outcome
