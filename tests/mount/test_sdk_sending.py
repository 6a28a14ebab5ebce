"""What is sent at the same time goes together, and each message is answered as if it were alone."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.mount.sdk import Node, Sent, node
from warren.mount.sdk.wire import KEPT, tell
from warren.servers.mailbox.records import Seen
from warren.servers.mailbox.writing import ParcelHandle
from warren.traces.audit import AuditMemory
from warren.tree import Bytes, Maybe
from warren.tree.promise import Promise

from tests.mount.nodes import QUICK, Cut, Line, serving
from tests.servers.reach import attributes_of

T = "/mailbox/t"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every write to a `send.h`, as the server has it."""
    seen: list[bytes] = []
    true = ParcelHandle.write

    def write(handle: ParcelHandle, offset: int, data: Bytes) -> Maybe[int]:
        seen.append(bytes(data))
        return true(handle, offset, data)

    monkeypatch.setattr(ParcelHandle, "write", write)
    return seen


async def stats(n: Node) -> dict[str, str]:
    return attributes_of(await n.read(f"{T}/stats"))


async def bodies(n: Node, many: int) -> list[bytes]:
    """The next so many, in the order in which they are handed out."""
    found: list[bytes] = []
    async with n.mailbox("t").receive() as messages:
        async for message in messages:
            found.append(message.body)
            if len(found) == many:
                return found
    raise AssertionError("the loop ended")


async def together(sends: Sequence[Awaitable[Sent]]) -> list[Sent | OSError]:
    """What became of each of what is sent at the same time, begun in that order."""
    got: list[Sent | OSError | None] = [None] * len(sends)

    async def one(n: int, send: Awaitable[Sent]) -> None:
        try:
            got[n] = await send
        except OSError as e:
            got[n] = e

    async with trio.open_nursery() as nursery:
        for n, send in enumerate(sends):
            await nursery.start(_begun, one, n, send)
    return [each for each in got if each is not None]


