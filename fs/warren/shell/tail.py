"""tail: the last lines of files that grow

    warren tail [-f] [-n N] [--at ADDR] PATH...

The last N lines, 10 if not said. -f goes on with what is appended, until Ctrl-C; a file that became
shorter is read from its beginning, and that is said. With several PATHs each piece has its file's
name above it. For a stream, which has no last lines, use `warren cat`.

--json prints one {"path": ..., "text": ...} a line of the file. Here --dry-run has no short form.
"""

from __future__ import annotations

import errno
import shlex
from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from warren.p9.fields import QTAPPEND
from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Stopped, Usage
from warren.shell.session import converse, paths
from warren.shell.stat import keeps_bytes

if TYPE_CHECKING:
    from warren.mount import File, Files

BLOCK = 64 << 10
PAUSE = 0.25  # between two looks at a file that is followed


def declare(parser: Parser) -> None:
    parser.add_argument("-f", dest="follow", action="store_true", help="go on with what is appended")
    parser.add_argument("-n", dest="lines", metavar="N", default="10", help="how many lines; 10 if not said")
    add_tree(parser, n=False)


def run(args: Namespace) -> int:
    wanted = paths(args)
    if not args.lines.isdecimal():
        raise Usage(f"warren tail: -n {args.lines}: a number of lines is wanted, such as -n 20")
    if args.dry_run:
        output.line(shlex.join(["tail", *(["-f"] if args.follow else []), "-n", args.lines, *wanted]))
        return exits.OK

    async def body(files: Files) -> int:
        show = _Show(args.json, len(wanted) > 1)
        code = exits.OK
        followed = []
        for path in wanted:
            try:
                followed.append(await _begin(files, path, int(args.lines), show))
            except OSError as e:
                failed = output.complain(e)
                code = code or failed
        if args.follow and followed:
            await _follow(files, followed, show)
        show.end()
        return code

    return converse(args, body)


@dataclass
class _Followed:
    """A file and how far it was shown."""

    path: str
    file: File
    at: int


class _Show:
    """Prints pieces of files; as JSON, whole lines."""

    def __init__(self, json: bool, headed: bool) -> None:
        self.json, self.headed = json, headed
        self.last = ""
        self.begun: dict[str, bytes] = {}

    def piece(self, path: str, data: bytes) -> None:
        if self.json:
            *lines, rest = (self.begun.pop(path, b"") + data).split(b"\n")
            for line in lines:
                output.document({"path": path, **output.content(line)})
            self.begun[path] = rest
            return
        if self.headed and path != self.last:
            output.line(f"==> {path} <==")
            self.last = path
        output.put(data)

    def end(self) -> None:
        """Nothing more will come: an unfinished line is one now."""
        for path, rest in self.begun.items():
            if rest:
                output.document({"path": path, **output.content(rest)})


async def _begin(files: Files, path: str, lines: int, show: _Show) -> _Followed:
    e = await files.stat(path, follow=True)
    if e.is_dir:
        raise Stopped(
            errno.EISDIR, "this is a directory", path, f"list it: warren ls {path}", exits.BAD_INPUT
        )
    if not (keeps_bytes(e) or e.qid.type & QTAPPEND):
        text = "this is no file that grows: it has no size"
        raise Stopped(errno.ESPIPE, text, path, f"read it: warren cat {path}", exits.BAD_INPUT)
    file = await files.open(path)
    at = await _start(file, e.size, lines)
    it = _Followed(path, file, at)
    await _more(it, show)
    return it


async def _start(file: File, size: int, lines: int) -> int:
    """Where the last LINES lines begin. A newline at the very end begins no line."""
    end = size
    wanted = lines + 1
    while end and lines:
        begin = max(0, end - BLOCK)
        block = await file.pread(end - begin, begin)
        if end == size and not block.endswith(b"\n"):
            wanted -= 1
        found = block.count(b"\n")
        if found >= wanted:
            for _ in range(wanted):
                block = block[: block.rindex(b"\n")]
            return begin + len(block) + 1
        wanted -= found
        end = begin
    return 0 if lines else size


async def _more(it: _Followed, show: _Show) -> None:
    while data := await it.file.pread(BLOCK, it.at):
        it.at += len(data)
        show.piece(it.path, data)


async def _follow(files: Files, followed: list[_Followed], show: _Show) -> None:
    """Show what is appended. A server that is away is waited for; a file that is another is opened anew."""
    import trio

    away = ""
    while True:
        try:
            for it in followed:
                await _look(files, it)
                await _more(it, show)
            away = ""
        except OSError as e:
            if exits.of(e) not in (exits.UNAVAILABLE, exits.TIMED_OUT):
                raise
            if not away:
                away = e.strerror or str(e)
                output.say(f"warren: {away}; waiting for it to come back")
        await trio.sleep(PAUSE)


async def _look(files: Files, it: _Followed) -> None:
    """See that it is the file that has the name now, and no shorter than what was shown of it."""
    try:
        size = (await it.file.stat()).size
    except OSError as e:
        if e.errno != errno.ESTALE:
            raise
        it.file = await files.open(it.path)
        size = (await it.file.stat()).size
        output.say(f"warren: {it.path}: its server was started anew; going on")
    if size < it.at:
        output.say(f"warren: {it.path}: it became shorter; reading it from its beginning")
        it.at = 0
