"""A kernel that somebody brought: what has to be done before QEMU can boot our root task on it.

    prepared = prepare(kernel, sdk, root, folder)
    prepared.kernel, prepared.initrd, prepared.cpu, prepared.facts

The kernel is copied into a 32-bit ELF, because QEMU's multiboot loader takes no other; nothing of it is
changed but the wrapping. The root task gets the kernel's numbers: from the SDK, or, without one, those that
all kernels share, and it finds the rest itself. Without an SDK the pages are not tested, for the number of
that object type cannot be asked for.

A release kernel says nothing at all, not even of what ends it, so whoever boots it sets a time limit and
takes silence for an error. Kernels that use PCID hang under QEMU's interpreter and are refused there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from warren.boot.sel4 import abi as numbers
from warren.boot.sel4 import sdk as sdks
from warren.boot.sel4.abi import Abi
from warren.tree import Refused

CPU: Final = "max"
PATIENCE: Final = 30.0  # seconds; the kernel's own calibration takes 0.3 of them
LARGEST: Final = 64 << 20
_SEGMENTS: Final = 32
_SEARCHED: Final = 8192
_PAGE: Final = 4096
_MULTIBOOT: Final = 0x1BADB002
_LOAD: Final = 1
_SYMBOLS: Final = 2
_HEAD64: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT64: Final = struct.Struct("<IIQQQQQQ")
_SECTION64: Final = struct.Struct("<IIQQQQIIQQ")
_HEAD32: Final = struct.Struct("<16sHHIIIIIHHHHHH")
_SEGMENT32: Final = struct.Struct("<IIIIIIII")
# What a symbol table tells, if the kernel still has one: functions that only such a kernel is built with.
_TELLTALE: Final = {
    "scheduler": ({b"refill_new", b"schedContext_bindTCB"}, "mcs", "classic"),
    "cores": ({b"big_kernel_lock", b"migrateTCB"}, "several", "1"),
    "prints": ({b"kernel_putDebugChar", b"kernel_putchar"}, "yes", "no"),
}


class Prepared(NamedTuple):
    """Files for QEMU's -kernel and -initrd, its -cpu, the numbers that the root task was given, and what is
    known of the kernel, for a report."""

    kernel: Path
    initrd: Path
    cpu: str
    abi: Abi
    facts: dict[str, str]


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    align: int


def prepare(kernel: Path, sdk: Path | None, root: bytes, folder: Path, accel: str = "tcg") -> Prepared:
    """Write both files into FOLDER. Refused says what is wrong with the kernel or the SDK."""
    if kernel.exists() and not kernel.is_file():
        raise Refused(422, f"{kernel} is no plain file")
    try:
        with kernel.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as e:
        raise Refused(404, f"{kernel} cannot be read: {e.strerror}") from None
    if len(data) > LARGEST:
        raise Refused(413, f"{kernel} is larger than {LARGEST >> 20} MiB; is it the kernel?")
    image = wrap(data, kernel.name)
    told = sdks.read(sdk) if sdk is not None else None
    facts = told.facts() if told is not None else _from_symbols(data)
    if told is not None and told.pcid and accel == "tcg":
        raise Refused(405, "with PCID a kernel hangs under tcg; build it with KernelSupportPCID=OFF")
    tables = numbers.load_toml()
    if told is not None:
        abi = numbers.from_sdk(told, tables)
    else:
        scheduler = {"mcs": True, "classic": False}.get(facts["scheduler"])
        abi = Abi.genuine(tables, mcs=scheduler)
    paths = folder / "kernel32.elf", folder / "root.elf"
    for path, content in zip(paths, (image, numbers.patch(root, abi)), strict=True):
        path.write_bytes(content)
    return Prepared(*paths, CPU, abi, facts)


def wrap(data: bytes, name: str = "the kernel") -> bytes:
    """A 64-bit kernel as the 32-bit ELF that QEMU loads; one that is that already stays as it is."""
    if data[:4] != b"\x7fELF" or len(data) < _HEAD64.size:
        raise Refused(422, f"{name} is no ELF file")
    if data[4] == 1:
        return _bootable(data, name)
    if data[4] != 2 or struct.unpack_from("<H", data, 18)[0] != 62:
        raise Refused(422, f"{name} is not for x86-64")
    head = _HEAD64.unpack_from(data)
    loads = [s for s in _segments(data, name) if s.kind == _LOAD and s.memory_size]
    if not loads:
        raise Refused(422, f"{name} has nothing to load")
    if sum(s.file_size for s in loads) > len(data):
        raise Refused(422, f"{name}: its segments have more bytes than the file")
    table = _HEAD32.size + len(loads) * _SEGMENT32.size
    out = bytearray(table)
    for i, s in enumerate(sorted(loads, key=lambda s: s.offset)):
        end = s.physical + s.memory_size
        if s.offset + s.file_size > len(data) or s.file_size > s.memory_size or end > 1 << 32:
            raise Refused(422, f"{name}: segment {i} is outside the file, or above 4 GiB")
        # The same place within a page, so that the header stays as aligned as it was.
        at = len(out) + (s.physical - len(out)) % _PAGE
        out += bytes(at - len(out)) + data[s.offset : s.offset + s.file_size]
        _SEGMENT32.pack_into(
            out, _HEAD32.size + i * _SEGMENT32.size, _LOAD, at, s.address & 0xFFFFFFFF, s.physical,
            s.file_size, s.memory_size, s.flags, _PAGE,
        )  # fmt: skip
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    _HEAD32.pack_into(
        out, 0, ident, 2, 3, 1, head[4] & 0xFFFFFFFF, _HEAD32.size, 0, 0, _HEAD32.size, _SEGMENT32.size,
        len(loads), 0, 0, 0,
    )  # fmt: skip
    return _bootable(bytes(out), name)


def _bootable(data: bytes, name: str) -> bytes:
    """Whether QEMU will find a multiboot header; without one it would do something else, silently."""
    window = data[:_SEARCHED]
    for at in range(0, len(window) - 11, 4):
        magic, flags, check = struct.unpack_from("<III", window, at)
        if magic == _MULTIBOOT and (magic + flags + check) & 0xFFFFFFFF == 0:
            return data
    raise Refused(422, f"{name} has no multiboot header in its first 8 KiB: is it a pc99 kernel?")


def _segments(data: bytes, name: str) -> Iterator[_Segment]:
    at, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    if size != _SEGMENT64.size or not 0 < count <= _SEGMENTS or at > len(data) - count * size:
        raise Refused(422, f"{name}: its segment table is not in the file, or has over {_SEGMENTS} entries")
    for i in range(count):
        yield _Segment(*_SEGMENT64.unpack_from(data, at + i * size))


def _from_symbols(data: bytes) -> dict[str, str]:
    """What the kernel's own symbols tell; `unknown` where it has none."""
    facts = dict.fromkeys(("version", "scheduler", "kind", "prints", "cores", "iommu", "pcid"), "unknown")
    if (names := _names(data)) is not None:
        for fact, (signs, there, absent) in _TELLTALE.items():
            facts[fact] = there if signs & names else absent
    return facts | {"labels": "probed"}


def _names(data: bytes) -> set[bytes] | None:
    """Every symbol's name, or None without a table of them. Any nonsense is the same as none."""
    if data[4] != 2:
        return None
    at, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    if size != _SECTION64.size or at > len(data) - count * size:
        return None
    sections = [_SECTION64.unpack_from(data, at + i * size) for i in range(count)]
    for section in sections:
        if section[1] == _SYMBOLS and section[6] < count:
            strings = sections[section[6]]
            return set(data[strings[4] : strings[4] + strings[5]].split(b"\0"))
    return None


__all__ = ["CPU", "PATIENCE", "Prepared", "prepare", "wrap"]
