"""Replaying a recorded conversation against a tree of today.

A request is sent when every reply that the recording shows before it has arrived, so a client's waiting
and its pipelining are both kept. Replies are compared by tag with those of the recording, field by
field, but for what no two runs share: times, inode numbers, owners, free space. `Replay` is sans-IO:

    replay = Replay(load(path))
    while (step := replay.next()) is not None:
        step is bytes to send, or Expect: feed it the reply with `replay.got(frame)`
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from warren.p9.codec import BadFrame, Dialect, dialect, parse_stat, settle
from warren.p9.fields import Qid, Stat
from warren.p9.messages import PLAIN, Message, Rgetattr, Rreaddir, Rstatfs, Rversion
from warren.traces.record import Passed

_VOLATILE = {
    "uid", "gid", "rdev", "blksize", "blocks", "nlink", "atime", "atime_ns", "mtime", "mtime_ns", "ctime",
    "ctime_ns", "btime", "btime_ns", "gen", "data_version",
}  # fmt: skip
_PASSING = re.compile(rb"(?<=trace=)[0-9a-f]{16}|(?<=ts=)[0-9.]+")


@dataclass(frozen=True)
class Expect:
    """The next reply must carry this tag."""

    tag: int


class Different(AssertionError):
    """A reply is not what was recorded; the text says which request, and how."""


class Replay:
    """One recording on its way through a server."""

    def __init__(self, passed: list[Passed]) -> None:
        self._passed = passed
        self._at = 0
        self._codec: Dialect = dialect(PLAIN)
        self._asked: dict[int, Message] = {}
        self._arrived: dict[int, list[bytes]] = {}
        self.compared = 0

    def next(self) -> bytes | Expect | None:
        """A frame to send, or the reply to wait for, or None at the end."""
        while self._at < len(self._passed):
            step = self._passed[self._at]
            tag = int.from_bytes(step.frame[5:7], "little")
            if step.asked:
                self._at += 1
                self._asked[tag] = self._codec.parse(step.frame)
                return step.frame
            waiting = self._arrived.get(tag)
            if not waiting:
                return Expect(tag)
            self._compare(step.frame, waiting.pop(0), tag)
            self._at += 1
        return None

    def got(self, frame: bytes) -> None:
        """A reply arrived, in whatever order."""
        self._arrived.setdefault(int.from_bytes(frame[5:7], "little"), []).append(frame)

    def _compare(self, recorded: bytes, frame: bytes, tag: int) -> None:
        want, have = self._codec.parse(recorded), self._codec.parse(frame)
        if isinstance(want, Rversion) and settle(want.version) != "unknown":
            self._codec = dialect(want.version)
        found = list(differences(want, have))
        if found:
            raise Different(f"step {self._at}, {self._asked.get(tag)}: {'; '.join(found)}")
        self.compared += 1


def differences(want: Message, have: Message) -> Iterator[str]:
    """What differs and should not."""
    if type(want) is not type(have):
        yield f"recorded {want!r}, now {have!r}"
        return
    if isinstance(want, Rstatfs):
        return
    if isinstance(want, Rreaddir) and isinstance(have, Rreaddir):
        was, now = sorted(_names(want.data)), sorted(_names(have.data))
        if was != now:
            yield f"names recorded {was}, now {now}"
        return
    for name, _ in want.fields:
        if name in _VOLATILE:
            continue
        a, b = _stable(getattr(want, name)), _stable(getattr(have, name))
        directory = isinstance(want, Rgetattr) and want.qid.type & 0x80
        if a != b and not (name == "size" and directory):
            yield f"{name} recorded {a!r}, now {b!r}"


def _stable(value: object) -> object:
    """A value without what no two runs share."""
    if isinstance(value, Qid):
        return value.type
    if isinstance(value, Stat):
        return (value.qid.type, value.mode, value.length, value.name)
    if isinstance(value, list):
        return [_stable(v) for v in value]
    if isinstance(value, memoryview):
        return _stats(value) or _PASSING.sub(b"-", bytes(value))
    return _PASSING.sub(b"-", value.encode("utf-8", "surrogateescape")) if isinstance(value, str) else value


def _stats(data: memoryview) -> object:
    """A plain directory's bytes as its entries, which hold times and inode numbers; None for other bytes."""
    found, at = [], 0
    try:
        while at < len(data):
            size = 2 + int.from_bytes(data[at : at + 2], "little")
            found.append(_stable(parse_stat(data[at : at + size])))
            at += size
    except (BadFrame, UnicodeDecodeError):
        return None
    return sorted(map(str, found))


def _names(data: bytes | memoryview) -> Iterator[str]:
    at = 0
    while at < len(data):
        n = int.from_bytes(data[at + 22 : at + 24], "little")
        yield str(data[at + 24 : at + 24 + n], "utf-8", "surrogateescape")
        at += 24 + n


__all__ = ["Different", "Expect", "Replay", "differences"]
