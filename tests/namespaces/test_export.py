"""A Space served as a tree."""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.check.tree import check_tree
from warren.mount import Files, dial
from warren.namespaces import Space
from warren.namespaces.directory import SpaceDir
from warren.namespaces.export import Cell, SpaceRoot
from warren.namespaces.far import FarNode
from warren.namespaces.reached import FarTree
from warren.namespaces.readonly import ReadOnly
from warren.namespaces.view import Shared, View
from warren.p9.messages import DOTL, PLAIN, WARREN
from warren.serve.export import Export
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.tree import Dir, Node, Refused, Text
from warren.tree.errstr import ErrStr

from tests.namespaces.hops import Hops, hops
from tests.wire import export_of, served

Tree = dict[str, Any]


class Nobody:
    """A caller, as a session is one."""

    subject = "any"
    session = 1
    last_error = ""


class OnlyHere:
    """`Trees` without a way to anywhere else."""

    def __init__(self, roots: dict[str, Node]) -> None:
        self.roots = {f"${name}": root for name, root in roots.items()}

    def local(self, address: str) -> Node | None:
        return self.roots.get(address)

    async def reach(self, address: str, caller: object, path: str = "/") -> Files:
        raise Refused(502, f"{address} is not connected")


def root_of(space: Space, /, **roots: Node) -> Node:
    return SpaceRoot(Cell(space), OnlyHere(roots)).attach(Nobody())


def walk(node: Node, path: str) -> Node:
    """Walk without waiting, as trees of one process can be."""
    for name in path.strip("/").split("/") if path != "/" else ():
        found = node.walk(name)
        assert isinstance(found, Node)
        node = found
    return node


def words(*names: str) -> Dir:
    return Dir({name: Text(lambda name=name: name) for name in names})  # type: ignore[misc]


@asynccontextmanager
async def mounted(space: Space, trees: Hops) -> AsyncIterator[tuple[Files, Export]]:
    """Files of a Space behind an export, over memory streams."""
    async with served(SpaceRoot(Cell(space), trees)) as service:
        wire = service.connect("local")
        async with dial(wire.stream) as files:
            yield files, service.export


# The conformance suite

Made = Callable[[], Any]


@asynccontextmanager
async def here() -> AsyncIterator[Node]:
    async with hops() as trees:
        trees.here["$self"] = Demo()
        yield SpaceRoot(Cell(Space().mount("$self", "/")), trees)


@asynccontextmanager
async def there() -> AsyncIterator[Node]:
    async with hops() as trees:
        trees.there["$far"] = export_of(Demo())
        yield SpaceRoot(Cell(Space().mount("$far", "/")), trees)


@asynccontextmanager
async def both() -> AsyncIterator[Node]:
    async with hops() as trees:
        trees.here["$self"] = Demo()
        trees.there["$far"] = export_of(Demo())
        yield SpaceRoot(Cell(Space().mount("$self", "/a/here").mount("$far", "/n/far")), trees)


def feeds(prefix: str) -> dict[str, Callable[[Files], Awaitable[object]]]:
    return {
        f"{prefix}/recv": lambda files: files.write(f"{prefix}/send", b"x"),
        f"{prefix}/events": lambda files: files.write(f"{prefix}/ctl", b"say hi"),
    }


@pytest.mark.parametrize(
    ("made", "prefix", "dialects"),
    [(here, "", (PLAIN, DOTL, WARREN)), (there, "", (DOTL, WARREN)), (both, "/n/far", (DOTL, WARREN))],
    ids=["here", "far", "both"],
)
async def test_a_space_is_a_tree_like_any_other(made: Made, prefix: str, dialects: tuple[str, ...]) -> None:
    await check_tree(made, feeds=feeds(prefix), dialects=dialects)


@pytest.mark.parametrize(("dialects", "far"), [((PLAIN, DOTL, WARREN), False), ((PLAIN, DOTL, WARREN), True)])
async def test_a_disk_in_a_space_is_all_that_it_is(
    tmp_path: Path, dialects: tuple[str, ...], far: bool
) -> None:
    @asynccontextmanager
    async def made() -> AsyncIterator[Node]:
        async with hops() as trees:
            trees.there["$disk"] = export_of(Disk(tmp_path))
            if not far:
                trees.here["$disk"] = Disk(tmp_path)
            trees.here["$self"] = Demo()
            yield SpaceRoot(Cell(Space().mount("$self", "/").mount("$disk", "/w", flags="c")), trees)

    await check_tree(made, writable="/w", dialects=dialects)


