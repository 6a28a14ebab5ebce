"""Files that hold keys: written whole and for the owner only, and not believed where others can read them.

write_whole(path, data)      all of it or nothing, on the disk before it is seen; 0600
read_secret(path)            refused where group or others may read it, or another user owns it
with locked(directory):      one at a time, among all processes of this machine
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warren.auth.refusal import Missing, Refusal

_LARGEST = 1 << 20


def make_directory(path: Path) -> None:
    """A directory that only the owner enters; one that is there is left as it is, unless others may write."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o022:
        raise Refusal(f"{path}: others may write there, and replace a key", f"chmod 700 {path}")


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file at PATH, so that a reader, or a crash, sees the old or the new and never a part."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add DATA to the end of PATH, on the disk when this returns."""
    new = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_secret(path: Path) -> bytes:
    """What the file holds, if nobody else could have read it."""
    data, held = _read(path)
    if held.st_mode & 0o077:
        raise Refusal(
            f"{path}: others can read this secret", f"chmod 600 {path}, and think of who has read it"
        )
    if held.st_uid not in (0, os.geteuid()):
        raise Refusal(f"{path}: it belongs to another user", f"chown {os.geteuid()} {path}")
    return data


def read_open(path: Path) -> bytes:
    """What the file holds; it is no secret."""
    return _read(path)[0]


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        with open(path, "rb") as file:
            held = os.fstat(file.fileno())
            if not stat.S_ISREG(held.st_mode):
                raise Refusal(f"{path}: it is no file", "give the path of a file")
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise Missing(f"{path}: there is no such file", "see that the directory is the right one") from None
    except IsADirectoryError:
        raise Refusal(f"{path}: it is a directory", "give the path of a file") from None
    if len(data) > _LARGEST:
        raise Refusal(f"{path}: it is larger than any key or list", "see that it is the right file")
    return data, held


@contextmanager
def locked(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """While the block runs, no other process changes DIRECTORY, if all of them ask so."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{directory}: there is no such directory", "see that the path is right") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
