"""Those who wait at the same time are served together, and each is as if it were alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.mount.sdk import GiveBack, Message, Node, node
from warren.servers.mailbox.leasing import answer
from warren.servers.mailbox.operating import delete
from warren.servers.mailbox.receiving import RecvHandle
from warren.servers.mailbox.topic import Topic
from warren.servers.mailbox.words import Answer
from warren.servers.task import working
from warren.servers.task.queue import TaskQueue
from warren.servers.task.working import fail, hb
from warren.tree import Bytes, Maybe, Refused

from tests.mount.nodes import QUICK, serving
from tests.servers.reach import attributes_of

T = "/mailbox/t"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every write to a `recv`, as the server has it."""
    seen: list[bytes] = []
    true = RecvHandle.write

    def write(handle: RecvHandle, offset: int, data: Bytes) -> Maybe[int]:
        seen.append(bytes(data))
        return true(handle, offset, data)

    monkeypatch.setattr(RecvHandle, "write", write)
    return seen


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines each write to an `ack` had."""
    seen: list[int] = []

    async def counted(topic: object, group: str, subject: str, answers: list[Answer]) -> None:
        seen.append(len(answers))
        await answer(topic, group, subject, answers)  # type: ignore[arg-type]

    monkeypatch.setattr("warren.servers.mailbox.files.answer", counted)
    return seen


async def stats(n: Node) -> dict[str, str]:
    return attributes_of(await n.read(f"{T}/stats"))


async def sent(n: Node, many: int) -> None:
    topic = n.mailbox("t")
    await topic.make()
    async with trio.open_nursery() as nursery:
        for k in range(many):
            nursery.start_soon(topic.send, b"%d" % k)


async def test_what_is_received_at_once_shares_reads_and_what_is_acknowledged_writes(
    tmp_path: Path, autojump_clock: MockClock, asked: list[bytes], answered: list[int]
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        await sent(n, 200)
        got: list[bytes] = []
        all_here = trio.Event()

        async def work(message: Message) -> None:
            got.append(message.body)
            if len(got) == 200:
                all_here.set()

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(n.mailbox("t").receive().each, work)
            await all_here.wait()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert sorted(got, key=int) == [b"%d" % k for k in range(200)]
        assert len(asked) < 25
        assert sum(answered) == 200
        assert len(answered) < 25
        said = await stats(n)
        words = ("acked", "inflight", "readers", "redelivered")
        assert [said[word] for word in words] == ["200", "0", "0", "0"]


async def test_one_that_waits_alone_asks_for_one(
    tmp_path: Path, asked: list[bytes], autojump_clock: MockClock
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        await sent(n, 3)
        async with n.mailbox("t").receive() as messages:
            got = [(await anext(aiter(messages))).body for _ in range(3)]
        assert sorted(got) == [b"0", b"1", b"2"]
        assert [data.split()[0] for data in asked] == [b"max=1"] * 3
        assert (await stats(n))["acked"] == "3"


async def test_who_gave_up_is_given_nothing(
    tmp_path: Path, autojump_clock: MockClock, asked: list[bytes]
) -> None:
    """Ten wait, and seven leave: what comes is for those who are still there, and no more is taken."""
    async with serving(tmp_path) as there, node(there.address) as n:
        await n.mailbox("t").make()
        got: list[bytes] = []
        scopes = [trio.CancelScope() for _ in range(10)]

        async def receive(scope: trio.CancelScope) -> None:
            with scope:
                async with n.mailbox("t").receive(lease=3600) as messages:
                    got.append((await anext(aiter(messages))).body)

        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(receive, scope)
            await wait_all_tasks_blocked()
            for scope in scopes[2:9]:
                scope.cancel()
            await wait_all_tasks_blocked()
            await sent(n, 5)
        said = await stats(n)
        assert len(got) == 3
        assert (said["acked"], said["depth"], said["inflight"], said["nacked"]) == ("3", "2", "0", "0")
        assert [data.split()[0] for data in asked] == [b"max=10", b"max=3"]


async def test_an_answer_that_is_refused_hurts_no_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        await sent(n, 8)
        outcome: dict[bytes, str] = {}
        here, late = trio.Event(), 0

        async def receive() -> None:
            nonlocal late
            async with n.mailbox("t").receive() as messages:
                message = await anext(aiter(messages))
                late += 1
                if late == 8:
                    here.set()
                await here.wait()
                if message.body in (b"2", b"5"):
                    await n.write(f"{T}/del", message.id.encode())  # so there is nothing to answer any more
                    await message.ack()

        async def watched(k: int) -> None:
            try:
                await receive()
            except FileExistsError:
                outcome[b"%d" % k] = "409"

        async with trio.open_nursery() as nursery:
            for k in range(8):
                nursery.start_soon(watched, k)
        assert list(outcome.values()) == ["409"] * 2
        said = await stats(n)
        assert (said["acked"], said["inflight"]) == ("6", "0")


async def test_large_messages_come_together_as_far_as_they_fit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """More than one read brings, and more than one batch."""
    async with serving(tmp_path) as there, node(there.address) as n:
        topic = n.mailbox("t")
        await topic.make()
        bodies = {os.urandom(200_000) for _ in range(8)}
        for body in bodies:
            await topic.send(body, corr="len=3 batch=9 it's\nquoted")
        got: set[bytes] = set()
        async with trio.open_nursery() as nursery:

            async def work(message: Message) -> None:
                assert message.head["corr"] == "len=3 batch=9 it's\\x0aquoted"
                got.add(message.body)
                if got == bodies:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(lambda: n.mailbox("t").receive().each(work, at_once=8))
        assert got == bodies


async def test_leases_are_extended_while_many_are_held(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as there, node(there.address) as n:
        await sent(n, 20)
        done = 0

        async def work(message: Message) -> None:
            nonlocal done
            await trio.sleep(60 + 7 * (message.seq % 3))
            if message.attempt == 1 and message.seq == 4:
                raise GiveBack(delay=0)
            done += 1
            if done == 20:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: n.mailbox("t").receive(lease=2).each(work, at_once=20))
        said = await stats(n)
        assert (done, said["timed_out"], said["nacked"]) == (20, "0", "1")


async def test_what_is_answered_when_it_is_due_is_not_extended(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    async def heard(topic: Topic, group: str, subject: str, answers: list[Answer]) -> None:
        try:
            await answer(topic, group, subject, answers)
        except Refused:
            refused.extend(each.verb for each in answers)
            raise

    monkeypatch.setattr("warren.servers.mailbox.files.answer", heard)
    async with serving(tmp_path) as there, node(there.address) as n:
        await sent(n, 40)
        with trio.move_on_after(100):
            each = n.mailbox("t").receive().each
            await each(lambda message: trio.sleep_until(message.due), at_once=40)
        assert (refused, (await stats(n))["acked"]) == ([], "40")


@pytest.mark.parametrize("kind", ["message", "task"])
async def test_an_extension_that_finds_no_lease_was_not_done_by_a_try_that_was_lost(
    tmp_path: Path, autojump_clock: MockClock, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is given up at once, for somebody else may have it."""
    lost = 0

    async def answer_and_lose(topic: Topic, group: str, subject: str, answers: list[Answer]) -> None:
        nonlocal lost
        if not lost and answers[0].verb == "extend":
            lost += 1
            await delete(topic, [answers[0].id])
            raise Refused(503, retry_after=0)
        await answer(topic, group, subject, answers)

    async def hb_and_lose(queue: TaskQueue, fence: str, subject: str, seconds: float | None) -> str:
        nonlocal lost
        if not lost:
            lost += 1
            await fail(queue, fence, subject, "", 3600, True)
            raise Refused(503, retry_after=0)
        return await hb(queue, fence, subject, seconds)

    monkeypatch.setattr("warren.servers.mailbox.files.answer", answer_and_lose)
    monkeypatch.setattr(working, "hb", hb_and_lose)
    began: list[float] = []
    ended: list[float] = []

    async def work(_: object) -> None:
        began.append(trio.current_time())
        try:
            await trio.sleep(100)
        finally:
            ended.append(trio.current_time())

    async with serving(tmp_path) as there, node(there.address, patience=QUICK) as n:
        if kind == "message":
            await sent(n, 1)
            each = n.mailbox("t").receive(lease=30).each
        else:
            await n.task("t").make()
            await n.task("t").enqueue(b"")
            each = n.task("t").lease(term=30).each  # type: ignore[assignment]
        with trio.move_on_after(60):
            await each(work)
        assert (lost, len(began)) == (1, 1)
        assert ended[0] - began[0] < 12


