"""The file of a SQLite store before anybody reads or writes it: its lock, its schema, what its errors mean.

The schema has a version. An older file is brought forward in one transaction a step; a newer one is refused,
for what it means is not known here.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warren.store.interface import StoreError, StoreFailed, StoreFull
from warren.store.sqlite.copies import APPLICATION, teach_sums

SEQ_BITS: Final = 40
LAST_SEQ: Final = (1 << SEQ_BITS) - 1
BUSY: Final = 5.0  # seconds to wait for a stranger's lock

# Where a lock or a mapped page is not the same for all who have the file open.
NETWORKED: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs"}
)

STEPS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE topic (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        floor INTEGER NOT NULL, last INTEGER NOT NULL, swept INTEGER NOT NULL
    );
    CREATE TABLE record (at INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE entry (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB);
    CREATE UNIQUE INDEX entry_revision ON entry (revision);
    CREATE INDEX entry_deleted ON entry (revision) WHERE value IS NULL;
    INSERT INTO meta VALUES ('revision', 0), ('floor', 0);
    """,
    """
    ALTER TABLE record ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
    UPDATE record SET sum = record_sum(at, data);
    ALTER TABLE entry ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
    UPDATE entry SET sum = entry_sum(key, revision, value);
    INSERT INTO meta VALUES ('generation', 1);
    """,
)


def lock_file(path: Path) -> int:
    beside = path.with_name(f"{path.name}.lock")
    try:
        kind = _file_system(path.parent)
        if kind in NETWORKED:
            raise StoreFailed(f"{path}: it is on a network file system ({kind}); use a disk of this machine")
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreFailed(f"{path}: {e.strerror}; see that its directory is there, and yours") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StoreFailed(
            f"{path}: process {holder} has it open; stop that one, or use another file"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _file_system(directory: Path) -> str:
    """The kind of the file system that a directory lies on; "" where the kernel does not say."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def make_file(path: Path) -> None:
    """The file, for its owner alone. No connection is open yet: closing a descriptor would drop its locks."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)
        os.close(fd)
        above = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(above)
        os.close(above)
    except OSError as e:
        raise StoreFailed(f"{path}: {e.strerror}; see that the file is yours to write") from None


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)


def configure(path: Path, db: sqlite3.Connection) -> None:
    [(mode,)] = db.execute("PRAGMA journal_mode=WAL").fetchall()
    if mode != "wal":
        raise StoreFailed(f"{path}: its file system has no write-ahead log; use a disk of this machine")
    for setting in (
        "synchronous=FULL",
        "trusted_schema=OFF",
        "journal_size_limit=67108864",
    ):
        db.execute(f"PRAGMA {setting}").fetchall()


def migrate(path: Path, db: sqlite3.Connection, steps: Sequence[str] = STEPS) -> None:
    """Bring the schema forward, a transaction a step. A newer one, or none of ours, is StoreFailed."""
    [(application,)] = db.execute("PRAGMA application_id").fetchall()
    [(version,)] = db.execute("PRAGMA user_version").fetchall()
    [(tables,)] = db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    if application != APPLICATION and (tables or application or version):
        raise StoreFailed(f"{path}: it is the database of something else; give another name")
    if version > len(steps):
        raise StoreFailed(
            f"{path}: its schema is version {version}, and {len(steps)} is the newest known here; "
            "run the version of warren that wrote it, or restore a copy"
        )
    teach_sums(db)
    for number, step in enumerate(steps[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in filter(str.strip, step.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


Trouble = sqlite3.Error


def busy(e: Trouble) -> bool:
    """Whether somebody else had the file: nothing was done, and the next try may succeed."""
    return getattr(e, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def told(path: Path, e: Trouble) -> StoreError:
    """An error of the engine as one of the store's."""
    code = getattr(e, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"{path}: {e}; make room on the disk, or trim")
    if busy(e):
        return StoreFailed(f"{path}: another program holds it: {e}; see with lsof which")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreFailed(f"{path}: the file is damaged: {e}; restore it from a copy")
    return StoreFailed(f"{path}: {e}")
