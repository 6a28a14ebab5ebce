"""An empty qcow2 file: where a guest's writes go, and where its snapshots are kept.

    make(path, size)                    SIZE bytes of zeros
    make(path, size, backing=file)      what FILE has, which is taken as raw and never written

QEMU ships a tool for this, which is often in another package; the format is four clusters here:

    0   the header, the name of the backing file and its format, so that nobody guesses what that is
    1   the table of refcount blocks     2   one refcount block     3 …   the table of the mapping, empty
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

CLUSTER: Final = 1 << 16
MOST: Final = 4 << 40
_VERSION, _HEADER, _BITS = 3, 104, 16
_MAPPED: Final = CLUSTER * (CLUSTER // 8)  # bytes of a disk behind one entry of the first table
_FORMAT: Final = 0xE2792ACA
_RAW: Final = b"raw"


def make(path: Path, size: int, backing: Path | None = None) -> None:
    """Write the file; it must not be there. ValueError for a size that is none, or too long a name."""
    size = -(-size // 512) * 512
    entries = -(-size // _MAPPED)
    name = b"" if backing is None else os.fsencode(backing.absolute())
    if not 0 < size <= MOST or len(name) > 1023:
        raise ValueError(f"no disk has {size} bytes")
    table = -(-entries * 8 // CLUSTER)
    extensions = b""
    if name:
        extensions += struct.pack(">II8s", _FORMAT, len(_RAW), _RAW)
    extensions += struct.pack(">II", 0, 0)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", _VERSION, _HEADER + len(extensions) if name else 0, len(name),
        CLUSTER.bit_length() - 1, size, 0, entries, 3 * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0,
        _BITS.bit_length() - 1, _HEADER,
    )  # fmt: skip
    counts = struct.pack(">H", 1) * (3 + table)
    with open(path, "xb") as file:
        file.write(header + extensions + name)
        file.seek(CLUSTER)
        file.write(struct.pack(">Q", 2 * CLUSTER))
        file.seek(2 * CLUSTER)
        file.write(counts)
        file.truncate((3 + table) * CLUSTER)