async def test_who_waits_when_the_node_is_left_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as there:
        async with node(there.address) as n:
            await n.mailbox("t").make()
        with pytest.raises(ConnectionResetError, match="the node was left; nothing was received"):
            async with n.mailbox("t").receive() as messages:
                await anext(aiter(messages))


BAD = (
    "batch=33 len=0", "len=-1", "len=x", "batch=2 len=99999999999", "batch=-2 len=0", "len=0", "key='x len=0",
    "seq=1 attempt=1 len=0", "seq=x attempt=1 lease=x len=0", "seq=\u00b2 attempt=1 lease=x len=0",
)  # fmt: skip


@pytest.mark.parametrize("head", BAD)
async def test_what_a_server_gives_that_makes_no_sense_is_an_error_of_who_waits(
    tmp_path: Path, autojump_clock: MockClock, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecvHandle, "_wanted", lambda handle: _given(f"id=x {head}\n\n".encode()))
    async with serving(tmp_path) as there, node(there.address, deadline=5) as n:
        await n.mailbox("t").make()
        with pytest.raises(OSError, match="what came cannot be read"):
            async with n.mailbox("t").receive() as messages:
                await anext(aiter(messages))
        assert (await stats(n))["readers"] == "0"  # and nobody else suffers for it


async def _given(data: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return data
