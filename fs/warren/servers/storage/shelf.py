"""The directory of the blobs: what lies on the disk, and how it gets there whole.

    DIR/lock                who has it open; one process at a time
    DIR/key                 16 bytes that qid numbers are made with, so that nobody can choose one
    DIR/new/N               a body that is coming, and what garbage collection took; emptied at the start
    DIR/ab/abcd…            a blob, plain: `sha256sum` of the file is its name
    DIR/ab/abcd….chunks     SHA-256 of each 64 KiB, for blobs of more than one such chunk

A body is written beside, synced, and renamed into its place, the list of its chunks first: a blob that has
its name is whole and has its list. To put the same content again replaces the file by an equal one, which
also mends a damaged one. The list ends with the blob's size and a hash over all of it, so that damage to
the list is not taken for damage to the blob.

Everything is reached relative to one descriptor of DIR, and every name in it is made here.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from warren.tree import Bytes, Refused

CHUNK: Final = 64 << 10
EMPTY: Final = hashlib.sha256().hexdigest()
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HEX: Final = frozenset("0123456789abcdef")


def is_hex(name: str) -> bool:
    """Whether NAME is a SHA-256 as we write it: 64 digits, lower case."""
    return len(name) == 64 and _HEX.issuperset(name)


class Lying(NamedTuple):
    """A blob that is there."""

    hex: str
    size: int
    mtime: float


class Whole(NamedTuple):
    """An open blob: its size and the hash of each of its chunks."""

    fd: int
    size: int
    digests: bytes


class Damaged(Exception):
    """What lies there is not what was stored."""


class Shelf:
    """One directory, held while the object lives."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        path = Path(directory)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = -1
        try:
            self._lock = self._locked(path)
            self._prepare()
            self.sweep()
            self.key = self._key()
        except BaseException:
            self.close()
            raise
        self._made = 0

    def _locked(self, path: Path) -> int:
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Refused(409, f"{path} is open in another server; stop that one first") from None
        return fd

    def close(self) -> None:
        """Let go of the directory. Open blobs stay readable."""
        for fd in (self._lock, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self.fd = -1

    def __del__(self) -> None:
        self.close()

    def _key(self) -> bytes:
        try:
            fd = os.open("key", _READ, dir_fd=self.fd)
        except FileNotFoundError:
            name = f"new/key-{secrets.token_hex(8)}"
            fd = os.open(name, _MAKE, 0o400, dir_fd=self.fd)
            with open(fd, "wb") as file:
                file.write(key := secrets.token_bytes(16))
                os.fsync(fd)
            os.rename(name, "key", src_dir_fd=self.fd, dst_dir_fd=self.fd)
            os.fsync(self.fd)
            return key
        with open(fd, "rb") as file:
            return file.read(16)

    def number(self, hex: str) -> int:
        """The qid number of a blob. Whoever could choose it could make two blobs one file to a cache."""
        digest = hashlib.blake2b(bytes.fromhex(hex), digest_size=8, key=self.key).digest()
        return 1 << 62 | int.from_bytes(digest, "little") >> 2

    # Looking

    def path(self, hex: str) -> str:
        """Where a blob lies, seen from the directory."""
        return f"{hex[:2]}/{hex}"

    def find(self, hex: str) -> os.stat_result | None:
        """The blob's attributes, if it is there."""
        try:
            return os.stat(self.path(hex), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, hex: str) -> Whole:
        """Open a blob and the list of its chunks. Damaged if there is no sound list."""
        fd = os.open(self.path(hex), _READ, dir_fd=self.fd)
        try:
            size = os.fstat(fd).st_size
            if size > CHUNK:
                return Whole(fd, *self._list(hex))
            if not size and hex != EMPTY:
                raise Damaged("the file is empty")
            return Whole(fd, size, bytes.fromhex(hex))
        except BaseException:
            os.close(fd)
            raise

    def open_plain(self, hex: str) -> int | None:
        """The file alone, whatever its list says; None if it is not there."""
        try:
            return os.open(self.path(hex), _READ, dir_fd=self.fd)
        except FileNotFoundError:
            return None

    def _list(self, hex: str) -> tuple[int, bytes]:
        try:
            fd = os.open(f"{self.path(hex)}.chunks", _READ, dir_fd=self.fd)
        except FileNotFoundError:
            raise Damaged("the list of its chunks is missing") from None
        with open(fd, "rb", buffering=0) as file:
            said = file.readall()
        size = int.from_bytes(said[-40:-32], "little")
        digests = said[:-40]
        if said != _listed(hex, size, digests) or len(digests) != 32 * -(-size // CHUNK):
            raise Damaged("the list of its chunks is damaged")
        return size, digests

    def scan(self) -> Iterator[Lying]:
        """Every blob there is. For a thread."""
        for name in os.listdir(self.fd):
            if len(name) != 2 or not _HEX.issuperset(name):
                continue
            fd = os.open(name, _FOLDER, dir_fd=self.fd)
            try:
                for found in os.listdir(fd):
                    if is_hex(found) and found.startswith(name):
                        try:
                            st = os.stat(found, dir_fd=fd, follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        yield Lying(found, st.st_size, st.st_mtime)
            finally:
                os.close(fd)

    # Changing

    def tidied(self) -> dict[str, int]:
        """The size of every blob, once lists that a crash left without theirs are gone. For a thread, and
        before anything is put."""
        there = {lying.hex: lying.size for lying in self.scan()}
        for n in range(256):
            fd = os.open(f"{n:02x}", _FOLDER, dir_fd=self.fd)
            try:
                for name in os.listdir(fd):
                    if name.endswith(".chunks") and name.removesuffix(".chunks") not in there:
                        os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)
        return there

    def begin(self) -> "Coming":
        """A new body, in a file of its own."""
        self._made += 1
        name = f"new/{self._made}"
        return Coming(self, name, os.open(name, _MAKE | os.O_APPEND, 0o600, dir_fd=self.fd))

    def place(self, coming: "Coming") -> None:
        """Give a finished body its name, durably. For a thread."""
        hex = coming.hex
        if coming.size > CHUNK:
            self._write_list(hex, coming.size, bytes(coming.digests))
        os.rename(coming.name, self.path(hex), src_dir_fd=self.fd, dst_dir_fd=self.fd)
        coming.placed = True
        self._sync(hex[:2])

    def relist(self, hex: str, size: int, digests: bytes) -> None:
        """Write the list of a blob's chunks anew. For a thread."""
        self._write_list(hex, size, digests)
        self._sync(hex[:2])

    def _write_list(self, hex: str, size: int, digests: bytes) -> None:
        name = f"new/list-{secrets.token_hex(8)}"
        fd = os.open(name, _MAKE, 0o400, dir_fd=self.fd)
        with open(fd, "wb", buffering=0) as file:
            write_all(fd, _listed(hex, size, digests))
            os.fsync(file.fileno())
        os.rename(name, f"{self.path(hex)}.chunks", src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def _prepare(self) -> None:
        """Make every directory now, so that no blob waits for one to be durable."""
        there = set(os.listdir(self.fd))
        for name in ("new", *(f"{n:02x}" for n in range(256))):
            if name not in there:
                os.mkdir(name, 0o700, dir_fd=self.fd)
        os.fsync(self.fd)

    def _sync(self, name: str) -> None:
        fd = os.open(name, _FOLDER, dir_fd=self.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def take_away(self, hex: str) -> None:
        """The blob has no name any more; `sweep` frees its room. Whoever has it open reads on."""
        self._made += 1
        os.rename(self.path(hex), f"new/gone-{self._made}", src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self._unlink(f"{self.path(hex)}.chunks")

    def sweep(self, only: str = "") -> None:
        """Remove what a crash left behind, or with ONLY what begins so."""
        fd = os.open("new", _FOLDER, dir_fd=self.fd)
        try:
            for name in os.listdir(fd):
                if name.startswith(only):
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass


class Coming:
    """A body on its way. One caller at a time, in any thread."""

    def __init__(self, shelf: Shelf, name: str, fd: int) -> None:
        self.name, self.placed = name, False
        self.size = self.unsynced = 0
        self.digests = bytearray()
        self.hex = ""
        self._shelf, self._fd = shelf, fd
        self._whole, self._chunk, self._in_chunk = hashlib.sha256(), hashlib.sha256(), 0

    def add(self, data: Bytes) -> None:
        """The next bytes."""
        write_all(self._fd, data)
        self._whole.update(data)
        view = memoryview(data)
        while len(view):
            piece = view[: CHUNK - self._in_chunk]
            self._chunk.update(piece)
            self._in_chunk += len(piece)
            view = view[len(piece) :]
            if self._in_chunk == CHUNK:
                self._close_chunk()
        self.size += len(data)
        self.unsynced += len(data)

    def sync(self) -> None:
        """Make durable what came so far, so that the end is not left with all of it. For a thread."""
        os.fdatasync(self._fd)
        self.unsynced = 0

    def _close_chunk(self) -> None:
        self.digests += self._chunk.digest()
        self._chunk, self._in_chunk = hashlib.sha256(), 0

    def finish(self, now: float) -> str:
        """No more will come: make it durable, and tell its SHA-256. Again is harmless. For a thread."""
        if self._in_chunk:
            self._close_chunk()
        os.utime(self._fd, (now, now))
        os.fchmod(self._fd, 0o400)
        os.fsync(self._fd)
        self.hex = self._whole.hexdigest()
        return self.hex

    def discard(self) -> None:
        """Close it, and remove it unless it has its place. Again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            if not self.placed and self._shelf.fd >= 0:
                self._shelf._unlink(self.name)

    def __del__(self) -> None:
        self.discard()


def _listed(hex: str, size: int, digests: bytes) -> bytes:
    said = digests + size.to_bytes(8, "little")
    return said + hashlib.sha256(bytes.fromhex(hex) + said).digest()


def write_all(fd: int, data: Bytes, write: Callable[[int, Bytes], int] = os.write) -> None:
    """Write every byte."""
    view = memoryview(data)
    while len(view):
        view = view[write(fd, view) :]
