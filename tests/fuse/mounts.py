"""Trees that are served and mounted for real, and programs that work on them.

    with mounted(address, folder) as mount:     `warren mount ADDRESS FOLDER --foreground`, for the block
    with other_process(CODE, path) as it:       a Python program; it.ask("word") is its answer to a line
    with refused(errno.EEXIST):                 that OSError is raised

A mount that does not answer would hang whoever looks at it, this process too, and no signal would help.
So every mount here is in LIVE, and `watchdog` in conftest kills those when a test takes too long: then the
kernel answers whoever waits.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.shell.running import PATIENCE, WARREN, environment

LIVE: set[subprocess.Popen[bytes]] = set()
EVERYTHING = ("--allow", "local rw,create,remove,ctl /**")
SCRIPT = PATIENCE  # for what one test may run


@dataclass(frozen=True)
class Mount:
    """A tree at a directory. `folder` is what the disk server serves, where it is one."""

    at: Path
    address: str
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path | None = None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def mounted_at(directory: Path, table: str | None = None) -> bool:
    """Whether something is mounted on DIRECTORY. The directory itself is not touched: it might hang."""
    table = Path("/proc/self/mounts").read_text() if table is None else table
    return any(line.split()[1] == str(directory) for line in table.splitlines())


def until_table(
    true: Callable[[str], bool], process: subprocess.Popen[bytes] | None, within: float = PATIENCE
) -> bool:
    """Wait until the mount table is as TRUE wants it; False if PROCESS ended before, or time ran out."""
    with open("/proc/self/mounts") as table:
        watch = select.poll()
        watch.register(table, select.POLLPRI)
        ended = os.pidfd_open(process.pid) if process else -1
        try:
            if process:
                watch.register(ended, select.POLLIN)
            deadline = time.monotonic() + within
            while not true(table.read()):
                left = deadline - time.monotonic()
                if left <= 0 or any(fd == ended for fd, _ in watch.poll(left * 1000)):
                    table.seek(0)
                    return true(table.read())
                table.seek(0)
            return True
        finally:
            if process:
                os.close(ended)


@contextmanager
def mounted(address: str, at: Path, *words: str, folder: Path | None = None) -> Iterator[Mount]:
    """The mount, up; unmounted in the end by SIGTERM, as a supervisor would."""
    at.mkdir(exist_ok=True)
    log = at.with_name(f"{at.name}.log")
    with log.open("ab") as said:
        process = subprocess.Popen(
            [WARREN, "mount", address, str(at), "--foreground", *words],
            env=environment(WARREN_TRACEBACK="1"), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
    LIVE.add(process)
    try:
        up = until_table(lambda table: mounted_at(at, table), process)
        assert up, f"not mounted: {log.read_text()}"
        yield Mount(at, address, process, log, folder)
    finally:
        put_away(process, at)
    assert process.returncode in (0, -signal.SIGKILL), (process.returncode, log.read_text())


def put_away(process: subprocess.Popen[bytes], at: Path) -> None:
    """End a mount, whatever state it is in. One that was unmounted ends by itself."""
    if process.poll() is None and mounted_at(at):
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        LIVE.discard(process)
        if mounted_at(at):
            subprocess.run(["umount", "-l", str(at)], check=False, capture_output=True)


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, caught.value


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def run(*words: str | Path, cwd: Path | None = None, code: int | None = 0, **env: str) -> Ran:
    """A program of the system, to its end; CODE is the exit status it must have."""
    command = list(map(str, words))
    done = subprocess.run(
        command, cwd=cwd, env={**environment(), **env}, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=SCRIPT,
    )  # fmt: skip
    ran = Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    assert code is None or ran.code == code, (command, ran.code, ran.out[-300:], ran.err[-300:])
    return ran


def sh(script: str, cwd: Path, code: int | None = 0) -> Ran:
    """A script of bash, in a session of its own, as a terminal or a job has it."""
    return run("setsid", "--wait", "bash", "-c", script, cwd=cwd, code=code)


class Child:
    """A Python program in another process, which reads lines and answers each with one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin
        assert process.stdout
        self.input: IO[str] = process.stdin
        self.output: IO[str] = process.stdout

    def tell(self, line: str) -> None:
        self.input.write(f"{line}\n")
        self.input.flush()

    def hear(self, within: float = PATIENCE) -> str:
        ready, _, _ = select.select([self.output], [], [], within)
        assert ready, "the other process does not answer"
        line = self.output.readline().rstrip("\n")
        assert line, f"the other process ended with {self.process.wait()}"
        return line

    def silent(self, within: float = 0.1) -> bool:
        """It has not answered yet, and does not for a moment."""
        return not select.select([self.output], [], [], within)[0]

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()


@contextmanager
def other_process(code: str, *words: str | Path) -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", code, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, bufsize=1,
    ) as process:  # fmt: skip
        try:
            yield Child(process)
        finally:
            process.kill()


def state(pid: int) -> str:
    """The letter of /proc/PID/stat: D is what no signal reaches."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
