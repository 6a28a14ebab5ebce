"""Bytes, sizes, times and attributes of files: on a plain directory and on the mount alike."""

import errno
import mmap
import os
import random
import select
import stat as S
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.mounts import Child, Mount, refused, run

MIB = 1 << 20


def test_truncation_by_open(here: Path) -> None:
    (here / "f").write_text("0123456789")
    keeps = os.open(here / "f", os.O_RDONLY)
    os.close(os.open(here / "f", os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(keeps).st_size == 0
    assert os.pread(keeps, 10, 0) == b""
    os.close(keeps)
    os.close(os.open(here / "f", os.O_CREAT | os.O_RDWR | os.O_TRUNC))
    assert os.stat(here / "f").st_size == 0


def test_two_who_append_lose_nothing(here: Path) -> None:
    a, b = (os.open(here / "f", os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(2))
    wanted = b""
    for n in range(100):
        os.write(a, b"a%d\n" % n)
        os.write(b, b"b%d\n" % n)
        wanted += b"a%d\nb%d\n" % (n, n)
    os.close(a)
    os.close(b)
    assert (here / "f").read_bytes() == wanted
    run("sh", "-c", "echo one >> g; echo two >> g", cwd=here)
    assert (here / "g").read_text() == "one\ntwo\n"


def test_two_processes_that_append_lose_nothing(here: Path) -> None:
    loop = 'i=0; while [ $i -lt 200 ]; do echo "$0 $i" >> f; i=$((i+1)); done'
    run("sh", "-c", f"sh -c '{loop}' a & sh -c '{loop}' b & wait", cwd=here)
    lines = (here / "f").read_text().splitlines()
    for who in "ab":
        assert [line for line in lines if line[0] == who] == [f"{who} {n}" for n in range(200)]


def test_reads_and_writes_at_offsets(here: Path) -> None:
    fd = os.open(here / "f", os.O_CREAT | os.O_RDWR)
    assert os.pwrite(fd, b"world", 6) == 5
    assert os.pwrite(fd, b"hello,", 0) == 6
    assert os.pread(fd, 99, 0) == b"hello,world"
    assert os.pread(fd, 2, 10) == b"d"
    assert os.pread(fd, 2, 11) == b""
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    assert os.lseek(fd, -5, os.SEEK_END) == 6
    assert os.read(fd, 99) == b"world"
    os.close(fd)


def test_a_descriptor_does_what_it_was_opened_for(here: Path) -> None:
    (here / "f").write_text("x")
    reads, writes = os.open(here / "f", os.O_RDONLY), os.open(here / "f", os.O_WRONLY)
    with refused(errno.EBADF):
        os.write(reads, b"y")
    with refused(errno.EBADF):
        os.read(writes, 1)
    for fd in (reads, writes):
        os.close(fd)


def test_a_hole_reads_as_zeros_and_takes_no_room(here: Path) -> None:
    far = 5 << 30
    fd = os.open(here / "f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", far)
    st = os.fstat(fd)
    assert st.st_size == far + 3
    assert st.st_blocks * 512 < 10 * MIB
    assert os.pread(fd, 4096, far - 4000) == bytes(4000) + b"end"
    assert os.pread(fd, MIB, 1 << 30) == bytes(MIB)
    os.close(fd)


def test_sizes_go_up_and_down(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 10_000)
    fd = os.open(here / "f", os.O_RDWR)
    assert os.pread(fd, 20_000, 0) == b"x" * 10_000
    os.truncate(here / "f", 5000)
    assert os.fstat(fd).st_size == 5000
    assert os.pread(fd, 20_000, 0) == b"x" * 5000
    os.ftruncate(fd, 8000)
    assert os.pread(fd, 20_000, 0) == b"x" * 5000 + bytes(3000)
    os.ftruncate(fd, 0)
    assert os.read(fd, 9) == b""
    os.close(fd)
    with refused(errno.EINVAL):
        os.truncate(here / "f", -1)
    with refused(errno.EISDIR):
        os.truncate(here, 0)


SIZES = [1, 4095, 4097, 64 << 10, (128 << 10) + 1, MIB - 1, MIB, MIB + 1, 8 * MIB]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(here: Path, size: int) -> None:
    body = random.Random(size).randbytes(size)
    fd = os.open(here / "f", os.O_CREAT | os.O_RDWR)
    assert os.write(fd, body) == size
    assert os.pread(fd, size + 1, 0) == body
    os.close(fd)
    with open(here / "f", "rb", buffering=0) as file:
        assert file.read() == body
    assert os.stat(here / "f").st_size == size


def test_what_was_written_is_what_lies_at_the_server(disk: Mount, room: Path) -> None:
    assert disk.folder
    body = random.Random(1).randbytes(3 * MIB + 17)
    (room / "up").write_bytes(body)
    assert (disk.folder / room.name / "up").read_bytes() == body
    (disk.folder / room.name / "down").write_bytes(body[::-1])
    assert (room / "down").read_bytes() == body[::-1]


def test_pieces_in_any_order_come_together(here: Path) -> None:
    dice = random.Random(7)
    body = bytearray(2 * MIB)
    fd = os.open(here / "f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, len(body))
    for _ in range(200):
        at, n = dice.randrange(len(body)), dice.choice([1, 100, 4096, 5000, 200_000])
        piece = dice.randbytes(min(n, len(body) - at))
        os.pwrite(fd, piece, at)
        body[at : at + len(piece)] = piece
        at = dice.randrange(len(body))
        assert os.pread(fd, 10_000, at) == body[at : at + 10_000]
    os.close(fd)
    assert (here / "f").read_bytes() == body


MAPPING = """
import mmap, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
shared = mmap.mmap(fd, 0)
for line in sys.stdin:
    word, *rest = line.split()
    if word == "get":
        print(bytes(shared[int(rest[0]):int(rest[1])]).hex(), flush=True)
    elif word == "put":
        shared[int(rest[0]):int(rest[0]) + len(rest[1])] = rest[1].encode()
        print("put", flush=True)
    elif word == "sync":
        shared.flush()
        print("synced", flush=True)
"""


def test_a_shared_map_reads_and_writes_the_file(here: Path, child: Callable[..., Child]) -> None:
    path = here / "f"
    path.write_bytes(b"." * 300_000)
    other = child(MAPPING, path)
    assert bytes.fromhex(other.ask("get 299990 300000")) == b"." * 10
    assert other.ask("put 4090 across-a-page") == "put"
    assert other.ask("put 250000 far") == "put"
    assert other.ask("sync") == "synced"
    body = path.read_bytes()
    assert body[4090:4103] == b"across-a-page"
    assert body[250_000:250_003] == b"far"
    assert len(body) == 300_000
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"by write", 100)
    os.close(fd)
    assert bytes.fromhex(other.ask("get 100 108")) == b"by write"


def test_a_mapped_write_reaches_the_server(disk: Mount, room: Path, child: Callable[..., Child]) -> None:
    assert disk.folder
    (room / "f").write_bytes(bytes(8192))
    other = child(MAPPING, room / "f")
    assert other.ask("put 5000 mapped") == "put"
    assert other.ask("sync") == "synced"
    assert (disk.folder / room.name / "f").read_bytes()[5000:5006] == b"mapped"


def test_an_unlinked_file_lives_while_it_is_open(here: Path) -> None:
    fd = os.open(here / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"still ")
    os.unlink(here / "f")
    assert os.listdir(here) == []
    os.write(fd, b"here")
    assert os.pread(fd, 99, 0) == b"still here"
    st = os.fstat(fd)
    assert (st.st_nlink, st.st_size) == (0, 10)
    os.ftruncate(fd, 5)
    os.fchmod(fd, 0o600)
    assert os.fstat(fd).st_size == 5
    (here / "f").write_text("another")
    assert os.pread(fd, 99, 0) == b"still"
    assert os.stat(here / "f").st_ino != st.st_ino
    os.close(fd)


def test_a_temporary_file_needs_no_name(here: Path) -> None:
    """O_TMPFILE is not for every file system; tempfile goes another way then."""
    with tempfile.TemporaryFile(dir=here) as file:
        file.write(b"x" * 100_000)
        file.seek(0)
        assert file.read() == b"x" * 100_000
        assert os.listdir(here) == []


def test_times_are_kept_to_the_nanosecond(here: Path) -> None:
    (here / "f").touch()
    for atime, mtime in ((1_234_567_890_123_456_789, 987_654_321_000_000_001), (0, 4_000_000_000_999_999_99)):
        os.utime(here / "f", ns=(atime, mtime))
        st = os.stat(here / "f")
        assert (st.st_atime_ns, st.st_mtime_ns) == (atime, mtime)
    run("touch", "-m", "-d", "@1.5", here / "f")
    st = os.stat(here / "f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (0, 1_500_000_000)
    os.utime(here / "f")
    assert os.stat(here / "f").st_mtime > 1_700_000_000
    fd = os.open(here / "f", os.O_RDWR)
    os.utime(fd, ns=(5, 7))
    assert os.fstat(fd).st_mtime_ns == 7
    os.close(fd)
    os.symlink("nowhere", here / "l")
    os.utime(here / "l", ns=(1, 2), follow_symlinks=False)
    assert os.lstat(here / "l").st_mtime_ns == 2


def test_a_write_moves_the_times(here: Path) -> None:
    (here / "f").write_text("x")
    os.utime(here / "f", ns=(1, 1))
    (here / "f").write_text("y")
    st = os.stat(here / "f")
    assert st.st_mtime > 1_700_000_000
    before = os.stat(here / "f").st_ctime_ns
    os.chmod(here / "f", 0o640)
    assert os.stat(here / "f").st_ctime_ns >= before


def test_modes_are_set_and_kept(here: Path) -> None:
    os.umask(umask := os.umask(0o022))
    for mode in (0o644, 0o755, 0o600, 0o000, 0o777, 0o1777):
        (here / "d").mkdir(exist_ok=True)
        os.chmod(here / "d", mode)
        assert S.S_IMODE(os.stat(here / "d").st_mode) == mode
    os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o777))
    assert S.S_IMODE(os.stat(here / "f").st_mode) == 0o777 & ~umask
    fd = os.open(here / "read-only", os.O_CREAT | os.O_RDWR, 0o400)
    os.write(fd, b"the maker may write")
    os.fchmod(fd, 0o444)
    assert S.S_IMODE(os.fstat(fd).st_mode) == 0o444
    os.close(fd)
    (here / "script").write_text("#!/bin/sh\necho ran\n")
    os.chmod(here / "script", 0o755)
    assert run(here / "script").out == "ran\n"


def test_owners_stay_as_they_are(room: Path) -> None:
    (room / "f").touch()
    st = os.stat(room / "f")
    assert (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid())
    os.chown(room / "f", st.st_uid, st.st_gid)
    os.chown(room / "f", -1, -1)
    with refused(errno.EPERM):
        os.chown(room / "f", st.st_uid + 1, -1)
    with refused(errno.EPERM):
        os.chmod(room / "f", 0o4755)


def test_extended_attributes(here: Path) -> None:
    path = here / "f"
    path.touch()
    assert os.listxattr(path) == []
    with refused(errno.ENODATA):
        os.getxattr(path, "user.none")
    os.setxattr(path, "user.a", b"one\0two")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.big", b"x" * 3000)
    assert sorted(os.listxattr(path)) == ["user.a", "user.big", "user.empty"]
    assert os.getxattr(path, "user.a") == b"one\0two"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.big") == b"x" * 3000
    with refused(errno.EEXIST):
        os.setxattr(path, "user.a", b"", os.XATTR_CREATE)
    with refused(errno.ENODATA):
        os.setxattr(path, "user.none", b"v", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"three", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"three"
    os.removexattr(path, "user.a")
    with refused(errno.ENODATA):
        os.getxattr(path, "user.a")
    with refused(errno.ENODATA):
        os.removexattr(path, "user.a")
    (here / "d").mkdir()
    os.setxattr(here / "d", "user.x", b"dir")
    fd = os.open(here / "d", os.O_RDONLY)
    assert os.getxattr(fd, "user.x") == b"dir"
    os.close(fd)
    assert run("cp", "-a", path, here / "copy").code == 0
    assert os.getxattr(here / "copy", "user.big") == b"x" * 3000


def test_what_is_synced_lies_at_the_server(disk: Mount, room: Path) -> None:
    assert disk.folder
    fd = os.open(room / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"durable")
    os.fsync(fd)
    os.fdatasync(fd)
    assert (disk.folder / room.name / "f").read_bytes() == b"durable"
    os.close(fd)
    for flag in (os.O_SYNC, os.O_DSYNC):
        fd = os.open(room / "g", os.O_CREAT | os.O_WRONLY | flag)
        os.write(fd, b"x" * 5000)
        os.close(fd)
    directory = os.open(room, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    run("sync", "-f", room / "f")


def test_numbers_are_stable_and_a_file_can_be_opened_again(room: Path) -> None:
    (room / "f").write_text("x")
    number = os.stat(room / "f").st_ino
    for n in range(200):
        with open(room / "f", "w") as file:
            file.write(str(n))
            assert os.fstat(file.fileno()).st_ino == number
        assert os.stat(room / "f").st_ino == number
        assert (room / "f").read_text() == str(n)
    again = os.open(room / "f", os.O_RDONLY)
    reopened = os.open(f"/proc/self/fd/{again}", os.O_RDWR)
    assert os.read(reopened, 9) == b"199"
    os.close(again)
    os.close(reopened)


def test_a_stored_file_is_always_ready(here: Path) -> None:
    with open(here / "f", "w+b", buffering=0) as file:
        assert select.select([file], [file], [], 5)[:2] == ([file], [file])
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(5000) == [(file.fileno(), select.POLLIN | select.POLLOUT)]


def test_calls_that_a_server_need_not_know_still_work(here: Path) -> None:
    body = random.Random(3).randbytes(300_000)
    (here / "a").write_bytes(body)
    a, b = os.open(here / "a", os.O_RDONLY), os.open(here / "b", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(b, 0, 500_000)
    assert os.fstat(b).st_size == 500_000
    os.ftruncate(b, 0)
    done = 0
    while done < len(body):
        done += os.copy_file_range(a, b, len(body) - done, done, done)
    assert os.pread(b, 400_000, 0) == body
    os.ftruncate(b, 0)
    os.lseek(b, 0, os.SEEK_SET)
    done = 0
    while done < len(body):
        done += os.sendfile(b, a, done, len(body) - done)
    assert os.pread(b, 400_000, 0) == body
    assert os.lseek(a, 0, os.SEEK_DATA) == 0
    assert os.lseek(a, 0, os.SEEK_HOLE) == len(body)
    os.posix_fadvise(a, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(a)
    os.close(b)
    run("cp", "--sparse=always", "a", "c", cwd=here)
    assert (here / "c").read_bytes() == body
    run("cmp", "a", "c", cwd=here)


def test_direct_io_reads_and_writes(room: Path) -> None:
    """O_DIRECT on a mount is no reason to fail."""
    fd = os.open(room / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    page.write(b"d" * 8192)
    assert os.writev(fd, [page]) == 8192
    page.seek(0)
    assert os.preadv(fd, [page], 4096) == 4096
    os.close(fd)
    assert (room / "f").read_bytes() == b"d" * 8192


def test_python_is_content_with_it(here: Path) -> None:
    (here / "m.py").write_text("x = 42\n")
    code = "import m, m; assert m.x == 42; print(m.__cached__)"
    cached = run(sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, '.'); {code}", cwd=here).out
    assert Path(here, cached.strip()).exists()
