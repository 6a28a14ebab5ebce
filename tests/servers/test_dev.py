"""/dev: what every role has at hand."""

import os
from contextlib import nullcontext
from datetime import UTC, datetime

import pytest
from trio.testing import MockClock
from warren.check.tree import check_tree
from warren.servers.dev import MOST, PLENTY, Dev
from warren.tree import Dir, Text

from tests.servers.clock import BEGAN, TrioClock
from tests.servers.reach import attributes_of, files_of, reached
from tests.wire import export_of


def dev() -> Dev:
    return Dev(TrioClock(), "1.2.3", lambda: "build.version=1.2.3\nstore/memory\n")


async def test_it_is_a_tree(autojump_clock: MockClock) -> None:
    await check_tree(lambda: nullcontext(dev()))
    await check_tree(lambda: nullcontext(Dir({"dev": dev()})))


async def test_time_version_and_caps_are_told(autojump_clock: MockClock) -> None:
    async with files_of(dev()) as files:
        time = attributes_of(await files.read("/time"))
        assert float(time["s"]) == pytest.approx(BEGAN, abs=1)
        assert datetime.fromisoformat(time["utc"]).timestamp() == pytest.approx(float(time["s"]), abs=0.001)
        assert datetime.fromisoformat(time["utc"]).tzinfo == UTC
        assert await files.read("/version") == b"1.2.3\n"
        assert await files.read("/caps") == b"build.version=1.2.3\nstore/memory\n"
        assert b"1.2.3" in await files.read("/hello")


async def test_random_gives_as_many_bytes_as_were_asked_for_and_others_each_time() -> None:
    async with files_of(dev()) as files:
        async with await files.open("/random") as file:
            first, second = await file.pread(32, 0), await file.pread(32, 0)
            assert (len(first), len(second)) == (32, 32)
            assert first != second
            assert len(await file.pread(MOST + 1000, 10**12)) == MOST + 1000
        async with await files.open("/zero") as file:
            assert await file.pread(1000, 5) == bytes(1000)
        assert await files.read("/null") == b""
        assert await files.write("/null", b"gone") == 4


async def test_errstr_tells_each_reader_its_own_newest_error() -> None:
    export = export_of(Dir({"dev": dev(), "name": Text(lambda: "x")}))
    async with reached(export, "ann") as one, reached(export, "bob") as other:
        with pytest.raises(OSError, match="cannot be set") as caught:
            await one.open("/name", os.O_WRONLY)
        assert (await one.read("/dev/errstr")).decode().rstrip("\n") == caught.value.strerror
        assert await other.read("/dev/errstr") == b""
        assert sorted(d.name for d in await one.readdir("/dev"))[:3] == ["caps", "errstr", "hello"]


async def test_a_role_without_capabilities_says_nothing() -> None:
    async with files_of(Dev(TrioClock(), "1", lambda: "")) as files:
        assert await files.read("/caps") == b""


async def test_whoever_reads_it_all_comes_to_an_end_and_may_open_it_again() -> None:
    async with files_of(dev()) as files:
        for _ in range(2):
            async with await files.open("/zero") as file:
                assert len(await file.read()) == PLENTY
                assert await file.read() == b""
