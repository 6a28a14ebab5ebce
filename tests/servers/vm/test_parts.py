"""The parts of /vm that need no machine: consoles, shelves, limits, words, images."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.mount import Files, dial
from warren.servers.vm.asked import Asked, share_of, size
from warren.servers.vm.backend import Works
from warren.servers.vm.backends import Backends
from warren.servers.vm.console import Console, History
from warren.servers.vm.images import NoImages, StoredImages
from warren.servers.vm.limits import NO_GROUPS, Bounds, Cage, Groups, disk_usage, groups
from warren.servers.vm.shelf import Shelf
from warren.tree import Dir, Refused, Stream

from tests.boot import shelf as images
from tests.servers.ports import Nobody
from tests.servers.vm.standin import StandIn
from tests.wire import served

# Consoles


async def typed(data: bytes) -> None:
    raise Refused(409, "nobody is there")


async def test_a_reader_that_was_too_slow_finds_how_much_it_missed() -> None:
    console = Console(typed, kept=10)
    reader = console.start()
    console.append(b"0123456789abc")
    assert reader.next_nowait() == b"lost n=3\n"
    assert reader.next_nowait() == b"3456789abc"
    with pytest.raises(trio.WouldBlock):
        reader.next_nowait()
    assert console.start().next_nowait() == b"3456789abc"
    assert console.end == 13


async def test_a_console_ends_with_its_machine_for_who_waits_and_who_comes(autojump_clock: MockClock) -> None:
    console = Console(typed)
    async with served(Dir({"console": console})) as service:
        wire = await service.dial()
        async with dial(wire.stream, deadline=5) as files, trio.open_nursery() as nursery:
            got: list[bytes] = []
            nursery.start_soon(_all, files, got)
            await wait_all_tasks_blocked()
            console.append(b"hello")
            await wait_all_tasks_blocked()
            with pytest.raises(OSError, match="nobody is there"):
                await files.write("/console", b"x")
            console.close()
    assert got == [b"hello"]


async def _all(files: Files, got: list[bytes]) -> None:
    async with await files.open("/console", os.O_RDONLY | os.O_NONBLOCK) as console:
        while record := await console.record():
            got.append(record)


async def test_a_history_begins_at_its_first_record_and_ends() -> None:
    history = History(lambda: 1.0, depth=2)
    for kind in ("one", "two", "three"):
        history.tell(kind)
    history.close()
    handle = Stream(history).open(0, Nobody())
    assert not isinstance(handle, trio.abc.AsyncResource)
    reads = [bytes(handle.read(at, 100)) for at in range(5)]  # type: ignore[union-attr, arg-type]
    assert [b"two" in reads[0], b"three" in reads[1], *reads[2:]] == [True, True, b"", b"", b""]


# Shelves


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, size=1000, files=3)


def test_what_does_not_fit_is_refused_before_it_is_written(shelf: Shelf) -> None:
    file = shelf.add("a")
    assert file.write_at is not None
    assert file.write_at(0, b"x" * 600) == 600
    other = shelf.add("b")
    assert other.write_at is not None
    with pytest.raises(Refused, match="1000 bytes together"):
        other.write_at(0, b"y" * 401)
    assert other.truncate is not None
    with pytest.raises(Refused, match="1000 bytes together"):
        other.truncate(401)
    with pytest.raises(Refused, match="1000 bytes together"):
        other.write_at(1 << 40, b"y")
    assert (shelf.folder / "b").stat().st_size == 0
    assert other.write_at(0, b"y" * 400) == 400
    shelf.add("c")
    with pytest.raises(Refused, match="3 files here, the limit"):
        shelf.add("d")
    shelf.unlink("a", None)
    assert (shelf.used, sorted(os.listdir(shelf.folder))) == (400, ["b", "c"])


def test_a_link_in_the_folder_leads_nowhere(shelf: Shelf, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    file = shelf.add("a")
    (shelf.folder / "a").unlink()
    (shelf.folder / "a").symlink_to(secret)
    file.size_now = 6
    with pytest.raises(OSError):
        file.bytes_at(0, 6)


def test_those_who_may_only_look_see_the_same_and_change_nothing(shelf: Shelf) -> None:
    file = shelf.add("a")
    assert file.write_at is not None
    file.write_at(0, b"hello")
    seen = shelf.seen.lookup("a")
    assert seen is file.seen
    assert file.seen.write_at is None
    assert bytes(file.seen.read_at(1, 3)) == b"ell"  # type: ignore[arg-type]
    with pytest.raises(Refused):
        shelf.seen.unlink("a", None)
    assert shelf.text("a") == "hello"
    assert shelf.text("b") == ""


# Limits


@pytest.mark.parametrize(
    ("mounts", "ours", "version"),
    [
        (
            "none {0}/cpu cgroup rw,cpu,cpuacct 0 0\nnone {0}/mem cgroup rw,memory 0 0\n",
            "4:memory:/a\n3:cpu:/b\n", 1,
        ),
        ("none {0}/u cgroup2 rw 0 0\n", "0::/me\n", 2),
        ("none {0}/none cgroup2 rw 0 0\n", "0::/\n", 0),
        ("tmpfs / tmpfs rw 0 0\n", "0::/\n", 0),
    ],
    ids=["v1", "v2", "v2 not ours", "none"],
)  # fmt: skip
def test_what_groups_there_are(mounts: str, ours: str, version: int, tmp_path: Path) -> None:
    for folder in ("cpu/b", "mem", "u/me"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "u/me/cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "mounts").write_text(mounts.format(tmp_path))
    (tmp_path / "ours").write_text(ours)
    found = groups(str(tmp_path / "mounts"), str(tmp_path / "ours"))
    assert found.version == version
    if version == 1:
        assert found.where == {"cpu": tmp_path / "cpu/b", "memory": tmp_path / "mem"}
    if version == 2:
        assert found.where == dict.fromkeys(("cpu", "memory"), tmp_path / "u/me")
        assert (tmp_path / "u/me/cgroup.subtree_control").read_text() == "+cpu +memory"


@pytest.mark.parametrize("version", [1, 2])
def test_bounds_are_written_as_each_version_has_them(version: int, tmp_path: Path) -> None:
    where = Groups(version, dict.fromkeys(("cpu", "memory"), tmp_path))
    cage = Cage.made_at(where, "warren-x-1", Bounds(cpu=0.5, mem=1 << 26, disk=1 << 20))
    files = {p.name: p.read_text() for p in (tmp_path / "warren-x-1").iterdir()}
    if version == 1:
        assert files["cpu.cfs_quota_us"] == "50000"
        assert files["memory.limit_in_bytes"] == str(1 << 26)
    else:
        assert files["cpu.max"] == "50000 100000"
        assert files["memory.max"] == str(1 << 26)
    procs = str(tmp_path / "warren-x-1/cgroup.procs")
    assert cage.prefix[:2] == ("sh", "-c")
    assert [word for word in cage.prefix if word.endswith("procs")] == [procs]
    (tmp_path / "warren-x-1/memory.events").write_text("low 0\noom_kill 1\n")
    (tmp_path / "warren-x-1/memory.oom_control").write_text("under_oom 0\noom_kill 1\n")
    assert (cage.bitten(-9), cage.bitten(0), cage.bitten(-25)) == ("mem", "", "disk")


def test_where_a_group_cannot_be_made_the_start_is_refused(tmp_path: Path) -> None:
    where = Groups(1, {"cpu": tmp_path, "memory": tmp_path / "nosuch"})
    with pytest.raises(Refused, match="the limit cannot be set"):
        Cage.made_at(where, "one", Bounds(cpu=1, mem=1 << 26))
    with pytest.raises(Refused, match="the limit cannot be set"):
        Cage.made_at(Groups(1, {"cpu": tmp_path / "nosuch"}), "one", Bounds(cpu=1))


def test_without_groups_there_is_the_watch() -> None:
    cage = Cage.made_at(NO_GROUPS, "one", Bounds(cpu=1.5, mem=100))
    assert cage.how == "watch"
    assert cage.watch_mem(101)
    assert not cage.watch_mem(100)
    assert cage.prefix[-3:-1] == ("taskset", "-c")


def test_the_disk_of_a_folder_is_counted_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_bytes(os.urandom(10000))
    (tmp_path / "l").symlink_to("/")
    assert 10000 <= disk_usage(tmp_path) <= 20000


# Words


@pytest.mark.parametrize(("word", "bytes_"), [("1", 1), ("64M", 64 << 20), ("1G", 1 << 30), ("2T", 2 << 40)])
def test_sizes(word: str, bytes_: int) -> None:
    assert size(word, "it") == bytes_


@pytest.mark.parametrize("word", ["", "0", "-1", "1.5G", "1X", "99999999999999", "1e9", "٣"])
def test_what_is_no_size(word: str) -> None:
    with pytest.raises(Refused, match="number of bytes"):
        size(word, "it")


@pytest.mark.parametrize(
    ("rights", "found"),
    [((), ("read",)), (("rw",), ("read", "write")), (("read,ctl", "read"), ("read", "ctl")),
     (("create", "remove"), ("create", "remove"))],
)  # fmt: skip
def test_rights_of_a_share(rights: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert share_of("/demo", rights, Nobody(), (), []).rights == found


def test_limits_are_set_one_by_one() -> None:
    asked = Asked()
    asked.limit(0.5, "", "", 0)
    asked.limit(0, "256M", "1G", 60)
    assert asked.bounds == Bounds(0.5, 256 << 20, 1 << 30, 60.0)


def test_a_namespace_is_a_namespace_file() -> None:
    asked = Asked()
    for path, rights in (("/demo", ("read",)), ("/a b", ("rw",))):
        asked.shares.append(share_of(path, rights, Nobody(), (), asked.shares))
    assert asked.namespace().splitlines() == [
        "mount $guest /",
        "bind -r $role/demo /demo  # read as any",
        "bind $role'/a b' '/a b'  # read,write as any",
    ]


# Back ends and images


async def test_a_probe_that_takes_long_is_not_waited_for_by_who_looks(autojump_clock: MockClock) -> None:
    class Slow(StandIn):
        async def probe(self) -> Works:
            await trio.sleep(60)
            return Works(True)

    backends = Backends([Slow()])
    with pytest.raises(Refused, match="no machines now"):
        await backends.lines()
    async with trio.open_nursery() as nursery:
        await nursery.start(backends.run)
        begun = trio.current_time()
        text = await backends.lines()
        assert "stand-in=? why='it is being tried; read again'" in text
        assert trio.current_time() - begun < 10
        with pytest.raises(Refused, match="being probed now"):
            backends.forget()
        assert (await backends.works("stand-in")).works
        nursery.cancel_scope.cancel()


async def test_none_that_works_is_told_with_every_reason() -> None:
    one, two = StandIn(works=Works(False, "no KVM")), StandIn(works=Works(False, "no QEMU"))
    one.name, two.name = "one", "two"
    backends = Backends([one, two], ["one", "two", "three"])
    async with trio.open_nursery() as nursery:
        await nursery.start(backends.run)
        with pytest.raises(Refused, match="one: no KVM; two: no QEMU"):
            await backends.ready("")
        nursery.cancel_scope.cancel()


def store(folder: Path, kind: str, built: bool) -> images.Shelf:
    """A store of one image, of some kind."""
    parts = dict.fromkeys(("kernel", "root", "initrd"), b"")

    def make(name: str) -> images.Image:
        return replace(images.image(folder / name, name, cmdline=b"quiet\n", **parts), kind=kind)

    return images.Shelf({"one": make("one") if built else None}, make)


@pytest.mark.parametrize(("kind", "then"), [("standin", "exit 0"), ("linux", "")])
async def test_an_image_says_how_it_is_run(kind: str, then: str, tmp_path: Path) -> None:
    found = await StoredImages(lambda: store(tmp_path, kind, built=True)).find("one", pytest.fail)
    assert found.recipe.startswith(kind)
    assert (found.then, found.named, found.cmdline) == (then, kind == "linux", "quiet")


async def test_one_that_is_not_built_is_built_and_that_is_told(tmp_path: Path) -> None:
    kept = store(tmp_path, "standin", built=False)
    told: list[str] = []
    stored = StoredImages(lambda: kept)
    assert list(stored.names()) == ["one"]
    await stored.find("one", told.append)
    assert told == ["the image one is not built yet", "compiling", "the image one is built"]


async def test_kinds_that_are_not_run_here_say_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not run by /vm"):
        await StoredImages(lambda: store(tmp_path, "secure", built=True)).find("one", pytest.fail)
    with pytest.raises(Refused, match="no store of images"):
        await NoImages().find("one", pytest.fail)


@pytest.mark.parametrize("work", ["write", "truncate", "read"])
def test_a_file_that_was_removed_is_not_the_next_one_by_its_name(shelf: Shelf, work: str) -> None:
    """Or what is written by the old one is counted by nobody."""
    old = shelf.add("a")
    assert old.write_at is not None
    old.write_at(0, b"x" * 900)
    shelf.unlink("a", None)
    new = shelf.add("a")
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: old._write(0, b"x" * 900), "truncate": lambda: old._cut(900),
        "read": lambda: old.bytes_at(0, 900),
    }  # fmt: skip
    with pytest.raises(OSError, match="removed"):
        attempts[work]()
    assert (shelf.used, (shelf.folder / "a").stat().st_size) == (0, 0)
    assert new.write_at is not None
    assert new.write_at(0, b"y" * 1000) == 1000


@pytest.mark.parametrize("wall", [math.nan, math.inf, -1.0])
def test_a_time_that_is_none_is_no_limit(wall: float) -> None:
    asked = Asked()
    with pytest.raises(Refused, match="wall a time"):
        asked.limit(0, "", "", wall)
    assert asked.bounds == Bounds()
