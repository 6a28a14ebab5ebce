"""What a list of cases misses: random work beside a plain directory, signals all the time, other servers."""

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.processes import Room, diod, free_port
from tests.fuse.mounts import EVERYTHING, Child, Mount, mounted, refused, run
from tests.shell.running import serving, warren

START = Callable[..., Child]

BOTH = """
import mmap, os, random, sys
ours, theirs, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dice = random.Random(seed)
paths = [ours, theirs]
fds = [[os.open(path, os.O_CREAT | os.O_RDWR) for path in paths] for _ in range(3)]
done = []
def check(what, a, b):
    if a != b:
        where = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))
        print(f"{what}: {len(a)}, {len(b)} bytes differ at {where}: {len(done)}, {done[-8:]}", flush=True)
        sys.exit(1)
for step in range(steps):
    size = os.fstat(fds[0][1]).st_size
    at, n = dice.randrange(size + 5000), dice.choice([1, 10, 4096, 5000, 70_000])
    pair = dice.choice(fds)
    what = dice.choice(["read", "read", "write", "write", "truncate", "ftruncate", "map", "mapread", "append",
                        "again", "name", "size", "drop", "sync", "replace"])
    done.append((what, at, n))
    if what == "read":
        check(what, *[os.pread(fd, n, at) for fd in pair])
    elif what == "write":
        piece = dice.randbytes(n)
        for fd in pair:
            os.pwrite(fd, piece, at)
    elif what == "truncate":
        for path in paths:
            os.truncate(path, at)
    elif what == "ftruncate":
        for fd in pair:
            os.ftruncate(fd, at % 300_000)
    elif what in ("map", "mapread") and size:
        at %= size
        piece = dice.randbytes(min(n, size - at))
        seen = []
        for fd in pair:
            with mmap.mmap(fd, size) as mapped:
                seen.append(mapped[at : at + n])
                if what == "map":
                    mapped[at : at + len(piece)] = piece
        check(what, *seen)
    elif what == "append":
        for path in paths:
            with open(path, "ab") as file:
                file.write(b"a" * n)
    elif what == "again":
        for fd in pair:
            os.close(fd)
        pair[:] = [os.open(path, os.O_RDWR) for path in paths]
    elif what == "name":
        for path in paths:
            os.rename(path, path + "~")
            os.link(path + "~", path)
            os.unlink(path + "~")
    elif what == "drop":
        os.posix_fadvise(pair[0], 0, 0, os.POSIX_FADV_DONTNEED)
    elif what == "sync":
        os.fsync(pair[0])
    elif what == "replace" and step % 5 == 0:
        body = dice.randbytes(n)
        for path in paths:
            with open(path + ".new", "wb") as file:
                file.write(body)
            os.rename(path + ".new", path)
        for each in fds:
            for fd in each:
                os.close(fd)
            each[:] = [os.open(path, os.O_RDWR) for path in paths]
    check("size", *[b"." * os.stat(path).st_size for path in paths])
check("end", *[open(path, "rb").read() for path in paths])
print("alike", flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_file_is_what_a_plain_file_would_be(
    quick_disk: Mount, tmp_path: Path, child: START, seed: int
) -> None:
    at = quick_disk.at / f"random-{seed}"
    at.mkdir()
    other = child(BOTH, at / "file", tmp_path / "file", str(seed), "1500")
    assert other.hear(30) == "alike"
    assert quick_disk.folder
    assert (quick_disk.folder / at.name / "file").read_bytes() == (tmp_path / "file").read_bytes()


ALARMED = """
import os, signal, sys
rang = 0
def ring(*_):
    global rang
    rang += 1
signal.signal(signal.SIGALRM, ring)
os.chdir(sys.argv[1])
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
try:
    for n in range(150):
        os.mkdir("d")
        os.rename("d", "e")
        os.stat("e")
        os.rmdir("e")
        with open("f", "wb", buffering=0) as file:
            assert file.write(b"x" * 200_000) == 200_000
        os.link("f", "g")
        with open("g", "rb", buffering=0) as file:
            assert file.read() == b"x" * 200_000
        os.unlink("g")
        os.truncate("f", n)
except OSError as e:
    print("failed", n, e, flush=True)
