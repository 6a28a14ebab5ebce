"""The end of a log as its one owner writes it."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from warren.store import Batch, Conflict, Journal, MemoryStore, StoreFailed


class Slow(MemoryStore):
    """A store whose appends wait for the test, and fail when it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.open = trio.Event()
        self.batches: list[list[bytes]] = []
        self.fails = False

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        await self.open.wait()
        if self.fails:
            raise StoreFailed("no answer")
        self.batches.append(list(batch))
        return await super().append_batch(topic, batch, expect_last=expect_last)


class Owner:
    """Somebody with a journal."""

    def __init__(self, store: MemoryStore) -> None:
        self.written: list[int] = []
        self.lost = 0
        self.journal = Journal(store, "log", lambda batch: self.written.append(batch.number), self.lose)

    def lose(self) -> None:
        self.lost += 1


async def contents(store: MemoryStore) -> list[bytes]:
    return [(await store.read("log", seq)).data for seq in range(1, await store.last("log") + 1)]


async def test_those_who_wait_share_a_commit_and_the_order_is_that_of_adding() -> None:
    store = Slow()
    owner = Owner(store)

    async def write(n: int) -> None:
        seq = owner.journal.next
        await owner.journal.settle(owner.journal.add(b"%d" % n, n))
        assert owner.journal.last >= seq

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, 0)
        await wait_all_tasks_blocked()
        for n in range(1, 50):
            nursery.start_soon(write, n)
        await wait_all_tasks_blocked()
        store.open.set()
    assert [len(batch) for batch in store.batches] == [1, 49]
    assert sorted(await contents(store)) == sorted(b"%d" % n for n in range(50))
    assert (await contents(store)) == store.batches[0] + store.batches[1]
    assert (owner.journal.idle, owner.journal.last, owner.journal.next) == (True, 50, 51)


async def test_nothing_that_was_added_behind_a_refused_record_comes_into_the_log() -> None:
    store = Slow()
    owner = Owner(store)
    refused: list[int] = []

    async def write(n: int) -> None:
        with pytest.raises(StoreFailed):
            await owner.journal.settle(owner.journal.add(b"%d" % n))
        refused.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(write, n)
        await wait_all_tasks_blocked()
        store.fails = True
        store.open.set()
    assert sorted(refused) == [0, 1, 2, 3, 4]
    assert owner.lost == 1
    assert (owner.written, await store.last("log"), owner.journal.idle) == ([], 0, True)


async def test_another_writer_is_a_conflict_until_one_begins_behind_him() -> None:
    store = MemoryStore()
    owner = Owner(store)
    await owner.journal.settle(owner.journal.add(b"ours"))
    await store.append("log", b"theirs")
    with pytest.raises(Conflict):
        await owner.journal.settle(owner.journal.add(b"ours too"))
    assert owner.lost == 1
    owner.journal.begin(2)
    await owner.journal.settle(owner.journal.add(b"ours now"))
    assert await contents(store) == [b"ours", b"theirs", b"ours now"]


async def test_whoever_is_cancelled_has_still_written_for_the_others() -> None:
    store = Slow()
    owner = Owner(store)
    done: list[str] = []

    async def write(name: str) -> None:
        await owner.journal.settle(owner.journal.add(name.encode()))
        done.append(name)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(write, "first")
                await wait_all_tasks_blocked()
                nursery.start_soon(write, "second")
                await wait_all_tasks_blocked()
                scope.cancel()
                store.open.set()
    assert done == ["first", "second"]
    assert await contents(store) == [b"first", b"second"]


async def test_a_promise_is_kept_when_its_record_is_durable_and_needs_nobody_who_waits() -> None:
    store = Slow()
    owner = Owner(store)
    heard: list[str] = []
    for name in ("a", "b", "c"):
        owed = owner.journal.promise(owner.journal.add(name.encode()))
        owed.told(lambda owed, name=name: heard.append(f"{name} {owner.journal.last}"))  # type: ignore[misc]
        await wait_all_tasks_blocked()
    assert heard == []
    store.open.set()
    await wait_all_tasks_blocked()
    assert heard == ["a 1", "b 3", "c 3"]
    assert await contents(store) == [b"a", b"b", b"c"]
    assert owner.journal.newest is None
    assert await owner.journal.promise(None) is None


async def test_promises_behind_a_refused_record_fail_with_it_after_the_owner_has_heard() -> None:
    store = Slow()
    owner = Owner(store)
    heard: list[tuple[int, Exception | None]] = []
    for n in range(3):
        owed = owner.journal.promise(owner.journal.add(b"%d" % n))
        owed.told(lambda owed: heard.append((owner.lost, owed.error)))
        await wait_all_tasks_blocked()
    store.fails = True
    store.open.set()
    await wait_all_tasks_blocked()
    assert [lost for lost, _ in heard] == [1, 1, 1]
    assert all(isinstance(error, StoreFailed) for _, error in heard)
    store.fails = False
    owner.journal.begin(0)
    await owner.journal.promise(owner.journal.add(b"again"))
    assert await contents(store) == [b"again"]


def test_a_loop_that_ends_breaks_a_write_off_and_does_not_wait_for_it_for_ever() -> None:
    heard: list[str] = []

    async def waits(journal: Journal) -> None:
        with pytest.raises(StoreFailed) as refused:
            await journal.settle(journal.add(b"x"))
        heard.append(str(refused.value))

    async def ends() -> None:
        trio.lowlevel.spawn_system_task(waits, Owner(Slow()).journal)
        await wait_all_tasks_blocked()

    trio.run(ends)
    assert heard == ["log: the write was broken off"]


async def test_a_defect_of_the_owner_is_told_to_those_who_wait() -> None:
    store = Slow()
    store.open.set()

    def defective(batch: Batch) -> None:
        raise ZeroDivisionError

    journal = Journal(store, "log", defective, lambda: None)
    with pytest.raises(StoreFailed, match="ZeroDivisionError"):
        await journal.settle(journal.add(b"x"))
    with pytest.raises(StoreFailed, match="ZeroDivisionError"):
        await journal.promise(journal.add(b"x"))


async def test_what_nobody_waited_for_is_written_by_flush() -> None:
    store = MemoryStore()
    owner = Owner(store)
    await owner.journal.flush()
    for n in range(3):
        owner.journal.add(b"%d" % n, n)
    assert not owner.journal.idle
    await owner.journal.flush()
    assert await contents(store) == [b"0", b"1", b"2"]
    assert owner.written == [2]


async def test_a_batch_is_never_larger_than_the_store_takes() -> None:
    store = Slow()
    store.open.set()
    owner = Owner(store)
    for _ in range(5):
        owner.journal.add(bytes(600_000))
    for _ in range(2000):
        batch = owner.journal.add(b"x")
    await owner.journal.settle(batch)
    assert [len(batch) for batch in store.batches] == [1, 1, 1, 1, 1024, 977]
    assert all(sum(map(len, batch)) <= store.limits.batch_bytes for batch in store.batches)
