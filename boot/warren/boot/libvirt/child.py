"""A process that libvirt starts and detaches, made a child of ours all the same.

    domain = adopting(connection.createXML, xml, flags)     in a thread
    child = Child(pid)
    await child.watch()             it ends if we are killed
    await child.over.wait()         child.status: its exit status, -N for signal N

libvirt forks twice, so that QEMU is nobody's child. An orphan goes to the nearest ancestor that has asked the
kernel for orphans, else to the first process of the system. While a machine is being started, we ask. So we
learn how QEMU ended, and it is gone as soon as it has; the first process of a container may take a second to
notice, in which libvirt waits. Nothing else depends on this: where it fails, the status is unknown.

A QEMU that ends while libvirt is still starting it has no `Child` yet, and somebody else may be orphaned
below us in that moment. `bury` waits for those: dead children in a session which is neither ours nor their
own, so that we cannot have started them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import trio
from warren.tree import Refused

_SET, _GET = 36, 37  # PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER
_WATCH: Final = 'read -r over || kill -9 "$0"'
ENDS: Final = 0.3
_LOOK: Final = 0.1  # seconds between two looks for the dead while a machine is being started
_lock = threading.Lock()
_known: set[int] = set()  # who has a Child
_asking = 0
_before = 0

T = TypeVar("T")


def adopting(function: Callable[..., T], *arguments: object) -> T:
    """Call it; who is orphaned below us meanwhile becomes our child. Any number of threads may. If it fails,
    it takes up to ENDS seconds more, for it may have left somebody who is just ending."""
    global _asking, _before
    prctl = ctypes.CDLL(None).prctl
    with _lock:
        if not _asking:
            found = ctypes.c_int(0)
            prctl(_GET, ctypes.byref(found), 0, 0, 0)
            _before = found.value
            prctl(_SET, ctypes.c_ulong(1), 0, 0, 0)
        _asking += 1
    done = threading.Event()
    threading.Thread(target=_burying, args=(done,), name="libvirt burial", daemon=True).start()
    try:
        return function(*arguments)
    except BaseException:
        _linger()
        raise
    finally:
        done.set()
        with _lock:
            _asking -= 1
            if not _asking:
                prctl(_SET, ctypes.c_ulong(_before), 0, 0, 0)


def _burying(done: threading.Event) -> None:
    while not done.wait(_LOOK):
        bury()


def _linger() -> None:
    until = time.monotonic() + ENDS
    while not bury() and time.monotonic() < until:
        time.sleep(_LOOK / 5)


def bury() -> int:
    """Wait for dead children that we did not start and that have no `Child`. How many there were."""
    ours, found = os.getsid(0), 0
    for name in os.listdir("/proc"):
        if not name.isdecimal() or (pid := int(name)) in _known:
            continue
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, parent, _, session = file.read().rpartition(")")[2].split()[:4]
            if state == "Z" and int(parent) == os.getpid() and int(session) not in (ours, pid):
                found += os.waitpid(pid, os.WNOHANG)[0] == pid
        except (OSError, ValueError):
            continue  # it has gone meanwhile
    return found


class Child:
    """A process that may be our child. Whoever makes one must see it ended before trio does."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.over = trio.Event()
        self._fd = os.pidfd_open(pid)
        self._dead = False
        self._watcher: trio.Process | None = None
        _known.add(pid)
        # No nursery of ours: it has to be waited for whatever else is being cancelled, and by nobody's leave.
        trio.lowlevel.spawn_system_task(self._reap)

    def kill(self) -> None:
        """End it, if it runs."""
        if not self._dead:
            with suppress(OSError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def watch(self) -> None:
        """From now on it ends if we are killed: a shell waits for a line from us, and gets the end of its
        input instead. It goes with the process. Refused (503) if there is none. Cancelled has no effect."""
        with trio.CancelScope(shield=True):
            try:
                watcher = await trio.lowlevel.open_process(
                    ["sh", "-c", _WATCH, str(self.pid)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as e:
                raise Refused(503, f"the machine's watcher cannot be started: {e}") from None
            if self._dead:
                await _dismiss(watcher)
            else:
                self._watcher = watcher

    async def _reap(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self._fd)
            self._dead = True
            try:
                found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  # it is dead
            except ChildProcessError:
                found = None  # somebody else's
            if found is not None:
                self.status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            os.close(self._fd)
            _known.discard(self.pid)
            if self._watcher is not None:
                await _dismiss(self._watcher)
        self.over.set()


async def _dismiss(watcher: trio.Process) -> None:
    assert watcher.stdin is not None
    with suppress(trio.BrokenResourceError):
        await watcher.stdin.send_all(b"over\n")
    await watcher.stdin.aclose()
    await watcher.wait()


__all__ = ["Child", "adopting", "bury"]
