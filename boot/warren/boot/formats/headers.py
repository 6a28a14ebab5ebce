"""What is written in an ELF, read and not judged.

    header(data)     ->  its class and its header; None where they cannot be read
    segments(data)   ->  the program headers that lie in the file, each with its offset
    needed(loads)    ->  pages and capability slots that loading them takes

The two classes differ in the width and the order of their fields; a Layout says where each stands. Judging
is the part of `warren.boot.formats.elf`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

SEGMENTS: Final = 64
"""Program headers that are looked at."""
PAGE: Final = 4096
LOAD, DYNAMIC, INTERP = 1, 2, 3
X, W, R = 1, 2, 4

_TABLE: Final = 512 * PAGE  # what one page table maps, and so one entry of the table above
# Slots of the root's capability space that are not the image's: the fixed ones, and room for the untyped
# memory of an ordinary machine. With 12 bits, 15 MiB boot and 16 MiB do not.
_SLOTS_TAKEN: Final = 216


class Header(NamedTuple):
    kind: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True)
class Layout:
    """How one class writes it down: the structs, and where in each a field stands."""

    word: int
    header: struct.Struct
    segment: struct.Struct
    section_size: int
    flags_at: int  # of a segment

    def at(self, field: str) -> int:
        """The offset of a header's field."""
        w = self.word
        after = 36 + 3 * (w - 4)
        return {
            "type": 16, "machine": 18, "version": 20, "entry": 24, "phoff": 24 + w, "shoff": 24 + 2 * w,
            "flags": after, "ehsize": after + 4, "phentsize": after + 6, "phnum": after + 8,
            "shentsize": after + 10, "shnum": after + 12, "shstrndx": after + 14,
        }[field]  # fmt: skip

    def read(self, data: bytes, at: int) -> Segment:
        v = self.segment.unpack_from(data, at)
        if self.word == 8:
            return Segment(*v)
        return Segment(v[0], v[6], v[1], v[2], v[3], v[4], v[5], v[7])


LAYOUTS: Final = {
    32: Layout(4, struct.Struct("<HHIIIIIHHHHHH"), struct.Struct("<8I"), 40, 24),
    64: Layout(8, struct.Struct("<HHIQQQIHHHHHH"), struct.Struct("<II6Q"), 64, 4),
}
CLASSES: Final = {1: 32, 2: 64}


def header(data: bytes) -> tuple[int, Header] | None:
    """The image's class, 32 or 64, and its header; None where neither can be read."""
    bits = CLASSES.get(data[4], 0) if data[:4] == b"\x7fELF" and len(data) > 5 and data[5] == 1 else 0
    if not bits or len(data) < 16 + LAYOUTS[bits].header.size:
        return None
    return bits, Header(*LAYOUTS[bits].header.unpack_from(data, 16))


def segments(data: bytes) -> list[tuple[int, Segment]]:
    """The first SEGMENTS program headers that lie in the file, each with its offset."""
    read = header(data)
    if read is None or read[1].phentsize != LAYOUTS[read[0]].segment.size:
        return []
    (bits, head), size = read, read[1].phentsize
    places = (head.phoff + n * size for n in range(min(head.phnum, SEGMENTS)))
    return [(at, LAYOUTS[bits].read(data, at)) for at in places if at + size <= len(data)]


def needed(loads: list[Segment]) -> tuple[int, int]:
    """How many pages the image spans, and how many capability slots it leaves the root task needing.

    The loader maps one range, from the lowest address to the highest, holes and all. After it come the
    buffer for messages and the BootInfo page, which have slots of their own but share the page tables.
    """
    low = min(s.vaddr for s in loads) // PAGE * PAGE
    high = -(-max(s.vaddr + s.memsz for s in loads) // PAGE) * PAGE
    pages, mapped, tables = (high - low) // PAGE, high + 2 * PAGE, 0
    span = _TABLE
    for _ in range(3):  # page tables, directories, and the tables of those
        tables += (mapped - 1) // span - low // span + 1
        span *= 512
    return pages, pages + tables + _SLOTS_TAKEN
