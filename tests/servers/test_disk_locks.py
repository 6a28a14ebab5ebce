"""The lock table against a slow model, and the parked half of it under trio."""

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from warren.servers.disk import Disk
from warren.tree import Lock, Node, Refused
from warren.tree.locks import END, MAX_RANGES, MAX_WAITERS, Key, Locks, Owner, Waiter

KEY: Key = (1, 2)
SPACE = 12  # bytes the model looks at; the last one stands for all beyond


def owner(n: int) -> Owner:
    return (n, "host", 100 + n)


def lock(n: int, start: int, length: int, exclusive: bool = True) -> Lock:
    return Lock(exclusive, start, length, owner(n))


def span(wanted: Lock) -> range:
    stop = wanted.start + wanted.length if wanted.length else SPACE
    return range(wanted.start, min(stop, SPACE))


class Bytewise:
    """One byte, its owners, and whether each holds it exclusively."""

    def __init__(self) -> None:
        self.bytes: list[dict[Owner, bool]] = [{} for _ in range(SPACE)]

    def conflict(self, wanted: Lock) -> bool:
        return any(
            other != wanted.owner and (exclusive or wanted.exclusive)
            for at in span(wanted)
            for other, exclusive in self.bytes[at].items()
        )

    def put(self, wanted: Lock) -> None:
        for at in span(wanted):
            self.bytes[at][wanted.owner] = wanted.exclusive

    def drop(self, unwanted: Lock) -> None:
        for at in span(unwanted):
            self.bytes[at].pop(unwanted.owner, None)


OWNERS = st.integers(0, 3)
LOCKS = st.builds(lock, OWNERS, st.integers(0, 6), st.integers(0, 5), st.booleans())
STEPS = st.lists(st.tuples(st.sampled_from(["take", "release", "test"]), LOCKS), max_size=40)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_ranges_behave_like_bytes(steps: list[tuple[str, Lock]]) -> None:
    locks, model = Locks(), Bytewise()
    for what, wanted in steps:
        if what == "take":
            free = not model.conflict(wanted)
            assert locks.take(KEY, wanted) == free
            if free:
                model.put(wanted)
        elif what == "release":
            locks.release(KEY, wanted)
            model.drop(wanted)
        else:
            found = locks.obstacle(KEY, wanted)
            assert (found is not None) == model.conflict(wanted)
            if found is not None:
                common = set(span(found)) & set(span(wanted))
                assert all(model.bytes[at][found.owner] == found.exclusive for at in span(found))
                assert found.owner != wanted.owner
                assert common
    for n in range(4):
        locks.release(KEY, lock(n, 0, 0))
    assert locks.empty()


