"""The store: logs of records and a table of values, behind one narrow interface.

    topic   an append-only log. Its records are numbered 1, 2, 3 … without a
            gap, and a number is never used twice, whatever is trimmed.
    key     a value that is replaced whole. Every change, a deletion too, gets
            a revision greater than any given before it in the same store.

A server builds its queues, leases, indexes and histories from these two. There
are no queries and no transactions over two topics or two keys, and there is no
time: whoever needs a time stamp writes it into the record, under its own clock.

Four promises hold for every store.

* An answered write is done. It is as durable as the store can make it, and every
  call that begins later sees it. Nobody sees a record or a value before it is that durable.
* A write is whole or absent. Cancelled means one of the two, and not which: a
  caller that must know repeats it with the same expectation.
* A read that is cancelled took nothing. There is no checkpoint between taking
  a record and handing it over.
* A refused call changed nothing. Names and sizes are looked at first.

Numbers without a gap make a loss visible: a reader at 7 whose next record is 12
has lost four to a trim, and can say so.

A watch holds a position, not a queue, so a slow watcher costs nothing. What it
finds when it looks is the newest change of each key, in the order of revisions:
older changes of a key may be skipped, the newest never. For a table of values that
is the natural loss, since an old value is worthless once there is a new one.
Deletions are the exception. They are remembered for a while so that a late watcher
hears of them; one that is later still gets `Trimmed` and begins again.

Topics and keys have names of one grammar: parts joined by `/`, each a letter, digit
or `_` followed by letters, digits and `_ . -`, at most 200 characters in all. Every
engine can spell such a name. Whoever has other names must encode them.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import trio
from trio.abc import AsyncResource
from warren.tree.promise import Promise

NAME_MAX = 200
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


class Record(NamedTuple):
    """One record of a topic."""

    seq: int
    data: bytes


class Entry(NamedTuple):
    """A key that has a value."""

    key: str
    revision: int
    value: bytes


class Change(NamedTuple):
    """What became of a key: its new value, or None when it was deleted."""

    key: str
    revision: int
    value: bytes | None


class StoreError(Exception):
    """Every refusal and failure of a store. `code` is its class in a tree's errors."""

    code: ClassVar[int] = 500


class Conflict(StoreError):
    """The expectation does not hold. `actual` is the last seq or the revision there is (0: none)."""

    code = 409

    def __init__(self, name: str, expected: int, actual: int) -> None:
        super().__init__(f"{name}: expected {expected}, found {actual}")
        self.name, self.expected, self.actual = name, expected, actual


class NotFound(StoreError):
    """There is no such record or key."""

    code = 404


class Trimmed(NotFound):
    """It was there and is forgotten, like everything of its kind up to `through`."""

    def __init__(self, name: str, through: int) -> None:
        super().__init__(f"{name}: forgotten through {through}")
        self.name, self.through = name, through


class TooLarge(StoreError):
    """More than the store takes at once. `size` and `limit` are in the same unit."""

    code = 413

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what}: {size} is over the limit of {limit}")
        self.what, self.size, self.limit = what, size, limit


class BadName(StoreError, ValueError):
    """The name of a topic or key is not within the grammar."""

    code = 400


class StoreFull(StoreError):
    """There is no room. Nothing was dropped to make some."""

    code = 507


class StoreClosed(StoreError):
    """The store, or the watch, was closed."""

    code = 503


class StoreFailed(StoreError):
    """The engine failed or did not answer. A write may have been done, whole, or not."""

    code = 503


def check_name(name: str) -> None:
    """Refuse a topic or key outside the grammar with `BadName`."""
    if len(name) > NAME_MAX or _NAME.fullmatch(name) is None:
        raise BadName(f"not a name for a store: {name[: NAME_MAX + 1]!r}")


def check_under(under: str) -> None:
    """Refuse what is neither a name nor "", which stands above all names, with `BadName`."""
    if under:
        check_name(under)


