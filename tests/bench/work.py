"""bench work: durable messages beside Redis and JetStream, and what storage gives, in one run.

    python -m tests.bench work [--rounds N] [--seconds S] [--writers N] [--only PART,...] [--dir DIR]
                               [--json FILE]

The part `sends`: 64 writers in one Python process, each sending a message of 100 bytes and waiting for the
answer; then 64 readers, each receiving one message and acknowledging it. Sides, in turn each round:

    warren     /mailbox of a queen that `warren up` started: SQLite, fsynced before the answer; one connection
    warren-64  the same, with a connection for each writer
    sdk        the same through `warren.mount.sdk`, each message with its idempotency key; it sends together
               what is sent at the same time, as nats-py does
    redis      a stream with `appendfsync always`, asked through redis-py
    bare       the same, asked by a client that does almost nothing: what redis-py costs; no bar is set by it
    jetstream  file storage, synchronous publishes through nats-py: acknowledged, not fsynced

The part `blobs`: /storage of the same queen, with 16 readers who open a blob of 4 MiB, wait for its first
bytes, and read the rest; then one reader, beside `warren serve disk` with the same bytes. Both from memory.

Figures are medians of the rounds, and stand beside the least and the greatest. A ratio is ours over theirs in
the same round: its median. Everything lies on a disk, below .cache/bench or --dir, and what an fsync costs
there is measured before and after: a busy disk slows those most who wait for it.

Exit status: 0 every bar is met, 1 one is missed, 2 not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import trio
from warren.mount import dial

from . import work_servers
from .processes import CACHE, BenchError
from .work_load import MIB, Figures

ROOT = Path(__file__).parent.parent.parent
SIDES = ("warren", "warren-64", "sdk", "redis", "bare", "jetstream")
READERS = 16
BLOBS, BLOB, LONG = 8, 4 * MIB, 64 * MIB
PARTS = ("sends", "blobs")
Found = dict[str, list[Figures]]


class Bar(NamedTuple):
    """What a figure is to be: of one side, or ours over another's in the same round."""

    says: str
    side: str
    figure: str
    floor: float
    aim: float
    over: str = ""
    most: bool = False  # it is not to be more than this

    def value(self, found: Found) -> float:
        ours = [figures[self.figure] for figures in found[self.side]]
        if not self.over:
            return median(ours)
        theirs = [figures[self.figure] for figures in found[self.over]]
        return median(one / other for one, other in zip(ours, theirs, strict=True))

    def verdict(self, found: Found) -> str:
        sign = -1 if self.most else 1
        value = sign * self.value(found)
        if not value >= sign * self.floor:
            return "missed"
        return "ok, aim met" if value >= sign * self.aim else "ok"


BARS = {
    "sends": (
        Bar("durable sends over a Redis stream, fsync always", "sdk", "send_per_s", 0.6, 1.5, "redis"),
        Bar("the same, one write a message", "warren", "send_per_s", 0.6, 1.5, "redis"),
        Bar("durable sends over JetStream, which does not fsync", "sdk", "send_per_s", 1, 1, "jetstream"),
        Bar("p99 of a durable send, ms", "sdk", "send_p99_ms", 20, 20, most=True),
        Bar("the same, one write a message", "warren", "send_p99_ms", 20, 20, most=True),
    ),
    "blobs": (
        Bar("first byte of a blob, 16 readers, p95 in ms", "storage-16", "first_p95_ms", 100, 100, most=True),
        Bar("sequential read of a blob over servers/disk", "storage", "mb_per_s", 0.8, 0.8, "disk"),
    ),
}


