"""The SDK with a node that works: what it promises to those who send, receive, store and do work."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.auth.caveats import Caveats
from warren.auth.token import narrow
from warren.mount.sdk import GiveBack, Message, Node, Task, node
from warren.servers.demo import Demo
from warren.tree import Sink

from tests.mount.nodes import QUICK, There, serving
from tests.redteam.hives import Hive, guarded
from tests.servers.reach import attributes_of


class Enough(Exception):
    """The test has seen what it wanted."""


@asynccontextmanager
async def programmed(tmp: Path) -> AsyncIterator[tuple[There, Node]]:
    """A node with a topic and a queue, and a program there."""
    async with serving(tmp) as there, node(there.address) as n:
        for _ in range(2):  # what is there is no error
            await n.mailbox("t").make()
            await n.task("q").make()
        yield there, n


async def stats(n: Node, path: str = "/mailbox/t") -> dict[str, str]:
    return attributes_of(await n.read(f"{path}/stats"))


# Messages


async def test_what_was_said_of_a_message_arrives_with_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with programmed(tmp_path) as (_, n):
        body = os.urandom(300_000)
        sent = await n.mailbox("t").send(body, key="it's a=b", corr="c", type="job", prio=3, ttl=60, delay=5)
        async with n.mailbox("t").receive() as messages:
            async for m in messages:
                assert (m.body, m.id, m.seq, m.attempt) == (body, sent.id, sent.seq, 1)
                assert [m.head[k] for k in ("key", "corr", "type", "prio")] == ["it's a=b", "c", "job", "3"]
                break
        assert (await stats(n))["acked"] == "1"


async def test_the_same_key_sends_once_and_another_body_is_refused(tmp_path: Path) -> None:
    async with programmed(tmp_path) as (_, n):
        topic = n.mailbox("t")
        first = await topic.send(b"a", idem="order-7")
        assert await topic.send(b"a", idem="order-7") == first._replace(dup=True)
        with pytest.raises(FileExistsError, match="409") as caught:
            await topic.send(b"b", idem="order-7")
        assert "idem=order-7" in caught.value.__notes__
        assert not (await topic.send(b"a")).dup


async def test_a_step_of_the_loop_acknowledges_and_an_error_gives_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        topic, got = n.mailbox("t"), list[bytes]()
        for body in (b"a", b"b", b"c"):
            await topic.send(body)

        async def fail_at_b() -> None:
            async with topic.receive() as messages:
                async for m in messages:
                    got.append(m.body)
                    if m.body == b"b":
                        raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_at_b()
        assert ((await stats(n))["acked"], (await stats(n))["nacked"]) == ("1", "1")
        async with topic.receive() as messages:
            async for m in messages:
                got.append(m.body)
                if m.body == b"c" and len(got) == 3:
                    await m.nack(delay=1)
                    continue
                if len(got) == 5:
                    break
        assert sorted(got[2:]) == [b"b", b"c", b"c"]
        assert (await stats(n))["acked"] == "3"


async def test_a_lease_is_made_longer_for_as_long_as_the_work_lasts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        await n.mailbox("t").send(b"slow")
        async with n.mailbox("t").receive(lease=2) as messages:
            async for _ in messages:
                await trio.sleep(100)
                assert (await stats(n))["inflight"] == "1"
                break
        found = await stats(n)
        assert (found["acked"], found["timed_out"], found["delivered"]) == ("1", "0", "1")


async def test_cancelled_work_is_given_back_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with programmed(tmp_path) as (_, n):
        await n.mailbox("t").send(b"x")
        with trio.move_on_after(5):
            async with n.mailbox("t").receive() as messages:
                async for _ in messages:
                    await trio.sleep_forever()
        assert ((await stats(n))["depth"], (await stats(n))["inflight"]) == ("1", "0")


async def test_who_waits_takes_nothing_when_cancelled(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with programmed(tmp_path) as (_, n):
        with trio.move_on_after(100) as patience:
            await anext(aiter(await n.mailbox("t").receive().__aenter__()))
        assert patience.cancelled_caught
        await n.mailbox("t").send(b"x")
        assert ((await stats(n))["depth"], (await stats(n))["readers"]) == ("1", "0")


async def test_several_at_once_are_never_more_and_giving_back_is_no_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        topic, busy, most, seen = n.mailbox("t"), 0, 0, list[bytes]()
        for k in range(12):
            await topic.send(b"%d" % k)

        async def work(m: Message) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await trio.sleep(1)
            busy -= 1
            seen.append(m.body)
            if m.body == b"3" and m.attempt == 1:
                raise GiveBack("not now", delay=2)
            if len(seen) == 13:
                raise Enough

        with pytest.raises(Enough):
            await topic.receive().each(work, at_once=4)
        assert most == 4
        assert len(seen) == 13
        assert sorted(set(seen)) == sorted(b"%d" % k for k in range(12))


async def test_work_whose_lease_ended_is_cancelled_and_the_next_one_comes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        topic = n.mailbox("t")
        await topic.send(b"x")
        ended: list[str] = []

        async def work(m: Message) -> None:
            if m.body == b"y":
                raise Enough
            await n.write("/mailbox/t/del", m.id.encode())
            await topic.send(b"y")
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                ended.append("cancelled")
                raise

        began = trio.current_time()
        with pytest.raises(Enough):
            await topic.receive(lease=3).each(work)
        assert ended == ["cancelled"]
        assert trio.current_time() - began < 3


async def test_an_answer_that_comes_when_the_lease_has_ended_is_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        await n.mailbox("t").send(b"x")

        async def too_late() -> None:
            async with n.mailbox("t").receive() as messages:
                async for m in messages:
                    await n.write("/mailbox/t/del", m.id.encode())

        with pytest.raises(FileExistsError, match="409"):
            await too_late()


async def test_a_full_topic_makes_senders_wait_and_lets_acknowledgements_through(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with serving(tmp_path) as there, node(there.address, in_flight=2) as n:
        await n.files.mkdir("/mailbox/t")
        await n.write("/mailbox/t/ctl", b"set count=3")
        topic = n.mailbox("t")
        async with trio.open_nursery() as nursery:
            for k in range(20):
                nursery.start_soon(topic.send, b"%d" % k)
            got = 0
            async with topic.receive() as messages:
                async for _ in messages:
                    got += 1
                    if got == 20:
                        break
        assert ((await stats(n))["acked"], (await stats(n))["sent"]) == ("20", "20")
        for _ in range(3):
            await topic.send(b"")
        with pytest.raises(BlockingIOError, match="429"):
            await topic.send(b"", deadline=10)


async def test_who_may_write_and_not_read_sends_all_the_same(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    allow = ["any create /**", "any read /mailbox/*/stats", "any write /mailbox/*/send.h"]
    async with serving(tmp_path, allow=allow) as there, node(there.address) as n:
        await n.mailbox("t").make()
        for _ in range(3):
            assert await n.mailbox("t").send(b"x") == ("", 0, False)
        assert (await stats(n))["sent"] == "3"
        denied = [line for line in there.export.trace.errors if "403" in line.text]
        assert len(denied) == 1
        with pytest.raises(PermissionError, match="403"):
            await n.write("/mailbox/t/send", b"x")


async def test_a_group_receives_what_it_alone_has_still_to_get(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        await n.files.mkdir("/mailbox/t/groups/g")
        await n.mailbox("t").send(b"x")
        for group in ("g", ""):
            async with n.mailbox("t", group=group).receive() as messages:
                async for m in messages:
                    assert m.body == b"x"
                    break


# Back-pressure


async def test_no_more_calls_are_under_way_than_was_said(tmp_path: Path) -> None:
    gate, under, most = trio.Event(), 0, 0

    async def put(data: bytes) -> None:
        nonlocal under, most
        under += 1
        most = max(most, under)
        await gate.wait()
        under -= 1

    async with serving(tmp_path, {"slow": Sink(put)}) as there, node(there.address, in_flight=3) as n:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(n.write, "/slow", b"x")
            while under < 3:
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked(0.05)
            gate.set()
        assert most == 3


async def test_who_waits_for_a_message_holds_no_place(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as there, node(there.address, in_flight=1) as n:
        await n.mailbox("t").make()
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                async with n.mailbox("t").receive() as messages:
                    async for m in messages:
                        assert m.body == b"x"
                        break

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            with trio.fail_after(20):
                assert (await stats(n))["readers"] == "1"
                await n.mailbox("t").send(b"x")


# Tasks


async def test_a_task_is_done_once_for_its_effect_and_tells_the_first_result(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        queue = n.task("q")
        first = await queue.enqueue(b"build", effect="build-17", prio=2, key="k", max_attempts=3)
        assert await queue.enqueue(b"build", effect="build-17") == first._replace(dup=True, state="ready")
        async with queue.lease(term=2) as tasks:
            async for task in tasks:
                await trio.sleep(10)
                task.result = "effect=it's\ndone"
                break
        again = await queue.enqueue(b"build", effect="build-17")
        assert (again.dup, again.state, again.result) == (True, "done", " effect=it's\\x0adone")


async def test_a_task_that_failed_comes_again_with_the_reason(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        await n.task("q").enqueue(b"x")
        why: list[str] = []

        async def work(task: Task) -> None:
            why.append(task.head.get("last", ""))
            if task.attempt == 1:
                raise GiveBack("delay=1 is what it said")
            if task.attempt == 2:
                raise GiveBack(delay=9)
            raise Enough("enough")

        with pytest.raises(Enough):
            await n.task("q").lease().each(work)
        assert why == ["", "GiveBack: delay=1 is what it said", "GiveBack"]
        assert "Enough: enough" in (await n.read("/task/q/tasks")).decode()


# Blobs


async def test_blobs_of_every_size_come_back_as_they_were(tmp_path: Path) -> None:
    async with programmed(tmp_path) as (_, n):
        for size in (0, 1, 65536, 3_000_001):
            body = os.urandom(size)
            local = tmp_path / "body"
            local.write_bytes(body)
            address = await n.storage.put(body)
            assert address == f"sha256:{hashlib.sha256(body).hexdigest()}"
            assert await n.storage.put(local) == address
            assert await n.storage.have(address)
            assert await n.storage.get(address) == body
            assert await n.storage.save(address, tmp_path / "out") == size
            assert (tmp_path / "out").read_bytes() == body
        with pytest.raises(OSError, match="at most 10 were asked for"):
            await n.storage.get(address, most=10)
        assert not await n.storage.have(f"sha256:{'0' * 64}")
        with pytest.raises(FileNotFoundError):
            await n.storage.save(f"sha256:{'0' * 64}", tmp_path / "none")
        assert sorted(name for name in os.listdir(tmp_path) if "out" in name or "none" in name) == ["out"]
        for bad in ("sha256:../x", "x", f"sha256:{'A' * 64}"):
            with pytest.raises(ValueError, match="no address"):
                await n.storage.get(bad)


async def test_a_name_means_a_blob_until_it_is_forgotten(tmp_path: Path) -> None:
    async with programmed(tmp_path) as (_, n):
        a, b = await n.storage.put(b"a"), await n.storage.put(b"b")
        for address in (a, b):
            await n.storage.name("front", address)
            assert await n.storage.named("front") == address
        await n.storage.forget("front")
        with pytest.raises(FileNotFoundError):
            await n.storage.named("front")
        with pytest.raises(FileNotFoundError):
            await n.storage.forget("front")


async def test_a_damaged_blob_is_an_error_and_never_bytes(tmp_path: Path) -> None:
    async with programmed(tmp_path) as (_, n):
        body = os.urandom(200_000)
        address = await n.storage.put(body)
        (held,) = [p for p in (tmp_path / "blobs").rglob("*") if p.is_file() and p.stat().st_size >= 200_000]
        with held.open("r+b") as file:
            file.seek(70_000)
            file.write(bytes([body[70_000] ^ 1]))
        with pytest.raises(OSError, match="422"):
            await n.storage.get(address)
        with pytest.raises(OSError, match="422"):
            await n.storage.save(address, tmp_path / "out")
        assert not (tmp_path / "out").exists()


# The connection


async def test_a_node_that_is_not_up_yet_is_waited_for(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def program() -> None:
        async with node(f"unix!{tmp_path / 'node'}", patience=QUICK) as n:
            got.append(await n.read("/mailbox/stats"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(program)
        await wait_all_tasks_blocked()
        async with serving(tmp_path):
            while not got:
                await wait_all_tasks_blocked()


async def test_a_node_that_never_comes_up_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(FileNotFoundError, match="unix!") as caught:
        async with node(f"unix!{tmp_path / 'none'}", deadline=20):
            pass
    assert 0 < trio.current_time() - began <= 20
    assert any("tried" in note for note in caught.value.__notes__)


async def test_what_the_block_raises_is_raised_as_it_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as there:
        with pytest.raises(ZeroDivisionError):
            async with node(there.address):
                raise ZeroDivisionError


async def test_a_bare_write_waits_while_it_is_told_that_nothing_was_done(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with programmed(tmp_path) as (_, n):
        await n.write("/mailbox/t/ctl", b"set count=1")
        await n.write("/mailbox/t/send", b"a")
        with pytest.raises(BlockingIOError, match="429"):
            await n.write("/mailbox/t/send", b"b", deadline=3)
        with pytest.raises(FileNotFoundError):
            await n.write("/nowhere", b"x")


# Who we are


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Hive:
    return Hive(tmp_path_factory.mktemp("hive"))


async def test_the_token_in_the_file_is_what_counts(
    hive: Hive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = narrow(hive.token(), Caveats(allow=("read /hello",), exp=int(time.time()) + 50))
    cap, folder = tmp_path / "cap", hive.folder("user/ann")
    cap.write_text(token.write())
    cap.chmod(0o600)
    async with guarded(hive, Demo(), verifier=hive.verifier()) as door:
        monkeypatch.setenv("WARREN_NODE_URL", door.address)
        monkeypatch.setenv("WARREN_ID", str(folder))
        async with node() as n:
            assert "hello" in [entry.name for entry in await n.files.ls("/")]
        monkeypatch.setenv("WARREN_CAP", str(cap))
        async with node() as n:
            assert await n.read("/hello")
            with pytest.raises(PermissionError, match="403"):
                await n.files.ls("/")
        cap.chmod(0o644)
        with pytest.raises(ValueError, match="others can read this secret"):
            async with node():
                pass
        cap.chmod(0o600)
        cap.write_text("nonsense")
        with pytest.raises(ValueError, match="holds no token"):
            async with node():
                pass


async def test_a_token_that_does_not_count_is_told_at_once(hive: Hive, tmp_path: Path) -> None:
    cap = tmp_path / "cap"
    cap.write_text(hive.token(exp=int(time.time()) - 5).write())
    cap.chmod(0o600)
    async with guarded(hive, Demo(), verifier=hive.verifier()) as door:
        with pytest.raises(OSError, match="token_expired"):
            async with node(door.address, id=hive.folder("user/ann"), cap=cap):
                pass
