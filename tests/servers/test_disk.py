"""The disk server's nodes on real directories: what works."""

import errno
import os
import stat as S
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio
import trio.testing
from warren.servers.disk import Disk
from warren.servers.disk.node import Entry
from warren.servers.disk.volume import Volume
from warren.tree import NOW, Caller, Changes, Dirent, Node, Refused

T = TypeVar("T")
R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


class Nobody:
    """A caller: the disk never looks at it."""

    subject = "any"
    session = 1
    last_error = ""


CALLER: Caller = Nobody()


async def settled(result: T | Awaitable[T]) -> T:
    return await result if isinstance(result, Awaitable) else result


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The served directory. Beside it lies what must never be reached."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    return inside


@pytest.fixture
def root(top: Path) -> Entry:
    return cast(Entry, Disk(top))


def number_of(error: Callable[[], Any]) -> int | None:
    with pytest.raises(OSError) as caught:
        error()
    return caught.value.errno


def make(root: Entry, name: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    node, handle = root.create(name, RW, mode, 0, CALLER)
    assert handle.write(0, data) == len(data)
    handle.close()
    return node


# Starting


def test_the_root_may_be_given_as_a_link_and_is_resolved_once(top: Path, tmp_path: Path) -> None:
    (top / "f").touch()
    (tmp_path / "link").symlink_to("inside")
    root = Disk(tmp_path / "link")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("outside")
    assert isinstance(root.walk("f"), Node)
    assert number_of(lambda: root.walk("secret")) == errno.ENOENT


def test_only_a_directory_can_be_served(top: Path) -> None:
    (top / "f").touch()
    with pytest.raises(NotADirectoryError, match="only a directory can be served"):
        Disk(top / "f")
    with pytest.raises(FileNotFoundError):
        Disk(top / "missing")


# Files


def test_a_file_is_made_written_read_and_removed(root: Entry, top: Path) -> None:
    node, handle = root.create("f", RW | os.O_EXCL, 0o640, 12345, CALLER)
    assert handle.write(0, b"hello, world") == 12
    assert handle.write(7, memoryview(b"there")) == 5
    assert handle.read(0, 100) == b"hello, there"
    assert handle.read(7, 3) == b"the"
    assert handle.read(100, 10) == b""
    handle.close()
    assert (top / "f").read_bytes() == b"hello, there"
    st = (top / "f").stat()
    assert S.S_IMODE(st.st_mode) == 0o640
    assert st.st_gid != 12345, "a gid of the wire is a label"
    assert node.attr().size == 12
    root.unlink("f", False)
    assert not list(top.iterdir())


def test_open_flags_are_honoured(root: Entry, top: Path) -> None:
    f = make(root, "f", b"0123456789")
    assert number_of(lambda: root.create("f", RW | os.O_EXCL, 0o600, 0, CALLER)) == errno.EEXIST
    same, handle = root.create("f", RW, 0o600, 0, CALLER)
    assert same.qid().path == f.qid().path
    assert handle.read(0, 4) == b"0123"
    appending = f.open(W | os.O_APPEND, CALLER)
    assert appending.write(0, b"ab") == 2
    assert handle.read(0, 100) == b"0123456789ab"
    f.open(W | os.O_TRUNC, CALLER).close()
    assert f.attr().size == 0
    assert number_of(lambda: f.open(os.O_DIRECTORY, CALLER)) == errno.ENOTDIR
    assert number_of(lambda: f.open(3, CALLER)) == errno.EINVAL
    assert number_of(lambda: root.open(W, CALLER)) == errno.EISDIR
    assert number_of(lambda: root.open(os.O_TRUNC, CALLER)) == errno.EISDIR
    make(root, "g", b"to be truncated")
    root.create("g", RW | os.O_TRUNC, 0o600, 0, CALLER)
    assert (top / "g").read_bytes() == b""


def test_flags_about_the_clients_own_descriptor_are_dropped(root: Entry) -> None:
    f = make(root, "f", b"abc")
    handle = f.open(RW | os.O_NOATIME | os.O_DIRECT | os.O_ASYNC | os.O_NONBLOCK, CALLER)
    assert handle.read(0, 3) == b"abc", "an unaligned read fails where O_DIRECT was passed on"


def test_offsets_beyond_every_file(root: Entry) -> None:
    handle = make(root, "f", b"abc").open(RW, CALLER)
    assert handle.read(2**64 - 1, 10) == b""
    assert number_of(lambda: handle.write(2**64 - 1, b"x")) == errno.EFBIG


async def test_io_goes_on_after_the_name_is_gone(root: Entry, top: Path) -> None:
    node = make(root, "f", b"before")
    handle = node.open(RW, CALLER)
    root.unlink("f", False)
    assert handle.write(6, b" after") == 6
    assert node.attr().size == 12
    assert node.attr().nlink == 0
    again = node.open(RW, CALLER)
    assert again.read(0, 100) == b"before after"
    node.setattr(Changes(size=3))
    assert handle.read(0, 100) == b"bef"
    await settled(handle.fsync())


async def test_writes_are_made_durable_on_request(root: Entry, top: Path) -> None:
    make(root, "f")
    for flags in (os.O_SYNC, os.O_DSYNC, 0):
        handle = root.walk("f").open(W | flags, CALLER)
        assert await settled(handle.write(0, b"abc")) == 3
        await settled(handle.fsync())
    await settled(root.open(R, CALLER).fsync())
    assert (top / "f").read_bytes() == b"abc"


async def test_a_descriptor_is_not_closed_under_a_thread_that_syncs_it(root: Entry) -> None:
    handle = make(root, "f").open(W, CALLER)
    waits = handle.fsync()
    assert isinstance(waits, Awaitable)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(settled, waits)
        await trio.testing.wait_all_tasks_blocked()
        handle.close()


# Attributes


def test_attributes_are_those_of_the_file(root: Entry, top: Path) -> None:
    make(root, "f", b"x" * 5000)
    os.utime(top / "f", ns=(1_000_000_001_234_567_891, 2_000_000_002_987_654_321))
    st = (top / "f").stat()
    a = root.walk("f").attr()
    assert (a.mode, a.uid, a.gid, a.nlink) == (st.st_mode, st.st_uid, st.st_gid, 1)
    assert (a.size, a.blksize, a.blocks) == (5000, st.st_blksize, st.st_blocks)
    assert (a.atime, a.atime_ns) == (1_000_000_001, 234_567_891)
    assert (a.mtime, a.mtime_ns) == (2_000_000_002, 987_654_321)
    assert (a.ctime * 10**9 + a.ctime_ns) == st.st_ctime_ns


def test_times_before_1970_fit_the_wire(root: Entry, top: Path) -> None:
    make(root, "f")
    os.utime(top / "f", ns=(-1_500_000_000, 7))
    a = root.walk("f").attr()
    assert (a.atime, a.atime_ns) == (2**64 - 2, 500_000_000)
    assert (a.mtime, a.mtime_ns) == (0, 7)


def test_unchanged_attributes_are_the_same_object_and_changed_ones_are_not(root: Entry, top: Path) -> None:
    node = make(root, "f", b"abc")
    a = node.attr()
    assert node.attr() is a
    changes: list[Callable[[], object]] = [
        lambda: os.utime(top / "f", ns=(1, node.attr().mtime_ns)),
        lambda: os.utime(top / "f", ns=(1, 2)),
        lambda: os.chmod(top / "f", 0o600),
        lambda: os.link(top / "f", top / "g"),
        lambda: (top / "f").write_bytes(b"abcd"),
    ]
    for change in changes:
        change()
        st = (top / "f").stat()
        b = node.attr()
        assert b != a
        assert (b.mode, b.nlink, b.size) == (st.st_mode, st.st_nlink, st.st_size)
        assert b.mtime * 10**9 + b.mtime_ns == st.st_mtime_ns
        a = b
    os.utime(top / "f", ns=(1, st.st_mtime_ns))
    node.attr()
    (top / "f").read_bytes()  # touches atime alone, where the mount keeps it
    st, a = (top / "f").stat(), node.attr()
    assert a.atime * 10**9 + a.atime_ns == st.st_atime_ns


def test_the_version_changes_with_the_content_even_within_one_tick(root: Entry) -> None:
    node = make(root, "f", b"x")
    handle = node.open(W, CALLER)
    seen = set()
    for n in range(200):
        handle.write(0, b"%d" % (n % 10))
        assert node.attr().qid == node.qid()
        seen.add(node.qid().version)
    assert len(seen) == 200
    assert node.qid().version in seen, "and stays without one"


def test_a_write_counts_where_the_systems_clock_is_too_coarse_to_show_it(root: Entry) -> None:
    node = make(root, "f", b"x")
    number, handle = node.qid().path, node.open(W, CALLER)
    for change in (
        lambda: handle.write(0, b"y"),
        lambda: node.setattr(Changes(size=1)),
        lambda: node.open(W | os.O_TRUNC, CALLER),
    ):
        count = node.volume.written[number]
        change()
        assert node.volume.written[number] > count
    before, attributes = node.qid(), node.attr()
    node.volume.changed(number)  # nothing else about the file is different
    assert node.qid() != before
    assert node.attr() != attributes
    for other in range(10_000):
        node.volume.changed(other)
    assert len(node.volume.written) <= 4096


def test_a_qid_says_which_file_it_is(root: Entry, top: Path) -> None:
    make(root, "f")
    os.link(top / "f", top / "same")
    (top / "l").symlink_to("f")
    (top / "d").mkdir()
    f, same, link, d = (root.walk(name).qid() for name in ("f", "same", "l", "d"))
    assert f.path == same.path
    assert len({f.path, link.path, d.path, root.qid().path}) == 4
    assert (f.type, link.type, d.type, root.qid().type) == (0, 2, 0x80, 0x80)


def test_devices_do_not_share_numbers() -> None:
    volume = Volume(False, home=65024)
    inodes = [1, 2, 2**31 - 1, 2**31, 2**32, 2**61, 2**62 - 1, 2**62, 2**64 - 1]
    devices = [65024, 0, 1, 65025, 2**32 - 1, 2**32, 2**40]
    numbers = [volume.number(device, inode) for device in devices for inode in inodes]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**64 for number in numbers)
    assert numbers[:7] == inodes[:7]
    assert numbers == [volume.number(device, inode) for device in devices for inode in inodes]


