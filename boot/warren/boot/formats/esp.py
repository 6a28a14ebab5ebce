"""An EFI system partition as a file: a FAT volume with the programs that firmware starts.

    build({"/EFI/BOOT/BOOTX64.EFI": signed})  ->  the volume

FAT16, without a partition table, as a removable disk may be. Names are the short ones, 8.3 in capital
letters, which is what firmware looks for. The same files give the same bytes: entries are in order, files lie
one behind the other, and every date is the first one that the format knows.
"""

from __future__ import annotations

import re
import struct
from array import array
from dataclasses import dataclass, field
from typing import Final

from warren.tree import Refused

BOOT: Final = "/EFI/BOOT/BOOTX64.EFI"
"""What firmware starts from a disk that nobody told it about."""

_SECTOR: Final = 512
_ROOT_ENTRIES: Final = 512
_CLUSTERS: Final = (4085 + 16, 65524 - 16)  # fewer and it would be FAT12, more and it would be FAT32
_PER_CLUSTER: Final = (1, 2, 4, 8, 16, 32, 64)  # sectors
_FIRST_DAY: Final = 1 << 5 | 1  # 1980-01-01
_DIRECTORY, _ARCHIVE = 0x10, 0x20
_ENTRY: Final = struct.Struct("<11sBBBHHHHHHHI")
_NAME: Final = re.compile(r"([A-Z0-9_-]{1,8})(?:\.([A-Z0-9_-]{1,3}))?")
_DEPTH: Final = 8


@dataclass
class _Folder:
    folders: dict[str, _Folder] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return 32 * (2 + len(self.folders) + len(self.files))


def build(files: dict[str, bytes]) -> bytes:
    """The volume, as large as its files need."""
    root = _tree(files)
    if len(root.folders) + len(root.files) > _ROOT_ENTRIES:
        raise Refused(413, f"the top folder has room for {_ROOT_ENTRIES} names")
    for sectors in _PER_CLUSTER:
        clusters = _clusters(root, sectors * _SECTOR, top=True)
        if clusters <= _CLUSTERS[1]:
            return _Volume(sectors, max(clusters, _CLUSTERS[0])).of(root)
    raise Refused(413, "the files are larger than 2 GB together, and FAT16 has no room for more")


def _tree(files: dict[str, bytes]) -> _Folder:
    root = _Folder()
    for path, body in files.items():
        *above, name = path.removeprefix("/").split("/")
        if len(above) > _DEPTH or not all(_NAME.fullmatch(part) for part in (*above, name)):
            raise Refused(400, f"{path}: names are 8.3, in capital letters, at most {_DEPTH} folders deep")
        if len(body) >= 1 << 31:
            raise Refused(413, f"{path}: {len(body)} bytes are too many for one file")
        here = root
        for part in above:
            here = here.folders.setdefault(part, _Folder())
        here.files[name] = body
    _clashes(root, "")
    return root


def _clashes(folder: _Folder, path: str) -> None:
    if both := sorted(folder.folders.keys() & folder.files.keys()):
        raise Refused(400, f"{path}/{both[0]} is a file and a folder")
    for name, below in folder.folders.items():
        _clashes(below, f"{path}/{name}")


def _clusters(folder: _Folder, size: int, top: bool = False) -> int:
    own = 0 if top else -(-folder.size // size)
    files = sum(-(-len(body) // size) for body in folder.files.values())
    return own + files + sum(_clusters(below, size) for below in folder.folders.values())


class _Volume:
    """Clusters are given out in the order in which they are asked for."""

    def __init__(self, sectors: int, clusters: int) -> None:
        self.sectors, self.cluster = sectors, sectors * _SECTOR
        self.fat_sectors = -(-2 * (clusters + 2) // _SECTOR)
        self.root_at = (1 + 2 * self.fat_sectors) * _SECTOR
        self.data_at = self.root_at + 32 * _ROOT_ENTRIES
        self.out = bytearray(self.data_at + clusters * self.cluster)
        self.fat = array("H", [0xFFF8, 0xFFFF])

    def of(self, root: _Folder) -> bytes:
        entries = self._entries(root, 0)
        self.out[self.root_at : self.root_at + len(entries)] = entries
        self.out[:_SECTOR] = self._first_sector()
        fat = struct.pack(f"<{len(self.fat)}H", *self.fat)
        for n in range(2):
            at = (1 + n * self.fat_sectors) * _SECTOR
            self.out[at : at + len(fat)] = fat
        return bytes(self.out)

    def _take(self, size: int) -> int:
        """The first of as many clusters as these bytes need."""
        first, count = len(self.fat), -(-size // self.cluster)
        if not count:
            return 0
        self.fat.extend(range(first + 1, first + count))
        self.fat.append(0xFFFF)
        return first

    def _put(self, first: int, body: bytes) -> None:
        at = self.data_at + (first - 2) * self.cluster
        self.out[at : at + len(body)] = body

    def _entries(self, folder: _Folder, here: int) -> bytes:
        """The entries of a folder that begins at the cluster `here`; all below is written."""
        out = b""
        for name, below in sorted(folder.folders.items()):
            first = self._take(below.size)
            inner = self._entries(below, first)
            self._put(first, _entry(b".", _DIRECTORY, first) + _entry(b"..", _DIRECTORY, here) + inner)
            out += _entry(_short(name), _DIRECTORY, first)
        for name, body in sorted(folder.files.items()):
            first = self._take(len(body))
            if first:
                self._put(first, body)
            out += _entry(_short(name), _ARCHIVE, first, len(body))
        return out

    def _first_sector(self) -> bytes:
        total = len(self.out) // _SECTOR
        small, large = (total, 0) if total < 0x10000 else (0, total)
        head = b"\xeb\x3c\x90" + b"WARREN  " + struct.pack(
            "<HBHBHHBHHHII",
            _SECTOR, self.sectors, 1, 2, _ROOT_ENTRIES, small, 0xF8, self.fat_sectors, 32, 64, 0, large,
        )  # fmt: skip
        tail = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0x57415252, b"NO NAME    ", b"FAT16   ")
        return (head + tail).ljust(510, b"\0") + b"\x55\xaa"


def _entry(name: bytes, kind: int, first: int, size: int = 0) -> bytes:
    day = _FIRST_DAY
    return _ENTRY.pack(name.ljust(11), kind, 0, 0, 0, day, day, 0, 0, day, first, size)


def _short(name: str) -> bytes:
    stem, _, extension = name.partition(".")
    return stem.ljust(8).encode() + extension.ljust(3).encode()
