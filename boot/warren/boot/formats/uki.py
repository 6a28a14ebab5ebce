"""A unified kernel image: kernel, first file system and command line in one file, under one signature.

    stub()                                      ->  systemd's linuxx64.efi.stub, from this machine
    build(stub, linux, initrd, cmdline, osrel)  ->  the image
    measured(image)                             ->  the chain that it leaves in a TPM

The firmware starts it as a program. The stub in it finds its own sections and boots the kernel with them;
with Secure Boot on it heeds no other command line. The sections are

    .osrel     os-release text: what boot menus show
    .cmdline   the kernel's command line
    .uname     the kernel's release, if it was given
    .initrd    the first file system, a cpio archive
    .linux     the kernel, the last one, because a kernel may unpack itself into the memory behind it

With a TPM beside, the stub extends PCR 11 with what it uses; `measured(image)` is the chain that leads to the
value which a TPM must hold then, if exactly this image was started.

The same inputs give the same bytes: there is no time in it, and the stub's symbols are left out.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Final

from warren.boot.formats import pe
from warren.boot.secure.chain import Chain, measure
from warren.tree import Refused

STUB: Final = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
SIZE_MAX: Final = 1 << 30
COMMAND_LINE_MAX: Final = 2048
MEASURED: Final = (".linux", ".osrel", ".cmdline", ".initrd")
"""By the stub of systemd 252, in its order; a splash and a device tree no image here has."""
MEASURED_LATER: Final = (*MEASURED, ".uname", ".sbat")
"""By those from 254 on, as systemd has published it."""
_MAGIC: Final = re.compile(rb"#### LoaderInfo: systemd-stub (\d{3})")
_PAGE: Final = 4096
_READ_DATA: Final = 0x40000040  # initialised data that can be read


def stub() -> bytes:
    try:
        return STUB.read_bytes()
    except FileNotFoundError:
        raise Refused(503, f"there is no {STUB}; apt-get install systemd-boot-efi") from None


def build(stub: bytes, linux: bytes, initrd: bytes, cmdline: str, osrel: str, uname: str = "") -> bytes:
    """The image, unsigned."""
    if linux[:2] != b"MZ":
        raise Refused(400, "the kernel has no EFI entry; give the bzImage as it is packaged, not unpacked")
    if len(cmdline) > COMMAND_LINE_MAX or not cmdline.isascii() or any(c < " " for c in cmdline):
        text = f"the command line is one line of at most {COMMAND_LINE_MAX} ASCII characters"
        raise Refused(400, f"{text}; without line ends")
    if len(linux) + len(initrd) > SIZE_MAX:
        raise Refused(413, f"{len(linux) + len(initrd)} bytes; an image has at most {SIZE_MAX}")
    sections = {".osrel": osrel.encode(), ".cmdline": cmdline.encode()}
    if uname:
        sections[".uname"] = uname.encode()
    return _with(stub, {**sections, ".initrd": initrd, ".linux": linux})


def measured(image: bytes) -> Chain:
    """The chain of the image's sections, as the stub measures them."""
    found = {s.name: image[s.raw : s.raw + min(s.size, s.raw_size)] for s in pe.read(image).sections}
    magic = _MAGIC.search(found.get(".sdmagic", b""))
    version = int(magic[1]) if magic else 0
    if version != 252 and version < 254:
        raise Refused(405, "what this image's stub measures is not known; build it with that of systemd 252")
    names = MEASURED if version == 252 else MEASURED_LATER
    return measure({name: found[name] for name in names if name in found})


def _with(stub: bytes, sections: dict[str, bytes]) -> bytes:
    """The stub with these sections behind its own."""
    found = pe.read(stub)
    if twice := [s.name for s in found.sections if s.name in sections]:
        raise pe.no(f"it has a section {twice[0]} already; give a stub, not an image")
    count = len(found.sections) + len(sections)
    if found.table + count * pe.SECTION.size > found.headers:
        raise pe.no(f"its headers have no room for {len(sections)} more sections")
    unit, raw = max(found.alignment, _PAGE), found.end
    address = max(_up(s.address + s.size, unit) for s in found.sections)
    out = bytearray(stub[: found.end])  # behind it are symbols, which nobody reads
    for n, (name, body) in enumerate(sections.items(), len(found.sections)):
        raw_size = _up(len(body), found.file_alignment)
        entry = pe.SECTION.pack(name.encode(), len(body), address, raw_size, raw, 0, 0, 0, 0, _READ_DATA)
        at = found.table + n * pe.SECTION.size
        out[at : at + pe.SECTION.size] = entry
        out += body.ljust(raw_size, b"\0")
        address, raw = _up(address + len(body), unit), raw + raw_size
    struct.pack_into("<H", out, found.coff + 2, count)
    struct.pack_into("<III", out, found.coff + 4, 0, 0, 0)  # the time, and the symbols that were left out
    struct.pack_into("<I", out, found.size_of_image_at, address)
    struct.pack_into("<I", out, found.checksum_at, pe.checksum(bytes(out), found))
    return bytes(out)


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
