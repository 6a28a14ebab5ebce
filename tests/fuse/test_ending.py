"""How mounts end and how they go on: the server dies, comes back, or refuses; the mount is taken away."""

import errno
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from warren.shell.main import main

from tests.fuse.mounts import EVERYTHING, LIVE, Child, Mount, mounted, mounted_at, state, until_table
from tests.shell.running import PATIENCE, Served, serving, socket_in, warren

START = Callable[..., Child]

# Does something over and over until it fails, and says how. Each works below its current directory, so that
# it stays in the mount when that is taken away.
LOOPS = {
    "reader": "while True: open('big', 'rb', buffering=0).read()",
    "writer": "while True: os.pwrite(mine, b'x' * 300_000, 0), os.ftruncate(mine, 0)",
    "maker": "while True: os.mkdir(f'd{mine}'), os.rmdir(f'd{mine}')",
    "looker": "while True: os.listdir(), os.stat('big')",
    "mapper": "while True: os.posix_fadvise(big, 0, 0, 4), os.sendfile(null, big, 0, 1 << 30)",
}
LOOP = """
import errno, fcntl, os, sys
os.chdir(sys.argv[1])
null = os.open("/dev/null", os.O_WRONLY)
if os.path.exists("big"):
    big, mine = os.open("big", os.O_RDONLY), os.open(f"w{os.getpid()}", os.O_CREAT | os.O_WRONLY)
print("ready", flush=True)
try:
    %s
except OSError as e:
    print(errno.errorcode[e.errno], e, flush=True)
"""
PARKED = {
    "stream": "os.read(os.open('recv', os.O_RDONLY), 99)",
    "lock": "fcntl.lockf(os.open('f', os.O_RDWR), fcntl.LOCK_EX)",
}
# A tree that is out of reach never reads as one in which a file is missing.
LOST = {
    "EIO", "ECONNRESET", "ENOTCONN", "ECONNABORTED", "ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "EHOSTDOWN",
    "ESHUTDOWN",
}  # fmt: skip


@contextmanager
def disk_at(place: Path) -> Iterator[Served]:
    (place / "served").mkdir(exist_ok=True)
    (place / "served/big").write_bytes(random.Random(2).randbytes(4 << 20))
    with serving("disk", str(place / "served"), *socket_in(place), *EVERYTHING) as served:
        yield served


def kill(served: Served) -> None:
    served.process.kill()
    served.process.wait()


def none_hangs(children: list[Child]) -> None:
    """All have said how they failed and ended."""
    for other in children:
        said = other.hear(10)
        assert said.split()[0] in LOST, said
        assert other.process.wait(5) == 0


def quick(act: Callable[[], object], within: float = 5.0) -> int:
    """The errno that ACT fails with, which must not take long."""
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        act()
    assert time.monotonic() - began < within
    assert caught.value.errno
    return caught.value.errno


def eventually(act: Callable[[], object], within: float = 8.0) -> None:
    """Until ACT succeeds; a mount dials again by itself when it is used."""
    deadline = time.monotonic() + within
    while True:
        try:
            act()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise


def test_a_killed_server_leaves_errors_and_a_clean_umount(tmp_path: Path, child: START) -> None:
    with disk_at(tmp_path) as served, mounted(served.at, tmp_path / "mnt") as mount:
        (mount.at / "f").touch()
        holder = child("import fcntl, os, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n"
                       "fcntl.lockf(fd, fcntl.LOCK_EX); print('has it', flush=True); sys.stdin.read()",
                       mount.at / "f")  # fmt: skip
        assert holder.hear() == "has it"
        loops = [child(LOOP % loop, mount.at) for loop in LOOPS.values()]
        waits = child(LOOP % PARKED['lock'], mount.at)
        for other in [*loops, waits]:
            assert other.hear() == "ready"
        assert waits.silent()
        kill(served)
        none_hangs([*loops, waits])
        quick(lambda: os.stat(mount.at / "f"))
        quick(lambda: os.listdir(mount.at))
        quick(lambda: open(mount.at / "new", "w").close())
        assert state(mount.process.pid) != "D"
        began = time.monotonic()
        done = warren("umount", str(mount.at))
        assert done.code == 0, done
        assert time.monotonic() - began < 8
        assert not mounted_at(mount.at)
        assert mount.process.wait(5) == 0
        holder.process.kill()


