"""Ten thousand files with hard links through a mount, and an hour's worth of small work if asked.

SOAK_MINUTES says for how long the second goes on.
"""

import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fuse.mounts import EVERYTHING, Mount, mounted
from tests.fuse.test_work import grow, picture
from tests.shell.running import serving, socket_in

MINUTES = float(os.environ.get("SOAK_MINUTES", "5"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    folder = tmp_path / "served"
    folder.mkdir()
    with ExitStack() as up:
        served = up.enter_context(serving("disk", str(folder), *socket_in(tmp_path), *EVERYTHING))
        yield up.enter_context(mounted(served.at, tmp_path / "mnt", folder=folder))


def test_ten_thousand_files_are_copied_with_their_links(disk: Mount, tmp_path: Path) -> None:
    grow(tmp_path / "many", 10_000, random.Random(1))
    wanted = picture(tmp_path / "many")
    for there, back in ((disk.at / "copy", tmp_path / "back"),):
        subprocess.run(["cp", "-a", tmp_path / "many", there], check=True)
        assert picture(there) == wanted
        subprocess.run(["cp", "-a", there, back], check=True)
        assert picture(back) == wanted


def resident(pid: int) -> int:
    """KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_a_mount_does_not_grow(disk: Mount) -> None:
    """The same names over and over, and new ones all the time: what is forgotten is given back."""
    until = time.monotonic() + MINUTES * 60
    dice, rounds, first = random.Random(3), 0, 0
    while time.monotonic() < until or rounds < 20:
        top = disk.at / f"round-{rounds}"
        grow(top, 100, dice)
        picture(top)
        subprocess.run(["rm", "-rf", top], check=True)
        rounds += 1
        if rounds == 10:
            first = resident(disk.process.pid)
    descriptors = len(os.listdir(f"/proc/{disk.process.pid}/fd"))
    grown = resident(disk.process.pid) - first
    print(f"{rounds} rounds; memory grew by {grown} KiB after the tenth; {descriptors} descriptors")
    assert grown < 20_000
    assert descriptors < 32
