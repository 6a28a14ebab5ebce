"""Firmware's variables: OVMF's own empty volume, and what is written behind it."""

import struct
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.formats import varstore
from warren.boot.formats.varstore import GLOBAL, SECURITY, Variable
from warren.boot.secure.firmware import VARIABLES, made
from warren.tree import Refused

ONE = Variable("Lang", GLOBAL, b"eng", 7)
TWO = Variable("db", SECURITY, b"x" * 99, 0x27, varstore.time(datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)))


@pytest.fixture(scope="module")
def empty() -> bytes:
    return VARIABLES.read_bytes()


def test_what_is_appended_is_read_and_all_else_stays(empty: bytes) -> None:
    before = varstore.read(empty)
    volume = varstore.append(empty, [ONE, TWO])
    assert varstore.read(volume) == [*before, ONE, TWO]
    assert varstore.read(varstore.append(varstore.append(empty, [ONE]), [TWO])) == [*before, ONE, TWO]
    assert len(volume) == len(empty)
    [changed] = [at for at in range(0, len(empty), 4096) if volume[at:][:4096] != empty[at:][:4096]]
    assert changed == 0


def test_a_variable_is_written_as_the_firmware_reads_it(empty: bytes) -> None:
    """As the format has it: mark, state, attributes, count, time, key, sizes, vendor, name, bytes."""
    (head,) = struct.unpack_from("<H", empty, 48)
    volume = varstore.append(empty, [TWO])
    first = volume.index(struct.pack("<HB", 0x55AA, 0x3F), head + 28)
    raw = volume[first:]
    assert raw[:16] == struct.pack("<HBBIQ", 0x55AA, 0x3F, 0, 0x27, 0)
    assert raw[16:32] == struct.pack("<HBBBBBBIhBB", 2020, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0)
    assert raw[32:44] == struct.pack("<III", 0, 6, 99)
    assert raw[44:60] == UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
    assert raw[60:66] == b"d\0b\0\0\0"
    assert raw[66:165] == b"x" * 99
    assert raw[165:168] == b"\xff\xff\xff"


def test_a_list_of_certificates_says_who_enrolled_them() -> None:
    der = made("db").certificate
    lists = varstore.certificates(der, der)
    size, head, each = struct.unpack_from("<III", lists, 16)
    assert lists[:16] == UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    assert (size * 2, head, each) == (len(lists), 0, size - 28)
    assert lists[28:44] == varstore.OWNER.bytes_le
    assert lists[:size] == lists[size:]


def test_a_dead_variable_is_not_in_force(empty: bytes) -> None:
    volume = bytearray(varstore.append(empty, [ONE, TWO]))
    at = volume.index(struct.pack("<HB", 0x55AA, 0x3F) + b"\0" + struct.pack("<I", 7))
    volume[at + 2] = 0x3D  # what firmware makes of a variable that it has written anew
    assert ONE not in varstore.read(bytes(volume))
    assert varstore.read(varstore.append(bytes(volume), [ONE]))[-1] == ONE


def test_keys_are_enrolled_once(empty: bytes) -> None:
    with pytest.raises(Refused, match="db is there already"):
        varstore.append(varstore.append(empty, [TWO]), [TWO])


def test_a_volume_has_an_end(empty: bytes) -> None:
    with pytest.raises(Refused, match="has room for"):
        varstore.append(empty, [Variable("Big", GLOBAL, bytes(1 << 20), 7)])


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (16, b"\0", "no volume"),
        (40, b"x", "no volume"),
        (48, b"\xff\xff\xff", "not of the authenticated kind"),
        (48, b"\0\0", "not of the authenticated kind"),
        (72, b"\0", "not of the authenticated kind"),
        (72 + 16, b"\xff\xff\xff\xff", "longer than the volume"),
        (72 + 20, b"\0", "not formatted"),
        (72 + 28 + 36, b"\xff\xff\xff\xff", "does not end"),
        (72 + 28 + 36, b"\x03", "does not end"),
    ],
)
def test_what_is_no_volume_is_refused(empty: bytes, at: int, value: bytes, why: str) -> None:
    volume = varstore.append(empty, [ONE])
    with pytest.raises(Refused, match=why):
        varstore.read(volume[:at] + value + volume[at + len(value) :])


edited = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), max_size=6)


@given(edited, st.integers(0, 600))
def test_any_edit_is_read_or_refused(edits: list[tuple[int, bytes]], end: int) -> None:
    volume = varstore.append(VARIABLES.read_bytes(), [ONE, TWO])
    for place, new in edits:
        volume = volume[:place] + new + volume[place + len(new) :]
    for data in (volume, volume[:end]):
        with suppress(Refused):
            assert all(len(variable.data) < len(data) for variable in varstore.read(data))
