"""Is this ELF one that may be booted? A judge stricter than the kernels that load it.

    check(data, ROOT_TASK)   ->  [] or every fault at once, each with a name, an offset and a sentence
    describe(data)           ->  the text of /boot/images/<n>/elf, which ends with the verdict, ok or refused

A kernel that loads its first program looks at little of it: a wrong machine, segments of no type, writable
code and a text that may not be executed all boot, a segment with more bytes in the file than in memory hangs
without a word, and an image too large for the capability space fails late. So it is judged here, before
anything starts, from the bytes alone.

There are two sets of rules. ROOT_TASK is the first program, 64 bits. KERNEL is what the machine's loader
takes: a 32-bit ELF around the kernel, whose addresses are physical; nobody heeds the flags of its segments,
since a kernel makes its own page tables. `replace(rules, ...)` narrows either to the machine at hand.

Nothing is trusted before it is bounded. The tables are looked at only where they lie in the file, only the
first SEGMENTS headers are read, and after FAULTS_KEPT faults the rest is not told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from warren.boot.formats.headers import (
    CLASSES,
    DYNAMIC,
    INTERP,
    LAYOUTS,
    LOAD,
    PAGE,
    SEGMENTS,
    Header,
    Layout,
    R,
    Segment,
    W,
    X,
    header,
    needed,
    segments,
)  # fmt: skip

FAULTS_KEPT: Final = 100
_STACK: Final = 0x6474E551
_TYPES: Final = {
    0: "null", LOAD: "load", DYNAMIC: "dynamic", INTERP: "interp", 4: "note", 6: "phdr", 7: "tls",
    0x6474E550: "eh_frame", _STACK: "stack", 0x6474E552: "relro", 0x6474E553: "property",
}  # fmt: skip
_MACHINES: Final = {3: "386", 62: "x86-64", 40: "arm", 183: "aarch64", 243: "riscv"}
_KINDS: Final = {1: "relocatable", 2: "executable", 3: "shared", 4: "core"}

# Every fault there is: its name, and its sentence.
SENTENCES: Final = {
    "short": "{size} bytes are no ELF header; it has {wanted}",
    "magic": "it does not begin as an ELF",
    "class": "class {found}, wanted {wanted}: an image for another kind of processor, or of another mode",
    "byte_order": "byte order {found}, wanted 1, the lowest byte first",
    "ident_version": "identification version {found}, wanted 1",
    "os_abi": "made for the system {found}, wanted 0 or 3: link it freestanding",
    "type": "type {found}, wanted 2, an executable with fixed addresses: link it with -static -no-pie",
    "machine": "machine {found}, wanted {wanted}",
    "version": "version {found}, wanted 1",
    "flags": "processor flags {found:#x}, wanted none",
    "header_size": "the header calls itself {found} bytes long, wanted {wanted}",
    "no_segments": "there is nothing to load",
    "segment_header_size": "a program header of {found} bytes, wanted {wanted}",
    "too_many_segments": "{found} program headers; at most {wanted} are looked at",
    "segment_headers_outside": "the program headers reach to {found:#x}, beyond the file's {size:#x}",
    "section_header_size": "a section header of {found} bytes, wanted {wanted}",
    "section_headers_outside": "the section headers reach to {found:#x}, beyond the file's {size:#x}",
    "section_names": "the section with the names is {found} of {wanted}",
    "null_segment": "segment {n} has no type",
    "interpreter": "segment {n} asks for an interpreter: link it with -static",
    "dynamic": "segment {n} asks for a dynamic linker: link it with -static -no-pie",
    "unknown_segment": "segment {n} has the type {found:#x}, which nothing here knows",
    "executable_stack": "segment {n} asks for a stack that can be executed: assemble with --noexecstack",
    "segment_flags": "segment {n} has the flags {found:#x}, wanted some of 4 read, 2 write, 1 execute",
    "empty_segment": "segment {n} takes no memory",
    "segment_outside_file": "segment {n} ends at {found:#x}, beyond the file's {size:#x}: the file is cut",
    "larger_than_memory": "segment {n} has {found:#x} bytes in the file and {wanted:#x} in memory",
    "alignment": "segment {n} is aligned to {found:#x}, which is no power of two",
    "misaligned": "segment {n}: address {found:#x} and offset {wanted:#x} differ within the alignment",
    "not_page_aligned": "the lowest address {found:#x} is not at a page's beginning",
    "address_overflow": "segment {n} runs over the end of the address space",
    "outside_window": "segment {n}, {found:#x} to {wanted:#x}, is not within {low:#x} to {high:#x}",
    "overlap": "segments {n} and {other} take the same addresses at {found:#x}",
    "writable_code": "segment {n} can be written and executed",
    "shared_page": "segments {n} and {other} share the page at {found:#x}: one writable, one executable",
    "entry_outside": "the entry {found:#x} is in no segment",
    "entry_not_executable": "the entry {found:#x} is in segment {n}, which may not be executed",
    "entry_in_zeroes": "the entry {found:#x} is beyond what the file fills of segment {n}",
    "too_large": "{found} capability slots are needed for {pages} pages, and {wanted} are there",
    "more": "there are more faults than {wanted}; the rest is not told",
}


class Fault(NamedTuple):
    name: str
    offset: int
    text: str

    def __str__(self) -> str:
        return f"{self.name} at {self.offset:#x}: {self.text}"

    @classmethod
    def told(cls, sentences: Mapping[str, str], name: str, offset: int, **facts: int) -> Fault:
        return cls(name, offset, sentences[name].format(**facts))


@dataclass(frozen=True)
class Rules:
    """What an image must be. `window`: the lowest address it may use, and the first that it may not."""

    bits: int
    machine: int
    window: tuple[int, int]
    physical: bool = False
    """The machine's loader goes by the physical addresses."""
    strict_pages: bool = True
    """The lowest address begins a page, and no page can be both written and executed."""
    cnode_bits: int | None = None


