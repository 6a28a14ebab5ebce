"""The servers of `bench work`, each up as a context that gives its address.

    hive(folder)        a queen as `warren up` starts one: mailbox and storage on SQLite, policy, trace, audit
    disk(folder, data)  `warren serve disk`, for storage to be compared with
    redis(folder)       a stream's server that answers when the append is fsynced
    jetstream(folder)   file storage; what it answers is not fsynced: it flushes every two minutes
    durable(folder)     raises BenchError where nothing would be: in memory
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from .hive import ALLOWED
from .processes import PATIENCE, BenchError, free_port

WARREN = str(Path(sys.executable).with_name("warren"))
MEMORY = ("tmpfs", "ramfs", "devtmpfs", "proc")


def kind(folder: Path) -> str:
    """The file system that FOLDER is on."""
    found, longest = "unknown", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, name, *_ = line.split()
        if folder.is_relative_to(at) and len(at) >= longest:
            found, longest = name, len(at)
    return found


def durable(folder: Path) -> str:
    """The file system, if it keeps what it was told to."""
    name = kind(folder.resolve())
    if name in MEMORY:
        raise BenchError(f"{folder} is on {name}, where nothing is durable; choose a disk with --dir")
    return name


def fsync_ms(folder: Path, times: int = 100) -> float:
    """What one append of 4 KiB and its fsync cost there; the median."""
    taken = []
    path = folder / "fsync"
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            since = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - since)
    path.unlink()
    return 1e3 * median(taken)


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise BenchError(f"no {name} to compare with: apt-get install {name}")
    return found


def warren(*words: str) -> None:
    done = subprocess.run([WARREN, *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"warren {words[0]}: {done.stderr.strip()}")


@contextmanager
def hive(folder: Path) -> Iterator[str]:
    state = str(folder / "hive")
    try:
        warren("up", "queen=QueenPrimary", "--state", state, "--detach")
        yield f"unix!{state}/run/queen/sock"
    finally:
        warren("down", "--state", state)


@contextmanager
def started(command: Sequence[str], out: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """A process, from when it is ready until it has ended."""
    with out.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = "; ".join(out.read_text(errors="replace").strip().splitlines()[-3:])
                raise BenchError(f"{Path(command[0]).name} does not listen: {last}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def disk(folder: Path, data: Path) -> Iterator[str]:
    sock = folder / "disk.sock"
    command = [WARREN, "serve", "disk", str(data), "--audit", str(folder / "disk.audit")]
    command += ["--allow", f"local {ALLOWED}", "--listen", f"unix!{sock}"]
    with started(command, folder / "disk.out", sock.exists):
        yield f"unix!{sock}"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    kept, sock = folder / "redis", folder / "redis.sock"
    kept.mkdir()
    command = [
        program("redis-server"), "--port", "0", "--unixsocket", str(sock), "--dir", str(kept), "--save", "",
        "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0",
    ]  # fmt: skip
    with started(command, folder / "redis.out", sock.exists):
        yield str(sock)


@contextmanager
def jetstream(folder: Path) -> Iterator[str]:
    port = free_port()

    def ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    command = [program("nats-server"), "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder / "nats")]
    with started(command, folder / "nats.out", ready):
        yield f"nats://127.0.0.1:{port}"
