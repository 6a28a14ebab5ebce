"""The audit as one text that grows: the segments of a directory, one behind the other.

    text = audit_text(audit)        of an AuditFile or an AuditMemory
    text.size(), text.read_at(offset, count)

Segments are only appended to and never removed, so an offset always means the same byte, and `tail -f`
and `grep` work on the whole as on a file. What an AuditMemory has forgotten is missing at the beginning.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

import msgspec
from warren.traces.audit.lines import Audit, Line, legible
from warren.traces.audit.memory import AuditMemory
from warren.traces.audit.reading import segment_name, segments
from warren.traces.audit.segments import AuditFile

_MOST: Final = 1 << 20


class SegmentText:
    """The segments of a directory. Only the last one is looked at more than once."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._ended: list[tuple[int, Path]] = []  # (where it ends, file) of each segment with a successor
        self._number = 0
        self._begins = 0  # of the last segment

    def size(self) -> int:
        """How many bytes there are."""
        return self._begins + self._look()

    def _look(self) -> int:
        """The size of the last segment, once it is known which that is."""
        if not self._number:
            found = segments(self.directory)
            if not found:
                return 0
            self._number = found[0][0]
        while True:
            path = self.directory / segment_name(self._number)
            following = (self.directory / segment_name(self._number + 1)).exists()
            size = path.stat().st_size  # after the look: with a successor it grows no more
            if not following:
                return size
            self._begins += size
            self._ended.append((self._begins, path))
            self._number += 1

    def read_at(self, offset: int, count: int) -> bytes:
        """At most COUNT bytes; a read ends where its segment does."""
        last = self._look()
        begins = 0
        for ends, path in self._ended:
            if offset < ends:
                return _piece(path, offset - begins, count)
            begins = ends
        if not self._number or offset >= begins + last:
            return b""
        return _piece(self.directory / segment_name(self._number), offset - begins, count)


def _piece(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), count, offset)


class MemoryAuditText:
    """The lines of an audit in memory, as JSON. Beyond a bound the oldest go."""

    def __init__(self, audit: AuditMemory) -> None:
        self._lines: deque[Line] = audit.lines
        self._seen = 0
        self._text = bytearray()

    def _catch_up(self) -> None:
        news = []
        for line in reversed(self._lines):
            if line.seq <= self._seen:
                break
            news.append(line)
        for line in reversed(news):
            self._text += _encode(line) + b"\n"
            self._seen = line.seq
        if len(self._text) > _MOST:
            cut = self._text.find(b"\n", len(self._text) - _MOST // 2)
            del self._text[: cut + 1]

    def size(self) -> int:
        self._catch_up()
        return len(self._text)

    def read_at(self, offset: int, count: int) -> bytes:
        self._catch_up()
        return bytes(self._text[offset : offset + count])


_encoder = msgspec.json.Encoder()


def _encode(line: Line) -> bytes:
    try:
        return _encoder.encode(line)
    except UnicodeEncodeError:  # a name that is not UTF-8
        return _encoder.encode(legible(line))


def audit_text(audit: Audit) -> SegmentText | MemoryAuditText | None:
    """The text of an audit, if it is one of ours."""
    if isinstance(audit, AuditFile):
        return SegmentText(audit.directory)
    return MemoryAuditText(audit) if isinstance(audit, AuditMemory) else None
