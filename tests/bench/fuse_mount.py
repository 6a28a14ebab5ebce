"""bench fuse: `warren mount` beside mfusepy, over the same disk server and the same files, in one run.

    python -m tests.bench fuse [--rounds N] [--seconds S] [--only LOAD,...] [--json FILE]

Sides, in turn each round, every one on a fresh mount:

    warren    warren mount
    bridged   mfusepy that answers from the same server by the native client, through trio.from_thread
    here      mfusepy that answers from the folder itself, in its own process: no 9P, no server

Loads (see `fuse_load`): cold, stat, orc in operations a second; read, write in MB/s. Figures are medians of
the rounds. A ratio is ours over theirs in the same round: its median, and in brackets the least and the
greatest. The floor is to be ahead of `bridged`; the aim, for all but cold, is two thirds of `here`.

Exit status: 0 every floor is met, 1 one is missed, 2 not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from .fuse_load import BLOCK, COLD, LOADS
from .processes import PATIENCE, BenchError, Room, warren_serving

AIM = 1 / 1.5
HERE = Path(__file__).parent
Found = dict[str, list[float]]
Side = Callable[[str, Room, Path], list[str]]


def warren(address: str, room: Room, at: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("warren")), "mount", address, str(at), "--foreground"]


def bridged(address: str, room: Room, at: Path) -> list[str]:
    return [sys.executable, "-m", "tests.bench.fuse_bridge", address, str(at)]


def here(address: str, room: Room, at: Path) -> list[str]:
    return [sys.executable, "-m", "tests.bench.fuse_bridge", "--here", str(room.data), str(at)]


SIDES: dict[str, Side] = {"warren": warren, "bridged": bridged, "here": here}


def mounted(at: Path) -> bool:
    return any(line.split()[1] == str(at) for line in Path("/proc/self/mounts").read_text().splitlines())


def until_mounted(at: Path, process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not mounted(at):
        if process.poll() is not None or time.monotonic() > deadline:
            said = out.read_text(errors="replace").strip().splitlines()[-3:]
            raise BenchError(f"nothing is mounted on {at}: {'; '.join(said)}")
        time.sleep(0.01)


@contextmanager
def mount(name: str, address: str, room: Room) -> Iterator[Path]:
    """A fresh mount of one side."""
    at, out = room.kept / "mnt", room.kept / f"{name}.out"
    at.mkdir(exist_ok=True)
    with out.open("wb") as said:
        process = subprocess.Popen(
            SIDES[name](address, room, at), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            cwd=HERE.parent.parent,
        )  # fmt: skip
    try:
        until_mounted(at, process, out)
        yield at
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if mounted(at):
            subprocess.run(["umount", "-l", str(at)], check=False)


def load(name: str, at: Path, seconds: float) -> float:
    """Operations a second, or MB/s."""
    done = subprocess.run(
        [sys.executable, "-IS", str(HERE / "fuse_load.py"), name, str(at), str(seconds)],
        capture_output=True, text=True, timeout=seconds + 60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures["mb_per_s" if name in ("read", "write") else "per_s"]


def measured(room: Room, names: Sequence[str], rounds: int, seconds: float) -> dict[str, Found]:
    """Of each load, what each side reached in each round."""
    many = room.data / "many"
    many.mkdir()
    for n in range(COLD):
        (many / f"{n:05}").write_bytes(bytes(BLOCK))
    found: dict[str, Found] = {name: {side: [] for side in SIDES} for name in names}
    with warren_serving(room) as address:
        for n in range(rounds):
            for side in [*SIDES][:: (1, -1)[n % 2]]:
                with mount(side, address, room) as at:
                    # First what the kernel has not seen: the other loads make it known.
                    for name in sorted(names, key=lambda name: name != "cold"):
                        found[name][side].append(load(name, at, seconds))
    return found


def ratios(found: Found, other: str) -> tuple[float, float, float]:
    """Ours over theirs, round by round: median, least, greatest."""
    each = [ours / theirs for ours, theirs in zip(found["warren"], found[other], strict=True)]
    return median(each), min(each), max(each)


def verdict(name: str, found: Found) -> str:
    if ratios(found, "bridged")[0] <= 1:
        return "defect"
    return "between" if name != "cold" and ratios(found, "here")[0] < AIM else "aim met"


def row(name: str, found: Found) -> str:
    unit = "MB/s" if name in ("read", "write") else "op/s"
    figures = " ".join(f"{median(found[side]):>9,.0f}" for side in ("bridged", "warren", "here"))
    text = [f"{middle:6.2f} [{least:.2f} {most:.2f}]" for middle, least, most in
            (ratios(found, "bridged"), ratios(found, "here"))]  # fmt: skip
    return f"{name:<6} {unit:>5} {figures}  {text[0]:<20} {text[1]:<20} {verdict(name, found)}"


def main(arguments: Sequence[str], machine: Callable[[], dict[str, Any]]) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="bench fuse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", metavar="LOAD,...")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    names = list(filter(None, options.only.split(","))) or list(LOADS)
    if unknown := set(names) - set(LOADS):
        parser.error(f"no load {', '.join(sorted(unknown))}; there are {', '.join(LOADS)}")
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    try:
        with Room.make() as room:
            found = measured(room, names, options.rounds, options.seconds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{'load':<12} {'bridged':>9} {'warren':>9} {'here':>9}  {'over bridged':<20} {'over here':<20}")
    for name in names:
        print(row(name, found[name]))
    if options.json:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "cores": os.cpu_count()}
        document = {"machine": machine(), "settings": settings, "loads": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(verdict(name, found[name]) == "defect" for name in names) else 0
