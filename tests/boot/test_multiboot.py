"""Multiboot headers and PVH notes, packed here by hand, and spoiled one field at a time."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.formats import multiboot
from warren.boot.machines import probe

MAGIC = 0x1BADB002
LOADED = 0x100000


def plain(flags: int = 0, *addresses: int, before: int = 64, magic: int = MAGIC, error: int = 0) -> bytes:
    """A file whose header stands after `before` bytes."""
    checksum = -(magic + flags) + error & 0xFFFFFFFF
    header = struct.pack(f"<III{len(addresses)}I", magic, flags, checksum, *addresses)
    return bytes(before) + header + bytes(64)


def addressed(
    header: int = LOADED + 64, load: int = LOADED, end: int = 0, zeroes: int = 0, entry: int = LOADED + 96
) -> bytes:
    return plain(1 << 16, header, load, end, zeroes, entry)


def noted(
    entry: int = LOADED + 0x200,
    name: bytes = b"Xen\0",
    size: int = 4,
    kind: int = 18,
    flags: int = 5,
    more: int = 0,
) -> bytes:
    """A 32-bit ELF with a note, and before it a note of another's."""
    other = struct.pack("<III", 4, 6, 1) + b"GNU\0" + b"sixty\0\0\0"
    note = struct.pack("<III", len(name), size + more, kind) + name + struct.pack("<Q", entry)[:size]
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    head = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    load = struct.pack("<8I", 1, 0, LOADED, LOADED, 0x400, 0x1000, flags, 4)
    notes = struct.pack("<8I", 4, 0x100, LOADED + 0x100, LOADED + 0x100, len(other + note), 0, 4, 4)
    return ((ident + head + load + notes).ljust(0x100, b"\0") + other + note).ljust(0x400, b"\0")


def names(data: bytes) -> list[str]:
    return [fault.name for fault in multiboot.check(data)]


@pytest.mark.parametrize(
    "data", [plain(), plain(3), plain(1 << 17), addressed(), addressed(end=LOADED + 128)]
)
def test_a_header_that_holds_is_found(data: bytes) -> None:
    found = multiboot.header(data)
    assert found is not None
    assert found.offset == 64
    assert names(data) == []


def test_the_probe_of_accelerators_has_a_way_in() -> None:
    assert names(probe.image()) == []
    found = multiboot.header(probe.image())
    assert found is not None
    assert found.addresses is None


def test_its_load_addresses_are_read() -> None:
    found = multiboot.header(addressed(end=LOADED + 128, zeroes=LOADED + 4096))
    assert found is not None
    assert found.addresses == (LOADED + 64, LOADED, LOADED + 128, LOADED + 4096, LOADED + 96)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "no_way_in"),
        (plain(magic=0xE85250D6), "no_way_in"),
        (plain(before=62), "no_way_in"),
        (plain(before=8192), "no_way_in"),
        (plain(before=8184), "no_way_in"),
        (plain(error=1), "checksum"),
        (plain(4), "video"),
        (plain(8), "flags"),
        (plain(1 << 16, before=8192 - 16), "header_cut"),
        (addressed(load=LOADED + 128), "header_address"),
        (addressed(load=LOADED - 64), "header_address"),
        (addressed(header=LOADED, load=LOADED - 64, entry=LOADED), "outside_window"),
        (addressed(header=LOADED + 80), "header_address"),
        (addressed(end=LOADED - 1), "load_order"),
        (addressed(end=LOADED + 128, zeroes=LOADED + 100), "load_order"),
        (addressed(end=LOADED + 4096), "load_outside_file"),
        (addressed(zeroes=0x50000000), "outside_window"),
        (addressed(entry=LOADED + 4096), "entry_outside"),
        (noted(more=64), "note_cut"),
        (noted(size=2), "pvh_size"),
        (noted(entry=LOADED + 0x400), "pvh_entry_outside"),
        (noted(flags=6), "pvh_entry_outside"),
        (noted(kind=17), "no_way_in"),
        (noted(name=b"Zen\0"), "no_way_in"),
    ],
)
def test_what_does_not_hold_is_refused_by_name(data: bytes, fault: str) -> None:
    assert names(data) == [fault]


def test_a_false_start_hides_no_header() -> None:
    """Text that happens to have the magic number in it."""
    data = plain(error=1) + plain(3)
    found = multiboot.header(data)
    assert found is not None
    assert found.flags == 3
    assert names(data) == []


@pytest.mark.parametrize("size", [4, 8])
def test_the_note_tells_the_entry(size: int) -> None:
    assert multiboot.pvh(noted(size=size)) == LOADED + 0x200
    assert names(noted(size=size)) == []


@given(st.binary(max_size=64), st.integers(0, 0x3FF), st.booleans())
def test_any_edit_gets_a_verdict(new: bytes, place: int, note: bool) -> None:
    data = noted() if note else addressed()
    data = data[:place] + new + data[place + len(new) :]
    assert all(fault.name in multiboot.SENTENCES for fault in multiboot.check(data))
