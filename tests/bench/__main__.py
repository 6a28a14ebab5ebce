"""bench: the disk server beside Debian's diod, on one machine, in one run.

    python -m tests.bench [--rounds N] [--seconds S] [--only NAME,...] [--dir DIR]
                          [--detail] [--ceiling] [--json FILE]
                          [--subject NAME] [--against NAME]
    python -m tests.bench fuse ...          mounts instead: see `fuse --help`
    python -m tests.bench work ...          durable messages and blobs instead: see `work --help`

Both servers serve the same directory over TCP on 127.0.0.1, ours with policy,
trace and audit on. For each scenario they are loaded in turn, A B A B …, and
the best round of each counts: what disturbs a round only ever slows it. The
ratio is ours over diod's. It is judged, or where a unit stands by its bar our
figure itself:

    defect    worse than the floor, behind diod where that is a bar too, or a
              reply was wrong
    between   as good as the floor, not as the aim
    aim met

Scenarios (`--only` takes their names):

    getattr-32    getattr, 32 outstanding on one connection
    serial        getattr, one after the other
    orc-32        walk, open, read 4 KiB, clunk: 32 such chains outstanding
    read-64Kx8    sequential reads of 64 KiB, 8 outstanding
    write-1Mx1    sequential writes of 1 MiB, or of the msize if that is less
    write-1Mx4    the same, 4 outstanding
    conns-100     100 connections, one getattr outstanding on each
    idle          resident memory for each of 500 attached, idle connections,
                  after 50 others; a fresh server each round; judged in KiB

Under mutual TLS 1.3, beside diod behind Debian's stunnel, with one cipher suite
and one set of certificates:

    tls-getattr-32     as above, 32 outstanding on one connection
    tls-read-64Kx8     as above
    tls-read-1Mx4      sequential reads of 1 MiB, or less, 4 outstanding
    tls-handshakes     connect, handshake in full, version, attach, hang up;
                       one after the other
    tls-handshakes-8   the same, 8 at once

Beside ourselves under TLS, what a token costs:

    token-attach       attach on a connection that is there; with a token that is
                       Tauth, nonce, proof, Tattach. The median, judged in us
    token-getattr-32   getattr, by the rights of a token and by those of a policy
    token-read-64Kx8   reads, likewise

Every client asks for an msize of 1 MiB; a server that grants less is measured
with what it grants, less the 24 bytes that v9fs keeps for the header. diod
grants 64 KiB. The data lies in /dev/shm when there is room, else under
.cache/bench, or in `--dir`; the audit lies under .cache/bench, on a disk.

`--detail` adds latencies and the server's CPU time for an operation.
`--ceiling` adds what the generator reaches against a server that does no work.
`--subject` and `--against` choose the two sides among diod, warren and canned:
`--subject diod` shows the noise of the machine. Under TLS the sides are those
two behind stunnel, or ours under TLS; what a token costs has its own sides.
`--json` keeps every figure of
every round with a description of the machine.

Exit status: 0 every floor is met, 1 one is missed, 2 not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from . import fuse_mount, work
from .processes import SERVERS, BenchError, Room, Running

Figures = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    name: str
    load: tuple[str, ...]
    figure: str
    unit: str
    floor: float
    aim: float
    judged: str = "ratio"  # or by our figure itself: a "cost", the less the better, or a "rate"
    ahead: bool = False  # to be behind the other side is a defect, whatever the figure
    sides: str = "plain"  # or "tls", or "token"

    @property
    def idle(self) -> bool:
        return self.figure == "kib_per_connection"

    @property
    def cost(self) -> bool:
        return self.judged == "cost"

    def named(self, options: argparse.Namespace) -> tuple[str, str]:
        """The servers that are compared."""
        if self.sides == "token":
            return "warren-tls", "warren-token"
        suffix = "" if self.sides == "plain" else "-tls"
        return f"{options.against}{suffix}", f"{options.subject}{suffix}"


SCENARIOS = (
    Scenario("getattr-32", ("getattr", "32"), "ops_per_s", "op/s", 1.3, 2.5),
    Scenario("serial", ("serial",), "ops_per_s", "op/s", 0.6, 1.0),
    Scenario("orc-32", ("orc", "32"), "ops_per_s", "op/s", 1.0, 2.0),
    Scenario("read-64Kx8", ("read", "64K", "8"), "mb_per_s", "MB/s", 0.8, 1.2),
    Scenario("write-1Mx1", ("write", "1M", "1"), "mb_per_s", "MB/s", 0.8, 1.1),
    Scenario("write-1Mx4", ("write", "1M", "4"), "mb_per_s", "MB/s", 0.8, 1.1),
    Scenario("conns-100", ("conns", "100"), "ops_per_s", "op/s", 0.4, 0.9),
    Scenario("idle", ("idle", "500", "50"), "kib_per_connection", "KiB", 100, 20, "cost"),
    Scenario("tls-getattr-32", ("getattr", "32"), "ops_per_s", "op/s", 60e3, 100e3, "rate", True, "tls"),
    Scenario("tls-read-64Kx8", ("read", "64K", "8"), "mb_per_s", "MB/s", 300, 600, "rate", True, "tls"),
    Scenario("tls-read-1Mx4", ("read", "1M", "4"), "mb_per_s", "MB/s", 300, 600, "rate", True, "tls"),
    Scenario("tls-handshakes", ("shakes", "1"), "ops_per_s", "op/s", 200, 200, "rate", sides="tls"),
    Scenario("tls-handshakes-8", ("shakes", "8"), "ops_per_s", "op/s", 200, 200, "rate", sides="tls"),
    Scenario("token-attach", ("attach",), "p50_us", "us", 1000, 1000, "cost", sides="token"),
    Scenario("token-getattr-32", ("getattr", "32"), "ops_per_s", "op/s", 0.9, 0.97, sides="token"),
    Scenario("token-read-64Kx8", ("read", "64K", "8"), "mb_per_s", "MB/s", 0.9, 0.97, sides="token"),
)


@dataclass
class Result:
    """All rounds of one scenario on both sides."""

    scenario: Scenario
    against: list[Figures] = field(default_factory=list)
    subject: list[Figures] = field(default_factory=list)
    ceiling: Figures | None = None

    def best(self, rounds: list[Figures]) -> Figures:
        """The best round without an error; the best of all if each had one."""
        clean = [figures for figures in rounds if not figures["errors"]] or rounds
        best_of = min if self.scenario.cost else max
        return best_of(clean, key=lambda figures: float(figures[self.scenario.figure]))

    def value(self, rounds: list[Figures]) -> float:
        return float(self.best(rounds)[self.scenario.figure])

    @property
    def errors(self) -> list[str]:
        return [figures["first_error"] for figures in self.subject if figures["errors"]]

    @property
    def ratio(self) -> float:
        other = self.value(self.against)
        return self.value(self.subject) / other if other > 0 else float("nan")

    @property
    def verdict(self) -> str:
        scenario = self.scenario
        sign = -1 if scenario.cost else 1
        value = self.ratio if scenario.judged == "ratio" else self.value(self.subject)
        behind = scenario.ahead and not self.ratio > 1
        if self.errors or behind or not sign * value >= sign * scenario.floor:
            return "defect"
        return "aim met" if sign * value >= sign * scenario.aim else "between"


def measure(scenario: Scenario, room: Room, sides: Sequence[Running], rounds: int, seconds: float) -> Result:
    """Load the sides in turn. Memory is read of fresh servers: a used heap hides what a connection adds."""
    result = Result(scenario)
    for _ in range(rounds):
        for side, figures in zip(sides, (result.against, result.subject), strict=True):
            if scenario.idle:
                with Running(side.name, room) as fresh:
                    figures.append(fresh.load(scenario.load, seconds))
            else:
                figures.append(side.load(scenario.load, seconds))
    if all(figures["errors"] for figures in result.against):
        raise BenchError(
            f"{scenario.name}: no clean round of {sides[0].name}: {result.against[0]['first_error']}"
        )
    return result


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def heading(sides: tuple[str, str], options: argparse.Namespace) -> str:
    line = f"{'scenario':<17}{'unit':>5}{sides[0]:>13}{sides[1]:>13}"
    line += f"{'ratio':>8}{'floor':>8}{'aim':>8}  {'verdict':<8}"
    if options.ceiling:
        line += f"{'ceiling':>12}"
    if options.detail:
        line += "   p50/p99 us and server CPU us/op"
    return line


def bar(value: float, scenario: Scenario) -> str:
    return f"{value:g}x" if scenario.judged == "ratio" else f"{value:,.0f}"


def row(result: Result, options: argparse.Namespace) -> str:
    scenario = result.scenario
    line = (
        f"{scenario.name:<17}{scenario.unit:>5}{number(result.value(result.against)):>13}"
        f"{number(result.value(result.subject)):>13}{f'{result.ratio:.2f}':>8}"
        f"{bar(scenario.floor, scenario):>8}{bar(scenario.aim, scenario):>8}  {result.verdict:<8}"
    )
    if options.ceiling:
        line += f"{number(float(result.ceiling[scenario.figure])) if result.ceiling else '':>12}"
    if options.detail and not scenario.idle:
        rounds = zip(scenario.named(options), (result.against, result.subject), strict=True)
        line += "   " + ", ".join(f"{name} {detail(result.best(figures))}" for name, figures in rounds)
    return "\n".join([line, *(f"    wrong reply: {error}" for error in sorted(set(result.errors)))])


def detail(figures: Figures) -> str:
    each = 1e6 * figures["server_cpu_s"] / figures["ops"] if figures["ops"] else float("nan")
    return f"{figures['p50_us']:.0f}/{figures['p99_us']:.0f} {each:.1f}"


def package_version(name: str) -> str:
    query = ["dpkg-query", "-W", "-f", "${Version}", name]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "trio": metadata.version("trio"),
        "openssl": ssl.OPENSSL_VERSION,
        "diod": package_version("diod"),
        "stunnel": package_version("stunnel4"),
        "redis": package_version("redis-server"),
        "nats": package_version("nats-server"),
    }


def report(results: Sequence[Result], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": machine(),
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "dir": str(options.dir or "")},
        "scenarios": [
            asdict(result)
            | {
                "sides": result.scenario.named(options),
                "best": {"against": result.value(result.against), "subject": result.value(result.subject)},
                "ratio": result.ratio,
                "verdict": result.verdict,
            }
            for result in results
        ],
    }


def run(scenarios: Sequence[Scenario], options: argparse.Namespace) -> Iterator[Result]:
    """Scenarios with the same sides share their servers, one after another."""
    with ExitStack() as stack:
        secure = any(scenario.sides != "plain" for scenario in scenarios)
        room = stack.enter_context(Room.make(options.dir, secure))
        idle_server = stack.enter_context(Running("canned", room)) if options.ceiling else None
        for names, group in groupby(scenarios, lambda scenario: scenario.named(options)):
            with ExitStack() as both:
                sides = [both.enter_context(Running(name, room)) for name in names]
                for scenario in group:
                    result = measure(scenario, room, sides, options.rounds, options.seconds)
                    if idle_server and not scenario.idle and scenario.sides == "plain":
                        result.ceiling = idle_server.load(scenario.load, options.seconds)
                    yield result


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[Scenario]]:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--only", default="", metavar="NAME,...")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--detail", action="store_true")
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--subject", choices=sorted(SERVERS), default="warren")
    parser.add_argument("--against", choices=sorted(SERVERS), default="diod")
    options = parser.parse_args(arguments)
    names = {scenario.name for scenario in SCENARIOS}
    wanted = set(filter(None, options.only.split(","))) or names
    if unknown := wanted - names:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return options, [scenario for scenario in SCENARIOS if scenario.name in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["fuse"]:
        return fuse_mount.main(words[1:], machine)
    if words[:1] == ["work"]:
        return work.main(words[1:], machine)
    options, scenarios = parse(arguments)
    results: list[Result] = []
    try:
        sides = None
        for result in run(scenarios, options):
            if sides != (sides := result.scenario.named(options)):
                print(heading(sides, options), flush=True)
            print(row(result, options), flush=True)
            results.append(result)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if options.json and results:
            options.json.write_text(json.dumps(report(results, options), indent=1) + "\n")
    return 1 if any(result.verdict == "defect" for result in results) else 0


if __name__ == "__main__":
    # Ended by a time limit, the servers and the data must still go away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