def test_parked_readers_of_a_killed_server_are_told(tmp_path: Path, child: START) -> None:
    with serving("demo", *socket_in(tmp_path), *EVERYTHING) as served:
        with mounted(served.at, tmp_path / "mnt") as mount:
            others = [child(LOOP % PARKED["stream"], mount.at) for _ in range(5)]
            assert [other.hear() for other in others] == ["ready"] * 5
            assert others[-1].silent()
            kill(served)
            none_hangs(others)


def test_a_restarted_server_is_used_again_without_a_new_mount(tmp_path: Path) -> None:
    with ExitStack() as last:
        with disk_at(tmp_path) as served:
            mount = last.enter_context(mounted(served.at, tmp_path / "mnt"))
            (mount.at / "d").mkdir()
            (mount.at / "d/kept").write_text("before")
            kept = os.open(mount.at / "d/kept", os.O_RDWR)
            inside = os.open(mount.at / "d", os.O_RDONLY)
            last.callback(os.close, kept)
            last.callback(os.close, inside)
            number = os.stat(mount.at / "d/kept").st_ino
            kill(served)
            quick(lambda: (mount.at / "d/new").touch())
        for _ in range(2):
            with disk_at(tmp_path) as served:
                eventually(lambda: os.stat(mount.at / "d/kept"))
                assert os.stat(mount.at / "d/kept").st_ino == number
                assert (mount.at / "d/kept").read_text().startswith("before")
                (mount.at / "d/new").write_text("after")
                eventually(lambda: os.pread(kept, 99, 0))
                assert os.pread(kept, 6, 0) == b"before"
                eventually(lambda: os.pwrite(kept, b" and after", 6))
                assert os.listdir(inside)
                assert (tmp_path / "served/d/kept").read_text() == "before and after"
                assert sorted(os.listdir(mount.at / "d")) == ["kept", "new"]
                kill(served)


def test_words_of_a_restarted_server_are_found_again(tmp_path: Path, child: START) -> None:
    with ExitStack() as last:
        with serving("demo", *socket_in(tmp_path), *EVERYTHING) as served:
            mount = last.enter_context(mounted(served.at, tmp_path / "mnt"))
            assert (mount.at / "hello").read_text() == "hello, world\n"
            assert os.listdir(mount.at / "dev") == ["errstr"]
            kill(served)
            quick(lambda: (mount.at / "hello").read_text())
        with serving("demo", *socket_in(tmp_path), *EVERYTHING) as served:
            eventually(lambda: (mount.at / "hello").read_text())
            (mount.at / "hello").write_text("again\n")
            assert (mount.at / "hello").read_text() == "again\n"
            other = child("import os, sys\nfd = os.open(sys.argv[1], 0)\nprint('open', flush=True)\n"
                          "print(os.read(fd, 99), flush=True)", mount.at / "recv")  # fmt: skip
            assert other.hear() == "open"
            (mount.at / "send").write_text("news\n")
            assert other.hear() == repr(b"news\n")


def test_nobody_waits_long_for_a_server_that_is_away(tmp_path: Path) -> None:
    with disk_at(tmp_path) as served:
        with mounted(served.at, tmp_path / "mnt") as mount:
            os.stat(mount.at / "big")
            kill(served)
            for _ in range(5):
                quick(lambda: os.stat(mount.at / "nothing"), within=3)


def test_a_stopped_server_does_not_keep_anybody_from_leaving(tmp_path: Path, child: START) -> None:
    """It neither answers nor hangs up. Whoever waits can be killed, and the mount can be taken away."""
    with disk_at(tmp_path) as served:
        with mounted(served.at, tmp_path / "mnt") as mount:
            other = child(LOOP % "sys.stdin.readline(), os.stat('nothing')", mount.at)
            assert other.hear() == "ready"
            served.process.send_signal(signal.SIGSTOP)
            try:
                other.tell("go")
                assert other.silent(0.3)
                other.process.kill()
                assert other.process.wait(5) == -signal.SIGKILL
                began = time.monotonic()
                assert warren("umount", str(mount.at)).code == 0
                assert time.monotonic() - began < 8
                assert not mounted_at(mount.at)
            finally:
                served.process.send_signal(signal.SIGCONT)