def load(*words: object) -> Figures:
    """What one client process measured."""
    command = [sys.executable, "-m", "tests.bench.work_load", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BenchError(f"{words[0]}: {last[0]}")
    figures: Figures = json.loads(done.stdout)
    return figures


def in_turn(sides: Sequence[str], rounds: int) -> Iterator[str]:
    """Every side once a round, and each round in the other direction."""
    for n in range(rounds):
        yield from sides[:: (1, -1)[n % 2]]


def sends(queen: str, folder: Path, options: argparse.Namespace) -> Found:
    found: Found = {side: [] for side in SIDES}
    with work_servers.redis(folder) as redis, work_servers.jetstream(folder) as jetstream:
        how: dict[str, tuple[object, ...]] = {
            "warren": ("warren", queen, options.writers, options.seconds, 1),
            "warren-64": ("warren", queen, options.writers, options.seconds, options.writers),
            "sdk": ("sdk", queen, options.writers, options.seconds),
            "redis": ("redis", redis, options.writers, options.seconds),
            "bare": ("bare", redis, options.writers, options.seconds),
            "jetstream": ("jetstream", jetstream, options.writers, options.seconds),
        }
        for side in in_turn(SIDES, options.rounds):
            found[side].append(load(*how[side]))
    return found


async def put(queen: str, bodies: Sequence[bytes]) -> list[str]:
    """Store them; where each is."""
    paths = []
    async with dial(queen) as files:
        for body in bodies:
            async with await files.open("/storage/put", os.O_RDWR) as file:
                await file.write(body)
                await file.fsync()
                paths.append("/storage/" + (await file.pread(200, 0)).decode().strip())
    return paths


def blobs(queen: str, folder: Path, options: argparse.Namespace) -> Found:
    found: Found = {side: [] for side in ("storage-16", "storage", "disk")}
    data = folder / "data"
    data.mkdir()
    long = os.urandom(LONG)
    (data / "long").write_bytes(long)
    *many, one = trio.run(put, queen, [*(os.urandom(BLOB) for _ in range(BLOBS)), long])
    with work_servers.disk(folder, data) as disk:
        how: dict[str, tuple[object, ...]] = {
            "storage-16": ("blobs", queen, READERS, options.seconds, *many),
            "storage": ("sequential", queen, 1, options.seconds, one),
            "disk": ("sequential", disk, 1, options.seconds, "/long"),
        }
        for side in in_turn([*how], options.rounds):
            found[side].append(load(*how[side]))
    return found


def spread(rounds: Sequence[Figures], figure: str) -> str:
    """The median, and in brackets the least and the greatest."""
    values = [figures[figure] for figures in rounds]
    form = "{:,.0f}" if median(values) >= 100 else "{:.1f}"
    middle, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return f"{middle} [{least} {most}]"


def table(found: Found, columns: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f"{'':<11}" + "".join(f"{title:>24}" for title, _ in columns)
    for side, rounds in found.items():
        cells = [spread(rounds, figure) if figure in rounds[0] else "" for _, figure in columns]
        yield f"{side:<11}" + "".join(f"{cell:>24}" for cell in cells)


COLUMNS = {
    "sends": (
        ("sends/s", "send_per_s"), ("p50 ms", "send_p50_ms"), ("p99 ms", "send_p99_ms"),
        ("receive+ack/s", "receive_per_s"), ("client us a send", "send_client_us"),
    ),
    "blobs": (("first byte p95 ms", "first_p95_ms"), ("opens/s", "first_per_s"), ("MB/s", "mb_per_s")),
}  # fmt: skip
MEASURE: dict[str, Callable[[str, Path, argparse.Namespace], Found]] = {"sends": sends, "blobs": blobs}


def surroundings(folder: Path) -> dict[str, Any]:
    """What the figures depend on and we do not."""
    one, five, _ = os.getloadavg()
    return {"fsync_ms": round(work_servers.fsync_ms(folder), 2), "load": [round(one, 1), round(five, 1)]}


def told(when: str, said: dict[str, Any]) -> str:
    load = " and ".join(map(str, said["load"]))
    cores = f"{os.cpu_count()} cores"
    return f"{when}: load {load} in one and five minutes on {cores}, an fsync {said['fsync_ms']} ms"


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="bench work", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--only", default="", metavar="PART,...")
    parser.add_argument("--dir", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    parts = list(filter(None, options.only.split(","))) or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.rounds < 1 or options.seconds <= 0 or options.writers < 1:
        parser.error("--rounds, --seconds and --writers must be positive")
    return options, parts


def main(arguments: Sequence[str], machine: Callable[[], dict[str, Any]]) -> int:
    options, parts = parse(arguments)
    found: dict[str, Found] = {}
    try:
        with ExitStack() as stack:
            options.dir.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="w-", dir=options.dir))
            stack.callback(shutil.rmtree, folder)
            system = work_servers.durable(folder)
            before = surroundings(folder)
            print(told(f"before, on {system}", before), flush=True)
            queen = stack.enter_context(work_servers.hive(folder))
            for part in parts:
                found[part] = MEASURE[part](queen, folder, options)
                print("\n".join(["", *table(found[part], COLUMNS[part])]), flush=True)
            after = surroundings(folder)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\n{told('after', after)}\n")
    verdicts = [
        (bar, bar.value(found[part]), bar.verdict(found[part])) for part in parts for bar in BARS[part]
    ]
    for bar, value, verdict in verdicts:
        sign = "<=" if bar.most else ">="
        print(f"{bar.says:<52}{value:>8.2f}  {sign} {bar.floor:<5g} {verdict}")
    if options.json:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "writers": options.writers}
        around = {"file_system": system, "before": before, "after": after}
        judged = [{"bar": bar.says, "value": value, "verdict": verdict} for bar, value, verdict in verdicts]
        document = {
            "machine": machine(), "settings": settings, "around": around, "parts": found, "bars": judged
        }  # fmt: skip
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(verdict == "missed" for _, _, verdict in verdicts) else 0
