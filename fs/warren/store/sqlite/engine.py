"""What is in the file of a SQLite store, and each statement that writes it.

    meta     revision: the newest there is; floor: deletions through here may be forgotten; generation
    topic    id, name; floor: forgotten through; last: given last; swept: forgotten and also removed through
    record   at = id << 40 | seq, so that a log lies in one piece of one tree; data, sum
    entry    key, revision, value; NULL is a deletion that is remembered; sum

Each record and each entry has a sum over what it is and where it belongs, looked at whenever it is read: a
disk that forgets, or gives one place for another, is named and not believed.

`Engine` is the writer's side, for one thread: `begin`, effects, `commit` or `rollback`. Reading has a second
connection (module reader).

Some room is held back: a file of zeros on the disk, and pages of the file's own bound. Where there is no
other left, it is given to small writes and to those that free something, so that what is full can be emptied.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from warren.store.interface import Conflict, NotFound, StoreFull
from warren.store.sqlite.copies import entry_sum, record_sum, restore
from warren.store.sqlite.file import (
    LAST_SEQ,
    SEQ_BITS,
    STEPS,
    configure,
    connect,
    lock_file,
    make_file,
    migrate,
    told,
)
from warren.store.sqlite.reader import Reader

SWEEP: Final = 2000  # records removed in one step
PAGE: Final = 4096
RESERVE: Final = 16 << 20  # bytes held back for when there are no others
_KNOWN_TOPICS: Final = 4096


class Opened(NamedTuple):
    """A file that this process has, and the deletions it remembers, oldest first."""

    engine: Engine
    reader: Reader
    deletions: list[tuple[str, int]]
    revision: int
    floor: int
    generation: int


def open_file(path: Path, capacity: int) -> Opened:
    """Take FILE for this process, making or migrating it. StoreFailed says why not."""
    lock = lock_file(path)
    try:
        restore(path, len(STEPS))
        make_file(path)
        db = connect(path)
        try:
            configure(path, db)
            migrate(path, db)
            engine = Engine(path, db, lock, capacity)
            found = db.execute("SELECT key, revision FROM entry WHERE value IS NULL ORDER BY revision")
            deletions = found.fetchall()
            floor, generation = engine.number("floor"), engine.number("generation")
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
    return Opened(engine, reader, deletions, engine.revision, floor, generation)


class _Topic:
    """A row of `topic` as the open transaction has it."""

    __slots__ = ("floor", "id", "last", "swept")

    def __init__(self, id: int, floor: int = 0, last: int = 0, swept: int = 0) -> None:
        self.id, self.floor, self.last, self.swept = id, floor, last, swept


class Engine:
    """The writer's connection. Effects raise a StoreError before they change anything, or sqlite3.Error."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: int, capacity: int) -> None:
        self.path, self.db, self.lock = path, db, lock
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._pages = max(capacity // PAGE, 64)
        self._held = min(RESERVE // PAGE, self._pages // 8)  # pages of those
        self.tight = True  # whether the reserve is in use
        self.tighten()
        self.loosen()
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

    def tighten(self) -> None:
        """Give the reserve to those who need little. Nothing is open."""
        self.tight = True
        self._reserve.unlink(missing_ok=True)
        self.db.execute(f"PRAGMA max_page_count={self._pages}").fetchall()

    def loosen(self) -> None:
        """Hold the reserve back again, if there is room enough beside it. Nothing is open."""
        used = [self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")]
        if used[0] - used[1] >= self._pages - self._held and self._pages > self._held:
            return
        try:
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._held * PAGE)
            finally:
                os.close(fd)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            return
        self.db.execute(f"PRAGMA max_page_count={self._pages - self._held}").fetchall()
        self.tight = False

    def compact(self) -> tuple[int, int]:
        """The size of the file before, and after what is unused went back to the disk. Nothing is open."""
        before = os.stat(self.path).st_size
        self.db.execute("VACUUM")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return before, os.stat(self.path).st_size

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
        places = range(base + seqs.start, base + seqs.stop)
        rows = [(at, data, record_sum(at, data)) for at, data in zip(places, batch, strict=True)]
        self.db.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
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
            "INSERT INTO entry VALUES (?, ?, ?, ?) ON CONFLICT (key)"
            " DO UPDATE SET revision = excluded.revision, value = excluded.value, sum = excluded.sum",
            (key, revision, value, entry_sum(key, revision, value)),
        )
        self.revision = revision
        return revision
