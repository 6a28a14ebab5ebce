"""A topic against a model: sends, leases, time, answers, crashes and a store that fails, in any order.

What must hold whatever happens: an answered send is received until it is acknowledged, two never hold the
same message, what was acknowledged never comes again, and the state is that of the log.
"""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from warren.servers.mailbox import Mailbox
from warren.servers.mailbox.leasing import answer, bodies, release, take
from warren.servers.mailbox.line import Reader, Taken
from warren.servers.mailbox.operating import change, group, redrive
from warren.servers.mailbox.records import Settings
from warren.servers.mailbox.sending import send
from warren.servers.mailbox.state import State
from warren.servers.mailbox.topic import Topic
from warren.servers.mailbox.words import Answer, Draft, Options, Parcel
from warren.store import MemoryStore, Store, StoreFailed
from warren.store.sqlite import open_sqlite
from warren.tree import Refused

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
        done = await super().append_batch(topic, batch, expect_last=expect_last)
        if trouble == "after":
            raise StoreFailed("no answer")
        return done


def change_to(attempts: int) -> Settings:
    return Settings(attempts=attempts, lease=10.0)


class Model:
    """What must be so, by what was answered."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, HandClock()
        self.sure: set[bytes] = set()  # sent, and not answered by anything that ends it
        self.over: set[bytes] = set()  # acknowledged
        self.held: dict[tuple[str, str], tuple[str, float, bytes]] = {}  # group and id: lease, until, body
        self.made = 0
        self.boxes = 0
        self.groups = 0

    async def begin(self) -> None:
        """A new process, on the same store."""
        self.boxes += 1
        mailbox = Mailbox(self.store, self.clock, chance=random.Random(self.boxes))
        found = await mailbox._find("t") or await mailbox.make("t")
        self.topic: Topic = found.topic
        self.topic.every = 12

    async def step(self, step: Step) -> None:
        kind, *values = step
        try:
            await getattr(self, f"do_{kind}")(*values)
        except Refused as e:
            if e.code not in (409, 429, 503):
                raise

    async def do_send(self, count: int, key: str, prio: int, delay: float) -> None:
        drafts = []
        for _ in range(count):
            self.made += 1
            drafts.append(Draft(b"%d" % self.made, key=key, prio=prio, delay=delay, idem=b"i%d" % self.made))
        sent = await send(self.topic, Parcel(drafts), "ann")
        assert [s.dup for s in sent] == [False] * count
        self.sure.update(draft.body for draft in drafts)
        if prio > 5:
            assert [s.id for s in await send(self.topic, Parcel(drafts), "bob")] == [s.id for s in sent]

    async def do_take(self, most: int, name: str) -> None:
        taken = await self.try_take(Options(max=most), name)
        if taken is None:
            return
        found = await bodies(self.topic, taken)
        for (kept, _, _, _), message in zip(taken.messages, found, strict=True):
            assert kept.id == message.id
            if not name:
                assert message.body not in self.over, "it was acknowledged, and comes again"
            old = self.held.get((name, message.id))
            assert old is None or old[1] <= self.topic.time(), "two hold the same message"
            self.held[name, message.id] = (taken.lease, taken.until, message.body)

    async def do_glance(self, most: int) -> None:
        taken = await self.try_take(Options(max=most), "")
        if taken is not None:
            await bodies(self.topic, taken)
            if (batch := release(self.topic, "", taken)) is not None:
                await self.topic.settle(batch)

    async def try_take(self, options: Options, name: str) -> Taken | None:
        """What there is now."""
        found: list[Taken | None] = []
        failed: list[Refused] = []

        async def takes() -> None:
            try:
                found.append(await take(self.topic, Reader(name, "ann", options)))
            except Refused as e:
                failed.append(e)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        if failed and failed[0].code != 404:
            raise failed[0]
        return found[0] if found else None

    async def do_answer(self, verb: str, nth: int, named: bool, delay: float) -> None:
        if not self.held:
            return
        (name, id), (lease, until, body) = sorted(self.held.items())[nth % len(self.held)]
        live = until > self.topic.time()
        try:
            await answer(self.topic, name, "ann", [Answer(verb, id, lease if named else "", delay)])
        except Refused as e:
            if live and e.code not in (404, 503):
                raise
            if e.code == 503:  # done or not: neither may be counted on
                self.held.pop((name, id))
                if not name and verb == "ack":
                    self.sure.discard(body)
            return
        # A bare id also names a lease whose taking was answered with 503, and which we know nothing of.
        assert live or not named, "a lease that had run out was taken"
        if verb == "extend":
            self.held[name, id] = (lease, self.topic.state.t + delay, body)
            return
        del self.held[name, id]
        if verb == "ack" and not name:
            self.sure.discard(body)
            self.over.add(body)

    async def do_wait(self, seconds: float) -> None:
        self.clock.at += seconds

    async def do_crash(self) -> None:
        await self.begin()

    async def do_trouble(self, when: str) -> None:
        if isinstance(self.store, Fails):
            self.store.trouble = when

    async def do_rival(self) -> None:
        """Another process writes to the same topic, and this one goes on."""
        ours = self.topic
        await self.begin()
        await self.do_send(1, "", 0, 0.0)
        self.topic = ours

    async def do_attempts(self, most: int) -> None:
        await change(self.topic, lambda _: change_to(most))

    async def do_redrive(self) -> None:
        await redrive(self.topic, "all")

    async def do_group(self, waiting: bool) -> None:
        if self.groups < 2:
            self.groups += 1
            await group(self.topic, f"g{self.groups}", waiting)

    async def agrees(self) -> None:
        """The state is the one that the log gives, from its snapshot and from what followed."""
        topic = self.topic
        try:
            await topic.fresh()
            await topic.barrier()
        except Refused:
            return
        last = await self.store.last(topic.key)
        if topic.stale or last != topic.journal.last:
            return
        again = await topic._replay(topic.base, last)
        again.advance(topic.state.t)
        assert again.dump() == topic.state.dump()
        assert State.load(again.dump()).dump() == again.dump()

    async def drain(self) -> None:
        """Everything that was answered and not acknowledged comes, once."""
        await self.do_trouble("")
        for again in range(3):
            try:
                await change(self.topic, lambda _: Settings(attempts=1000))
                break
            except Refused:
                assert again < 2
        self.clock.at += 90_000
        await redrive(self.topic, "all")
        got: list[bytes] = []
        while (taken := await self.try_take(Options(max=32, ack="none"), "")) is not None:
            got += [message.body for message in await bodies(self.topic, taken)]
        assert len(set(got)) == len(got)
        assert self.sure <= set(got), "lost"
        assert not self.over & set(got), "acknowledged, and here again"


STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 3), st.sampled_from(["", "", "k", "l"]), st.integers(0, 9),
              st.sampled_from([0.0, 0.0, 5.0])),
    st.tuples(st.just("take"), st.integers(1, 4), st.sampled_from(["", "", "g1"])),
    st.tuples(st.just("glance"), st.integers(1, 4)),
    st.tuples(st.just("answer"), st.sampled_from(["ack", "ack", "nack", "extend"]), st.integers(0, 20),
              st.booleans(), st.sampled_from([0.25, 3.0, 20.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 11.0, 400.0])),
    st.tuples(st.just("crash")),
    st.tuples(st.just("trouble"), st.sampled_from(["before", "after"])),
    st.tuples(st.just("rival")),
    st.tuples(st.just("attempts"), st.integers(1, 3)),
    st.tuples(st.just("redrive")),
    st.tuples(st.just("group"), st.booleans()),
)  # fmt: skip


async def run(store: Store, steps: Sequence[Step]) -> None:
    model = Model(store)
    await model.begin()
    for step in steps:
        await model.step(step)
        await model.agrees()
    await model.drain()


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_no_order_of_things_loses_or_doubles_a_message(steps: list[Step]) -> None:
    async def main() -> None:
        async with Fails() as store:
            await run(store, steps)

    trio.run(main)


@settings(max_examples=12, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_nor_does_it_on_a_disk(steps: list[Step]) -> None:
    async def main() -> None:
        async with on_disk() as store:
            await run(store, steps)

    trio.run(main)


@asynccontextmanager
async def on_disk() -> AsyncIterator[Store]:
    with TemporaryDirectory() as folder:
        async with open_sqlite(Path(folder) / "store.db") as store:
            yield store


def test_the_model_sees_a_message_that_is_lost() -> None:
    """A topic that forgets its log must not pass."""

    async def main() -> None:
        async with MemoryStore() as store:
            model = Model(store)
            await model.begin()
            await model.do_send(1, "", 0, 0.0)
            model.topic.state = State()
            with pytest.raises(AssertionError, match="lost"):
                await model.drain()

    trio.run(main)
