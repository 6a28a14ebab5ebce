"""Images of a few bytes, each of which does one thing. They are 32-bit ELFs that QEMU loads by itself."""

from __future__ import annotations

import os
import struct
from pathlib import Path

WELL, FAILED, FAULT = 0x2A, 0x2B, 0x07
COM1, COM2 = 0x3F8, 0x2F8
HANG = b"\xf4\xeb\xfd"  # hlt, for ever
_LOAD = 0x100000


def says(text: bytes, port: int = COM1) -> bytes:
    """Write TEXT on a serial line."""
    return _at(port) + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in text)


def ends(code: int) -> bytes:
    """Give CODE to the debug-exit device."""
    return _at(0xF4) + b"\xb0" + bytes([code]) + b"\xee" + HANG


def echoes(port: int = COM1) -> bytes:
    """Send back every byte that comes, for ever."""
    ask = _at(port + 5) + b"\xec\xa8\x01"  # in al, dx; test al, 1
    answer = _at(port) + b"\xec\xee"  # in al, dx; out dx, al
    loop = ask + b"\x74" + bytes([-len(ask) - 2 & 0xFF]) + answer
    return loop + b"\xeb" + bytes([-len(loop) - 2 & 0xFF])


def listens(port: int = COM1) -> bytes:
    """Wait for a byte."""
    ask = _at(port + 5) + b"\xec\xa8\x01"
    return ask + b"\x74" + bytes([-len(ask) - 2 & 0xFF]) + _at(port) + b"\xec"


def image(*code: bytes) -> bytes:
    """An ELF with a multiboot header that does this."""
    text = b"".join(code)
    magic = 0x1BADB002
    multiboot = struct.pack("<III", magic, 0, -magic & 0xFFFFFFFF)
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0)
    head = 52 + 2 * 32
    entry = _LOAD + head + len(multiboot) + len(note)
    note = note[:-4] + struct.pack("<I", entry)
    size = head + len(multiboot) + len(note) + len(text)
    elf = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    elf += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    load = struct.pack("<IIIIIIII", 1, 0, _LOAD, _LOAD, size, size, 5, 0x1000)
    at = head + len(multiboot)
    noted = struct.pack("<IIIIIIII", 4, at, _LOAD + at, _LOAD + at, len(note), len(note), 4, 4)
    return elf + load + noted + multiboot + note + text


def write(folder: Path, *code: bytes, name: str = "tiny.elf") -> Path:
    """The same as a file."""
    file = folder / name
    file.write_bytes(image(*code))
    return file


def children() -> set[int]:
    """Processes of ours that live or were not waited for."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found.add(int(entry))
    return found


def _at(port: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port)
