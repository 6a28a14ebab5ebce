"""Moving a queue: drain, restore, the log, snapshots, and a new owner of the same store."""

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.servers.task import Limits
from warren.servers.task.moving import given, replay
from warren.servers.task.records import Done, Resume
from warren.servers.task.records import Lease as LeaseOf
from warren.servers.task.state import State
from warren.store import MemoryStore
from warren.store.sqlite import open_sqlite
from warren.tree import Refused

from tests.servers.tasking import STREAM, Desk, Got, Q, desk, some_tasks, unsaid


async def busy(d: Desk) -> None:
    """A queue with something of everything."""
    await d.ctl("set attempts=2 backoff=1m high=4 low=1")
    for n in range(9):
        await d.enq(b"body\n\n%d" % n, f"effect=e{n} prio={n % 3} " + ("key=k" if n % 2 else ""))
    await d.ctl(f"done {(await d.lease()).fence} it is '''done'''")
    await d.ctl(f"fail {(await d.lease()).fence} no luck")
    dead = await d.lease()
    await d.ctl(f"fail {dead.fence} never retry=no")
    await d.lease()
    await d.enq(b"later", "delay=1h")


async def drained(d: Desk) -> bytes:
    return await d.files.read(d.path("drain"))


async def restored(d: Desk, data: bytes, name: str = "r") -> Desk:
    await d.files.mkdir(f"/task/{name}")
    r = Desk(d.files, d.export, f"/task/{name}")
    await r.said("restore", data)
    return r


# Drain and restore