def test_another_file_system_below_gets_its_own_numbers() -> None:
    slash = cast(Entry, Disk("/", read_only=True))
    proc = slash.walk("proc")
    assert proc.attr().qid.path != Volume(True, slash.volume.home).number(slash.volume.home, 1)
    assert proc.qid().path >> 62


def test_setattr_changes_what_it_is_asked(root: Entry, top: Path) -> None:
    node = make(root, "f", b"0123456789")
    node.setattr(Changes(size=4, mode=0o100600, mtime=3_000_000_004, atime=NOW))
    st = (top / "f").stat()
    assert (st.st_size, S.S_IMODE(st.st_mode), st.st_mtime_ns) == (4, 0o600, 3_000_000_004)
    assert st.st_atime_ns > 10**18
    node.setattr(Changes(atime=5))
    assert ((top / "f").stat().st_atime_ns, (top / "f").stat().st_mtime_ns) == (5, 3_000_000_004)
    node.setattr(Changes(atime=NOW, mtime=NOW))
    assert (top / "f").stat().st_mtime_ns > 10**18
    node.setattr(Changes(uid=st.st_uid, gid=st.st_gid, size=6))
    assert (top / "f").read_bytes() == b"0123\0\0"


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        (Changes(size=1, uid=12345), errno.EPERM),
        (Changes(size=1, gid=12345), errno.EPERM),
        (Changes(size=1, mode=0o4755), errno.EPERM),
        (Changes(size=1, mode=0o2755), errno.EPERM),
        (Changes(mode=0o600, size=2**64 - 1), errno.EFBIG),
        (Changes(mode=0o600, size=2**63 - 1), errno.EFBIG),
        (Changes(mode=0o600, size=1, mtime=2**64 * 10**9), errno.EINVAL),
        (Changes(mode=0o600, size=1, atime=-5), errno.EINVAL),
    ],
)
def test_a_refused_setattr_changed_nothing(root: Entry, top: Path, changes: Changes, number: int) -> None:
    node = make(root, "f", b"0123456789")
    before = (top / "f").stat()
    assert number_of(lambda: node.setattr(changes)) == number
    assert (top / "f").stat() == before