class Waiting(RuleBasedStateMachine):
    """Four owners over two files. An owner waits for one thing at a time, as one thread does."""

    def __init__(self) -> None:
        super().__init__()
        self.locks = Locks()
        self.models = {(0, 0): Bytewise(), (0, 1): Bytewise()}
        self.parked: dict[Owner, tuple[Key, Lock, Waiter]] = {}
        self.queues: dict[Key, list[Lock]] = {key: [] for key in self.models}

    def grant(self, key: Key, wanted: Lock, refusal: Refused | None) -> None:
        assert refusal is None
        assert not self.models[key].conflict(wanted), "granted what another holds"
        for earlier in self.queues[key][: self.queues[key].index(wanted)]:
            if overlaps(earlier, wanted):
                assert self.leads(earlier.owner, wanted.owner), "passed over one who came first"
        self.queues[key].remove(wanted)
        self.parked.pop(wanted.owner, None)
        self.models[key].put(wanted)

    def leads(self, source: Owner, target: Owner, fair: bool = True) -> bool:
        """Whether SOURCE waits for TARGET, directly or through others."""
        found, todo = {source}, [source]
        while todo:
            for nearer in self.ahead(todo.pop(), fair) - found:
                found.add(nearer)
                todo.append(nearer)
        return target in found

    def ahead(self, waiting: Owner, fair: bool) -> set[Owner]:
        if waiting not in self.parked:
            return set()
        key, wanted, _ = self.parked[waiting]
        queue = self.queues[key]
        earlier = queue[: queue.index(wanted)] if fair and wanted in queue else []
        model = self.models[key]
        return {
            other
            for at in span(wanted)
            for other, exclusive in model.bytes[at].items()
            if other != waiting and (exclusive or wanted.exclusive)
        } | {e.owner for e in earlier if overlaps(e, wanted)}

    @rule(key=st.sampled_from([(0, 0), (0, 1)]), wanted=LOCKS)
    def ask(self, key: Key, wanted: Lock) -> None:
        if wanted.owner in self.parked:
            return
        model, queue = self.models[key], self.queues[key]
        behind = [w for w in queue if overlaps(w, wanted) and not self.leads(w.owner, wanted.owner)]
        free = not model.conflict(wanted) and not behind
        assert (self.locks.obstacle(key, wanted) is None) == free
        queue.append(wanted)  # before, since others may be granted during the call
        if free:
            queue.remove(wanted)
            model.put(wanted)
            assert self.locks.take(key, wanted)
            return
        granted: list[None] = []

        def tell(refusal: Refused | None) -> None:
            granted.append(None)
            self.grant(key, wanted, refusal)

        # The model's graph must have the new edges while the table looks at it.
        self.parked[wanted.owner] = key, wanted, None  # type: ignore[assignment]
        circle = any(self.leads(o, wanted.owner, fair=False) for o in self.ahead(wanted.owner, fair=False))
        assert not self.locks.take(key, wanted)
        if circle:
            with pytest.raises(Refused, match="deadlock"):
                self.locks.enqueue(key, wanted, tell)
            queue.remove(wanted)
            del self.parked[wanted.owner]
            return
        waiter = self.locks.enqueue(key, wanted, tell)
        if not granted:
            self.parked[wanted.owner] = key, wanted, waiter

    @rule(key=st.sampled_from([(0, 0), (0, 1)]), unwanted=LOCKS)
    def release(self, key: Key, unwanted: Lock) -> None:
        self.models[key].drop(unwanted)
        self.locks.release(key, unwanted)

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        key, wanted, waiter = self.parked.pop(data.draw(st.sampled_from(sorted(self.parked))))
        self.queues[key].remove(wanted)
        self.locks.cancel(waiter)

    @invariant()
    def whoever_waits_has_a_reason(self) -> None:
        for key, queue in self.queues.items():
            for at, wanted in enumerate(queue):
                held = self.models[key].conflict(wanted)
                earlier = (e for e in queue[:at] if overlaps(e, wanted))
                assert held or any(not self.leads(e.owner, wanted.owner) for e in earlier)

    @invariant()
    def somebody_can_always_go_on(self) -> None:
        for waiting in self.parked:
            assert not any(self.leads(o, waiting, fair=False) for o in self.ahead(waiting, fair=False))

    def teardown(self) -> None:
        """If all who can go on let go in the end, all who wait are served in the end."""
        while self.parked:
            before = set(self.parked)
            for n in range(4):
                if owner(n) not in self.parked:
                    for key, model in self.models.items():
                        model.drop(lock(n, 0, 0))
                        self.locks.release(key, lock(n, 0, 0))
            assert set(self.parked) != before, "all wait for each other"
        for n in range(4):
            for key in self.models:
                self.locks.release(key, lock(n, 0, 0))
        assert self.locks.empty()


def overlaps(a: Lock, b: Lock) -> bool:
    return a.owner != b.owner and (a.exclusive or b.exclusive) and bool(set(span(a)) & set(span(b)))


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_one_owner_never_conflicts_with_itself_and_can_change_its_mind() -> None:
    locks = Locks()
    assert locks.take(KEY, lock(1, 0, 100))
    assert locks.take(KEY, lock(1, 40, 20, exclusive=False))
    assert locks.obstacle(KEY, lock(2, 45, 1, exclusive=False)) is None
    assert locks.obstacle(KEY, lock(2, 0, 0)) == lock(1, 0, 40)
    assert locks.obstacle(KEY, lock(2, 70, 0)) == lock(1, 60, 40)


def test_neighbours_become_one_range() -> None:
    locks = Locks()
    for start in (0, 2, 1):
        assert locks.take(KEY, lock(1, start, 1))
    assert locks.obstacle(KEY, lock(2, 0, 0)) == lock(1, 0, 3)


def test_a_grant_that_downgrades_serves_an_earlier_waiter() -> None:
    locks = Locks()
    told: list[int] = []
    assert locks.take(KEY, lock(1, 0, 2))
    assert locks.take(KEY, lock(3, 5, 1))
    locks.enqueue(KEY, lock(2, 0, 1, exclusive=False), lambda refusal: told.append(2))
    locks.enqueue(KEY, lock(1, 0, 6, exclusive=False), lambda refusal: told.append(1))
    locks.release(KEY, lock(3, 0, 0))
    assert told == [1, 2]


def test_length_zero_reaches_beyond_every_end() -> None:
    locks = Locks()
    assert locks.take(KEY, lock(1, 10, 0))
    assert locks.obstacle(KEY, lock(2, END - 1, 1)) == lock(1, 10, 0)
    assert locks.obstacle(KEY, lock(2, 0, 10)) is None
    with pytest.raises(Refused, match="beyond the greatest offset"):
        locks.take(KEY, lock(2, END - 1, 2))


