"""Text that only grows: lines at the end of a file on disk, or in memory.

A file that would outgrow BOUND is rotated: NAME becomes NAME.1, NAME.1 becomes NAME.2, and what was
NAME.KEPT is gone. A line is written whole or not at all: what a full disk cut short is taken back, the
line is counted as lost, and the next one is tried again. Nothing here raises because of the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

BOUND: Final = 4 << 20
KEPT: Final = 4
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_TAIL: Final = 8192


class Growing(Protocol):
    """Bytes that are read at offsets and grow at the end."""

    def size(self) -> int:
        """How many there are."""

    def read_at(self, offset: int, count: int) -> bytes:
        """At most COUNT of them from OFFSET."""


class Lines(Growing, Protocol):
    """A growing text, its rotated predecessors, and what became of lines that could not be written."""

    lost: int
    failed: str

    def append(self, line: str) -> None:
        """Write one line."""

    def older(self, number: int) -> Growing | None:
        """The NUMBERth predecessor, if there is one."""

    def newest(self) -> str:
        """The last whole line, or nothing."""

    def close(self) -> None:
        """Nothing more will be written."""


class MemoryLines:
    """The newest lines, for a log without a directory."""

    def __init__(self, bound: int = 256 << 10, kept: int = 1) -> None:
        self.lost, self.failed = 0, ""
        self._bound, self._kept = bound, kept
        self._texts: list[MemoryText] = [MemoryText()]

    def append(self, line: str) -> None:
        raw = encoded(line)
        if len(self._texts[0].data) + len(raw) > self._bound and self._texts[0].data:
            self._texts = [MemoryText(), *self._texts[: self._kept]]
        self._texts[0].data += raw

    def size(self) -> int:
        return self._texts[0].size()

    def read_at(self, offset: int, count: int) -> bytes:
        return self._texts[0].read_at(offset, count)

    def older(self, number: int) -> Growing | None:
        return self._texts[number] if 0 < number < len(self._texts) else None

    def newest(self) -> str:
        return last_line(bytes(self._texts[0].data[-_TAIL:]))

    def close(self) -> None:
        self._texts = [MemoryText()]


class MemoryText:
    """Bytes in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, count: int) -> bytes:
        return bytes(self.data[offset : offset + count])


class DiskLines:
    """Lines in a file of a directory, 0600."""

    def __init__(
        self,
        path: Path,
        *,
        bound: int = BOUND,
        kept: int = KEPT,
        tell: Callable[[str], None] = lambda said: None,
    ) -> None:
        self.path = path
        self.lost, self.failed = 0, ""
        self._bound, self._kept, self._tell = bound, max(1, kept), tell
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, _FLAGS, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size += os.write(self._fd, b"\n")  # a crash cut the last line short

    def append(self, line: str) -> None:
        if self._fd < 0:
            self.lost += 1
            return
        raw = encoded(line)
        try:
            if self._size + len(raw) > self._bound and self._size:
                self._rotate()
            self._put(raw)
        except OSError as e:
            self.lost += 1
            self._say(e.strerror or str(e))
        else:
            self._say("")

    def _put(self, raw: bytes) -> None:
        written = os.write(self._fd, raw)
        if written == len(raw):
            self._size += written
            return
        os.ftruncate(self._fd, self._size)
        raise OSError(28, "the disk is full")

    def _rotate(self) -> None:
        for n in range(self._kept, 0, -1):
            older = self.path if n == 1 else self._named(n - 1)
            try:
                older.replace(self._named(n))
            except FileNotFoundError:
                continue
        fd = os.open(self.path, _FLAGS, 0o600)
        os.close(self._fd)
        self._fd, self._size = fd, os.fstat(fd).st_size

    def _say(self, failed: str) -> None:
        """Say it once when writing fails, and once when it works again."""
        if failed != self.failed:
            self.failed = failed
            self._tell(f"{self.path.name} cannot be written: {failed}" if failed else
                       f"{self.path.name} is written again; {self.lost} lines were lost")  # fmt: skip

    def _named(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, offset) if self._fd >= 0 else b""

    def older(self, number: int) -> Growing | None:
        path = self._named(number)
        return DiskText(path) if 0 < number <= self._kept and path.is_file() else None

    def newest(self) -> str:
        return last_line(self.read_at(max(0, self._size - _TAIL), _TAIL))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._size = -1, 0


class DiskText:
    """A file that is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read_at(self, offset: int, count: int) -> bytes:
        try:
            with self.path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), count, offset)
        except FileNotFoundError:
            return b""


def encoded(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace") + b"\n"


def last_line(text: bytes) -> str:
    """The last whole line of the end of a text."""
    lines = text.split(b"\n")
    return lines[-2].decode("utf-8", "replace") if len(lines) > 1 else ""
