"""Which inputs of a corpus are worth keeping: the small ones that together reach what all of them reach.

What an input reaches is the set of steps from line to line in our own code. The input that adds most is
taken first, until none adds anything or the cap is reached.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Step = tuple[str, int, int]


def reached(target: Callable[[bytes], None], data: bytes) -> set[Step]:
    """Every step from line to line that the target takes on DATA."""
    steps: set[Step] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/warren/" not in name and "warren.p9" not in name:
            return None
        # Generated parsers share one file name; their message tells them apart.
        name += getattr(frame.f_globals.get("cls"), "__name__", "")
        last = 0

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        target(data)
    finally:
        sys.settrace(before)
    return steps


def minimise(target: Callable[[bytes], None], folder: Path, cap: int) -> None:
    """Leave in FOLDER only what is worth keeping, under names that sort by size."""
    left = {data: reached(target, data) for data in {path.read_bytes() for path in folder.iterdir()}}
    kept: list[bytes] = []
    while left and len(kept) < cap:
        best = max(left, key=lambda data: (len(left[data]), -len(data)))
        new = left.pop(best)
        if not new:
            break
        kept.append(best)
        for steps in left.values():
            steps -= new
    shutil.rmtree(folder)
    folder.mkdir()
    for number, data in enumerate(sorted(kept, key=len)):
        (folder / f"{number:03}").write_bytes(data)