def test_a_killed_mount_leaves_errors_and_umount_cleans_up(tmp_path: Path, child: START) -> None:
    with disk_at(tmp_path) as served, mounted(served.at, tmp_path / "mnt") as mount:
        loops = [child(LOOP % loop, mount.at) for loop in LOOPS.values()]
        for other in loops:
            assert other.hear() == "ready"
        mount.process.kill()
        none_hangs(loops)
        assert quick(lambda: os.stat(mount.at / "x")) in (errno.ENOTCONN, errno.ECONNABORTED)
        assert mounted_at(mount.at)
        assert warren("umount", str(mount.at)).code == 0
        assert not mounted_at(mount.at)
        # What a killed mount left behind does not stand in the way of the next.
        with mounted(served.at, tmp_path / "mnt") as again:
            assert (again.at / "big").exists()


def test_a_stuck_mount_is_taken_away(tmp_path: Path, child: START) -> None:
    """Its process answers nothing, so that no signal reaches those who wait for it."""
    with disk_at(tmp_path) as served, mounted(served.at, tmp_path / "mnt") as mount:
        others = [child(LOOP % loop, mount.at) for loop in (LOOPS["maker"], LOOPS["reader"])]
        for other in others:
            assert other.hear() == "ready"
        mount.process.send_signal(signal.SIGSTOP)
        try:
            assert others[0].silent()
            assert warren("umount", str(mount.at)).code == 0
            assert not mounted_at(mount.at)
            none_hangs(others)
        finally:
            mount.process.send_signal(signal.SIGCONT)
        assert mount.process.wait(8) == 0, mount.said()


@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_mount_under_load_is_taken_away(tmp_path: Path, child: START, how: str) -> None:
    with disk_at(tmp_path) as served, mounted(served.at, tmp_path / "mnt") as mount:
        loops = [child(LOOP % loop, mount.at) for loop in LOOPS.values()]
        for other in loops:
            assert other.hear() == "ready"
        began = time.monotonic()
        if how == "command":
            assert warren("umount", str(mount.at)).code == 0
        else:
            mount.process.terminate()
        assert until_table(lambda table: not mounted_at(mount.at, table), None)
        assert mount.process.wait(8) == 0, mount.said()
        assert time.monotonic() - began < 10
        none_hangs(loops)
        assert list((tmp_path / "mnt").iterdir()) == []


def test_a_mount_goes_to_the_background_and_is_taken_away_again(tmp_path: Path) -> None:
    at = tmp_path / "mnt"
    at.mkdir()
    with disk_at(tmp_path) as served:
        try:
            done = warren("mount", served.at, str(at))
            assert done.code == 0, done
            assert mounted_at(at)
            assert (at / "big").stat().st_size == 4 << 20
            again = warren("mount", served.at, str(at))
            assert again.code != 0, "two mounts on one directory hide each other"
            assert again.err.count("\n") == 1
        finally:
            gone = warren("umount", str(at))
        assert gone.code == 0
        assert not mounted_at(at)
        twice = warren("umount", str(at))
        assert (twice.code, "not mounted" in twice.out + twice.err) == (0, True)


def test_what_cannot_be_mounted_says_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "file").touch()
    nobody = f"unix!{tmp_path}/nobody"
    with disk_at(tmp_path) as served:
        for words in (
            (served.at, str(tmp_path / "none")),
            (served.at, str(tmp_path / "file")),
            (nobody, str(tmp_path / "mnt")),
            ("nonsense!x", str(tmp_path / "mnt")),
            (served.at,),
        ):
            done = warren("mount", *words)
            assert done.code != 0, words
            assert done.err.startswith("warren"), done
            assert done.err.rstrip("\n").count("\n") == 0, done
    assert not mounted_at(tmp_path / "mnt")
    assert not LIVE


