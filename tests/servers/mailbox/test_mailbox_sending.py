"""Sending: one write is one message, headers, idempotency, room."""

import os
import re
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.servers.mailbox import Limits
from warren.servers.mailbox.records import Message, Seen, Send
from warren.servers.mailbox.state import State
from warren.servers.mailbox.words import Form
from warren.store import Limits as StoreLimits
from warren.store import MemoryStore
from warren.tree import Refused

from tests.servers.mailbox.place import O_RDWR, Box, T, a_mailbox, box


class Slow(MemoryStore):
    """A store whose appends wait while the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: trio.Event | None = None

    async def append_batch(
        self, topic: str, batch: Sequence[bytes], *, expect_last: int | None = None
    ) -> range:
        if self.closed is not None:
            await self.closed.wait()
        return await super().append_batch(topic, batch, expect_last=expect_last)


async def test_one_write_is_one_message_and_is_not_looked_into(autojump_clock: MockClock) -> None:
    async with box() as t:
        for body in (b"hello\n", b"idem=k\n\nno header here", b"", bytes(range(256)), b"x" * 60_000):
            said = await t.said("send", body) if body else {}
            if not body:
                async with await t.files.open(f"{T}/send", os.O_WRONLY) as file:
                    assert await file.write(b"") == 0
                continue
            assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", said["id"])
            got = await t.recv()
            assert got.body == body
            assert got.id == said["id"]
            assert got.values["from"] == "ann"


async def test_ids_are_ulids_of_their_time(autojump_clock: MockClock) -> None:
    async with box() as t:
        first = (await t.send())["id"]
        await trio.sleep(5)
        second = (await t.send())["id"]
        assert first < second
        alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
        digits = [[alphabet.index(c) for c in id[:10]] for id in (first, second)]
        times = [sum(d << 5 * (9 - at) for at, d in enumerate(each)) for each in digits]
        assert times[1] - times[0] == pytest.approx(5000, abs=2)


async def test_headers_travel_with_the_message(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.send(b"body", "idem=k1 prio=3 key=a corr='x y' type=text/plain\nttl=1h delay=0s")
        got = await t.recv()
        assert got.body == b"body"
        assert (got.key, got.corr, got.type, got.prio) == ("a", "x y", "text/plain", "3")
        assert "undeclared" not in got.values


async def test_a_body_of_unknown_length_is_committed_by_the_close(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.files.write(f"{T}/send.h", b"key=a\n\nwhole?")
        got = await t.recv()
        assert (got.body, got.undeclared) == (b"whole?", "1")
        await t.ack(got.id)
        await t.files.write(f"{T}/send.h", b"\nbody alone")
        assert (await t.recv()).body == b"body alone"


async def test_a_large_body_comes_in_many_writes(autojump_clock: MockClock) -> None:
    body = os.urandom(700_000)
    async with box() as t:
        async with await t.files.open(f"{T}/send.h", O_RDWR) as file:
            await file.write(b"len=%d\n\n" % len(body) + body)
            assert (await file.pread(100, 0)).startswith(b"id=")
        assert (await t.recv()).body == body


BAD = [
    (b"colour=red\n\nx", "400"),
    (b"prio=10\n\nx", "400"),
    (b"prio=-1\n\nx", "400"),
    (b"prio=\xc2\xb2\n\nx", "400"),
    (b"ttl=0s\n\nx", "400"),
    (b"ttl=nan\n\nx", "400"),
    (b"delay=inf\n\nx", "400"),
    (b"delay=-1s\n\nx", "400"),
    (b"key=\n\nx", "400"),
    (b"key=a key=b\n\nx", "400"),
    (b"key='a\n\nx", "400"),
    (b"idem=" + b"k" * 201 + b"\n\nx", "400"),
    (b"\xff\xfe\n\nx", "400"),
    (b"a\0b\n\nx", "400"),
    (b"key=a", "400"),
    (b"key=" + b"a" * 5000, "400"),
    (b"len=99999999999\n\nx", "400"),
    (b"len=3\n\ntoo long", "413"),
    (b"len=9\n\nshort", "422"),
    (b"batch=2 len=1\n\na", "422"),
    (b"batch=33 len=1\n\na", "400"),
    (b"batch=0\n\n", "400"),
    (b"batch=2\n\nab", "400"),
    (b"batch=2 len=1\n\nabatch=1 len=1\n\nb", "400"),
    (b"batch=2 idem=a len=1\n\nxidem=a len=1\n\ny", "400"),
]


@pytest.mark.parametrize(("data", "code"), BAD, ids=range(len(BAD)))
async def test_bad_headers_send_nothing(data: bytes, code: str, autojump_clock: MockClock) -> None:
    async with box() as t:

        async def sends() -> None:
            async with await t.files.open(f"{T}/send.h", O_RDWR) as file:
                await file.write(data)
                await file.fsync()

        with pytest.raises(OSError, match=rf"{code} "):
            await sends()
        assert (await t.stats())["sent"] == 0


async def test_a_batch_is_sent_whole_and_in_order(autojump_clock: MockClock) -> None:
    async with box() as t:
        parts = [b"batch=3 key=a len=1\n\n1", b"prio=0 len=5\n\nt\n\nwo", b"len=0\n\n"]
        async with await t.files.open(f"{T}/send.h", O_RDWR) as file:
            for part in parts:
                await file.write(part)
            said = (await file.pread(4000, 0)).decode().splitlines()
        assert [line.split()[1] for line in said] == ["seq=1", "seq=2", "seq=3"]
        assert [got.body for got in await t.all("max=10")] == [b"1", b"t\n\nwo", b""]


async def test_one_open_takes_one_body_after_the_other_where_their_lengths_are_said(
    autojump_clock: MockClock,
) -> None:
    async with box() as t:
        async with await t.files.open(f"{T}/send.h", O_RDWR) as file:
            parcels = (b"len=1\n\na", b"batch=2 len=1\n\nblen=1\n\nc", b"corr='x y' len=1\n\nd")
            for n, parcel in enumerate(parcels):
                await file.pwrite(parcel, 0)
                said = (await file.pread(4000, 0)).decode().splitlines()
                assert [line.split()[1] for line in said] == [["seq=1"], ["seq=2", "seq=3"], ["seq=4"]][n]
            with pytest.raises(OSError, match="409"):
                await file.pwrite(b"len=1\n\ne", 20)  # behind a body there is nothing
            with pytest.raises(OSError, match="400"):
                await file.pwrite(b"batch=40 len=1\n\nf", 0)
            with pytest.raises(OSError, match="409"):
                await file.pwrite(b"len=1\n\ng", 0)  # it was refused, and did not end by its length
        async with await t.files.open(f"{T}/send.h", O_RDWR) as file:
            await file.pwrite(b"len=5\n\nh", 0)
            with pytest.raises(OSError, match="416"):
                await file.pwrite(b"len=1\n\ni", 0)
            await file.pwrite(b"hhhh", 8)
        assert b"".join([got.body for got in await t.all("max=10")]) == b"abcdhhhhh"


@pytest.mark.parametrize("stale", [False, True])
async def test_a_read_waits_for_the_answer_of_the_body_that_is_being_sent(
    autojump_clock: MockClock, stale: bool
) -> None:
    store = Slow()
    mailbox = a_mailbox(store)
    async with box(mailbox) as t:
        async with await t.files.open(f"{T}/send.h", O_RDWR) as file:
            store.closed = trio.Event()
            answers: list[bytes] = []

            async def write(body: bytes) -> None:
                await file.pwrite(body, 0)

            async def read() -> None:
                answers.append(await file.pread(4000, 0))

            async with trio.open_nursery() as nursery:
                for parcel in (b"len=1\n\na", b"type=t len=1\n\nb"):
                    store.closed = trio.Event()
                    topic = mailbox.known("t")
                    assert topic is not None
                    topic.ledger.stale = stale  # then the log is read first
                    nursery.start_soon(write, parcel)
                    await wait_all_tasks_blocked()
                    nursery.start_soon(read)
                    await wait_all_tasks_blocked()
                    with pytest.raises(OSError, match="409"):
                        await write(b"len=1\n\nc")
                    store.closed.set()
                    await wait_all_tasks_blocked()
        assert [answer.split()[1] for answer in answers] == [b"seq=1", b"seq=2"]


PLAIN = [
    b"len=0\n\n",
    b"len=3\n\nabc",
    b"len=3\n\nabcd",
    b"len=4\n\nabc",
    b"idem=a.1:b/c-d key=k_9 len=1\n\nx",
    b"key=k idem=a len=1\n\nx",
    b"batch=1 len=1\n\nx",
    b"batch=2 idem=a len=1\n\nxkey=b len=2\n\n\n\n",
    b"batch=2 len=1\n\nxbatch=2 len=1\n\ny",
    b"batch=2 len=1\n\nxlen=1\n\nyz",
    b"batch=0 len=1\n\nx",
    b"batch=33 len=1\n\nx",
    b"batch=2 len=1\n\nx",
    b"idem=" + b"k" * 201 + b" len=1\n\nx",
    b"len=9999999\n\nx",
    b"\nno header",
    b"",
    b"heard=n.1 idem=n.2 key=k len=1\n\nx",
    b"batch=2 heard=a,c idem=b len=1\n\nxlen=0\n\n",
    b"idem=n.2 heard=n.1 len=1\n\nx",
    b"batch=2 len=1\n\nxheard=c len=0\n\n",
    b"heard=a,,b len=0\n\n",
    b"heard=" + b"k" * 201 + b" len=0\n\n",
]


@pytest.mark.parametrize("data", PLAIN, ids=range(len(PLAIN)))
def test_what_is_said_plainly_means_the_same_as_to_who_looks_closer(data: bytes) -> None:
    form = Form(most=1000)
    simple = form.simple(data)
    try:
        assert simple in (None, form.open(data, True))
    except Refused:
        assert simple is None


def test_only_what_is_said_plainly_is_taken_so() -> None:
    taken = [data for data in PLAIN if Form(most=1000).simple(data) is not None]
    assert taken == [PLAIN[n] for n in (0, 1, 4, 6, 7, 17, 18)]


@pytest.mark.parametrize("length", [1, 14, 15, 16, 47, 48, 49, 200])
async def test_keys_of_every_length_are_told_apart(length: int, autojump_clock: MockClock) -> None:
    async with box() as t:
        first = await t.send(b"a", f"idem={'k' * length}")
        assert (await t.send(b"a", f"idem={'k' * length}")) == first | {"dup": "1"}
        assert (await t.send(b"b", f"idem={'k' * (length - 1)}j"))["dup"] == "0"


async def test_an_idempotency_key_counts_once_within_its_window(autojump_clock: MockClock) -> None:
    async with box() as t:
        first = await t.send(b"pay 5", "idem=k1")
        again = await t.send(b"pay 5", "idem=k1")
        assert again == first | {"dup": "1"}
        with pytest.raises(FileExistsError, match="409"):
            await t.send(b"pay 6", "idem=k1")
        with pytest.raises(FileExistsError, match="409"):
            await t.send(b"pay 5", "idem=k1 type=other")
        stats = await t.stats()
        assert (stats["sent"], stats["dup"], stats["depth"]) == (1, 1, 1)
        await t.ack((await t.recv()).id)
        assert (await t.send(b"pay 5", "idem=k1"))["dup"] == "1"
        await trio.sleep(301)
        assert (await t.send(b"pay 5", "idem=k1"))["dup"] == "0"


async def test_keys_are_remembered_up_to_a_limit_and_never_forgotten_early(autojump_clock: MockClock) -> None:
    async with box(a_mailbox(limits=Limits(keys=3))) as t:
        for n in range(3):
            await t.send(b"x", f"idem=k{n}")
        with pytest.raises(BlockingIOError, match="retry_after=1"):
            await t.send(b"x", "idem=k3")
        assert (await t.send(b"x", "idem=k0"))["dup"] == "1"
        await trio.sleep(300)
        assert (await t.send(b"x", "idem=k3"))["dup"] == "0"


async def test_a_key_whose_answer_was_heard_is_forgotten_with_the_next_message(
    autojump_clock: MockClock,
) -> None:
    async with box(a_mailbox(limits=Limits(keys=3))) as t:
        await t.send(b"x", "idem=mine")
        for n in range(20):
            assert (await t.send(b"x", f"idem=k{n} heard=k{n - 1}"))["dup"] == "0"
        assert (await t.send(b"x", "idem=mine"))["dup"] == "1"
        assert (await t.send(b"x", "idem=k19"))["dup"] == "1"
        assert (await t.send(b"x", "idem=k18"))["dup"] == "0"  # no longer known
        with pytest.raises(BlockingIOError, match="idempotency keys"):
            await t.send(b"x", "idem=other heard=unknown")
        assert (await t.send(b"x", "idem=k19 heard=k19"))["dup"] == "1"  # it is no message, so nothing is new
        assert (await t.send(b"x", "idem=k19"))["dup"] == "1"


async def test_a_key_that_is_said_to_be_heard_and_sent_again_at_once_is_not_forgotten() -> None:
    async with box() as t:
        first = await t.send(b"x", "idem=a")
        async with await t.files.open(f"{T}/send.h", os.O_RDWR) as file:
            await file.pwrite(b"batch=2 heard=a,b idem=a len=1\n\nxidem=b len=0\n\n", 0)
            said = (await file.pread(4096, 0)).splitlines()
            assert [line.split()[2] for line in said] == [b"dup=1", b"dup=0"]
        again = await t.send(b"x", "idem=a")
        assert (again["id"], again["dup"]) == (first["id"], "1")
        assert (await t.send(b"", "idem=b"))["dup"] == "1"


def test_what_was_forgotten_leaves_nothing_behind_and_the_log_says_so() -> None:
    state, again = State(), State()
    for n in range(1, 20_001):
        key, before = b"=%d" % n, b"=%d" % (n - 1)
        seen = [Seen(key, f"id{n}", n, b"p", n / 1000 + 300)]
        record = Send(n / 1000, n, [Message(f"id{n}", b"")], seen, [before] if n % 1000 else [])
        for each in (state, again):
            each.apply(record, n)
    assert list(state.seen) == [*(b"=%d" % n for n in range(999, 20_000, 1000)), b"=20000"]
    assert sum(len(keys) for _, keys in state._windows) < 10_000
    assert state.dump() == again.dump() == State.load(state.dump()).dump()
    state.advance(400.0)
    assert not state.seen
    assert not state._windows


async def fill(t: Box, count: int) -> list[str]:
    return [(await t.send(b"%d" % n))["id"] for n in range(count)]


async def test_a_full_topic_refuses_and_drops_nothing(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.ctl("set count=3")
        ids = await fill(t, 3)
        with pytest.raises(BlockingIOError, match=r"429 busy.*retry_after=1"):
            await t.send()
        got = [await t.recv() for _ in range(3)]
        assert [g.id for g in got] == ids
        with pytest.raises(BlockingIOError):
            await t.send()  # what is leased is still there
        await t.ack(ids[0])
        await t.send()
        await t.ctl("set count=100 bytes=2k")
        with pytest.raises(BlockingIOError, match="bytes"):
            await t.send(bytes(1700))
        with pytest.raises(OSError, match="413"):
            await t.send(bytes(3000))


async def test_a_topic_that_may_drop_drops_the_oldest_and_says_so(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.ctl("set count=3 full=drop")
        ids = await fill(t, 3)
        held = await t.recv()
        assert held.id == ids[0]
        await fill(t, 2)
        stats = await t.stats()
        assert (stats["dropped"], stats["messages"]) == (2, 3)
        await t.ack(held.id)
        assert [(await t.recv()).body for _ in range(2)] == [b"0", b"1"]


async def test_what_is_longer_than_a_record_is_refused(autojump_clock: MockClock) -> None:
    store = MemoryStore(limits=StoreLimits(record=20_000))
    async with box(a_mailbox(store)) as t:
        with pytest.raises(OSError, match="413"):
            await t.send(bytes(4000))
        await t.send(bytes(3000))
        with pytest.raises(OSError, match=r"4(00|13)"):
            await t.send(bytes(4000), "key=a")


async def test_a_full_store_refuses_and_the_topic_goes_on(autojump_clock: MockClock) -> None:
    async with box(a_mailbox(MemoryStore(capacity=6700))) as t:
        for _ in range(8):
            await t.send(bytes(500))
        with pytest.raises(OSError, match="507"):
            await t.send(bytes(1500))
        stats = await t.stats()
        assert (stats["sent"], stats["depth"]) == (8, 8)
        await t.send()
        assert (await t.recv()).body == bytes(500)
