"""A hundred machines made and ended in every way there is: nothing of them may be left.

They are real ones, of QEMU under its interpreter, in control groups of their own. Some are killed before
they have begun, some in the middle of their start, some when they are ready; of others the last holder goes,
or the guest ends by itself. Before and after, the processes, descriptors, groups and files are counted.
"""

import gc
import os
import random
from collections import Counter
from pathlib import Path

import trio
from warren.servers.vm.images import Built
from warren.servers.vm.limits import groups, leftovers
from warren.servers.vm.qemu import QemuBackend

from tests.boot.shim import built
from tests.servers.vm.place import House, Shelved, house
from tests.servers.vm.suite import children

MACHINES = 100
TOGETHER = 4
WAYS = ("exit", "kill", "let go", "stop", "at once", "starting", "starting", "snapshot")


def image(folder: Path) -> Built:
    files = {"kernel": folder / "standin.elf", "initrd": folder / "root.elf"}
    return Built("standin", "standin", "0" * 64, "standin-microvm", files, then="exit 0", stops="exit 0")


async def one(h: House, way: str, dice: random.Random, seen: Counter[str]) -> None:
    """A machine, from its clone to its end."""
    lines = ["image standin", "limit cpu=2 mem=400M wall=60s", *(["stay"] if way != "exit" else [])]
    async with h.machine(*lines) as (m, ctl):
        if way != "at once":
            await ctl.write(b"start\n")
        if way == "starting":
            await trio.sleep(dice.choice([0, 0.001, 0.01, 0.03, 0.06]))
        elif way not in ("at once", "exit"):
            await h.until(m, "ready")
        if way == "snapshot":
            await ctl.write(b"snapshot one\nrestore one\n")
        if way in ("kill", "stop", "starting", "at once"):
            await ctl.write(b"kill\n" if way != "stop" else b"stop\n")
        if way not in ("let go", "snapshot"):
            line = (await h.all_of(f"{m}/wait")).decode()
            seen[dict(word.split("=", 1) for word in line.split())["ended"]] += 1
    await h.gone(m)


async def test_nothing_is_left_of_a_hundred_machines(tmp_path: Path) -> None:
    where = groups()
    standin = image(built(tmp_path / "shim"))
    dice = random.Random(6)
    seen: Counter[str] = Counter()
    await trio.lowlevel.checkpoint()
    gc.collect()
    before = children(), set(os.listdir("/proc/self/fd"))
    async with house(tmp_path, QemuBackend("tcg"), images=Shelved(standin), where=where, patience=900) as h:
        ways = [WAYS[number % len(WAYS)] for number in range(MACHINES)]
        dice.shuffle(ways)
        limit = trio.CapacityLimiter(TOGETHER)

        async def turn(way: str) -> None:
            async with limit:
                await one(h, way, dice, seen)

        async with trio.open_nursery() as nursery:
            for way in ways:
                nursery.start_soon(turn, way)
        assert h.vm.made == MACHINES
        assert sum(h.vm.reasons.values()) == MACHINES
        assert set(h.vm.reasons) <= {"exit", "kill", "gone", "stop"}, h.vm.reasons
        assert not h.vm.machines
        assert list(h.folder.iterdir()) == []
        assert leftovers(where, h.vm.prefix) == []
        assert not [s for s in h.export.sessions if s.subject.startswith("vm/")]
    gc.collect()
    assert children() == before[0]
    assert len(os.listdir("/proc/self/fd")) <= len(before[1]) + 1
    assert seen["exit"] > 0
    assert seen["kill"] > 0
