"""The two ways by which a kernel lets itself be entered: a multiboot header, and a PVH note.

    header(data)   ->  the first multiboot header that holds, with its offset; or None
    pvh(data)      ->  the address that the PVH note tells; or None
    check(data)    ->  [] or every fault, as `warren.boot.formats.elf` tells them

A loader looks for the header in the first 8 KiB, at every fourth byte, and heeds it if its checksum makes
zero. Without the load addresses in it (flag 16) the image is loaded as the ELF that it is. The note is the
way into a machine without a BIOS; it stands in a segment of notes under the name Xen and the number 18.

An image needs one of the two. One that has both is judged by both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from warren.boot.formats.elf import KERNEL, Fault
from warren.boot.formats.headers import LOAD, Segment, X, segments

MAGIC: Final = 0x1BADB002
SEARCHED: Final = 8192
NOTES_READ: Final = 64
_ADDRESSES: Final = 1 << 16
_KNOWN: Final = 0x3 | _ADDRESSES  # pages for modules, memory told, load addresses
_VIDEO: Final = 1 << 2
_NOTE, _PHYS32_ENTRY = 4, 18

SENTENCES: Final = {
    "no_way_in": "there is neither a multiboot header in the first 8192 bytes nor a PVH note",
    "checksum": "the multiboot header's checksum {found:#x}, wanted {wanted:#x}",
    "video": "the multiboot header asks for a video mode, which no machine here has",
    "flags": "the multiboot header has the flags {found:#x}, of which {wanted:#x} are known",
    "header_cut": "the multiboot header does not end within the first 8192 bytes",
    "load_order": "load {found:#x}, end {wanted:#x} and zeroes {other:#x} are not in this order",
    "header_address": "the header at {found:#x} calls its address {wanted:#x}, below what is loaded",
    "load_outside_file": "the load runs to {found:#x} in the file, which has {size:#x}",
    "outside_window": "it is loaded from {found:#x} to {wanted:#x}, not within {low:#x} to {high:#x}",
    "entry_outside": "the entry {found:#x} is outside of what is loaded",
    "note_cut": "a note reaches to {found:#x}, beyond its segment's end at {wanted:#x}",
    "pvh_size": "the PVH note has {found} bytes, wanted 4 or 8",
    "pvh_entry_outside": "the PVH entry {found:#x} is in no segment that can be executed",
}
_fault = partial(Fault.told, SENTENCES)


class Header(NamedTuple):
    """Where it stands, what it asks for, and the load addresses if it has them."""

    offset: int
    flags: int
    checksum: int
    addresses: Addresses | None


class Addresses(NamedTuple):
    header: int
    load: int
    load_end: int
    """0: to the end of the file."""
    bss_end: int
    """0: no zeroes."""
    entry: int


def header(data: bytes) -> Header | None:
    return next((found for found in _headers(data) if _holds(found)), None)


def pvh(data: bytes) -> int | None:
    """The PVH entry, a physical address."""
    at = _pvh(data)
    return at[1] if isinstance(at, tuple) else None


def check(data: bytes, window: tuple[int, int] = KERNEL.window) -> list[Fault]:
    """Every fault of the ways in. An ELF's own faults are told by `elf.check`."""
    return list(_faults(data, window))


def _headers(data: bytes) -> Iterator[Header]:
    """Every header that has the magic number, and room for the rest."""
    searched = data[:SEARCHED]
    mark, at = struct.pack("<I", MAGIC), -1
    while (at := searched.find(mark, at + 1)) >= 0:
        if at % 4 or at + 12 > len(searched):
            continue
        flags, checksum = struct.unpack_from("<II", searched, at + 4)
        whole = flags & _ADDRESSES and at + 32 <= len(searched)
        addresses = Addresses(*struct.unpack_from("<5I", searched, at + 12)) if whole else None
        yield Header(at, flags, checksum, addresses)


def _holds(found: Header) -> bool:
    return (MAGIC + found.flags + found.checksum) & 0xFFFFFFFF == 0


def _faults(data: bytes, window: tuple[int, int]) -> Iterator[Fault]:
    marked, found, note = next(_headers(data), None), header(data), _pvh(data)
    if found is None and note is None:
        if marked is None:
            yield _fault("no_way_in", 0)
        else:
            wanted = -(MAGIC + marked.flags) & 0xFFFFFFFF
            yield _fault("checksum", marked.offset + 8, found=marked.checksum, wanted=wanted)
    if found is not None:
        yield from _header(data, found, window)
    if isinstance(note, Fault):
        yield note
    elif note is not None:
        at, entry = note
        if not any(_executes(s, entry) for _, s in segments(data)):
            yield _fault("pvh_entry_outside", at, found=entry)


def _header(data: bytes, found: Header, window: tuple[int, int]) -> Iterator[Fault]:
    at = found.offset
    if found.flags & _VIDEO:
        yield _fault("video", at + 4)
    if found.flags & 0xFFFF & ~(_KNOWN | _VIDEO):  # a loader must refuse the lower half, and skip the upper
        yield _fault("flags", at + 4, found=found.flags, wanted=_KNOWN)
    if not found.flags & _ADDRESSES:
        return
    if found.addresses is None:
        yield _fault("header_cut", at)
        return
    a = found.addresses
    first = at - (a.header - a.load)  # of the file that is loaded
    if a.header < a.load or first < 0:
        yield _fault("header_address", at + 12, found=at, wanted=a.header)
        return
    end = a.load_end or a.load + len(data) - first
    zeroes = a.bss_end or end
    if not a.load <= end <= zeroes:
        yield _fault("load_order", at + 16, found=a.load, wanted=end, other=zeroes)
        return
    if first + end - a.load > len(data):
        yield _fault("load_outside_file", at + 20, found=first + end - a.load, size=len(data))
    low, high = window
    if not (low <= a.load and zeroes <= high):
        yield _fault("outside_window", at + 16, found=a.load, wanted=zeroes, low=low, high=high)
    if not a.load <= a.entry < end:
        yield _fault("entry_outside", at + 28, found=a.entry)


def _pvh(data: bytes) -> tuple[int, int] | Fault | None:
    """The offset of the note's words and the entry they tell, or what is wrong with the notes."""
    for _, s in segments(data):
        if s.kind != _NOTE or s.offset + s.filesz > len(data):
            continue
        at, end = s.offset, s.offset + s.filesz
        for _ in range(NOTES_READ):
            if at + 12 > end:
                break
            namesz, size, kind = struct.unpack_from("<III", data, at)
            words = at + 12 + (namesz + 3) // 4 * 4
            if words + size > end:
                return _fault("note_cut", at, found=words + size, wanted=end)
            if kind == _PHYS32_ENTRY and data[at + 12 : at + 12 + namesz] == b"Xen\0":
                if size not in (4, 8):
                    return _fault("pvh_size", words, found=size)
                return words, int.from_bytes(data[words : words + size], "little")
            at = words + (size + 3) // 4 * 4
    return None


def _executes(s: Segment, entry: int) -> bool:
    return s.kind == LOAD and bool(s.flags & X) and s.paddr <= entry < s.paddr + s.filesz
