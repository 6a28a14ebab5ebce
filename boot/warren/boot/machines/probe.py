"""Does an accelerator work here? A tiny image says.

    await accelerator("kvm")  ->  Verdict(works, why, seconds)

That /dev/kvm opens proves nothing: inside another machine it may open, create a processor and then crawl,
or abort QEMU. So an image of a hundred bytes is booted under the accelerator and under TCG, QEMU's own
interpreter. It counts down from twenty million and leaves through the debug-exit device. An accelerator
works if that ends with the right code, and not later than the interpreter.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from typing import Final, NamedTuple

import trio

QEMU: Final = "qemu-system-x86_64"
PATIENCE: Final = 10.0
_LOAD: Final = 0x100000
_COUNT: Final = 20_000_000
_SAYS: Final = 0x2A
_EXIT: Final = _SAYS << 1 | 1  # what isa-debug-exit makes of it
_MULTIBOOT: Final = 0x1BADB002


class Verdict(NamedTuple):
    """Whether an accelerator can be used, why not, and the seconds that the image took under it."""

    works: bool
    why: str
    seconds: float = 0.0


def image() -> bytes:
    """The image: a 32-bit ELF with a multiboot header."""
    code = (
        b"\xb9" + struct.pack("<I", _COUNT)  # mov ecx, count
        + b"\x49\x75\xfd"  # dec ecx; jnz back
        + b"\x66\xba\xf4\x00\xb0" + bytes([_SAYS]) + b"\xee"  # out 0xf4, al
        + b"\xf4\xeb\xfd"  # hlt, for ever
    )  # fmt: skip
    multiboot = struct.pack("<III", _MULTIBOOT, 0, -_MULTIBOOT & 0xFFFFFFFF)
    head = 52 + 32
    size = head + len(multiboot) + len(code)
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    entry = _LOAD + head + len(multiboot)
    elf = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, _LOAD, _LOAD, size, size, 5, 0x1000)
    return elf + segment + multiboot + code


async def accelerator(name: str, patience: float = PATIENCE) -> Verdict:
    """Try it. Cancelled leaves no machine behind."""
    if lacking := _lacking(name):
        return Verdict(False, lacking)
    with tempfile.NamedTemporaryFile(suffix=".elf") as file:
        file.write(image())
        file.flush()
        interpreted = await _boot("tcg", file.name, patience)
        if name == "tcg" or not interpreted.works:
            return interpreted
        found = await _boot(name, file.name, min(patience, max(1.0, 10 * interpreted.seconds)))
    if found.works and found.seconds > interpreted.seconds:
        slow = f"{found.seconds:.2f} s, where QEMU alone takes {interpreted.seconds:.2f} s"
        return Verdict(False, f"it is slower than none: {slow}", found.seconds)
    return found


def _lacking(name: str) -> str:
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    if name == "kvm" and not os.path.exists("/dev/kvm"):
        return "there is no /dev/kvm"
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm belongs to others; its group is usually kvm"
    return ""


async def _boot(name: str, kernel: str, patience: float) -> Verdict:
    machine = [
        QEMU, "-accel", name, "-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none",
        "-m", "16", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", kernel,
    ]  # fmt: skip
    begun = trio.current_time()
    with trio.move_on_after(patience):
        done = await trio.run_process(machine, check=False, capture_stderr=True, stdin=subprocess.DEVNULL)
        took = trio.current_time() - begun
        if done.returncode == _EXIT:
            return Verdict(True, "", took)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return Verdict(False, said[-1] if said else f"QEMU ended with {done.returncode}", took)
    return Verdict(False, f"the probe image did not end within {patience:g} s", patience)
