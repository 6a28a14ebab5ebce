"""Clients that come, work, break off and come again, for SOAK_MINUTES: nothing may be left behind.

A real server process is used by clients that read, write, park reads, drop connections in mid-frame and
take locks. Every few seconds its descriptors and memory are looked at; at the end it must hold as many
descriptors as at the beginning, no session and no fid, and every operation must have been answered.
"""

import os
import random
import re
import subprocess
import time
from pathlib import Path

import trio
from warren.mount import dial

from tests.sources import ROOT

MINUTES = float(os.environ.get("SOAK_MINUTES", "5"))
CLIENTS = 24


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


async def works(at: str, number: int, until: float, done: list[int]) -> None:
    """One client after another, each of which does something else and leaves in another way."""
    dice = random.Random(number)
    while time.monotonic() < until:
        with trio.move_on_after(dice.choice([0.01, 0.5, 5.0])):
            async with dial(at, deadline=20) as files:
                for _ in range(dice.randrange(1, 30)):
                    name = f"/file-{number}-{dice.randrange(4)}"
                    body = dice.randbytes(dice.choice([0, 10, 5000, 300_000]))
                    await files.write(name, body, create=True)
                    assert await files.read(name) == body
                    async with await files.open(name, os.O_RDWR) as file:
                        await file.lock(0, 10)
                    if dice.random() < 0.3:
                        await files.remove(name)
                    done[0] += 1


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    sock = tmp_path / "sock"
    command = [str(ROOT / ".venv/bin/warren"), "serve", "disk", str(tmp_path / "served")]
    command += ["--listen", f"unix!{sock}", "--allow", "local rw,create,remove /**"]
    command += ["--audit", str(tmp_path / "audit")]
    server = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    assert server.stderr
    assert b"listening" in await server.stderr.receive_some()
    at, done = f"unix!{sock}", [0]
    try:
        async with dial(at) as files:
            await files.ls("/")
            before, until = descriptors(server.pid), time.monotonic() + MINUTES * 60
            least = 0
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    nursery.start_soon(works, at, number, until, done)
                await trio.sleep(MINUTES * 30)
                least = resident(server.pid)
            with trio.fail_after(30):
                while descriptors(server.pid) > before:
                    await files.ls("/")
            grown = resident(server.pid) - least
        print(f"{done[0]} rounds; {before} descriptors; memory grew by {grown} KiB in the second half")
        assert done[0] > 100
        assert grown < 20_000
    finally:
        server.terminate()
        with trio.fail_after(10):
            assert await server.wait() == 0
        await server.stderr.aclose()
