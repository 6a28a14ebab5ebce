"""Why it failed: the text behind an errno, for the process that got it and those it belongs to.

    echo bad > /mnt/ctl  ||  cat /mnt/dev/errstr

A shell runs `cat` as another process than the `echo` that failed, so an error is recorded under the failing
process and under each of its ancestors up to the leader of its session; a reader is given the newest record
of itself or else of its nearest ancestor that has one. Processes are known by number and start time, because
numbers come again. Records last a minute, there are `LIMIT` at most, and nobody reads another user's.

The kernel names the *thread* that asked. Who that belongs to must be found out before it is answered: the
thread may be gone right after.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final, NamedTuple

LIMIT: Final = 1024
LASTS: Final = 60.0
_DEPTH: Final = 16


class Process(NamedTuple):
    """One process, told from any other that had or will have its number."""

    pid: int
    started: int


class _Record(NamedTuple):
    when: float
    uid: int
    text: str


def lineage(thread: int) -> list[Process]:
    """The process of a thread and its ancestors, up to the leader of its session; as far as can be seen."""
    found: list[Process] = []
    try:
        with open(f"/proc/{thread}/status", "rb") as lines:
            pid = next(int(line.split()[1]) for line in lines if line.startswith(b"Tgid:"))
        while pid > 0 and len(found) < _DEPTH:
            with open(f"/proc/{pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
            found.append(Process(pid, int(words[19])))
            if int(words[3]) == pid:
                break
            pid = int(words[1])
    except (OSError, StopIteration, IndexError, ValueError):
        pass  # it ended meanwhile, or lives in another pid namespace
    return found


class Errors:
    """The newest error of each process."""

    def __init__(self) -> None:
        self._records: dict[Process, _Record] = {}

    def record(self, thread: int, uid: int, text: str) -> None:
        """THREAD is about to be told this error."""
        record = _Record(time.monotonic(), uid, text)
        for process in lineage(thread):
            self._records.pop(process, None)
            self._records[process] = record
        while len(self._records) > LIMIT:
            del self._records[next(iter(self._records))]

    def newest(self, thread: int, uid: int) -> str:
        """What the reader THREAD is to see."""
        oldest = time.monotonic() - LASTS
        for process in lineage(thread):
            record = self._records.get(process)
            if record is not None and record.when >= oldest and uid in (0, record.uid):
                return record.text
        return ""


def text_of(e: OSError) -> str:
    """The line for an error: the server's own, or the system's."""
    return e.strerror or os.strerror(e.errno or errno.EIO)
