"""What the SQLite store promises beyond the interface: durability, one owner, one commit for many, bounds."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio
from warren.check.store import check_store, check_store_model
from warren.store import Conflict, Limits, NotFound, Record, Store, StoreFailed, StoreFull, Trimmed
from warren.store.sqlite import engine, file, open_sqlite

# Appends to two topics and puts, from many tasks, and says each answer once it has it.
WRITES = """
import sys, trio
from warren.store.sqlite import open_sqlite

async def write(store, name):
    for turn in range(100_000):
        seq = await store.append(f"log/{name % 2}", b"%d.%d" % (name, turn))
        print("append", name % 2, seq, f"{name}.{turn}")
        await store.put(f"k/{name}", b"%d" % turn)
        print("put", name, turn, flush=True)

async def main():
    async with open_sqlite(sys.argv[1]) as store, trio.open_nursery() as nursery:
        for name in range(8):
            nursery.start_soon(write, store, name)

trio.run(main)
"""

# Writes until the system refuses to let a file grow, which is no lack of room; says what was answered.
STOPPED = """
import resource, sys, trio
from warren.store import StoreFailed
from warren.store.sqlite import open_sqlite

async def main():
    async with open_sqlite(sys.argv[1]) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        waiting = await store.watch()
        last = 0
        try:
            while True:
                last = await store.append("a", b"x" * 1000)
        except StoreFailed as e:
            print(last)
            print(e)
        for call in (store.get("k"), store.append("a", b""), waiting.next()):
            try:
                await call
            except StoreFailed as e:
                print("open the store again" in str(e))

