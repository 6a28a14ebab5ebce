"""What the disk server never does: lead out of its directory, open what acts, change what is read-only."""

import errno
import gc
import os
import resource
import socket
import stat as S
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from warren.servers.disk import Disk
from warren.servers.disk.node import Entry
from warren.tree import Changes, Lock, Refused, describe

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


class Nobody:
    """A caller: the disk never looks at it."""

    subject = "any"
    session = 1
    last_error = ""


CALLER = Nobody()


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


def number_of(operation: Callable[..., object], *arguments: Any) -> int | None:
    with pytest.raises(OSError) as caught:
        operation(*arguments)
    return caught.value.errno


def make(root: Entry, name: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    node, handle = root.create(name, RW, mode, 0, CALLER)
    assert handle.write(0, data) == len(data)
    return node


# Nothing leads out


def test_no_name_is_more_than_a_name(root: Entry, top: Path) -> None:
    f = make(root, "f")
    for name in ("", ".", "..", "a/b", "/etc", "../outside", "f\0", "\0"):
        for operation in (
            lambda name: root.walk(name),
            lambda name: root.create(name, RW, 0o600, 0, CALLER),
            lambda name: root.mkdir(name, 0o700, 0, CALLER),
            lambda name: root.symlink(name, "f", 0),
            lambda name: root.mknod(name, S.S_IFIFO, 0, 0, 0),
            lambda name: root.link(name, f),
            lambda name: root.unlink(name, None),
            lambda name: root.rename(name, root, "g"),
            lambda name: root.rename("f", root, name),
        ):
            with pytest.raises(Refused, match="not a file name"):
                operation(name)
    assert os.listdir(top) == ["f"]


@pytest.mark.parametrize("target", ["/etc", "../outside", "../../../../../../etc", "/proc/self/root", "loop"])
def test_links_are_kept_verbatim_and_never_followed(root: Entry, top: Path, target: str) -> None:
    link = root.symlink("loop", target, 0)
    assert link.readlink() == os.readlink(top / "loop") == target
    assert S.S_ISLNK(link.attr().mode)
    assert number_of(link.walk, "secret") == errno.ENOTDIR
    assert number_of(link.walk, "passwd") == errno.ENOTDIR
    for flags in (R, W, R | os.O_DIRECTORY, R | os.O_NOFOLLOW, W | os.O_TRUNC):
        assert number_of(link.open, flags, CALLER) == errno.ELOOP
    assert number_of(root.create, "loop", W | os.O_TRUNC, 0o600, 0, CALLER) == errno.ELOOP
    assert number_of(root.create, "loop", W | os.O_EXCL, 0o600, 0, CALLER) == errno.EEXIST
    assert number_of(link.mkdir, "d", 0o700, 0, CALLER) == errno.ENOTDIR
    link.setattr(Changes(mtime=5))
    root.unlink("loop", None)
    assert os.listdir(top) == []


def test_readlink_is_for_links(root: Entry) -> None:
    assert number_of(root.readlink) == errno.EINVAL


def test_no_race_leads_out(root: Entry, top: Path) -> None:
    """A directory is swapped for a link to one outside, as fast as can be, while clients walk through it."""
    (top / "d").mkdir()
    (top / "d/secret").write_text("inside")
    (top / "link").symlink_to("../outside")
    outside = os.stat(top.parent / "outside/secret").st_ino
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(top / "d", top / "spare")
            os.rename(top / "link", top / "d")
            os.rename(top / "d", top / "link")
            os.rename(top / "spare", top / "d")

    thread = threading.Thread(target=swap)
    thread.start()
    reached, refused = 0, set()
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                d = root.walk("d")
                file = d.walk("secret")
                assert file.attr().qid.path != outside
                assert file.open(R, CALLER).read(0, 100) == b"inside"
                d.create("made", W, 0o600, 0, CALLER)
                reached += 1
            except (Refused, NotADirectoryError) as e:
                refused.add(e.errno)
    finally:
        stop.set()
        thread.join()
    assert reached
    assert refused, "the swapping was never met, so nothing was proved"
    assert refused <= {errno.ENOENT, errno.ENOTDIR}
    assert os.listdir(top.parent / "outside") == ["secret"]


# What is never opened


@pytest.fixture
def specials(top: Path, root: Entry) -> Iterator[dict[str, Entry]]:
    """One of each kind. Device nodes need a privilege to be made; /dev has some for those without."""
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(top, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        dev = cast(Entry, Disk("/dev", read_only=True))
        found = {
            "a FIFO": root.walk("fifo"),
            "a socket": root.walk("socket"),
            "a character device": dev.walk("null"),
        }
        try:
            os.mknod(top / "block", S.S_IFBLK | 0o600, os.makedev(1, 0))
            found["a block device"] = root.walk("block")
        except PermissionError:
            pass
        yield found


def test_what_acts_when_opened_is_never_opened(specials: dict[str, Entry]) -> None:
    for what, node in specials.items():
        for flags in (R, W, RW, R | os.O_NONBLOCK):
            if node.volume.read_only and flags != R:
                continue
            with pytest.raises(Refused, match=f"{what} is never opened by this server") as caught:
                node.open(flags, CALLER)
            assert (caught.value.code, caught.value.errno) == (403, errno.EACCES)
        assert S.S_IFMT(node.attr().mode) == node.kind
        assert node.xattrs() == ()


def test_create_does_not_open_a_special_file_that_is_there_already(
    root: Entry, specials: dict[str, Entry]
) -> None:
    reader = os.open(f"/proc/self/fd/{specials['a FIFO'].fd}", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert number_of(root.create, "fifo", W, 0o600, 0, CALLER) == errno.EACCES
        assert os.read(reader, 1) == b"", "no writer ever came"
    finally:
        os.close(reader)
    assert number_of(root.create, "socket", W, 0o600, 0, CALLER) == errno.EACCES


def test_special_files_are_named_but_devices_are_not_made(root: Entry, top: Path) -> None:
    for kind in (S.S_IFIFO, S.S_IFSOCK, S.S_IFREG, 0):
        node = root.mknod("n", kind | 0o600, 0, 0, 0)
        assert S.S_IFMT(node.attr().mode) == (kind or S.S_IFREG)
        root.unlink("n", None)
    for kind in (S.S_IFCHR, S.S_IFBLK, S.S_IFDIR, S.S_IFLNK, 0o170000):
        assert number_of(root.mknod, "n", kind | 0o600, 1, 3, 0) == errno.EPERM
    assert os.listdir(top) == []


def test_no_set_id_bits_are_given(root: Entry, top: Path) -> None:
    for mode in (0o4755, 0o2755, 0o6755):
        for operation in (
            lambda mode: root.create("f", W, mode, 0, CALLER),
            lambda mode: root.mknod("f", mode | S.S_IFREG, 0, 0, 0),
            lambda mode: make(root, "g").setattr(Changes(mode=mode)),
        ):
            assert number_of(operation, mode) == errno.EPERM
    assert number_of(root.mkdir, "d", 0o4755, 0, CALLER) == errno.EPERM
    assert os.listdir(top) == ["g"]
    assert S.S_IMODE(root.mkdir("d", 0o2755, 0, CALLER).attr().mode) == 0o755


def test_a_set_id_file_is_read_but_not_written(root: Entry, top: Path) -> None:
    (top / "su").write_text("trusted")
    (top / "su").chmod(0o4755)
    su = root.walk("su")
    assert su.open(R, CALLER).read(0, 100) == b"trusted"
    for refused in (
        lambda: su.open(W, CALLER),
        lambda: su.open(R | os.O_TRUNC, CALLER),
        lambda: root.create("su", RW, 0o600, 0, CALLER),
        lambda: su.setattr(Changes(size=0)),
    ):
        assert number_of(refused) == errno.EPERM
    su.setattr(Changes(mode=0o4700))
    assert S.S_IMODE((top / "su").stat().st_mode) == 0o4700, "a bit that is there may stay"
    su.setattr(Changes(mode=0o700))
    su.open(W | os.O_TRUNC, CALLER)
    assert (top / "su").read_bytes() == b""


# Extended attributes


def test_user_attributes_work(root: Entry, top: Path) -> None:
    for node, path in ((make(root, "f"), top / "f"), (root.mkdir("d", 0o755, 0, CALLER), top / "d")):
        node.setxattr("user.a", b"1", 0)
        node.setxattr("user.b", b"", os.XATTR_CREATE)
        assert os.getxattr(path, "user.a") == b"1"
        assert node.getxattr("user.b") == b""
        assert sorted(node.xattrs()) == ["user.a", "user.b"]
        assert number_of(node.setxattr, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
        assert number_of(node.setxattr, "user.c", b"2", os.XATTR_REPLACE) == errno.ENODATA
        node.setxattr("user.a", b"2", os.XATTR_REPLACE)
        assert node.getxattr("user.a") == b"2"
        node.setxattr("user.a", b"", os.XATTR_REPLACE)
        assert number_of(node.setxattr, "user.a", b"", os.XATTR_REPLACE) == errno.ENODATA
        assert number_of(node.getxattr, "user.a") == errno.ENODATA
        assert node.xattrs() == ["user.b"]


@pytest.mark.parametrize("name", ["trusted.a", "security.a", "security.capability", "system.posix_acl_access",
                                  "a", "", "userx.a", "user.a\0b"])  # fmt: skip
def test_other_attributes_are_neither_set_nor_seen(root: Entry, top: Path, name: str) -> None:
    f = make(root, "f")
    if os.geteuid() == 0 and name in ("trusted.a", "security.a"):
        os.setxattr(top / "f", name, b"there")
    for value, flags in ((b"1", 0), (b"", os.XATTR_REPLACE)):
        refused = errno.EOPNOTSUPP if name.startswith("system.") else errno.EPERM
        assert number_of(f.setxattr, name, value, flags) == refused
    assert number_of(f.getxattr, name) == errno.ENODATA
    assert f.xattrs() == []


def test_links_have_no_attributes(root: Entry, top: Path) -> None:
    make(root, "f").setxattr("user.a", b"1", 0)
    link = root.symlink("l", "f", 0)
    assert link.xattrs() == ()
    assert number_of(link.getxattr, "user.a") == errno.ENODATA
    assert number_of(link.setxattr, "user.a", b"2", 0) == errno.EPERM


# Read-only


def test_a_read_only_disk_refuses_every_effect_before_anything_else(root: Entry, top: Path) -> None:
    make(root, "f", b"abc").setxattr("user.a", b"1", 0)
    root.mkdir("d", 0o755, 0, CALLER)
    disk = cast(Entry, Disk(top, read_only=True))
    f, d = disk.walk("f"), disk.walk("d")
    before = {path: path.lstat() for path in (top, *sorted(top.iterdir()))}
    effects: list[Callable[[], object]] = [
        lambda: disk.create("g", R, 0o600, 0, CALLER),
        lambda: disk.create("f", R, 0o4600, 0, CALLER),
        lambda: disk.mkdir("..", 0o700, 0, CALLER),
        lambda: disk.symlink("l", "f", 0),
        lambda: disk.mknod("n", S.S_IFCHR, 0, 0, 0),
        lambda: disk.link("h", f),
        lambda: disk.unlink("missing", False),
        lambda: disk.unlink("d", None, d),
        lambda: disk.rename("f", d, "f"),
        lambda: f.setattr(Changes(size=0)),
        lambda: f.setattr(Changes(mtime=-1)),
        lambda: f.setattr(Changes()),
        lambda: f.setxattr("user.b", b"1", 0),
        lambda: f.setxattr("trusted.b", b"1", 0),
        lambda: f.open(W, CALLER),
        lambda: f.open(RW | os.O_APPEND, CALLER),
        lambda: f.open(R | os.O_TRUNC, CALLER),
    ]
    for change in effects:
        with pytest.raises(Refused, match="this tree is read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS
    after = {path: path.lstat() for path in (top, *sorted(top.iterdir()))}
    assert after == before
    assert f.open(R, CALLER).read(0, 10) == b"abc"
    assert f.getxattr("user.a") == b"1"
    assert f.lock(Lock(True, 0, 0, (1, "", 1))), "a lock is no effect on the disk"


# Descriptors


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_are_closed_when_the_last_reference_goes(root: Entry) -> None:
    gc.collect()
    gc.disable()
    try:
        before = descriptors()
        d = root.mkdir("d", 0o755, 0, CALLER)
        f, handle = d.create("f", RW, 0o600, 0, CALLER)
        listing = d.open(R, CALLER)
        found = listing.entries()
        assert not isinstance(found, Awaitable)
        assert [entry.name for entry in found] == ["f"]
        assert descriptors() == before + 4
        del d
        assert handle.write(0, b"a child needs no parent") == 23
        handle.close()
        listing.abandon()
        del handle, listing
        assert descriptors() == before + 1
        assert f.attr().size == 23
        del f
        assert descriptors() == before
        for refused in (lambda: root.walk("x"), lambda: root.open(W, CALLER), lambda: root.unlink("x", True)):
            number_of(refused)
        assert descriptors() == before
    finally:
        gc.enable()


@pytest.fixture
def few_descriptors(root: Entry) -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def leave(count: int) -> None:
        while True:
            try:
                taken.append(os.dup(root.fd))
            except OSError:
                break
        for _ in range(count):
            os.close(taken.pop())

    # What earlier tests left in cycles must not give descriptors back in the middle of this one.
    gc.collect()
    gc.disable()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        yield leave
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.enable()


def test_no_descriptors_left_is_said_clearly_and_leaves_nothing_half_made(
    root: Entry, top: Path, few_descriptors: Callable[[int], None]
) -> None:
    f = make(root, "f")
    few_descriptors(0)
    operations: list[Callable[[], object]] = [
        lambda: root.walk("f"),
        lambda: f.open(R, CALLER),
        lambda: root.open(R, CALLER),
        lambda: root.create("g", W, 0o600, 0, CALLER),
        lambda: root.mkdir("g", 0o700, 0, CALLER),
        lambda: root.symlink("g", "f", 0),
        lambda: root.mknod("g", S.S_IFIFO, 0, 0, 0),
    ]
    for operation in operations:
        with pytest.raises(Refused) as caught:
            operation()
        number, code, line = describe(caught.value)
        assert (number, code) == (errno.EMFILE, 429)
        assert line == "429 busy: no descriptor is left; clunk some fids retry_after=1"
    few_descriptors(1)
    assert number_of(root.create, "g", W, 0o600, 0, CALLER) == errno.EMFILE
    listing = root.open(R, CALLER)
    assert number_of(listing.entries) == errno.EMFILE
    root.rename("f", root, "h")
    assert f.attr().size == 0
    root.unlink("h", None, f)
    del listing
    gc.collect()  # the refusal holds it in a cycle
    assert os.listdir(top) == []
