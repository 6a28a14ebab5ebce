"""profile: where `warren serve disk` spends its time under one scenario of the bench.

    python -m tests.bench.profile [--how HOW] [--seconds S] [--top N] [--stacks FILE] SCENARIO

SCENARIO is a name of `python -m tests.bench --help`, except idle. HOW is:

    sample    (default) the main thread's stack at every tick of CPU time. It costs
              a few percent; time in C, system calls too, falls on the line that
              made the call.
    cprofile  every call counted, with heavy distortion: for call counts.
    py-spy    the same as sample, from outside, for all threads and through C
              extensions; wants `pip install py-spy`.

Printed: the load's figures, the functions with the most time of their own (self)
and with what they call (total), and the lines with the most of their own.
`--stacks` keeps the stacks of sample and py-spy in the collapsed form that
flame graph tools read. Run it as a module: as a script it would hide the
standard library's `profile`.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from .__main__ import SCENARIOS, Scenario
from .processes import BenchError, Room, Running, warren_arguments

TICK = 0.001
OURS = {"plain": "warren", "tls": "warren-tls", "token": "warren-token"}
Stacks = Counter[tuple[str, ...]]


def shortened(frame: str) -> str:
    """The frame with its path from the package's folder on: enough to find it, little enough to read."""
    name, bracket, path = frame.rpartition(" (")
    for root in ("/site-packages/", "/fs/", f"/lib/python3.{sys.version_info.minor}/"):
        if root in path:
            return f"{name} ({path.rsplit(root, 1)[1]}"
    return name + bracket + path


class Sampler:
    """Counts the stacks this process is in, in its main thread, by its own CPU time."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.stacks: Stacks = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self.tick)
        signal.setitimer(signal.ITIMER_PROF, TICK, TICK)

    def tick(self, _: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None and frame.f_code is not serve_profiled.__code__:
            code = frame.f_code
            stack.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})")
            frame = frame.f_back
        self.stacks[tuple(reversed(stack))] += 1

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines = [f"{';'.join(stack)} {count}\n" for stack, count in self.stacks.items()]
        self.out.write_text("".join(lines))


class Counting:
    """cProfile between the two signals."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.profile = cProfile.Profile()

    def start(self) -> None:
        self.profile.enable()

    def stop(self) -> None:
        self.profile.disable()
        self.profile.dump_stats(self.out)


def serve_profiled(how: str, out: Path, arguments: Sequence[str]) -> None:
    """In the server's process: run `warren`, profiled from SIGUSR1 to SIGUSR2, so without its start-up."""
    profiler: Sampler | Counting = Sampler(out.with_suffix(".part"))
    if how == "cprofile":
        profiler = Counting(out.with_suffix(".part"))

    def stop(*_: Any) -> None:
        profiler.stop()
        profiler.out.rename(out)

    signal.signal(signal.SIGUSR1, lambda *_: profiler.start())
    signal.signal(signal.SIGUSR2, stop)
    (entry,) = metadata.entry_points(group="console_scripts", name="warren")
    sys.argv = ["warren", *arguments]
    sys.exit(entry.load()())


def until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not happen within 20 s")
        time.sleep(0.02)


def profile_inside(scenario: Scenario, how: str, seconds: float, room: Room, out: Path) -> dict[str, Any]:
    def command(room: Room, port: int) -> list[str]:
        module = [
            sys.executable,
            "-m",
            "tests.bench.profile",
            "--inside",
            str(out),
            "--how",
            how,
            scenario.name,
        ]
        return [*module, *warren_arguments(room, port, name)]

    name = OURS[scenario.sides]
    with Running(name, room, command) as server:
        server.load(scenario.load, 0.3)
        server.process.send_signal(signal.SIGUSR1)
        figures = server.load(scenario.load, seconds)
        server.process.send_signal(signal.SIGUSR2)
        until(out.exists, "writing the profile")
    return figures


def profile_outside(scenario: Scenario, seconds: float, room: Room, out: Path) -> dict[str, Any]:
    beside = str(Path(sys.executable).parent)
    spy = shutil.which("py-spy", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if spy is None:
        raise BenchError("no py-spy: pip install py-spy")
    with Running(OURS[scenario.sides], room) as server:
        server.load(scenario.load, 0.3)
        pid, duration = str(server.process.pid), str(max(1, round(seconds)))
        record = [
            spy,
            "record",
            "-p",
            pid,
            "-d",
            duration,
            "-r",
            "500",
            "--native",
            "-f",
            "raw",
            "-o",
            str(out),
        ]
        with subprocess.Popen(
            record, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as recorder:
            figures = server.load(scenario.load, seconds + 1)
            _, said = recorder.communicate(timeout=60)
        if not out.exists():
            raise BenchError(f"py-spy: {said.strip()}")
    return figures


def read_stacks(path: Path) -> Stacks:
    stacks: Stacks = Counter()
    for line in path.read_text().splitlines():
        frames, count = line.rsplit(" ", 1)
        stacks[tuple(map(shortened, frames.split(";")))] += int(count)
    return stacks


def function(frame: str) -> str:
    """The frame without its line number."""
    head, colon, line = frame.rpartition(":")
    return f"{head})" if colon and line.rstrip(")").isdigit() else frame


def show_stacks(stacks: Stacks, top: int) -> None:
    samples = stacks.total()
    if not samples:
        raise BenchError("no samples: was the server idle?")
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for stack, count in stacks.items():
        own[function(stack[-1])] += count
        lines[stack[-1]] += count
        for name in {function(frame) for frame in stack}:
            total[name] += count
    print(f"{samples} samples\n\n{'self':>7}{'total':>8}  function")
    for name, count in own.most_common(top):
        print(f"{count / samples:>7.1%}{total[name] / samples:>8.1%}  {name}")
    print(f"\n{'total':>7}{'self':>8}  function")
    for name, count in total.most_common(top):
        print(f"{count / samples:>7.1%}{own[name] / samples:>8.1%}  {name}")
    print(f"\n{'self':>7}  line")
    for name, count in lines.most_common(top):
        print(f"{count / samples:>7.1%}  {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--how", choices=["sample", "cprofile", "py-spy"], default="sample")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--stacks", type=Path, metavar="FILE")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    scenarios = {scenario.name: scenario for scenario in SCENARIOS if not scenario.idle}
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        serve_profiled(options.how, options.inside, options.words)
    scenario = scenarios[options.scenario]
    try:
        with Room.make(secure=scenario.sides != "plain") as room:
            out = room.kept / "profile"
            if options.how == "py-spy":
                figures = profile_outside(scenario, options.seconds, room, out)
            else:
                figures = profile_inside(scenario, options.how, options.seconds, room, out)
            each = 1e6 * figures["server_cpu_s"] / max(1, figures["ops"])
            print(
                f"{scenario.name}: {figures[scenario.figure]:,.0f} {scenario.unit} under the profiler, ",
                end="",
            )
            print(f"{each:.1f} us of server CPU each, {figures['errors']} errors {figures['first_error']}")
            if options.how == "cprofile":
                pstats.Stats(str(out)).sort_stats("tottime").print_stats(options.top)
                return 0
            show_stacks(read_stacks(out), options.top)
            if options.stacks:
                shutil.copyfile(out, options.stacks)
    except BenchError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