trio.run(main)
"""


async def test_it_keeps_every_promise(tmp_path: Path) -> None:
    await check_store(lambda: open_sqlite(tmp_path / "s.db"), durable=True)


async def test_small_limits_are_kept_too(tmp_path: Path) -> None:
    limits = Limits(record=4096, batch=3, batch_bytes=9000)
    await check_store(lambda: open_sqlite(tmp_path / "s.db", limits=limits), durable=True)


def test_it_does_what_the_model_does(tmp_path: Path) -> None:
    check_store_model(lambda: open_sqlite(tmp_path / "s.db"), durable=True, examples=60)


def test_few_remembered_deletions_are_only_forgetful(tmp_path: Path) -> None:
    check_store_model(lambda: open_sqlite(tmp_path / "s.db", tombstones=2), durable=True, examples=60)


def test_nothing_answered_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    appended: dict[tuple[str, int], bytes] = {}
    for _ in range(3):
        put: dict[str, int] = {}
        with subprocess.Popen(
            [sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for number, line in enumerate(child.stdout):
                if number == 400:
                    child.kill()
                match line.split() if line.endswith("\n") else ():
                    case ["append", topic, seq, data]:
                        appended[f"log/{topic}", int(seq)] = data.encode()
                    case ["put", name, turn]:
                        put[name] = int(turn)
        trio.run(all_there, path, appended, put)
    assert len(appended) > 500


async def all_there(path: Path, appended: dict[tuple[str, int], bytes], put: dict[str, int]) -> None:
    async with open_sqlite(path) as store:
        for (topic, seq), wanted in appended.items():
            assert await store.read(topic, seq) == Record(seq, wanted)
        for name, turn in put.items():
            assert int((await store.get(f"k/{name}")).value) >= turn


async def test_a_file_has_one_owner_and_a_second_hears_who(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        with pytest.raises(StoreFailed, match=f"process {os.getpid()} has it open"):
            async with open_sqlite(path):
                pass
        await store.put("k", b"still mine")
    async with open_sqlite(path) as store:
        assert (await store.get("k")).value == b"still mine"


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.touch(0o644)
    async with open_sqlite(path) as store:
        await store.put("k", b"")
        found = {name: stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in os.listdir(tmp_path)}
    assert set(found) >= {"s.db", "s.db-wal", "s.db.lock"}
    assert set(found.values()) == {0o600}


async def test_many_writers_share_a_commit(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        async with trio.open_nursery() as nursery:
            for turn in range(500):
                nursery.start_soon(store.append, f"t/{turn % 7}", b"x" * 100)
                nursery.start_soon(store.put, f"k/{turn}", b"y")
        done = store.statistics()
        assert (done.appended, done.put, done.queued) == (500, 500, 0)
        assert done.commits < 20
        for _ in range(3):
            await store.append("t/alone", b"")
        assert store.statistics().commits == done.commits + 3


async def test_a_refused_write_harms_nobody_else_of_its_group(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        won: list[int] = []

        async def claim(number: int) -> None:
            try:
                await store.put("one", b"%d" % number, expect=0)
            except Conflict:
                return
            won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(claim, number)
                nursery.start_soon(store.append, "log", b"%d" % number)
        assert len(won) == 1
        assert (await store.get("one")).value == b"%d" % won[0]
        assert await store.last("log") == 100


async def test_a_full_file_refuses_and_keeps_what_there_is(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db", capacity=1 << 20) as store:
        await store.put("k", b"kept")
        with pytest.raises(StoreFull, match="make room"):
            await append_for_ever(store)
        last = await store.last("a")
        assert 5 < last < 25
        async with trio.open_nursery() as nursery:  # one of the group does not fit, the others do
            nursery.start_soon(refused, store.append("a", b"x" * (1 << 20)))
            nursery.start_soon(store.put, "k", b"less")
            nursery.start_soon(store.trim, "a", 0)
        assert (await store.get("k")).value == b"less"
        assert await store.append("a", b"x" * 50_000) == last + 1


async def append_for_ever(store: Store) -> None:
    while True:
        await store.append("a", b"x" * 50_000)


async def refused(call: object) -> None:
    with pytest.raises(StoreFull):
        await call  # type: ignore[misc]


def test_what_the_system_refuses_fails_the_store_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    last, said, *rest = done.stdout.splitlines()
    assert "s.db: disk I/O error" in said
    assert rest == ["True"] * 3

    async def go_on() -> None:
        async with open_sqlite(path) as store:
            assert await store.last("a") == int(last) > 20
            assert await store.append("a", b"and on") == int(last) + 1

    trio.run(go_on)


async def test_a_stranger_who_holds_the_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.put, "k", b"v")
                await trio.testing.wait_all_tasks_blocked()
                assert store.statistics().queued == 1
                with pytest.raises(NotFound):
                    await store.get("k")
                other.execute("ROLLBACK")
        assert (await store.get("k")).value == b"v"


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is no database, whatever its name says " * 100)
    with pytest.raises(StoreFailed, match=r"s\.db: the file is damaged: .*; restore it from a copy"):
        async with open_sqlite(path):
            pass
    path.unlink()
    async with open_sqlite(path) as store:
        for _ in range(50):
            await store.append("a", b"x" * 3000)
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(StoreFailed, match=r"s\.db: the file is damaged"):
        await read_all(path)


async def read_all(path: Path) -> None:
    async with open_sqlite(path) as store:
        for seq in range(1, 51):
            await store.read("a", seq)


async def test_the_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreFailed, match="something else"):
        async with open_sqlite(path):
            pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


async def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="No such file or directory; see that its directory is there"):
        async with open_sqlite(tmp_path / "not there" / "s.db"):
            pass


async def test_an_older_file_is_brought_forward_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        await store.append("a", b"old")
    known = len(file.STEPS)
    newer = (*file.STEPS, "CREATE TABLE more (x); INSERT INTO more VALUES (7)")
    broken = (*newer, "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1)")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            file.migrate(path, db, broken)
        assert db.execute("SELECT x FROM more").fetchall() == [(7,)]
        assert not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'half'").fetchall()
        assert db.execute("PRAGMA user_version").fetchone() == (known + 1,)
        file.migrate(path, db, newer)
        assert db.execute("SELECT data FROM record").fetchall() == [(b"old",)]
    before = path.read_bytes()
    said = rf"s\.db: its schema is version {known + 1}, and {known} is the newest known here"
    with pytest.raises(StoreFailed, match=said):
        async with open_sqlite(path):
            pass
    assert path.read_bytes() == before


async def test_a_large_trim_is_done_at_once(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        for _ in range(10):
            await store.append_batch("a", [b"x" * 100] * 1000)
        assert await store.trim("a", 3) == 9997
        assert store.statistics().trimmed == 9997
        with pytest.raises(Trimmed):
            await store.read("a", 9997)
        assert await store.first_after("a", 0) == Record(9998, b"x" * 100)


def test_the_room_of_a_large_trim_comes_back_in_steps_also_after_a_reopening(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    opened = engine.open_file(path, 1 << 30)
    opened.engine.begin()
    opened.engine.append("a", [b"x"] * 5000, None)
    assert opened.engine.trim("a", 1, None) == (4999, 4999)
    opened.engine.commit()
    left = []
    for _ in range(2):
        assert opened.engine.unswept == {"a"}
        left += opened.engine.db.execute("SELECT count(*) FROM record").fetchone()
        opened.reader.close()
        opened.engine.close()
        opened = engine.open_file(path, 1 << 30)
        opened.engine.begin()
        opened.engine.sweep("a")
        opened.engine.commit()
    assert not opened.engine.unswept
    left += opened.engine.db.execute("SELECT count(*) FROM record").fetchone()
    assert left == [3000, 1000, 1]
    opened.reader.close()
    opened.engine.close()


async def test_a_watch_that_missed_forgotten_deletions_hears_so(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path, tombstones=2) as store:
        for key in ("a/1", "a/2", "b/1", "a/3"):
            await store.put(key, b"")
        late, beside = await store.watch("a", after=1), await store.watch("b")
        gone = [await store.delete(key) for key in ("a/1", "a/2", "a/3")]
        for _ in range(2):
            with pytest.raises(Trimmed) as caught:
                late.next_nowait()
            assert caught.value.through == gone[0]
        with pytest.raises(trio.WouldBlock):
            beside.next_nowait()
    async with open_sqlite(path, tombstones=2) as store:
        with pytest.raises(Trimmed):
            await store.watch("b", after=1)
        async with await store.watch("a", after=gone[0]) as watch:
            assert [watch.next_nowait().revision for _ in range(2)] == gone[1:]


async def test_a_cancelled_write_is_over_when_its_caller_goes_on(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        for turn in range(200):
            with trio.CancelScope() as scope:
                trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
                await store.put("k", b"%d" % turn)
            at_once = await value_of(store)
            await store.put("another", b"")  # behind which nothing of before can come
            assert await value_of(store) == at_once


async def value_of(store: Store) -> bytes:
    try:
        return (await store.get("k")).value
    except NotFound:
        return b""


async def test_writes_that_wait_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                for _ in range(64):
                    nursery.start_soon(store.append, "a", bytes(1 << 20))
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(StoreFull, match="64 writes wait"):
                    await store.append("a", b"one more")
                other.execute("ROLLBACK")
        assert await store.last("a") == 64


async def test_a_defect_in_one_write_fails_the_store_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        await store.put("k", b"kept")
        with pytest.raises(StoreFailed, match="a defect: ZeroDivisionError"):
            await store._write(lambda engine: engine.put("k", b"half", None) // 0, lambda _: None)
        with pytest.raises(StoreFailed, match="open the store again"):
            await store.get("k")
    async with open_sqlite(tmp_path / "s.db") as store:
        assert (await store.get("k")).value == b"kept"


async def test_the_journal_is_on_the_disk_before_an_answer(tmp_path: Path) -> None:
    opened = engine.open_file(tmp_path / "s.db", 1 << 30)
    try:
        db = opened.engine.db
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: each commit waits for the disk
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        opened.reader.close()
        opened.engine.close()


async def test_a_copy_taken_while_it_was_closed_is_the_store(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        await store.append("a", b"1")
    assert not (tmp_path / "s.db-wal").exists()
    shutil.copy(tmp_path / "s.db", tmp_path / "copy.db")
    async with open_sqlite(tmp_path / "copy.db") as store:
        assert await store.append("a", b"2") == 2


async def test_a_file_of_the_first_version_gets_its_sums_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        file.migrate(path, db, file.STEPS[:1])
        db.execute("INSERT INTO topic VALUES (1, 'a', 0, 1, 0)")
        db.execute("INSERT INTO record VALUES (?, ?)", ((1 << 40) + 1, b"old"))
        db.execute("INSERT INTO entry VALUES ('k', 1, ?), ('gone', 2, NULL)", (b"v",))
        db.execute("UPDATE meta SET value = 2 WHERE name = 'revision'")
    async with open_sqlite(path) as store:
        assert await store.read("a", 1) == Record(1, b"old")
        assert (await store.get("k")).value == b"v"
        assert await store.integrity() == []
        assert store.generation == 1


async def test_the_last_room_is_for_what_is_small_and_for_what_frees(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db", capacity=1 << 20) as store:
        with pytest.raises(StoreFull):
            await append_for_ever(store)
        last = await store.last("a")
        for turn in range(8):  # more than fits into what the large ones left
            await store.append("acks", b"%d" % turn + bytes(4000))
        with pytest.raises(StoreFull, match="small writes only"):
            await store.append("a", bytes(50_000))
        assert not (tmp_path / "s.db.reserve").exists()
        await store.trim("a", 1)
        assert await store.append("a", bytes(50_000)) == last + 1
        assert (tmp_path / "s.db.reserve").exists()
        assert await store.integrity() == []


async def test_a_file_is_made_as_small_as_what_is_in_it(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        for _ in range(40):
            await store.append("a", bytes(50_000))
        await store.trim("a", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.append, "b", b"beside it")
            said = await store.compact()
        before, now = (int(word) for word in said.split() if word.isdigit())
        assert now < 200_000 < before
        assert await store.first_after("a", 0) == Record(40, bytes(50_000))
        assert await store.append("b", b"") == 2
