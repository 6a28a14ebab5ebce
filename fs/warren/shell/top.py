"""top: a hive at work

    warren top [--once] [--every SECONDS] [--at ADDR]

A line for the role that answers and for each that stands in its /n: its state, who is connected, what
waits, and how much it does. It is drawn anew every second until Ctrl-C; --once draws it a single time.
Everything is read from files that anybody may read who is let in:

    /role/status    role=, name=        /proc/lifecycle/state
    /proc/stats     counts; two readings and the time between them make a rate

A role that does not answer in time has its error in place of numbers. --json prints one object for each
line, rates included once there are two readings.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Usage
from warren.shell.session import converse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warren.mount import Files

FILES = ("role/status", "proc/lifecycle/state", "proc/stats")
PATIENCE = 2.0
SHOWN = 64
_TITLES = ("NAME", "ROLE", "STATE", "SESSIONS", "PARKED", "OPS/S", "ERRORS/S", "BUSY", "DENIED")


def declare(parser: Parser) -> None:
    parser.add_argument("--once", action="store_true", help="draw it once")
    parser.add_argument("--every", metavar="SECONDS", default="1", help="between two drawings; 1 if not said")
    add_tree(parser)


def run(args: Namespace) -> int:
    if args.words:
        raise Usage("warren top: it takes no PATH; --at or --state say whose hive")
    try:
        every = float(args.every)
    except ValueError:
        every = 0.0
    if not 0.1 <= every <= 3600:
        raise Usage(f"warren top: --every {args.every}: a number of seconds is wanted, from 0.1 to 3600")
    if args.dry_run:
        output.line(shlex.join(["cat", *(f"/{name}" for name in FILES)]))
        return exits.OK

    async def body(files: Files) -> int:
        import trio

        table = Table()
        while True:
            await table.read(files)
            table.draw(args.json, clear=not args.once)
            if args.once:
                return table.code
            await trio.sleep(every)

    return converse(args, body)


@dataclass
class Row:
    """One role, as it was at the last two readings."""

    name: str
    at: float = 0.0
    said: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    wrong: str = ""


class Table:
    """The lines, by where their files stand."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.code = exits.OK

    async def read(self, files: Files) -> None:
        """Look at everybody. Cancelled has no effect on them."""
        import trio

        roots = {"": ""}
        try:
            found = [e.name for e in await files.readdir("/n")]
        except OSError:
            found = []
        roots.update({f"/n/{name}": name for name in sorted(found)[:SHOWN]})
        self.rows = {at: self.rows.get(at, Row(name)) for at, name in roots.items()}
        async with trio.open_nursery() as nursery:
            for at, row in self.rows.items():
                nursery.start_soon(self._read, files, at, row)

    async def _read(self, files: Files, at: str, row: Row) -> None:
        import trio

        try:
            with trio.fail_after(PATIENCE):
                status, state, stats = [(await files.read(f"{at}/{name}")).decode() for name in FILES]
        except (OSError, trio.TooSlowError) as e:
            row.wrong = (e.strerror or str(e)) if isinstance(e, OSError) else f"no answer in {PATIENCE:g} s"
            row.numbers = {}
            self.code = self.code or (exits.of(e) if isinstance(e, OSError) else exits.TIMED_OUT)
            return
        row.wrong = ""
        row.said = {**_pairs(status), "state": state.strip()}
        row.name = row.said.get("name", row.name)
        now, numbers = trio.current_time(), _numbers(stats)
        if row.numbers and now > row.at:
            row.rates = {k: max(0.0, v - row.numbers.get(k, v)) / (now - row.at) for k, v in numbers.items()}
        row.at, row.numbers = now, numbers

    def draw(self, json: bool, clear: bool) -> None:
        """Print what was read."""
        if json:
            for row in self.rows.values():
                output.document(_document(row))
            return
        cells = [_TITLES, *(_cells(row) for row in self.rows.values())]
        widths = [max(len(line[n]) for line in cells if n < len(line)) for n in range(len(_TITLES))]
        if clear and output.is_terminal():
            output.put(b"\x1b[H\x1b[2J")
        for line in cells:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
            output.line("  ".join(padded).rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    if row.wrong:
        return (row.name or "-", "-", row.wrong)
    n = row.numbers
    return (
        row.name, row.said.get("role", "-"), row.said["state"],
        _count(n, "warren_sessions"), _count(n, "warren_parked"),
        _rate(row, "warren_operations_total"), _rate(row, "warren_errors_total"),
        _count(n, "busy"), _count(n, "policy"),
    )  # fmt: skip


def _document(row: Row) -> dict[str, Any]:
    if row.wrong:
        return {"name": row.name, "error": row.wrong}
    return {
        "name": row.name, "role": row.said.get("role"), "state": row.said["state"],
        "counts": row.numbers, "rates": row.rates,
    }  # fmt: skip


def _count(numbers: Mapping[str, float], name: str) -> str:
    return f"{numbers[name]:.0f}" if name in numbers else "-"


def _rate(row: Row, name: str) -> str:
    return f"{row.rates[name]:.1f}" if name in row.rates else "-"


def _pairs(text: str) -> dict[str, str]:
    """`key=value` lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _numbers(text: str) -> dict[str, float]:
    """`name=value`, and `name label=word n=value` by the word alone."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        words = line.split()
        name, _, value = words[-1].partition("=")
        if name == "n" and len(words) == 3:
            name = words[1].partition("=")[2]
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found
