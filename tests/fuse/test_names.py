"""Names, links and renames: what POSIX says of them, on a plain directory and on the mount alike."""

import errno
import os
import stat as S
import subprocess
from pathlib import Path

import pytest

from tests.fuse.mounts import refused, run

NAMES = [
    b"a" * 255,
    "ü\N{SNOWMAN}\N{GRINNING FACE}".encode(),
    ("\N{SNOWMAN}" * 85).encode(),
    b"\xff\xfe not UTF-8 \x80",
    b"new\nline and\ttab",
    b"-rf",
    b" ",
    b"...",
    b"a\\b'c\"d$e*",
    b"\x01\x7f",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:12]))
def test_any_name_is_kept_byte_for_byte(here: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(here), name)
    with open(path, "xb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(here)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    os.mkdir(path + b".d" if len(name) < 250 else path[:-2] + b".d")
    assert len(os.listdir(here)) == 2
    os.unlink(path)
    with refused(errno.ENOENT):
        os.stat(path)


def test_a_name_of_256_bytes_is_too_long(here: Path) -> None:
    path = here / ("a" * 256)
    for act in (os.mkdir, os.stat, Path.touch, lambda p: os.symlink("x", p)):
        with refused(errno.ENAMETOOLONG):
            act(path)


def test_a_path_may_be_deeper_than_any_one_name_of_it(here: Path) -> None:
    name, depth = "d" * 200, 40
    down = os.open(here, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=down)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=down)
        os.close(down)
        down = below
    file = os.open("end", os.O_CREAT | os.O_RDWR, dir_fd=down)
    os.write(file, b"deep")
    assert os.pread(file, 9, 0) == b"deep"
    os.close(file)
    os.close(down)
    deep = here.joinpath(*["d" * 200] * 18, "x")
    deep.write_text("shallow enough")
    assert deep.read_text() == "shallow enough"
    run("rm", "-rf", here / name)
    assert os.listdir(here) == []


def test_creating_exclusively_succeeds_once(here: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(here / "new", flags))
    with refused(errno.EEXIST):
        os.open(here / "new", flags)
    os.symlink("nowhere", here / "dangling")
    with refused(errno.EEXIST):
        os.open(here / "dangling", flags)
    os.close(os.open(here / "dangling", os.O_CREAT | os.O_WRONLY))
    assert (here / "nowhere").exists()


def test_hard_links_are_one_file(here: Path) -> None:
    (here / "a").write_text("one")
    os.link(here / "a", here / "b")
    os.mkdir(here / "d")
    os.link(here / "a", here / "d/c")
    stats = [os.stat(here / name) for name in ("a", "b", "d/c")]
    assert {st.st_ino for st in stats} == {stats[0].st_ino}
    assert {st.st_nlink for st in stats} == {3}
    assert os.path.samefile(here / "a", here / "d/c")
    with open(here / "b", "a") as file:
        file.write(" two")
    assert (here / "a").read_text() == "one two"
    os.unlink(here / "a")
    assert os.stat(here / "b").st_nlink == 2
    assert (here / "d/c").read_text() == "one two"
    with refused(errno.EEXIST):
        os.link(here / "b", here / "d/c")
    with refused(errno.EPERM):
        os.link(here / "d", here / "e")


def test_symbolic_links_are_kept_as_text(here: Path) -> None:
    os.symlink("target/../x y", here / "link")
    assert os.readlink(here / "link") == "target/../x y"
    assert S.S_ISLNK(os.lstat(here / "link").st_mode)
    assert os.lstat(here / "link").st_size == len("target/../x y")
    long = "/".join(["y" * 100] * 30)
    os.symlink(long, here / "long")
    assert os.readlink(here / "long") == long
    os.symlink(b"\xff\xfe", os.fsencode(here) + b"/bytes")
    assert os.readlink(os.fsencode(here) + b"/bytes") == b"\xff\xfe"
    with refused(errno.ENOENT):
        os.stat(here / "link")
    with refused(errno.ENOENT):
        open(here / "link").close()
    (here / "file").write_text("x")
    with refused(errno.EINVAL):
        os.readlink(here / "file")


