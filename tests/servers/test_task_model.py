"""A queue against a model: tasks, leases, time, answers, crashes, drains and a failing store, in any order.

What must hold whatever happens: an answered task is kept until an answered `done`, two never hold the same
task, the fences of a task only rise, what a worker is told of an effect is always the same, and the state is
that of the log.
"""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from warren.servers.task import Limits, Tasks
from warren.servers.task.moving import drain, replay, restore, resume
from warren.servers.task.places import READY
from warren.servers.task.queue import Reader, TaskQueue
from warren.servers.task.records import pack, shown, unpack
from warren.servers.task.words import Draft
from warren.servers.task.working import change, done, enqueue, fail, hb, release, requeue, take
from warren.store import MemoryStore, Store, StoreFailed
from warren.store.sqlite import open_sqlite
from warren.tree import Refused, split

Step = tuple[object, ...]


class HandClock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return 1_800_000_000.0 + self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep_until(self, deadline: float) -> None:
        await trio.sleep_forever()


class Fails(MemoryStore):
    """A store whose next append can fail: before it is done, or after it, which nobody can tell apart."""

    trouble = ""

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        trouble, self.trouble = self.trouble, ""
        if trouble == "before":
            raise StoreFailed("no answer")
        seqs = await super().append_batch(topic, batch, expect_last=expect_last)
        if trouble == "after":
            raise StoreFailed("no answer")
        return seqs


def words(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in split(text.strip()))


class Held:
    """A task that a worker was given: it is surely his until `sure`, and surely not after `until`."""

    def __init__(self, number: int, fence: str, until: float, effect: str, subject: str) -> None:
        self.number, self.fence, self.until, self.sure = number, fence, until, until
        self.effect, self.subject = effect, subject


