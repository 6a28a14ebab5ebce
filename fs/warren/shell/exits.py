"""Exit codes by class of error, and the way out of each.

`TABLE` is the one place. A server's error begins with a code of the HTTP class (`404 not_found: …`);
where it does not, the errno stands for one. The exit code is the row that lists that code.
"""

import errno
import re
from typing import NamedTuple

OK, OTHER, USAGE, NOT_FOUND, DENIED, CONFLICT, BUSY, UNAVAILABLE, TIMED_OUT, BAD_INPUT, FULL = range(11)
INTERRUPTED = 130
READER_LEFT = 141


class Exit(NamedTuple):
    """One exit code: what it means, and which codes of errors end in it."""

    number: int
    name: str
    meaning: str
    codes: tuple[int, ...] = ()


TABLE = (
    Exit(OK, "ok", "done, or there was nothing to do"),
    Exit(OTHER, "other", "anything else, a defect of the server too", (500,)),
    Exit(USAGE, "usage", "the command line is wrong; nothing was done"),
    Exit(NOT_FOUND, "not_found", "there is no such file, or none that you may see", (404,)),
    Exit(DENIED, "denied", "the server's policy or the system forbids it", (401, 403)),
    Exit(CONFLICT, "conflict", "it exists already, or something stands in the way", (409,)),
    Exit(BUSY, "busy", "too much at once; the same may succeed later", (429,)),
    Exit(UNAVAILABLE, "unavailable", "no connection, or what is behind the file is away", (502, 503)),
    Exit(TIMED_OUT, "timed_out", "no answer in time; whether it was done is unknown", (408, 504)),
    Exit(BAD_INPUT, "bad_input", "the file does not take or give that", (400, 405, 413, 416, 422)),
    Exit(FULL, "full", "there is no room", (507,)),
    Exit(INTERRUPTED, "interrupted", "Ctrl-C"),
    Exit(READER_LEFT, "reader_left", "whoever read standard output went away"),
)
_EXIT_OF = {code: row.number for row in TABLE for code in row.codes}
_NO_CONNECTION = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN,
    errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL,
}  # fmt: skip


_SERVER = " trace="  # in the words of every server of ours


class Usage(Exception):
    """The command line is wrong: what, and the way out."""


class Stopped(OSError):
    """An error that this command found by itself, with its own way out.

    `exit` is given where the errno would mislead: a socket that is not there is no missing file.
    """

    def __init__(self, number: int, text: str, path: str, way_out: str, exit: int | None = None) -> None:
        super().__init__(number, text, path)
        self.way_out = way_out
        self.exit = exit


def of(e: OSError) -> int:
    """The exit code for an error."""
    if isinstance(e, Stopped) and e.exit is not None:
        return e.exit
    from warren.tree.errors import describe

    said = re.match(r"(\d{3}) ", e.strerror or "")
    if said and int(said[1]) in _EXIT_OF:
        return _EXIT_OF[int(said[1])]
    if e.errno in _NO_CONNECTION:
        return UNAVAILABLE
    return _EXIT_OF.get(describe(e)[1], OTHER)


def barred(e: OSError) -> bool:
    """Whether the server will not have us, whatever we ask."""
    from warren.mount.link import Barred

    return isinstance(e, Barred)


def way_out(e: OSError, path: str) -> str:
    """What to do about an error at PATH."""
    if isinstance(e, Stopped):
        return e.way_out
    if e.errno == errno.EACCES and barred(e):
        return "have --id issued again: warren ca issue; the server's audit names the reason"
    if "token_" in (e.strerror or "")[:12]:
        return "see what it says: warren token show DIR/token; without that file in --id DIR your name counts"
    above = path.rstrip("/").rpartition("/")[0] or "/"
    last = path.rstrip("/").rpartition("/")[2]
    look = "warren stat" if _SERVER in (e.strerror or "") else "ls -ld"
    later = re.search(r"retry_after=([\d.]+)", e.strerror or "")
    return {
        NOT_FOUND: f"see what is there: warren ls {above}",
        DENIED: _of_denial(e.strerror or "", path),
        CONFLICT: f"see what stands there: {look} {path}",
        BUSY: f"try again in {later[1]} s" if later else "try again in a moment",
        UNAVAILABLE: f"try again in {later[1]} s" if later
        else "see whether the server runs; --at or $WARREN_AT says where it is",
        TIMED_OUT: f"look at what became of it, then try again: warren stat {path}",
        BAD_INPUT: f"see what it takes: warren {'ctl' if last in ('ctl', 'clone') else 'stat'} {path}",
        FULL: "make room there, then try again",
    }.get(of(e), "the trace id, if there is one, finds the cause at the server")


def _of_denial(said: str, path: str) -> str:
    """No row decides what a file is not for, and no server what the system forbids."""
    if _SERVER not in said:
        return f"the system forbids it; see who may: ls -ld {path}"
    if "you may not" in said or "may not attach" in said or " denied: " not in said:
        return "the server's --allow rows decide: warren help serve"
    return f"see what it takes: warren stat {path}"


def render() -> str:
    """The table, for people."""
    return "".join(f"{row.number:5}  {row.name:<12} {row.meaning}\n" for row in TABLE)
