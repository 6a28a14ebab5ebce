"""What every store must do with topics."""

from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked
from warren.check.store.place import Call, Place, holds, log, parked, refused, refused_nowait, same
from warren.store.interface import Conflict, NotFound, Record, TooLarge, Trimmed


async def numbers_without_gaps(at: Place) -> None:
    """The records of a topic are numbered from 1 without gaps and come back as they were"""
    async with at.make() as store:
        data = [b"", b"\0", bytes(range(256)), b"x" * 4096, b"", b"last\n"]
        for number, body in enumerate(data, 1):
            same(await store.append(at("a"), body), number, "the seq of an append")
            await store.append(at("b"), b"other")
            same(await store.last(at("a")), number, "last after an append")
        wanted = [Record(seq, body) for seq, body in enumerate(data, 1)]
        same([await store.read(at("a"), seq) for seq in range(1, 7)], wanted, "what read answers")
        same(await log(store, at("a")), wanted, "what first_after answers")
        same(await store.first_after(at("a"), -5), wanted[0], "the first record after -5")
        same([record.data for record in await log(store, at("b"))], [b"other"] * 6, "the other topic")


async def unwritten_topics(at: Place) -> None:
    """A topic that was never written has no records, and asking does not make it"""
    async with at.make() as store:
        same(await store.last(at("a")), 0, "last")
        same(await store.trim(at("a"), 0), 0, "trim")
        same(await store.trim(at("a"), through=9), 0, "trim")
        refused_nowait(trio.WouldBlock, store.first_after_nowait, at("a"), 0)
        for seq in (-1, 0, 1):
            error = await refused(NotFound, store.read, at("a"), seq)
            holds(not isinstance(error, Trimmed), "a record that never was is said to be trimmed")
        with trio.move_on_after(0):
            await store.first_after(at("a"), 0)
        same(await store.topics(at.root), [], "the list of topics")


async def expectation_of_last(at: Place) -> None:
    """An append whose expect_last does not hold is refused with the true last and writes nothing"""
    async with at.make() as store:
        topic = at("a")
        await refused(Conflict, store.append, topic, b"no", expect_last=1)
        same(await store.topics(at.root), [], "topics after a refused first append")
        same(await store.append(topic, b"1", expect_last=0), 1, "expecting nothing of nothing")
        same(await store.append(topic, b"2", expect_last=1), 2, "expecting 1 of 1")
        for wrong in (0, 1, 3, -1):
            error = await refused(Conflict, store.append, topic, b"no", expect_last=wrong)
            same((error.expected, error.actual), (wrong, 2), "what the conflict carries")
            error = await refused(Conflict, store.append_batch, topic, [b"no", b"no"], expect_last=wrong)
            same((error.expected, error.actual), (wrong, 2), "what the conflict carries")
        same(await log(store, topic), [Record(1, b"1"), Record(2, b"2")], "the log after refusals")
        same(await store.append_batch(topic, [b"3", b"4"], expect_last=2), range(3, 5), "expecting 2 of 2")
        await store.trim(topic, 0)
        same(await store.append(topic, b"5", expect_last=4), 5, "expecting the last after a trim")


async def race_of_appends(at: Place) -> None:
    """Of tasks that append with the same expect_last exactly one succeeds"""
    async with at.make() as store:
        won: list[tuple[int, bytes]] = []

        async def write(name: int) -> None:
            for turn in range(5):
                data = b"%d.%d" % (name, turn)
                last = await store.last(at("a"))
                while True:
                    try:
                        seq = await store.append(at("a"), data, expect_last=last)
                    except Conflict as conflict:
                        holds(conflict.actual > last, "a conflict though nobody was faster")
                        last = conflict.actual
                    else:
                        break
                same(seq, last + 1, "the seq of an append that expected one less")
                won.append((seq, data))

        async with trio.open_nursery() as nursery:
            for name in range(8):
                nursery.start_soon(write, name)
        same(await log(store, at("a")), [Record(*pair) for pair in sorted(won)], "the log after the race")


