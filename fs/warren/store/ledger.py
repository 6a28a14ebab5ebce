"""Something whose state follows from its log alone, and who owns that log at this time.

    state = await ledger.fresh()       as of now; from here to `do` nothing may wait
    batch = ledger.do(record)          decided
    await ledger.settle(batch)         durable

A decision is made on the state as it will be once everything noted before is written: state first, log behind
it, answer last. Since the log keeps that order, an answer never rests on something that can be lost. If the
store refuses a record, the state is read again from the log, and who was not answered is refused.

Another process may own the same ledger at another time, or by mistake at the same time: each append is
fenced, so one of two is refused (503), reads what the other wrote, and goes on from there.

Where the log begins stands in the store's table, under the ledger's key; without that it is no more. Time is
its own: seconds since the epoch which never go back while it lives, whatever the wall clock does. Who waits
for something to come into it is a `Reader`.

What a kind says in its own words: `_start` `_replay` `_loaded` `_note`, and where it differs `_serve` `_say`
`_leave` `_shut` `wants_tidying` `tidy`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import ClassVar, Final, Generic, Protocol, TypeVar

import msgspec
import trio
from warren.store.interface import Conflict, NotFound, Store, StoreError
from warren.store.journal import Batch, Journal
from warren.tree import Refused
from warren.tree.ports import Clock
from warren.tree.promise import Promise
from warren.tree.report import Events

News = tuple[str, dict[str, object]]
_WAITS: Final = 2048  # times of readers that are noted before those are left out that are over


class Known(Protocol):
    """A state, as far as it concerns whoever keeps it."""

    t: float
    ended: bool
    news: list[News]

    @property
    def due(self) -> float | None:
        """When something happens by itself next, in its own time. It may turn out to be nothing."""

    def advance(self, t: float) -> bool:
        """Let everything happen that is due until T; whether anything was."""


class Reader:
    """One open file that waits for something to be given to it."""

    __slots__ = ("error", "subject", "task")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.error: Refused | None = None
        self.task: trio.lowlevel.Task | None = None

    def wake(self) -> None:
        """There is something for it, or nothing will come. It stands in no line any more."""
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


S = TypeVar("S", bound=Known)
R = TypeVar("R")
W = TypeVar("W", bound=Reader)


class Ledger(Generic[S, R, W]):
    """One log and its state. What waits raises Refused, and 503 when the store does not answer."""

    noun: ClassVar[str] = "log"

    def __init__(
        self, name: str, under: str, store: Store, clock: Clock, state: S, soon: Callable[[float], None]
    ) -> None:
        self.name, self.key = name, f"{under}/{name}"
        self.store, self.clock = store, clock
        self.journal = Journal(store, self.key, self._written, self._lost)
        self.events = Events(self.time)
        self.state = state
        self.revision = 0
        self.base = 0  # the record behind which replay begins
        self.stale = True  # the state is not that of the log
        self.gone = False
        self.tidied, self.tidying = 0, False
        self._soon = soon  # tell whoever keeps time that something is due at this monotonic time
        self._told: tuple[float | None, float | None] = (None, None)  # of what
        self._loading = trio.Lock()
        self._waits: list[tuple[float, int, W]] = []
        self._news: deque[tuple[int, str, dict[str, object]]] = deque()
        self._began = (0.0, 0.0)
        self._serving = False

    # What a kind says

    def _start(self, value: bytes) -> int:
        """The record behind which replay begins, by what stands in the store's table."""
        return int(value)

    async def _replay(self, start: int, last: int) -> S:
        """The state at LAST, from what was written behind START. Cancelled: no effect."""
        raise NotImplementedError

    async def _loaded(self, start: int) -> None:
        """The state was read. Cancelled: no effect."""

    def _note(self, record: R, seq: int) -> Batch:
        """Change the state by a record, and add that to the journal."""
        raise NotImplementedError

    def _serve(self) -> None:
        """Give what there is to those whose turn it is."""

    def _say(self, kind: str, said: dict[str, object]) -> None:
        """Tell whoever reads that something happened, which is durable."""
        self.events.tell(kind, **said)

    def _leave(self, reader: W) -> None:
        """A reader waits no longer."""

    def _shut(self, error: Refused) -> None:
        """Nobody who waits will get anything."""

    def measures(self) -> dict[str, float]:
        """What there is now, and what happened ever since it was made."""
        raise NotImplementedError

    def wants_tidying(self) -> bool:
        """Whether the log is long enough to be shortened."""
        return False

    async def tidy(self) -> None:
        """Shorten the log. Not to be cancelled; a failure is an event, no error."""
        try:
            self.tidying = True
            await self._shorten()
        except Exception as e:  # also a defect: nobody may be waiting for it
            self.events.tell("tidy_failed", why=str(e) if isinstance(e, StoreError | Refused) else repr(e))
            self.stale = self.stale or isinstance(e, Conflict)
        finally:
            self.tidied = self.journal.last
            self.tidying = False

    async def _shorten(self) -> None:
        raise NotImplementedError

    # The log

    async def fresh(self) -> S:
        """The state, as of now. Cancelled: no effect."""
        if self.stale:
            async with self._loading:
                if self.stale:
                    await self._load()
        return self.fresh_nowait()

    def fresh_nowait(self) -> S:
        """The same, where it is not stale."""
        if self.gone:
            raise self._removed()
        self.advance()
        return self.state

    def _removed(self) -> Refused:
        return Refused(404, f"the {self.noun} was removed")

    async def _load(self) -> None:
        """Read the log. Cancelled: it is still to be read."""
        try:
            await self.journal.flush()
        except StoreError:
            pass  # whoever decided that is told
        try:
            entry = await self.store.get(self.key)
            start = self._start(entry.value)
            last = await self.store.last(self.key)
            state = await self._replay(start, last)
        except NotFound:
            self.end()
            return
        except StoreError as e:
            raise self.refusal(e) from e
        except (msgspec.MsgspecError, LookupError, ValueError) as e:
            raise Refused(422, f"the log of {self.name} cannot be read: {type(e).__name__}: {e}") from e
        self.state, self.revision, self.base = state, entry.revision, start
        self._began = (max(self.clock.now(), state.t), self.clock.monotonic())
        self.journal.begin(last)
        self.stale = False
        if state.ended:
            self.end()
            return
        await self._loaded(start)
        state.advance(self.time())
        self._changed(self.journal.next - 1)

    def end(self) -> None:
        """It is no more."""
        self.gone, self.stale = True, False
        self._shut(self._removed())

    def do(self, record: R) -> Batch:
        """What RECORD says is so from here on, once the batch is settled."""
        seq = self.journal.next
        try:
            batch = self._note(record, seq)
        except BaseException:
            self._lost()
            raise
        self._changed(seq)
        return batch

    async def settle(self, batch: Batch) -> None:
        """Wait until a decision is durable. Cancelled: not before."""
        try:
            await self.journal.settle(batch)
        except StoreError as e:
            raise self.refusal(e) from e
        if self.wants_tidying():
            with trio.CancelScope(shield=True):
                await self.tidy()

    def promise(self, batch: Batch | None) -> Promise:
        """Kept when a decision is durable, which one of no batch is."""
        return self.journal.promise(batch).otherwise(self._worded)

    async def barrier(self) -> None:
        """Wait until all that was decided is durable. Cancelled: not before."""
        try:
            await self.journal.flush()
        except StoreError as e:
            raise self.refusal(e) from e

    def _written(self, batch: Batch) -> None:
        self._announce()
        if batch.owed and self.wants_tidying():
            self.tidying = True  # whoever was promised something sees to nothing
            trio.lowlevel.spawn_system_task(self.tidy, name=f"tidying {self.key}")

    def _lost(self) -> None:
        """What was decided last is not in the log: the state is worth nothing."""
        self.stale = True
        self._news.clear()
        self.hurry()

    def _changed(self, seq: int) -> None:
        """The state is another one: tell who should know, and serve who waits."""
        state = self.state
        if state.news:
            self._news += [(seq, kind, said) for kind, said in state.news]
            state.news.clear()
            self._announce()
        if not self._serving:
            self._serving = True
            try:
                self._serve()
            finally:
                self._serving = False
        dues = state.due, self._waits[0][0] if self._waits else None
        if dues != self._told:
            self._told = dues
            if (due := self.due()) is not None:
                self._soon(due)

    def _announce(self) -> None:
        while self._news and self._news[0][0] <= self.journal.last:
            _, kind, said = self._news.popleft()
            self._say(kind, said)

    def refusal(self, e: StoreError) -> Refused:
        """What the store said, as the tree says it."""
        return refusal(e, self.noun)

    def _worded(self, e: Exception) -> Exception:
        return self.refusal(e) if isinstance(e, StoreError) else e

    # Time

    def time(self) -> float:
        """Seconds since the epoch. They never go back while it lives, whatever the wall clock does."""
        wall, monotonic = self._began
        return wall + (self.clock.monotonic() - monotonic)

    def advance(self) -> None:
        """Let happen what is due."""
        if self.state.advance(self.time()):
            self._changed(self.journal.next - 1)

    def due(self) -> float | None:
        """When something happens by itself next, in the clock's monotonic time."""
        due = self.state.due
        times = [] if due is None else [self.clock.monotonic() + (due - self.time())]
        times += [self._waits[0][0]] if self._waits else []
        return min(times, default=None)

    def hurry(self) -> None:
        """Something was noted that nobody may wait for."""
        self._soon(self.clock.monotonic())

    def wake_at(self, until: float, reader: W) -> None:
        """This reader waits no longer than that."""
        if len(self._waits) > _WAITS:
            self._waits = sorted(wait for wait in self._waits if wait[2].task is not None)
        heappush(self._waits, (until, id(reader), reader))
        self._soon(until)

    async def tick(self) -> None:
        """Let happen what is due, for those who wait. Cancelled: as far as it came."""
        now = self.clock.monotonic()
        while self._waits and self._waits[0][0] <= now:
            _, _, reader = heappop(self._waits)
            self._leave(reader)
            reader.wake()
        await self.fresh()
        await self.barrier()


def refusal(e: StoreError, noun: str) -> Refused:
    """What the store said, as the tree says it of a NOUN."""
    if isinstance(e, Conflict):
        says = f"another process wrote to this {noun}; what it wrote counts, try again"
        return Refused(503, says, retry_after=1)
    return Refused(e.code, str(e), retry_after=1 if e.code in (503, 507) else None)
