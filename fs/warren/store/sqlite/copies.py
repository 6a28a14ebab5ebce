"""Copies of a store's file: taking one while it is open, looking at one, and putting one in place.

    NAME.db                the store
    NAME.db.lock           who has it open
    NAME.db.reserve        room that is kept for a full disk
    NAME.db.restore        a copy that the next opening takes
    NAME.db.before         what was there before the last restore, with its -wal

A copy is a database of its own, as it was at one moment, and compact. The one at `.restore` is taken under
the lock of the store: its generation becomes greater than that of either file, it is made durable, and only
then it takes the place. What was there is kept as `.before` until the next restore. A crash at any point
leaves one of the two in place, or the next opening goes on where this one stopped.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from warren.store.interface import Copy, Incoming, StoreFailed, StoreFull

APPLICATION: Final = 0x5761526E
PROBLEMS: Final = 100  # that are told at once
_SUFFIXES: Final = ("", "-wal", "-shm")


def record_sum(at: int, data: bytes) -> int:
    """What is kept beside a record: it fits this record in this place alone."""
    return zlib.crc32(data, zlib.crc32(b"%d" % at))


def entry_sum(key: str, revision: int, value: bytes | None) -> int:
    """The same for a key; a deletion has one too."""
    return zlib.crc32(value or b"", zlib.crc32(f"{key} {revision} {value is None:d}".encode()))


def teach_sums(db: sqlite3.Connection) -> None:
    """Let SQL compute them."""
    db.create_function("record_sum", 2, record_sum, deterministic=True)
    db.create_function("entry_sum", 3, entry_sum, deterministic=True)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Errors of a file as those of a store."""
    try:
        yield
    except sqlite3.Error as e:
        if getattr(e, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise StoreFull(f"{path}: {e}; make room on the disk") from e
        raise StoreFailed(f"{path}: {e}") from e
    except OSError as e:
        raise StoreFailed(f"{path}: {e.strerror}") from e


def problems(path: Path) -> list[str]:
    """What is wrong with a file, each record and key that is not as it was written among it."""
    found: list[str] = []
    with told_of(path), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.execute("BEGIN")  # one view of the file for all that follows
        try:
            for (said,) in db.execute(f"PRAGMA integrity_check({PROBLEMS})"):
                if said != "ok":
                    found.append(f"the file: {said}")
            teach_sums(db)
            for name, seq in db.execute(
                "SELECT coalesce(name, '(no topic)'), at & 0xffffffffff FROM record LEFT JOIN topic"
                " ON id = at >> 40 WHERE sum IS NOT record_sum(at, data) LIMIT ?",
                (PROBLEMS,),
            ):
                found.append(f"{name}: record {seq} is not as it was written")
            for key, revision in db.execute(
                "SELECT key, revision FROM entry WHERE sum IS NOT entry_sum(key, revision, value) LIMIT ?",
                (PROBLEMS,),
            ):
                found.append(f"{key}: revision {revision} is not as it was written")
            for name, missing in db.execute(
                "SELECT name, last - floor - (SELECT count(*) FROM record WHERE at > (id << 40) + floor"
                " AND at <= (id << 40) + last) AS missing FROM topic WHERE missing != 0 LIMIT ?",
                (PROBLEMS,),
            ):
                found.append(f"{name}: {missing} records are missing")
        except sqlite3.DatabaseError as e:
            found.append(f"the file: {e}")
    return found[:PROBLEMS]


class FileCopy(Copy):
    """A copy that has no name any more: it goes when it is closed, also with the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def take(path: Path) -> FileCopy:
    """A copy of the store in PATH, as it is now. It lies beside the store and takes as much room."""
    with told_of(path):
        fd, name = tempfile.mkstemp(prefix=f"{path.name}.copy-", dir=path.parent)
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as db:
                db.execute("VACUUM INTO ?", (name,))
            return FileCopy(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        finally:
            os.close(fd)
            os.unlink(name)


class Upload(Incoming):
    """A copy on its way back. It is looked at whole before it is put aside."""

    def __init__(self, path: Path, newest: int) -> None:
        self.path, self.newest = path, newest
        with told_of(path):
            self._fd, self._name = tempfile.mkstemp(prefix=f"{path.name}.restore-", dir=path.parent)

    def write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as e:
            raise StoreFull(f"the copy does not fit: {e.strerror}") from None

    def commit(self) -> str:
        """In a thread: it is long work."""
        with told_of(self.path):
            os.fsync(self._fd)
            check_copy(Path(self._name), self.newest)
            for suffix in ("-journal", *_SUFFIXES[1:]):  # of a copy before this one, and not this one's
                Path(f"{aside(self.path)}{suffix}").unlink(missing_ok=True)
            os.rename(self._name, aside(self.path))
            self._name = ""
            _sync_directory(self.path)
        self.abandon()
        return "the copy is whole and put aside; the next start of this role takes it"

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._name:
            Path(self._name).unlink(missing_ok=True)
            self._name = ""


def aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.restore")


def before(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


def check_copy(copy: Path, newest: int) -> None:
    """Refuse a file that is no whole store, or is from a later version of it, with StoreFailed."""
    # Opened for writing: what a process that was cut off left half done is taken back, and a log put in.
    with told_of(copy), closing(sqlite3.connect(copy, isolation_level=None)) as db:
        [(application,)] = db.execute("PRAGMA application_id").fetchall()
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if application == APPLICATION:
            db.execute("PRAGMA journal_mode=DELETE").fetchall()
    if application != APPLICATION:
        raise StoreFailed("that is no copy of a store")
    if version > newest:
        raise StoreFailed(f"that copy is of version {version}, and {newest} is the newest known here")
    if version == newest and (wrong := problems(copy)):
        raise StoreFailed(f"that copy is damaged: {wrong[0]}; take another")


def restore(path: Path, newest: int) -> bool:
    """Put what is aside in place, if anything is; the caller holds the lock. False when nothing is aside."""
    copy = aside(path)
    if not copy.exists():
        return False
    try:
        check_copy(copy, newest)
    except StoreFailed as e:
        raise StoreFailed(f"{copy}: {e}; to go on without it, remove that file") from e
    with told_of(path):
        old = path if path.exists() else before(path)
        generation = 1 + max(_generation(copy), _generation(old) if old.exists() else 0)
        with closing(sqlite3.connect(copy, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=FULL")
            db.execute("INSERT OR REPLACE INTO meta VALUES ('generation', ?)", (generation,))
        os.chmod(copy, 0o600)
        if path.exists():
            for suffix in _SUFFIXES:
                there, then = Path(f"{path}{suffix}"), Path(f"{before(path)}{suffix}")
                then.unlink(missing_ok=True)
                if there.exists():
                    os.rename(there, then)
        os.rename(copy, path)
        _sync_directory(path)
    return True


def _generation(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        try:
            found = db.execute("SELECT value FROM meta WHERE name = 'generation'").fetchall()
        except sqlite3.DatabaseError:
            return 1  # a file that cannot be read gave out nothing that could be told from this
    return int(found[0][0]) if found else 1


def _sync_directory(path: Path) -> None:
    above = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)
