"""cat: read files

    warren cat [--at ADDR] PATH...

What a file holds, as bytes. A stream is read record by record, each shown as it comes, until it ends
or Ctrl-C; a ctl file shows its verbs. Symbolic links are followed.

--json prints for each file one {"path": ..., "text": ...}, with base64 for text where it is not
UTF-8; for a file whose content is made at each read, one for each read, which is one for each record.
"""

from __future__ import annotations

import errno
import shlex
from argparse import Namespace
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Stopped
from warren.shell.session import over_paths, paths
from warren.shell.stat import keeps_bytes

if TYPE_CHECKING:
    from warren.mount import Files

AT_ONCE = 4 << 20  # bytes of a stored file that are asked for together
JSON_LIMIT = 64 << 20


def declare(parser: Parser) -> None:
    add_tree(parser)


def run(args: Namespace) -> int:
    wanted = paths(args)
    if args.dry_run:
        output.line(shlex.join(["cat", *wanted]))
        return exits.OK

    async def work(files: Files, path: str) -> None:
        e = await files.stat(path, follow=True)
        if e.is_dir:
            way_out = f"list it: warren ls {path}"
            raise Stopped(errno.EISDIR, "this is a directory", path, way_out, exits.BAD_INPUT)
        if not keeps_bytes(e):
            await _records(files, path, args.json)
        elif not args.json:
            await _stored(files, path)
        elif e.size > JSON_LIMIT:
            text = f"--json is for {JSON_LIMIT >> 20} MiB at most"
            raise Stopped(errno.EFBIG, text, path, "leave --json out", exits.BAD_INPUT)
        else:
            output.document({"path": path, **output.content(await files.read(path))})

    return over_paths(args, wanted, work)


async def _stored(files: Files, path: str) -> None:
    async with await files.open(path) as file:
        at = 0
        while pieces := await file.pread_pieces(AT_ONCE, at):
            for piece in pieces:
                output.put(piece)
                at += len(piece)


async def _records(files: Files, path: str, json: bool) -> None:
    """One read at a time: nobody but the server knows whether the next one waits."""
    async with await files.stream(path) as file:
        while record := await file.record():
            if json:
                output.document({"path": path, **output.content(record)})
            else:
                output.put(record)
