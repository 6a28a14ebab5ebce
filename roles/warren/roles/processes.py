"""Processes of this machine: to start one, to see it end, and to prove that one is ours.

    child = Child(argv, log)      started here; `await child.ended()` says how it ended: `exit 3`, `signal 9`
    born = Born.of(pid)           names one process for ever: a number goes round, its start does not
    finish([born, ...])           SIGTERM, and SIGKILL for what stays; returns when all are gone
    die_with_parent()             in a child: the kernel ends us when our parent does

A process is never signalled by its number alone. A child is a `Popen` that nobody else waits for; anything
else is held by a pidfd, taken first and compared with what is known of it afterwards.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL
PARENT = "WARREN_PARENT"  # in a child's environment: the process that started it
_LARGEST_LOG = 1 << 20
_PR_SET_PDEATHSIG = 1


class Born(NamedTuple):
    """One process among all there ever were on this machine."""

    pid: int
    start: int  # clock ticks since the boot
    boot: str

    @classmethod
    def of(cls, pid: int) -> Born | None:
        """The process that has this number now, or None; one that has ended and was not noticed is none."""
        try:
            # The name may hold anything, a parenthesis too; what follows the last one is numbers.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else cls(pid, int(fields[19]), _boot())

    @classmethod
    def parse(cls, text: str) -> Born | None:
        """What `str()` wrote, or None."""
        match text.split():
            case [pid, start, boot] if pid.isdecimal() and start.isdecimal() and int(pid) > 0:
                return cls(int(pid), int(start), boot)
        return None

    def __str__(self) -> str:
        return f"{self.pid} {self.start} {self.boot}"

    @property
    def lives(self) -> bool:
        return Born.of(self.pid) == self


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "-"


def hold(born: Born) -> int | None:
    """A pidfd of that very process, or None if it is gone. Close it."""
    try:
        fd = os.pidfd_open(born.pid)
    except (ProcessLookupError, OSError):
        return None
    if born.lives:
        return fd
    os.close(fd)
    return None


def finish(them: Iterable[Born], patience: float = PATIENCE) -> list[Born]:
    """End them all, kindly first. Returns those that were alive; waits for the last one, without trio."""
    held = [(born, fd) for born in them if (fd := hold(born)) is not None]
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for _, fd in held:
                _signal(fd, number)
            if wait_for([fd for _, fd in held], patience):
                break
    finally:
        for _, fd in held:
            os.close(fd)
    return [born for born, _ in held]


def _signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def wait_for(pidfds: Sequence[int], patience: float) -> bool:
    """Whether all of these processes ended within PATIENCE seconds. Without trio."""
    poll = select.poll()
    left = set(pidfds)
    for fd in left:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + patience
    while left and (rest := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(rest * 1000):
            poll.unregister(fd)
            left.discard(fd)
    return not left


class Child:
    """A process that was started here, in a session of its own, its output at the end of a log.

    It is started by the thread that calls, which must be one that stays: the kernel takes the end of that
    thread for the end of the parent, and trio's worker threads come and go.
    """

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        rotate(log)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True,
                env={**os.environ, PARENT: str(os.getpid())},
            )  # fmt: skip
        finally:
            os.close(out)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.born = Born.of(self.pid)

    async def ended(self) -> str:
        """How it ended, once it has. Cancelled leaves it running, and this can be asked again."""
        await trio.lowlevel.wait_readable(self._pidfd)
        return self.reap()

    def reap(self) -> str:
        """How it ended; it has."""
        code = self._process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return f"signal {-code}" if code < 0 else f"exit {code}"

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self._pidfd >= 0:
            _signal(self._pidfd, number)

    def kill(self) -> None:
        """End it now, and wait for that."""
        self.signal(signal.SIGKILL)
        self.reap()


def rotate(log: Path, largest: int = _LARGEST_LOG) -> None:
    """Begin a log that has grown too large again; the one before it is kept beside.

    It is copied and cut, not renamed: a process that goes on writing at its end writes to the new beginning.
    """
    try:
        if log.stat().st_size <= largest:
            return
        beside = log.with_name(f"{log.name}.1")
        kept = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(log, "rb") as old, open(kept, "wb") as new:
            old.seek(-largest, os.SEEK_END)
            new.write(old.read(largest))
        os.truncate(log, 0)
    except FileNotFoundError:
        return


def tail(log: Path, lines: int = 3) -> list[str]:
    """The last lines of a log, for a person who wants to know why."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            return file.read().decode("utf-8", "replace").rstrip().splitlines()[-lines:]
    except OSError:
        return []


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """From now on the kernel sends us NUMBER when the Child's parent ends; at once if it has ended already.

    Who was started by hand lives on when the shell goes, and so do processes that we start.
    """
    import ctypes

    parent = os.environ.pop(PARENT, "")
    if not parent.isdecimal():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        text = os.strerror(ctypes.get_errno())
        raise OSError(ctypes.get_errno(), f"the kernel will not tell us of our parent's end: {text}")
    if os.getppid() != int(parent):
        os.kill(os.getpid(), number)