def test_symbolic_links_are_followed_and_loops_are_found(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "d/file").write_text("there")
    os.symlink("d", here / "dir")
    os.symlink("dir/file", here / "file")
    os.symlink(str(here / "d"), here / "absolute")
    assert (here / "file").read_text() == (here / "absolute/file").read_text() == "there"
    os.symlink("b", here / "a")
    os.symlink("a", here / "b")
    with refused(errno.ELOOP):
        os.stat(here / "a")
    with refused(errno.ELOOP):
        os.open(here / "file", os.O_RDONLY | os.O_NOFOLLOW)
    with refused(errno.ENOTDIR):
        os.open(here / "dir", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.unlink(here / "dir")
    assert (here / "d/file").exists()


def test_a_rename_replaces_a_file_at_once(here: Path) -> None:
    (here / "old").write_text("old")
    (here / "new").write_text("new")
    ino = os.stat(here / "new").st_ino
    with open(here / "old") as still:
        os.rename(here / "new", here / "old")
        assert still.read() == "old"
        assert os.fstat(still.fileno()).st_nlink == 0
    assert os.listdir(here) == ["old"]
    assert (here / "old").read_text() == "new"
    assert os.stat(here / "old").st_ino == ino
    with refused(errno.ENOENT):
        os.rename(here / "new", here / "old")


def test_renames_of_directories(here: Path) -> None:
    for name in ("a/b/c", "empty", "full/x"):
        os.makedirs(here / name)
    (here / "file").write_text("f")
    (here / "a/b/c/deep").write_text("deep")
    with refused(errno.EINVAL):
        os.rename(here / "a", here / "a/b/inside")
    with refused(errno.ENOTEMPTY):
        os.rename(here / "a", here / "full")
    with refused(errno.ENOTDIR):
        os.rename(here / "a", here / "file")
    with refused(errno.EISDIR):
        os.rename(here / "file", here / "empty")
    os.rename(here / "a", here / "a")
    os.rename(here / "a", here / "empty")
    assert (here / "empty/b/c/deep").read_text() == "deep"
    os.rename(here / "empty/b", here / "full/x/b")
    assert (here / "full/x/b/c/deep").read_text() == "deep"
    with refused(errno.ENOENT):
        os.stat(here / "empty/b/c/deep")
    assert sorted(os.listdir(here)) == ["empty", "file", "full"]


def test_what_is_open_survives_the_renaming_of_all_above_it(here: Path) -> None:
    os.makedirs(here / "a/b")
    (here / "a/b/file").write_text("one")
    with open(here / "a/b/file", "r+") as file:
        inside = os.open(here / "a/b", os.O_RDONLY)
        os.rename(here / "a", here / "z")
        os.rename(here / "z/b/file", here / "moved")
        file.seek(0, os.SEEK_END)
        file.write(" two")
        file.flush()
        assert os.listdir(inside) == []
        os.mkdir("made", dir_fd=inside)
        os.close(inside)
    assert (here / "moved").read_text() == "one two"
    assert os.listdir(here / "z/b") == ["made"]
    os.mkdir(here / "a")
    assert os.listdir(here / "a") == []


def test_a_rename_between_two_names_of_one_file_does_nothing(here: Path) -> None:
    (here / "a").write_text("x")
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "b")
    assert sorted(os.listdir(here)) == ["a", "b"]


def test_moving_without_clobbering(here: Path) -> None:
    (here / "a").write_text("a")
    (here / "b").write_text("b")
    run("mv", "-n", "a", "b", cwd=here, code=None)
    assert (here / "b").read_text() == "b"
    run("mv", "-n", "a", "c", cwd=here)
    assert (here / "c").read_text() == "a"


def test_names_swapped_by_many_renames_end_where_they_should(here: Path) -> None:
    for n in range(10):
        (here / f"f{n}").write_text(str(n))
    for _ in range(20):
        os.rename(here / "f0", here / "t")
        for n in range(1, 10):
            os.rename(here / f"f{n}", here / f"f{n - 1}")
        os.rename(here / "t", here / "f9")
    assert [(here / f"f{n}").read_text() for n in range(10)] == [str(n) for n in range(10)]


def test_another_file_system_is_another(room: Path, tmp_path: Path) -> None:
    (room / "inside").write_text("x")
    (tmp_path / "outside").write_text("y")
    for act in (os.rename, os.link):
        with refused(errno.EXDEV):
            act(room / "inside", tmp_path / "there")
        with refused(errno.EXDEV):
            act(tmp_path / "outside", room / "there")
    run("mv", room / "inside", tmp_path / "moved")
    assert (tmp_path / "moved").read_text() == "x"
    assert os.listdir(room) == []


def test_the_wrong_kind_of_file_is_named_as_such(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "d/x").write_text("x")
    (here / "f").write_text("f")
    for number, act in (
        (errno.EISDIR, lambda: os.open(here / "d", os.O_WRONLY)),
        (errno.EISDIR, lambda: os.unlink(here / "d")),
        (errno.ENOTDIR, lambda: os.rmdir(here / "f")),
        (errno.ENOTDIR, lambda: os.open(here / "f", os.O_RDONLY | os.O_DIRECTORY)),
        (errno.ENOTDIR, lambda: os.stat(here / "f/x")),
        (errno.ENOTDIR, lambda: os.mkdir(here / "f/x")),
        (errno.ENOTDIR, lambda: os.listdir(here / "f")),
        (errno.ENOTEMPTY, lambda: os.rmdir(here / "d")),
        (errno.EEXIST, lambda: os.mkdir(here / "f")),
        (errno.EEXIST, lambda: os.mkdir(here / "d")),
        (errno.ENOENT, lambda: os.mkdir(here / "no/such")),
        (errno.ENOENT, lambda: os.rmdir(here / "no")),
        (errno.EINVAL, lambda: os.rmdir(f"{here}/d/.")),
    ):
        with refused(number):
            act()
    assert sorted(os.listdir(here)) == ["d", "f"]


def test_pipes_and_sockets_have_names_that_processes_meet_at(here: Path) -> None:
    os.mkfifo(here / "pipe")
    assert S.S_ISFIFO(os.stat(here / "pipe").st_mode)
    with subprocess.Popen(["sh", "-c", "echo through > pipe"], cwd=here) as writer:
        with open(here / "pipe") as reader:
            assert reader.read() == "through\n"
    assert writer.returncode == 0
    os.unlink(here / "pipe")