async def test_drain_and_restore_are_a_round_trip(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await busy(d)
        was = await d.tasks()
        data = await drained(d)
        r = await restored(d, data)
        for task in was:  # a lease does not move; all else does
            if task["state"] == "leased":
                task["state"] = "ready"
                del task["until"]
                task["why"] = "the queue was drained"
        assert await r.tasks() == was
        assert (await r.enq(b"body\n\n2", "effect=e2"))["result"] == "it is 'done'"
        assert (await r.stats())["pressure"] == "high"
        assert await r.files.read(r.path("settings")) == await d.files.read(d.path("settings"))
        assert unsaid(await drained(r)) == unsaid(data)


async def test_what_is_restored_is_handed_out_in_the_same_order(autojump_clock: MockClock) -> None:
    async with desk() as d:
        for n in range(20):
            await d.enq(b"%d" % n, f"prio={n % 3}")
        first = await d.lease()
        r = await restored(d, await drained(d))
        order = sorted(range(20), key=lambda n: (-(n % 3), n))
        again = await r.lease()
        assert (again.body, again.attempt) == (first.body, "2")
        assert await r.bodies() == [b"%d" % n for n in order[1:]]


async def test_a_drained_queue_takes_nothing_and_its_fences_are_stale(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        got = await d.lease()
        data = await drained(d)
        for verb in ("hb", "done", "fail"):
            with pytest.raises(OSError, match=r"409 stale_fence: .*the queue was drained"):
                await d.ctl(f"{verb} {got.fence}")
        with pytest.raises(OSError, match="409 drained: the queue was drained; restore it elsewhere"):
            await d.enq(b"more")
        assert await d.raw("wait=1s") == b""
        assert (await d.stats())["state"] == "drained"
        assert await drained(d) == data  # whoever lost it may have it again
        await d.files.remove(Q)


async def test_a_drained_queue_can_be_resumed_and_its_workers_go_on(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        old = await d.lease()
        await drained(d)
        got: list[Got] = []

        async def work() -> None:
            got.append(await d.lease("wait=1h"))

        async with d.by("bob") as bob, trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await wait_all_tasks_blocked()
            assert not got
            said = await bob.ctl("resume")
        assert got[0].fence.startswith(f"{said['generation']}.1.2.")
        with pytest.raises(OSError, match="the queue is in generation"):
            await d.ctl(f"done {old.fence}")


async def test_the_generation_rises_wherever_the_queue_goes(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        seen = []
        for n in range(3):
            for _ in range(3):
                await drained(d)
                await d.ctl("resume")
            seen.append(int((await d.lease()).fence.split(".")[0]))
            d = await restored(d, await drained(d), f"r{n}")
        await drained(d)
        await d.files.remove(d.queue)
        await d.files.mkdir(d.queue)
        await d.enq(b"job")
        seen.append(int((await d.lease()).fence.split(".")[0]))
        assert seen == sorted(set(seen))


async def test_what_was_drained_can_go_back_where_it_came_from(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job", "effect=e")
        data = await drained(d)
        await d.said("restore", data)
        assert (await d.lease()).body == b"job"


async def test_a_restore_never_takes_the_place_of_tasks_or_effects(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        r = await restored(d, await drained(d))
        with pytest.raises(OSError, match=r"1 tasks are here; restore into an empty queue"):
            await r.said("restore", await drained(d))
        await d.files.mkdir("/task/s")
        s = Desk(d.files, d.export, "/task/s")
        await s.enq(b"another")
        await drained(s)
        with pytest.raises(OSError, match="what is left in it is not what you restore"):
            await s.said("restore", await drained(d))
        await d.files.mkdir("/task/t")
        t = Desk(d.files, d.export, "/task/t")
        await t.enq(b"x", "effect=paid")
        await t.ctl(f"done {(await t.lease()).fence}")
        with pytest.raises(OSError, match="it remembers effects that are not in what you restore"):
            await t.said("restore", await drained(d))
        assert (await t.enq(b"x", "effect=paid"))["state"] == "done"


async def test_a_restore_without_its_first_line_and_of_many_writes_is_committed_by_fsync(
    autojump_clock: MockClock,
) -> None:
    async with desk() as d:
        for n in range(50):
            await d.enq(b"%d" % n * 4000)
        data = (await drained(d)).partition(b"\n")[2]
        await d.files.mkdir("/task/r")
        async with await d.files.open("/task/r/restore", os.O_RDWR) as file:
            for at in range(0, len(data), 5000):
                await file.write(data[at : at + 5000])
            await file.fsync()
        assert (await Desk(d.files, d.export, "/task/r").stats())["depth"] == "50"


async def test_what_was_spoiled_is_refused_whole(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await busy(d)
        data = await drained(d)
        await d.files.mkdir("/task/r")
        r = Desk(d.files, d.export, "/task/r")
        head, _, rest = data.partition(b"\n")
        records = rest.split(b"\nseq=")
        bad = {
            "SHA-256 is another": data.replace(b"no luck", b"No luck"),
            "100 bytes of the declared length are missing": head + b"\n" + rest[:-100],
            "the snapshot ends before its last part": b"\nseq=".join(records[:-1]) + b"\n",
            "record 3 is missing; 4 follows": b"\nseq=".join(records[:2] + records[3:]),
            "neither the beginning nor a snapshot": b"seq=" + b"\nseq=".join(records[1:]),
            "nothing to restore": b"drained queue=q bytes=0 sha256=" + b"e3b0c44298fc1c149afbf4c8996fb924"
            b"27ae41e4649b934ca495991b7852b855\n",
            "no record begins": b"\0" * 40_000,
            "does not say bytes=": b"drained by=me\n",
        }
        for says, what in bad.items():
            with pytest.raises(OSError, match=says):
                await give(r, what)
        assert (await r.stats())["enqueued"] == "0"
        assert await r.tasks() == []


async def give(d: Desk, data: bytes) -> None:
    """Write in pieces, and commit."""
    async with await d.files.open(d.path("restore"), os.O_RDWR) as file:
        for at in range(0, len(data), 8000):
            await file.write(data[at : at + 8000])
        await file.fsync()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"parts=11", b"parts=-1"),
        (b"kind=item task=2 ", b"kind=item task=1 "),
        (b"kind=item task=2 ", b"kind=item task=99 "),
        (b"kind=item task=2 ", b"kind=item task=0 "),
        (b"kind=item", b"kind=shell"),
        (b"state=ready", b"state=wild"),
        (b"state=ready when=0.0", b"state=ready when=nan"),
        (b"prio=1", b"prio=77"),
        (b"effect=e1 ", b"effect=e4 "),
        (b"count=10000", b"count=9999999"),
        (b"count=10000", b"count=2"),
        (b"attempts=2", b"attempts=0"),
        (b"lease=30.0", b"lease=1e300"),
        (b"next=11", b"next=3"),
        (b"len=7", b"len=8"),
        (b"len=7", b"len=-7"),
        (b"kind=item", b"kind=item extra=1"),
        (b"by=ann", b"by='a\x07b'"),
        (b"effect=e1 ", b"effect=" + b"x" * 300 + b" "),
        (b"seq=3", b"seq=" + b"9" * 5000),
    ],
)
async def test_a_forged_restore_is_refused_whole(old: bytes, new: bytes, autojump_clock: MockClock) -> None:
    async with desk() as d:
        await busy(d)
        good = (await drained(d)).partition(b"\n")[2]
        assert old in good
        r = await restored(d, good)
        await d.files.mkdir("/task/s")
        s = Desk(d.files, d.export, "/task/s")
        assert await r.tasks()
        with pytest.raises(OSError, match=r"\] (400|413|422) "):
            await give(s, good.replace(old, new, 1))
        assert (await s.stats())["depth"] == "0"


LOG = b"""seq=1 ts=1.0 kind=snapshot lease=30.0 attempts=2 backoff=60.0 high=4 low=1 count=10000 \
bytes=16777216 keep=604800.0 parts=4 generation=1 next=11 drained=0 pressed=0 enqueued=2 leased=2 done=0 \
failed=0 expired=0 returned=0 died=0 requeued=0
seq=2 kind=item task=1 sent=1.0 prio=0 key=k effect=e most=0 by=ann state=leased when=9.0 attempt=1 tries=0 \
mark=ab worker=ann why='' len=1

x
seq=3 kind=item task=2 sent=1.0 prio=0 key=k effect='' most=0 by=ann state=leased when=9.0 attempt=1 tries=0 \
mark=ab worker=ann why='' len=1

y
seq=4 kind=effect effect=paid task=3 result=ok until=99.0
seq=5 kind=finish task=3 at=1.0 attempt=1 mark=cd by=ann effect=paid result=ok
seq=6 ts=2.0 kind=hb task=1 until=12.0
seq=7 ts=3.0 kind=enq task=11 prio=1 key=k effect=f most=1 after=5.0 by=bob len=2

zz
seq=8 ts=3.5 kind=back task=1 after=3.0 counted=1 bury=0 why=no
seq=9 ts=3.7 kind=lease task=11 attempt=1 mark=ef by=ann until=40.0
seq=10 ts=4.0 kind=done task=11 effect=f result=r
"""


@settings(max_examples=500, deadline=None)
@examples(st.data())
def test_whatever_is_restored_holds_together_or_is_refused(data: st.DataObject) -> None:
    """Two tasks of one key are leased in here, which no queue of ours would write; and then it is spoiled."""
    assert len(replay(LOG).settled().tasks) == 2
    spoiled = LOG
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(spoiled) - 1))
        size = data.draw(st.integers(0, 4))
        spoiled = spoiled[:at] + data.draw(st.binary(max_size=4)) + spoiled[at + size :]
    try:
        state = replay(spoiled).settled()
    except Refused as e:
        if e.code != 422:
            raise
        return
    assert State.load(state.dump()).dump() == state.dump()
    while (task := state.first()) is not None:
        number, t = task.number, state.t
        state.apply(LeaseOf(t, number, task.attempt + 1, "m", "ann", t + 1.0))
        state.apply(Done(t, number, task.effect, ""))
    state.advance(1e12)
    assert state.depth == state.number_of("ready")


# The log


async def test_the_log_rebuilds_the_queue(autojump_clock: MockClock) -> None:
    tasks = some_tasks()
    async with desk(tasks) as d:
        await busy(d)
        queue = tasks.kept["q"].queue
        records = await d.log(1, queue.journal.last)
        assert [int(r.split()[0].removeprefix(b"seq=")) for r in records] == list(range(1, len(records) + 1))
        copy = replay(b"".join(records))
        copy.advance(queue.state.t)
        assert copy.dump() == queue.state.dump()
        # And another queue takes it as it is.
        await d.files.mkdir("/task/r")
        r = Desk(d.files, d.export, "/task/r")
        await give(r, b"".join(records))
        assert [task["seq"] for task in await r.tasks()] == [task["seq"] for task in await d.tasks()]


async def test_every_beginning_of_the_log_is_a_queue(autojump_clock: MockClock) -> None:
    tasks = some_tasks()
    async with desk(tasks) as d:
        await busy(d)
        records = await d.log(1, tasks.kept["q"].queue.journal.last)
        for end in range(1, len(records) + 1):
            assert replay(b"".join(records[:end])).whole


async def test_the_log_goes_on_as_it_is_written(autojump_clock: MockClock) -> None:
    async with desk() as d:
        log = await d.files.open(d.path("log"), STREAM)
        await d.enq(b"one")
        assert b"kind=enq task=1" in (record := await log.record())
        assert record.endswith(b" len=3\n\none\n")
        await d.lease()
        assert b"kind=lease task=1 attempt=1" in await log.record()
        await log.close()
        async with await d.files.open(d.path("log"), os.O_RDWR) as file:
            with pytest.raises(OSError, match="416 bad_offset: the newest record is"):
                await file.write(b"from 99")


async def test_a_follower_that_lost_records_finds_a_snapshot(autojump_clock: MockClock) -> None:
    tasks = some_tasks(limits=Limits(every=50))
    async with desk(tasks) as d:
        for n in range(10):
            await d.enq(b"%d" % n)
        got = await d.lease()
        for _ in range(60):
            await d.ctl(f"hb {got.fence}")
        queue = tasks.kept["q"].queue
        assert queue.base > 1
        first, *records = await d.log(1, queue.journal.last - queue.base + 1)
        assert first == f"lost n={queue.base}\n".encode()
        assert b"kind=snapshot" in records[0]
        copy = replay(b"".join(records))
        copy.advance(queue.state.t)
        assert copy.dump() == queue.state.dump()


async def test_the_log_ends_with_the_queue(autojump_clock: MockClock) -> None:
    async with desk() as d:
        async with await d.files.open(d.path("log"), STREAM) as log:
            await d.files.remove(Q)
            assert await log.record() == b""


# Owners


async def test_another_process_goes_on_where_one_stopped(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store") as store:
        async with desk(some_tasks(store)) as d:
            await busy(d)
            was = await d.tasks()
        async with desk(some_tasks(store, seed=2)) as d:
            assert await d.tasks() == was
            assert (await d.enq(b"body\n\n2", "effect=e2"))["state"] == "done"
            assert (await d.stats())["enqueued"] == "10"


async def test_a_lease_outlives_the_process_that_gave_it(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with desk(some_tasks(store)) as d:
        await d.enq(b"job")
        got = await d.lease()
    async with desk(some_tasks(store, seed=2)) as d:
        assert not await d.raw("wait=0s")
        assert (await d.ctl(f"done {got.fence} ok"))["dup"] == "0"
        assert (await d.ctl(f"done {got.fence} ok"))["dup"] == "1"


async def test_a_lease_ends_though_the_process_that_gave_it_is_gone(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with desk(some_tasks(store)) as d:
        await d.enq(b"job")
        await d.lease("for=10s wait=0s")
        await trio.sleep(4)
    async with desk(some_tasks(store, seed=2)) as d:
        assert Got(await d.raw("wait=1m")).attempt == "2"
        assert trio.current_time() == 10


async def test_of_two_owners_one_is_refused_and_learns_what_the_other_did(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with desk(some_tasks(store)) as one, desk(some_tasks(store, seed=2)) as two:
        await one.enq(b"first")
        with pytest.raises(OSError, match="503 unavailable: another process wrote to this queue"):
            await two.enq(b"second")
        assert await two.enq(b"second") == {"seq": "2", "dup": "0"}
        # The older owner still thinks that the first task is the only one; its lease is refused too.
        with pytest.raises(OSError, match="503 unavailable"):
            await one.lease()
        assert [(await one.lease()).body, (await one.lease()).body] == [b"first", b"second"]


async def test_replay_is_as_long_as_what_happened_since_the_snapshot(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with desk(some_tasks(store, Limits(every=64))) as d:
        for _ in range(300):
            await d.enq(b"x")
            await d.ctl(f"done {(await d.lease()).fence}")
        assert float((await d.stats())["log"]) < 64 + 2 * 1024
        kept = await store.first_after("task/q", 0)
        assert kept.seq > 1
        was = await d.stats()
    async with desk(some_tasks(store)) as d:
        now = await d.stats()
        assert {k: v for k, v in now.items() if k != "log"} == {k: v for k, v in was.items() if k != "log"}


def missing(state: State) -> bool:
    return not state.whole


def test_a_snapshot_that_was_cut_off_is_as_if_it_had_never_been() -> None:
    whole = replay(
        b"seq=1 ts=1.0 kind=made generation=1\n"
        b"seq=2 ts=2.0 kind=enq task=1 prio=0 key=a effect=e most=0 after=0.0 by=ann len=1\n\nx\n"
        b"seq=3 ts=2.0 kind=enq task=2 prio=5 key='' effect='' most=0 after=9.0 by=ann len=0\n\n\n"
    )
    before = whole.dump()
    for count in range(1, len(before)):
        state = State.load(before)
        for record in State.load(before).dump()[:count]:
            state.apply(record)
        assert missing(state)
        assert State.load(before).dump() == before
        state.apply(Resume(3.0, 10))
        assert not missing(state)
        assert [task.item() for task in state.tasks.values()] == [t.item() for t in whole.tasks.values()]
    assert b"".join(given("q", whole)).count(b"kind=item") == 2