class Model:
    """What must be so, by what was answered."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, HandClock()
        self.sure: dict[int, bytes] = {}  # tasks that were taken, and their bodies
        self.over: set[int] = set()  # of those, the ones that were done
        self.maybe: set[int] = set()  # nobody was told whether they were done
        self.held: list[Held] = []
        self.results: dict[str, str] = {}
        self.fences: dict[int, tuple[int, int]] = {}
        self.processes = self.made = self.moves = 0

    async def begin(self, name: str = "q") -> None:
        """A new process, on the same store."""
        self.processes += 1
        chance = random.Random(self.processes)
        self.tasks = Tasks(self.store, self.clock, chance=chance, limits=Limits(every=7, growth=0))
        self.name = name
        found = await self.tasks._find(name) or await self.tasks.make(name)
        self.queue: TaskQueue = found.queue

    async def step(self, step: Step) -> None:
        kind, *values = step
        try:
            await getattr(self, f"do_{kind}")(*values)
        except Refused as e:
            if e.code not in (409, 429, 503):
                raise

    async def do_enq(self, prio: int, key: str, effect: str, delay: float) -> None:
        self.made += 1
        body = b"pay" if effect else b"%d" % self.made
        said = words(await enqueue(self.queue, Draft(body, effect, key, prio, delay), "ann"))
        if said.get("state") == "done":
            assert self.results.setdefault(effect, said["result"]) == said["result"]
        elif said["dup"] == "0":
            assert int(said["seq"]) not in self.sure
            self.sure[int(said["seq"])] = body

    async def do_take(self, subject: str, term: float) -> None:
        reader = Reader(subject, term, 0.0)
        state = await self.queue.fresh()
        ready = [task for task in state.tasks.values() if task.state == READY]
        first = min(ready, key=lambda task: (-task.prio, task.number), default=None)
        taken = await take(self.queue, reader)
        if taken is None:
            assert first is None or state.drained
            return
        assert first is not None
        assert (taken.number, taken.body) == (first.number, first.body)
        assert self.sure.get(taken.number, taken.body) == taken.body
        assert taken.number not in self.over, "it was done, and is given out again"
        now = self.queue.time()
        others = [held for held in self.held if held.number == taken.number and held.sure > now]
        assert not others, "two hold one task"
        head = {name: str(value) for name, value in taken.head.items()}
        generation, _, attempt, _ = map(int, [*head["fence"].split(".")[:3], "0"])
        assert (generation, attempt) > self.fences.get(taken.number, (0, 0)), "a fence went back"
        self.fences[taken.number] = (generation, attempt)
        until = now + term
        self.held.append(Held(taken.number, head["fence"], until, head.get("effect", ""), subject))

    async def do_unread(self) -> None:
        """A reader is given a task, and closes before it has read it."""
        taken = await take(self.queue, Reader("cat", 10.0, 0.0))
        if taken is not None:
            self.fences[taken.number] = (self.queue.state.generation, taken.attempt)
            batch = release(self.queue, taken)
            assert batch is not None
            await self.queue.settle(batch)

    def _some(self, which: int) -> Held | None:
        return self.held[which % len(self.held)] if self.held else None

    async def do_hb(self, which: int, term: float) -> None:
        if (held := self._some(which)) is not None:
            live = held.until > self.queue.time()
            until = self.queue.time() + term
            try:
                await hb(self.queue, held.fence, held.subject, term)
            except Refused as e:
                if e.code == 503:
                    held.until, held.sure = max(held.until, until), min(held.sure, until)
                raise
            assert live, "a lease that had ended was extended"
            held.until = held.sure = until

    async def do_done(self, which: int, effect: str) -> None:
        if (held := self._some(which)) is None:
            return
        self.made += 1
        name, live = held.effect or effect, held.until > self.queue.time()
        try:
            said = words(await done(self.queue, held.fence, held.subject, effect, f"r{self.made}"))
        except Refused as e:
            if e.code == 503:
                self.maybe.add(held.number)
                held.sure = 0.0
            elif e.code == 400:
                assert effect not in ("", held.effect)
                return
            elif e.reason == "stale_fence":
                assert held.sure <= self.queue.time() or held.number in self.over
            raise
        if name:
            assert self.results.setdefault(name, said["result"]) == said["result"], "two results"
        if said["dup"] == "0":
            assert live, "a stale fence was taken"
            assert held.number not in self.over, "done twice"
        self.over.add(held.number)

    async def do_foreign(self, which: int) -> None:
        """Another subject with the right fence, and the right one with a wrong fence."""
        if (held := self._some(which)) is None:
            return
        wrong = held.fence[:-1] + ("0" if held.fence[-1] != "0" else "1")
        for fence, subject in ((held.fence, "eve"), (wrong, held.subject)):
            try:
                await hb(self.queue, fence, subject, None)
            except Refused as e:
                if e.code not in (409, 503):
                    raise
            else:
                raise AssertionError("a foreign fence was taken")

    async def do_fail(self, which: int, delay: float, retry: bool) -> None:
        if (held := self._some(which)) is not None:
            live = held.until > self.queue.time()
            try:
                await fail(self.queue, held.fence, held.subject, "why", delay, retry)
            except Refused as e:
                if e.code == 503:
                    held.sure = 0.0
                raise
            assert live, "a stale fence was taken"
            held.until = held.sure = 0.0

    async def do_work(self, effect: str) -> None:
        """What a worker does all day."""
        await self.do_take("ann", 10.0)
        await self.do_done(-1, effect)

    async def do_twice(self, effect: str) -> None:
        """Two workers with one effect, which its own task may have too."""
        for _ in range(2):
            await self.do_enq(0, "", "", 0.0)
            await self.do_take("bob", 10.0)
        for which in (-1, -2):
            await self.do_done(which, effect)
        await self.do_enq(0, "", effect, 0.0)

    async def do_requeue(self) -> None:
        await requeue(self.queue, "all")

    async def do_set(self, attempts: int, high: int) -> None:
        await change(self.queue, {"attempts": attempts, "high": high, "low": high - 1})

    async def do_wait(self, seconds: float) -> None:
        self.clock.at += seconds

    async def do_crash(self) -> None:
        await self.begin(self.name)

    async def do_trouble(self, when: str) -> None:
        if isinstance(self.store, Fails):
            self.store.trouble = when

    async def do_move(self, elsewhere: bool) -> None:
        """Drain, and go on here or in a queue of another name."""
        for held in self.held:
            held.sure = 0.0
        data = b"".join(await drain(self.queue))
        for held in self.held:
            held.until = 0.0
        if not elsewhere:
            await resume(self.queue)
            return
        self.moves += 1
        if isinstance(self.store, Fails):
            self.store.trouble = ""
        await self.begin(f"q{self.moves}")
        for _ in range(3):
            try:
                await restore(self.queue, data)
                break
            except Refused as e:
                if e.code == 409 and self.queue.state.tasks:
                    break  # what was not answered was done all the same
                if e.code != 503:
                    raise
        self.fences.clear()  # of another queue

    async def check(self) -> None:
        """The state is that of the log, as bytes and as text, and nothing that was answered is missing."""
        try:
            state = await self.queue.fresh()
            await self.queue.barrier()
        except Refused as e:
            if e.code != 503:
                raise
            return
        start, at, text = self.queue.base, self.queue.base, b""
        while at < self.queue.journal.last:
            record = await self.store.first_after(self.queue.key, at)
            at, found = record.seq, unpack(record.data)
            assert pack(found) == record.data
            text += shown(at, found)
        if start or text:
            copy = replay(text)
            copy.advance(state.t)
            assert copy.dump() == state.dump()
            assert [(k, v) for k, v in copy.claims.items()] == [(k, v) for k, v in state.claims.items()]
        for number in self.sure.keys() - self.over - self.maybe:
            assert number in state.tasks, f"task {number} is lost"
        for number in self.over:
            assert number not in state.tasks, f"task {number} was done and is here"
        depth = sum(task.state in ("ready", "delayed", "blocked") for task in state.tasks.values())
        assert state.depth == depth
        for key in {task.key for task in state.tasks.values()} - {""}:
            states = [task.state for task in state.tasks.values() if task.key == key]
            states = [each for each in states if each != "dead"]
            assert len(states) - states.count("blocked") == bool(states), "a key has not exactly one turn"


effects = st.sampled_from(["", "", "", "e1", "e2", "e3"])
which = st.integers(0, 30)
subjects = st.sampled_from(["ann", "bob"])
steps = st.one_of(
    st.tuples(
        st.just("enq"), st.integers(0, 2), st.sampled_from(["", "", "k", "l"]), effects,
        st.sampled_from([0.0, 0.0, 3.0]),
    ),
    st.tuples(st.just("take"), subjects, st.sampled_from([2.0, 10.0])),
    st.tuples(st.just("take"), subjects, st.sampled_from([2.0, 10.0])),
    st.tuples(st.just("unread")),
    st.tuples(st.just("work"), effects),
    st.tuples(st.just("twice"), effects),
    st.tuples(st.just("hb"), which, st.sampled_from([1.0, 9.0])),
    st.tuples(st.just("done"), which, effects),
    st.tuples(st.just("foreign"), which),
    st.tuples(st.just("fail"), which, st.sampled_from([0.0, 4.0]), st.booleans()),
    st.tuples(st.just("requeue")),
    st.tuples(st.just("set"), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.0, 5.0, 100.0])),
    st.tuples(st.just("crash")),
    st.tuples(st.just("trouble"), st.sampled_from(["before", "after"])),
    st.tuples(st.just("move"), st.booleans()),
)  # fmt: skip


async def play(store: Store, script: Sequence[Step]) -> None:
    model = Model(store)
    await model.begin()
    for step in script:
        await model.step(step)
        await model.check()


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, min_size=20, max_size=80))
def test_nothing_is_lost_done_twice_or_held_twice(script: list[Step]) -> None:
    trio.run(play, Fails(), script)


@settings(max_examples=15, deadline=None)
@given(st.lists(steps, min_size=10, max_size=40))
def test_it_is_the_same_on_a_disk(script: list[Step]) -> None:
    async def on_disk() -> None:
        with TemporaryDirectory(prefix="warren-") as folder:
            async with open_sqlite(Path(folder) / "store") as store:
                await play(store, script)

    trio.run(on_disk)


@asynccontextmanager
async def a_queue(store: Store) -> AsyncIterator[TaskQueue]:
    model = Model(store)
    await model.begin()
    yield model.queue


async def test_workers_that_race_share_commits_and_tasks() -> None:
    """Sixteen givers and sixteen takers at once: every task once, far fewer writes than answers."""
    store = MemoryStore()
    async with a_queue(store) as queue:
        taken: list[int] = []

        async def give(n: int) -> None:
            for k in range(20):
                await enqueue(queue, Draft(b"%d.%d" % (n, k)), "ann")

        async def work(n: int) -> None:
            while True:
                got = await take(queue, Reader(f"w{n}"))
                assert got is not None
                await done(queue, str(got.head["fence"]), f"w{n}", "", "")
                taken.append(got.number)

        async with trio.open_nursery() as workers:
            for n in range(16):
                workers.start_soon(work, n)
            async with trio.open_nursery() as givers:
                for n in range(16):
                    givers.start_soon(give, n)
            await wait_all_tasks_blocked()
            workers.cancel_scope.cancel()
        assert sorted(taken) == list(range(1, 321))
        assert queue.state.counts["done"] == 320
        assert not queue.state.tasks
