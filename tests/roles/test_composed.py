"""Trees that a user puts together: for the user alone, as the user, and back when their servers are."""

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from warren.auth.rights import Policy
from warren.mount import dial
from warren.namespaces import Space
from warren.roles.composed import composed, elsewhere, imported, unanswered
from warren.roles.guard import Guard
from warren.roles.reach import Way
from warren.serve.export import Export
from warren.serve.listen import BadAddress, listening
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, Node, Text

from tests.redteam.hives import Hive

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories for sockets are made, so that a test sees what is left of them."""
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    return tmp_path / "t"


class Served:
    """A tree at an address, which can go and come back."""

    def __init__(
        self, nursery: trio.Nursery, root: Node, address: str, guard: Guard | None, rows: tuple[str, ...]
    ) -> None:
        self.nursery = nursery
        self.root, self.address, self.guard, self.rows = root, address, guard, rows
        self.export: Export
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def start(self) -> None:
        await self.nursery.start(self._serve)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        self.scope, self.ended = trio.CancelScope(), trio.Event()
        self.export = Export(self.root, Policy.parse(self.rows), AuditMemory(), TraceRing())
        gate = self.guard.gate if self.guard else None
        with self.scope:
            async with listening(self.export, [self.address], gate) as [self.address]:
                task_status.started()
                await trio.sleep_forever()
        self.ended.set()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()

    @property
    def subjects(self) -> list[str]:
        return [s.subject for s in self.export.sessions if s.attached]


@asynccontextmanager
async def served(
    root: Node, address: str, hive: Hive | None = None, rows: tuple[str, ...] = ()
) -> AsyncIterator[Served]:
    rows = rows or ("local read,write,create,remove,ctl /**",)
    async with trio.open_nursery() as nursery:
        made = Served(nursery, root, address, Guard(hive.server) if hive else None, rows)
        await made.start()
        yield made
        nursery.cancel_scope.cancel()


async def test_a_namespace_is_one_tree_with_all_words_of_its_trees(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/kept").write_text("kept")
    async with (
        served(Demo(), f"unix!{tmp_path}/a") as demo,
        served(Disk(tmp_path / "d"), f"unix!{tmp_path}/b") as disk,
    ):
        space = Space().mount(demo.address, "/").mount(disk.address, "/n/disk", flags="c")
        async with composed(space) as at, dial(at) as files:
            assert {e.name for e in await files.readdir("/")} >= {"hello", "ctl", "n"}
            assert await files.read("/n/disk/kept") == b"kept"
            await files.write("/n/disk/kept", b"changed")
            assert (tmp_path / "d/kept").read_text() == "changed"
            async with await files.open("/events", os.O_RDONLY | os.O_NONBLOCK) as events:
                await files.write("/ctl", b"say hallo\n")
                assert b"hallo" in await events.record()
            with pytest.raises(OSError, match="no verb 'nonsense'"):
                await files.write("/ctl", b"nonsense\n")
            assert demo.subjects == disk.subjects == ["local"]


async def test_it_is_for_its_user_alone_and_nothing_of_it_stays(tmp_path: Path, fresh: Path) -> None:
    async with served(Demo(), f"unix!{tmp_path}/a") as demo:
        async with composed(Space().mount(demo.address, "/")) as at:
            socket = Path(at.removeprefix("unix!"))
            assert socket.parent.parent == fresh
            assert stat.S_IMODE(os.stat(socket.parent).st_mode) == 0o700
            assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
            assert demo.export.sessions == set()  # nothing is dialled before it is used
        assert os.listdir(fresh) == []
        assert demo.export.sessions == set()


async def test_a_tree_that_is_away_is_an_error_and_not_a_missing_file_and_comes_back(tmp_path: Path) -> None:
    other = Dir({"hello": Text(lambda: "the other one's")})
    async with (
        served(Demo(), f"unix!{tmp_path}/a") as demo,
        served(other, f"unix!{tmp_path}/b") as second,
    ):
        space = Space().mount(demo.address, "/u").mount(second.address, "/u", flags="a")
        async with composed(space) as at, dial(at) as files:
            assert await files.read("/u/hello") == b"hello, world\n"
            await demo.stop()
            for _ in range(2):  # as the connection is lost, and as none is had
                with pytest.raises(OSError, match="502") as e:
                    await files.read("/u/hello")
                assert e.value.errno != errno.ENOENT
            await demo.start()
            assert await files.read("/u/hello") == b"hello, world\n"


async def test_a_symbol_leads_where_it_is_said_to(tmp_path: Path) -> None:
    async with served(Demo(), f"unix!{tmp_path}/a") as demo:
        space = Space().mount("$queen", "/q")
        async with composed(space, ways={"$queen": Way(demo.address)}) as at, dial(at) as files:
            assert await files.read("/q/hello") == b"hello, world\n"


async def test_what_is_tls_is_reached_as_who_we_are(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    async with served(Demo(), "tls!127.0.0.1!0", hive, (f"{ann.uri} read /**",)) as demo:
        space = Space().mount(demo.address, "/")
        async with composed(space, identity=ann) as at, dial(at) as files:
            assert await files.read("/hello") == b"hello, world\n"
            assert demo.subjects == [ann.uri]
            with pytest.raises(PermissionError):
                await files.write("/hello", b"x")
        async with composed(space, identity=ann, expect="role/DroneWorker/*") as at, dial(at) as files:
            with pytest.raises(PermissionError, match="wrong_role"):
                await files.read("/hello")


async def test_who_does_not_answer_and_why(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    async with (
        served(Demo(), f"unix!{tmp_path}/a") as here,
        served(Demo(), "tls!127.0.0.1!0", hive, ("user/ann read /**",)) as there,
    ):
        gone = f"unix!{tmp_path}/gone"
        found = await unanswered([here.address, there.address, gone], identity=ann)
        assert list(found) == [gone]
        assert found[gone].errno == errno.ENOENT
        found = await unanswered([there.address], identity=ann, expect="role/DroneWorker/*")
        assert isinstance(found[there.address], PermissionError)
        with pytest.raises(ValueError, match="is not an address"):
            await unanswered(["nonsense"])


# One tree


async def test_many_clients_share_the_one_connection_of_an_import(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    async with (
        served(Demo(), "tls!127.0.0.1!0", hive, ("user/ann read,write,ctl /**",)) as demo,
        imported(demo.address, identity=ann) as at,
        dial(at) as one,
        dial(at, versions=("9P2000",)) as plain,
        dial(at, versions=("9P2000.L",)) as linux,
    ):
        for files in (one, plain, linux):
            assert await files.read("/hello") == b"hello, world\n"
            await files.write("/ctl", b"say hallo\n")
        assert (plain.version, linux.version) == ("9P2000", "9P2000.L")
        assert demo.subjects == [ann.uri]


async def test_an_import_is_that_tree_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    async with served(Disk(tmp_path / "d"), f"unix!{tmp_path}/b") as disk, imported(disk.address) as at:
        async with dial(at) as files:
            assert [e.name for e in await files.readdir("/")] == ["sub"]
            await files.write("/sub/new", b"x", create=True)
            await files.rename("/sub/new", "/newer")
            await files.link("/newer", "/sub/again")
            assert sorted(os.listdir(tmp_path / "d")) == ["newer", "sub"]
            with pytest.raises(FileExistsError):
                await files.mkdir("/newer")


async def test_an_import_has_the_errors_of_its_tree(tmp_path: Path) -> None:
    async with served(Demo(), f"unix!{tmp_path}/b") as demo, imported(demo.address) as at:
        async with dial(at, versions=("9P2000.L",)) as files:
            with pytest.raises(OSError):
                await files.write("/ctl", b"nonsense\n")
            assert b"no verb 'nonsense'" in await files.read("/dev/errstr")


async def test_an_import_may_be_of_a_directory_and_read_only(tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/sub/f").write_text("x")
    async with (
        served(Disk(tmp_path / "d"), f"unix!{tmp_path}/b") as disk,
        imported(disk.address, aname="/sub", read_only=True, listen=f"unix!{tmp_path}/here") as at,
    ):
        assert at == f"unix!{tmp_path}/here"
        async with dial(at) as files:
            assert await files.read("/f") == b"x"
            with pytest.raises(OSError) as e:
                await files.write("/f", b"y")
            assert e.value.errno in (errno.EROFS, errno.EPERM, errno.EACCES)
    assert not (tmp_path / "here").exists()


async def test_an_import_is_back_when_its_server_is(tmp_path: Path) -> None:
    async with served(Demo(), f"unix!{tmp_path}/a") as demo, imported(demo.address) as at, dial(at) as files:
        assert await files.read("/hello") == b"hello, world\n"
        await demo.stop()
        with pytest.raises(OSError, match="502") as e:
            await files.read("/hello")
        assert e.value.errno != errno.ENOENT
        await demo.start()
        assert await files.read("/hello") == b"hello, world\n"


async def test_what_is_not_there_is_not_imported(tmp_path: Path, fresh: Path) -> None:
    async def imports(address: str, **how: Any) -> None:
        async with imported(address, **how):
            raise AssertionError("it was")

    with pytest.raises(FileNotFoundError):
        await imports(f"unix!{tmp_path}/gone")
    async with served(Demo(), f"unix!{tmp_path}/a") as demo:
        with pytest.raises(BadAddress, match="in use"):
            await imports(demo.address, listen=demo.address)
    assert os.listdir(fresh) == []


async def test_a_tree_from_elsewhere_is_used_as_ourselves_by_whom_an_export_lets_in(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    async with (
        served(Demo(), f"unix!{tmp_path}/a") as demo,
        elsewhere(demo.address) as root,
        served(root, "tls!127.0.0.1!0", hive, ("user/ann read /hello",)) as ours,
        dial(ours.address, identity=ann) as files,
    ):
        assert await files.read("/hello") == b"hello, world\n"
        assert demo.subjects == ["local"]
        with pytest.raises(FileNotFoundError):
            await files.read("/scratch")
        with pytest.raises(PermissionError):
            await files.write("/hello", b"x")


async def test_a_block_that_is_cancelled_leaves_nothing(tmp_path: Path, fresh: Path) -> None:
    async with served(Demo(), f"unix!{tmp_path}/a") as demo:
        with trio.CancelScope() as scope:
            async with composed(Space().mount(demo.address, "/")) as at, dial(at) as files:
                await files.read("/hello")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert os.listdir(fresh) == []
