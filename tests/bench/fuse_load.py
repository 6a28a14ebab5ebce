"""One load on a mounted directory, in a process of its own: `python fuse_load.py LOAD DIR SECONDS`.

    cold     stat of names that the kernel has not seen: each name of DIR/many once
    stat     statx(2) that asks the server, over the same hundred names
    orc      open, read 4 KiB, close, over the same hundred names
    read     DIR/data from end to end, 1 MiB a call, nothing of it in the page cache
    write    DIR/out likewise, over the same 64 MiB again and again

Prints {"per_s": ..., "mb_per_s": ...} and fails when a byte is wrong. The same code whoever serves DIR.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle

MIB = 1 << 20
BLOCK = 4096
NAMES, COLD = 100, 2000
AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC = -100, 0x2000, 0x7FF

Load = Callable[[str], Iterator[int]]


def cold(directory: str) -> Iterator[int]:
    for n in range(COLD):  # not listed: that would make them known
        if os.stat(f"{directory}/many/{n:05}").st_size != BLOCK:
            raise ValueError(f"{n} has a wrong size")
        yield 0


def stat(directory: str) -> Iterator[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(256)
    for path in paths(directory):
        if libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC, answer):
            raise OSError(ctypes.get_errno(), "statx")
        if int.from_bytes(answer.raw[40:48], "little") != BLOCK:
            raise ValueError(f"{path!r} has a wrong size")
        yield 0


def orc(directory: str) -> Iterator[int]:
    for path in paths(directory):
        fd = os.open(path, os.O_RDONLY)
        data = os.read(fd, BLOCK)
        os.close(fd)
        if len(data) != BLOCK:
            raise ValueError(f"{path!r} has {len(data)} bytes")
        yield len(data)


def paths(directory: str) -> Iterator[bytes]:
    return cycle(f"{directory}/many/{n:05}".encode() for n in range(NAMES))


def read(directory: str) -> Iterator[int]:
    fd = os.open(f"{directory}/data", os.O_RDONLY)
    while True:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        offset = 0
        while data := os.pread(fd, MIB, offset):
            if int.from_bytes(data[:8], "little") != offset:
                raise ValueError(f"wrong data at {offset}")
            offset += len(data)
            yield len(data)


def write(directory: str) -> Iterator[int]:
    fd = os.open(f"{directory}/out", os.O_CREAT | os.O_WRONLY, 0o644)
    data = bytes(range(256)) * (MIB // 256)
    for n in cycle(range(64)):
        if os.pwrite(fd, data, n * MIB) != MIB:
            raise ValueError("a short write")
        yield MIB


LOADS: dict[str, Load] = {"cold": cold, "stat": stat, "orc": orc, "read": read, "write": write}


def measure(name: str, directory: str, seconds: float) -> dict[str, float]:
    work = LOADS[name](directory)
    if name != "cold":
        for _ in range(NAMES):  # what is looked up once only is not measured
            next(work)
    count = moved = 0
    began = now = time.perf_counter()
    for n in work:
        count += 1
        moved += n
        now = time.perf_counter()
        if now - began > seconds:
            break
    return {"per_s": count / (now - began), "mb_per_s": moved / (now - began) / 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