def test_the_number_of_ranges_is_bounded() -> None:
    locks = Locks()
    for n in range(MAX_RANGES - 1):
        assert locks.take(KEY, lock(1, 3 * n, 2))
    assert locks.take(KEY, lock(2, 3 * MAX_RANGES, 4))
    for refused in (
        lambda: locks.take(KEY, lock(2, 4 * MAX_RANGES, 1)),
        lambda: locks.release(KEY, lock(2, 3 * MAX_RANGES + 1, 1)),
    ):
        with pytest.raises(Refused) as caught:
            refused()
        assert (caught.value.errno, caught.value.code) == (errno.ENOLCK, 429)
    assert locks.take(KEY, lock(1, 0, 3 * MAX_RANGES)), "one that merges others needs no room"
    locks.release(KEY, lock(1, 0, 0))
    locks.release(KEY, lock(2, 0, 0))
    assert locks.empty()


def test_the_number_of_waiters_is_bounded() -> None:
    locks = Locks()
    assert locks.take(KEY, lock(0, 0, 1))
    for n in range(MAX_WAITERS):
        locks.enqueue(KEY, lock(n + 1, 0, 1), lambda refusal: None)
    with pytest.raises(Refused) as caught:
        locks.enqueue(KEY, lock(999, 0, 1), lambda refusal: None)
    assert (caught.value.errno, caught.value.code) == (errno.ENOLCK, 429)


def test_a_waiter_whose_turn_finds_no_room_is_told() -> None:
    locks = Locks()
    told: list[Refused | None] = []
    assert locks.take(KEY, lock(0, 0, 1))
    locks.enqueue(KEY, lock(1, 0, 1, exclusive=False), told.append)
    for n in range(1, MAX_RANGES):
        assert locks.take(KEY, lock(2, 3 * n, 1))
    assert locks.take(KEY, lock(0, 0, 1, exclusive=False)), "it makes way without giving up its room"
    assert [refusal and refusal.errno for refusal in told] == [errno.ENOLCK]
    assert locks.obstacle(KEY, lock(3, 0, 1)) == lock(0, 0, 1, exclusive=False)


def test_a_reader_does_not_overtake_a_waiting_writer() -> None:
    locks = Locks()
    told: list[str] = []
    assert locks.take(KEY, lock(1, 0, 10, exclusive=False))
    locks.enqueue(KEY, lock(2, 0, 10), lambda refusal: told.append("writer"))
    assert not locks.take(KEY, lock(3, 5, 1, exclusive=False))
    assert locks.obstacle(KEY, lock(3, 5, 1, exclusive=False)) == lock(2, 0, 10)
    assert locks.take(KEY, lock(3, 20, 1, exclusive=False)), "elsewhere nobody waits"
    locks.enqueue(KEY, lock(3, 5, 1, exclusive=False), lambda refusal: told.append("reader"))
    locks.release(KEY, lock(1, 0, 0))
    assert told == ["writer"]
    locks.release(KEY, lock(2, 0, 0))
    assert told == ["writer", "reader"]


def test_a_holder_widens_its_hold_past_those_who_wait_for_it() -> None:
    locks = Locks()
    assert locks.take(KEY, lock(1, 0, 10, exclusive=False))
    locks.enqueue(KEY, lock(2, 0, 20), lambda refusal: None)
    assert locks.take(KEY, lock(1, 10, 10, exclusive=False)), "behind the writer it would wait for itself"


def test_a_new_wait_lets_through_whom_fairness_alone_held_back() -> None:
    locks, other = Locks(), (1, 3)
    told: list[str] = []
    assert locks.take(KEY, lock(1, 0, 1))  # 1 holds a byte here
    assert locks.take(other, lock(3, 0, 1))  # 3 holds one there
    locks.enqueue(KEY, lock(2, 0, 10), lambda refusal: told.append("two"))  # 2 waits for 1
    locks.enqueue(KEY, lock(3, 5, 1), lambda refusal: told.append("three"))  # 3 stands behind 2
    assert told == []
    locks.enqueue(other, lock(1, 0, 1), lambda refusal: told.append("one"))  # 1 waits for 3
    assert told == ["three"]


def test_a_circle_of_holders_is_refused() -> None:
    locks, other = Locks(), (1, 3)
    assert locks.take(KEY, lock(1, 0, 1))
    assert locks.take(other, lock(2, 0, 1))
    waiter = locks.enqueue(other, lock(1, 0, 1), lambda refusal: None)
    with pytest.raises(Refused) as caught:
        locks.enqueue(KEY, lock(2, 0, 1), lambda refusal: None)
    assert (caught.value.errno, caught.value.code) == (errno.EDEADLK, 409)
    locks.cancel(waiter)
    locks.enqueue(KEY, lock(2, 0, 1), lambda refusal: None)


