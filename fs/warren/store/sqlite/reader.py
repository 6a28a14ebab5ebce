"""The connection that only reads. What it finds was committed, and is as it was written, or is named.

Each call is one statement read to its end, since a statement that is left open holds on to its view of the
file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from warren.store.interface import Change, Entry, NotFound, Record, StoreFailed, Trimmed
from warren.store.sqlite.copies import entry_sum, record_sum
from warren.store.sqlite.file import LAST_SEQ, connect, told

_MOST: Final = (1 << 63) - 1


class Reader:
    """A connection that only reads. What it finds was committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = connect(path)
        self._db.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        self._db.close()

    def _all(self, statement: str, values: Sequence[object]) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as e:
            raise told(self.path, e) from e

    def record(self, topic: str, seq: int) -> Record:
        found = self._all(
            "SELECT floor, last, at, data, sum FROM topic LEFT JOIN record"
            " ON at = (id << 40) + ? AND ? > floor"
            " WHERE name = ?",
            (*[min(max(seq, 0), LAST_SEQ)] * 2, topic),
        )
        for floor, last, at, data, sum in found:
            if 0 < seq <= floor:
                raise Trimmed(topic, floor)
            if 0 < seq <= last:
                return self._record(topic, seq, at, data, sum)
        raise NotFound(f"{topic}: no record {seq}")

    def first_after(self, topic: str, seq: int) -> Record | None:
        after = min(max(seq, 0), LAST_SEQ)
        found = self._all(
            "SELECT max(?, floor) + 1, at, data, sum FROM topic"
            " LEFT JOIN record ON at = (id << 40) + max(?, floor) + 1"
            " WHERE name = ? AND last > ? AND last > floor",
            (after, after, topic, after),
        )
        return self._record(topic, *found[0]) if found else None

    def _record(self, topic: str, seq: int, at: int | None, data: bytes, sum: int) -> Record:
        if at is None:
            raise StoreFailed(f"{self.path}: {topic}: record {seq} is missing; restore a copy")
        if record_sum(at, data) != sum:
            raise StoreFailed(
                f"{self.path}: {topic}: record {seq} is not as it was written; restore a copy"
            )
        return Record(seq, data)

    def _change(self, key: str, revision: int, value: bytes | None, sum: int) -> Change:
        if entry_sum(key, revision, value) != sum:
            raise StoreFailed(
                f"{self.path}: {key}: revision {revision} is not as it was written; restore a copy"
            )
        return Change(key, revision, value)

    def last(self, topic: str) -> int:
        found = self._all("SELECT last FROM topic WHERE name = ?", (topic,))
        return found[0][0] if found else 0

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
            "SELECT key, revision, value, sum FROM entry WHERE key = ? AND value IS NOT NULL", (key,)
        )
        if not found:
            raise NotFound(f"{key}: no value")
        change = self._change(*found[0])
        return Entry(change.key, change.revision, change.value or b"")

    def change_after(self, under: str, position: int, silent: int) -> Change | None:
        """The oldest newest-change at or under a name, without deletions through SILENT."""
        where, values = _below("key", under)
        found = self._all(
            "SELECT key, revision, value, sum FROM entry INDEXED BY entry_revision"
            f" WHERE revision > ? AND {where} AND (value IS NOT NULL OR revision > ?)"
            " ORDER BY revision LIMIT 1",
            (min(position, _MOST), *values, min(silent, _MOST)),
        )
        return self._change(*found[0]) if found else None


def _below(name: str, under: str) -> tuple[str, tuple[str, ...]]:
    """The condition that a name is UNDER itself or below it. "0" is what comes after "/"."""
    if not under:
        return "1", ()
    return (
        f"{name} >= ? AND {name} < ? AND ({name} = ? OR {name} > ?)",
        (under, under + "0", under, under + "/"),
    )
