"""Plain 9P2000: open modes, wstat, directories as bytes, and Plan 9's words."""

import os
from pathlib import Path

import pytest
from warren.p9.codec import parse_stat
from warren.p9.fields import Qid, Stat
from warren.p9.messages import (
    PLAIN,
    Rcreate,
    Rerror,
    Ropen,
    Rread,
    Rremove,
    Rstat,
    Rwstat,
    Tcreate,
    Topen,
    Tread,
    Tremove,
    Tstat,
    Twalk,
    Twstat,
)
from warren.servers.demo import Demo
from warren.servers.disk import Disk

from tests.wire import RefusedBy, Wire, served

OREAD, OWRITE, ORDWR, OEXEC, OTRUNC, ORCLOSE, DMDIR = 0, 1, 2, 3, 0x10, 0x40, 0x80000000
KEEP = Stat(0xFFFF, 2**32 - 1, Qid(255, 2**32 - 1, 2**64 - 1), 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**64 - 1,
            "", "", "", "")  # fmt: skip


def stats(data: bytes) -> list[Stat]:
    found = []
    while data:
        size = 2 + int.from_bytes(data[:2], "little")
        found.append(parse_stat(memoryview(data[:size])))
        data = data[size:]
    return found


async def says(wire: Wire, m: Twalk | Topen | Tcreate | Twstat | Tremove | Tread) -> str:
    reply = await wire.ask(m)
    assert isinstance(reply, Rerror), reply
    return reply.ename


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "dir").mkdir()
    return tmp_path


async def test_errors_are_in_plan_9_s_words(tree: Path) -> None:
    async with served(Disk(tree)) as service:
        wire = await service.dial(PLAIN)
        assert await says(wire, Twalk(0, 1, ["absent"])) == "file does not exist"
        await wire.walk("", 1)
        assert await says(wire, Tcreate(1, "file", 0o644, OREAD)) == "file already exists"
        service.export.replace(type(service.export.policy).parse(["any read /**"]))
        assert await says(wire, Tcreate(1, "new", 0o644, OREAD)) == "permission denied"
        assert len(await says(wire, Twalk(0, 2, ["x" * 255]))) <= 127
        assert (await says(wire, Twalk(0, 2, ["x" * 256]))).startswith("413 too_large: a name is at most 255")


async def test_open_modes(tree: Path) -> None:
    async with served(Disk(tree)) as service:
        wire = await service.dial(PLAIN)
        for fid, mode in enumerate((OREAD, OEXEC), 1):
            await wire.walk("file", fid)
            await wire.want(Ropen, Topen(fid, mode))
            assert await wire.read(fid) == b"hello"
            with pytest.raises(RefusedBy):
                await wire.write(fid, b"x")
        await wire.walk("file", 5)
        for mode in (0x80, 0x20, 0x04, 0xFF):
            assert "open mode" in await says(wire, Topen(5, mode))
        await wire.want(Ropen, Topen(5, OWRITE | OTRUNC))
        assert (tree / "file").read_bytes() == b""
        await wire.write(5, b"new")
        with pytest.raises(RefusedBy):
            await wire.read(5)
        await wire.walk("dir", 6)
        assert await says(wire, Topen(6, OWRITE))
        assert await says(wire, Topen(6, OREAD | OTRUNC))
    assert (tree / "file").read_bytes() == b"new"


async def test_create_moves_the_fid_and_close_may_remove(tree: Path) -> None:
    async with served(Disk(tree)) as service:
        wire = await service.dial(PLAIN)
        await wire.walk("", 1)
        await wire.want(Rcreate, Tcreate(1, "tmp", 0o600, ORDWR | ORCLOSE))
        await wire.write(1, b"abc")
        assert await wire.read(1) == b"abc"
        assert (tree / "tmp").read_bytes() == b"abc"
        assert (await wire.want(Rstat, Tstat(1))).stat.name == "tmp"
        await wire.clunk(1)
        assert not (tree / "tmp").exists()
        await wire.walk("", 1)
        await wire.want(Rcreate, Tcreate(1, "made", DMDIR | 0o755, OREAD))
        assert (tree / "made").is_dir()
        assert await wire.read(1) == b""
        await wire.walk("", 2)
        for perm in (DMDIR | 0o755, 0x02000000, 0x40000000):
            assert await says(wire, Tcreate(2, "d2", perm, OWRITE))
        await wire.want(Rremove, Tremove(1))
        assert not (tree / "made").exists()
        with pytest.raises(RefusedBy):
            await wire.clunk(1)


async def test_a_directory_reads_as_whole_stats_from_where_it_ended(tree: Path) -> None:
    for n in range(50):
        (tree / f"n{n:02}").write_text("x" * n)
    async with served(Disk(tree)) as service:
        wire = await service.dial(PLAIN, 1024)
        await wire.open("", 1)
        found: list[Stat] = []
        offset = 0
        while data := await wire.read(1, offset, 1000):
            found += stats(data)
            offset += len(data)
        assert sorted(s.name for s in found) == sorted(os.listdir(tree))
        assert {s.name: s.length for s in found}["n17"] == 17
        assert [s.name for s in found if s.mode & DMDIR] == ["dir"]
        for bad in (1, offset - 1, offset + 1, 2**64 - 1):
            assert await says(wire, Tread(1, bad, 1000))
        assert "less than one directory entry" in await says(wire, Tread(1, 0, 20))
        first = (await wire.want(Rread, Tread(1, 0, 1000))).data
        assert stats(bytes(first)) == found[: len(stats(bytes(first)))]


async def test_wstat_touches_what_it_names_and_all_or_nothing(tree: Path) -> None:
    async with served(Disk(tree)) as service:
        wire = await service.dial(PLAIN)
        await wire.walk("file", 1)
        await wire.want(Rwstat, Twstat(1, KEEP))
        await wire.want(Rwstat, Twstat(1, KEEP._replace(length=2, mode=0o600, mtime=1000)))
        now = (tree / "file").stat()
        assert (now.st_size, now.st_mode & 0o777, now.st_mtime) == (2, 0o600, 1000)
        await wire.want(Rwstat, Twstat(1, KEEP._replace(name="renamed")))
        assert (tree / "renamed").exists()
        assert (await wire.want(Rstat, Tstat(1))).stat.name == "renamed"
        for bad in (
            KEEP._replace(uid="root"), KEEP._replace(gid="root"), KEEP._replace(dev=1), KEEP._replace(type=1),
            KEEP._replace(qid=Qid(0, 0, 0)), KEEP._replace(mode=DMDIR | 0o755), KEEP._replace(name="dir"),
            KEEP._replace(name="a/b"), KEEP._replace(name=".."), KEEP._replace(name="dir", length=0),
        ):  # fmt: skip
            assert await says(wire, Twstat(1, bad))
        assert (tree / "renamed").stat().st_size == 2, "a rename that fails changes nothing else"
        await wire.walk("", 2)
        assert await says(wire, Twstat(2, KEEP._replace(name="root")))


async def test_wstat_of_a_ctl_is_what_an_echo_needs() -> None:
    async with served(Demo(), ["any ctl /ctl#say"]) as service:
        wire = await service.dial(PLAIN)
        await wire.walk("ctl", 1)
        await wire.want(Rwstat, Twstat(1, KEEP._replace(length=0)))
        await wire.want(Ropen, Topen(1, OWRITE | OTRUNC))
        assert await wire.write(1, b"say hi\n") == 7
        assert await says(wire, Twstat(1, KEEP._replace(mode=0o777))) == "permission denied"
