"""stat: what a tree knows about a file

    warren stat [-L] [--at ADDR] PATH...

One key=value a line, always in this order, for each PATH; an empty line between two. Times are UTC
to the nanosecond, and a dash where the server does not know. `version` moves when a stored file
changes; it is 0 for files whose content is made at each read (ctl, streams, values), which have no
size either. A symbolic link is described itself, with its target; -L follows it.

--json prints one object for each PATH, with null for a dash.
"""

from __future__ import annotations

import shlex
import stat as S
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.session import over_paths, paths

if TYPE_CHECKING:
    from warren.mount import Entry, Files

_KINDS = {
    S.S_IFREG: "file", S.S_IFDIR: "directory", S.S_IFLNK: "link", S.S_IFIFO: "fifo",
    S.S_IFSOCK: "socket", S.S_IFCHR: "device", S.S_IFBLK: "device",
}  # fmt: skip


def declare(parser: Parser) -> None:
    parser.add_argument("-L", dest="follow", action="store_true", help="follow a symbolic link")
    add_tree(parser)


def run(args: Namespace) -> int:
    wanted = paths(args)
    if args.dry_run:
        output.line(shlex.join(["stat", *(["-L"] if args.follow else []), *wanted]))
        return exits.OK
    shown = 0

    async def work(files: Files, path: str) -> None:
        nonlocal shown
        e = await files.stat(path, follow=args.follow)
        values = attributes(e, path, await target(files, path, e))
        if args.json:
            output.document(values)
            return
        if shown:
            output.line("")
        shown += 1
        for key, value in values.items():
            output.line(f"{key}={_word(value)}")

    return over_paths(args, wanted, work)


def keeps_bytes(e: Entry) -> bool:
    """Whether a file holds bytes at offsets, as far as attributes tell. Some servers know no versions."""
    return bool(e.qid.version or e.size)


async def target(files: Files, path: str, e: Entry) -> str | None:
    """Where E, at PATH, points, if it is a link and may be read."""
    if not e.is_link:
        return None
    try:
        return await files.readlink(path)
    except OSError:
        return None


def attributes(e: Entry, path: str, to: str | None) -> dict[str, Any]:
    """Everything about a file, in the order it is shown."""
    values: dict[str, Any] = {
        "path": path,
        "kind": _KINDS.get(S.S_IFMT(e.mode), "file"),
        "mode": f"{S.S_IMODE(e.mode):04o}",
        "size": e.size,
        "nlink": e.nlink,
        "owner": e.owner or str(e.uid),
        "group": e.group or str(e.gid),
        "mtime": _when(e.mtime_ns),
        "atime": _when(e.atime_ns),
        "ctime": _when(e.ctime_ns),
        "btime": _when(e.btime_ns),
        "qid": e.qid.path,
        "version": e.qid.version,
    }
    return values if to is None else {**values, "target": to}


def _when(ns: int) -> str | None:
    if not ns:
        return None
    seconds, rest = divmod(ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def _word(value: Any) -> str:
    from warren.tree.ctl import quote

    return "-" if value is None else quote(value) if isinstance(value, str) else str(value)
