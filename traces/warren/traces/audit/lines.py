"""The lines of the audit: one record type, the ports, and the chain.

A line is JSON and carries `h`, the SHA-256 of the line before it:

    h = hex(SHA-256(h of the previous line, as 64 characters ‖ this line without its `,"h":"…"`))

The first line of all follows 64 zeros. `seal` makes a line, `unseal` takes it apart; both work on bytes,
so that verifying never depends on how JSON is written.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import msgspec

GENESIS = b"0" * 64
MAX_LINE = 256 << 10
OPEN_AT_ONCE = 1000  # numbers of intents in one line
_HASH = b',"h":"'
_TAIL = len(_HASH) + 64 + len(b'"}\n')
_PATH_KEPT = 1024


class Event(NamedTuple):
    """What is about to happen, or did."""

    session: int
    subject: str
    op: str
    path: str
    detail: str = ""
    trace: int = 0


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the audit.

    intent     this is about to happen
    outcome    how the intent `of` ended; code 0 is success
    note       what needs no intent: a denial, the bytes of a closed fid, denials that were counted
    begin      the first line of the segment `path`; it follows line `of`, whose hash is `after`
    carried    intents that were `open` when the segment began
    torn       the bytes before this line are the rest of one that a crash cut short
    damaged    the bytes before this line were no audit when a restart found them
    recovered  what became of the `open` intents is unknown: the server ended before it could tell
    """

    seq: int
    ts: float
    kind: str
    session: int
    subject: str
    op: str
    path: str
    detail: str = ""
    trace: str = ""
    of: int = 0
    code: int = 0
    open: tuple[int, ...] = ()
    after: str = ""
    chain: str = ""  # of `begin`: the name of this history, made at random when it began
    size: int = 0  # of `torn` and `damaged`: how many bytes, and their SHA-256
    sha256: str = ""
    h: str = ""


class Durable(Protocol):
    """What to wait for before the effect."""

    async def durable(self) -> None:
        """Return once the intent is on the disk; OSError means the effect must not happen."""


class Recorded(NamedTuple):
    """An intent's number, and what to wait for before the effect (None: nothing)."""

    number: int
    wait: Durable | None


class Audit(Protocol):
    """Where effects are recorded."""

    def intent(self, event: Event) -> Recorded:
        """Record that EVENT is about to happen; OSError means it must not."""

    def outcome(self, intent: int, event: Event, code: int) -> None:
        """Record how it ended; 0 is success. Never waits and never raises."""

    def note(self, event: Event, code: int) -> None:
        """Record what needs no intent. Never waits and never raises."""


class Place(NamedTuple):
    """A line, and where it lies."""

    segment: int
    line: int
    seq: int
    h: bytes


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def seal(previous: bytes, line: Line) -> tuple[bytes, bytes]:
    """(the line as it is written, its hash)."""
    try:
        raw = _encode(line)
    except UnicodeEncodeError:  # a name that is not UTF-8
        raw = _encode(legible(line))
    if len(raw) > MAX_LINE - _TAIL:
        raw = _encode(_shortened(line))
    h = hashlib.sha256(previous + raw).hexdigest().encode()
    return raw[:-1] + _HASH + h + b'"}\n', h


def unseal(raw: bytes) -> tuple[bytes, bytes] | None:
    """(what was hashed, the hash stated) of a whole line with its end, or None if it is none."""
    cut = len(raw) - _TAIL
    if cut < 0 or raw[cut : cut + len(_HASH)] != _HASH or raw[-3:] != b'"}\n':
        return None
    return raw[:cut] + b"}", raw[cut + len(_HASH) : -3]


def chained(previous: bytes, body: bytes) -> bytes:
    """The hash of BODY behind PREVIOUS."""
    return hashlib.sha256(previous + body).hexdigest().encode()


def parse(raw: bytes) -> Line | None:
    """The line, or None if it is none."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Aside:
    """Bytes behind the last good line of a segment, whose hash is H, that are no part of the chain."""

    def __init__(self, h: bytes) -> None:
        self.h = h
        self.size = 0
        self.ends = 0
        self.ended = True
        self.sum = hashlib.sha256()

    def add(self, raw: bytes) -> None:
        """RAW lies there too."""
        self.size += len(raw)
        self.sum.update(raw)
        self.ended = raw.endswith(b"\n")
        self.ends += self.ended

    def noted_by(self, line: Line, body: bytes, stated: bytes) -> bool:
        """Whether LINE is a restart's note about just these bytes."""
        return (
            line.kind in ("torn", "damaged")
            and not line.path
            and (line.size, line.sha256) == (self.size, self.sum.hexdigest())
            and chained(self.h, body) == stated
        )


def legible(line: Line) -> Line:
    """The line with the bytes of names that are no UTF-8 spelled out."""

    def said(text: str) -> str:
        return text.encode("utf-8", "backslashreplace").decode()

    return msgspec.structs.replace(
        line, subject=said(line.subject), op=said(line.op), path=said(line.path), detail=said(line.detail)
    )


def _shortened(line: Line) -> Line:
    """A line that any reader can hold, with a digest of what was left out."""

    def short(text: str) -> str:
        whole = text.encode("utf-8", "backslashreplace")
        if len(text) <= _PATH_KEPT:
            return whole.decode()
        return f"{whole[:_PATH_KEPT].decode(errors='ignore')}... ({len(whole)} bytes, sha256 " \
            f"{hashlib.sha256(whole).hexdigest()})"  # fmt: skip

    return msgspec.structs.replace(
        line, subject=short(line.subject), op=short(line.op), path=short(line.path), detail=short(line.detail)
    )
