"""The end of a log as its one owner writes it."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from warren.store import Conflict, Journal, MemoryStore, StoreFailed


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
        for n in range(50):
            nursery.start_soon(write, n)
        await wait_all_tasks_blocked()
        store.open.set()
    assert len(store.batches) == 2
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
