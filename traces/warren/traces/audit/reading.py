"""Reading segments: their files, their pieces, their lines. Memory is bounded whatever the files hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from warren.traces.audit.lines import MAX_LINE, Line, parse

_NAME = re.compile(r"(\d{8})\.log")


def segment_name(number: int) -> str:
    """The file of a segment."""
    return f"{number:08}.log"


def segments(directory: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(number, file) of every segment, in order."""
    found = []
    for path in Path(directory).iterdir():
        named = _NAME.fullmatch(path.name)
        if named:
            found.append((int(named[1]), path))
    return sorted(found)


def pieces(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, whatever they are; what is longer than a line comes in parts."""
    with path.open("rb") as file:
        while raw := file.readline(MAX_LINE):
            yield raw


def lines(directory: str | os.PathLike[str]) -> Iterator[tuple[str, bytes, Line]]:
    """(segment, raw, line) of every readable line, in order. Nothing is verified."""
    for _, path in segments(directory):
        for raw in pieces(path):
            line = parse(raw)
            if line is not None:
                yield path.name, raw, line
