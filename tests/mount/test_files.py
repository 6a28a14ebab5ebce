"""One suite over real servers: Debian's diod, and ours in each of its dialects."""

from __future__ import annotations

import errno
import os
import socket
import stat as S
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.auth.rights import Policy
from warren.mount import Files, dial
from warren.p9.messages import DOTL, PLAIN, WARREN
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.servers.disk import Disk
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import NOW
from warren.tree.node import Changes

EVERYTHING = Policy.parse(["allow any rw,create,remove,ctl /**", "allow local rw,create,remove,ctl /**"])


@asynccontextmanager
async def by_diod(tree: Path) -> AsyncIterator[Files]:
    """diod serves one connection on a pair of sockets, so there is no port to wait for."""
    ours, theirs = socket.socketpair()
    command = ["diod", "-f", "-n", "-N", "-u", "0", "-c", "/dev/null", "-e", str(tree), "-r", "0", "-w", "0"]
    command += ["-L", str(tree.parent / "diod.log")]
    diod = await trio.lowlevel.open_process(command, stdin=theirs.fileno())
    theirs.close()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    try:
        async with dial(stream, str(tree)) as files:
            yield files
    finally:
        await trio.aclose_forcefully(stream)
        diod.kill()
        with trio.CancelScope(shield=True):
            await diod.wait()


@asynccontextmanager
async def by_warren(tree: Path, version: str) -> AsyncIterator[Files]:
    export = Export(Disk(tree), EVERYTHING, AuditMemory(), TraceRing())
    async with listening(export, [f"unix!{tree.parent / 'sock'}"]) as (address,):
        async with dial(address, versions=[version]) as files:
            yield files


SERVERS = ["diod", WARREN, DOTL, PLAIN]


@asynccontextmanager
async def served(server: str, tmp_path: Path) -> AsyncIterator[tuple[Files, Path]]:
    tree = tmp_path / "tree"
    tree.mkdir()
    async with by_diod(tree) if server == "diod" else by_warren(tree, server) as files:
        assert files.version == (DOTL if server == "diod" else server)
        yield files, tree


every_server = pytest.mark.parametrize("server", SERVERS)
linux_servers = pytest.mark.parametrize("server", ["diod", WARREN, DOTL])
our_linux_servers = pytest.mark.parametrize("server", [WARREN, DOTL])


