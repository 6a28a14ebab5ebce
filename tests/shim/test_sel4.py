"""A kernel that somebody brought, prepared and booted.

No genuine kernel comes with Warren. Name one to boot it here: WARREN_SEL4_KERNEL, and WARREN_SEL4_SDK for the
folder of its configuration. Everything before that is tried on our stand-in, which is one kernel among others
to the code under test, and remains a stand-in.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from warren.boot.sel4 import kernel as sel4
from warren.boot.sel4.abi import Abi, load_toml, read
from warren.boot.sel4.kernel import prepare, wrap
from warren.tree import Refused

from tests.shim.host import Host
from tests.shim.machine import WELL, Build, boot, good
from tests.shim.sdks import labels, write

TABLES = load_toml()


@pytest.fixture
def root() -> bytes:
    return (good() / "root.elf").read_bytes()


async def test_with_an_sdk(root: bytes, tmp_path: Path) -> None:
    """Wrapped by us, with the SDK's numbers, and booted."""
    sdk = write(tmp_path / "sdk", {"PRINTING": False}, labels(44))
    made = prepare(good() / "standin64.elf", sdk, root, tmp_path)
    assert made.facts["scheduler"] == "classic"
    assert made.cpu == "max"
    assert read(made.initrd.read_bytes()) == made.abi
    host = Host(verbs=["test caps", "test abi", "exit"])
    end = await boot(Build(made.kernel, made.initrd), host)
    assert end.code == WELL, end.log
    assert (host.reports["caps.test"], host.reports["label.issue.from"]) == ("ok", "block")


async def test_with_an_sdk_of_another_configuration(root: bytes, tmp_path: Path) -> None:
    sdk = write(tmp_path / "sdk", {"KERNEL_MCS": True, "HUGE_PAGE": False}, labels(50))
    made = prepare(good() / "standin64.elf", sdk, root, tmp_path)
    host = Host(verbs=["exit"])
    end = await boot(Build(made.kernel, made.initrd), host, append="mcs issue=50 page=45 frame=9")
    assert end.code == WELL, end.log
    assert host.reports["abi"] == "mcs"


async def test_without_an_sdk(root: bytes, tmp_path: Path) -> None:
    """Labels and layout are found; the pages cannot be tested, and that is said."""
    made = prepare(good() / "standin64.elf", None, root, tmp_path)
    assert made.abi == Abi.genuine(TABLES, mcs=False)
    assert made.facts["labels"] == "probed"
    host = Host(verbs=["test caps", "test mmu", "exit"])
    end = await boot(Build(made.kernel, made.initrd), host)
    assert end.code == WELL, end.log
    assert host.reports["mmu"].startswith("untested: the type number of a page is not known")
    assert (host.reports["labels"], host.reports["caps.test"]) == ("probed", "ok")


def test_the_wrapping_is_what_binutils_would_make() -> None:
    """The same bytes at the same addresses; how they lie in the file is our own affair."""
    ours, theirs = wrap((good() / "standin64.elf").read_bytes()), (good() / "standin.elf").read_bytes()
    assert loads(ours) == loads(theirs)
    assert struct.unpack_from("<I", ours, 24) == struct.unpack_from("<I", theirs, 24)
    assert wrap(theirs) == theirs


def loads(image: bytes) -> list[tuple[int, int, int, bytes]]:
    """Of a 32-bit ELF: address, place in memory, size, bytes, in order."""
    table, (size, count) = struct.unpack_from("<I", image, 28)[0], struct.unpack_from("<HH", image, 42)
    found = []
    for i in range(count):
        kind, offset, address, physical, inside, memory = struct.unpack_from("<6I", image, table + i * size)
        if kind == 1:
            found.append((address, physical, memory, image[offset : offset + inside]))
    return sorted(found)


