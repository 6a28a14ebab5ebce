"""BootInfo beside vectors that were packed by hand, from the offsets that kernels were seen to use.

The hex files hold a line for every sixteen bytes that are not all zero, and the length first. To see how one
came about, read `packed`; it was written before the encoder and shares nothing with it.
"""

import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.formats.bootinfo import MCS, PLAIN, BootInfo, Chunk, Layout, Region, Untyped, decode
from warren.tree import Refused

VECTORS = Path(__file__).parent / "vectors"


class Case(NamedTuple):
    name: str
    layout: Layout
    old: bool

    def __str__(self) -> str:
        return self.name


CASES = [Case("plain", PLAIN, False), Case("mcs", MCS, False), Case("old", PLAIN, True)]

SAID = BootInfo(
    ipc_buffer=0x404000,
    cnode_bits=12,
    node=0,
    nodes=2,
    iopt_levels=3,
    empty=Region(300, 4096),
    shared_frames=Region(0, 0),
    image_frames=Region(18, 22),
    image_paging=Region(22, 25),
    io_space=Region(0, 0),
    extra_pages=Region(25, 26),
    domain=0,
    untyped_start=26,
    untyped=(Untyped(0x100000, 20, False), Untyped(0x1F0000000, 12, False), Untyped(0xFEC00000, 12, True)),
    extra=(Chunk(1, b"cmdline\0"), Chunk(5, b"odd")),
)


def packed(case: Case) -> bytes:
    """The same, offset by offset."""
    page = bytearray(4096)
    put = struct.pack_into
    put("<Q", page, 0, 24 + 19)  # extraLen
    put("<QQQ", page, 8, 0, 2, 3)  # nodeID numNodes numIOPTLevels
    put("<Q", page, 32, 0x404000)  # ipcBuffer
    put("<QQ", page, 40, 300, 4096)  # empty
    put("<QQ", page, 56, 0, 0)  # sharedFrames
    put("<QQ", page, 72, 18, 22)  # userImageFrames
    put("<QQ", page, 88, 22, 25)  # userImagePaging
    put("<QQ", page, 104, 0, 0)  # ioSpaceCaps
    put("<QQ", page, 120, 25, 26)  # extraBIPages
    put("<QQ", page, 136, 12, 0)  # initThreadCNodeSizeBits initThreadDomain
    untyped, listed = 152, 168
    if case.name == "mcs":
        put("<QQ", page, 152, 30, 32)  # schedcontrol
        untyped, listed = 168, 184
    put("<QQ", page, untyped, 26, 29)
    size, device = (10, 11) if case.old else (8, 9)
    told = [(0x100000, 20, 0), (0x1F0000000, 12, 0), (0xFEC00000, 12, 1)]
    for n, (address, bits, is_device) in enumerate(told):
        at = listed + 16 * n
        put("<Q", page, at, address)
        page[at + size], page[at + device] = bits, is_device
    chunks = struct.pack("<QQ8s", 1, 24, b"cmdline\0") + struct.pack("<QQ3s", 5, 19, b"odd")
    return bytes(page) + chunks


def said(case: Case) -> BootInfo:
    return replace(SAID, schedcontrol=Region(30, 32)) if case.layout is MCS else SAID


def vector(case: Case) -> bytes:
    first, *lines = (VECTORS / f"bootinfo-{case.name}.hex").read_text().split("\n")
    data = bytearray(int(first))
    for line in filter(None, lines):
        at, words = line.split(": ")
        raw = bytes.fromhex(words)
        data[int(at, 16) : int(at, 16) + len(raw)] = raw
    return bytes(data)