def is_under(name: str, under: str) -> bool:
    """Whether `name` is `under` itself or below it; parts count, not characters."""
    return not under or name == under or name.startswith(under + "/")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may write: bytes of a record or value, records of a batch, bytes of a batch."""

    record: int = 1 << 20
    batch: int = 1024
    batch_bytes: int = 4 << 20

    def check_record(self, name: str, data: bytes) -> None:
        """Refuse a record or a value that is too large with `TooLarge`."""
        if len(data) > self.record:
            raise TooLarge(name, len(data), self.record)

    def check_batch(self, name: str, batch: Sequence[bytes]) -> None:
        """Refuse a batch that is too large with `TooLarge`, an empty one with `ValueError`."""
        if not batch:
            raise ValueError(f"{name}: an empty batch")
        if len(batch) > self.batch:
            raise TooLarge(f"{name}: records of a batch", len(batch), self.batch)
        for data in batch:
            self.check_record(name, data)
        if (size := sum(map(len, batch))) > self.batch_bytes:
            raise TooLarge(f"{name}: bytes of a batch", size, self.batch_bytes)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was done through this handle since it was opened, and who waits on it now."""

    appended: int
    trimmed: int
    put: int
    deleted: int
    conflicts: int
    waiting: int
    watches: int


class Watch(AsyncResource):
    """A position among the changes of the keys under a name. Close it when done.

    Several tasks may read one watch; each change then goes to exactly one of them.
    """

    @abstractmethod
    def next_nowait(self) -> Change:
        """The next change that is at hand.

        Raises `trio.WouldBlock` when none is at hand, though `next` may have one soon;
        `Trimmed`, now and ever after, when deletions that this watch has not reported are
        forgotten: open a new one; `StoreClosed`; `StoreFailed`.
        """

    @abstractmethod
    async def next(self) -> Change:
        """The next change, waiting for one.

        Raises `Trimmed`, `StoreClosed` (also while it waits) and `StoreFailed` as above.
        Cancelled: nothing was taken; the change comes with the next call.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End the watch; whoever waits on it gets `StoreClosed`. Again is harmless.

        Cancelled: it is closed all the same.
        """


class Copy(ABC):
    """A copy of a whole store, as it was at one moment. Close it when done."""

    size: int

    @abstractmethod
    def read_at(self, offset: int, count: int) -> bytes:
        """Bytes of it."""

    @abstractmethod
    def close(self) -> None:
        """Let it go. Again is harmless."""