# Walking


def test_below_the_last_mount_point_a_node_is_given_as_it_is() -> None:
    demo, own = Demo(), words("motd")
    root = root_of(Space().mount("$own", "/").mount("$demo", "/n/demo"), own=own, demo=demo)
    assert walk(root, "/n/demo/ctl") is demo.entries["ctl"]
    assert walk(root, "/n/demo/clone") is demo.entries["clone"]
    assert walk(root, "/motd") is own.entries["motd"]


@st.composite
def trees(draw: st.DrawFn, deep: int = 3) -> Tree:
    names = st.sampled_from("abc")
    if deep == 0:
        return {}
    return draw(st.dictionaries(names, st.none() | trees(deep - 1), max_size=3))


paths = st.lists(st.sampled_from("abc"), max_size=3).map(tuple)


def grown(tree: Tree) -> Dir:
    return Dir({name: Text(str) if below is None else grown(below) for name, below in tree.items()})


class Model:
    """What Plan 9 says of unions: a walk from the root, one name after the other."""

    def __init__(self, space: Space, roots: dict[str, Tree]) -> None:
        self.space, self.roots = space, roots

    def leads(self, path: tuple[str, ...]) -> bool:
        return any(old[: len(path)] == path for old in self.space.table)

    def start(self, path: tuple[str, ...], found: list[Any]) -> list[Any]:
        """The directories that are united at PATH, if it is a mount point."""
        if path not in self.space.table:
            return found
        united = []
        for member in self.space.table[path]:
            at: Any = self.roots[member.address]
            for name in member.path:
                at = at.get(name, False) if isinstance(at, dict) else False
            united.append(at)
        return united

    def walk(self, path: tuple[str, ...]) -> list[Any] | None:
        """The things at PATH: directories, or one file; None if it is not there."""
        at = self.start((), [])
        for n in range(1, len(path) + 1):
            here = path[:n]
            found = [d[path[n - 1]] for d in at if isinstance(d, dict) and path[n - 1] in d][:1]
            if not found and not self.leads(here):
                return None
            at = self.start(here, found)
        return at

    def names(self, path: tuple[str, ...]) -> set[str]:
        at = self.walk(path) or []
        names = {name for d in at if isinstance(d, dict) for name in d}
        return names | {old[len(path)] for old in self.space.table if old[: len(path)] == path != old}


async def listed(node: Node) -> list[str]:
    handle = node.open(0, Nobody())
    assert not isinstance(handle, Awaitable)
    found = handle.entries()
    entries: Iterable[Any] = await found if isinstance(found, Awaitable) else found
    return [e.name for e in entries]


async def step(node: Node, path: tuple[str, ...]) -> Node | None:
    for name in path:
        try:
            found = node.walk(name)
            node = found if isinstance(found, Node) else await found
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Refused as e:
            if e.code not in (400, 404):
                raise
            return None
    return node


@given(st.data())
async def test_unions_are_what_the_model_says(data: st.DataObject) -> None:
    roots = {f"${name}": data.draw(trees(), name) for name in ("one", "two")}
    space = Space()
    for _ in range(data.draw(st.integers(1, 4))):
        flags = data.draw(st.sampled_from(["", "a", "b"]))
        old, aname = data.draw(paths), data.draw(paths)
        if any(isinstance(grown_at(roots[a], aname), type(None)) for a in roots):
            continue  # a file that is mounted has rules of its own
        try:
            space = space.mount(
                data.draw(st.sampled_from(sorted(roots))), "/" + "/".join(old), "/".join(aname), flags
            )
        except Refused:
            continue
    model = Model(space, roots)
    root = root_of(space, **{name[1:]: grown(tree) for name, tree in roots.items()})
    for path in data.draw(st.lists(paths, min_size=8, max_size=8)):
        found, wanted = await step(root, path), model.walk(path)
        assert (found is None) is (wanted is None), path
        if found is not None and found.qtype & 0x80:
            names = [n for n in await listed(found) if n not in ("dev", "errstr")]
            assert len(names) == len(set(names))
            assert set(names) == model.names(path), path


