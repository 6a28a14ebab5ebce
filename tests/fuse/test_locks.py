"""Locks between processes, and between a mount and a client of the same server that needs none."""

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from warren.mount import dial

from tests.fuse.mounts import Child, Mount

START = Callable[..., Child]

LOCKER = """
import errno, fcntl, os, signal, struct, sys

class Rang(Exception):
    pass

def ring(*_):
    raise Rang

signal.signal(signal.SIGALRM, ring)
fds = [os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)]
kinds = {"read": fcntl.LOCK_SH, "write": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
names = {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "none"}
for line in sys.stdin:
    how, kind, start, length, *more = line.split()
    try:
        if how == "open":
            fds.append(os.open(sys.argv[1], os.O_RDWR))
        elif how == "close":
            os.close(fds.pop())
        elif how == "flock":
            fcntl.flock(fds[-1], kinds[kind] | (0 if "wait" in more else fcntl.LOCK_NB))
        elif how == "get":
            lock = struct.pack("hhqqi", fcntl.F_WRLCK, 0, int(start), int(length), 0)
            found = struct.unpack("hhqqi", fcntl.fcntl(fds[0], fcntl.F_GETLK, lock))
            print(names[found[0]], *found[2:], flush=True)
            continue
        else:
            if "alarm" in more:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
            wait = 0 if kind == "none" or {"wait", "alarm"} & set(more) else fcntl.LOCK_NB
            fcntl.lockf(fds[0], kinds[kind] | wait, int(length), int(start))
        print("done", flush=True)
    except Rang:
        print("interrupted", flush=True)
    except OSError as e:
        print(errno.errorcode[e.errno], flush=True)
"""


@pytest.fixture
def pair(here: Path, child: START) -> tuple[Child, Child]:
    return child(LOCKER, here / "f"), child(LOCKER, here / "f")


def test_writers_exclude_each_other_by_range(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("lock write 0 10") == "done"
    assert b.ask("lock write 5 10") in ("EAGAIN", "EACCES")
    assert b.ask("lock read 5 1") in ("EAGAIN", "EACCES")
    assert b.ask("lock write 10 10") == "done"
    assert b.ask("get - 0 5").split()[:3] == ["write", "0", "10"]
    assert a.ask("lock none 0 5") == "done"
    assert b.ask("lock write 0 5") == "done"
    assert b.ask("get - 5 5").split()[:3] == ["write", "5", "5"]
    assert a.ask("lock none 0 0") == "done"
    assert b.ask("get - 5 1").split()[0] == "none"


def test_readers_share_and_upgrade_in_turn(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("lock read 0 0") == b.ask("lock read 0 0") == "done"
    assert a.ask("lock write 0 0") in ("EAGAIN", "EACCES")
    assert b.ask("lock none 0 0") == "done"
    assert a.ask("lock write 0 0") == "done"
    assert b.ask("lock read 100 1") in ("EAGAIN", "EACCES")


def test_who_holds_it_is_named(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("lock write 3 4") == "done"
    assert b.ask("get - 0 0").split() == ["write", "3", "4", str(a.process.pid)]


def test_a_process_does_not_stand_in_its_own_way(pair: tuple[Child, Child]) -> None:
    a, _ = pair
    assert a.ask("lock write 0 10") == "done"
    assert a.ask("lock write 5 10") == "done"
    assert a.ask("lock read 0 0") == "done"
    assert a.ask("get - 0 0").split()[0] == "none"


def test_closing_any_descriptor_gives_the_locks_up(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("open - - -") == "done"
    assert a.ask("lock write 0 0") == "done"
    assert b.ask("lock write 0 0") in ("EAGAIN", "EACCES")
    assert a.ask("close - - -") == "done"
    assert b.ask("lock write 0 0") == "done"


def test_a_lock_is_waited_for(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("lock write 0 10") == "done"
    b.tell("lock write 5 1 wait")
    assert b.silent()
    assert a.ask("lock none 0 5") == "done"
    assert b.silent()
    assert a.ask("lock none 5 5") == "done"
    assert b.hear() == "done"
    assert a.ask("lock read 5 1") in ("EAGAIN", "EACCES")


def test_who_waits_can_be_interrupted_and_has_nothing_then(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("lock write 0 10") == "done"
    assert b.ask("lock write 0 10 alarm") == "interrupted"
    assert a.ask("lock none 0 10") == "done"
    assert a.ask("get - 0 0").split()[0] == "none"
    assert a.ask("lock write 0 10") == "done"


@pytest.mark.parametrize("waits", [False, True], ids=["holder", "waiter"])
def test_a_killed_process_leaves_no_lock(pair: tuple[Child, Child], waits: bool, child: START) -> None:
    a, b = pair
    assert a.ask("lock write 0 0") == "done"
    if waits:
        b.tell("lock write 0 0 wait")
        assert b.silent()
        b.process.kill()
        b.process.wait()
        assert a.ask("lock none 0 0") == "done"
        assert a.ask("get - 0 0").split()[0] == "none"
    else:
        b.tell("lock write 0 0 wait")
        assert b.silent()
        a.process.kill()
        assert b.hear() == "done"


def test_whole_files_are_locked_by_descriptor(pair: tuple[Child, Child]) -> None:
    a, b = pair
    assert a.ask("flock read 0 0") == b.ask("flock read 0 0") == "done"
    assert b.ask("flock write 0 0") == "EAGAIN"
    assert a.ask("flock none 0 0") == "done"
    assert b.ask("flock write 0 0") == "done"
    a.tell("flock write 0 0 wait")
    assert a.silent()
    b.process.kill()
    assert a.hear() == "done"


def test_two_descriptors_of_one_process_are_two_by_flock(here: Path) -> None:
    a, b = (os.open(here / "f", os.O_CREAT | os.O_RDWR) for _ in range(2))
    fcntl.flock(a, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shared = os.dup(a)
    fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(a)
    with pytest.raises(BlockingIOError):
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(shared)
    fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(b)


def test_the_flock_command_takes_turns(here: Path) -> None:
    step = "n=$(cat n); echo $((n+1)) > n"
    (here / "n").write_text("0\n")
    loop = f"for i in 1 2 3 4 5 6 7 8 9 10; do flock l sh -c '{step}'; done"
    both = [subprocess.Popen(["sh", "-c", loop], cwd=here) for _ in range(3)]
    assert [process.wait() for process in both] == [0, 0, 0]
    assert (here / "n").read_text() == "30\n"


async def test_a_lock_of_the_mount_is_one_of_the_tree(disk: Mount, room: Path, child: START) -> None:
    """A client that dials the server meets the locks that processes took through the mount."""
    other = child(LOCKER, room / "f")
    path = f"/{room.name}/f"
    assert other.ask("lock none 0 0") == "done"
    async with dial(disk.address) as files, await files.open(path, os.O_RDWR) as file:
        assert other.ask("lock write 0 10") == "done"
        assert not await file.lock(0, 10, wait=False)
        held = await file.getlock(0, 0)
        assert held is not None
        assert (held.start, held.length) == (0, 10)
        assert other.ask("lock none 0 0") == "done"
        assert await file.lock(0, 10, wait=False)
        assert other.ask("lock write 0 10") == "EAGAIN"
