"""Root file systems as cpio archives (newc), written and read here.

    archive = cpio(entries)             the same entries, in any order, give the same bytes
    entries = listed(archive)           what is in one, or in several that were put together
    packed = compressed(archive)        zstd, which the kernel unpacks; several may be put together

An archive says nothing about when or by whom it was made: owner root, time 0, numbers by position, names
sorted. The kernel skips a file whose directory is not there yet, and says nothing; so the directories above
every entry are added here, and sorting puts them first.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from warren.tree.errors import Refused

MAGIC: Final = b"070701"
END: Final = "TRAILER!!!"
LARGEST: Final = 1 << 30
LEVEL: Final = 15  # of zstd: 19 is four times as slow and three per cent smaller
_HEAD: Final = 110


class Entry(NamedTuple):
    """A file, directory, link or device of the archive; NAME has no slash in front."""

    name: str
    mode: int
    body: bytes = b""  # of a link: where it leads
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, body: bytes, mode: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | mode, body)


def link(name: str, to: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, to.encode())


def device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def plain(name: str) -> str:
    """NAME, if it names something in an archive; ValueError for what leads out of it."""
    if not all(p not in ("", ".", "..") and "\0" not in p for p in name.split("/")) or name == END:
        raise ValueError(f"{name!r} cannot be in an archive; write it as bin/sh")
    return name


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive. ValueError for a name that is there twice or leads out."""
    found: dict[str, Entry] = {}
    for entry in entries:
        plain(entry.name)
        if found.setdefault(entry.name, entry) != entry:
            raise ValueError(f"{entry.name!r} is in the archive twice; leave one out")
    for name in list(found):
        parts = name.split("/")[:-1]
        for n in range(1, len(parts) + 1):
            above = "/".join(parts[:n])
            if not stat.S_ISDIR(found.setdefault(above, directory(above)).mode):
                raise ValueError(f"{name!r} lies in {above!r}, which is no directory")
    archive = bytearray()
    # Compared by parts, so that a directory is followed by what it holds.
    ordered = sorted(found.values(), key=lambda e: e.name.split("/"))
    for number, entry in enumerate([*ordered, Entry(END, 0)], start=1):
        called = entry.name.encode("utf-8", "surrogateescape") + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = [number, entry.mode, 0, 0, links, 0, len(entry.body), 0, 0, *entry.device, len(called), 0]
        archive += MAGIC + b"".join(b"%08X" % field for field in fields) + called
        archive += bytes(-len(archive) % 4) + entry.body
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def listed(archive: bytes) -> Iterator[Entry]:
    """The entries of an archive, or of several one behind the other. ValueError where it is none."""
    at = 0
    while at < len(archive):
        head = archive[at : at + _HEAD]
        try:
            if len(head) < _HEAD or head[:6] != MAGIC:
                raise ValueError
            fields = [int(head[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        except ValueError:
            raise ValueError(f"byte {at}: no cpio entry (newc) begins there") from None
        mode, size, long = fields[1], fields[6], fields[11]
        begin = at + _HEAD + long + (-(at + _HEAD + long)) % 4
        name = archive[at + _HEAD : at + _HEAD + long - 1]
        body = archive[begin : begin + size]
        if len(name) != long - 1 or len(body) != size:
            raise ValueError(f"byte {at}: the archive ends within an entry")
        at = begin + size + (-(begin + size)) % 4
        if name == END.encode():
            while archive[at : at + 4] == bytes(4):
                at += 4
        else:
            yield Entry(name.decode("utf-8", "surrogateescape"), mode, body, (fields[9], fields[10]))


def compressed(archive: bytes, level: int = LEVEL) -> bytes:
    """As zstd in one thread, so that the same bytes come out on every machine that has the same zstd."""
    return _zstd(["-T1", f"-{level}", "--check"], archive)


def inflated(packed: bytes) -> bytes:
    """What `compressed` was given; all frames of it."""
    return _zstd(["-d", f"--memory={LARGEST >> 20}MB"], packed)


def _zstd(options: list[str], data: bytes) -> bytes:
    if len(data) > LARGEST:
        raise Refused(413, f"{len(data)} bytes are more than a root file system may have, {LARGEST}")
    return _run(["-q", "-c", *options], data)


def _run(options: list[str], data: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise Refused(503, "there is no zstd here, which packs root file systems; apt-get install zstd")
    done = subprocess.run([program, *options], input=data, capture_output=True, timeout=600)
    if done.returncode:
        raise Refused(422, f"zstd: {done.stderr.decode(errors='replace').strip()[:200]}")
    return done.stdout
