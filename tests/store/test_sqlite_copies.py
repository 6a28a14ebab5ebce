"""The file as a whole: damage is named, a copy is of one moment, and a restored one is a new generation."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from warren.store import Copy, Record, Store, StoreFailed
from warren.store.sqlite import SqliteStore, open_sqlite

DAMAGE = {
    "UPDATE record SET data = x'00' WHERE at = (1 << 40) + 2": "a: record 2 is not as it was written",
    "UPDATE record SET at = at + 10 WHERE at = (1 << 40) + 2": "a: record 2 is missing",
    "DELETE FROM record WHERE at = (1 << 40) + 2": "a: record 2 is missing",
    "UPDATE entry SET value = x'00' WHERE key = 'k'": "k: revision 1 is not as it was written",
    "UPDATE entry SET revision = 9 WHERE key = 'k'": "k: revision 9 is not as it was written",
}


def altered(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def put_back(store: SqliteStore, body: bytes) -> str:
    coming = store.incoming()
    try:
        for at in range(0, len(body), 4096):
            coming.write(body[at : at + 4096])
        return coming.commit()
    finally:
        coming.abandon()


def body_of(copy: Copy) -> bytes:
    with closing(copy):
        return b"".join(copy.read_at(at, 65536) for at in range(0, copy.size, 65536))


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_not_as_it_was_written_is_named_and_not_given_out(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        await store.append_batch("a", [b"1", b"2", b"3"])
        await store.put("k", b"v")
        assert await store.integrity() == []
    altered(path, damage)
    async with open_sqlite(path) as store:
        for ways in (follow, look):
            with pytest.raises(StoreFailed, match=DAMAGE[damage]):
                await ways(store)
        assert await store.integrity() != []
        assert await store.read("a", 3) == Record(3, b"3")


async def follow(store: Store) -> None:
    await store.first_after("a", 1)
    async with await store.watch(after=0) as watch:
        await watch.next()


async def look(store: Store) -> None:
    await store.read("a", 2)
    await store.get("k")


async def test_a_copy_is_taken_while_others_write_and_has_one_moment_of_it(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        await store.put("k", bytes(500_000))
        await store.put("count", b"0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_up, store)
            await store.first_after("a", 0)
            bodies = [body_of(await store.copy()) for _ in range(3)]
            nursery.cancel_scope.cancel()
        last = await store.last("a")
    assert not [name for name in os.listdir(tmp_path) if "copy-" in name]
    seen = []
    for number, body in enumerate(bodies):
        (tmp_path / f"{number}.db").write_bytes(body)
        async with open_sqlite(tmp_path / f"{number}.db") as copied:
            assert await copied.integrity() == []
            seen.append(await copied.last("a"))
            # One task wrote a record and then its number, so at any moment they are at most one apart.
            assert seen[-1] - int((await copied.get("count")).value) in (0, 1)
    assert 0 < seen[0] <= seen[1] <= seen[2] <= last


async def count_up(store: Store) -> None:
    while True:
        seq = await store.append("a", b"x" * 100)
        await store.put("count", b"%d" % seq)


async def test_a_restored_copy_is_a_new_generation_and_what_was_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        await store.append("a", b"early")
        body = body_of(await store.copy())
    for generation in (1, 2, 3):  # the same copy twice is two restores
        async with open_sqlite(path) as store:
            assert store.generation == generation
            assert await store.append("a", b"%d" % generation) == 2
            assert "the next start" in put_back(store, body)
            assert await store.last("a") == 2
    async with open_sqlite(path) as store:
        assert (store.generation, await store.last("a")) == (4, 1)
        assert await store.integrity() == []
    async with open_sqlite(tmp_path / "s.db.before") as store:
        assert store.generation == 3
        assert (await store.read("a", 2)).data == b"3"
    async with open_sqlite(path) as store:
        assert store.generation == 4


async def test_a_copy_that_is_none_or_damaged_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        await store.append("a", b"1")
        whole = body_of(await store.copy())
        (tmp_path / "bad.db").write_bytes(whole)
        altered(tmp_path / "bad.db", "UPDATE record SET data = x'00'")
        (tmp_path / "late.db").write_bytes(whole)
        altered(tmp_path / "late.db", "PRAGMA user_version=99")
        altered(tmp_path / "theirs.db", "CREATE TABLE theirs (x)")
        for name, why in (
            ("bad.db", "damaged: a: record 1 is not as it was written"),
            ("late.db", "is of version 99"),
            ("theirs.db", "no copy of a store"),
        ):
            with pytest.raises(StoreFailed, match=why):
                put_back(store, (tmp_path / name).read_bytes())
        for body in (b"", b"nothing of the kind" * 1000, whole[: len(whole) // 2]):
            with pytest.raises(StoreFailed):
                put_back(store, body)
    assert not [name for name in os.listdir(tmp_path) if "restore" in name]


async def test_a_restore_that_was_interrupted_goes_on_at_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        await store.append("a", b"early")
        put_back(store, body_of(await store.copy()))
        await store.append("a", b"late")
    os.rename(path, tmp_path / "s.db.before")  # as far as a process came that was killed then
    async with open_sqlite(path) as store:
        assert (store.generation, await store.last("a")) == (2, 1)
    async with open_sqlite(tmp_path / "s.db.before") as store:
        assert await store.last("a") == 2
