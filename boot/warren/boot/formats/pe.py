"""What of a PE image matters here: the format of everything that UEFI firmware starts.

    read(data)           ->  Pe: where its sections and the fields to be written stand
    checksum(data, pe)   ->  the sum that stands in its header

Only what is bounded and plain is read: 64-bit, for x86-64, its sections one behind the other from the end of
the headers on. So all bytes of a file are headers, sections, or what was put behind them, and none of them
can be loaded without being counted in a signature.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from warren.tree import Refused

SECTIONS_MAX: Final = 96
_FIXED: Final = 112  # bytes of the optional header before the directories
_DIRECTORIES: Final = 16
_SECURITY: Final = 4
_PE32_PLUS, _X86_64 = 0x20B, 0x8664
SECTION: Final = struct.Struct("<8sIIIIIIHHI")


class Section(NamedTuple):
    name: str
    size: int
    """In memory."""
    address: int
    raw_size: int
    raw: int


class Pe(NamedTuple):
    """Offsets in the file, and what the header says."""

    coff: int
    optional: int
    table: int
    """Where the section headers begin."""
    sections: tuple[Section, ...]
    alignment: int
    file_alignment: int
    headers: int
    """The bytes of all headers, and so where the first section begins."""
    end: int
    """Where the last section ends."""
    certificates: tuple[int, int]
    """Where the signatures stand behind it, and their bytes; (0, 0) where there are none."""

    @property
    def checksum_at(self) -> int:
        return self.optional + 64

    @property
    def size_of_image_at(self) -> int:
        return self.optional + 56

    @property
    def security_at(self) -> int:
        return self.optional + _FIXED + 8 * _SECURITY


def read(data: bytes) -> Pe:
    """Refused(422) says what is wrong with it."""
    if len(data) < 64 or data[:2] != b"MZ":
        raise no("it does not begin as one")
    (at,) = struct.unpack_from("<I", data, 60)
    coff, optional = at + 4, at + 24
    if at < 64 or optional + _FIXED + 8 * _DIRECTORIES > len(data) or data[at:coff] != b"PE\0\0":
        raise no("its header is not where it says")
    machine, count, _, _, _, size, _ = struct.unpack_from("<HHIIIHH", data, coff)
    (magic,) = struct.unpack_from("<H", data, optional)
    if (machine, magic) != (_X86_64, _PE32_PLUS):
        raise no(f"it is for the machine {machine:#x} in the format {magic:#x}, wanted 64 bits for x86-64")
    alignment, file_alignment = struct.unpack_from("<II", data, optional + 32)
    (headers,) = struct.unpack_from("<I", data, optional + 60)
    (directories,) = struct.unpack_from("<I", data, optional + 108)
    if directories < _SECURITY + 1 or size != _FIXED + 8 * directories or directories > _DIRECTORIES:
        raise no(f"{directories} directories in {size} bytes of header")
    for unit in (alignment, file_alignment):
        if not 16 <= unit <= 1 << 21 or unit & (unit - 1):
            raise no(f"it is aligned to {unit}")
    table = optional + size
    if count > SECTIONS_MAX or table + SECTION.size * count > headers or headers > len(data):
        raise no(f"{count} sections with {headers} bytes of headers")
    sections = []
    for n in range(count):
        name, memory, address, raw_size, raw, *_ = SECTION.unpack_from(data, table + n * SECTION.size)
        sections.append(Section(name.rstrip(b"\0").decode("latin-1"), memory, address, raw_size, raw))
    end = headers
    for s in sorted((s for s in sections if s.raw_size), key=lambda s: s.raw):
        if s.raw != end or s.raw + s.raw_size > len(data):
            raise no(f"the section {s.name!r} begins at {s.raw:#x}, wanted {end:#x} in {len(data):#x}")
        end += s.raw_size
    where, length = struct.unpack_from("<II", data, optional + _FIXED + 8 * _SECURITY)
    if length and not (end <= where and where + length == len(data)):
        raise no("its signatures are not at its end")
    certificates = (where, length) if length else (0, 0)
    return Pe(coff, optional, table, tuple(sections), alignment, file_alignment, headers, end, certificates)


def checksum(data: bytes, pe: Pe) -> int:
    """The sum over all words, carries added again, and the length; the field itself counts as zero."""
    at, total = pe.checksum_at, 0
    view = memoryview(data)
    for piece in (view[:at], view[at + 4 :]):
        for begin in range(0, len(piece), 1 << 20):
            # Adding carries again is counting modulo 65535, and a long number's remainder is taken in one go.
            total += int.from_bytes(piece[begin : begin + (1 << 20)], "little") % 0xFFFF
    folded = total % 0xFFFF
    return (0xFFFF if total and not folded else folded) + len(data)


def no(why: str) -> Refused:
    return Refused(422, f"this is no image that firmware here starts: {why}")
