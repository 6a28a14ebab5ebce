"""The file of a SQLite store: how it is opened, what is in it, and each statement that touches it.

    meta     revision: the newest there is; floor: deletions through here may be forgotten
    topic    id, name; floor: forgotten through; last: given last; swept: forgotten and also removed through
    record   at = id << 40 | seq, so that a log lies in one piece of one tree
    entry    key, revision, value; NULL is a deletion that is remembered

`Engine` is the writer's side, for one thread: `begin`, effects, `commit` or `rollback`. `Reader` is a second
connection that sees what was committed; each of its calls is one statement read to its end, since a
statement that is left open holds on to its view of the file.

The schema has a version. An older file is brought forward in one transaction a step; a newer one is refused,
for what it means is not known here.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from warren.store.interface import (
    Change,
    Conflict,
    Entry,
    NotFound,
    Record,
    StoreError,
    StoreFailed,
    StoreFull,
    Trimmed,
)

APPLICATION: Final = 0x5761526E
SEQ_BITS: Final = 40
LAST_SEQ: Final = (1 << SEQ_BITS) - 1
SWEEP: Final = 2000  # records removed in one step
BUSY: Final = 5.0  # seconds to wait for a stranger's lock
PAGE: Final = 4096
_KNOWN_TOPICS: Final = 4096
_MOST: Final = (1 << 63) - 1

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
)


class Opened(NamedTuple):
    """A file that this process has, and the deletions it remembers, oldest first."""

    engine: Engine
    reader: Reader
    deletions: list[tuple[str, int]]
    revision: int
    floor: int


def open_file(path: Path, capacity: int) -> Opened:
    """Take FILE for this process, making or migrating it. StoreFailed says why not."""
    lock = _lock(path)
    try:
        _make(path)
        db = _connect(path)
        try:
            _configure(path, db, capacity)
            migrate(path, db)
            engine = Engine(path, db, lock)
            found = db.execute("SELECT key, revision FROM entry WHERE value IS NULL ORDER BY revision")
            deletions = found.fetchall()
            floor = engine.number("floor")
            reader = Reader(path)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as e:
        os.close(lock)
        raise told(path, e) from e
    except BaseException:
        os.close(lock)
        raise
    return Opened(engine, reader, deletions, engine.revision, floor)


def _lock(path: Path) -> int:
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


def _make(path: Path) -> None:
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


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)


def _configure(path: Path, db: sqlite3.Connection, capacity: int) -> None:
    [(mode,)] = db.execute("PRAGMA journal_mode=WAL").fetchall()
    if mode != "wal":
        raise StoreFailed(f"{path}: its file system has no write-ahead log; use a disk of this machine")
    for setting in (
        "synchronous=FULL",
        "trusted_schema=OFF",
        "journal_size_limit=67108864",
        f"max_page_count={max(capacity // PAGE, 64)}",
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


class _Topic:
    """A row of `topic` as the open transaction has it."""

    __slots__ = ("floor", "id", "last", "swept")

    def __init__(self, id: int, floor: int = 0, last: int = 0, swept: int = 0) -> None:
        self.id, self.floor, self.last, self.swept = id, floor, last, swept


class Engine:
    """The writer's connection. Effects raise a StoreError before they change anything, or sqlite3.Error."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: int) -> None:
        self.path, self.db, self.lock = path, db, lock
        self.revision = self._written = self.number("revision")
        self.unswept = {name for (name,) in db.execute("SELECT name FROM topic WHERE swept < floor")}
        self._topics: dict[str, _Topic] = {}
        self._changed: set[str] = set()

    def number(self, name: str) -> int:
        [(value,)] = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchall()
        return int(value)

    def begin(self) -> None:
        if len(self._topics) > _KNOWN_TOPICS:
            self._topics.clear()
        self.db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Durable when it returns."""
        rows = [(t.floor, t.last, t.swept, t.id) for t in map(self._topics.__getitem__, self._changed)]
        self.db.executemany("UPDATE topic SET floor = ?, last = ?, swept = ? WHERE id = ?", rows)
        if self.revision != self._written:
            self.db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (self.revision,))
        self.db.execute("COMMIT")
        self._written = self.revision
        self._changed.clear()

    def rollback(self) -> None:
        """As if nothing since `begin` had been."""
        self._topics.clear()
        self._changed.clear()
        self.revision = self._written
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def close(self) -> None:
        self.db.close()
        os.close(self.lock)

    # Logs

    def append(self, topic: str, batch: Sequence[bytes], expect: int | None) -> range:
        known = self._topic(topic)
        last = known.last if known else 0
        if expect is not None and expect != last:
            raise Conflict(topic, expect, last)
        if known is None:
            made = self.db.execute("INSERT INTO topic VALUES (NULL, ?, 0, 0, 0)", (topic,)).lastrowid
            known = self._topics[topic] = _Topic(made or 0)
        if known.id >> (63 - SEQ_BITS) or last + len(batch) > LAST_SEQ:
            raise StoreFull(f"{topic}: there are no numbers left")
        seqs = range(last + 1, last + 1 + len(batch))
        base = known.id << SEQ_BITS
        rows = zip(range(base + seqs.start, base + seqs.stop), batch, strict=True)
        self.db.executemany("INSERT INTO record VALUES (?, ?)", rows)
        known.last = seqs[-1]
        self._changed.add(topic)
        return seqs

    def trim(self, topic: str, keep: int | None, through: int | None) -> tuple[int, int]:
        """Where it is forgotten through now, and how many records that forgot."""
        if (known := self._topic(topic)) is None:
            return 0, 0
        floor = known.last - keep if keep is not None else min(through or 0, known.last)
        gone = max(0, floor - known.floor)
        if gone:
            known.floor = floor
            self._changed.add(topic)
            self.sweep(topic)
        return known.floor, gone

    def sweep(self, topic: str) -> None:
        """Remove some of what is forgotten; `unswept` says whether there is more."""
        if (known := self._topic(topic)) is not None and known.swept < known.floor:
            upto = min(known.floor, known.swept + SWEEP)
            base = known.id << SEQ_BITS
            self.db.execute("DELETE FROM record WHERE at > ? AND at <= ?", (base + known.swept, base + upto))
            known.swept = upto
            self._changed.add(topic)
            if upto < known.floor:
                self.unswept.add(topic)
                return
        self.unswept.discard(topic)

    def _topic(self, name: str) -> _Topic | None:
        if name in self._topics:
            return self._topics[name]
        found = self.db.execute("SELECT id, floor, last, swept FROM topic WHERE name = ?", (name,)).fetchall()
        if not found:
            return None
        known = self._topics[name] = _Topic(*found[0])
        return known

    # Values

    def put(self, key: str, value: bytes, expect: int | None) -> int:
        self._see(key, expect)
        return self._change(key, value)

    def delete(self, key: str, expect: int | None) -> int:
        if not self._see(key, expect):
            raise NotFound(f"{key}: no value")
        return self._change(key, None)

    def forget(self, key: str, revision: int) -> None:
        """Remember a deletion no longer, nor promise that any up to it are."""
        self.db.execute("DELETE FROM entry WHERE key = ? AND revision = ? AND value IS NULL", (key, revision))
        self.db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'floor'", (revision,))

    def _see(self, key: str, expect: int | None) -> int:
        """The revision of the present value, 0 for none, once it is as expected."""
        sought = "SELECT revision FROM entry WHERE key = ? AND value IS NOT NULL"
        found = self.db.execute(sought, (key,)).fetchall()
        actual: int = found[0][0] if found else 0
        if expect is not None and expect != actual:
            raise Conflict(key, expect, actual)
        return actual

    def _change(self, key: str, value: bytes | None) -> int:
        revision = self.revision + 1
        self.db.execute(
            "INSERT INTO entry VALUES (?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, value = excluded.value",
            (key, revision, value),
        )
        self.revision = revision
        return revision


class Reader:
    """A connection that only reads. What it finds was committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = _connect(path)
        self._db.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        self._db.close()

    def _all(self, statement: str, values: Sequence[object]) -> list[tuple[object, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as e:
            raise told(self.path, e) from e

    def record(self, topic: str, seq: int) -> Record:
        found = self._all(
            "SELECT floor, data FROM topic LEFT JOIN record ON at = (id << 40) + ? AND ? > floor"
            " WHERE name = ?",
            (*[min(max(seq, 0), LAST_SEQ)] * 2, topic),
        )
        for floor, data in found:
            assert isinstance(floor, int)
            if 0 < seq <= floor:
                raise Trimmed(topic, floor)
            if isinstance(data, bytes) and 0 < seq <= LAST_SEQ:
                return Record(seq, data)
        raise NotFound(f"{topic}: no record {seq}")

    def first_after(self, topic: str, seq: int) -> Record | None:
        after = min(max(seq, 0), LAST_SEQ)
        found = self._all(
            "SELECT at - (id << 40), data FROM topic JOIN record ON at = (id << 40) + max(?, floor) + 1"
            " WHERE name = ? AND last > ?",
            (after, topic, after),
        )
        return Record(*found[0]) if found else None  # type: ignore[arg-type]

    def last(self, topic: str) -> int:
        found = self._all("SELECT last FROM topic WHERE name = ?", (topic,))
        return found[0][0] if found else 0  # type: ignore[return-value]

    def topics(self, under: str, after: str, limit: int) -> list[str]:
        return self._names("SELECT name FROM topic WHERE", "name", under, after, limit)

    def keys(self, under: str, after: str, limit: int) -> list[str]:
        return self._names("SELECT key FROM entry WHERE value IS NOT NULL AND", "key", under, after, limit)

    def _names(self, select: str, name: str, under: str, after: str, limit: int) -> list[str]:
        where, values = _below(name, under)
        found = self._all(
            f"{select} {name} > ? AND {where} ORDER BY {name} LIMIT ?", (after, *values, min(limit, _MOST))
        )
        return [str(row[0]) for row in found]

    def entry(self, key: str) -> Entry:
        found = self._all(
            "SELECT key, revision, value FROM entry WHERE key = ? AND value IS NOT NULL", (key,)
        )
        if not found:
            raise NotFound(f"{key}: no value")
        return Entry(*found[0])  # type: ignore[arg-type]

    def change_after(self, under: str, position: int, silent: int) -> Change | None:
        """The oldest newest-change at or under a name, without deletions through SILENT."""
        where, values = _below("key", under)
        found = self._all(
            "SELECT key, revision, value FROM entry INDEXED BY entry_revision"
            f" WHERE revision > ? AND {where} AND (value IS NOT NULL OR revision > ?)"
            " ORDER BY revision LIMIT 1",
            (min(position, _MOST), *values, min(silent, _MOST)),
        )
        return Change(*found[0]) if found else None  # type: ignore[arg-type]


def _below(name: str, under: str) -> tuple[str, tuple[str, ...]]:
    """The condition that a name is UNDER itself or below it. "0" is what comes after "/"."""
    if not under:
        return "1", ()
    return (
        f"{name} >= ? AND {name} < ? AND ({name} = ? OR {name} > ?)",
        (under, under + "0", under, under + "/"),
    )