signal.setitimer(signal.ITIMER_REAL, 0)
print("rang", rang, sorted(os.listdir()), flush=True)
"""


def test_a_program_that_takes_signals_all_the_time_notices_nothing(here: Path, child: START) -> None:
    """A disk does not fail because a timer rang, and nothing is done twice."""
    said = child(ALARMED, here).hear(30)
    assert said.startswith("rang ")
    assert int(said.split()[1]) > 20
    assert said.endswith("['f']")


def test_two_mounts_of_a_tree_agree_within_a_second(quick_disk: Mount, tmp_path: Path, child: START) -> None:
    (quick_disk.at / "shared").mkdir()
    with mounted(quick_disk.address, tmp_path / "other") as other:
        a, b = quick_disk.at / "shared/file", other.at / "shared/file"
        a.write_text("one")
        assert b.read_text() == "one"
        b.write_text("second")
        # The writer's mount knows at once; a new open looks whether the pages are still right.
        assert b.read_text() == "second"
        assert a.read_text() == "second"
        assert a.stat().st_ino == b.stat().st_ino


def test_a_directory_of_a_tree_is_mounted_by_its_name(quick_disk: Mount, tmp_path: Path) -> None:
    (quick_disk.at / "part/below").mkdir(parents=True)
    (quick_disk.at / "part/below/file").write_text("x")
    with mounted(quick_disk.address, tmp_path / "mnt", "--aname", "/part/below") as mount:
        assert os.listdir(mount.at) == ["file"]


def test_a_role_is_mounted_by_its_name(tmp_path: Path) -> None:
    run_ = tmp_path / "state/run/keeper"
    run_.mkdir(parents=True)
    at = tmp_path / "mnt"
    at.mkdir()
    with serving("demo", "--listen", f"unix!{run_ / 'sock'}", *EVERYTHING):
        assert warren("mount", "keeper", str(at), "--state", str(tmp_path / "state")).code == 0
        try:
            assert (at / "hello").read_text() == "hello, world\n"
        finally:
            assert warren("umount", str(at)).code == 0
        done = warren("mount", "nobody", str(at), "--state", str(tmp_path / "state"))
        assert done.code != 0
        assert "nobody" in done.err


def test_a_stream_that_is_not_to_block_does_not(demo: Mount) -> None:
    fd = os.open(demo.at / "recv", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        os.read(fd, 99)
    (demo.at / "send").write_text("one\n")
    assert os.read(fd, 99) == b"one\n"
    with pytest.raises(BlockingIOError):
        os.read(fd, 99)
    os.close(fd)


def test_what_the_policy_refuses_is_permission_denied(tmp_path: Path) -> None:
    (tmp_path / "served/open").mkdir(parents=True)
    (tmp_path / "served/closed").mkdir()
    (tmp_path / "served/open/file").write_text("x")
    (tmp_path / "served/closed/file").write_text("y")
    listen = ("--listen", f"unix!{tmp_path / 'sock'}")
    with serving("disk", str(tmp_path / "served"), *listen, "--allow", "local read /open/**") as served:
        with mounted(served.at, tmp_path / "mnt") as mount:
            assert (mount.at / "open/file").read_text() == "x"
            with refused(errno.EACCES):
                (mount.at / "open/file").write_text("z")
            with refused(errno.EACCES):
                (mount.at / "open/new").touch()
            with pytest.raises(OSError):
                (mount.at / "closed/file").read_text()
            assert (mount.at / "open/file").read_text() == "x"


@contextmanager
def foreign(room: Room) -> Iterator[str]:
    """Debian's diod over the room's folder: a server that is not ours."""
    port = free_port()
    with subprocess.Popen(diod(room, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except ConnectionRefusedError:
                    os.sched_yield()
            yield f"tcp!127.0.0.1!{port}"
        finally:
            process.terminate()


def test_a_server_that_is_not_ours_is_mounted_as_well(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    room = Room(tmp_path / "data", tmp_path)
    with foreign(room) as address:
        with mounted(address, tmp_path / "mnt", "--aname", str(room.data)) as mount:
            (mount.at / "file").write_bytes(os.urandom(300_000))
            assert (mount.at / "file").read_bytes() == (room.data / "file").read_bytes()
            (mount.at / "d/e").mkdir(parents=True)
            os.rename(mount.at / "file", mount.at / "d/e/moved")
            os.symlink("d/e/moved", mount.at / "link")
            os.link(mount.at / "d/e/moved", mount.at / "hard")
            assert (mount.at / "link").read_bytes() == (mount.at / "hard").read_bytes()
            assert sorted(os.listdir(mount.at)) == ["d", "hard", "link"]
            os.truncate(mount.at / "hard", 5)
            assert (mount.at / "d/e/moved").stat().st_size == 5
            with refused(errno.ENOTEMPTY):
                (mount.at / "d").rmdir()
            run("cp", "-r", mount.at / "d", mount.at / "copy")
            run("diff", "-r", mount.at / "d", mount.at / "copy")
            run("rm", "-r", mount.at / "d", mount.at / "copy")
            assert sorted(os.listdir(room.data)) == ["hard", "link"]
