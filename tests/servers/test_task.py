"""/task: queues, leases, fences, effects."""

import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import cycle

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.check.tree import check_tree
from warren.mount import Files
from warren.servers.ram import Ram
from warren.servers.task import Limits
from warren.store import MemoryStore
from warren.tree import Dir

from tests.servers.clock import BEGAN
from tests.servers.reach import reached
from tests.servers.tasking import STREAM, Desk, Got, Q, desk, some_tasks
from tests.wire import export_of

# The tree


async def test_it_is_a_tree(autojump_clock: MockClock) -> None:
    tasks = some_tasks()
    async with desk(tasks) as d:
        for n in range(3):
            await d.enq(b"body %d" % n, f"effect=e{n} prio=3")
        await d.ctl(f"done {(await d.lease()).fence} ok")
    events, log, pressure = d.path("events"), d.path("log"), d.path("pressure")
    marks = cycle([b"set high=1 low=0", b"set high=1000 low=999"])

    async def change(files: Files) -> None:
        await files.write(d.path("ctl"), b"set lease=31s")

    async def cross(files: Files) -> None:
        await files.write(d.path("ctl"), next(marks))

    # Names are made here, though none of files; the suite makes its own beside.
    await check_tree(
        lambda: nullcontext(Dir({"task": tasks, "ram": Ram()})),
        writable="/ram",
        feeds={
            events: change,
            log: change,
            pressure: cross,
        },
    )


async def test_a_queue_is_a_directory(autojump_clock: MockClock) -> None:
    async with desk() as d:
        names = {entry.name for entry in await d.files.ls(Q)}
        assert {"enq", "enq.h", "lease", "ctl", "pressure", "log", "drain", "restore"} <= names
        await d.files.write("/task/ctl", b"create builds")
        assert "builds" in [entry.name for entry in await d.files.ls("/task")]
        with pytest.raises(OSError, match="409 conflict: there is a queue q"):
            await d.files.mkdir(Q)
        await d.files.write("/task/ctl", b"remove builds")
        await d.enq()
        with pytest.raises(OSError, match="1 tasks are here; drain the queue, or let them be done"):
            await d.files.remove(Q)
        await d.ctl(f"done {(await d.lease()).fence}")
        await d.files.remove(Q)
        assert [entry.name for entry in await d.files.ls("/task")] == ["ctl", "metrics", "stats"]


@pytest.mark.parametrize("name", ["ctl", "stats", ".x", "a b", "x" * 65, "ü"])
async def test_a_bad_name_makes_nothing(name: str, autojump_clock: MockClock) -> None:
    async with desk() as d:
        with pytest.raises(OSError):
            await d.files.mkdir(f"/task/{name}")
        assert {entry.name for entry in await d.files.ls("/task")} == {"ctl", "metrics", "stats", "q"}


async def test_a_new_queue_of_an_old_name_knows_nothing_of_it(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"a", "effect=e")
        old = await d.lease()
        await d.ctl(f"done {old.fence} first")
        await d.files.remove(Q)
        await d.files.mkdir(Q)
        assert await d.enq(b"a", "effect=e") == {"seq": "1", "dup": "0"}
        new = await d.lease()
        assert int(new.fence.split(".")[0]) > int(old.fence.split(".")[0])
        with pytest.raises(OSError, match="the queue is in generation"):
            await d.ctl(f"done {old.fence}")


# Order


async def test_tasks_come_as_they_were_given_and_by_priority(autojump_clock: MockClock) -> None:
    async with desk() as d:
        for n in range(4):
            assert await d.enq(b"%d" % n) == {"seq": str(n + 1), "dup": "0"}
        await d.enq(b"urgent", "prio=9")
        await d.enq(b"soon", "prio=1")
        assert await d.bodies() == [b"urgent", b"soon", b"0", b"1", b"2", b"3"]


