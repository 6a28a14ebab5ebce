"""The file system that Warren's mount is compared with: mfusepy over the same 9P server.

    python -m tests.bench.fuse_bridge ADDRESS DIR [--threads]
    python -m tests.bench.fuse_bridge --here FOLDER DIR

The first answers from `warren.mount.dial` through `trio.from_thread`, as a user of a synchronous FUSE library
would write it. The second answers from FOLDER in the process itself, which is the most that such a library
can do. Attributes and names are kept for a second and pages while a file is unchanged, as ours are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import trio
from warren.mount import Entry, File, Files, dial

T = TypeVar("T")
KEPT = {"attr_timeout": 1, "entry_timeout": 1, "auto_cache": True}


class Bridge:
    """What mfusepy calls, each from one of its threads."""

    use_ns = True

    def __init__(self, files: Files, token: trio.lowlevel.TrioToken) -> None:
        self.files, self.token = files, token
        self.open_files: dict[int, File] = {}
        self.numbers = iter(range(1, 1 << 62))

    def run(self, act: Callable[..., Awaitable[T]], *words: Any) -> T:
        return trio.from_thread.run(act, *words, trio_token=self.token)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        entry: Entry = self.run(self.files.stat, path) if fh is None else self.run(self.open_files[fh].stat)
        return {
            "st_mode": entry.mode, "st_ino": entry.qid.path, "st_size": entry.size, "st_nlink": entry.nlink,
            "st_uid": entry.uid, "st_gid": entry.gid, "st_blocks": entry.blocks, "st_blksize": entry.blksize,
            "st_atime": entry.atime_ns, "st_mtime": entry.mtime_ns, "st_ctime": entry.ctime_ns,
        }  # fmt: skip

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(entry.name for entry in self.run(self.files.readdir, path))]

    def open(self, path: str, flags: int) -> int:
        return self._keep(self.run(self.files.open, path, flags))

    def create(self, path: str, mode: int, fi: int | None = None) -> int:
        return self._keep(self.run(self.files.create, path, os.O_RDWR, mode))

    def _keep(self, file: File) -> int:
        number = next(self.numbers)
        self.open_files[number] = file
        return number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self.run(self.open_files[fh].pread, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self.run(self.open_files[fh].pwrite, data, offset)

    def release(self, path: str, fh: int) -> int:
        self.run(self.open_files.pop(fh).close)
        return 0


class Here:
    """The same, from a folder of this machine."""

    use_ns = True

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        st = os.lstat(self.folder + path)
        return {
            "st_mode": st.st_mode, "st_ino": st.st_ino, "st_size": st.st_size, "st_nlink": st.st_nlink,
            "st_uid": st.st_uid, "st_gid": st.st_gid, "st_blocks": st.st_blocks, "st_blksize": st.st_blksize,
            "st_atime": st.st_atime_ns, "st_mtime": st.st_mtime_ns, "st_ctime": st.st_ctime_ns,
        }  # fmt: skip

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.folder + path)]

    def open(self, path: str, flags: int) -> int:
        return os.open(self.folder + path, flags)

    def create(self, path: str, mode: int, fi: int | None = None) -> int:
        return os.open(self.folder + path, os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


async def bridged(address: str, mount: Callable[[Bridge], None]) -> None:
    async with dial(address) as files:
        bridge = Bridge(files, trio.lowlevel.current_trio_token())
        await trio.to_thread.run_sync(mount, bridge)


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuse_bridge")
    parser.add_argument("tree")
    parser.add_argument("at")
    parser.add_argument("--here", action="store_true")
    parser.add_argument("--threads", action="store_true")
    options = parser.parse_args()
    library = import_module("mfusepy")  # of the extra `bench`: the only place that needs it

    def mount(operations: object) -> None:
        library.FUSE(operations, options.at, foreground=True, nothreads=not options.threads, **KEPT)

    if options.here:
        mount(Here(options.tree))
    else:
        trio.run(partial(bridged, options.tree, mount))


if __name__ == "__main__":
    main()
