"""/mailbox as a tree: topics as directories, and every rule that trees have."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import ENOTEMPTY

import pytest
import trio
from trio.testing import MockClock
from warren.check.tree import check_tree
from warren.servers.mailbox import Limits
from warren.servers.ram import Ram
from warren.store import MemoryStore
from warren.tree import Dir, Node

from tests.servers.mailbox.place import O_STREAM, Got, T, a_mailbox, box, kept
from tests.servers.reach import reached


async def test_it_is_a_tree(autojump_clock: MockClock) -> None:
    mailbox = a_mailbox()
    async with box(mailbox) as t:
        await t.ctl("set attempts=1 lease=250ms")
        for n in range(3):
            await t.send(b"body %d" % n, "key=k prio=3")
        await t.files.mkdir(f"{T}/groups/g")
        await t.recv()
        assert (await t.recv()).body == b"body 1"  # the first one is a dead letter now
        await t.send()

    @asynccontextmanager
    async def made() -> AsyncIterator[Node]:
        # Names are made here, though none of files; the suite makes its own beside.
        yield Dir({"mailbox": mailbox, "ram": Ram()})

    sub, events = f"{T}/sub", f"{T}/events"
    await check_tree(
        made,
        writable="/ram",
        feeds={
            sub: lambda files: files.write(f"{T}/send", b"fed"),
            events: lambda files: files.write(f"{T}/ctl", b"set lease=30s"),
        },
    )


async def test_topics_are_made_listed_and_removed_when_they_are_empty(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.files.write("/mailbox/ctl", b"create other\n")
        assert {"t", "other", "ctl", "stats", "metrics"} == {e.name for e in await t.files.ls("/mailbox")}
        with pytest.raises(FileExistsError):
            await t.files.mkdir("/mailbox/other")
        await t.send()
        with pytest.raises(OSError, match="messages are here") as e:
            await t.files.remove(T, directory=True)
        assert e.value.errno == ENOTEMPTY
        await t.ctl("purge")
        await t.files.remove(T, directory=True)
        await t.files.write("/mailbox/ctl", b"remove other\n")
        assert {e.name for e in await t.files.ls("/mailbox")} == {"ctl", "stats", "metrics"}
        await t.files.mkdir(T)
        assert (await t.stats())["sent"] == 0
        assert (await t.send())["seq"] == "1"


@pytest.mark.parametrize("name", ["ctl", "stats", "metrics", "dev", ".hidden", "a b", "x" * 65, "\u00e9"])
async def test_a_name_that_no_topic_can_have_is_refused(name: str, autojump_clock: MockClock) -> None:
    async with box() as t:
        with pytest.raises(OSError, match=r"400|409|413"):
            await t.files.mkdir(f"/mailbox/{name}")
        assert len(await t.files.ls("/mailbox")) == 4


async def test_there_are_only_so_many_topics_and_groups(autojump_clock: MockClock) -> None:
    async with box(a_mailbox(limits=Limits(topics=2, groups=2))) as t:
        await t.files.mkdir("/mailbox/two")
        with pytest.raises(OSError, match="507"):
            await t.files.mkdir("/mailbox/three")
        for name in "ab":
            await t.files.mkdir(f"{T}/groups/{name}")
        with pytest.raises(OSError, match="507"):
            await t.files.mkdir(f"{T}/groups/c")


async def test_who_may_send_may_not_receive_and_the_other_way_round(autojump_clock: MockClock) -> None:
    rows = [
        "any read,create /mailbox",
        "spiffe://hive/user/s write,read /mailbox/*/send",
        "spiffe://hive/user/r read /mailbox/*/recv",
        "spiffe://hive/user/r write /mailbox/*/ack",
    ]
    mailbox = a_mailbox()
    await mailbox.make("t")
    async with kept(mailbox, rows) as export:
        one, other = "spiffe://hive/user/s", "spiffe://hive/user/r"
        async with reached(export, one) as sender, reached(export, other) as receiver:
            await sender.write(f"{T}/send", b"hello", truncate=False)
            for refused in (f"{T}/recv", f"{T}/stats", f"{T}/ctl", f"{T}/peek", f"{T}/sub"):
                with pytest.raises(OSError, match=r"40[34]"):
                    await sender.read(refused)
            with pytest.raises(OSError, match=r"40[34]"):
                await receiver.write(f"{T}/send", b"x", truncate=False)
            got = Got(await receiver.read(f"{T}/recv"))
            with pytest.raises(OSError, match=r"40[34]"):
                await sender.write(f"{T}/ack", got.id.encode(), truncate=False)
            await receiver.write(f"{T}/ack", got.id.encode(), truncate=False)


async def test_the_counts_are_files_of_the_mailbox_too(autojump_clock: MockClock) -> None:
    async with box() as t:
        await t.send()
        text = (await t.files.read("/mailbox/metrics")).decode()
        assert 'mailbox_depth{topic="t"} 1\n' in text
        assert 'mailbox_sent_total{topic="t"} 1\n' in text


async def test_what_happens_is_told(autojump_clock: MockClock) -> None:
    async with box() as t, await t.files.open(f"{T}/events", O_STREAM) as events:
        await t.ctl("set attempts=1")
        assert b" kind=set\n" in await events.record()
        sent = await t.send()
        await t.recv()
        await t.ack("nack", sent["id"])
        assert f"kind=dead id={sent['id']} attempts=1 last=nacked".encode() in await events.record()
        await t.ctl("redrive all", "dlq/ctl")
        assert b" kind=redriven\n" in await events.record()


async def test_settings_are_shown_and_bad_ones_change_nothing(autojump_clock: MockClock) -> None:
    async with box() as t:
        before = await t.files.read(f"{T}/settings")
        bad = ("set", "set lease=1ms", "set attempts=0", "set bytes=1x", "set full=maybe", "set count=-1")
        for line in (*bad, "set lease=1m attempts=0", "set bytes=1m bytes=2m"):
            with pytest.raises(OSError, match="400"):
                await t.ctl(line)
        assert await t.files.read(f"{T}/settings") == before
        await t.ctl("set lease=1m bytes=2m ack=auto queue=yes")
        after = (await t.files.read(f"{T}/settings")).decode()
        assert "lease=60.000\n" in after
        assert f"bytes={2 << 20}\n" in after
        assert "ack=auto\n" in after


async def test_a_topic_that_is_being_read_counts_once_against_the_limit(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    await a_mailbox(store).make("t")
    mailbox = a_mailbox(store, Limits(topics=1))
    found: list[object] = []

    async def look() -> None:
        found.append(await mailbox.lookup("t"))  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(look)
    assert found == [mailbox.kept["t"]] * 5
