"""Directories: large ones, ones that change under their reader, ones that are gone."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.mounts import Mount, refused, run

MANY = 10_000


def test_ten_thousand_names_are_listed_while_others_are_removed(disk: Mount, room: Path) -> None:
    """What stays is listed exactly once; what goes may be listed or not."""
    assert disk.folder
    folder = disk.folder / room.name
    for n in range(MANY):
        os.close(os.open(folder / f"name-{n:05}", os.O_CREAT | os.O_WRONLY))
    seen: list[str] = []
    with os.scandir(room) as names:
        for count, entry in enumerate(names):
            seen.append(entry.name)
            if count % 100 == 0:
                for n in (count + 5, (count + 5000) % MANY):
                    (room / f"name-{n:05}").unlink(missing_ok=True)
    left = set(os.listdir(room))
    assert 0 < len(left) < MANY
    assert len(seen) == len(set(seen))
    assert left <= set(seen)
    assert left == set(os.listdir(folder))


def test_a_listing_tells_numbers_and_kinds_as_stat_does(here: Path) -> None:
    (here / "file").write_text("x")
    os.mkdir(here / "dir")
    os.symlink("file", here / "link")
    with os.scandir(here) as found:
        entries = {entry.name: entry for entry in found}
    assert set(entries) == {"file", "dir", "link"}
    for name, entry in entries.items():
        assert entry.inode() == os.lstat(here / name).st_ino
    assert entries["dir"].is_dir(follow_symlinks=False)
    assert entries["link"].is_symlink()
    assert entries["file"].is_file(follow_symlinks=False)


def test_dot_and_dot_dot_lead_where_they_should(here: Path) -> None:
    os.makedirs(here / "a/b")
    assert os.path.samefile(here / "a/b/..", here / "a")
    assert os.path.samefile(here / "a/.", here / "a")
    assert os.stat(here / "a/b/../..").st_ino == os.stat(here).st_ino
    listed = run("ls", "-a", here / "a").out.split()
    assert listed == [".", "..", "b"]


def test_links_to_a_directory_are_counted(room: Path) -> None:
    assert os.stat(room).st_nlink >= 1
    assert run("find", room, "-type", "f").out == ""


def test_a_removed_directory_is_empty_to_who_stands_in_it(here: Path) -> None:
    os.mkdir(here / "d")
    inside = os.open(here / "d", os.O_RDONLY)
    os.rmdir(here / "d")
    assert os.listdir(inside) == []
    with pytest.raises(FileNotFoundError):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=inside)
    os.close(inside)
    with pytest.raises(FileNotFoundError):
        os.listdir(here / "d")


def test_a_listing_can_be_begun_again(here: Path) -> None:
    for n in range(300):
        (here / f"{n}").touch()
    fd = os.open(here, os.O_RDONLY)
    first = sorted(os.listdir(fd))
    (here / "more").touch()
    assert sorted(os.listdir(fd)) == sorted([*first, "more"])
    os.close(fd)


def test_names_appear_and_vanish_at_once_for_who_looks_again(here: Path) -> None:
    for n in range(100):
        with pytest.raises(FileNotFoundError):
            os.stat(here / "x")
        (here / "x").write_text(str(n))
        assert os.listdir(here) == ["x"]
        assert (here / "x").read_text() == str(n)
        os.unlink(here / "x")


def test_what_another_makes_or_removes_is_seen_within_a_second(disk: Mount, room: Path) -> None:
    """On the server's side, behind the mount's back: attributes and names are kept for a second at most."""
    assert disk.folder
    folder = disk.folder / room.name
    path = room / "x"
    assert not path.exists()
    (folder / "x").write_text("one")
    _within_a_second(lambda: path.exists() and path.stat().st_size == 3)
    assert path.read_text() == "one"
    (folder / "x").write_text("another")
    _within_a_second(lambda: path.read_text() == "another")
    (folder / "x").unlink()
    _within_a_second(lambda: not path.exists())
    (folder / "x").mkdir()
    _within_a_second(lambda: path.is_dir())


def _within_a_second(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 1.5  # one, and what a busy machine adds
    while not true():
        assert time.monotonic() < deadline


def test_file_systems_are_described(room: Path, disk: Mount) -> None:
    assert disk.folder
    ours, theirs = os.statvfs(room), os.statvfs(disk.folder)
    assert (ours.f_blocks * ours.f_frsize) == (theirs.f_blocks * theirs.f_frsize)
    assert ours.f_namemax == 255
    assert ours.f_bavail <= ours.f_blocks
    assert run("df", room).out.split()[-1] == str(disk.at)


def test_the_mount_table_says_what_is_mounted(disk: Mount) -> None:
    (line,) = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[1] == str(disk.at)
    ]
    source, _, kind, options, *_ = line.split()
    assert (source, kind) == (disk.address, "fuse.warren")
    assert {"rw", "nosuid", "nodev"} <= set(options.split(","))


def test_the_root_is_stable_and_cannot_be_removed(disk: Mount) -> None:
    assert os.stat(disk.at).st_ino == os.stat(disk.at).st_ino
    with refused(errno.EBUSY):
        os.rmdir(disk.at)
