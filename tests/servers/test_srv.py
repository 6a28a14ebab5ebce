"""/srv: what is posted, by whom, and what cannot be."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.check.tree import control, guard, names, reading, streams
from warren.check.tree.place import Check, Place
from warren.mount import Files
from warren.p9.messages import ALL, Rlcreate, Rlerror, Rwrite, Tlcreate, Twrite
from warren.servers.srv import MOST, Srv
from warren.tree import Dir, Refused

from tests.servers.clock import BEGAN, StillClock, TrioClock
from tests.servers.reach import attributes_of, reached
from tests.wire import RefusedBy, export_of, served

# A directory in which only posts can be made is not one for files, so the rules for those are left out.
ALL_RULES = (*names.CHECKS, *reading.CHECKS, *control.CHECKS, *streams.CHECKS, *guard.CHECKS)
RULES = [check for check in ALL_RULES if check is not reading.absent]


class Role:
    """The namespace that posts go to."""

    def __init__(self) -> None:
        self.trees: dict[str, tuple[str, str]] = {}
        self.gate: trio.Event | None = None

    def post(self, name: str, address: str, subject: str) -> None:
        if name == "queen":
            raise Refused(409, "/n/queen is taken; choose another name")
        self.trees[name] = (address, subject)

    async def post_slowly(self, name: str, address: str, subject: str) -> None:
        assert self.gate is not None
        await self.gate.wait()
        self.post(name, address, subject)

    def withdraw(self, name: str) -> None:
        del self.trees[name]


def srv(role: Role) -> Srv:
    return Srv(StillClock(), role.post, role.withdraw)


@asynccontextmanager
async def posts_of(tree: Srv, subject: str = "any") -> AsyncIterator[Files]:
    """A client of /srv, whose root is that directory."""
    async with reached(export_of(Dir({"srv": tree})), subject, "/srv") as files:
        yield files


@contextmanager
def sockets(folder: Path, *stems: str) -> Iterator[dict[str, socket.socket]]:
    made = {}
    try:
        for stem in stems:
            made[stem] = socket.socket(socket.AF_UNIX)
            made[stem].bind(str(folder / f"{stem}.sock"))
        yield made
    finally:
        for sock in made.values():
            sock.close()


@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("check", RULES, ids=lambda c: str(c.__name__))
async def test_it_is_a_tree(check: Check, dialect: str, autojump_clock: MockClock) -> None:
    tree = srv(Role())
    post = tree._reserve("one", "local")
    assert tree.put(post, "unix!/run/one") is None
    await check(Place(lambda: nullcontext(tree), dialect))


async def test_a_write_posts_reading_tells_and_removing_withdraws() -> None:
    role = Role()
    async with posts_of(srv(role), subject="spiffe://hive/user/ann") as files:
        await files.write("/me", b"unix!/run/me/sock\n", create=True)
        assert role.trees == {"me": ("unix!/run/me/sock", "spiffe://hive/user/ann")}
        assert attributes_of(await files.read("/me")) == {
            "address": "unix!/run/me/sock", "by": "spiffe://hive/user/ann", "since": f"{BEGAN:.3f}",
            "found": "no",
        }  # fmt: skip
        assert [d.name for d in await files.readdir("/")] == ["me"]
        await files.remove("/me")
        assert role.trees == {}
        assert await files.readdir("/") == []
        with pytest.raises(FileNotFoundError):
            await files.remove("/me")


async def test_a_post_outlives_its_maker_and_what_was_never_written_does_not() -> None:
    role = Role()
    tree = srv(role)
    async with posts_of(tree) as files:
        await files.write("/kept", b"unix!/run/kept", create=True)
        await (await files.open("/empty", os.O_WRONLY | os.O_CREAT)).close()
        assert not await files.walk_exists("/empty")
        await files.open("/half", os.O_WRONLY | os.O_CREAT)
        assert await files.walk_exists("/half")
        assert await files.read("/half") == b""
    await wait_all_tasks_blocked()
    assert set(tree.posts) == set(role.trees) == {"kept"}


@pytest.mark.parametrize(
    "address",
    [
        "tcp!127.0.0.1!564", "tls!host!564", "unix!relative", "unix!", "/run/x", "unix!/run/../etc/x",
        "unix!/run/./x", "unix!/run/x!y", "unix!/dir/", "unix!/a\nb", "unix!/\udcff", "",
        "unix!/" + "x" * 107, "unix!/a unix!/b\nunix!/c",
    ],
)  # fmt: skip
async def test_an_address_that_is_no_socket_is_refused_and_posts_nothing(address: str) -> None:
    role = Role()
    tree = srv(role)
    async with posts_of(tree) as files:
        with pytest.raises(OSError, match=r"4(00|13) .*(cannot be posted|at most)"):
            await files.write("/x", os.fsencode(address) or b" ", create=True)
        assert (role.trees, tree.posts) == ({}, {})


@pytest.mark.parametrize("name", [".hidden", "-x", "a b", "x" * 64, "\N{GREEK SMALL LETTER ALPHA}", "a#b"])
async def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    async with posts_of(srv(Role())) as files:
        with pytest.raises(OSError, match="is no name for a post"):
            await files.write(f"/{name}", b"unix!/run/x", create=True)


async def test_a_taken_name_is_refused_and_stays_what_it_was() -> None:
    role = Role()
    async with posts_of(srv(role)) as files:
        with pytest.raises(OSError, match="409 conflict: /n/queen is taken; choose another name"):
            await files.write("/queen", b"unix!/run/evil", create=True)
        assert not await files.walk_exists("/queen")
        await files.write("/me", b"unix!/run/me", create=True)
        for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT, os.O_CREAT | os.O_EXCL):
            with pytest.raises(OSError, match="posted already; remove it first"):
                await files.open("/me", flags)
        assert role.trees == {"me": ("unix!/run/me", "any")}
        with pytest.raises(NotADirectoryError):
            await files.remove("/me", directory=True)
        with pytest.raises(OSError, match="directories cannot be made here"):
            await files.mkdir("/dir")


async def test_a_post_is_one_write_and_a_refused_one_may_be_tried_again() -> None:
    role = Role()
    async with served(Dir({"srv": srv(role)})) as service:
        wire = await service.dial(aname="/srv")
        await wire.want(Rlcreate, Tlcreate(0, "me", 2, 0o644, 0))
        with pytest.raises(RefusedBy):
            await wire.write(0, b"nonsense")
        assert (await wire.read(0)).startswith(b"400 bad_request: 'nonsense' cannot be posted")
        await wire.write(0, b"unix!/run/me")
        assert b"address=unix!/run/me" in await wire.read(0)
        with pytest.raises(RefusedBy):
            await wire.write(0, b"unix!/run/other")
    assert role.trees["me"][0] == "unix!/run/me"


async def test_of_two_writes_at_once_one_is_the_post(autojump_clock: MockClock) -> None:
    role = Role()
    role.gate = trio.Event()
    async with served(Dir({"srv": Srv(TrioClock(), role.post_slowly, role.withdraw)})) as service:
        wire = await service.dial(aname="/srv")
        await wire.want(Rlcreate, Tlcreate(0, "me", 2, 0o644, 0))
        await wire.send(Twrite(0, 0, b"unix!/run/one"), Twrite(0, 0, b"unix!/run/two"))
        assert isinstance(await wire.reply(), Rlerror)
        role.gate.set()
        assert isinstance(await wire.reply(), Rwrite)
        assert role.trees == {"me": ("unix!/run/one", "any")}


async def test_the_number_of_posts_is_bounded() -> None:
    role = Role()
    async with posts_of(srv(role)) as files:
        for n in range(MOST):
            await files.write(f"/n{n}", b"unix!/run/x", create=True)
        with pytest.raises(OSError, match=f"429 busy: {MOST} names are posted"):
            await files.write("/more", b"unix!/run/x", create=True)
        await files.remove("/n0")
        await files.write("/more", b"unix!/run/x", create=True)


async def test_posting_needs_create_and_write_and_removing_remove() -> None:
    role = Role()
    rows = ["role/*/* create,write /srv/*", "any read /**"]
    tree = srv(role)
    export = export_of(Dir({"srv": tree}), rows)
    async with reached(export, "spiffe://h/user/eve") as files:
        with pytest.raises(PermissionError):
            await files.write("/srv/x", b"unix!/run/x", create=True)
    async with reached(export, "spiffe://h/role/DroneWorker/d") as files:
        await files.write("/srv/x", b"unix!/run/x", create=True)
        with pytest.raises(PermissionError):
            await files.remove("/srv/x")
    assert set(role.trees) == {"x"}


async def test_a_post_that_is_given_up_while_the_role_decides_is_withdrawn(autojump_clock: MockClock) -> None:
    role = Role()
    role.gate = trio.Event()
    tree = Srv(TrioClock(), role.post_slowly, role.withdraw)
    async with posts_of(tree) as files:
        with trio.move_on_after(1) as patience:
            await files.write("/me", b"unix!/run/me", create=True)
        assert patience.cancelled_caught
        await wait_all_tasks_blocked()
        assert (tree.posts, role.trees) == ({}, {})
        async with trio.open_nursery() as nursery:

            async def lose() -> None:
                with pytest.raises(FileNotFoundError):
                    await files.write("/me", b"unix!/run/me", create=True)

            nursery.start_soon(lose)
            await wait_all_tasks_blocked()
            await files.remove("/me")
            role.gate.set()
        assert (tree.posts, role.trees) == ({}, {})


# What is found


async def test_sockets_of_a_directory_come_and_go_by_themselves(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    role = Role()
    told: list[tuple[str, object]] = []

    def tell(kind: str, **values: object) -> None:
        told.append((kind, values["name"]))

    tree = Srv(TrioClock(), role.post, role.withdraw, tell)
    folder = tmp_path / "srv"
    nursery.start_soon(tree.discover, folder)
    await trio.sleep(3)
    assert role.trees == {}
    folder.mkdir()
    (folder / "file.sock").write_text("no socket")
    (folder / "link.sock").symlink_to("one.sock")
    with sockets(folder, "one", "queen", "bad name"):
        (folder / "one.txt").write_text("")
        await trio.sleep(1.5)
        assert role.trees == {"one": (f"unix!{folder}/one.sock", "local")}
        await trio.sleep(5)
        assert sorted(told, key=str) == [("srv_refused", "bad name"), ("srv_refused", "queen")], "said once"
        async with posts_of(tree) as files:
            assert attributes_of(await files.read("/one"))["found"] == "yes"
            with pytest.raises(OSError, match=r"was found at .*one\.sock; remove that socket"):
                await files.remove("/one")
        (folder / "one.sock").unlink()
        with sockets(folder, "two"):
            await trio.sleep(1.5)
            assert set(role.trees) == {"two"}
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            await trio.sleep(1.5)
            assert (role.trees, tree.posts) == ({}, {})
    nursery.cancel_scope.cancel()


async def test_a_socket_made_within_one_tick_of_the_directorys_clock_is_found(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    role, tick = Role(), int(BEGAN * 1e9)
    os.utime(tmp_path, ns=(tick, tick))
    nursery.start_soon(Srv(TrioClock(), role.post, role.withdraw).discover, tmp_path)
    await wait_all_tasks_blocked()
    with sockets(tmp_path, "one"):
        os.utime(tmp_path, ns=(tick, tick))
        await trio.sleep(1.5)
        assert set(role.trees) == {"one"}
    nursery.cancel_scope.cancel()


async def test_a_post_by_hand_is_not_taken_over_by_a_socket_of_that_name(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    role = Role()
    tree = Srv(TrioClock(), role.post, role.withdraw)
    async with posts_of(tree) as files:
        await files.write("/one", b"unix!/run/mine", create=True)
        with sockets(tmp_path, "one"):
            nursery.start_soon(tree.discover, tmp_path)
            await trio.sleep(3)
            assert role.trees["one"][0] == "unix!/run/mine"
        nursery.cancel_scope.cancel()
