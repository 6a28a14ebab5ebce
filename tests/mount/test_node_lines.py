"""A line that is cut at every byte: what the SDK promises holds wherever the connection breaks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from trio.testing import MockClock
from warren.mount.sdk import Node, node
from warren.servers.mailbox.words import identity
from warren.tree import Sink

from tests.mount.nodes import QUICK, Cut, Line, There, serving
from tests.servers.reach import attributes_of

Use = Callable[[Node], Awaitable[object]]


@asynccontextmanager
async def cuttable(tmp: Path, wrote: list[bytes] | None = None) -> AsyncIterator[tuple[There, Line, Node]]:
    """A node, a line to it, and somebody who is there without the line."""
    log: list[bytes] = [] if wrote is None else wrote
    async with serving(tmp, {"echo": Sink(log.append)}) as there, Line(there.address, tmp / "line") as line:
        async with node(there.address) as near:
            yield there, line, near


async def over(line: Line, use: Use) -> None:
    async with node(line.address, patience=QUICK) as n:
        await use(n)


async def everywhere(line: Line, use: Use, *, step: int = 1) -> AsyncIterator[Cut]:
    """Every place where USE can be cut, or every STEPth byte, after it was."""
    line.again(None)
    await over(line, use)
    lengths = dict(line.passed)
    assert min(lengths.values()) > 100, "nothing went over the line"
    for way, length in lengths.items():
        for after in range(0, length, step):
            line.again(Cut(way, after))
            await over(line, use)
            # The very last bytes may be a goodbye that nobody waits for.
            assert line.cuts or after > length - 64, f"the line was not cut {way} at {after}"
            yield Cut(way, after)


async def test_a_message_is_sent_once_wherever_the_line_is_cut(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with cuttable(tmp_path) as (_, line, near):
        await near.files.mkdir("/mailbox/t")
        sent: list[str] = []

        async def send(n: Node) -> None:
            sent.append(identity((await n.mailbox("t").send(b"hello %d" % len(sent), key="a b")).id))

        async for cut in everywhere(line, send):
            stats = attributes_of(await near.read("/mailbox/t/stats"))
            assert int(stats["sent"]) == len(sent), cut
        assert len(set(sent)) == len(sent)
        assert int(stats["dup"]) > 10, "no reply was lost at all"


async def test_a_message_is_received_and_acknowledged_wherever_the_line_is_cut(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with cuttable(tmp_path) as (_, line, near):
        await near.files.mkdir("/mailbox/t")
        got: list[bytes] = []

        async def receive(n: Node) -> None:
            await near.mailbox("t").send(b"%d" % len(got))
            async with n.mailbox("t").receive(lease=1) as messages:
                async for message in messages:
                    got.append(message.body)
                    break

        async for cut in everywhere(line, receive, step=5):
            stats = attributes_of(await near.read("/mailbox/t/stats"))
            assert (int(stats["acked"]), int(stats["messages"])) == (len(got), 0), cut
        assert got == [b"%d" % n for n in range(len(got))]


async def test_a_task_is_taken_and_done_once_wherever_the_line_is_cut(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with cuttable(tmp_path) as (_, line, near):
        await near.files.mkdir("/task/q")
        done: list[str] = []

        async def work(n: Node) -> None:
            there = await n.task("q").enqueue(b"x" * 100)
            async with n.task("q").lease(term=1) as tasks:
                async for task in tasks:
                    assert task.seq == there.seq
                    task.result = f"the {len(done)}th one"
                    break
            done.append(task.result)

        async for cut in everywhere(line, work, step=7):
            stats = attributes_of(await near.read("/task/q/stats"))
            counts = (int(stats["enqueued"]), int(stats["done"]), int(stats["depth"]))
            assert counts == (len(done), len(done), 0), cut
        assert done == [f"the {n}th one" for n in range(len(done))]


async def test_a_blob_is_stored_wherever_the_line_is_cut(tmp_path: Path) -> None:
    async with cuttable(tmp_path) as (_, line, near):
        bodies: list[bytes] = []

        async def put(n: Node) -> None:
            bodies.append(b"picture %d" % len(bodies))
            address = await n.storage.put(bodies[-1])
            assert await near.storage.get(address) == bodies[-1]

        async for _ in everywhere(line, put, step=7):
            pass
        assert attributes_of(await near.read("/storage/status"))["blobs"] == str(len(bodies))


async def test_a_blob_is_read_wherever_the_line_is_cut(tmp_path: Path) -> None:
    async with cuttable(tmp_path) as (_, line, near):
        body = os.urandom(3000)
        address = await near.storage.put(body)

        async def get(n: Node) -> None:
            assert await n.storage.get(address) == body

        async for _ in everywhere(line, get, step=29):
            pass


async def test_a_bare_write_is_done_once_or_not_at_all_and_says_when_nobody_knows(tmp_path: Path) -> None:
    """`echo` has no key, so what was lost is told and not done again."""
    wrote: list[bytes] = []
    async with cuttable(tmp_path, wrote) as (_, line, _near):
        unknown: list[int] = []
        told: list[str] = []

        async def echo(n: Node) -> None:
            before = len(wrote)
            try:
                await n.write("/echo", b"x")
            except ConnectionResetError as e:
                told.append(str(e))
                unknown.append(len(wrote) - before)
            else:
                assert len(wrote) == before + 1

        async for _ in everywhere(line, echo):
            pass
        assert all("unknown" in text for text in told)
        assert set(unknown) == {0, 1}, "both happen, and nobody can tell which"


