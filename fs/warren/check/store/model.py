"""Any sequence of calls on a store, side by side with a model that is too simple to be wrong.

The model keeps every record and every change for ever, and says after each call what
must be answered. Where an interface leaves a choice (a watch may skip older changes,
revisions may skip numbers), it says which answers are allowed.

Hypothesis is needed only here, and imported only when the test runs.
"""

import secrets
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked
from warren.check.store.place import Call, StoreMaker, holds, refused, refused_nowait, same, spelled, told
from warren.store.interface import (
    Change,
    Conflict,
    Entry,
    NotFound,
    Record,
    Store,
    StoreClosed,
    Trimmed,
    Watch,
    is_under,
)

NAMES = ("a", "a/b", "ab")
Step = tuple[str, dict[str, Any]]


def check_store_model(
    make: StoreMaker,
    *,
    durable: bool = False,
    examples: int = 100,
    patience: float = 30,
    shrink: bool = True,
    clock: Callable[[], trio.abc.Clock] | None = None,
) -> None:
    """Hold a store against the model, in `trio.run` of its own for each example.

    `make`, `durable` and `patience` are those of `check_store`; `clock` makes the clock of a run. Without
    `shrink` a failure is reported sooner, with a longer sequence.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    def step(kind: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
        return st.tuples(st.just(kind), st.fixed_dictionaries(arguments))

    name, data = st.sampled_from(NAMES), st.sampled_from([b"", b"x", b"\0\xff", b"y" * 100])
    seq, off = st.integers(0, 8), st.sampled_from([None, None, 0, 0, 0, -1, 1])
    under = st.sampled_from(["", *NAMES])
    # Steps that make something for others to find come several times, so that most are found.
    any_step = st.one_of(
        *[step("append", name=name, batch=st.lists(data, min_size=1, max_size=3), off=off) for _ in range(3)],
        *[step("put", name=name, value=data, off=off) for _ in range(4)],
        *[step("delete", name=name, off=off) for _ in range(3)],
        *[step("watch", under=under, back=st.sampled_from([None, 0, 1, 2, 3, 5, 9])) for _ in range(2)],
        *[step("park", name=name, ahead=st.sampled_from([0, 0, 1, 2])) for _ in range(2)],
        step("read", name=name, seq=seq),
        step("after", name=name, seq=seq),
        step("cancel"),
        step("keep", name=name, keep=st.integers(0, 4)),
        step("through", name=name, through=seq),
        step("get", name=name),
        step("next"),
        step("unwatch"),
        step("list", under=under),
        *([step("reopen")] if durable else []),
    )

    async def play(sequence: Sequence[Step]) -> None:
        root = f"check_model/{secrets.token_hex(4)}"
        try:
            with trio.fail_after(patience):
                async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
                    pair = _Pair(make, stack, nursery, root)
                    await pair.open()
                    for kind, arguments in sequence:
                        await getattr(pair, "do_" + kind)(**arguments)
                        await pair.settle()
                    await pair.drain()
                    nursery.cancel_scope.cancel()
        except Exception as error:
            raise AssertionError(told(error, patience)) from error

    phases = set(Phase) - {Phase.explain} - (set() if shrink else {Phase.shrink})

    # Of a store's own failures the database knows nothing: all stores run the same function.
    @settings(
        max_examples=examples,
        phases=phases,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.lists(any_step, max_size=10), max_size=10).map(lambda parts: [*chain(*parts)]))
    def run(sequence: list[Step]) -> None:
        trio.run(play, sequence, clock=clock() if clock else None)

    run()


@dataclass
class _Watched:
    """A watch and what the model knows of it: reported through `position`, silent about older deletions."""

    watch: Watch
    under: str
    position: int
    silent: int
    fresh: bool


@dataclass
class _Pair:
    """The store and the model. Each `do_` makes one step on both and compares."""

    make: StoreMaker
    stack: AsyncExitStack
    nursery: trio.Nursery
    root: str
    logs: dict[str, list[bytes]] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    parked: list[tuple[str, int, Call[Record]]] = field(default_factory=list)
    watched: list[_Watched] = field(default_factory=list)

    async def open(self) -> None:
        self.store: Store = await self.stack.enter_async_context(self.make())

    def at(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    # Logs

    def first_after(self, name: str, seq: int) -> Record | None:
        log = self.logs.get(name, [])
        seq = max(seq, self.floors.get(name, 0))
        return Record(seq + 1, log[seq]) if seq < len(log) else None

    async def settle(self) -> None:
        """Every parked reader that now has a record has got it, and no other was answered."""
        await wait_all_tasks_blocked()
        for waiting in self.parked[:]:
            name, seq, call = waiting
            if wanted := self.first_after(name, seq):
                same(await call.answer(), wanted, f"what a reader after {seq} of {name} waited for")
                self.parked.remove(waiting)
            else:
                holds(not call.done.is_set(), f"a reader after {seq} of {name} was answered: {call.answers}")

    async def do_append(self, name: str, batch: list[bytes], off: int | None) -> None:
        log = self.logs.get(name, [])
        expect = None if off is None else len(log) + off
        call: Callable[[], Awaitable[range]] = partial(
            self.store.append_batch, self.at(name), batch, expect_last=expect
        )
        if len(batch) == 1:

            async def call() -> range:
                seq = await self.store.append(self.at(name), batch[0], expect_last=expect)
                return range(seq, seq + 1)

        if off:
            same((await refused(Conflict, call)).actual, len(log), "the last seq a conflict carries")
        else:
            same(await call(), range(len(log) + 1, len(log) + len(batch) + 1), "the seqs of an append")
            self.logs[name] = log + batch
        same(await self.store.last(self.at(name)), len(self.logs.get(name, [])), "last")

    async def do_read(self, name: str, seq: int) -> None:
        log = self.logs.get(name, [])
        if self.floors.get(name, 0) < seq <= len(log):
            same(await self.store.read(self.at(name), seq), Record(seq, log[seq - 1]), "what read answers")
        else:
            error = await refused(NotFound, self.store.read, self.at(name), seq)
            same(
                isinstance(error, Trimmed),
                0 < seq <= self.floors.get(name, 0),
                "the error of read as Trimmed",
            )

    async def do_after(self, name: str, seq: int) -> None:
        if wanted := self.first_after(name, seq):
            same(await self.store.first_after(self.at(name), seq), wanted, f"the record after {seq}")
        else:
            refused_nowait(trio.WouldBlock, self.store.first_after_nowait, self.at(name), seq)

    async def do_park(self, name: str, ahead: int) -> None:
        seq = len(self.logs.get(name, [])) + ahead
        call = Call(partial(self.store.first_after, self.at(name), seq))
        self.parked.append((name, seq, call))
        self.nursery.start_soon(call.go)

    async def do_cancel(self) -> None:
        if self.parked:
            call = self.parked.pop(0)[2]
            call.scope.cancel()
            await call.done.wait()
            same((call.answers, call.error), ([], None), "what a cancelled reader got")

    async def do_keep(self, name: str, keep: int) -> None:
        floor = max(self.floors.get(name, 0), len(self.logs.get(name, [])) - keep)
        same(await self.store.trim(self.at(name), keep), floor, f"a trim that keeps {keep}")
        self.floors[name] = floor

    async def do_through(self, name: str, through: int) -> None:
        floor = max(self.floors.get(name, 0), min(through, len(self.logs.get(name, []))))
        same(await self.store.trim(self.at(name), through=through), floor, f"a trim through {through}")
        self.floors[name] = floor

    # Values

    def newest(self, key: str) -> Change | None:
        return next((change for change in reversed(self.changes) if change.key == key), None)

    def revision(self, key: str) -> int:
        return change.revision if (change := self.newest(key)) and change.value is not None else 0

    async def change(self, key: str, value: bytes | None, call: Callable[[], Awaitable[int]]) -> None:
        revision = await call()
        holds(revision > self.latest(), f"{spelled(call)} answered {revision} after {self.latest()}")
        self.changes.append(Change(key, revision, value))

    def latest(self) -> int:
        return self.changes[-1].revision if self.changes else 0

    async def do_put(self, name: str, value: bytes, off: int | None) -> None:
        key, revision = self.at(name), self.revision(self.at(name))
        call = partial(self.store.put, key, value, expect=None if off is None else revision + off)
        if off:
            same((await refused(Conflict, call)).actual, revision, "the revision a conflict carries")
        else:
            await self.change(key, value, call)
        await self.do_get(name)

    async def do_delete(self, name: str, off: int | None) -> None:
        key, revision = self.at(name), self.revision(self.at(name))
        call = partial(self.store.delete, key, expect=None if off is None else revision + off)
        if off:
            same((await refused(Conflict, call)).actual, revision, "the revision a conflict carries")
        elif not revision:
            await refused(NotFound, call)
        else:
            await self.change(key, None, call)
        await self.do_get(name)

    async def do_get(self, name: str) -> None:
        key = self.at(name)
        change = self.newest(key)
        if change and change.value is not None:
            same(await self.store.get(key), Entry(key, change.revision, change.value), "what get answers")
        else:
            await refused(NotFound, self.store.get, key)

    async def do_list(self, under: str) -> None:
        at = self.at(under)
        topics = sorted(self.at(name) for name in self.logs if is_under(self.at(name), at))
        keys = sorted({c.key for c in self.changes if is_under(c.key, at) and self.revision(c.key)})
        same(await self.store.topics(at), topics, "the list of topics")
        same(await self.store.keys(at), keys, "the list of keys")

    # Watches

    def deleted_since(self, under: str, revision: int) -> bool:
        """Whether there was a deletion that a store may have forgotten by now."""
        return any(c.value is None and c.revision > revision and is_under(c.key, under) for c in self.changes)

    async def do_watch(self, under: str, back: int | None) -> None:
        after = None if back is None else 0
        if back and self.changes:
            after = self.changes[max(0, len(self.changes) - back)].revision
        at = self.at(under)
        try:
            watch = await self.store.watch(at, after=after)
        except Trimmed:
            # A store may forget deletions by revision alone, under whatever name they were.
            holds(bool(after) and self.deleted_since("", after or 0), f"a watch after {after} was Trimmed")
            return
        position = self.latest() if after is None else after
        self.watched.append(_Watched(watch, at, position, position or self.latest(), after == 0))

    async def do_unwatch(self) -> None:
        if self.watched:
            watch = self.watched.pop(0).watch
            await watch.aclose()
            await refused(StoreClosed, watch.next)

    async def drain(self) -> None:
        """Every watch tells all that it owes."""
        while any(self.allowed(one) for one in self.watched):
            await self.do_next()

    async def do_next(self) -> None:
        for one in self.watched[:]:
            allowed = self.allowed(one)
            try:
                if not allowed:
                    refused_nowait(trio.WouldBlock, one.watch.next_nowait)
                    continue
                change = await one.watch.next()
            except Trimmed:
                lost = self.deleted_since(one.under, max(one.position, one.silent))
                holds(lost, f"the watch of {one.under} at {one.position} was Trimmed for nothing")
                self.watched.remove(one)
                await one.watch.aclose()
            else:
                holds(change in allowed, f"the watch of {one.under} told {change}, not one of {allowed}")
                one.position = change.revision

    def allowed(self, one: _Watched) -> list[Change]:
        """What the watch may tell next: nothing past the oldest change that is the newest of its key."""
        revisions = [change.revision for change in self.changes]
        ahead = [
            c for c in self.changes[bisect_left(revisions, one.position + 1) :] if is_under(c.key, one.under)
        ]
        may: list[Change] = []
        for change in ahead:
            later = [c for c in ahead if c.key == change.key and c.revision > change.revision]
            if one.fresh and change.revision <= one.silent:
                # Of what was there before a fresh watch only the values count that it found.
                replaced = any(c.revision <= one.silent for c in later)
                if replaced or change.value is None:
                    continue
            may.append(change)
            if not later:
                break
        return may

    async def do_reopen(self) -> None:
        await self.stack.aclose()
        for _, _, call in self.parked:
            await refused(StoreClosed, call.answer)
        self.parked.clear()
        self.watched.clear()
        await self.open()