def written(data: bytes) -> str:
    """The text of a vector."""
    rows = [(at, data[at : at + 16]) for at in range(0, len(data), 16)]
    return f"{len(data)}\n" + "".join(f"{at:04x}: {row.hex()}\n" for at, row in rows if any(row))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_vectors_are_what_was_packed(case: Case) -> None:
    assert vector(case) == packed(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_kernel_writes_is_read(case: Case) -> None:
    assert decode(vector(case), case.layout, old=case.old) == said(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_written_is_what_a_kernel_writes(case: Case) -> None:
    assert said(case).encode(case.layout, old=case.old) == vector(case)


@pytest.mark.parametrize("size", [0, 167, 4095, 4096, 4096 + 24, 4096 + 42])
def test_a_cut_one_is_refused(size: int) -> None:
    with pytest.raises(Refused, match="this is no BootInfo"):
        decode(packed(CASES[0])[:size], PLAIN)


def test_what_follows_is_left_alone() -> None:
    assert decode(packed(CASES[0]) + b"more", PLAIN) == SAID


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, 1 << 40, "extra chunks; at most"),
        (0, 42, "19 bytes, and 18 are there"),
        (0, 39, "15 bytes are left"),
        (8, 2, "node 2 of 2"),
        (16, 0, "node 0 of 0"),
        (40, 5000, "empty 5000 to 4096"),
        (48, 4097, "empty 300 to 4097"),
        (136, 64, "64 bits"),
        (136, 0, "0 bits"),
        (160, 26 + 246, "246 untyped"),
        (160, 25, "untyped 26 to 25"),
        (176, 3, "untyped at 168: 3 bits"),
        (4096 + 8, 15, "chunk at 4096 counts 15"),
        (4096 + 8, 44, "chunk at 4096 counts 44"),
    ],
)
def test_what_cannot_be_is_refused(at: int, value: int, why: str) -> None:
    data = bytearray(packed(CASES[0]))
    struct.pack_into("<Q", data, at, value)
    with pytest.raises(Refused, match=why):
        decode(bytes(data), PLAIN)


def test_the_other_descriptor_is_seen() -> None:
    with pytest.raises(Refused, match=r"before 12\.0"):
        decode(packed(CASES[2]), PLAIN)
    with pytest.raises(Refused, match=r"after 12\.0"):
        decode(packed(CASES[0]), PLAIN, old=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"untyped": (Untyped(0, 12, False),) * 246}, "246 untyped; a page has room for 245"),
        ({"extra": (Chunk(1, bytes(1 << 20)),)}, "at most"),
    ],
)
def test_what_has_no_room_is_not_written(change: dict[str, object], why: str) -> None:
    with pytest.raises(Refused, match=why):
        replace(SAID, **change).encode(PLAIN)  # type: ignore[arg-type]


REGIONS = ["empty", "shared_frames", "image_frames", "image_paging", "io_space", "extra_pages"]
regions = st.tuples(st.integers(0, 4096), st.integers(0, 4096)).map(lambda pair: Region(*sorted(pair)))
infos = st.builds(
    BootInfo,
    ipc_buffer=st.integers(0, 2**64 - 1),
    cnode_bits=st.just(12),
    nodes=st.integers(1, 256),
    iopt_levels=st.integers(0, 9),
    **dict.fromkeys(REGIONS, regions),
    domain=st.integers(0, 255),
    schedcontrol=regions,
    untyped_start=st.integers(0, 3000),
    untyped=st.lists(
        st.builds(Untyped, st.integers(0, 2**64 - 1), st.integers(4, 47), st.booleans()), max_size=230
    ).map(tuple),
    extra=st.lists(st.builds(Chunk, st.integers(0, 99), st.binary(max_size=40)), max_size=4).map(tuple),
)


@given(infos, st.sampled_from([PLAIN, MCS]), st.booleans())
def test_what_is_written_is_read(info: BootInfo, layout: Layout, old: bool) -> None:
    if layout is PLAIN:
        info = replace(info, schedcontrol=Region(0, 0))
    assert decode(info.encode(layout, old=old), layout, old=old) == info


@given(st.lists(st.tuples(st.integers(0, 4096 + 42), st.binary(min_size=1, max_size=9)), max_size=8))
def test_any_edit_is_read_or_refused(edits: list[tuple[int, bytes]]) -> None:
    data = packed(CASES[1])
    for place, new in edits:
        data = data[:place] + new + data[place + len(new) :]
    with suppress(Refused):
        assert len(decode(data, MCS).untyped) <= MCS.room