async def _begun(one: object, n: int, send: Awaitable[Sent], task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await one(n, send)  # type: ignore[operator]


async def test_what_is_sent_at_once_shares_writes_and_each_has_its_own_answer(
    tmp_path: Path, autojump_clock: MockClock, written: list[bytes]
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        got: dict[int, Sent] = {}

        async def send(k: int) -> None:
            got[k] = await topic.send(b"%d" % k)

        async with trio.open_nursery() as nursery:
            for k in range(200):
                nursery.start_soon(send, k)
        assert 200 / 32 <= len(written) <= 12
        assert sum(parcel.count(b"idem=") for parcel in written) == 200
        assert sorted(sent.seq for sent in got.values()) == list(range(1, 201))
        assert len({sent.id for sent in got.values()}) == 200
        assert not any(sent.dup for sent in got.values())
        order = sorted(got, key=lambda k: got[k].seq)
        assert await bodies(n, 200) == [b"%d" % k for k in order]


async def test_one_that_sends_alone_waits_for_nobody_and_opens_the_file_once(
    tmp_path: Path, written: list[bytes]
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        await n.mailbox("t").make()
        for k in range(5):
            assert (await n.mailbox("t").send(b"x")).seq == k + 1
        assert len(written) == 5
        assert not any(parcel.startswith(b"batch=") for parcel in written)
        audit = there.export.audit
        assert isinstance(audit, AuditMemory)
        ops = [line.op for line in audit.lines if line.path == f"{T}/send.h"]
        assert ops == ["open", "open"]  # its intent and its outcome


async def test_a_bad_message_fails_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        await topic.send(b"taken", idem="k")
        sends = [topic.send(b"%d" % k) for k in range(20)]
        others = [topic.send(b"other", idem="k"), topic.send(b"taken", idem="k"), topic.send(b"y", ttl=1e-5)]
        sends[7:7] = others
        got = await together(sends)
        bad = {k: each for k, each in enumerate(got) if isinstance(each, OSError)}
        assert [(k, type(e).__name__) for k, e in bad.items()] == [(7, "FileExistsError"), (9, "OSError")]
        assert "idem=k" in bad[7].__notes__
        assert "400 " in str(bad[9])
        good = [each for each in got if not isinstance(each, OSError)]
        assert [each.dup for each in good] == [k == 7 for k in range(21)]
        assert (await stats(n))["sent"] == "21"


async def test_messages_of_one_key_come_in_the_order_of_the_calls(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        # Room for a few only, so that batches are refused and taken apart; somebody makes room meanwhile.
        await n.write(f"{T}/ctl", b"set count=5")
        seen: list[bytes] = []

        async def drain() -> None:
            async with topic.receive() as messages:
                async for message in messages:
                    seen.append(message.body)
                    if len(seen) == 90:
                        break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            words = [f"{key}{k:02}" for k in range(30) for key in "abc"]
            got = await together([topic.send(word.encode(), key=word[0]) for word in words])
        assert not [each for each in got if isinstance(each, OSError)]
        for key in (b"a", b"b", b"c"):
            mine = [body for body in seen if body.startswith(key)]
            assert mine == [b"%s%02d" % (key, k) for k in range(30)]


async def test_large_messages_go_in_batches_that_a_topic_takes(
    tmp_path: Path, autojump_clock: MockClock, written: list[bytes]
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        sizes = [200_000, 200_000, 200_000, 700_000, 1, 512 << 10, 512 << 10, 0]
        large = [os.urandom(size) for size in sizes]
        got = await together([topic.send(body) for body in large])
        assert not [each for each in got if isinstance(each, OSError)]
        assert sorted(await bodies(n, len(large))) == sorted(large)


async def test_a_cancelled_caller_harms_no_other(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        got: list[int] = []

        async def send(k: int, scope: trio.CancelScope) -> None:
            with scope:
                await topic.send(b"%d" % k)
                got.append(k)

        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(100)]
            for k, scope in enumerate(scopes):
                nursery.start_soon(send, k, scope)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
        assert set(got) >= set(range(1, 100, 2))
        assert int((await stats(n))["sent"]) >= len(got)


async def test_a_topic_remembers_what_is_outstanding_and_what_may_still_come(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        serving(tmp_path) as there,
        Line(there.address, tmp_path / "line") as line,
        node(line.address, patience=QUICK) as n,
    ):
        topic = n.mailbox("t")
        await topic.make()

        def known() -> dict[bytes, Seen]:
            found = there.mailbox.known("t")
            assert found is not None
            seen: dict[bytes, Seen] = found.ledger.state.seen
            return seen

        for _ in range(50):
            await topic.send(b"alone")
        assert len(known()) == 1
        await together([topic.send(b"%d" % k) for k in range(500)])
        assert len(known()) <= 100
        for k in range(100):
            await topic.send(b"%d" % k, deadline=30)
        given = await topic.send(b"mine", idem="mine")
        before = len(known())
        line.again(Cut("down", 20))
        lost = await topic.send(b"its answer is lost")
        assert lost.dup
        for _ in range(before + 50):
            await topic.send(b"later")
        numbers = {seen.number for seen in known().values()}
        assert len(numbers) <= 10  # of 700 that were sent
        assert {given.seq, lost.seq} <= numbers
        assert (await topic.send(b"mine", idem="mine")) == given._replace(dup=True)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write to a `send.h` is ever answered."""
    monkeypatch.setattr(ParcelHandle, "write", lambda handle, offset, data: Promise())


@pytest.mark.parametrize("deadline", [None, 5.0])
async def test_what_was_heard_takes_no_room_from_long_headers(
    tmp_path: Path, autojump_clock: MockClock, written: list[bytes], deadline: float | None
) -> None:
    long = "\U0001f600" * 200
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(topic.send, b"")
        sent = await topic.send(b"", idem=long, key=long, corr=long, type=long, deadline=deadline)
        assert (sent.seq, sent.dup) == (101, False)
        assert [b"idem=\xf0" in parcel for parcel in written].count(True) == 1
        heard, _, _ = written[-1].partition(b"idem=")
        assert heard.startswith(b"heard=")
        await topic.send(b"")
        assert written[-1].startswith(b"heard=")  # what there was no room for


async def test_what_was_given_up_does_not_gather_behind_a_node_that_is_silent(
    tmp_path: Path, autojump_clock: MockClock, silent: None
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        sender = n.sender(f"{T}/send.h")
        for _ in range(300):
            with trio.move_on_after(0.01):
                await topic.send(bytes(1000))
        assert len(sender._waiting) <= 64


async def test_each_has_its_own_deadline_whoever_is_in_its_batch(
    tmp_path: Path, autojump_clock: MockClock, silent: None
) -> None:
    async with serving(tmp_path) as there, node(there.address, deadline=10) as n:
        topic = n.mailbox("t")
        await topic.make()
        took: list[float] = []

        async def send(after: float) -> None:
            await trio.sleep(after)
            began = trio.current_time()
            with pytest.raises(TimeoutError) as e:
                await topic.send(b"x")
            assert "not done within 10 s" in str(e.value)
            assert any("idem=" in note for note in e.value.__notes__)
            took.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for after in (0, 0.1, 1, 2, 9.5, 9.6):
                nursery.start_soon(send, after)
        assert took == pytest.approx([10] * 6, abs=0.01)


async def test_who_sends_to_a_node_that_was_left_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as there:
        async with node(there.address) as n:
            await n.mailbox("t").make()
            await n.mailbox("t").send(b"x")
            async with n.mailbox("t").receive() as messages:
                message = await anext(aiter(messages))
        with pytest.raises(ConnectionResetError, match="the node was left; it was not sent"):
            await n.mailbox("t").send(b"y")
        with pytest.raises(OSError):  # not a complaint about a nursery
            await tell(n, message.path, f"{message.id} {message.head['lease']}\n".encode())


async def test_leaving_the_node_tells_those_who_still_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as there:
        outcome: list[str] = []
        async with trio.open_nursery() as nursery:
            async with node(there.address) as n:
                topic = n.mailbox("t")
                await topic.make()
                await n.write(f"{T}/ctl", b"set count=1")
                await topic.send(b"full now")

                async def send() -> None:
                    try:
                        await topic.send(b"x", key="k")
                    except ConnectionResetError as e:
                        outcome.append(str(e))

                for _ in range(50):
                    nursery.start_soon(send)
                await wait_all_tasks_blocked()
        assert len(outcome) == 50
        assert all("the node was left" in each for each in outcome)


async def test_a_topic_that_was_made_again_is_found_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        for _ in range(3):
            await n.mailbox("t").make()
            assert (await n.mailbox("t").send(b"x")).seq == 1
            await n.write(f"{T}/ctl", b"purge")
            await n.files.remove(T)
        with pytest.raises(FileNotFoundError):
            await n.mailbox("t").send(b"x")


async def test_files_are_not_kept_open_for_ever(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        for k in range(KEPT + 20):
            await n.mailbox(f"t{k}").make()
            await n.mailbox(f"t{k}").send(b"x")
        await wait_all_tasks_blocked()
        assert there.export.statistics()["fids"] <= KEPT + 2


async def test_together_they_are_sent_once_wherever_the_line_is_cut(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        serving(tmp_path) as there,
        Line(there.address, tmp_path / "line") as line,
        node(there.address) as near,
    ):
        await near.mailbox("t").make()
        total, lost = 0, 0
        for way, length in (("up", 1200), ("down", 700)):
            for after in range(0, length, 17):
                line.again(Cut(way, after))
                async with node(line.address, patience=QUICK) as n:
                    topic = n.mailbox("t")
                    got = await together([topic.send(b"%d" % k, key="a" if k % 2 else "") for k in range(8)])
                assert not [each for each in got if isinstance(each, OSError)], (way, after)
                total += 8
                lost += line.cuts
                assert len({each.id for each in got if isinstance(each, Sent)}) == 8
                assert int((await stats(near))["sent"]) == total, (way, after)
        assert lost > 50
        assert int((await stats(near))["dup"]) > 50, "no reply was lost at all"


@pytest.mark.parametrize("deadline", [None, 5.0])
@pytest.mark.parametrize(
    "answer", [f"id=x seq={'9' * 5000} dup=0\n", "id=x seq=\u00b2 dup=0\n", "id='x seq=x dup=0\n"],
    ids=["long", "no number", "no words"],
)  # fmt: skip
async def test_what_a_server_answers_that_makes_no_sense_is_an_error_of_who_sends(
    tmp_path: Path, answer: str, deadline: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = answer.encode("latin-1")
    monkeypatch.setattr(ParcelHandle, "read", lambda handle, offset, count: said[offset : offset + count])
    async with serving(tmp_path) as there, node(there.address, deadline=5) as n:
        await n.mailbox("t").make()
        with pytest.raises(OSError, match=r"cannot be read|were answered"):
            await n.mailbox("t").send(b"x", deadline=deadline)
        assert (await stats(n))["sent"] == "1"  # and nobody else suffers for it
