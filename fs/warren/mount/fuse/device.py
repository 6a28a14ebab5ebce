"""/dev/fuse: getting it mounted, reading requests from it, writing replies to it, and letting go.

    device = attach(directory, source)      raises OSError, with the way out in its text
    device.read(buffer)                     one whole request; BlockingIOError when none waits, 0 at the end
    device.write(parts)                     one whole reply; False if nobody waits for it any more
    device.close()
    detach(directory)                       never hangs: politely, then lazily, then by force

Root mounts by itself; anybody else asks the setuid program fusermount3, which sends the descriptor back
over a socket. `Channel` is all that the rest of the package knows of a device, so a test may be the kernel.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import stat as S
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

DEVICE: Final = "/dev/fuse"
FSTYPE: Final = "fuse.warren"
BUFFER: Final = (1 << 20) + (1 << 16)  # a write of 1 MiB, what stands before it, and room
_MS_NOSUID, _MS_NODEV, _MS_RDONLY = 2, 4, 1
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_AHEAD_KIB: Final = 1024
_WAY_OUT: Final = "use warren ls, cat and write with --at, which need no mount"


class Channel(Protocol):
    """What a session reads requests from."""

    def fileno(self) -> int:
        """To wait on, for reading."""

    def read(self, into: bytearray) -> int:
        """The length of the request that was put into INTO, 0 when unmounted. Raises BlockingIOError."""

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send one reply or notice; False if it was for nobody. Raises OSError if it is no reply."""

    def close(self) -> None:
        """Let go."""


class Device:
    """An open /dev/fuse that is mounted somewhere."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def read(self, into: bytearray) -> int:
        while True:
            try:
                return os.readv(self._fd, [into])
            except InterruptedError:
                continue
            except OSError as e:
                if e.errno == errno.ENOENT:  # it was interrupted while we reached for it
                    continue
                if e.errno in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                    return 0
                raise

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        try:
            os.writev(self._fd, parts)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                return False
            raise
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Mounted(NamedTuple):
    """A line of /proc/self/mountinfo, as far as it matters here."""

    number: int  # of its device, which is the connection's under /sys/fs/fuse/connections
    root: str
    directory: str
    fstype: str
    source: str


def mounts() -> list[Mounted]:
    """What is mounted here, oldest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            words, kind = left.split(" "), right.split(" ")
            major, minor = words[2].split(":")
            number = os.makedev(int(major), int(minor))
            found.append(Mounted(number, _plain(words[3]), _plain(words[4]), kind[0], _plain(kind[1])))
    return found


def _plain(word: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(octal, character)
    return word


def mounted_at(directory: str) -> Mounted | None:
    """What is mounted on top at DIRECTORY, an absolute path without links."""
    at = [m for m in mounts() if m.directory == directory]
    return at[-1] if at else None


def attach(
    directory: str, source: str, *, allow_other: bool = False, read_only: bool = False, max_read: int = 0
) -> Device:
    """Mount at DIRECTORY. Raises OSError; then nothing is mounted."""
    try:
        mode = os.stat(directory).st_mode
    except OSError as e:
        raise OSError(e.errno, f"{os.strerror(e.errno or 0)}; make the directory first", directory) from None
    if not S.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, "not a directory; give one", directory)
    if not os.path.exists(DEVICE):
        raise OSError(errno.ENODEV, f"this machine has no {DEVICE}; {_WAY_OUT}", directory)
    options = ["allow_other"] * allow_other + [f"max_read={max_read}"] * bool(max_read)
    if os.geteuid() == 0:
        return Device(_as_root(directory, source, mode, options, read_only))
    return Device(_as_user(directory, source, options + ["ro"] * read_only))


def _as_root(directory: str, source: str, mode: int, options: Sequence[str], read_only: bool) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise OSError(e.errno, f"{DEVICE}: {e.strerror}; {_WAY_OUT}", directory) from None
    data = ",".join([f"fd={fd},rootmode={S.S_IFMT(mode):o},user_id=0,group_id=0", *options])
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    words = [os.fsencode(w) for w in (source, directory, FSTYPE, data)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, f"mount: {os.strerror(number)}; {_WAY_OUT}", directory)
    _read_further(directory)
    return fd


def _read_further(directory: str) -> None:
    """Have the kernel ask for a file that is read in order by the largest message, and not by an eighth."""
    at = mounted_at(directory)
    if at is None:
        return
    try:
        with open(f"/sys/class/bdi/{os.major(at.number)}:{os.minor(at.number)}/read_ahead_kb", "w") as file:
            file.write(f"{_AHEAD_KIB}")
    except OSError:
        pass  # slower, and no worse


def _as_user(directory: str, source: str, options: Sequence[str]) -> int:
    program = shutil.which("fusermount3")
    if program is None:
        text = f"only root mounts without fusermount3, which is not installed (package fuse3); or {_WAY_OUT}"
        raise OSError(errno.EPERM, text, directory)
    # In fusermount3's language a comma ends an option.
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    words = [f"fsname={name}", "subtype=warren", "nosuid", "nodev", *options]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = subprocess.run(
                [program, "-o", ",".join(words), "--", directory], pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        if done.returncode == 0:
            fds = array.array("i")
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(value[: fds.itemsize])
                    return fds[0]
    said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
    raise OSError(errno.EPERM, f"{said or 'fusermount3 sent no descriptor'}; {_WAY_OUT}", directory)


def detach(directory: str, number: int | None = None) -> None:
    """Unmount DIRECTORY, whoever still uses it; with NUMBER also break that connection off.

    Politely if nobody does. Otherwise the name goes at once, and what still waits for an answer gets
    ECONNABORTED: the kernel ends a connection when it is told to, whether its server lives or not.
    Raises OSError if not even that is permitted.
    """
    polite = _unmount(directory, 0)
    if polite in (0, errno.EINVAL):
        return
    if number is not None:
        abort(number)
    lazy = _unmount(directory, _MNT_FORCE) and _unmount(directory, _MNT_DETACH)
    if lazy not in (0, errno.EINVAL):
        raise OSError(lazy, f"umount: {os.strerror(lazy)}; root may", directory)


def _unmount(directory: str, how: int) -> int:
    """0, or the errno. Force ends the connection even if the name is still in use."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.umount2(os.fsencode(directory), _UMOUNT_NOFOLLOW | how)
        return ctypes.get_errno() if failed else 0
    program = shutil.which("fusermount3")
    if program is None:
        return errno.EPERM
    words = [program, "-u", *(["-z"] if how else []), "--", directory]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0:
        return 0
    return errno.EINVAL if mounted_at(directory) is None else errno.EBUSY


def abort(number: int) -> None:
    """End a connection at once, where the control file system is mounted; its name stays."""
    try:
        with open(f"/sys/fs/fuse/connections/{os.minor(number)}/abort", "wb", buffering=0) as file:
            file.write(b"1")
    except OSError:
        pass  # it has ended, or it is not ours to end