def test_a_size_belongs_to_regular_files(root: Entry, top: Path) -> None:
    (top / "l").symlink_to("f")
    os.mkfifo(top / "p")
    assert number_of(lambda: root.setattr(Changes(size=0))) == errno.EISDIR
    assert number_of(lambda: root.walk("l").setattr(Changes(size=0))) == errno.EINVAL
    assert number_of(lambda: root.walk("p").setattr(Changes(size=0))) == errno.EINVAL
    assert number_of(lambda: root.walk("l").setattr(Changes(mode=0o600))) == errno.EOPNOTSUPP
    root.walk("l").setattr(Changes(mtime=5))
    assert (top / "l").lstat().st_mtime_ns == 5
    root.walk("p").setattr(Changes(mode=0o600))
    assert S.S_IMODE((top / "p").stat().st_mode) == 0o600


async def test_statfs_is_the_file_systems(root: Entry, top: Path) -> None:
    st = os.statvfs(top)
    said = await root.statfs()
    assert (said.blocks, said.files, said.namelen) == (st.f_blocks, st.f_files, st.f_namemax)
    assert said.bsize * said.blocks == st.f_frsize * st.f_blocks


# Directories and names


async def names(node: Entry) -> dict[str, Dirent]:
    found = await settled(node.open(R | os.O_DIRECTORY, CALLER).entries())
    assert len({entry.name for entry in found}) == len(found)
    return {entry.name: entry for entry in found}


