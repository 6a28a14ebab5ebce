"""The power may go at any moment: nothing that was answered is lost, and what is found is whole."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from warren.store import NotFound, Record, Trimmed
from warren.store.sqlite.copies import problems
from warren.store.sqlite.engine import open_file

from tests.store.power import Moment, moments, recorded, remainders

# Everything that writes, small and large, one at a time and many at once; each answer is said when it is had.
WRITES = """
import sys, trio
from warren.store.sqlite import open_sqlite

def say(*words):
    print(*words, flush=True)

async def append(store, topic, data):
    say("append", topic, await store.append(topic, data.encode()), data)

async def put(store, key, value):
    say("put", key, await store.put(key, value.encode()), value)

async def main():
    async with open_sqlite(sys.argv[1] + "/s.db") as store:
        for turn in range(4):
            await append(store, "a", f"one{turn}")
            await put(store, "k", f"value{turn}")
        async with trio.open_nursery() as nursery:
            for turn in range(12):
                nursery.start_soon(append, store, "b", f"many{turn}")
                nursery.start_soon(put, store, f"k/{turn}", f"many{turn}")
        await append(store, "large", "x" * 300_000)
        say("trim", "b", await store.trim("b", 4))
        say("delete", "k/3", await store.delete("k/3"))
        await store.compact()
        await append(store, "a", "after")
    async with open_sqlite(sys.argv[1] + "/s.db") as store:
        await append(store, "a", "again")
        say("delete", "k", await store.delete("k"))

trio.run(main)
"""


# A copy is taken and written back, and the next opening takes it.
RESTORES = """
import sys, trio
from warren.store.sqlite import open_sqlite

async def main():
    async with open_sqlite(sys.argv[1] + "/s.db") as store:
        print("append", await store.append("a", b"early"), flush=True)
        copy = await store.copy()
        print("append", await store.append("a", b"late"), flush=True)
        coming = store.incoming()
        coming.write(copy.read_at(0, copy.size))
        coming.commit()
        print("aside", flush=True)
    async with open_sqlite(sys.argv[1] + "/s.db") as store:
        print("restored", store.generation, await store.last("a"), flush=True)
        print("append", await store.append("a", b"new"), flush=True)

trio.run(main)
"""


def test_nothing_answered_is_lost_in_a_power_cut(tmp_path: Path) -> None:
    assert replayed(tmp_path, WRITES, holds, all_to=12, samples=15, seed=1) > 900


def test_a_restore_in_a_power_cut_is_done_or_to_be_done_and_never_half(tmp_path: Path) -> None:
    assert replayed(tmp_path, RESTORES, restored_or_not, all_to=7, samples=25, seed=1) > 300


def replayed(
    folder: Path,
    program: str,
    holds: Callable[[Path, Moment], None],
    *,
    all_to: int,
    samples: int,
    seed: int,
) -> int:
    """How many remainders of how many moments were opened and found to hold what was answered."""
    dice, count = random.Random(seed), 0
    found = list(moments(recorded(program, folder)))
    assert len(found) > 10
    assert len(found[-1].said) == (38 if program is WRITES else 5)
    for number, moment in enumerate(found):
        for files in remainders(moment, all_to, samples, dice):
            there = folder / "state"
            there.mkdir()
            for name, body in files.items():
                (there / name).write_bytes(body)
            try:
                holds(there / "s.db", moment)
            except BaseException as e:
                e.add_note(f"moment {number} of {len(found)}, remainder {count}, seed {seed}")
                raise
            shutil.rmtree(there)
            count += 1
    return count


def restored_or_not(path: Path, moment: Moment) -> None:
    """What is there is the store before the restore with all of it, or the copy under a new generation."""
    aside, said = path.with_name("s.db.restore").exists(), " ".join(moment.said)
    opened = open_file(path, 1 << 30)
    try:
        last = opened.reader.last("a")
        if opened.generation == 1:
            assert not aside
            assert "aside" not in said
            assert last >= said.count("append")
            wanted = [b"early", b"late"]
        else:
            assert opened.generation == 2 or (opened.generation == 3 and "restored" not in said)
            assert last >= 1 + ("append 2" in said.partition("restored")[2])
            wanted = [b"early", b"new"]
        assert [opened.reader.record("a", seq).data for seq in range(1, last + 1)] == wanted[:last]
        assert problems(path) == []
    finally:
        opened.reader.close()
        opened.engine.close()


def holds(path: Path, moment: Moment) -> None:
    """The store opens, is whole, and has all that was answered."""
    opened = open_file(path, 1 << 30)
    reader = opened.reader
    try:
        floors: dict[str, int] = {}
        values: dict[str, tuple[int, str | None]] = {}
        appended = [line.split() for line in moment.said if line.startswith("append")]
        for kind, name, number, *rest in map(str.split, moment.said):
            if kind == "trim":
                floors[name] = int(number)
            elif kind in ("put", "delete"):
                values[name] = max(values.get(name, (0, None)), (int(number), rest[0] if rest else None))
        for _, topic, number, data in appended:
            seq = int(number)
            assert reader.last(topic) >= seq
            try:
                assert reader.record(topic, seq) == Record(seq, data.encode())
            except Trimmed:
                assert topic == "b", "only this one is trimmed"
        for topic, floor in floors.items():
            with pytest.raises(Trimmed):
                reader.record(topic, floor)
        for key, (revision, value) in values.items():
            try:
                entry = reader.entry(key)
                assert entry.revision > revision or entry.value.decode() == value
            except NotFound:
                assert value is None or opened.revision > revision
        assert problems(path) == []
    finally:
        reader.close()
        opened.engine.close()


def test_a_loss_would_be_seen(tmp_path: Path) -> None:
    """A process that says what it has not synced is caught: else the test above proves nothing."""
    careless = WRITES.replace(
        "async def main():",
        "from warren.store.sqlite import engine\n"
        "whole = engine.configure\n"
        "def careless(path, db):\n"
        "    whole(path, db)\n"
        "    db.execute('PRAGMA synchronous=NORMAL')\n"
        "engine.configure = careless\n\n"
        "async def main():",
    )
    lost = 0
    for number, moment in enumerate(moments(recorded(careless, tmp_path))):
        for files in remainders(moment, 0, 0, random.Random(0)):
            there = tmp_path / f"state{number}"
            shutil.rmtree(there, ignore_errors=True)
            os.mkdir(there)
            for name, body in files.items():
                (there / name).write_bytes(body)
            try:
                holds(there / "s.db", moment)
            except (AssertionError, NotFound):
                lost += 1
    assert lost
