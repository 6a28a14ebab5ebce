"""Unified kernel images: what is put together is found again by others, and is the same every time."""

import struct
import subprocess
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.formats import pe, uki
from warren.boot.secure.chain import measure
from warren.tree import Refused

from .pes import plain_sum, small_pe

LINUX = b"MZ" + b"kernel" * 999
INITRD = b"070701" + b"files" * 1234
SBAT, MAGIC = b"sbat,1\n", b"#### LoaderInfo: systemd-stub 252.39-1 ####"
STUB = small_pe((".text", b"\x90" * 100), (".data", b"data"), (".sbat", SBAT), (".sdmagic", MAGIC))
OSREL = "ID=warren\nVERSION_ID=1\n"


COMMAND = "console=ttyS0 quiet"


def build(stub: bytes = STUB, linux: bytes = LINUX, cmdline: str = COMMAND, uname: str = "") -> bytes:
    return uki.build(stub, linux, INITRD, cmdline, OSREL, uname)


def sections(image: bytes) -> dict[str, bytes]:
    return {s.name: image[s.raw : s.raw + s.size] for s in pe.read(image).sections}


def test_every_part_is_a_section() -> None:
    found = sections(build(uname="6.1.0"))
    assert found == {
        ".text": b"\x90" * 100,
        ".data": b"data",
        ".sbat": SBAT,
        ".sdmagic": MAGIC,
        ".osrel": OSREL.encode(),
        ".cmdline": COMMAND.encode(),
        ".uname": b"6.1.0",
        ".initrd": INITRD,
        ".linux": LINUX,
    }


def test_sections_lie_apart_in_memory_each_at_a_page() -> None:
    image = build()
    placed = sorted((s.address, s.address + s.size) for s in pe.read(image).sections)
    assert all(end <= start for (_, end), (start, _) in pairwise(placed))
    added = [s for s in pe.read(image).sections if s.name in (".osrel", ".cmdline", ".initrd", ".linux")]
    assert all(s.address % 4096 == 0 for s in added)
    (size,) = struct.unpack_from("<I", image, pe.read(image).size_of_image_at)
    assert size >= placed[-1][1]


def test_the_kernel_comes_last_for_it_may_unpack_behind_itself() -> None:
    assert max(pe.read(build()).sections, key=lambda s: s.address).name == ".linux"


def test_the_same_parts_give_the_same_bytes_and_no_time() -> None:
    assert build() == build()
    assert struct.unpack_from("<I", build(), pe.read(build()).coff + 4) == (0,)


def test_what_lies_behind_the_stubs_sections_is_left_out() -> None:
    assert build(STUB + b"symbols") == build()


@pytest.mark.parametrize("linux", [LINUX, LINUX + b"x", b"MZ" + bytes(3 << 20), b"MZ" + b"\xff" * (2 << 20)])
def test_the_checksum_is_the_plain_one(linux: bytes) -> None:
    image = build(linux=linux)
    at = pe.read(image).checksum_at
    assert struct.unpack_from("<I", image, at) == (plain_sum(image, at),)


def test_it_is_measured_as_its_stub_does() -> None:
    parts = {".linux": LINUX, ".osrel": OSREL.encode(), ".cmdline": COMMAND.encode(), ".initrd": INITRD}
    assert uki.measured(build(uname="6.1.0")) == measure(parts)
    later = STUB.replace(b"stub 252", b"stub 257")
    parts |= {".uname": b"6.1.0", ".sbat": SBAT}
    assert uki.measured(build(later, uname="6.1.0")) == measure(parts)


@pytest.mark.parametrize("magic", [b"stub 253", b"stub 249", b"stub new", b"boot 252"])
def test_what_an_unknown_stub_measures_is_not_guessed(magic: bytes) -> None:
    with pytest.raises(Refused, match="not known"):
        uki.measured(build(STUB.replace(b"stub 252", magic)))


def test_other_tools_find_the_sections(tmp_path: Path) -> None:
    """systemd's stub, with what the binary tools make of the image."""
    image = tmp_path / "image.efi"
    image.write_bytes(build(uki.stub(), uname="6.1.0"))
    taken = tmp_path / "taken"
    for name, body in ((".linux", LINUX), (".initrd", INITRD), (".osrel", OSREL.encode())):
        subprocess.run(
            ["objcopy", "-O", "binary", "--dump-section", f"{name}={taken}", image, tmp_path / "rest"],
            check=True, timeout=20,
        )  # fmt: skip
        assert taken.read_bytes()[: len(body)] == body


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"linux": b"\x7fELF"}, "400.*no EFI entry"),
        ({"cmdline": "two\nlines"}, "400.*one line"),
        ({"cmdline": "\N{SNOWMAN}"}, "400.*ASCII"),
        ({"cmdline": "x" * 2049}, "400.*2048"),
        ({"stub": build()}, r"422.*\.osrel already"),
        ({"stub": small_pe(*[(f".s{n}", b"x") for n in range(14)])}, "422.*no room for 4"),
    ],
)
def test_what_cannot_be_put_together_is_refused(change: dict[str, bytes], why: str) -> None:
    code, _, text = why.partition(".*")
    with pytest.raises(Refused, match=text) as e:
        build(**change)  # type: ignore[arg-type]
    assert e.value.code == int(code)


@pytest.mark.parametrize(
    ("at", "form", "value", "why"),
    [
        (0, "<H", 0, "does not begin"),
        (60, "<I", 1 << 31, "not where it says"),
        (60, "<I", 0, "not where it says"),
        (64, "<I", 0, "not where it says"),
        (68, "<H", 0x14C, "machine 0x14c"),
        (70, "<H", 97, "97 sections"),
        (84, "<H", 100, "directories in 100"),
        (88, "<H", 0x10B, "format 0x10b"),
        (120, "<I", 3, "aligned to 3"),
        (124, "<I", 0, "aligned to 0"),
        (148, "<I", 1 << 20, "bytes of headers"),
        (196, "<I", 1 << 30, "directories"),
        (236, "<I", 8, "signatures are not at its end"),
        (64 + 24 + 240 + 20, "<I", 0x600, "begins at 0x600"),
        (64 + 24 + 240 + 16, "<I", 1 << 30, "begins at"),
    ],
)
def test_an_image_that_is_not_plain_is_refused(at: int, form: str, value: int, why: str) -> None:
    data = STUB[:at] + struct.pack(form, value) + STUB[at + struct.calcsize(form) :]
    with pytest.raises(Refused, match=why):
        pe.read(data)


@given(st.integers(0, len(STUB)), st.binary(min_size=1, max_size=16), st.integers(0, len(STUB)))
def test_any_edit_is_read_or_refused(place: int, new: bytes, end: int) -> None:
    data = (STUB[:place] + new + STUB[place + len(new) :])[: max(end, 300)]
    with suppress(Refused):
        assert pe.read(data).end <= len(data)
