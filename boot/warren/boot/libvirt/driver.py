"""libvirt's QEMU driver inside this process: no daemon, nothing shared with others, nothing left.

    private(cache)  ->  "qemu:///embed?root=…"      the address for `libvirt.opened`
    sweep()         ->  the machines of processes that were killed, ended and their folders removed

libvirt lets a process have one such driver, with one folder for as long as it lives. Ours is in the
folder for temporary files, belongs to us alone (0700), and is removed when the process ends:

    warren-libvirt-XXXX/
        lock            held while the process lives: who can take it may clear the rest away
        etc/qemu.conf   see `_CONFIGURATION`
        cache           a link to CACHE, where libvirt keeps what it learnt about QEMU, which takes seconds
        lib/ log/ run/  libvirt's own

Machines of this driver are nobody's children: libvirt detaches them, so they outlive a process that is
killed. Each has a watcher for that (see `libvirt_machine`). What slips through even so, because it was just
being started, `sweep` finds by the folder, before the next driver is made.

As root libvirt looks up its own user before it reads that QEMU is to have ours; without one it refuses to
start. On Debian: `useradd --system libvirt-qemu`, or the package libvirt-daemon-system.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from warren.tree import Refused

_PREFIX: Final = "warren-libvirt-"
_NEW: Final = "warren-libvirt.new-"
# Of a folder: below it libvirt makes sockets with 60 more bytes, of the 107 that a socket's path may have.
_LONGEST: Final = 46

# QEMU runs as the user of this process, who owns the files it is given, and libvirt leaves those files as
# they are: no new owner, no label, no record of the old ones. Control groups are the caller's affair; mount
# namespaces would hide our sockets; and no daemon keeps the log.
_CONFIGURATION: Final = """\
user = "+{uid}"
group = "+{gid}"
dynamic_ownership = 0
remember_owner = 0
security_default_confined = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

_made: dict[int, Path] = {}  # by process id, for a fork has not got its parent's driver
_locks: list[int] = []  # open for as long as we live


def private(cache: Path | None = None) -> str:
    """The address of the driver of this process; the first call makes its folder, and CACHE is taken then.
    Without one it is a folder among the user's caches. Raises Refused (503) if there is no place for it."""
    return f"qemu:///embed?root={quote(str(folder(cache)), safe='/')}"


def folder(cache: Path | None = None) -> Path:
    """Where that driver lives."""
    if (made := _made.get(os.getpid())) is None:
        sweep()
        try:
            made = _make(cache or _usual())
        except OSError as e:
            raise Refused(503, f"libvirt's driver has no folder: {e}") from None
        _made[os.getpid()] = made
        atexit.register(_remove, os.getpid())
    return made


def sweep() -> int:
    """End the machines of processes that are gone, and remove their folders. How many folders there were."""
    found = 0
    for stale in _base().glob(f"{_PREFIX}*"):
        try:
            held = _lock(stale / "lock")
        except OSError:
            continue  # somebody else's, or in use
        try:
            _slay(stale)
            shutil.rmtree(stale, ignore_errors=True)
            found += 1
        finally:
            os.close(held)
    return found


def _base() -> Path:
    base = Path(tempfile.gettempdir()).absolute()
    return base if len(os.fsencode(base)) + len(_PREFIX) + 9 <= _LONGEST else Path("/tmp")


def _usual() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and os.path.isabs(home) else Path.home() / ".cache") / "warren" / "libvirt"


def _make(cache: Path) -> Path:
    # The name that `sweep` looks for comes last, when the lock is held: nobody clears away what is half made.
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=_base()))
    try:
        _locks.append(_lock(new / "lock", os.O_CREAT))
        (new / "etc").mkdir()
        (new / "etc/qemu.conf").write_text(_CONFIGURATION.format(uid=os.getuid(), gid=os.getgid()))
        cache.mkdir(parents=True, exist_ok=True)
        (new / "cache").symlink_to(cache.absolute())
        return new.rename(new.with_name(_PREFIX + new.name.removeprefix(_NEW)))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _lock(path: Path, flags: int = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        if os.fstat(fd).st_uid != os.getuid():
            raise PermissionError(f"{path} belongs to another user")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _slay(stale: Path) -> None:
    """End what that driver ran. A number may be another's by now; no other command line has the folder."""
    for file in (stale / "run/qemu").glob("*.pid"):
        try:
            pid = int(file.read_text())
            fd = os.pidfd_open(pid)
        except (OSError, ValueError):
            continue
        try:
            if os.fsencode(f"{stale}/") in Path(f"/proc/{pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except OSError:
            pass  # it has ended, or is not ours
        finally:
            os.close(fd)


def _remove(pid: int) -> None:
    if pid == os.getpid() and (made := _made.pop(pid, None)):
        _slay(made)
        shutil.rmtree(made, ignore_errors=True)


__all__ = ["folder", "private", "sweep"]
