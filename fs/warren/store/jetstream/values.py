"""Keys in a bucket: the newest message of each subject is its value, and its place is its revision.

Every change is written to follow the one before it, also where the caller expects nothing, so a change that
was held up on the way cannot undo a later one. A deletion is a message too. The newest are kept for watches;
how far the others are forgotten is said in the bucket itself before they are removed, so that every watch of
every process learns of it in its turn.

A watch is a position. It asks the server for the first change after it, and waits for the follower where
there is none. Two keys are ours and no name's: how far deletions are forgotten, and the generation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import trio
from warren.store.interface import (
    Change,
    Conflict,
    Entry,
    NotFound,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreFull,
    Trimmed,
    Watch,
    is_under,
)
from warren.store.jetstream.engine import DELETED, MARK, Engine, Found, Late
from warren.store.jetstream.follow import Follower
from warren.store.jetstream.spelling import below, name_of, new_mark, tokens

FLOOR: Final = "-floor"  # no name has a part that begins with -
GENERATION: Final = "-generation"
THROUGH: Final = "Warren-Through"
NUMBER: Final = "Warren-Generation"
KNOWN: Final = 4096  # keys whose newest revision is remembered
WAITING: Final = 8192  # writes that wait for an answer
SWEEPERS: Final = 16


class Values:
    """All keys of a store."""

    def __init__(
        self, engine: Engine, tombstones: int, grace: float, check_open: Callable[[], None]
    ) -> None:
        self.engine, self.tombstones, self.grace, self.check_open = engine, tombstones, grace, check_open
        self.follower = Follower(
            engine, engine.values, engine.value_root, self._changed, self._missed, history=True
        )
        self.watches: dict[str, list[JetWatch]] = {}
        self.generation = 1
        self.writing = 0
        self._deleted: dict[str, int] = {}  # those remembered, oldest first
        self._leaving: dict[str, tuple[int, float]] = {}  # those forgotten and not removed, and since when
        self._listing = trio.Lock()  # nobody stops leaving between a list and what it is compared with
        self._known: OrderedDict[str, tuple[int, bool]] = OrderedDict()
        self._unknown = (0, 0)  # deletions after the one and through the other may be unknown here
        self._news = trio.Event()

    # Values

    async def get(self, key: str) -> Entry:
        """Cancelled has no effect."""
        found = await self._newest(key)
        if found is None or _is_deletion(found):
            raise NotFound(f"{key}: no value")
        return Entry(key, found.at, found.data)

    async def put(self, key: str, value: bytes, expect: int | None) -> int:
        """Cancelled: it is set or not."""
        return await self._change(key, value, {}, expect, removing=False)

    async def delete(self, key: str, expect: int | None) -> int:
        """Cancelled: it is removed or not."""
        return await self._change(key, b"", {DELETED: "DEL"}, expect, removing=True)

    async def keys(self, under: str) -> set[str]:
        """Every key at or under a name that has a value. Cancelled has no effect."""
        async with self._listing:
            names, last = await self._held(under)
            await self._reach(last)
            return names - self._deleted.keys() - self._leaving.keys() - {FLOOR, GENERATION}

    async def _held(self, under: str) -> tuple[set[str], int]:
        """Every key of which there is a message, and the place of the newest message by then."""
        names: set[str] = set()
        reached = 0
        for pattern in below(self.engine.value_root, under):
            found, last = await self.engine.subjects(self.engine.values, pattern)
            names.update(self._name(subject) for subject in found)
            reached = max(reached, last)
        return names, reached

    async def _change(
        self, key: str, value: bytes, headers: dict[str, str], expect: int | None, *, removing: bool
    ) -> int:
        if self.writing >= WAITING:
            raise StoreFull(f"{self.writing} writes wait for the cluster; try again when some are done")
        self.writing += 1
        try:
            known = self._known.get(key)
            while True:
                sure = known is None
                if known is None:
                    found = await self._newest(key)
                    known = (found.at, not _is_deletion(found)) if found else (0, False)
                at, live = known
                actual = at if live else 0
                wrong = expect is not None and expect != actual
                if sure and wrong:
                    raise Conflict(key, expect or 0, actual)
                if sure and removing and not live:
                    raise NotFound(f"{key}: no value")
                if not wrong and (live or not removing):
                    try:
                        revision = await self._write(key, value, headers, at)
                    except Late:
                        known = None
                        continue
                    self._know(key, revision, not removing)
                    return revision
                known = None
        finally:
            self.writing -= 1

    async def _write(self, key: str, value: bytes, headers: dict[str, str], after: int) -> int:
        engine, mark = self.engine, new_mark().hex()

        async def ours() -> int | None:
            found = await self._newest(key)
            if found is None or found.at <= after:
                return 0
            if found.headers.get(MARK) == mark:
                return found.at
            raise StoreFailed(f"{key}: another write came after it")

        return await engine.write(
            engine.values, self._subject(key), value, {MARK: mark, **headers}, after, ours
        )

    async def _newest(self, key: str) -> Found | None:
        def least() -> int:
            return self._known.get(key, (0, False))[0]

        found = await self.engine.newest(self.engine.values, self._subject(key), least)
        if found:
            self._know(key, found.at, not _is_deletion(found))
        return found

    def _know(self, key: str, at: int, live: bool) -> None:
        if at >= self._known.get(key, (0, False))[0]:
            self._known[key] = (at, live)
            self._known.move_to_end(key)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)

    def _subject(self, key: str) -> str:
        return f"{self.engine.value_root}.{tokens(key)}"

    def _name(self, subject: str) -> str:
        return name_of(subject[len(self.engine.value_root) + 1 :])

    # Watches

    async def watch(self, under: str, after: int | None) -> JetWatch:
        """Cancelled: there is no watch."""
        last = (await self.engine.state(self.engine.values)).last_seq
        if after:
            floor = await self._newest(FLOOR)
            through = int(floor.headers.get(THROUGH, "0")) if floor else 0
            if after < through:
                raise Trimmed(under, through)
        await self._reach(last)
        position = last if after is None else after
        watch = JetWatch(self, under, position, silent=position or last)
        self.watches.setdefault(under, []).append(watch)
        return watch

    async def next_after(self, under: str, position: int) -> Change | None:
        """The oldest newest-change at or under a name. Cancelled has no effect."""
        best: Found | None = None
        for pattern in below(self.engine.value_root, under):
            at = position + 1
            while found := await self.engine.next(self.engine.values, pattern, at):
                if not self._name(found.subject).startswith("-"):
                    break
                at = found.at + 1
            if found and (best is None or found.at < best.at):
                best = found
        if best is None:
            return None
        return Change(self._name(best.subject), best.at, None if _is_deletion(best) else best.data)

    def passed_over(self, under: str, after: int, before: int) -> bool:
        """Whether a deletion between two places is remembered here."""
        for key, revision in reversed(self._deleted.items()):
            if revision <= after:
                return False
            if revision < before and is_under(key, under):
                return True
        return False

    async def _reach(self, place: int) -> None:
        with trio.move_on_after(self.engine.patience):
            await self.follower.reach(place)
            return
        raise StoreFailed(f"{self.engine.line.shown}: it does not tell of changes in time; try again")

    # What the follower tells

    def _changed(self, subject: str, place: int, headers: dict[str, str]) -> None:
        key = self._name(subject)
        if key == FLOOR:
            self._forgotten(int(headers.get(THROUGH, "0")))
            return
        if key == GENERATION:
            self.generation = int(headers.get(NUMBER, "1"))
            return
        self._deleted.pop(key, None)
        self._leaving.pop(key, None)
        if headers.get(DELETED) in ("DEL", "PURGE"):
            self._deleted[key] = place
            if len(self._deleted) > self.tombstones:
                self._news.set()
        if key in self._known:
            self._know(key, place, key not in self._deleted)
        for watch in self._watching(key):
            watch.wake()

    def _forgotten(self, through: int) -> None:
        """Deletions so far are forgotten: whoever has not heard of one hears that."""
        gone = [key for key, revision in self._deleted.items() if revision <= through]
        for key in gone:
            for watch in self._watching(key):
                if max(watch.position, watch.silent) < self._deleted[key]:
                    watch.lose(through)
            revision = self._deleted.pop(key)
            self._leaving[key] = revision, trio.current_time()
            if self._known.get(key) == (revision, False):
                del self._known[key]
        self._news.set()
        after, upto = self._unknown
        if after < through:
            for watch in self._all():
                if max(watch.position, watch.silent) < min(through, upto):
                    watch.lose(through)

    def _missed(self, seen: int, last: int) -> None:
        self._unknown = (seen, last)
        for watch in self._all():
            watch.wake()

    def _all(self) -> Iterator[JetWatch]:
        for beside in list(self.watches.values()):
            yield from beside

    def _watching(self, key: str) -> Iterator[JetWatch]:
        at = 0
        yield from self.watches.get("", ())
        while (at := key.find("/", at + 1)) > 0:
            yield from self.watches.get(key[:at], ())
        yield from self.watches.get(key, ())

    def wake_all(self) -> None:
        for watch in self._all():
            watch.wake()

    # Forgetting, and the generation

    async def sweep(self) -> None:
        """Forget the oldest deletions where there are too many. Runs until cancelled.

        They are removed only GRACE seconds after everybody was told so: a follower that is behind by less
        than that still finds each of them, and knows whom it concerns.
        """
        while True:
            self._news = trio.Event()
            again = math.inf
            try:
                if (over := len(self._deleted) - self.tombstones) > 0:
                    await self._say(FLOOR, THROUGH, list(self._deleted.values())[over - 1])
                    await self._reach((await self.engine.state(self.engine.values)).last_seq)
                if self._leaving:
                    again = await self._remove_due()
            except StoreError:
                again = trio.current_time() + 1
            with trio.move_on_at(again):
                await self._news.wait()

    async def _remove_due(self) -> float:
        """Remove those whose time has come; the time at which to look again."""
        now = trio.current_time()
        due = [(key, at) for key, (at, since) in self._leaving.items() if since + self.grace <= now]
        slots = trio.Semaphore(SWEEPERS)
        async with trio.open_nursery() as nursery:
            for key, at in due:
                await slots.acquire()
                nursery.start_soon(self._remove, key, at, slots)
        left = [since + self.grace for _, since in self._leaving.values()]
        return max(min(left, default=math.inf), now + 1 if due else now)

    async def _remove(self, key: str, at: int, slots: trio.Semaphore) -> None:
        try:
            await self.engine.remove(self.engine.values, at)
            async with self._listing:
                if self._leaving.get(key, (0, 0.0))[0] == at:
                    del self._leaving[key]
        except StoreError:
            pass  # it stays for now
        finally:
            slots.release()

    async def restored(self) -> int:
        """This store was restored from a copy: the generation that begins. Cancelled: begun or not."""
        found = await self._newest(GENERATION)
        number = 1 + int(found.headers.get(NUMBER, "1") if found else 1)
        await self._say(GENERATION, NUMBER, number)
        await self._reach((await self.engine.state(self.engine.values)).last_seq)
        return self.generation

    async def _say(self, key: str, header: str, number: int) -> None:
        """Set one of our own keys to a number, unless it is that far already."""
        while True:
            found = await self._newest(key)
            if found and int(found.headers.get(header, "0")) >= number:
                return
            try:
                at = await self._write(key, b"%d" % number, {header: str(number)}, found.at if found else 0)
            except Late:
                continue
            self._know(key, at, True)
            return


class JetWatch(Watch):
    """See `Values`."""

    def __init__(self, values: Values, under: str, position: int, silent: int) -> None:
        self.values, self.under = values, under
        self.position = position  # every change up to here was reported or need not be
        self.silent = silent  # deletions up to here are older than this watch
        self.waiting = 0
        self.lost = 0
        self.closed = False
        self._news = 0
        self._turn = trio.Lock()
        self._lot = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self._news += 1
        self._lot.unpark_all()

    def lose(self, through: int) -> None:
        self.lost = self.lost or through
        self.wake()

    def next_nowait(self) -> Change:
        """Nothing is ever at hand: what there is lies with the servers."""
        self._check()
        raise trio.WouldBlock

    async def next(self) -> Change:
        self.waiting += 1
        try:
            await trio.lowlevel.checkpoint()
            async with self._turn:
                while True:
                    self._check()
                    news, seen = self._news, self.values.follower.seen
                    change = await self.values.next_after(self.under, self.position)
                    self._check()
                    if change is None:
                        self.position = max(self.position, seen)
                        if news == self._news:
                            await self._lot.park()
                        continue
                    await self.values._reach(change.revision)
                    self._check()
                    if self.values.passed_over(self.under, max(self.position, self.silent), change.revision):
                        # A deletion that is not there any more: either a later change took its place, or it
                        # is forgotten. What says which is on its way.
                        if news == self._news:
                            await self._lot.park()
                        continue
                    self.position = change.revision
                    if change.value is not None or change.revision > self.silent:
                        return change
        finally:
            self.waiting -= 1

    def _check(self) -> None:
        self.values.check_open()
        if self.closed:
            raise StoreClosed("the watch is closed")
        if self.lost:
            raise Trimmed(self.under, self.lost)

    async def aclose(self) -> None:
        self.closed = True
        beside = self.values.watches.get(self.under, [])
        if self in beside:
            beside.remove(self)
            if not beside:
                del self.values.watches[self.under]
        self.wake()
        await trio.lowlevel.checkpoint()


def _is_deletion(found: Found) -> bool:
    return found.headers.get(DELETED) in ("DEL", "PURGE")
