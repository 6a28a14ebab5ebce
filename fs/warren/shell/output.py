"""Standard output and standard error.

Output is written at once, in bytes and past Python's buffers: a record that was read is a record that
is seen, and nothing is left to fail at exit. Names and messages come from servers, which may be
anybody's; what is no printable character is shown as an escape, so that none drives the terminal.
"""

from __future__ import annotations

import base64
import errno
import os
import select
import stat
from typing import TYPE_CHECKING, Any

from warren.shell import exits

if TYPE_CHECKING:
    import trio

STDIN, STDOUT, STDERR = 0, 1, 2


class ReaderLeft(Exception):
    """Whoever read standard output is gone."""


def claim() -> None:
    """See that 0, 1 and 2 are taken: a socket that got one of them would be written to as output."""
    for fd in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def put(data: bytes | memoryview) -> None:
    """Write all of DATA to standard output."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(STDOUT, view) :]
        except BlockingIOError:  # shared with somebody who does not wait
            select.select([], [STDOUT], [])
        except BrokenPipeError:
            raise ReaderLeft from None
        except OSError as e:
            number = e.errno or errno.EIO
            way_out = "see where it was redirected to"
            raise exits.Stopped(number, os.strerror(number), "standard output", way_out) from None


def is_terminal() -> bool:
    """Whether somebody looks at standard output, rather than something."""
    return os.isatty(STDOUT)


def line(text: str) -> None:
    """Write a line."""
    put((printable(text) + "\n").encode())


def document(value: object) -> None:
    """Write a JSON document on one line."""
    import json

    put(json.dumps(value, separators=(",", ":")).encode("utf-8", "surrogateescape") + b"\n")


def content(data: bytes) -> dict[str, Any]:
    """Bytes as JSON can carry them: `text` if they are UTF-8, else `base64`."""
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def printable(text: str) -> str:
    """TEXT with an escape for each character that is not printable, or is no character at all."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(c: str) -> str:
    if 0xDC80 <= ord(c) <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return repr(c)[1:-1]


def say(text: str) -> None:
    """Write a line to standard error. It has no reader to lose that would change what is done."""
    try:
        os.write(STDERR, (printable(text) + "\n").encode())
    except OSError:
        pass


def complain(e: OSError) -> int:
    """Say what was refused, where, and the way out; returns the exit code."""
    text = e.strerror or str(e)
    path = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else ""
    where = f"{path}: " if path else ""
    say(f"warren: {where}{text}; {exits.way_out(e, path)}")
    return exits.of(e)


async def until_reader_leaves(scope: trio.CancelScope) -> None:
    """Cancel SCOPE when nobody reads the pipe that standard output is; anything else has no such moment.

    A command that waits for a record would otherwise outlive `| head -1` until the next one comes.
    """
    import trio

    if stat.S_ISFIFO(os.fstat(STDOUT).st_mode):
        await trio.lowlevel.wait_readable(STDOUT)  # of the writing end: an error is all it can report
        scope.cancel()
