"""Refusals: one code, one errno, one line.

An error of the tree reads `<code> <reason>: <detail> trace=<16 hex>`. The code is of the HTTP
class, because those numbers are what people already know; the errno is what a kernel can carry.
The table below is only the default: an OSError that came from the system keeps its own errno,
since `git` and `cp` look at ENOTEMPTY, EXDEV, ENODATA and ENOSPC.

An error that comes from another tree has its whole line already, trace id and all. It is passed on as
it is: whoever reads it finds it under that id where it happened.
"""

import errno as E
import os
import re
from typing import NamedTuple


class Code(NamedTuple):
    reason: str
    errno: int


CODES: dict[int, Code] = {
    400: Code("bad_request", E.EINVAL),
    401: Code("unauthenticated", E.EPERM),
    403: Code("denied", E.EACCES),
    404: Code("not_found", E.ENOENT),
    405: Code("not_supported", E.EOPNOTSUPP),
    408: Code("timed_out", E.ETIMEDOUT),
    409: Code("conflict", E.EEXIST),
    413: Code("too_large", E.EFBIG),
    416: Code("bad_offset", E.ESPIPE),
    422: Code("corrupt", E.EBADMSG),
    429: Code("busy", E.EAGAIN),
    500: Code("internal", E.EIO),
    502: Code("upstream", E.EHOSTUNREACH),
    503: Code("unavailable", E.EBUSY),
    504: Code("upstream_timed_out", E.ETIMEDOUT),
    507: Code("full", E.ENOSPC),
}

_CODE_OF = {
    **{code.errno: number for number, code in reversed(CODES.items())},
    E.EPERM: 403, E.EROFS: 403, E.ELOOP: 403,
    E.ENODATA: 404, E.ESTALE: 404, E.ENXIO: 404, E.ENODEV: 404,
    E.ENOSYS: 405,
    E.ENOTEMPTY: 409, E.EXDEV: 409, E.EBUSY: 409, E.ETXTBSY: 409,
    E.ENOTDIR: 400, E.EISDIR: 400, E.EBADF: 400, E.EILSEQ: 400,
    E.ENAMETOOLONG: 413, E.E2BIG: 413, E.ERANGE: 413,
    E.EINTR: 408,
    E.EMFILE: 429, E.ENFILE: 429, E.ENOLCK: 429, E.EDEADLK: 409,
    E.EDQUOT: 507, E.ENOMEM: 507, E.EMLINK: 507,
}  # fmt: skip

# Clients of the plain dialect match on these words, so an error that means just this says just this.
_PLAN9 = {
    E.ENOENT: "file does not exist",
    E.EACCES: "permission denied",
    E.EPERM: "permission denied",
    E.EEXIST: "file already exists",
}


# A line as another tree words it. It comes from outside: no control characters, and not without end.
_WORDED = re.compile(r"((\d{3}) \w{1,64}(?:: [^\x00-\x1f\x7f]{0,4096})?) trace=([0-9a-f]{16})")


class Refused(OSError):
    """Something was asked that is not done, and why, and the way out.

    `retry_after` (seconds) appears in the text when the same request may succeed later.
    """

    def __init__(
        self,
        code: int,
        detail: str = "",
        *,
        errno: int | None = None,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        known = CODES[code]
        self.code = code
        self.reason = reason or known.reason
        self.detail = detail
        self.retry_after = retry_after
        super().__init__(known.errno if errno is None else errno, detail or self.reason)


def describe(e: OSError) -> tuple[int, int, str]:
    """(errno, code, one line without the trace id) for any OSError."""
    if isinstance(e, Refused):
        line = f"{e.code} {e.reason}: {e.detail}" if e.detail else f"{e.code} {e.reason}"
        if e.retry_after is not None:
            line += f" retry_after={e.retry_after:g}"
        return e.errno or E.EIO, e.code, line
    number = e.errno or E.EIO
    if (worded := _worded(e)) is not None:
        return number, int(worded[2]), worded[1]
    code = _CODE_OF.get(number, 500)
    return number, code, f"{code} {CODES[code].reason}: {os.strerror(number).lower()}"


def _worded(e: OSError) -> re.Match[str] | None:
    found = None if isinstance(e, Refused) else _WORDED.fullmatch(e.strerror or "")
    return found if found is not None and int(found[2]) in CODES else None


def trace_of(e: OSError) -> int:
    """The trace id that the error of another tree brought along; 0 for one of our own."""
    worded = _worded(e)
    return int(worded[3], 16) if worded is not None else 0


def plain_words(e: OSError, line: str) -> str:
    """How the plain dialect says it: Plan 9's words, the system's words, or the whole line."""
    number = e.errno or E.EIO
    if number in _PLAN9:
        return _PLAN9[number]
    plainly = os.strerror(number)
    worded = _worded(e)
    says_more = worded is not None and not worded[1].endswith(f": {plainly.lower()}")
    return line if isinstance(e, Refused) or says_more else plainly


def absent() -> Refused:
    """A hidden path and a missing one read the same."""
    return Refused(404, "file does not exist")
