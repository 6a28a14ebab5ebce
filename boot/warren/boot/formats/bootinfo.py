"""BootInfo: what a seL4 kernel tells its first program, as bytes and back.

    BootInfo(...).encode(MCS)   ->  one page, and the extra chunks behind it
    decode(data, PLAIN)         ->  the BootInfo; Refused(422) for what none could be

A page of 64-bit words, and two layouts of it: a kernel with the MCS scheduler has one region of capabilities
more, before the untyped memory. The kernel does not say which it is, so the caller does. Descriptors of
untyped memory are 16 bytes; before 12.0 their size and device flag stood two bytes later (`old`).

Behind the page come `extra_len` bytes of chunks, one after the other and unaligned: a word that says what it
is, a word that counts the bytes with these two words, and a body.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from warren.tree import Refused

PAGE: Final = 4096
EXTRA_MAX: Final = 1 << 20
_DESCRIPTOR: Final = 16
_WORDS: Final = struct.Struct("<19Q")  # up to and with the domain
_CHUNK: Final = struct.Struct("<QQ")


class Layout(NamedTuple):
    name: str
    untyped: int
    """Where the region of untyped capabilities stands."""
    list: int
    """Where their descriptors begin."""
    schedcontrol: int | None

    @property
    def room(self) -> int:
        return (PAGE - self.list) // _DESCRIPTOR


PLAIN: Final = Layout("plain", 152, 168, None)
MCS: Final = Layout("mcs", 168, 184, 152)


class Region(NamedTuple):
    """Slots of capabilities: the first, and the first that is no more in it."""

    start: int
    end: int


NONE: Final = Region(0, 0)


class Untyped(NamedTuple):
    address: int
    bits: int
    device: bool


class Chunk(NamedTuple):
    id: int
    body: bytes


@dataclass(frozen=True)
class BootInfo:
    ipc_buffer: int
    cnode_bits: int
    node: int = 0
    nodes: int = 1
    iopt_levels: int = 0
    empty: Region = NONE
    shared_frames: Region = NONE
    image_frames: Region = NONE
    image_paging: Region = NONE
    io_space: Region = NONE
    extra_pages: Region = NONE
    domain: int = 0
    schedcontrol: Region = NONE
    """Only in the layout of MCS."""
    untyped_start: int = 0
    untyped: tuple[Untyped, ...] = ()
    extra: tuple[Chunk, ...] = field(default=())

    def encode(self, layout: Layout, *, old: bool = False) -> bytes:
        extra = b"".join(_CHUNK.pack(c.id, _CHUNK.size + len(c.body)) + c.body for c in self.extra)
        if len(self.untyped) > layout.room:
            raise Refused(413, f"{len(self.untyped)} untyped; a page has room for {layout.room}")
        if len(extra) > EXTRA_MAX:
            raise Refused(413, f"{len(extra)} bytes of extra chunks; at most {EXTRA_MAX} are told")
        page = bytearray(PAGE)
        regions = (
            self.empty, self.shared_frames, self.image_frames,
            self.image_paging, self.io_space, self.extra_pages,
        )  # fmt: skip
        words = [len(extra), self.node, self.nodes, self.iopt_levels, self.ipc_buffer]
        words += [slot for region in regions for slot in region]
        _WORDS.pack_into(page, 0, *words, self.cnode_bits, self.domain)
        if layout.schedcontrol is not None:
            struct.pack_into("<QQ", page, layout.schedcontrol, *self.schedcontrol)
        end = self.untyped_start + len(self.untyped)
        struct.pack_into("<QQ", page, layout.untyped, self.untyped_start, end)
        for n, one in enumerate(self.untyped):
            at = layout.list + n * _DESCRIPTOR
            struct.pack_into("<Q", page, at, one.address)
            struct.pack_into("<BB", page, at + (10 if old else 8), one.bits, one.device)
        return bytes(page) + extra


def decode(data: bytes, layout: Layout, *, old: bool = False) -> BootInfo:
    """The BootInfo in these bytes, which may be followed by others."""
    if len(data) < PAGE:
        raise _no(f"{len(data)} bytes are no page")
    v = _WORDS.unpack_from(data)
    regions = {name: Region(*v[n : n + 2]) for name, n in _REGIONS.items()}
    schedcontrol = NONE
    if layout.schedcontrol is not None:
        schedcontrol = Region(*struct.unpack_from("<QQ", data, layout.schedcontrol))
    untyped = Region(*struct.unpack_from("<QQ", data, layout.untyped))
    bits = v[17]
    if not 1 <= bits < 32:
        raise _no(f"a capability space of {bits} bits; 1 to 31 are believed")
    if not 1 <= v[2] <= 256 or v[1] >= v[2]:
        raise _no(f"node {v[1]} of {v[2]}")
    for name, region in [*regions.items(), ("schedcontrol", schedcontrol), ("untyped", untyped)]:
        if not region.start <= region.end <= 1 << bits:
            raise _no(f"{name} {region.start} to {region.end} is no region of {1 << bits} slots")
    count = untyped.end - untyped.start
    if count > layout.room:
        raise _no(f"{count} untyped, and the page has room for {layout.room}; is it {layout.name}?")
    return BootInfo(
        ipc_buffer=v[4], cnode_bits=bits, node=v[1], nodes=v[2], iopt_levels=v[3], **regions,
        domain=v[18], schedcontrol=schedcontrol, untyped_start=untyped.start,
        untyped=tuple(_untyped(data, layout.list + n * _DESCRIPTOR, old) for n in range(count)),
        extra=_chunks(data, v[0]),
    )  # fmt: skip


_REGIONS: Final = {
    "empty": 5, "shared_frames": 7, "image_frames": 9, "image_paging": 11, "io_space": 13, "extra_pages": 15,
}  # fmt: skip


def _untyped(data: bytes, at: int, old: bool) -> Untyped:
    (address,) = struct.unpack_from("<Q", data, at)
    bits, device = struct.unpack_from("<BB", data, at + (10 if old else 8))
    if not 4 <= bits <= 47 or device > 1:
        other = "the layout after 12.0" if old else "the layout before 12.0"
        raise _no(f"untyped at {at}: {bits} bits, device {device}; perhaps it is {other}")
    return Untyped(address, bits, bool(device))


def _chunks(data: bytes, length: int) -> tuple[Chunk, ...]:
    if length > EXTRA_MAX:
        raise _no(f"{length} bytes of extra chunks; at most {EXTRA_MAX} are believed")
    if length > len(data) - PAGE:
        raise _no(f"{length} bytes of extra chunks, and {len(data) - PAGE} are there")
    found, at, end = [], PAGE, PAGE + length
    while at < end:
        if end - at < _CHUNK.size:
            raise _no(f"{end - at} bytes are left behind the last chunk")
        id, size = _CHUNK.unpack_from(data, at)
        if not _CHUNK.size <= size <= end - at:
            raise _no(f"the chunk at {at} counts {size} bytes, and {end - at} are there")
        found.append(Chunk(id, data[at + _CHUNK.size : at + size]))
        at += size
    return tuple(found)


def _no(why: str) -> Refused:
    return Refused(422, f"this is no BootInfo: {why}")