async def test_a_body_is_never_looked_into(autojump_clock: MockClock) -> None:
    body = b"effect=x prio=9\n\n\0\xff" + bytes(range(256)) * 200
    async with desk() as d:
        await d.enq(body[:4000])
        await d.enq(body, "prio=0")
        assert [len(b) for b in await d.bodies()] == [4000, len(body)]


async def test_a_task_that_is_tried_again_keeps_its_place(autojump_clock: MockClock) -> None:
    async with desk() as d:
        for n in range(3):
            await d.enq(b"%d" % n)
        first = await d.lease()
        await d.ctl(f"fail {first.fence} delay=10s")
        second = await d.lease()
        assert second.body == b"1"  # a delayed task holds nobody up
        await trio.sleep(10)
        again = await d.lease()
        assert (again.body, again.attempt, again.last) == (b"0", "2", "failed")
        assert (await d.lease()).body == b"2"


async def test_a_delay_is_waited_for(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"later", "delay=1m")
        await d.enq(b"now")
        await d.ctl(f"done {(await d.lease()).fence}")
        began = trio.current_time()
        assert Got(await d.raw("wait=5m")).body == b"later"
        assert trio.current_time() - began == 60


async def test_tasks_of_one_key_are_done_one_after_the_other(autojump_clock: MockClock) -> None:
    async with desk() as d:
        for n in range(3):
            await d.enq(b"a%d" % n, "key=a")
        await d.enq(b"b0", "key=b")
        first = await d.lease()
        assert first.body == b"a0"
        assert (await d.lease()).body == b"b0"
        assert not await d.raw("wait=0s")
        await d.ctl(f"fail {first.fence} delay=5s")
        assert not await d.raw("wait=0s")  # a1 does not go past a0
        await trio.sleep(5)
        again = await d.lease()
        assert again.body == b"a0"
        await d.ctl(f"done {again.fence}")
        assert await d.bodies() == [b"a1"]


async def test_a_requeued_task_of_a_key_waits_for_the_one_that_is_leased(autojump_clock: MockClock) -> None:
    async with desk() as d:
        for n in range(3):
            await d.enq(b"%d" % n, "key=a max_attempts=1")
        await d.ctl(f"fail {(await d.lease()).fence}")
        second = await d.lease()
        assert second.body == b"1"
        await d.ctl("requeue 1")
        assert not await d.raw("wait=0s")
        await d.ctl(f"done {second.fence}")
        assert (await d.lease()).body == b"0"


# Leases and fences


async def test_reading_waits_for_a_task(autojump_clock: MockClock) -> None:
    async with desk() as d, d.by("bob") as bob, trio.open_nursery() as nursery:
        got: list[Got] = []

        async def work() -> None:
            got.append(await bob.lease("wait=1h"))

        nursery.start_soon(work)
        await wait_all_tasks_blocked()
        assert not got
        await d.enq(b"job")
        await wait_all_tasks_blocked()
        [task] = got
        assert task.body == b"job"
        assert task.values["from"] == "ann"
        assert float(task.until) == BEGAN + trio.current_time() + 30
        generation, seq, attempt, secret = task.fence.split(".")
        assert (seq, attempt, secret) == (task.seq, task.attempt, task.lease)
        assert int(generation) > 0


async def test_a_read_that_waits_is_over_in_time(autojump_clock: MockClock) -> None:
    async with desk() as d:
        began = trio.current_time()
        assert await d.raw("wait=20s") == b""
        assert trio.current_time() - began == 20


async def test_a_flushed_read_takes_nothing(autojump_clock: MockClock) -> None:
    async with desk() as d:
        with trio.move_on_after(5):
            await d.raw()
        await d.enq(b"job")
        assert (await d.lease()).attempt == "1"
        assert (await d.stats())["leased"] == "1"


