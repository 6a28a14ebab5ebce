"""ls: list directories

    warren ls [-l] [--at ADDR] [PATH...]

Names in alphabetical order, one a line; a PATH that is no directory is listed itself. Without PATH,
the root, or the current directory if that is under a mount of ours. -l puts mode, size and time of change
in front, and where a link points behind; a dash is a time that the server does not know. Characters that
are not printable appear as escapes.

--json prints for each PATH {"path": ..., "entries": [...]}, an entry as `warren stat --json` has it.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from argparse import Namespace
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.session import over_paths, paths
from warren.shell.stat import attributes, target

if TYPE_CHECKING:
    from warren.mount import Entry, Files


def declare(parser: Parser) -> None:
    parser.add_argument("-l", dest="long", action="store_true", help="mode, size and time with each name")
    add_tree(parser)


def run(args: Namespace) -> int:
    wanted = paths(args, "/")
    if args.dry_run:
        output.line(shlex.join(["ls", *(["-l"] if args.long else []), *wanted]))
        return exits.OK

    async def work(files: Files, path: str) -> None:
        it = await files.stat(path, follow=True)
        rows = [f"{path}:"] if len(wanted) > 1 and it.is_dir else []
        if it.is_dir and not args.long and not args.json:  # names are cheaper than attributes
            _print([*rows, *sorted(e.name for e in await files.readdir(path))])
            return
        found = {os.path.join(path, e.name): e for e in await files.ls(path)} if it.is_dir else {path: it}
        shown = sorted(found.items())
        if args.json:
            entries = [attributes(e, where, await target(files, where, e)) for where, e in shown]
            output.document({"path": path, "entries": entries})
            return
        for where, e in shown:
            name = e.name if it.is_dir else where
            rows.append(_long(e, name, await target(files, where, e)) if args.long else name)
        _print(rows)

    return over_paths(args, wanted, work)


def _print(rows: list[str]) -> None:
    output.put("".join(output.printable(row) + "\n" for row in rows).encode())


def _long(e: Entry, name: str, to: str | None) -> str:
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.mtime_ns // 10**9)) if e.mtime_ns else "-"
    arrow = f" -> {to}" if to is not None else ""
    return f"{stat.filemode(e.mode)} {e.size:>10} {changed:>16} {name}{arrow}"