async def test_a_directory_lists_what_walks_find(root: Entry, top: Path) -> None:
    make(root, "f")
    root.mkdir("d", 0o755, 0, CALLER)
    root.symlink("l", "f", 0)
    os.mkfifo(top / "p")
    found = await names(root)
    assert sorted(found) == ["d", "f", "l", "p"]
    for name, entry in found.items():
        qid = root.walk(name).qid()
        assert (entry.qid.type, entry.qid.version, entry.qid.path) == (qid.type, 0, qid.path)
    handle = root.open(R, CALLER)
    assert handle.entries() == handle.entries()
    assert number_of(lambda: handle.read(0, 10)) == errno.EISDIR


async def test_a_listing_numbers_files_of_another_device_as_a_walk_does() -> None:
    dev = cast(Entry, Disk("/", read_only=True)).walk("dev")
    assert dev.qid().path >> 62, "/dev lies on the root's device here"
    assert (await names(dev))["null"].qid.path == dev.walk("null").qid().path


async def test_a_large_directory_is_read_whole_and_gives_others_a_turn(root: Entry, top: Path) -> None:
    (top / "many").mkdir()
    for n in range(20_000):
        (top / f"many/{n:05}").touch()
    waits = root.walk("many").open(R, CALLER).entries()
    assert isinstance(waits, Awaitable)
    found = await waits
    assert sorted(entry.name for entry in found) == [f"{n:05}" for n in range(20_000)]
    with trio.CancelScope() as scope:
        scope.cancel()
        await settled(root.walk("many").open(R, CALLER).entries())
    assert scope.cancelled_caught


async def test_names_that_are_not_utf8_work_everywhere(root: Entry, top: Path) -> None:
    odd, other = os.fsdecode(b"\xff\xfeodd"), os.fsdecode(b"caf\xe9")
    make(root, odd, b"x")
    assert os.listdir(os.fsencode(top)) == [b"\xff\xfeodd"]
    root.rename(odd, root, other)
    root.symlink(odd, other, 0)
    assert root.walk(odd).readlink() == other
    assert sorted(await names(root)) == sorted([odd, other])
    root.link("plain", root.walk(other))
    root.walk(other).setxattr("user." + odd, b"1", 0)
    assert root.walk("plain").xattrs() == ["user." + odd]
    for name in (odd, other, "plain"):
        root.unlink(name, None)
    assert not await names(root)


def test_missing_files_read_as_hidden_ones_do(root: Entry) -> None:
    operations: list[Callable[[], object]] = [
        lambda: root.walk("missing"),
        lambda: root.unlink("missing", False),
        lambda: root.unlink("missing", None),
        lambda: root.rename("missing", root, "other"),
    ]
    for operation in operations:
        with pytest.raises(Refused, match="file does not exist"):
            operation()


def test_rename_and_link_across_directories(root: Entry, top: Path) -> None:
    a = root.mkdir("a", 0o755, 0, CALLER)
    b = root.mkdir("b", 0o755, 0, CALLER)
    f = make(a, "f", b"1")
    b.link("g", f)
    assert f.attr().nlink == 2
    a.rename("f", b, "h")
    assert sorted(os.listdir(top / "b")) == ["g", "h"]
    root.symlink("s", "b/g", 0)
    a.link("t", root.walk("s"))
    assert os.readlink(top / "a/t") == "b/g", "the link got a second name, not what it points to"
    assert number_of(lambda: a.link("d", b)) == errno.EPERM
    assert number_of(lambda: root.rename("b", b, "inner")) == errno.EINVAL
    assert number_of(lambda: root.unlink("b", True)) == errno.ENOTEMPTY
    assert number_of(lambda: root.unlink("b", False)) == errno.EISDIR
    assert number_of(lambda: b.unlink("g", True)) == errno.ENOTDIR
    b.unlink("g", None)
    b.unlink("h", None)
    root.unlink("b", None)
    assert sorted(os.listdir(top)) == ["a", "s"]


def test_a_name_is_checked_to_be_still_that_file(root: Entry, top: Path) -> None:
    old = make(root, "f", b"old")
    (top / "f").unlink()
    (top / "f").write_text("new")
    assert number_of(lambda: root.unlink("f", False, old)) == errno.ESTALE
    assert number_of(lambda: root.rename("f", root, "g", old)) == errno.ESTALE
    assert number_of(lambda: root.unlink("gone", False, old)) == errno.ESTALE
    assert (top / "f").read_text() == "new"
    root.rename("f", root, "g", root.walk("f"))
    root.unlink("g", None, root.walk("g"))
    assert os.listdir(top) == []


def test_two_disks_do_not_exchange_names(root: Entry, top: Path) -> None:
    other = cast(Entry, Disk(top))
    f = make(root, "f")
    assert number_of(lambda: other.link("g", f)) == errno.EXDEV
    assert number_of(lambda: root.rename("f", other, "g")) == errno.EXDEV
    assert number_of(lambda: root.rename("f", Node(), "g")) == errno.EXDEV
    assert number_of(lambda: other.unlink("f", False, f)) == errno.EXDEV