async def test_a_lease_that_ends_gives_the_task_to_the_next(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        old = await d.lease("for=10s wait=0s")
        new = Got(await d.raw("wait=1m"))
        assert float(new.ts) + 10 <= BEGAN + trio.current_time() < float(new.ts) + 11
        assert (new.body, new.attempt, new.last) == (b"job", "2", "its lease ended")
        for verb in ("hb", "done", "fail"):
            with pytest.raises(OSError, match=r"409 stale_fence: .*task 1 is leased in attempt 2"):
                await d.ctl(f"{verb} {old.fence}")
        await d.ctl(f"done {new.fence} ok")
        with pytest.raises(OSError, match=r"task 1 was done in attempt 2, at \d+"):
            await d.ctl(f"done {old.fence}")


async def test_a_heartbeat_holds_the_lease(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        got = await d.lease()
        for _ in range(10):
            await trio.sleep(20)
            said = await d.ctl(f"hb {got.fence}")
            assert float(said["until"]) == BEGAN + trio.current_time() + 30
        said = await d.ctl(f"hb {got.fence} 2m")
        assert float(said["until"]) == BEGAN + trio.current_time() + 120
        await trio.sleep(119)
        assert await d.ctl(f"done {got.fence} fine") == {"seq": "1", "dup": "0", "result": "fine"}


async def test_two_workers_never_have_one_task(autojump_clock: MockClock) -> None:
    async with desk() as d, d.by("bob") as bob, d.by("eve") as eve:
        taken: list[str] = []

        async def work(worker: Desk) -> None:
            while data := await worker.raw("wait=1s"):
                got = Got(data)
                taken.append(got.seq)
                await worker.ctl(f"done {got.fence}")

        async with trio.open_nursery() as nursery:
            for worker in (bob, eve, bob, eve):
                nursery.start_soon(work, worker)
            for n in range(100):
                await d.enq(b"%d" % n)
        assert sorted(map(int, taken)) == list(range(1, 101))
        assert (await d.stats())["done"] == "100"


async def test_an_unread_task_goes_back_uncounted_under_a_new_attempt(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"a long body", "max_attempts=1")
        async with await d.files.open(d.path("lease"), STREAM) as file:
            piece = await file.read(40)
        assert piece.startswith(b"seq=1 attempt=1")
        again = await d.lease()
        assert (again.attempt, again.body) == ("2", b"a long body")
        [task] = await d.tasks()
        assert task["tries"] == "0"
        assert (await d.stats())["returned"] == "1"


async def test_a_task_whose_reader_vanished_goes_back(autojump_clock: MockClock) -> None:
    tasks = some_tasks()
    async with desk(tasks) as d:
        await d.enq(b"a long body")
        async with d.by("bob") as bob:
            file = await bob.files.open(bob.path("lease"), STREAM)
            assert (await file.pread(20, 0)).startswith(b"seq=1")
        assert Got(await d.raw("wait=10s")).attempt == "2"
        assert trio.current_time() < 1


async def test_a_fence_works_for_its_subject_alone(autojump_clock: MockClock) -> None:
    async with desk() as d, d.by("eve") as eve:
        await d.enq(b"job")
        got = await d.lease()
        for verb in ("hb", "done", "fail"):
            with pytest.raises(OSError, match=r"409 stale_fence: .*another subject's"):
                await eve.ctl(f"{verb} {got.fence}")
        assert (await d.ctl(f"done {got.fence}"))["dup"] == "0"
        with pytest.raises(OSError, match=r"409 stale_fence: .*was done in attempt 1"):
            await eve.ctl(f"done {got.fence}")


async def test_a_guessed_fence_is_refused_and_nothing_shows_the_secret(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job")
        got = await d.lease()
        head, _, secret = got.fence.rpartition(".")
        for guess in (f"{head}.{'0' * 24}", f"{head}.{secret[::-1]}"):
            with pytest.raises(OSError, match="has another fence"):
                await d.ctl(f"done {guess}")
        seen = b"".join(await d.log(1, 3)) + await d.files.read(d.path("tasks"))
        seen += await d.files.read(d.path("drain"))
        assert b"kind=lease" in seen
        assert secret.encode() not in seen


@pytest.mark.parametrize(
    "fence",
    ["x", "1", "1.1.1", "1.1.1.zz", f"1.1.1.{'a' * 25}", f"-1.1.1.{'a' * 24}", f"1.\u0663.1.{'a' * 24}"],
)
async def test_what_is_no_fence_is_said_to_be_none(fence: str, autojump_clock: MockClock) -> None:
    async with desk() as d:
        with pytest.raises(OSError, match=r"400 bad_request: .* is no fence"):
            await d.ctl(f"hb {fence}")


async def test_the_attempt_of_a_fence_only_rises(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"job", "max_attempts=1")
        seen = []
        for _ in range(4):
            got = await d.lease()
            seen.append(int(got.attempt))
            await d.ctl(f"fail {got.fence}")
            await d.ctl("requeue 1")
        assert seen == [1, 2, 3, 4]


# Failing


async def test_after_its_attempts_a_task_is_dead_until_it_is_requeued(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.ctl("set attempts=3 backoff=1s")
        await d.enq(b"bad")
        await d.enq(b"good")
        waits = []
        for _ in range(3):
            began = trio.current_time()
            got = Got(await d.raw("wait=1m"))
            if got.body == b"good":
                await d.ctl(f"done {got.fence}")
                got = Got(await d.raw("wait=1m"))
            waits.append(trio.current_time() - began)
            said = await d.ctl(f"fail {got.fence} out of paper")
        assert said == {"seq": "1", "state": "dead"}
        assert waits[0] == 0 < waits[1] <= 1
        assert 1 <= waits[2] <= 2
        [task] = await d.tasks()
        assert (task["state"], task["why"], task["tries"]) == ("dead", "out of paper", "3")
        with pytest.raises(OSError, match="task 1 is dead since attempt 3: out of paper"):
            await d.ctl(f"done {got.fence}")
        assert await d.ctl("requeue all") == {"tasks": "1"}
        assert await d.ctl("requeue all") == {"tasks": "0"}
        assert (await d.lease()).body == b"bad"


async def test_a_task_can_be_given_up_at_once(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"hopeless")
        assert (await d.ctl(f"fail {(await d.lease()).fence} never retry=no"))["state"] == "dead"


async def test_leases_that_end_count_as_attempts(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"poison", "max_attempts=2")
        events = await d.files.open(d.path("events"), STREAM)
        for _ in range(2):
            await d.lease("for=1s wait=2s")
        await trio.sleep(1)
        kinds = [re.search(rb"kind=(\w+)", await events.record()) for _ in range(3)]
        assert [m[1] for m in kinds if m] == [b"expired", b"expired", b"dead"]
        assert (await d.tasks())[0]["state"] == "dead"
        await events.close()


@pytest.mark.parametrize(
    ("seq", "says"),
    [("7", "404 .*task 7 is not here"), ("1", "409 .*task 1 is ready"), ("x", "400 .*is no task")],
)
async def test_only_the_dead_are_requeued(seq: str, says: str, autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq()
        with pytest.raises(OSError, match=says):
            await d.ctl(f"requeue {seq}")


# Effects


async def test_an_effect_happens_once(autojump_clock: MockClock) -> None:
    async with desk() as d, d.by("bob") as bob:
        await d.enq(b"pay", "effect=invoice-7")
        slow = await bob.lease("for=5s wait=0s")
        await trio.sleep(5)
        quick = await d.lease()
        assert quick.effect == "invoice-7"
        said = await d.ctl(f"done {quick.fence} paid it")
        assert said == {"seq": "1", "dup": "0", "result": "paid it"}
        # He who was late is told what was done, if he says of what.
        said = await bob.ctl(f"done {slow.fence} effect=invoice-7 mine")
        assert said == {"seq": "1", "dup": "1", "result": "paid it"}
        with pytest.raises(OSError, match="was done in attempt 2"):
            await bob.ctl(f"done {slow.fence} mine")
        # And whoever asks for it again.
        again = await d.enq(b"pay", "effect=invoice-7")
        assert again == {"seq": "1", "dup": "1", "state": "done", "result": "paid it"}
        assert not await d.raw("wait=0s")


async def test_done_twice_under_one_fence_is_done_once(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq()
        got = await d.lease()
        assert await d.ctl(f"done {got.fence} one") == {"seq": "1", "dup": "0", "result": "one"}
        assert await d.ctl(f"done {got.fence} two") == {"seq": "1", "dup": "1", "result": "one"}
        assert (await d.stats())["done"] == "1"


async def test_two_tasks_of_one_effect_have_the_first_result(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"a")
        await d.enq(b"b")
        a, b = await d.lease(), await d.lease()
        assert (await d.ctl(f"done {a.fence} effect=e first"))["dup"] == "0"
        assert await d.ctl(f"done {b.fence} effect=e second") == {"seq": "1", "dup": "1", "result": "first"}
        assert (await d.stats())["done"] == "2"
        assert await d.ctl(f"done {b.fence} effect=e third") == {"seq": "1", "dup": "1", "result": "first"}


async def test_an_effect_that_waits_is_not_taken_twice(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq(b"pay", "effect=e")
        assert await d.enq(b"pay", "effect=e") == {"seq": "1", "dup": "1", "state": "ready"}
        with pytest.raises(OSError, match="409 conflict: effect=e is that of task 1, which has another body"):
            await d.enq(b"pay more", "effect=e")
        await d.enq(b"other", "prio=1")
        other = await d.lease()
        with pytest.raises(OSError, match="effect=e is that of task 1, which is not done yet"):
            await d.ctl(f"done {other.fence} effect=e")
        first = await d.lease()
        with pytest.raises(OSError, match="the effect of task 1 is e, not f"):
            await d.ctl(f"done {first.fence} effect=f")


async def test_effects_are_remembered_as_long_as_was_said(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.ctl("set keep=1h")
        await d.enq(b"pay", "effect=e")
        await d.ctl(f"done {(await d.lease()).fence}")
        await trio.sleep(3599)
        assert (await d.enq(b"pay", "effect=e"))["dup"] == "1"
        await trio.sleep(1)
        assert (await d.enq(b"pay", "effect=e"))["dup"] == "0"


async def test_a_table_of_effects_that_is_full_refuses_and_forgets_none(autojump_clock: MockClock) -> None:
    async with desk(some_tasks(limits=Limits(effects=2))) as d:
        for n in range(3):
            await d.enq(b"%d" % n, f"effect=e{n}")
        for _ in range(2):
            await d.ctl(f"done {(await d.lease()).fence}")
        last = await d.lease()
        with pytest.raises(OSError, match="429 busy: 2 effects are remembered, the limit; set keep="):
            await d.ctl(f"done {last.fence}")
        assert (await d.enq(b"0", "effect=e0"))["state"] == "done"
        assert (await d.ctl(f"hb {last.fence}"))["until"]


# Pressure and limits


async def test_pressure_says_when_a_mark_is_crossed_and_not_each_time(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.ctl("set high=4 low=1")
        pressure = await d.files.open(d.path("pressure"), STREAM)
        for n in range(6):
            await d.enq(b"%d" % n)
        record = await pressure.record()
        assert record == f"seq=1 ts={BEGAN:.3f} state=high depth=4 high=4 low=1\n".encode()
        assert (await d.stats())["pressure"] == "high"
        for _ in range(4):
            await d.lease()
        with trio.move_on_after(1):
            raise AssertionError(f"depth is 2, and yet: {await pressure.record()!r}")
        await d.lease()
        assert b"seq=2 " in (record := await pressure.record())
        assert b"state=low depth=1" in record
        for n in range(3):
            await d.enq(b"%d" % n)
        assert b"state=high depth=4" in await pressure.record()
        await pressure.close()


async def test_a_full_queue_refuses_and_says_when_to_come_back(autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.ctl("set count=3 high=3 low=1")
        for n in range(3):
            await d.enq(b"%d" % n)
        with pytest.raises(OSError, match=r"429 busy: the queue is full: 3 tasks are here.* retry_after=1"):
            await d.enq(b"4")
        await d.ctl(f"done {(await d.lease()).fence}")
        await d.enq(b"4")
        await d.ctl("set count=100 bytes=2000")
        with pytest.raises(OSError, match="of 2000 bytes are in use"):
            await d.enq(b"x" * 1500)
        with pytest.raises(OSError, match="413 too_large: the queue takes 2000 bytes"):
            await d.enq(b"x" * 2500)


async def test_all_queues_together_are_bounded(autojump_clock: MockClock) -> None:
    async with desk(some_tasks(limits=Limits(bytes=5000, queues=2, readers=1))) as d:
        await d.files.mkdir("/task/r")
        with pytest.raises(OSError, match="507 full: 2 queues exist, the limit"):
            await d.files.mkdir("/task/s")
        await d.enq(b"x" * 3000)
        r = Desk(d.files, d.export, "/task/r")
        with pytest.raises(OSError, match=r"429 busy: .*all queues together hold 5000 bytes"):
            await r.enq(b"x" * 3000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.raw)
            await wait_all_tasks_blocked()
            with pytest.raises(OSError, match="429 busy: 1 readers wait here"):
                await r.raw()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", None),
        (b"effect=x prio=3", "no empty line"),
        (b"colour=red\n\nx", "'colour=red' is no header; there are effect="),
        (b"prio=10\n\nx", "prio is a number from 0 to 9"),
        (b"prio=1 prio=1\n\nx", "prio is given twice"),
        (b"delay=soon\n\nx", "delay is a duration"),
        (b"delay=-1s\n\nx", "delay is "),
        (b"delay=nan\n\nx", "delay is "),
        (b"delay=inf\n\nx", "delay is "),
        (b"max_attempts=0\n\nx", "max_attempts is a number from 1"),
        (b"effect=\n\nx", "effect is a word"),
        (b"effect='a\tb'\n\nx", "effect is a word"),
        (b"effect=" + b"x" * 201 + b"\n\nx", "effect is a word"),
        (b"effect='x\n\nx", "a quote is not closed"),
        (b"\xff\n\nx", "byte 0 of the headers is not UTF-8"),
        (b"a\0=b\n\nx", "NUL"),
        (b"x" * 5000, "no empty line ends the headers within 4096"),
        (b"len=3\n\nlonger", "413"),
        (b"len=99999999\n\nx", "99999999"),
    ],
)
async def test_bad_headers_are_refused_and_queue_nothing(
    data: bytes, says: str | None, autojump_clock: MockClock
) -> None:
    async def give(d: Desk) -> None:
        async with await d.files.open(d.path("enq.h"), os.O_RDWR) as file:
            await file.write(data)
            await file.fsync()

    async with desk() as d:
        if says is None:
            await give(d)
        else:
            with pytest.raises(OSError, match=says):
                await give(d)
        assert (await d.stats())["enqueued"] == "0"


async def test_a_declared_body_that_is_cut_off_queues_nothing(autojump_clock: MockClock) -> None:
    async with desk() as d:
        async with await d.files.open(d.path("enq.h"), os.O_RDWR) as file:
            await file.write(b"len=5\n\nab")
            with pytest.raises(OSError, match="3 bytes of the declared length are missing"):
                await file.fsync()
        assert (await d.stats())["enqueued"] == "0"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("set", "say what to set"),
        ("set high=5 low=5", "low is below high"),
        ("set low=1000", "low is below high"),
        ("set lease=0s", "lease is from 0.25"),
        ("set lease=nan", "lease takes"),
        ("set attempts=0", "attempts is from 1"),
        ("set count=100000", "count is from 1"),
        ("set bytes=99999999999", "bytes is from"),
        ("done", "fence is missing"),
        ("fly", "no verb 'fly'"),
    ],
)
async def test_a_bad_line_changes_nothing(line: str, says: str, autojump_clock: MockClock) -> None:
    async with desk() as d:
        before = await d.files.read(d.path("settings"))
        with pytest.raises(OSError, match=says):
            await d.ctl(line)
        assert await d.files.read(d.path("settings")) == before


@pytest.mark.parametrize(
    "options", [b"for=1ms", b"for=13h", b"wait=x", b"max=3", b"for=1s for=1s", b"x" * 5000]
)
async def test_bad_options_take_no_task(options: bytes, autojump_clock: MockClock) -> None:
    async with desk() as d:
        await d.enq()
        async with await d.files.open(d.path("lease"), os.O_RDWR) as file:
            with pytest.raises(OSError):
                await file.write(options)
        assert (await d.stats())["inflight"] == "0"


async def test_who_may_give_work_may_not_take_it(autojump_clock: MockClock) -> None:
    allow = [
        "user/ann read,write,create,ctl,remove /**", "user/eve write /task/q/enq",
        "user/bob read /task/q/lease", "user/bob ctl /task/q/ctl#hb,done",
    ]  # fmt: skip
    async with desk(subject="spiffe://hive/user/ann", allow=allow) as d:
        async with d.by("spiffe://hive/user/eve") as eve, d.by("spiffe://hive/user/bob") as bob:
            async with await eve.files.open(eve.path("enq"), os.O_WRONLY) as file:
                await file.write(b"job")
            for name in ("lease", "drain", "log", "tasks"):
                with pytest.raises(OSError):
                    await eve.files.read(eve.path(name))
            got = Got(await bob.files.read(bob.path("lease")))
            with pytest.raises(OSError, match="403"):
                await bob.ctl(f"fail {got.fence}")
            assert (await bob.ctl(f"done {got.fence}"))["dup"] == "0"


async def test_stats_and_metrics_count_every_queue(autojump_clock: MockClock) -> None:
    tasks = some_tasks()
    async with desk(tasks) as d:
        await d.enq()
        await d.lease()
        text = (await d.files.read("/task/metrics")).decode()
        assert 'task_inflight{queue="q"} 1\n' in text
        assert 'task_enqueued_total{queue="q"} 1\n' in text


async def test_without_a_keeper_time_passes_at_the_next_use(autojump_clock: MockClock) -> None:
    tasks = some_tasks()
    await tasks.make("q")
    async with reached(export_of(Dir({"task": tasks})), "ann") as files:
        d = Desk(files, export_of(Dir({"task": tasks})))
        await d.enq(b"job")
        await d.lease("for=1s wait=0s")
        await trio.sleep(1)
        assert (await d.lease()).attempt == "2"


class Gated(MemoryStore):
    """A store that can be told to let the writes of one topic wait."""

    shut = ""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        if topic == self.shut:
            await self.gate.wait()
        return await super().append_batch(topic, batch, expect_last=expect_last)


async def test_a_slow_queue_hides_no_time_from_another(autojump_clock: MockClock) -> None:
    store = Gated()
    async with desk(some_tasks(store)) as d:
        await d.files.mkdir("/task/slow")
        slow = Desk(d.files, d.export, "/task/slow")
        await slow.enq(b"job")
        async with slow.by("bob") as bob:
            file = await bob.files.open(bob.path("lease"), STREAM)
            assert await file.pread(20, 0)
            store.shut = "task/slow"
        await wait_all_tasks_blocked()  # the keeper writes what bob gave back
        await d.enq(b"job")
        await d.lease("for=1s wait=0s")
        got: list[Got] = []

        async def work() -> None:
            got.append(Got(await d.raw("wait=1h")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await wait_all_tasks_blocked()
            store.gate.set()
        assert got[0].attempt == "2"
        assert trio.current_time() < 2