@every_server
async def test_what_is_written_is_read(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        assert await files.write("/a", b"hello", create=True) == 5
        assert (tree / "a").read_bytes() == await files.read("/a") == b"hello"
        await files.write("/a", b"by")
        assert await files.read("/a") == b"by"
        await files.write("/a", b"J", truncate=False)
        assert await files.read("/a") == b"Jy"
        await files.write("/a", b"!", append=True)
        assert await files.read("/a") == b"Jy!"
        await files.truncate("/a", 1)
        assert await files.read("/a") == b"J"
        await files.write("/empty", b"", create=True)
        assert await files.read("/empty") == b""


@every_server
@pytest.mark.parametrize("extra", [-1, 0, 1])
async def test_large_files_cross_in_pieces(server: str, extra: int, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        data = os.urandom(3 * files.msize + extra)
        await files.write("/big", data, create=True)
        assert (tree / "big").read_bytes() == data
        assert await files.read("/big") == data
        async with await files.open("/big") as file:
            assert await file.read() == data
            assert await file.pread(files.msize * 2, 5) == data[5 : 5 + files.msize * 2]
            assert await file.pread(100, len(data) - 10) == data[-10:]
            assert await file.pread(100, len(data)) == b""
            assert b"".join(await file.pread_pieces(len(data) + 1, 0)) == data


@every_server
async def test_a_file_is_read_in_a_row_and_at_places(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        async with await files.create("/f", os.O_RDWR | os.O_EXCL, 0o640) as file:
            assert await file.write(b"0123456789") == 10
            assert await file.pwrite(b"xx", 4) == 2
            assert await file.pread(4, 3) == b"3xx6"
            file.position = 0
            assert [await file.read(6), await file.read(6), await file.read(6)] == [b"0123xx", b"6789", b""]
            await file.fsync()
            await file.truncate(3)
            assert (await file.stat()).size == 3
        assert S.S_IMODE((tree / "f").stat().st_mode) == 0o640
        with pytest.raises(ValueError, match="closed"):
            await file.read(1)
        with pytest.raises(FileExistsError):
            await files.create("/f", os.O_RDWR | os.O_EXCL)
        async with await files.create("/f") as file:
            assert await file.read() == b"012"


@every_server
async def test_attributes_are_those_of_the_file(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        (tree / "f").write_bytes(b"12345")
        os.utime(tree / "f", ns=(10**18, 2 * 10**18 + 5))
        (tree / "d").mkdir(0o750)
        entry, real = await files.stat("/f"), (tree / "f").stat()
        second = server == PLAIN
        assert (entry.name, entry.size, entry.mode) == ("f", 5, real.st_mode)
        assert entry.mtime_ns == (2 * 10**18 if second else 2 * 10**18 + 5)
        assert entry.qid.path
        assert not entry.is_dir
        assert (await files.stat("/d")).is_dir
        assert (await files.stat("/")).is_dir
        assert await files.walk_exists("/d")
        assert not await files.walk_exists("/d/e")
        assert not await files.walk_exists("/f/g")
        await files.chmod("/f", 0o600)
        assert S.S_IMODE((tree / "f").stat().st_mode) == 0o600
        await files.utimens("/f", 7 * 10**9, 8 * 10**9)
        assert (tree / "f").stat().st_mtime_ns == 8 * 10**9
        await files.utimens("/f", None, NOW)
        assert (tree / "f").stat().st_mtime > 10**9


@every_server
async def test_directories_are_listed_whole(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        await files.mkdir("/d", 0o755)
        assert await files.ls("/d") == []
        names = {f"name-{i:04}-{'x' * (i % 200)}" for i in range(1000)}
        for name in names:
            (tree / "d" / name).write_bytes(b"1")
        assert {d.name for d in await files.readdir("/d")} == names
        entries = await files.ls("/d")
        assert {e.name for e in entries} == names
        assert {e.size for e in entries} == {1}
        for listing in (files.ls, files.readdir):
            with pytest.raises(NotADirectoryError):
                await listing(f"/d/{min(names)}")


@every_server
async def test_names_are_moved_and_removed(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        (tree / "a").write_bytes(b"a")
        (tree / "d" / "e").mkdir(parents=True)
        await files.rename("/a", "/b")
        assert (tree / "b").read_bytes() == b"a"
        if server == PLAIN:
            with pytest.raises(OSError, match="only within a directory") as caught:
                await files.rename("/b", "/d/b")
            assert caught.value.errno == errno.EXDEV
        else:
            await files.rename("/b", "/d/b")
            await files.rename("/d/b", "/b")
        with pytest.raises(NotADirectoryError):
            await files.remove("/b", directory=True)
        with pytest.raises(IsADirectoryError):
            await files.remove("/d/e", directory=False)
        with pytest.raises(OSError, match="not empty"):
            await files.remove("/d")
        await files.remove("/d/e", directory=True)
        await files.remove("/d")
        await files.remove("/b", directory=False)
        assert list(tree.iterdir()) == []


@every_server
async def test_errors_are_pythons_and_name_the_path(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        (tree / "f").write_bytes(b"")
        for path in ("/none", "/none/deeper", "/" + "/".join("x" * 20)):
            for action in (files.read, files.stat, files.ls, files.remove, files.open):
                with pytest.raises(FileNotFoundError) as caught:
                    await action(path)
                assert caught.value.filename == path
        with pytest.raises(NotADirectoryError):
            await files.stat("/f/g")
        with pytest.raises(FileExistsError):
            await files.mkdir("/f")
        with pytest.raises(OSError, match="names no file"):
            await files.mkdir("/")
        if server == WARREN:
            with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] 404 .* trace=[0-9a-f]{16}: '/none'$"):
                await files.read("/none")


@every_server
async def test_long_paths_are_walked_in_steps(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        deep = Path(*(f"d{i}" for i in range(40)))
        (tree / deep).mkdir(parents=True)
        (tree / deep / "f").write_bytes(b"deep")
        assert await files.read(f"/{deep}/f") == b"deep"
        assert (await files.stat(f"//{deep}/./f")).name == "f"
        with pytest.raises(FileNotFoundError):
            await files.stat(f"/{deep}/g")
        missing = Path(*deep.parts[:20], "gone", *deep.parts[20:])
        with pytest.raises(FileNotFoundError):
            await files.stat(f"/{missing}")
        assert not await files.walk_exists(f"/{missing}")
        assert await files.read(f"/{deep}/f") == b"deep"


@linux_servers
async def test_links_are_made_and_followed(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        (tree / "d" / "e").mkdir(parents=True)
        (tree / "d" / "f").write_bytes(b"found")
        await files.symlink("../d/f", "/d/relative")
        await files.symlink("/d", "/absolute")
        await files.symlink("loop", "/loop")
        await files.symlink("nowhere", "/dangling")
        assert await files.readlink("/d/relative") == "../d/f"
        assert await files.read("/d/relative") == b"found"
        assert await files.read("/absolute/relative") == b"found"
        assert (await files.stat("/absolute")).is_link
        assert (await files.stat("/absolute", follow=True)).is_dir
        assert {e.name for e in await files.ls("/absolute")} == {"e", "f", "relative"}
        with pytest.raises(OSError) as caught:
            await files.read("/loop")
        assert caught.value.errno == errno.ELOOP
        with pytest.raises(FileNotFoundError):
            await files.read("/dangling")
        await files.remove("/absolute")
        assert (tree / "d").is_dir()
        await files.link("/d/f", "/d/e/hard")
        assert (tree / "d/e/hard").samefile(tree / "d/f")
        assert (await files.stat("/d/f")).nlink == 2
        assert (await files.statfs("/")).bsize


@our_linux_servers
async def test_extended_attributes(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        (tree / "f").write_bytes(b"")
        assert await files.listxattr("/f") == []
        await files.setxattr("/f", "user.a", b"one")
        await files.setxattr("/f", "user.b", bytes(range(256)) * 8)
        assert os.getxattr(tree / "f", "user.a") == b"one"
        assert await files.getxattr("/f", "user.b") == bytes(range(256)) * 8
        assert sorted(await files.listxattr("/f")) == ["user.a", "user.b"]
        with pytest.raises(FileExistsError):
            await files.setxattr("/f", "user.a", b"x", os.XATTR_CREATE)
        await files.removexattr("/f", "user.a")
        with pytest.raises(OSError) as caught:
            await files.getxattr("/f", "user.a")
        assert caught.value.errno == errno.ENODATA


@our_linux_servers
async def test_ranges_are_locked(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, tree):
        (tree / "f").write_bytes(b"0123456789")
        async with await files.open("/f", os.O_RDWR) as one, await files.open("/f", os.O_RDWR) as two:
            assert await one.lock(0, 5, owner=1)
            assert await two.lock(0, 5, owner=1, wait=False), "an owner does not conflict with itself"
            assert not await two.lock(4, 2, owner=2, wait=False)
            held = await two.getlock(4, 2, owner=2)
            assert held is not None
            assert held.proc_id == 1
            assert await two.lock(5, 5, owner=2, wait=False)
            await two.unlock(5, 5, owner=2)
            order: list[str] = []

            async def wait() -> None:
                assert await two.lock(0, 1, owner=2)
                order.append("locked")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.01)
                order.append("unlock")
                await one.unlock(owner=1)
            assert order == ["unlock", "locked"]


async def test_plain_says_what_it_lacks(tmp_path: Path) -> None:
    async with served(PLAIN, tmp_path) as (files, tree):
        (tree / "f").write_bytes(b"")
        for attempt in (
            files.symlink("a", "/b"),
            files.link("/f", "/g"),
            files.readlink("/f"),
            files.getxattr("/f", "user.a"),
            files.statfs(),
            files.setattr("/f", Changes(uid=1)),
        ):
            with pytest.raises(OSError, match=r"9P2000 has no .*; 9P2000\.L has") as caught:
                await attempt
            assert caught.value.errno == errno.EOPNOTSUPP


@every_server
async def test_many_tasks_share_a_session_and_leave_nothing(server: str, tmp_path: Path) -> None:
    async with served(server, tmp_path) as (files, _):

        async def work(i: int) -> None:
            path, data = f"/f{i}", os.urandom(1000 * i)
            await files.write(path, data, create=True)
            assert await files.read(path) == data
            assert (await files.stat(path)).size == len(data)
            with pytest.raises(FileNotFoundError):
                await files.read(f"/none{i}")
            await files.remove(path)

        async with trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(work, i)
        assert await files.ls("/") == []
        link = files._link
        assert link is not None
        while link.half.calls:  # the last clunks, which nobody waits for
            await trio.testing.wait_all_tasks_blocked()
        assert link.half.fids.in_use == 1, "only the root is left"
