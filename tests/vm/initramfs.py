"""A small root file system, as a cpio archive (newc)."""

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    body: bytes = b""


def cpio(entries: list[Entry]) -> bytes:
    """A newc archive: inode numbers by position, owner root, time 0."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = [number, entry.mode, 0, 0, links, 0, len(entry.body), 0, 0, 0, 0, len(name), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + entry.body
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