def grown_at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name, False) if isinstance(tree, dict) else False
    return tree


async def test_a_file_can_be_mounted() -> None:
    async with hops() as trees:
        trees.here["$self"], trees.there["$far"] = Demo(), export_of(Demo())
        space = Space().mount("$self", "/a", "hello").mount("$far", "/b", "hello", "r")
        async with mounted(space, trees) as (files, _):
            assert await files.read("/a") == b"hello, world\n"
            assert await files.read("/b") == b"hello, world\n"
            await files.write("/a", b"new")
            with pytest.raises(OSError) as e:
                await files.write("/b", b"new")
            assert e.value.errno == errno.EROFS
            kinds = {d.name: d.qid.type for d in await files.readdir("/")}
            assert kinds == {"a": 0, "b": 0, "dev": 0x80}


async def test_a_space_that_is_replaced_is_in_force_at_the_next_walk() -> None:
    cell = Cell(Space().mount("$self", "/"))
    root = SpaceRoot(cell, OnlyHere({"self": words("a"), "other": words("b")})).attach(Nobody())
    assert await step(root, ("n",)) is None
    cell.space = cell.space.mount("$other", "/n/other")
    assert cell.version == 1
    at = walk(root, "/n/other")
    assert await listed(at) == ["b"]
    cell.space = cell.space.unmount("/n/other")
    assert await listed(at) == []
    with pytest.raises(OSError, match="does not exist"):
        at.walk("b")


async def test_what_cannot_be_reached_is_an_error_and_no_other_member_steps_in() -> None:
    async with hops() as trees:
        trees.here["$self"] = words("a")
        space = Space().mount("$gone", "/u").mount("$self", "/u", flags="a").mount("$gone", "/n/gone", "x")
        async with mounted(space, trees) as (files, _):
            assert [d.name for d in await files.readdir("/")] == ["dev", "n", "u"]
            assert [d.name for d in await files.readdir("/n")] == ["gone"]
            assert (await files.stat("/n/gone")).is_dir
            for path in ("/u/a", "/n/gone/b"):
                with pytest.raises(OSError, match=r"502 upstream: \$gone is not connected trace="):
                    await files.stat(path)
            with pytest.raises(OSError, match="502"):
                await files.readdir("/u")


def test_a_path_has_an_end() -> None:
    """Two trees that show each other have none: every walk into another tree is a longer path there."""
    view = View(Shared(Cell(Space()), OnlyHere({})), Nobody())
    far = FarTree("$far", OnlyHere({}), Nobody())
    for deep in (SpaceDir(view, ("n",) * 64), FarNode.at(far, ("n",) * 64)):
        with pytest.raises(Refused) as e:
            deep.walk("n")
        assert e.value.errno == errno.ELOOP


async def test_every_space_tells_the_newest_error() -> None:
    root = root_of(Space().mount("$own", "/"), own=words("a"))
    assert isinstance(walk(root, "/dev/errstr"), ErrStr)
    assert await listed(root) == ["a", "dev"]
    assert await listed(walk(root, "/dev")) == ["errstr"]


# Read-only


async def test_read_only_members_are_read_and_never_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    async with hops() as trees:
        trees.here["$self"], trees.there["$far"] = Demo(), export_of(Demo())
        trees.here["$disk"] = Disk(tmp_path)
        space = Space().mount("$self", "/here", flags="r").mount("$far", "/far", flags="r")
        async with mounted(space.mount("$disk", "/disk", flags="r"), trees) as (files, _):
            for at in ("/here", "/far"):
                assert await files.read(f"{at}/hello") == b"hello, world\n"
                assert b"say WORDS" in await files.read(f"{at}/ctl")
                assert (await files.stat(f"{at}/hello")).mode & 0o222 == 0
                for name in ("ctl", "hello", "send", "submit", "clone"):
                    with pytest.raises(OSError) as e:
                        await files.write(f"{at}/{name}", b"reset\n")
                    assert e.value.errno == errno.EROFS, name
                with pytest.raises(OSError):
                    await files.open(f"{at}/clone", os.O_RDONLY)
            changes: list[Awaitable[object]] = [
                files.write("/disk/new", b"x", create=True),
                files.mkdir("/disk/new"),
                files.symlink("x", "/disk/new"),
                files.remove("/disk/file"),
                files.rename("/disk/file", "/disk/other"),
                files.chmod("/disk/file", 0o600),
                files.truncate("/disk/file", 0),
                files.setxattr("/disk/file", "user.a", b"1"),
                files.link("/disk/file", "/disk/new"),
            ]
            for change in changes:
                with pytest.raises(OSError) as e:
                    await change
                assert e.value.errno in (errno.EROFS, errno.EPERM, errno.EXDEV)
            assert await files.read("/disk/file") == b"data"
    assert os.listdir(tmp_path) == ["file"]