async def crowd_of_appends(at: Place) -> None:
    """Appends of many tasks all arrive once, a task's own in order, a batch in one piece"""
    async with at.make() as store:
        answered: dict[int, bytes] = {}

        async def write(name: int) -> None:
            for turn in range(6):
                batch = [b"%d.%d.%d" % (name, turn, part) for part in range(3)]
                if name % 2:
                    seqs = await store.append_batch(at("a"), batch)
                    same(seqs, range(seqs.start, seqs.start + 3), "the seqs of a batch")
                    answered.update(zip(seqs, batch, strict=True))
                else:
                    for data in batch:
                        answered[await store.append(at("a"), data)] = data

        async with trio.open_nursery() as nursery:
            for name in range(8):
                nursery.start_soon(write, name)
        records = await log(store, at("a"))
        same([record.seq for record in records], list(range(1, 8 * 18 + 1)), "the seqs")
        same({record.seq: record.data for record in records}, answered, "the log")
        for name in range(8):
            own = [record.data for record in records if record.data.startswith(b"%d." % name)]
            same(own, sorted(own), "the order of one task's records")


async def batches(at: Place) -> None:
    """A batch is written whole or not at all"""
    async with at.make() as store:
        limits, topic = store.limits, at("a")
        same(await store.append_batch(topic, [b"1", b"", b"3"]), range(1, 4), "the seqs of a batch")
        small = b"x" * min(limits.record, limits.batch_bytes // limits.batch)
        too_many = [small] * (limits.batch + 1)
        too_heavy = [b"x" * limits.record] * (limits.batch_bytes // limits.record + 1)
        for batch in (too_many, too_heavy[: limits.batch + 1], [b"4", b"x" * (limits.record + 1), b"5"]):
            await refused(TooLarge, store.append_batch, topic, batch)
            await refused(TooLarge, store.append_batch, at("b"), batch)
        await refused(ValueError, store.append_batch, topic, [])
        same(await store.last(topic), 3, "last after refused batches")
        same(await store.topics(at.root), [topic], "the topics after refused batches")
        same(
            await store.append_batch(topic, too_many[1:]), range(4, 4 + limits.batch), "a batch at the limit"
        )
        same(len(await log(store, topic)), 3 + limits.batch, "the length of the log")


async def waiting_readers(at: Place) -> None:
    """A reader waits until there is a record for it, and gets each once"""
    async with at.make() as store, trio.open_nursery() as nursery:

        async def follow() -> list[Record]:
            records: list[Record] = []
            while len(records) < 9:
                records.append(await store.first_after(at("a"), records[-1].seq if records else 0))
            return records

        followers = [await parked(nursery, follow) for _ in range(6)]
        elsewhere = await parked(nursery, partial(store.first_after, at("b"), 0))
        ahead = await parked(nursery, partial(store.first_after, at("a"), 8))
        for turn in range(3):
            await store.append(at("a"), b"one")
            await wait_all_tasks_blocked()
            await store.append_batch(at("a"), [b"two", b"three"])
            holds(turn == 2 or not ahead.done.is_set(), "a reader after 8 was answered too early")
        same(await ahead.answer(), Record(9, b"three"), "the record after 8")
        wanted = [Record(seq, data) for seq, data in enumerate([b"one", b"two", b"three"] * 3, 1)]
        for follower in followers:
            same(await follower.answer(), wanted, "what a waiting reader got")
        holds(not elsewhere.done.is_set(), "a reader was woken by a record of another topic")
        await store.append(at("b"), b"own")
        same(await elsewhere.answer(), Record(1, b"own"), "what the other reader got")
        same(store.statistics().waiting, 0, "the number of waiting calls")


async def cancelled_readers(at: Place) -> None:
    """A cancelled read takes nothing, also when the record comes at the same moment"""
    async with at.make() as store:
        topic, got = at("a"), 0
        for turn in range(24):
            async with trio.open_nursery() as nursery:
                call = await parked(nursery, partial(store.first_after, topic, got))
                await store.append(topic, b"%d" % turn)
                for _ in range(turn % 4):
                    await trio.lowlevel.checkpoint()
                call.scope.cancel()
            record = call.answers[0] if call.answers else await store.first_after(topic, got)
            same(record, Record(turn + 1, b"%d" % turn), "the record after a cancelled read")
            got = record.seq
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.first_after(topic, 0)
        holds(scope.cancelled_caught, "a cancelled first_after answered")
        same(await store.first_after(topic, 0), Record(1, b"0"), "the first record")
        same(store.statistics().waiting, 0, "the number of waiting calls")


async def cancelled_writes(at: Place) -> None:
    """A cancelled write is whole or absent, and those after it are well"""
    async with at.make() as store:
        calls: list[Call[range]] = []
        for turn in range(24):
            batch = [b"%d.%d" % (turn, part) for part in range(3)]
            call = Call(partial(store.append_batch, at("a"), batch))
            calls.append(call)
            if turn % 6 == 0:
                call.scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call.go)
                for _ in range(turn % 6):
                    await trio.lowlevel.checkpoint()
                call.scope.cancel()
            holds(call.error is None, f"a cancelled append failed: {call.error!r}")
        same(len(await store.append_batch(at("a"), [b"24.0", b"24.1", b"24.2"])), 3, "an append after that")
        records = await log(store, at("a"))
        data = [record.data for record in records]
        for first in range(0, len(data), 3):
            turn = int(data[first].partition(b".")[0])
            same(data[first : first + 3], [b"%d.%d" % (turn, part) for part in range(3)], "a batch")
        same(len(set(data)), len(data), "the number of different records")
        for turn, call in enumerate(calls):
            for seqs in call.answers:
                same(records[seqs.start - 1].data, b"%d.0" % turn, "a record that was answered for")


async def trims(at: Place) -> None:
    """A trim forgets what it says and no more; numbers go on, and the loss can be seen"""
    async with at.make() as store:
        topic = at("a")
        for seq in range(1, 11):
            await store.append(topic, b"%d" % seq)
        same(await store.trim(topic, through=3), 3, "a trim through 3")
        same((await refused(Trimmed, store.read, topic, 3)).through, 3, "Trimmed.through")
        same(await store.first_after(topic, 0), Record(4, b"4"), "the first record kept")
        same(await store.trim(topic, through=2), 3, "a trim that would go back")
        same(await store.trim(topic, 20), 3, "a trim that keeps more than there is")
        same(await store.trim(topic, keep=2), 8, "a trim that keeps two of ten")
        same(await log(store, topic), [Record(9, b"9"), Record(10, b"10")], "what is kept")
        await refused(NotFound, store.read, topic, 11)
        same(await store.trim(topic, through=99), 10, "a trim through more than there is")
        same(await store.last(topic), 10, "last after all is trimmed")
        refused_nowait(trio.WouldBlock, store.first_after_nowait, topic, 0)
        same(await store.topics(at.root), [topic], "the topics after all is trimmed")
        same(await store.append(topic, b"11"), 11, "the seq after all was trimmed")
        same(await store.first_after(topic, 4), Record(11, b"11"), "the next record of a reader left behind")
        await refused(ValueError, store.trim, topic)
        await refused(ValueError, store.trim, topic, 1, through=1)
        await refused(ValueError, store.trim, topic, -1)
        await refused(ValueError, store.trim, topic, through=-1)
        same(await store.read(topic, 11), Record(11, b"11"), "a record after refused trims")
        await store.append_batch(topic, [b"12", b"13"])
        await store.trim(topic, 0)
        same(await store.append(topic, b"14", expect_last=13), 14, "the seq after all was trimmed")


async def trims_under_readers(at: Place) -> None:
    """A trim neither wakes nor fails a waiting reader, though it takes what the reader was to have"""
    async with at.make() as store, trio.open_nursery() as nursery:
        await store.append_batch(at("a"), [b"1", b"2"])
        call = await parked(nursery, partial(store.first_after, at("a"), 2))
        await store.trim(at("a"), 0)
        await wait_all_tasks_blocked()
        holds(not call.done.is_set(), "a trim woke a reader")
        await store.append(at("a"), b"3")
        same(await call.answer(), Record(3, b"3"), "what the reader got")

        for last in range(3, 35, 2):
            call = await parked(nursery, partial(store.first_after, at("a"), last))
            async with trio.open_nursery() as racing:
                racing.start_soon(store.append, at("a"), b"brief")
                racing.start_soon(store.trim, at("a"), 0)
            await store.append(at("a"), b"next")
            record = await call.answer()
            wanted = (Record(last + 1, b"brief"), Record(last + 2, b"next"))
            holds(record in wanted, f"a reader after {last} got {record!r}")


CHECKS = (
    numbers_without_gaps,
    unwritten_topics,
    expectation_of_last,
    race_of_appends,
    crowd_of_appends,
    batches,
    waiting_readers,
    cancelled_readers,
    cancelled_writes,
    trims,
    trims_under_readers,
)
