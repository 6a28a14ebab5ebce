"""Receiving: leases, attempts, order, fairness, and what a cancelled or half-read message costs (nothing)."""

import os
import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.p9.messages import Rflush, Rread, Tflush, Tread
from warren.servers.mailbox import Limits
from warren.tree import Dir

from tests.servers.mailbox.place import O_STREAM, Box, Got, T, a_mailbox, box
from tests.wire import served


async def test_a_message_goes_to_one_reader_at_a_time_until_its_lease_ends(autojump_clock: MockClock) -> None:
    async with box() as t:
        sent = await t.send(b"hello\n")
        first = await t.recv()
        assert (first.id, first.attempt, first.body) == (sent["id"], "1", b"hello\n")
        assert await t.none()
        began = trio.current_time()
        second = await t.recv()
        assert 29.9 < trio.current_time() - began < 30.1
        assert (second.id, second.attempt) == (first.id, "2")
        assert second.lease != first.lease
        await t.ack(second.id, second.lease)
        await trio.sleep(100)
        assert await t.none()
        stats = await t.stats()
        assert (stats["depth"], stats["messages"], stats["acked"], stats["timed_out"]) == (0, 0, 1, 1)


async def test_an_answer_needs_a_live_lease_of_the_same_subject(autojump_clock: MockClock) -> None:
    async with box() as t, t.by("bob") as bob:
        await t.send()
        got = await t.recv()
        wrong = "0" * 24
        for who, words in (
            (bob, [got.id]),
            (bob, [got.id, got.lease]),
            (bob, ["nack", got.id, got.lease]),
            (bob, ["extend", got.id, "1h"]),
            (t, [got.id, wrong]),
            (t, ["0" * 26]),
        ):
            with pytest.raises(FileExistsError, match="409"):
                await who.ack(*words)
        for line in ("x", f"{got.id} a b", f"extend {got.id}", f"extend {got.id} 1ms", f"extend {got.id} nan",
                     f"nack {got.id} delay=-1s", f"nack {got.id} delay=x", f"{got.id} {got.lease.upper()}z",
                     f"{got.id.lower()}", f"{got.id}\n{got.id}", "ack", "\x00"):  # fmt: skip
            with pytest.raises(OSError, match="400"):
                await t.ack(line)
        assert (await t.stats())["inflight"] == 1
        await t.ack(got.id)
        with pytest.raises(FileExistsError, match="409"):
            await t.ack(got.id)


async def test_an_old_lease_is_worth_nothing_once_the_message_is_anothers(autojump_clock: MockClock) -> None:
    async with box() as t, t.by("bob") as bob:
        await t.send()
        old = await t.recv("vis=1s")
        new = await bob.recv()
        assert new.id == old.id
        for words in ([old.id], [old.id, old.lease]):
            with pytest.raises(FileExistsError, match="409"):
                await t.ack(*words)
        await bob.ack(new.id)


async def test_several_answers_count_all_or_none(autojump_clock: MockClock) -> None:
    async with box() as t:
        for _ in range(3):
            await t.send()
        a, b, c = await t.all("max=3")
        with pytest.raises(FileExistsError):
            await t.ack(f"{a.id}\nnack {b.id}\n{'0' * 26}\n")
        assert (await t.stats())["inflight"] == 3
        await t.ack(f"{a.id} {a.lease}\nnack {b.id} delay=0s\nextend {c.id} 2m\n")
        stats = await t.stats()
        assert (stats["inflight"], stats["acked"], stats["nacked"]) == (1, 1, 1)
        assert (await t.recv()).id == b.id
        await trio.sleep(100)
        with pytest.raises(FileExistsError):
            await t.ack(b.id)
        await t.ack(c.id)


async def test_a_nack_waits_longer_with_every_attempt_and_never_too_long(autojump_clock: MockClock) -> None:
    waited: list[float] = []
    async with box() as t:
        await t.ctl("set attempts=20 backoff=1s")
        await t.send()
        for attempt in range(1, 20):
            began = trio.current_time()
            async with await t.files.open(f"{T}/recv", O_STREAM) as file:
                got = Got(await file.record())
            waited.append(trio.current_time() - began)
            assert got.attempt == str(attempt)
            await t.ack("nack", got.id)
    assert waited[0] == 0
    assert all(wait <= min(2.0**n, 60) + 0.001 for n, wait in enumerate(waited[1:]))
    assert max(waited) > 10


