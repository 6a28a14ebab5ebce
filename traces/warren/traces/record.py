"""Conversations on file: what a real client said and what it was answered, byte for byte.

A recording (`traces/golden/*.9p`) is a line that names the format, then frames in the order in which
they passed, each with one byte before it: `>` for the client's, `<` for the server's. A frame carries
its own size, so nothing else is needed. Recordings are made once, with real kernels, and replayed for
ever (see `replay`).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = b"9p conversation 1\n"
ASKED, ANSWERED = b">", b"<"


class Passed(NamedTuple):
    """One frame, and whether the client sent it."""

    asked: bool
    frame: bytes


class Split:
    """Frames out of a byte stream, for whoever sits in the middle."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Every frame that DATA completes."""
        self._rest += data
        while len(self._rest) >= 7:
            size = int.from_bytes(self._rest[:4], "little")
            if size < 7:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._rest) < size:
                return
            yield bytes(self._rest[:size])
            del self._rest[:size]


class Recorder:
    """Gathers a conversation; `save` writes it whole or not at all."""

    def __init__(self) -> None:
        self.passed: list[Passed] = []
        self._sides = {True: Split(), False: Split()}

    def feed(self, asked: bool, data: bytes | bytearray | memoryview) -> None:
        """Bytes went by."""
        self.passed += [Passed(asked, frame) for frame in self._sides[asked].feed(data)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording."""
        body = b"".join((ASKED if p.asked else ANSWERED) + p.frame for p in self.passed)
        draft = Path(f"{path}.new")
        draft.write_bytes(MAGIC + body)
        draft.replace(path)


def load(path: str | os.PathLike[str]) -> list[Passed]:
    """A recording's frames; ValueError says where it is damaged."""
    raw = Path(path).read_bytes()
    if not raw.startswith(MAGIC):
        raise ValueError(f"{path}: not a recorded conversation")
    passed, at = [], len(MAGIC)
    while at < len(raw):
        size = int.from_bytes(raw[at + 1 : at + 5], "little")
        if raw[at : at + 1] not in (ASKED, ANSWERED) or size < 7 or at + 1 + size > len(raw):
            raise ValueError(f"{path}: damaged at byte {at}")
        passed.append(Passed(raw[at : at + 1] == ASKED, raw[at + 1 : at + 1 + size]))
        at += 1 + size
    return passed