async def test_a_bind_of_something_read_only_is_read_only() -> None:
    root = root_of(Space().mount("$own", "/a", flags="r").bind("/a", "/b"), own=words("x"))
    assert isinstance(walk(root, "/b/x"), ReadOnly)


# Changing


async def test_new_files_go_to_the_first_member_that_takes_them(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "old").write_text("old")
    async with hops() as trees:
        for name in ("one", "two", "three"):
            trees.here[f"${name}"] = Disk(tmp_path / name)
        space = Space().mount("$one", "/u").mount("$two", "/u", flags="ac").mount("$three", "/u", flags="ac")
        async with mounted(space, trees) as (files, _):
            await files.write("/u/new", b"new", create=True)
            await files.mkdir("/u/dir")
            await files.symlink("new", "/u/link")
            assert sorted(os.listdir(tmp_path / "two")) == ["dir", "link", "new"]
            assert os.listdir(tmp_path / "three") == []
            await files.write("/u/old", b"newer", create=True)
            assert (tmp_path / "one" / "old").read_text() == "newer"
            with pytest.raises(FileExistsError):
                await files.mkdir("/u/old")
            with pytest.raises(FileExistsError):
                await files.open("/u/old", os.O_RDWR | os.O_CREAT | os.O_EXCL)
            await files.remove("/u/old")
            assert os.listdir(tmp_path / "one") == []


async def test_without_c_a_mount_point_takes_no_new_files(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    async with hops() as trees:
        trees.here["$disk"] = Disk(tmp_path)
        async with mounted(Space().mount("$disk", "/w"), trees) as (files, _):
            for change in (files.mkdir("/w/new"), files.open("/w/new", os.O_RDWR | os.O_CREAT)):
                with pytest.raises(PermissionError, match="no member of this union takes new files"):
                    await change
            await files.write("/w/dir/new", b"below it the tree decides", create=True)


async def test_a_rename_from_one_member_to_another_is_exdev(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in-{name}").write_text(name)
    async with hops() as trees:
        trees.here["$one"], trees.there["$two"] = Disk(tmp_path / "one"), export_of(Disk(tmp_path / "two"))
        space = Space().mount("$one", "/u", flags="c").mount("$two", "/u", flags="ac")
        async with mounted(space.mount("$two", "/two", flags="c"), trees) as (files, _):
            for old, new in (("/u/in-one", "/two/x"), ("/two/in-two", "/v")):
                with pytest.raises(OSError) as e:
                    await files.rename(old, new)
                assert e.value.errno in (errno.EXDEV, errno.EPERM)
            await files.rename("/u/in-two", "/u/renamed")
            await files.rename("/u/in-one", "/u/one-renamed")
            await files.rename("/u/renamed", "/two/back")
    assert os.listdir(tmp_path / "two") == ["back"]
    assert os.listdir(tmp_path / "one") == ["one-renamed"]


async def test_what_is_mounted_is_neither_removed_nor_renamed_nor_replaced(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "file").write_text("data")
    async with hops() as trees:
        trees.here["$disk"], trees.here["$self"] = Disk(tmp_path), words("a")
        space = Space().mount("$disk", "/", flags="c").mount("$self", "/n/self")
        async with mounted(space, trees) as (files, _):
            for change in (
                files.remove("/n"), files.remove("/n/self"), files.rename("/n", "/m"),
                files.rename("/file", "/n"), files.mkdir("/n"),
            ):  # fmt: skip
                with pytest.raises(OSError) as e:
                    await change
                assert e.value.errno == errno.EBUSY
            await files.write("/n/new", b"x", create=True)
            assert sorted(d.name for d in await files.readdir("/n")) == ["new", "self"]
    assert (tmp_path / "n" / "new").exists()