ROOT_TASK: Final = Rules(64, 62, (0x10000, 0x7FFFFFFFF000 - 2 * PAGE), cnode_bits=12)
KERNEL: Final = Rules(32, 3, (0x100000, 0x40000000), physical=True, strict_pages=False)


def check(data: bytes, rules: Rules = ROOT_TASK) -> list[Fault]:
    """Every fault of the image, in the order they were found."""
    found: list[Fault] = []
    for fault in _faults(data, rules):
        if len(found) == FAULTS_KEPT:
            found.append(_fault("more", fault.offset, wanted=FAULTS_KEPT))
            break
        found.append(fault)
    return found


def describe(data: bytes, rules: Rules = ROOT_TASK) -> str:
    """The image, and what is wrong with it, as lines."""
    lines = [f"size={len(data)}", f"sha256={hashlib.sha256(data).hexdigest()}"]
    read = header(data)
    if read is not None:
        bits, head = read
        lines += [
            f"class={bits}",
            f"machine={_MACHINES.get(head.machine, head.machine)}",
            f"type={_KINDS.get(head.kind, head.kind)}",
            f"entry={head.entry:#x}",
            f"segments={head.phnum}",
        ]
        found = segments(data)
        for n, (_, s) in enumerate(found):
            flags = "".join(c if s.flags & bit else "-" for c, bit in (("r", R), ("w", W), ("x", X)))
            lines.append(
                f"segment={n} type={_TYPES.get(s.kind, hex(s.kind))} flags={flags} offset={s.offset:#x}"
                f" address={s.vaddr:#x} physical={s.paddr:#x} file={s.filesz:#x} memory={s.memsz:#x}"
                f" align={s.align:#x}"
            )
        loads = [s for _, s in found if s.kind == LOAD and s.memsz]
        if rules.cnode_bits is not None and loads:
            pages, slots = needed(loads)
            lines += [f"pages={pages}", f"slots={slots}", f"slots_there={1 << rules.cnode_bits}"]
    faults = check(data, rules)
    lines += [f"fault={fault.name} at={fault.offset:#x} why={fault.text}" for fault in faults]
    lines.append(f"verdict={'refused' if faults else 'ok'}")
    return "\n".join(lines) + "\n"