def test_a_read_only_mount_changes_nothing(tmp_path: Path) -> None:
    with disk_at(tmp_path) as served, mounted(served.at, tmp_path / "mnt", "--read-only") as mount:
        assert (mount.at / "big").stat().st_size == 4 << 20
        for act in (
            lambda: (mount.at / "new").touch(),
            lambda: (mount.at / "big").unlink(),
            lambda: os.truncate(mount.at / "big", 0),
            lambda: os.setxattr(mount.at / "big", "user.x", b""),
            lambda: os.chmod(mount.at / "big", 0),
            lambda: os.open(mount.at / "big", os.O_RDWR),
        ):
            assert quick(act) == errno.EROFS


class Hive:
    """An authority and a disk that watches it, over TLS."""

    URI = "spiffe://hive.test"
    LISTEN = ("--listen", "tls!127.0.0.1!0")

    def __init__(self, root: Path, up: ExitStack) -> None:
        self.root = root
        self.ca = str(root / "ca")
        assert main(["ca", "init", self.ca, "--hive", "hive.test"]) == 0
        (root / "served").mkdir()
        (root / "served/file").write_bytes(b"secret" * 10_000)
        cap, disk = self.issue("role/Authority/cap"), self.issue("role/Disk/d")
        self.cap = up.enter_context(serving("cap", self.ca, *self.LISTEN, "--id", cap,
                                            "--allow", "role/*/* read /**"))  # fmt: skip
        self.disk = up.enter_context(serving("disk", str(root / "served"), *self.LISTEN, "--id", disk,
                                             "--allow", "user/* rw,create,remove /**",
                                             "--watch", self.cap.at))  # fmt: skip

    def issue(self, name: str) -> str:
        into = str(self.root / name.replace("/", "-"))
        assert main(["ca", "issue", self.ca, f"{self.URI}/{name}", "--out", into]) == 0
        return into

    def serial(self, folder: str) -> str:
        return f"{x509.load_pem_x509_certificate(Path(folder, 'cert.pem').read_bytes()).serial_number:x}"


def until_refused(act: Callable[[], object]) -> float:
    """When ACT failed at last."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            act()
        except OSError:
            return time.monotonic()
    raise AssertionError("it is never refused")


def test_revocation_reaches_a_mount_and_what_it_keeps_in_its_caches(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By name, by an open descriptor whose pages are in the kernel's cache, and by attributes."""
    took: dict[str, list[float]] = {"page": [], "attributes": [], "open": []}
    with ExitStack() as up:
        hive = Hive(tmp_path, up)
        innocent = up.enter_context(mounted(hive.disk.at, tmp_path / "ann", "--id", hive.issue("user/ann")))
        for n in range(3):
            identity = hive.issue(f"user/eve{n}")
            mount = up.enter_context(mounted(hive.disk.at, tmp_path / f"eve{n}", "--id", identity))
            path = mount.at / "file"
            fd = os.open(path, os.O_RDONLY)
            up.callback(os.close, fd)
            assert os.pread(fd, 99_999, 0) == b"secret" * 10_000
            os.stat(path)
            assert warren("ca", "revoke", hive.ca, hive.serial(identity)).code == 0
            began = time.monotonic()
            page, attributes = partial(os.pread, fd, 60_000, 0), partial(os.stat, path)
            for what, act in (("page", page), ("attributes", attributes), ("open", path.read_bytes)):
                took[what].append(until_refused(act) - began)
            quick(page)
            quick(attributes)
        assert (innocent.at / "file").stat().st_size == 60_000
        with capfd.disabled():
            for what, found in took.items():
                print(f"\n  revoked, {what}: {' '.join(f'{t:.2f}' for t in found)} s", end="")
        for found in took.values():
            assert statistics.median(found) <= 1.0
            assert max(found) <= 2.0, "this machine may be busy, but not that busy"


def test_others_of_a_mount_go_on_while_one_waits(demo: Mount, child: START) -> None:
    """Parked readers do not keep the next from its answer."""
    readers = [child(LOOP % "os.read(os.open('events', os.O_RDONLY), 99)", demo.at) for _ in range(30)]
    for reader in readers:
        assert reader.hear() == "ready"
    for _ in range(20):
        began = time.monotonic()
        assert (demo.at / "hello").read_text()
        assert time.monotonic() - began < 2
