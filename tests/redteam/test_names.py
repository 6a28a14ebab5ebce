"""Names that try to be more than names. `..` goes up and never above the attach point; nothing else moves."""

import os
from pathlib import Path

import pytest
from trio.testing import wait_all_tasks_blocked
from warren.p9.fields import NOFID
from warren.p9.messages import (
    ALL,
    DOTL,
    PLAIN,
    WARREN,
    Message,
    Rattach,
    Rlerror,
    Rwalk,
    Tattach,
    Tcreate,
    Tlcreate,
    Tlink,
    Tmkdir,
    Tmknod,
    Trename,
    Trenameat,
    Tsymlink,
    Tunlinkat,
    Twalk,
)
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.tree import Dir

from tests.wire import RefusedBy, Wire, served

BAD = ["", ".", "..", "/", "a/b", "/etc", "../x", "a\0b", "\0", "x" * 256, "é" * 128]


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """`tree` is served; what stands beside it must stay unseen and unchanged."""
    (tmp_path / "secret").write_text("secret")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("file")
    (tree / "sub" / "deep").write_text("deep")
    (tree / "out").symlink_to("../secret")
    (tree / "up").symlink_to("..")
    return tree


def makers(name: str) -> list[Message]:
    return [
        Tlcreate(0, name, 2, 0o644, 0), Tmkdir(0, name, 0o755, 0), Tmknod(0, name, 0o100644, 0, 0, 0),
        Tsymlink(0, name, "target", 0), Tlink(0, 1, name), Trename(1, 0, name), Trenameat(0, "file", 0, name),
        Trenameat(0, name, 0, "new"), Tunlinkat(0, name, 0), Tunlinkat(0, name, 0x200),
    ]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=ascii)
async def test_no_such_name_is_made_moved_or_removed(inside: Path, name: str) -> None:
    before = sorted(os.walk(inside.parent))
    async with served(Disk(inside)) as service:
        wire = await service.dial(WARREN)
        await wire.walk("file", 1)
        for m in makers(name):
            assert isinstance(await wire.ask(m), Rlerror), m
        plain = await service.dial(PLAIN)
        for perm in (0o644, 0x80000000 | 0o755):
            with pytest.raises(RefusedBy):
                await plain.want(Rwalk, Tcreate(0, name, perm, 1))
    assert sorted(os.walk(inside.parent)) == before
    assert (inside.parent / "secret").read_text() == "secret"


async def refused_walk(wire: Wire, *names: str) -> None:
    reply = await wire.ask(Twalk(0, 99, list(names)))
    assert not isinstance(reply, Rwalk) or len(reply.qids) < len(names), names


@pytest.mark.parametrize("version", ALL)
async def test_walks_stay_below_the_attach_point(inside: Path, version: str) -> None:
    async with served(Disk(inside)) as service:
        for aname, root in (("", inside), ("/sub", inside / "sub"), ("sub/", inside / "sub")):
            wire = await service.dial(version, aname=aname)
            number = root.stat().st_ino
            for names in (["..", ".."], [".."] * 16, ["."], [".", "..", "."]):
                reply = await wire.ask(Twalk(0, 1, names))
                assert isinstance(reply, Rwalk)
                assert {q.path for q in reply.qids} == {number}
                await wire.clunk(1)
            await refused_walk(wire, "..", "secret")
            await refused_walk(wire, *[".."] * 14, "tree", "file")
            await refused_walk(wire, "../secret")
            await refused_walk(wire, "/etc/passwd")
            await refused_walk(wire, "a\0b")
            await refused_walk(wire, "")
        wire = await service.dial(version)
        reply = await wire.ask(Twalk(0, 1, ["sub", "..", "sub", "..", "file"]))
        assert isinstance(reply, Rwalk)
        assert [q.path for q in reply.qids][-1] == (inside / "file").stat().st_ino
        for link in ("out", "up"):
            await refused_walk(wire, link, "secret")


