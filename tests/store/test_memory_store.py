"""What the memory store promises beyond the interface: its bounds, and what waiting costs it."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from warren.store import Change, Limits, MemoryStore, StoreFull, Trimmed
from warren.store.memory import COST


async def test_a_full_store_refuses_and_drops_nothing() -> None:
    async with MemoryStore(capacity=4 * (COST + 100)) as store:
        await store.append("a", b"x" * 98)
        await store.put("k", b"y" * 99)
        with pytest.raises(StoreFull):
            await store.append_batch("a", [b"x" * 100, b"x" * 100])
        with pytest.raises(StoreFull):
            await store.append("b", b"x" * 100)
        assert await store.append("a", b"z" * 100) == 2
        with pytest.raises(StoreFull):
            await store.put("k", b"y" * 300)

        assert await store.topics() == ["a"]
        assert [(await store.read("a", seq)).data for seq in (1, 2)] == [b"x" * 98, b"z" * 100]
        assert (await store.get("k")).value == b"y" * 99


async def test_what_is_forgotten_makes_room() -> None:
    async with MemoryStore(capacity=2000) as store:
        empty = store.statistics().used
        for _ in range(50):
            await store.append_batch("a", [b"x" * 300] * 2)
            await store.put("k", b"y" * 300)
            await store.trim("a", 0)
            await store.delete("k")
        now = store.statistics()
        assert (now.records, now.keys, now.topics) == (0, 0, 1)
        assert now.used == empty + COST + len("a")
        assert (now.appended, now.trimmed, now.put, now.deleted) == (100, 100, 50, 50)


async def test_a_value_may_shrink_in_a_full_store() -> None:
    async with MemoryStore(capacity=COST + 101) as store:
        await store.put("k", b"x" * 100)
        with pytest.raises(StoreFull):
            await store.append("a", b"")
        await store.put("k", b"x")
        assert store.statistics().used == COST + 2


async def test_a_watch_finds_only_the_newest_change_of_a_key() -> None:
    async with MemoryStore() as store, await store.watch() as watch:
        for turn in range(1000):
            await store.put("busy", b"%d" % turn)
        await store.put("calm", b"")
        assert watch.next_nowait() == Change("busy", 1000, b"999")
        assert watch.next_nowait() == Change("calm", 1001, b"")
        with pytest.raises(trio.WouldBlock):
            watch.next_nowait()


async def test_changes_that_are_stale_do_not_pile_up() -> None:
    async with MemoryStore() as store:
        for turn in range(10_000):
            await store.put(f"k/{turn % 10}", b"")
        assert len(store._changes) < 100
        async with await store.watch(after=0) as watch:
            assert [watch.next_nowait().revision for _ in range(10)] == list(range(9991, 10_001))


async def test_deletions_are_remembered_up_to_their_number() -> None:
    async with MemoryStore(tombstones=2) as store:
        for key in ("a/1", "a/2", "b/1", "a/3"):
            await store.put(key, b"")
        late, beside, fresh = (
            await store.watch("a", after=1),
            await store.watch("b"),
            await store.watch(after=0),
        )
        gone = [await store.delete(key) for key in ("a/1", "a/2", "a/3")]

        for _ in range(2):
            with pytest.raises(Trimmed) as caught:
                late.next_nowait()
            assert caught.value.through == gone[0]
        with pytest.raises(Trimmed):
            await store.watch("b", after=1)
        with pytest.raises(Trimmed):
            await fresh.next()

        with pytest.raises(trio.WouldBlock):
            beside.next_nowait()
        async with await store.watch("a", after=gone[0]) as watch:
            assert [watch.next_nowait() for _ in range(2)] == [
                Change("a/2", gone[1], None),
                Change("a/3", gone[2], None),
            ]
        async with await store.watch("a", after=0) as watch:
            with pytest.raises(trio.WouldBlock):
                watch.next_nowait()


async def test_a_quiet_watch_loses_nothing_while_others_are_busy() -> None:
    async with MemoryStore(tombstones=1) as store, await store.watch("quiet") as watch:
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                assert (await watch.next()).key == "quiet/a"

            nursery.start_soon(follow)
            await wait_all_tasks_blocked()
            for turn in range(20):
                await store.put(f"busy/{turn}", b"")
                await store.delete(f"busy/{turn}")
            await store.put("quiet/a", b"")


async def test_names_waited_for_in_vain_leave_nothing_behind() -> None:
    async with MemoryStore() as store:
        async with trio.open_nursery() as nursery:
            for turn in range(100):
                nursery.start_soon(store.first_after, f"never/{turn}", 0)
                nursery.start_soon(store.first_after, f"never/{turn}", 0)
            await wait_all_tasks_blocked()
            assert store.statistics().waiting == 200
            nursery.cancel_scope.cancel()
        assert not store._readers
        assert store.statistics().waiting == 0


async def test_a_buffer_that_is_used_again_does_not_change_a_record() -> None:
    buffer = bytearray(b"first")
    async with MemoryStore() as store:
        await store.append("a", buffer)  # type: ignore[arg-type]
        await store.put("k", buffer)  # type: ignore[arg-type]
        buffer[:] = b"other"
        assert (await store.read("a", 1)).data == (await store.get("k")).value == b"first"


async def test_limits_are_those_it_was_given() -> None:
    limits = Limits(record=3, batch=2, batch_bytes=5)
    async with MemoryStore(limits=limits) as store:
        assert store.limits == limits
        assert await store.append_batch("a", [b"123", b"45"]) == range(1, 3)