_fault = partial(Fault.told, SENTENCES)


def _faults(data: bytes, rules: Rules) -> Iterator[Fault]:
    layout = LAYOUTS[rules.bits]
    yield from _identity(data, rules)
    read = header(data)
    if read is None or read[0] != rules.bits:
        return  # what follows would be read with the wrong ruler
    head = read[1]
    yield from _header(data, head, rules, layout)
    placed = segments(data)
    for n, (at, s) in enumerate(placed):
        yield from _segment(data, n, at, s, rules, layout)
    # An empty one takes nothing and one that runs over the end has no place: each has its fault already.
    loads = [(n, at, s) for n, (at, s) in enumerate(placed) if s.kind == LOAD and s.memsz]
    if not loads:
        yield _fault("no_segments", layout.at("phnum"))
        return
    yield from _together(loads, rules)
    yield from _entry(head, loads, layout)


def _identity(data: bytes, rules: Rules) -> Iterator[Fault]:
    wanted = 16 + LAYOUTS[rules.bits].header.size
    if len(data) < wanted:
        yield _fault("short", len(data), size=len(data), wanted=wanted)
    if data[:4] != b"\x7fELF":
        yield _fault("magic", 0)
        return
    if len(data) < 16:
        return
    if CLASSES.get(data[4]) != rules.bits:
        yield _fault("class", 4, found=data[4], wanted=rules.bits // 32)
    if data[5] != 1:
        yield _fault("byte_order", 5, found=data[5])
    if data[6] != 1:
        yield _fault("ident_version", 6, found=data[6])
    if data[7] not in (0, 3):
        yield _fault("os_abi", 7, found=data[7])


def _header(data: bytes, head: Header, rules: Rules, layout: Layout) -> Iterator[Fault]:
    if head.kind != 2:
        yield _fault("type", layout.at("type"), found=head.kind)
    if head.machine != rules.machine:
        yield _fault("machine", layout.at("machine"), found=head.machine, wanted=rules.machine)
    if head.version != 1:
        yield _fault("version", layout.at("version"), found=head.version)
    if head.flags:
        yield _fault("flags", layout.at("flags"), found=head.flags)
    size = 16 + layout.header.size
    if head.ehsize != size:
        yield _fault("header_size", layout.at("ehsize"), found=head.ehsize, wanted=size)
    if head.phnum and head.phentsize != layout.segment.size:
        found = head.phentsize
        yield _fault("segment_header_size", layout.at("phentsize"), found=found, wanted=layout.segment.size)
    if head.phnum > SEGMENTS:
        yield _fault("too_many_segments", layout.at("phnum"), found=head.phnum, wanted=SEGMENTS)
    if (end := head.phoff + head.phnum * head.phentsize) > len(data):
        yield _fault("segment_headers_outside", layout.at("phoff"), found=end, size=len(data))
    if not head.shnum:
        return
    if head.shentsize != layout.section_size:
        found = head.shentsize
        yield _fault("section_header_size", layout.at("shentsize"), found=found, wanted=layout.section_size)
    if (end := head.shoff + head.shnum * head.shentsize) > len(data):
        yield _fault("section_headers_outside", layout.at("shoff"), found=end, size=len(data))
    if head.shstrndx >= head.shnum:
        yield _fault("section_names", layout.at("shstrndx"), found=head.shstrndx, wanted=head.shnum)


_REFUSED_TYPES: Final = {0: "null_segment", INTERP: "interpreter", DYNAMIC: "dynamic"}


def _segment(data: bytes, n: int, at: int, s: Segment, rules: Rules, layout: Layout) -> Iterator[Fault]:
    if s.kind in _REFUSED_TYPES:
        yield _fault(_REFUSED_TYPES[s.kind], at, n=n)
    elif s.kind not in _TYPES:
        yield _fault("unknown_segment", at, n=n, found=s.kind)
    if s.kind == _STACK and s.flags & X:
        yield _fault("executable_stack", at + layout.flags_at, n=n)
    if s.filesz and s.offset + s.filesz > len(data):
        yield _fault("segment_outside_file", at, n=n, found=s.offset + s.filesz, size=len(data))
    if s.align & (s.align - 1):
        yield _fault("alignment", at, n=n, found=s.align)
    if s.kind != LOAD:
        return
    if s.flags & ~(R | W | X) or not s.flags:
        yield _fault("segment_flags", at + layout.flags_at, n=n, found=s.flags)
    if not s.memsz:
        yield _fault("empty_segment", at, n=n)
    if s.filesz > s.memsz:
        yield _fault("larger_than_memory", at, n=n, found=s.filesz, wanted=s.memsz)
    power = s.align > 1 and not s.align & (s.align - 1)
    if power and (s.vaddr - s.offset) % s.align:
        yield _fault("misaligned", at, n=n, found=s.vaddr, wanted=s.offset)
    if rules.strict_pages and s.flags & W and s.flags & X:
        yield _fault("writable_code", at + layout.flags_at, n=n)
    start, (low, high) = s.paddr if rules.physical else s.vaddr, rules.window
    if max(start, s.vaddr) + s.memsz > 1 << rules.bits:
        yield _fault("address_overflow", at, n=n)
    elif not (low <= start and start + s.memsz <= high):
        yield _fault("outside_window", at, n=n, found=start, wanted=start + s.memsz, low=low, high=high)


def _together(loads: list[tuple[int, int, Segment]], rules: Rules) -> Iterator[Fault]:
    """What no segment shows alone. Sorted once: each is compared with the one that reaches highest so far."""

    def start(s: Segment) -> int:
        return s.paddr if rules.physical else s.vaddr

    placed = sorted(loads, key=lambda load: start(load[2]))
    if rules.strict_pages and start(placed[0][2]) % PAGE:
        yield _fault("not_page_aligned", placed[0][1], found=start(placed[0][2]))
    highest = placed[0]
    page, flags = -1, 0  # the last page that was begun, and what all say that may be done with it
    for n, at, s in placed:
        other, _, below = highest
        first, last = start(s) // PAGE, (start(s) + s.memsz - 1) // PAGE
        if n != other and start(s) < start(below) + below.memsz:
            yield _fault("overlap", at, n=n, other=other, found=start(s))
        elif rules.strict_pages and first == page and n != other:
            both = s.flags | flags
            if both & W and both & X:
                yield _fault("shared_page", at, n=n, other=other, found=page * PAGE)
        if last > page:
            page, flags = last, 0
        if last == page:
            flags |= s.flags
        if start(s) + s.memsz > start(below) + below.memsz:
            highest = (n, at, s)
    if rules.cnode_bits is not None:
        pages, slots = needed([s for _, _, s in loads])
        if slots > 1 << rules.cnode_bits:
            yield _fault("too_large", placed[-1][1], found=slots, pages=pages, wanted=1 << rules.cnode_bits)


def _entry(head: Header, loads: list[tuple[int, int, Segment]], layout: Layout) -> Iterator[Fault]:
    entry, at = head.entry, layout.at("entry")
    holding = [(n, s) for n, _, s in loads if s.vaddr <= entry < s.vaddr + s.memsz]
    if not holding:
        yield _fault("entry_outside", at, found=entry)
        return
    n, s = holding[0]
    if not s.flags & X:
        yield _fault("entry_not_executable", at, n=n, found=entry)
    if entry >= s.vaddr + s.filesz:
        yield _fault("entry_in_zeroes", at, n=n, found=entry)