async def test_after_its_last_attempt_a_message_is_a_dead_letter(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.ctl("set attempts=2 lease=250ms")
        sent = await t.send(b"poison", "key=k type=job")
        await t.recv()
        await t.recv()
        await trio.sleep(1)
        assert await t.none()
        letter = f"{T}/dlq/{sent['id']}"
        reason = (await t.files.read(f"{letter}/reason")).decode()
        assert reason.startswith("reason=max_attempts attempts=2 last=timed_out by=ann ts=")
        assert await t.files.read(f"{letter}/body") == b"poison"
        assert b"type=job" in await t.files.read(f"{letter}/head")
        assert (await t.stats())["dlq"] == 1
        await t.ctl("redrive all", "dlq/ctl")
        got = await t.recv()
        assert (got.id, got.attempt) == (sent["id"], "1")
        await t.ack("nack", got.id, "delay=0s")
        await t.ack("nack", (await t.recv()).id)
        assert b"last=nacked" in await t.files.read(f"{letter}/reason")
        with pytest.raises(OSError, match="404"):
            await t.ctl(f"redrive {'0' * 26}", "dlq/ctl")
        await t.ctl(f"delete {sent['id']}", "dlq/ctl")
        assert [e.name for e in await t.files.ls(f"{T}/dlq")] == ["ctl"]
        assert (await t.stats())["messages"] == 0


async def test_priority_goes_first_then_age(autojump_clock: MockClock) -> None:
    async with box() as t:
        for body, prio in ((b"a", 0), (b"b", 5), (b"c", 9), (b"d", 5)):
            await t.send(body, f"prio={prio}")
        assert [got.body for got in await t.all("max=4")] == [b"c", b"b", b"d", b"a"]


async def test_messages_of_one_key_come_one_after_the_other(autojump_clock: MockClock) -> None:
    async with box() as t:
        for body in (b"a1", b"b1", b"a2", b"a3"):
            await t.send(body, f"key={chr(body[0])} prio={9 if body == b'a3' else 0}")
        one, other = await t.all("max=10")
        assert (one.body, other.body) == (b"a1", b"b1")
        assert await t.none()
        await t.ack("nack", one.id, "delay=10s")
        assert await t.none()  # what is put back holds up those behind it
        again = await t.recv()
        assert again.body == b"a1"
        await t.ack(again.id)
        two = await t.recv()
        assert two.body == b"a2"
        await t.files.write(f"{T}/del", two.id.encode(), truncate=False)
        assert (await t.recv()).body == b"a3"


async def test_a_delay_is_waited_for_and_a_time_to_live_ends(autojump_clock: MockClock) -> None:
    async with box() as t:
        began = trio.current_time()
        await t.send(b"later", "delay=10s")
        await t.send(b"short", "ttl=5s")
        await t.send(b"held", "ttl=5s")
        assert (await t.recv()).body == b"short"
        assert (await t.recv("vis=7s")).body == b"held"
        assert (await t.recv()).body == b"later"
        assert trio.current_time() - began == pytest.approx(10, abs=0.01)
        await trio.sleep(100)
        got = await t.recv()
        assert (got.body, got.attempt) == (b"later", "2")
        assert (await t.stats())["expired"] == 2


async def test_ack_none_gives_once_and_auto_acknowledges_what_was_read(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.send(b"once")
        got = await t.recv("ack=none")
        assert "lease" not in got.values
        assert (await t.stats())["messages"] == 0
        await t.ctl("set ack=auto")
        await t.send(b"auto")
        assert (await t.recv()).body == b"auto"
        stats = await t.stats()
        assert (stats["messages"], stats["acked"]) == (0, 1)
        await t.send(b"half")
        async with await t.files.open(f"{T}/recv", O_STREAM) as file:
            assert await file.pread(10, 0)
        assert (await t.recv()).attempt == "1"


async def test_a_message_that_was_not_read_to_its_end_goes_back_uncounted(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.ctl("set attempts=2")
        await t.send(bytes(1000))
        for _ in range(5):
            async with await t.files.open(f"{T}/recv", O_STREAM) as file:
                assert len(await file.pread(100, 0)) == 100
                assert (await t.stats())["inflight"] == 1
        got = await t.recv()
        assert got.attempt == "1"
        stats = await t.stats()
        assert (stats["given_back"], stats["dlq"], stats["inflight"]) == (5, 0, 1)


async def test_who_hangs_up_in_the_middle_gives_back_and_after_the_end_keeps_the_lease(
    autojump_clock: MockClock,
) -> None:
    async with box() as t:
        await t.send(bytes(1000))
        async with t.by("ann") as gone:
            file = await gone.files.open(f"{T}/recv", O_STREAM)
            await file.pread(100, 0)
        got = await t.recv()
        assert got.attempt == "1"
        await t.ack("nack", got.id, "delay=0s")
        async with t.by("ann") as gone:
            file = await gone.files.open(f"{T}/recv", O_STREAM)
            assert len(await file.pread(5000, 0)) > 1000
        assert await t.none()
        assert (await t.stats())["inflight"] == 1


async def test_one_open_is_one_message_however_it_is_read(autojump_clock: MockClock) -> None:
    async with box() as t:
        for n in range(4):
            await t.send(b"%d" % n * 3000)
        async with await t.files.open(f"{T}/recv", O_STREAM) as file:
            data, at = b"", 0
            while piece := await file.pread(1000, at):  # offsets as a disk has them
                data, at = data + piece, at + len(piece)
            assert Got(data).body == b"0" * 3000
        async with await t.files.open(f"{T}/recv", O_STREAM) as file:
            data = b""
            while piece := await file.pread(1000, 0):  # no offsets, as a kernel has for streams
                data += piece
            assert Got(data).body == b"1" * 3000
        async with await t.files.open(f"{T}/recv", O_STREAM) as file:
            pieces: dict[int, bytes] = {}

            async def one(at: int) -> None:
                pieces[at] = await file.pread(500, at)

            async with trio.open_nursery() as nursery:  # all at once, in whatever order
                for at in range(0, 4000, 500):
                    nursery.start_soon(one, at)
            data = b"".join(piece for _, piece in sorted(pieces.items()))
            assert Got(data).body == b"2" * 3000
        assert (await t.stats())["inflight"] == 3
        assert (await t.recv()).body == b"3" * 3000


async def test_a_batch_is_as_large_as_asked_and_no_larger_than_it_may_be(autojump_clock: MockClock) -> None:
    async with box() as t:
        for _ in range(40):
            await t.send()
        assert len(await t.all("max=5")) == 5
        assert len(await t.all("max=32")) == 32
        bad = ("max=33", "max=0", "vis=100ms", "vis=13h", "ack=maybe", "wait=-1s", "x", "max=1 max=2")
        for options in bad:
            with pytest.raises(OSError, match="400"):
                await t.raw(options)
        await t.ctl("purge")
        for _ in range(3):
            await t.send(bytes(300_000), "prio=1")
        assert len(await t.all("max=32")) == 1


async def test_an_open_that_was_read_whole_gives_the_next_for_options(autojump_clock: MockClock) -> None:
    async with box() as t:
        for n in range(5):
            await t.send(b"%d" % n)
        async with await t.files.open(f"{T}/recv", os.O_RDWR) as file:
            await file.pread(10, 0)
            with pytest.raises(FileExistsError, match="409"):  # there is more of it
                await file.pwrite(b"max=2", 0)
        async with await t.files.open(f"{T}/recv", os.O_RDWR) as file:
            await file.pwrite(b"max=1", 0)
            first = await file.pread(4096, 0)
            assert first.endswith(b"\n\n0")
            assert b"batch=" not in first
            await file.pwrite(b"max=2", 0)
            both = await file.pread(4096, 0)
            assert b" batch=2 " in both
            assert both.endswith(b"\n\n2")
            await file.pwrite(b"max=2 ack=auto", 0)
            assert (await file.pread(4096, 0)).endswith(b"\n\n4")
            with pytest.raises(FileExistsError, match="409"):  # its close acknowledges them
                await file.pwrite(b"max=1", 0)
        said = await t.stats()
        assert (said["inflight"], said["acked"], said["depth"]) == (3, 2, 0), said


async def test_what_was_not_read_whole_goes_back_also_where_more_was_received_before(
    autojump_clock: MockClock,
) -> None:
    async with box() as t:
        await t.send(b"one")
        await t.send(b"two")
        async with await t.files.open(f"{T}/recv", os.O_RDWR) as file:
            await file.pwrite(b"max=1", 0)
            await file.pread(4096, 0)
            await file.pwrite(b"max=1", 0)
            await file.pread(5, 0)
        assert (await t.stats())["given_back"] == 1
        again = await t.recv()
        assert (again.body, again.values["attempt"]) == (b"two", "1")


async def test_a_reader_waits_as_long_as_it_wants(autojump_clock: MockClock) -> None:
    async with box() as t:
        began = trio.current_time()
        assert await t.raw("wait=5s") == b""
        assert trio.current_time() - began == pytest.approx(5, abs=0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(t.raw, "wait=10s")
            await wait_all_tasks_blocked()
            assert (await t.stats())["readers"] == 1
            await t.send()
        assert (await t.stats())["delivered"] == 1


async def test_readers_are_served_fairly_between_subjects_then_by_age(autojump_clock: MockClock) -> None:
    order: list[str] = []

    async def wants(t: Box, name: str) -> None:
        await t.recv()
        order.append(name)

    async with box() as ann, ann.by("bob") as bob, ann.by("eve") as eve, trio.open_nursery() as nursery:
        for who, name in ((ann, "a1"), (ann, "a2"), (ann, "a3"), (bob, "b1"), (eve, "e1"), (bob, "b2")):
            nursery.start_soon(wants, who, name)
            await wait_all_tasks_blocked()
        for n in range(6):
            await ann.send()
            await wait_all_tasks_blocked()
            assert len(order) == n + 1
    assert order == ["a1", "b1", "e1", "a2", "b2", "a3"]


async def test_only_so_many_are_out_at_once_and_so_many_wait(autojump_clock: MockClock) -> None:
    async with box(a_mailbox(limits=Limits(readers=1))) as t:
        await t.ctl("set inflight=2")
        for _ in range(3):
            await t.send()
        got = await t.all("max=10")
        assert len(got) == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(t.raw)
            await wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError, match="429"):
                await t.raw()
            assert (await t.stats())["depth"] == 1
            await t.ack(got[0].id)
        assert (await t.stats())["inflight"] == 2


async def test_a_flushed_read_takes_nothing(autojump_clock: MockClock) -> None:
    mailbox = a_mailbox()
    await mailbox.make("t")
    for step in range(12):
        async with served(Dir({"mailbox": mailbox})) as service, box(mailbox) as t:
            wire = await service.dial()
            await wire.open("mailbox/t/recv", 1)
            await wire.send(Tread(1, 0, 8000), tag=5)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as race:
                race.start_soon(t.send)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                await wire.send(Tflush(5), tag=6)
            replies = [await wire.reply()]
            if isinstance(replies[0], Rread):
                replies.append(await wire.reply())
                assert len(replies[0].data) > 50
            else:
                assert await t.raw("ack=none")
            assert isinstance(replies[-1], Rflush)
            await t.ctl("purge")
            await t.files.write(f"{T}/del", b"", truncate=False)
        async with box(mailbox) as t:
            await trio.sleep(60)
            while await t.raw("ack=none wait=0s"):
                pass
            assert (await t.stats())["dlq"] == 0


async def test_a_read_whose_file_was_closed_gives_its_message_to_the_next(autojump_clock: MockClock) -> None:
    async with box() as t:
        for step in range(12):
            async with trio.open_nursery() as nursery:
                file = await t.files.open(f"{T}/recv", O_STREAM)
                nursery.start_soon(_ignoring, file.record)
                await wait_all_tasks_blocked()
                nursery.start_soon(t.send)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                await file.close()
            if (await t.stats())["inflight"]:
                await trio.sleep(31)
            got = await t.recv()
            await t.ack(got.id)
            assert (await t.stats())["messages"] == 0


async def _ignoring(read: object) -> None:
    try:
        await read()  # type: ignore[operator]
    except (OSError, ValueError):
        pass


async def test_a_group_gets_every_message_and_answers_for_itself(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.send(b"before")
        await t.files.mkdir(f"{T}/groups/audit")
        await t.ctl("group all first")
        await t.send(b"after")
        audit, every = "groups/audit/", "groups/all/"
        got = await t.recv(queue=audit)
        assert got.body == b"after"
        with pytest.raises(FileExistsError, match="409"):
            await t.ack(got.id)  # it is not leased in the topic's own queue
        await t.ack(got.id, queue=audit)
        assert [g.body for g in await t.all("max=9", every)] == [b"before", b"after"]
        assert (await t.stats(every))["inflight"] == 2
        assert [g.body for g in await t.all("max=9 ack=none")] == [b"before", b"after"]
        assert (await t.stats())["messages"] == 2
        await t.files.remove(f"{T}/groups/all", directory=True)
        assert (await t.stats())["messages"] == 0
        with pytest.raises(OSError, match="404"):
            await t.recv(queue=every)
        await t.ctl("set queue=no")
        await t.send(b"only groups")
        with pytest.raises(FileExistsError, match="queue of this topic is off"):
            await t.recv()
        assert (await t.recv("ack=none", audit)).body == b"only groups"
        assert (await t.stats())["messages"] == 0


async def test_a_reader_of_a_group_that_is_removed_is_told(autojump_clock: MockClock) -> None:
    async with box() as t, t.by("bob") as bob:
        await t.files.mkdir(f"{T}/groups/g")
        async with trio.open_nursery() as nursery:

            async def reads() -> None:
                with pytest.raises(OSError, match="404"):
                    await bob.recv(queue="groups/g/")

            nursery.start_soon(reads)
            await wait_all_tasks_blocked()
            await t.ctl("ungroup g")


async def test_peek_shows_the_next_and_takes_nothing(autojump_clock: MockClock) -> None:
    async with box() as t:
        assert await t.files.read(f"{T}/peek") == b""
        await t.send(b"one")
        await t.send(b"two")
        for _ in range(2):
            assert Got(await t.files.read(f"{T}/peek")).body == b"one"
        assert "lease" not in Got(await t.files.read(f"{T}/peek")).values
        await t.recv()
        assert Got(await t.files.read(f"{T}/peek")).body == b"two"


async def test_sub_shows_every_message_to_every_reader_and_takes_none(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.send(b"old")
        path = f"{T}/sub"
        async with await t.files.open(path, O_STREAM) as a, await t.files.open(path, O_STREAM) as b:
            await t.send(b"new")
            assert [Got(await sub.record()).body for sub in (a, b)] == [b"new", b"new"]
        async with await t.files.open(f"{T}/sub", os.O_RDWR | os.O_NONBLOCK) as sub:
            await sub.write(b"from 1")
            assert [Got(await sub.record()).body for _ in range(2)] == [b"old", b"new"]
        await trio.sleep(100)
        await t.send(b"late")
        async with await t.files.open(f"{T}/sub", os.O_RDWR | os.O_NONBLOCK) as sub:
            await sub.write(b"since 1m")
            assert Got(await sub.record()).body == b"late"
            with pytest.raises(FileExistsError, match="409"):
                await sub.write(b"from 1")
        for words in (b"from 99", b"from x", b"since", b"from 2026-99-01", b"to 1", b"\xff"):
            async with await t.files.open(f"{T}/sub", os.O_RDWR | os.O_NONBLOCK) as sub:
                with pytest.raises(OSError, match=r"4(00|16)"):
                    await sub.write(words)
        assert (await t.stats())["depth"] == 3


async def test_a_lagging_reader_of_sub_is_told_what_it_lost(autojump_clock: MockClock) -> None:
    mailbox = a_mailbox()
    async with box(mailbox) as t:
        topic = mailbox.kept["t"].topic
        topic.every = 20
        async with await t.files.open(f"{T}/sub", O_STREAM) as sub:
            for n in range(30):
                await t.send(b"%d" % n)
                await t.recv("ack=none")
            lost = await sub.record()
            assert lost.startswith(b"lost n=")
            n = int(lost.split(b"=")[1])
            assert n > 5
            assert Got(await sub.record()).body == b"%d" % n
        await t.ctl("set replay=1h")
        first = int((await t.send(b"kept"))["seq"])
        for _ in range(60):
            await t.send()
            await t.recv("ack=none")
        async with await t.files.open(f"{T}/sub", os.O_RDWR | os.O_NONBLOCK) as sub:
            await sub.write(b"from %d" % first)
            assert Got(await sub.record()).body == b"kept"


async def test_a_guessed_lease_never_fits(autojump_clock: MockClock) -> None:
    dice = random.Random(7)
    async with box() as t, t.by("any") as eve:
        await t.send()
        got = await t.recv()
        for _ in range(200):
            with pytest.raises(FileExistsError):
                await eve.ack(got.id, f"{dice.getrandbits(96):024x}")
        await t.ack(got.id)
