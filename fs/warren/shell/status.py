"""status: how a hive is

    warren status [--state DIR]

A line a service: its name, its role, how it is, its process, how often it was started again, since when it is
so, and why. How it is, is the role's own word where it gives one (ONLINE, DEGRADED, DRAINING, QUIESCED), else
its keeper's: starting, joining (the queen does not show it at /n yet), waiting (it crashed, and is started
again soon), stopping, stopped, silent (it runs and does not answer).

The exit code is 0 if all of it is up, DEGRADED too; 6 if something is still coming; 7 if something is away,
or the hive is down. --json prints the hive and then each service as one document a line.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.up import add_state, stopped

if TYPE_CHECKING:
    from warren.roles.hive import Status

COMING = ("starting", "joining", "BOOTING")
FINE = ("up", "ONLINE", "DEGRADED")
_COLUMNS = ("NAME", "ROLE", "STATE", "PID", "RESTARTS", "SINCE", "REASON")


def declare(parser: Parser) -> None:
    add_state(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    from warren.auth.refusal import Refusal
    from warren.roles.hive import status
    from warren.roles.state import State

    if args.words:
        raise exits.Usage("warren status: it takes no words; see warren status --help")
    try:
        now = status(State(args.state))
    except Refusal as e:
        raise stopped(e) from None
    if args.json:
        output.document(now.about)
        for row in now.services:
            output.document(row)
    else:
        _show(now)
    return max((_code(row) for row in now.services), default=exits.OK)


def shown(row: dict[str, str]) -> str:
    """How a service is, in one word."""
    return row["lifecycle"] if row["state"] == "up" and row["lifecycle"] != "-" else row["state"]


def _code(row: dict[str, str]) -> int:
    if shown(row) in FINE:
        return exits.OK
    return exits.BUSY if shown(row) in COMING else exits.UNAVAILABLE


def _show(now: Status) -> None:
    at = now.about.get("mount", "-")
    output.line(f"{now.about['hive']}{f', mounted at {at}' if at != '-' else ''}")
    rows = [
        (row["name"], row["role"], shown(row), row["pid"], row["restarts"], row["since"],
         row["reason"].replace("_", " "))
        for row in now.services
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (_COLUMNS, *rows)) for i in range(len(_COLUMNS) - 1)]
    for row in (_COLUMNS, *rows):
        output.line("  ".join([*(word.ljust(w) for word, w in zip(row, widths, strict=False)), row[-1]]))
