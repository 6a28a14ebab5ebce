"""write: write a file

    warren write [-a] [-r] [--at ADDR] PATH [TEXT...]

As `echo TEXT >PATH`: the words with spaces between and a newline behind, in one write, which for a
ctl file, a sink or a value is one record. Without TEXT, standard input, read to its end first (64 MiB
at most) and sent as it is: one write if it fits the connection's messages, else several in order. A
file that is not there is made, if you may create it; -a appends where otherwise the file is emptied.

Some files answer: -r opens for reading too, and prints what can be read once everything is written.
TEXT that begins with a dash stands behind --.

--json prints {"path": ..., "bytes": ...}, and with -r "reply" if there was one.
"""

from __future__ import annotations

import errno
import os
import shlex
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Stopped, Usage
from warren.shell.session import converse, path_in

if TYPE_CHECKING:
    from warren.mount import Files

LIMIT = 64 << 20


def declare(parser: Parser) -> None:
    parser.add_argument("-a", dest="append", action="store_true", help="append")
    parser.add_argument("-r", dest="reply", action="store_true", help="print what the file answers")
    add_tree(parser)


def run(args: Namespace) -> int:
    if not args.words or not args.words[0]:
        raise Usage("warren write: a PATH is missing; see warren write --help")
    path, text = path_in(args, args.words[0]), args.words[1:]
    if args.dry_run:
        output.line(_equal(path, text, args.append, args.reply))
        return exits.OK
    if text:
        data = os.fsencode(" ".join(text)) + b"\n"
    else:
        import trio

        data = trio.run(_standard_input)

    async def body(files: Files) -> int:
        reply = await _write(files, path, data, args.append, args.reply)
        if args.json:
            said: dict[str, Any] = {"path": path, "bytes": len(data)}
            if reply:
                said["reply"] = output.content(reply).get("text", reply.hex())
            output.document(said)
        elif reply:
            output.put(reply)
        return exits.OK

    return converse(args, body)


async def _write(files: Files, path: str, data: bytes, append: bool, answers: bool) -> bytes:
    flags = os.O_RDWR if answers else os.O_WRONLY
    flags |= os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    async with await files.open(path, flags) as file:
        await file.write(data)
        if not file.qid.version:
            # What gathers a body commits it now, and says so if it cannot; a close has no such voice.
            await file.fsync()
        return await file.pread(file.payload, 0) if answers else b""


async def _standard_input() -> bytes:
    import trio

    pieces: list[bytes] = []
    left = LIMIT
    while left >= 0:
        try:
            # Waiting in read(2) itself would miss a Ctrl-C that comes just before it.
            await trio.lowlevel.wait_readable(output.STDIN)
        except PermissionError:  # what is always ready cannot be waited for: a file, /dev/null
            await trio.lowlevel.checkpoint()
        try:
            piece = os.read(output.STDIN, min(1 << 20, left + 1))
        except BlockingIOError:
            continue
        except OSError as e:
            text = e.strerror or "it cannot be read"
            raise Stopped(e.errno or errno.EIO, text, "standard input", "give TEXT instead") from None
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    text = f"longer than {LIMIT >> 20} MiB, and nothing was written"
    raise Stopped(errno.EFBIG, text, "standard input", "write it in parts, with -a", exits.BAD_INPUT)


def _equal(path: str, text: list[str], append: bool, answers: bool) -> str:
    source = f"echo {shlex.join(text)}" if text else "cat"
    to = shlex.quote(path)
    if answers:
        return f"exec 3<>{to}; {source} >&3; cat <&3; exec 3>&-"
    return f"{source} {'>>' if append else '>'}{to}"
