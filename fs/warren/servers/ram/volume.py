"""The room of one tree in memory, and the pages of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from warren.tree import Bytes, Refused
from warren.tree.locks import Locks

PAGE: Final = 4096
GREATEST: Final = (1 << 63) - 1
_NOTHING: Final = bytes(PAGE)


class Volume:
    """How much there is, and how much is taken."""

    def __init__(self, size: int, files: int, now: Callable[[], int]) -> None:
        self.pages, self.files, self.now = -(-size // PAGE), files, now
        self.pages_used = self.files_used = 0
        self.locks = Locks()

    def take_pages(self, count: int) -> None:
        if self.pages_used + count > self.pages:
            raise Refused(507, f"the tree holds {self.pages * PAGE} bytes; remove something first")
        self.pages_used += count

    def take_file(self) -> None:
        if self.files_used >= self.files:
            raise Refused(507, f"the tree holds {self.files} files; remove something first")
        self.files_used += 1


class Data:
    """Bytes at offsets. A page exists once something was written to it; beyond the size there is none."""

    __slots__ = ("pages", "size", "volume")

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.size = 0
        self.pages: dict[int, bytearray] = {}

    def read(self, offset: int, count: int) -> bytes:
        end = min(offset + count, self.size)
        if offset >= end:
            return b""
        first, last = offset // PAGE, (end - 1) // PAGE
        whole = b"".join(self.pages.get(n, _NOTHING) for n in range(first, last + 1))
        at = offset - first * PAGE
        return whole[at : at + end - offset]

    def write(self, offset: int, data: Bytes) -> None:
        """All of DATA, or a refusal and nothing."""
        end = offset + len(data)
        if end > GREATEST:
            raise Refused(413, "no file is that large")
        if not data:
            return
        numbers = range(offset // PAGE, (end - 1) // PAGE + 1)
        fresh = [n for n in numbers if n not in self.pages]
        self.volume.take_pages(len(fresh))
        for n in fresh:
            self.pages[n] = bytearray(PAGE)
        view = memoryview(data)
        for n in numbers:
            begin, stop = max(offset, n * PAGE), min(end, (n + 1) * PAGE)
            self.pages[n][begin - n * PAGE : stop - n * PAGE] = view[begin - offset : stop - offset]
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        if not 0 <= size <= GREATEST:
            raise Refused(413, "no file is that large")
        if size < self.size:
            kept = -(-size // PAGE)
            for n in [n for n in self.pages if n >= kept]:
                del self.pages[n]
                self.volume.pages_used -= 1
            if (rest := size % PAGE) and (page := self.pages.get(kept - 1)) is not None:
                page[rest:] = bytes(PAGE - rest)  # what is cut off must not come back when it grows again
        self.size = size

    def free(self) -> None:
        self.volume.pages_used -= len(self.pages)
        self.pages = {}
