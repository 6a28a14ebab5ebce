"""A durable store in one SQLite file: what a hive of one machine uses.

    async with open_sqlite(STATE / "store/queen.db") as store: ...

    open      `store`: the interface, on the loop's side; reads, watches, who waits
    writer    one thread that commits for everybody who waits
    engine    what is in the file, and each statement that writes it; reader, those that only read
    file      the file itself: lock, schema and its versions, translation of errors
    copies    the file as a whole: taking a copy, judging one, putting one in place

An answered write has survived a power cut, as far as the disk keeps its word: the journal is a write-ahead
log with `synchronous=FULL`, and an answer leaves only after COMMIT. Those who wait share one COMMIT: their
writes are evaluated in turn, each seeing those before it, and answered together. A write that is refused
(an expectation that does not hold) harms nobody else of its group.

One process has the file open: FILE.lock is held meanwhile and names it. A second opener is refused, and so is
a network file system, on which locks and shared memory are a promise that nobody keeps. Cut, copied or
altered by others while it is open, the file is lost; `copy` takes copies, and `incoming` takes one back.

A COMMIT that fails for lack of room is no harm: everybody in the group is tried alone, and who does not fit
gets `StoreFull`. One that fails in any other way fails the store: what the system said about the last write
is then not to be believed about the next. Open it again, which recovers what was answered.

What a trim forgets is gone at once for all readers; the room is given back in small steps behind it.
"""

from warren.store.sqlite.store import SqliteStatistics, SqliteStore, open_sqlite

__all__ = ["SqliteStatistics", "SqliteStore", "open_sqlite"]