class Incoming(ABC):
    """A copy on its way back."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """The next bytes of it. Raises `StoreFull`."""

    @abstractmethod
    def commit(self) -> str:
        """All of it is there: put it aside for the next opening, and say so. Long work, for a thread.

        Raises `StoreFailed` when it is no copy of a store, or damaged; then nothing was put aside.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Nothing came of it. Again, and after `commit`, is harmless."""


class Upkeep(ABC):
    """What an operator may want of a store that keeps its own files. Not every store does."""

    @abstractmethod
    async def integrity(self) -> list[str]:
        """What is wrong with it: nothing, or sentences that name the record or the key.

        Cancelled has no effect.
        """

    @abstractmethod
    async def copy(self) -> Copy:
        """A copy, taken while others write. Raises `StoreFull`. Cancelled: there is none."""

    @abstractmethod
    def incoming(self) -> Incoming:
        """Take a copy back, to be in force from the next opening, under a new generation."""

    @abstractmethod
    async def compact(self) -> str:
        """Give back to the disk what is not used; writes wait meanwhile. Cancelled: done or not."""


class Store(AsyncResource):
    """Logs and values. Every async method is a checkpoint and may raise `StoreClosed` or `StoreFailed`;
    every method that takes a name may raise `BadName`. The docstrings name what else there is.
    """

    limits: Limits

    @property
    @abstractmethod
    def generation(self) -> int:
        """1, and one more each time the store was restored from a copy. Works when closed, too.

        What was given out before a restore may be given out again after it: a number, a revision, a token
        that counts once. Whoever hands such a thing to others says the generation with it, and refuses those
        of another.
        """

    @abstractmethod
    async def append(self, topic: str, data: bytes, *, expect_last: int | None = None) -> int:
        """Add one record; answer its seq.

        `expect_last` is the seq that must be the last one, 0 for a topic never written.
        Raises `Conflict` with the last seq there is, `TooLarge`, `StoreFull`.
        Cancelled: the record is there or not, and which is not known.
        """

    @abstractmethod
    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        """Add records in a row, all or none, with nobody else's between them; answer their seqs.

        Raises `Conflict`, `TooLarge`, `StoreFull`; `ValueError` for an empty batch.
        Cancelled: all of them are there or none is, and which is not known.
        """

    def appending(self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None) -> Promise:
        """The same for who has no task to wait with: the seqs are promised, and cannot be given up.

        An engine that can has begun when this returns.
        """
        owed = Promise()

        async def append() -> None:
            try:
                owed.keep(await self.append_batch(topic, batch, expect_last=expect_last))
            except Exception as e:
                owed.fail(e)
            except BaseException:  # the loop ends, and who cannot be cancelled must not wait on
                owed.fail(StoreFailed(f"{topic}: the write was broken off"))
                raise

        trio.lowlevel.spawn_system_task(append, name=f"append to {topic}")
        return owed

    @abstractmethod
    async def read(self, topic: str, seq: int) -> Record:
        """The record with this seq.

        Raises `Trimmed` when it is forgotten, `NotFound` when it never was.
        Cancelled: no effect.
        """

    @abstractmethod
    def first_after_nowait(self, topic: str, seq: int) -> Record:
        """The oldest kept record with a greater seq, if it is at hand.

        Raises `trio.WouldBlock` when none is at hand, though `first_after` may have one soon.
        """

    @abstractmethod
    async def first_after(self, topic: str, seq: int) -> Record:
        """The oldest kept record with a greater seq, waiting for one.

        A topic may be waited for before it exists. A trim neither wakes nor fails a
        waiting reader. Raises `StoreClosed` also while it waits.
        Cancelled: nothing was taken; the position is the caller's.
        """

    @abstractmethod
    async def last(self, topic: str) -> int:
        """The seq given last, though its record may be trimmed; 0 for a topic never written.

        Cancelled: no effect.
        """

    @abstractmethod
    async def trim(self, topic: str, keep: int | None = None, *, through: int | None = None) -> int:
        """Forget all but the newest `keep` records, or all `through` a seq; answer through where.

        Never further than the last record, never back; a topic never written stays so, and
        the answer is 0. Raises `ValueError` unless exactly one is given and it is not negative.
        Cancelled: trimmed or not, and which is not known; to repeat it is harmless.
        """

    @abstractmethod
    async def topics(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        """Names of topics ever written, at or under a name, in the order of their characters.

        At most `limit` of them, those greater than `after`. Raises `ValueError` for a limit below 1.
        Cancelled: no effect.
        """

    @abstractmethod
    async def get(self, key: str) -> Entry:
        """The value of a key, with its revision.

        Raises `NotFound`. Cancelled: no effect.
        """

    @abstractmethod
    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """Set the value of a key; answer the revision of this change.

        `expect` is the revision the key must have, 0 for a key without a value.
        Raises `Conflict` with the revision there is, `TooLarge`, `StoreFull`.
        Cancelled: the value is set or not, and which is not known.
        """

    @abstractmethod
    async def delete(self, key: str, *, expect: int | None = None) -> int:
        """Remove a key; answer the revision of this change.

        Raises `Conflict` as `put` does, and `NotFound` when there is no value to remove.
        Cancelled: removed or not, and which is not known.
        """

    @abstractmethod
    async def keys(self, under: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        """Names of keys that have a value, listed as `topics` lists topics.

        Cancelled: no effect.
        """

    @abstractmethod
    async def watch(self, under: str = "", *, after: int | None = None) -> Watch:
        """Watch the keys at or under a name.

        With a revision it begins with the first change later than that one, deletions included.
        With 0 it begins with the values there are, oldest change first, and nothing of what was
        deleted before. With None it begins now: every change answered later is seen.
        Raises `Trimmed` when deletions later than `after` may be forgotten; `ValueError` when
        `after` is negative. Cancelled: there is no watch.
        """

    @abstractmethod
    def statistics(self) -> Statistics:
        """An immutable object with at least the numbers of `Statistics`; works when closed, too."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the store; whoever waits on it gets `StoreClosed`. Again is harmless.

        A write that is under way is answered or gets `StoreClosed`; then it was done whole or not at all.
        Cancelled: it is closed all the same.
        """