@pytest.mark.parametrize(
    "aname", ["..", "/..", "sub/..", "../secret", "/sub/../../secret", "up", "up/secret", "out", "\0", ".",
              "no", "sub/" + "x" * 300, "/proc/self/root", "sub\0/x"]
)  # fmt: skip
async def test_an_aname_is_a_path_inside(inside: Path, aname: str) -> None:
    async with served(Disk(inside)) as service:
        wire = service.connect()
        await wire.version(WARREN)
        reply = await wire.ask(Tattach(0, NOFID, "root", aname, 0))
        if isinstance(reply, Rattach):
            assert aname in ("up", "out"), "a symbolic link is a file like any other, which leads nowhere"
            await refused_walk(wire, "secret")
            await refused_walk(wire, "..", "secret")
            reply = await wire.ask(Twalk(0, 9, [".."]))
            assert isinstance(reply, Rwalk)
            assert reply.qids[0].path != inside.parent.stat().st_ino


async def test_a_name_of_bytes_is_audited_and_traced_like_any_other(inside: Path, tmp_path: Path) -> None:
    from warren.traces.audit import AuditFile

    audit = AuditFile(tmp_path / "audit")
    async with served(
        Disk(inside), ["any read,create,write /**", "any read /denied/**"], audit=audit
    ) as service:
        wire = await service.dial()
        name = b"caf\xe9".decode("utf-8", "surrogateescape")
        await wire.walk("", 1)
        assert not isinstance(await wire.ask(Tlcreate(1, name, 2, 0o644, 0)), Rlerror)
        assert isinstance(await wire.ask(Tunlinkat(0, name, 0)), Rlerror)
        await wire.walk("", 2)
        await wire.ask(Twalk(0, 3, [name, name]))
    text = audit.path.read_text()
    assert r"caf\\xe9" in text
    assert '"denied"' in text
    audit.close()
    assert (inside / os.fsdecode(b"caf\xe9")).exists()


async def test_a_walk_of_sixteen_names_and_one_that_breaks_off() -> None:
    deep = Dir()
    for _ in range(20):
        deep = Dir({"d": deep})
    async with served(deep) as service:
        wire = await service.dial()
        await wire.walk("/".join("d" * 16), 1)
        await wire.walk("/".join("d" * 4), 1, fid=1)
        reply = await wire.ask(Twalk(1, 2, ["d"]))
        assert isinstance(reply, Rlerror)
        assert reply.ecode == 2
        reply = await wire.ask(Twalk(0, 2, ["d", "d", "absent", "d"]))
        assert isinstance(reply, Rwalk)
        assert len(reply.qids) == 2
        with pytest.raises(RefusedBy):
            await wire.clunk(2)


async def test_attaching_to_a_clone_file_itself_is_an_answer() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial(DOTL, aname="clone")
        with pytest.raises(RefusedBy):
            await wire.open("", 1, 2)
        assert not demo.counters
        assert not [e for e in service.export.trace.errors if e.code == 500]


async def test_a_rename_does_not_let_a_fid_out(inside: Path) -> None:
    """A directory that moves up takes the fids in it along, but not out of where they attached."""
    (inside / "sub" / "jail" / "cell").mkdir(parents=True)
    async with served(Disk(inside)) as service:
        jailed = await service.dial(aname="sub/jail")
        other = await service.dial()
        await jailed.walk("cell", 1)
        await other.walk("sub/jail", 1)
        await other.walk("", 2)
        assert not isinstance(await other.ask(Trename(1, 2, "moved")), Rlerror)
        await wait_all_tasks_blocked()
        for names in ([".."], [".."] * 5):
            reply = await jailed.ask(Twalk(1, 5, names))
            if isinstance(reply, Rwalk):
                assert reply.qids[-1].path == (inside / "moved").stat().st_ino
                await jailed.clunk(5)
