"""A small sound ELF, and ways to spoil one, each with the name of the fault that it must be refused by.

The offsets are written here a second time, from the format's own description, so that the reader under test
does not decide where the mutations go. A mutation takes any sound 64-bit ELF with a text and a data segment.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

BASE = 0x400000
PAGE = 0x1000
LOAD, STACK = 1, 0x6474E551
R, W, X = 4, 2, 1
CODE = b"\x0f\x05" * 24


def phdr(
    kind: int, flags: int, offset: int, address: int, filesz: int, memsz: int, align: int = PAGE
) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, filesz, memsz, align)


def elf(*headers: bytes, entry: int = BASE, body: bytes = b"") -> bytes:
    """An executable with these program headers; `body` is what follows them, from the page after."""
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    head = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, len(headers), 0, 0, 0)
    return (ident + head + b"".join(headers)).ljust(PAGE, b"\0") + body


def sound() -> bytes:
    """Code, data with zeroes behind it, and a stack that is not executed."""
    data = b"data" * 8
    return elf(
        phdr(LOAD, R | X, PAGE, BASE, len(CODE), len(CODE)),
        phdr(LOAD, R | W, 2 * PAGE, BASE + 2 * PAGE, len(data), len(data) + 0x800),
        phdr(STACK, R | W, 0, 0, 0, 0, 16),
        body=CODE.ljust(PAGE, b"\0") + data,
    )


def sized(bytes_: int) -> bytes:
    """A sound image that takes this much memory."""
    return elf(
        phdr(LOAD, R | X, PAGE, BASE, len(CODE), PAGE),
        phdr(LOAD, R | W, 0, BASE + PAGE, 0, bytes_ - PAGE),
        body=CODE,
    )


def sound_kernel() -> bytes:
    """The 32-bit kind: one segment of everything, as a kernel may have."""
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    head = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x100000, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", LOAD, PAGE, 0x100000, 0x100000, len(CODE), PAGE, R | W | X, PAGE)
    return (ident + head + segment).ljust(PAGE, b"\0") + CODE


Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Mutant:
    name: str
    fault: str
    change: Change

    def __str__(self) -> str:
        return self.name


def put(data: bytes, at: int, form: str, value: int) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def get(data: bytes, at: int, form: str) -> int:
    (value,) = struct.unpack_from(form, data, at)
    return int(value)


def at(offset: int, form: str, value: int) -> Change:
    """Write one field of the header anew."""
    return lambda data: put(data, offset, form, value)


FIELDS = {"type": (0, "<I"), "flags": (4, "<I"), "offset": (8, "<Q"), "address": (16, "<Q"),
          "filesz": (32, "<Q"), "memsz": (40, "<Q"), "align": (48, "<Q")}  # fmt: skip


def find(data: bytes, flag: int, kind: int = LOAD) -> int:
    """Where the first header of this kind stands whose segment may do this."""
    first = get(data, 32, "<Q")
    places = (first + 56 * n for n in range(get(data, 56, "<H")))
    return next(p for p in places if get(data, p, "<I") == kind and get(data, p + 4, "<I") & flag)


def segment(flag: int, kind: int = LOAD, **fields: int | Callable[[Callable[[str], int]], int]) -> Change:
    """Write fields anew in the first segment that may do `flag`; a function is given the old values."""

    def change(data: bytes) -> bytes:
        place = find(data, flag, kind)

        def old(name: str) -> int:
            offset, form = FIELDS[name]
            return get(data, place + offset, form)

        result = data
        for name, value in fields.items():
            offset, form = FIELDS[name]
            result = put(result, place + offset, form, value if isinstance(value, int) else value(old))
        return result

    return change


def entry_of(flag: int, beyond: bool = False) -> Change:
    """Enter at the beginning of a segment, or behind what the file gives it."""

    def change(data: bytes) -> bytes:
        place = find(data, flag)
        address = get(data, place + 16, "<Q")
        return put(data, 24, "<Q", address + (get(data, place + 32, "<Q") if beyond else 0))

    return change


def cut(data: bytes) -> bytes:
    """End within the last bytes that a segment has in the file."""
    first = get(data, 32, "<Q")
    places = [first + 56 * n for n in range(get(data, 56, "<H"))]
    loads = [p for p in places if get(data, p, "<I") == LOAD and get(data, p + 32, "<Q")]
    return data[: max(get(data, p + 8, "<Q") + get(data, p + 32, "<Q") for p in loads) - 1]


def overlapping(data: bytes) -> bytes:
    """The data where the code is."""
    code, moved = find(data, X), find(data, W)
    return put(data, moved + 16, "<Q", get(data, code + 16, "<Q"))


def sharing(data: bytes) -> bytes:
    """The data right behind the code, in its last page."""
    code, moved = find(data, X), find(data, W)
    end = get(data, code + 16, "<Q") + get(data, code + 40, "<Q")
    data = put(put(data, moved + 16, "<Q", end), moved + 48, "<Q", 1)
    return put(data, moved + 40, "<Q", max(16, get(data, moved + 32, "<Q")))


# The fifteen: what a loader lets pass, or fails on late, or not at all.
FIFTEEN = [
    Mutant("of 32 bits", "class", at(4, "B", 1)),
    Mutant("for another machine", "machine", at(18, "<H", 183)),
    Mutant("that is a shared object", "type", at(16, "<H", 3)),
    Mutant("with a segment of no type", "null_segment", segment(W, type=0)),
    Mutant("with a text that is not executable", "entry_not_executable", segment(X, flags=R)),
    Mutant("with code that can be written", "writable_code", segment(X, flags=R | W | X)),
    Mutant("with segments over each other", "overlap", overlapping),
    Mutant("entered outside", "entry_outside", at(24, "<Q", 0x1234)),
    Mutant("of more file than memory", "larger_than_memory", segment(X, memsz=lambda old: old("filesz") - 1)),
    Mutant("cut short", "segment_outside_file", cut),
    Mutant("too large for its capabilities", "too_large", segment(W, memsz=16 << 20)),
    Mutant("misaligned", "misaligned", segment(X, offset=lambda old: old("offset") - 16)),
    Mutant("with headers out of bounds", "segment_headers_outside", at(32, "<Q", 1 << 40)),
    Mutant("outside the window", "outside_window", segment(W, address=0x7FFFFFFFF000 - PAGE)),
    Mutant("over the end", "address_overflow", segment(W, address=(1 << 64) - PAGE, memsz=PAGE + 1)),
]

MORE = [
    Mutant("shorter than its header", "short", lambda data: data[:63]),
    Mutant("of nothing", "short", lambda data: b""),
    Mutant("of something else", "magic", at(0, "<I", 0x464C457E)),
    Mutant("with the highest byte first", "byte_order", at(5, "B", 2)),
    Mutant("of a later format", "ident_version", at(6, "B", 2)),
    Mutant("for another system", "os_abi", at(7, "B", 9)),
    Mutant("of version 0", "version", at(20, "<I", 0)),
    Mutant("with processor flags", "flags", at(48, "<I", 1)),
    Mutant("with a header of another size", "header_size", at(52, "<H", 52)),
    Mutant("with headers of another size", "segment_header_size", at(54, "<H", 32)),
    Mutant("without segments", "no_segments", at(56, "<H", 0)),
    Mutant("with 65535 segments", "too_many_segments", at(56, "<H", 0xFFFF)),
    Mutant("with odd sections", "section_header_size",
           lambda data: put(put(data, 60, "<H", 1), 58, "<H", 63)),
    Mutant("with sections out of bounds", "section_headers_outside",
           lambda data: put(put(put(data, 60, "<H", 9), 58, "<H", 64), 40, "<Q", 1 << 60)),
    Mutant("with no section of names", "section_names",
           lambda data: put(put(data, 60, "<H", 1), 62, "<H", 1)),
    Mutant("with an interpreter", "interpreter", segment(W, type=3)),
    Mutant("that is linked at start", "dynamic", segment(W, type=2)),
    Mutant("with a segment of unknown type", "unknown_segment", segment(W, type=0x70000000)),
    Mutant("with an executable stack", "executable_stack", segment(W, STACK, flags=R | W | X)),
    Mutant("with a segment that may do nothing", "segment_flags", segment(W, flags=0)),
    Mutant("with unknown flags", "segment_flags", segment(W, flags=0x100006)),
    Mutant("with a segment of no memory", "empty_segment", segment(W, filesz=0, memsz=0)),
    Mutant("aligned to three", "alignment", segment(W, align=3)),
    Mutant("not at a page", "not_page_aligned",
           segment(X, address=lambda old: old("address") - 256, offset=lambda old: old("offset") - 256)),
    Mutant("with code and data in one page", "shared_page", sharing),
    Mutant("entered behind the file's part", "entry_in_zeroes",
           lambda data: entry_of(W, beyond=True)(segment(W, memsz=lambda old: old("filesz") + 64)(data))),
    Mutant("at address 0", "outside_window", segment(X, address=0)),
]  # fmt: skip

MUTANTS = FIFTEEN + MORE