def test_two_readers_who_both_want_to_write_are_a_circle() -> None:
    locks = Locks()
    for n in (1, 2):
        assert locks.take(KEY, lock(n, 0, 1, exclusive=False))
    locks.enqueue(KEY, lock(1, 0, 1), lambda refusal: None)
    with pytest.raises(Refused, match="deadlock"):
        locks.enqueue(KEY, lock(2, 0, 1), lambda refusal: None)


# On a disk, under trio


@pytest.fixture
def file(tmp_path: Path) -> Node:
    (tmp_path / "f").write_bytes(b"")
    node = Disk(tmp_path).walk("f")
    assert isinstance(node, Node)
    return node


async def taken(node: Node, wanted: Lock) -> None:
    waits = node.wait_lock(wanted)
    if waits is not None:
        await waits


async def test_a_free_lock_costs_no_task(file: Node) -> None:
    assert file.wait_lock(lock(1, 0, 0)) is None


async def test_waiters_are_served_in_order(file: Node) -> None:
    served: list[int] = []

    async def wait(n: int) -> None:
        await taken(file, lock(n, 0, 0))
        served.append(n)
        file.unlock(lock(n, 0, 0, exclusive=False))

    assert file.lock(lock(0, 0, 0))
    async with trio.open_nursery() as nursery:
        for n in (1, 2, 3):
            nursery.start_soon(wait, n)
            await trio.testing.wait_all_tasks_blocked()
        assert served == []
        file.unlock(lock(0, 0, 0, exclusive=False))
    assert served == [1, 2, 3]
    assert file.lock(lock(9, 0, 0))


async def test_cancelled_means_not_taken_and_those_behind_go_on(file: Node) -> None:
    assert file.lock(lock(0, 0, 10, exclusive=False))
    writer = trio.CancelScope()

    async def wait_to_write() -> None:
        with writer:
            await taken(file, lock(1, 0, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_to_write)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(taken, file, lock(2, 0, 10, exclusive=False))
        await trio.testing.wait_all_tasks_blocked()
        writer.cancel()
    assert writer.cancelled_caught
    assert file.test_lock(lock(3, 0, 10)) in (lock(0, 0, 10, False), lock(2, 0, 10, False))
    file.unlock(lock(0, 0, 0))
    file.unlock(lock(2, 0, 0))
    assert file.lock(lock(3, 0, 0))


async def test_a_wait_that_was_cancelled_before_it_began_takes_nothing(file: Node) -> None:
    assert file.lock(lock(0, 0, 1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await taken(file, lock(1, 0, 1))
    assert scope.cancelled_caught
    file.unlock(lock(0, 0, 0))
    assert file.test_lock(lock(2, 0, 0)) is None


async def test_a_grant_that_came_first_beats_the_cancel(file: Node) -> None:
    assert file.lock(lock(0, 0, 1))
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            await taken(file, lock(1, 0, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        file.unlock(lock(0, 0, 0))
        scope.cancel()
    assert not scope.cancelled_caught
    assert file.test_lock(lock(2, 0, 0)) == lock(1, 0, 1)


async def test_a_deadlock_over_two_files_is_refused_to_whoever_closes_it(tmp_path: Path) -> None:
    root = Disk(tmp_path)
    for name in "ab":
        (tmp_path / name).touch()
    a, b = root.walk("a"), root.walk("b")
    assert isinstance(a, Node)
    assert isinstance(b, Node)
    assert a.lock(lock(1, 0, 0))
    assert b.lock(lock(2, 0, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, b, lock(1, 0, 0))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused) as caught:
            await taken(a, lock(2, 0, 0))
        assert caught.value.errno == errno.EDEADLK
        b.unlock(lock(2, 0, 0))


def test_all_names_of_a_file_share_its_locks(tmp_path: Path) -> None:
    root = Disk(tmp_path)
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    a, b = root.walk("a"), root.walk("b")
    assert isinstance(a, Node)
    assert isinstance(b, Node)
    assert a.lock(lock(1, 0, 0))
    assert b.lock(lock(2, 0, 0)) is False
    os.unlink(tmp_path / "a")
    assert b.test_lock(lock(2, 5, 1)) == lock(1, 0, 0)


def test_only_regular_files_are_locked(tmp_path: Path) -> None:
    root = Disk(tmp_path)
    with pytest.raises(Refused, match="only regular files"):
        root.lock(lock(1, 0, 0))
    root.unlock(lock(1, 0, 0))
