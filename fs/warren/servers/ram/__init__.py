"""Files in memory: an ordinary writable tree that is gone with its role.

    /               whatever its users make of it: files, directories, symbolic and hard links

    Ram(size=16 << 20, files=4096, dirs=("mic", "cam"))

SIZE bounds the bytes, in pages of 4 KiB that hold data (a hole costs nothing), FILES the files and
directories, `dirs` are there from the start. Beyond a bound the answer is ENOSPC and nothing is
changed. An unlinked file keeps its room while somebody has it open.

Modes, times and locks are kept, modes are not enforced: rights are the policy's. There are no extended
attributes, devices or set-id bits. `volume` is the room, `node` the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from warren.servers.ram.node import Folder
from warren.servers.ram.volume import Volume
from warren.tree import Refused

__all__ = ["Ram"]


class Ram(Folder):
    """The root."""

    def __init__(
        self,
        size: int = 16 << 20,
        files: int = 4096,
        dirs: Sequence[str] = (),
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(Volume(size, files, now), 0o755)
        for path in dirs:
            at: Folder = self
            for name in filter(None, path.split("/")):
                there = at.names.get(name) or at.make(name, 0o755)
                if not isinstance(there, Folder):
                    raise Refused(400, f"{path}: {name} is no directory")
                at = there
