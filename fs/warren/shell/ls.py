"""ls: list directories

    warren ls [-l] [--at ADDR] [PATH...]

Names in alphabetical order, one a line; a PATH that is no directory is listed itself. Without PATH,
the root. -l adds mode, size and time of change in front, and where a link points behind; a dash is
a time that the server does not know. Characters that are not printable appear as escapes.

--json prints for each PATH {"path": ..., "entries": [...]}, an entry as `warren stat --json` has it.
"""

from __future__ import annotations

import shlex
import stat
import time
from argparse import Namespace
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.session import over_paths, paths

if TYPE_CHECKING:
    from warren.mount import Entry, Files


def declare(parser: Parser) -> None:
    parser.add_argument("-l", dest="long", action="store_true", help="mode, size and time beside each name")
    add_tree(parser)


def run(args: Namespace) -> int:
    wanted = paths(args, "/")
    if args.dry_run:
        output.line(shlex.join(["ls", *(["-l"] if args.long else []), *wanted]))
        return exits.OK
    headed = len(wanted) > 1
    first = True

    async def work(files: Files, path: str) -> None:
        nonlocal first
        it = await files.stat(path, follow=True)
        if args.json:
            await as_json(files, path, it)
            return
        if it.is_dir and headed:
            output.line(f"{'' if first else ''}{path}:")
        first = False
        entries = sorted(await files.ls(path), key=lambda e: e.name) if it.is_dir else [it]
        rows = [await row(files, path, e, it.is_dir, args.long) for e in entries]
        output.put("".join(output.printable(r) + "\n" for r in rows).encode())

    return over_paths(args, wanted, work)