def edited(at: int, fmt: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + struct.pack(fmt, value) + data[at + struct.calcsize(fmt) :]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: b"\x7fELF", "is no ELF file"),
        (lambda data: b"#!/bin/sh\n" * 20, "is no ELF file"),
        (edited(18, "<H", 183), "not for x86-64"),
        (edited(4, "<B", 3), "not for x86-64"),
        (edited(32, "<Q", 1 << 60), "segment table is not in the file"),
        (edited(54, "<H", 55), "segment table is not in the file"),
        (edited(56, "<H", 0), "segment table is not in the file"),
        (edited(56, "<H", 65535), "segment table is not in the file"),
        (edited(64 + 8, "<Q", 1 << 40), "outside the file"),
        (edited(64 + 32, "<Q", 1 << 40), "more bytes than the file"),
        (edited(64 + 32, "<Q", 0x9000), "more bytes than the file"),
        (edited(64 + 24, "<Q", 1 << 33), "above 4 GiB"),
        (edited(64 + 40, "<Q", 1), "outside the file"),
        (lambda data: data.replace(b"\x02\xb0\xad\x1b", bytes(4)), "no multiboot header"),
        (lambda data: data[:3000], "more bytes than the file"),
    ],
)
def test_what_is_no_kernel(edit: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(Refused, match=words):
        wrap(edit((good() / "standin64.elf").read_bytes()), "the kernel")


def test_what_symbols_tell(root: bytes, tmp_path: Path) -> None:
    stripped = good() / "standin.elf"
    assert prepare(stripped, None, root, tmp_path).facts["scheduler"] == "unknown"
    assert prepare(stripped, None, root, tmp_path).abi.layout == 0
    assert prepare(good() / "standin64.elf", None, root, tmp_path).facts["scheduler"] == "classic"
    image = (good() / "standin64.elf").read_bytes()
    posing = tmp_path / "kernel.elf"
    posing.write_bytes(image.replace(b"\0frame_take\0", b"\0refill_new\0"))
    assert posing.read_bytes() != image
    assert prepare(posing, None, root, tmp_path).facts["scheduler"] == "mcs"


def test_what_cannot_run_here(root: bytes, tmp_path: Path) -> None:
    sdk = write(tmp_path / "sdk", {"SUPPORT_PCID": True}, labels(44))
    with pytest.raises(Refused, match=r"PCID.*tcg"):
        prepare(good() / "standin64.elf", sdk, root, tmp_path)
    assert prepare(good() / "standin64.elf", sdk, root, tmp_path, accel="kvm").facts["pcid"] == "yes"
    with pytest.raises(Refused, match="no plain file"):
        prepare(tmp_path, None, root, tmp_path)
    with pytest.raises(Refused, match="cannot be read: No such file"):
        prepare(tmp_path / "none", None, root, tmp_path)


@pytest.fixture
def genuine(not_run: Callable[[str], NoReturn]) -> tuple[Path, Path | None]:
    """The kernel and the SDK that somebody named."""
    kernel, sdk = os.environ.get("WARREN_SEL4_KERNEL"), os.environ.get("WARREN_SEL4_SDK")
    if not kernel:
        not_run("seL4 kernel: none is named by WARREN_SEL4_KERNEL")
    return Path(kernel), Path(sdk) if sdk else None


async def test_a_genuine_kernel(genuine: tuple[Path, Path | None], root: bytes, tmp_path: Path) -> None:
    """The same root task, the same tests. A time-out is no success: a release kernel dies in silence."""
    kernel, sdk = genuine
    made = prepare(kernel, sdk, root, tmp_path)
    host = Host(role=b"role Worker\n", verbs=["test abi", "test caps", "test mmu", "say here", "exit"])
    build, memory = Build(made.kernel, made.initrd), ["-m", "512"]
    end = await boot(build, host, machine="pc", extra=memory, patience=sel4.PATIENCE)
    said = host.reports
    assert end.code == WELL, f"{made.facts}\n{end.log}"
    assert (said["kernel"], said["caps.test"]) == ("sel4", "ok")
    assert said["mmu"] == "ok" or sdk is None
