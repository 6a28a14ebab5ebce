"""Real mounts for the tests of a module: a directory by the disk server, and the demonstration of all words.

`here` gives each test a new directory twice: once in a plain one of this machine, where the test must pass
too or it is wrong about POSIX, and once in the mount.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.fuse.mounts import EVERYTHING, LIVE, Child, Mount, mounted, other_process
from tests.shell.running import serving, socket_in

PATIENCE = 40.0  # for one test


@pytest.fixture(scope="session", autouse=True)
def fuse(not_run: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing runs without /dev/fuse, and nothing is left mounted."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        not_run(f"/dev/fuse: {e.strerror}")
    yield
    below = str(tmp_path_factory.getbasetemp())
    table = Path("/proc/self/mounts").read_text()
    assert [line for line in table.splitlines() if below in line] == []
    assert not LIVE


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Whoever hangs is answered by the kernel, once the mount's process is dead."""
    barked = threading.Event()

    def bark() -> None:
        barked.set()
        for process in list(LIVE):
            process.kill()

    timer = threading.Timer(PATIENCE, bark)
    timer.start()
    yield
    timer.cancel()
    assert not barked.is_set(), f"after {PATIENCE} s the mounts were killed"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    place = tmp_path_factory.mktemp("disk")
    folder = place / "served"
    folder.mkdir()
    # With its audit on a disk, as in life, where an effect is answered later than what is asked behind it.
    audit = ("--audit", str(place / "audit"))
    with serving("disk", str(folder), *socket_in(place), *EVERYTHING, *audit) as served:
        with mounted(served.at, place / "mnt", folder=folder) as mount:
            yield mount


@pytest.fixture(scope="module")
def quick_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """For thousands of changes: its audit is in memory, and no change waits for a disk."""
    place = tmp_path_factory.mktemp("quick")
    folder = place / "served"
    folder.mkdir()
    with serving("disk", str(folder), *socket_in(place), *EVERYTHING) as served:
        with mounted(served.at, place / "mnt", folder=folder) as mount:
            yield mount


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    place = tmp_path_factory.mktemp("demo")
    with serving("demo", *socket_in(place), *EVERYTHING) as served:
        with mounted(served.at, place / "mnt") as mount:
            yield mount


@pytest.fixture(params=["local", "mounted"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "local":
        return tmp_path
    mount: Mount = request.getfixturevalue("disk")
    return fresh(mount, request)


@pytest.fixture
def room(disk: Mount, request: pytest.FixtureRequest) -> Path:
    """A new directory of the mount alone."""
    return fresh(disk, request)


def fresh(mount: Mount, request: pytest.FixtureRequest) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:100]
    directory = mount.at / f"{name}-{os.urandom(4).hex()}"
    directory.mkdir()
    return directory


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """`child(CODE, word...)`: a Python program beside this one, killed in the end."""
    with ExitStack() as children:
        yield lambda code, *words: children.enter_context(other_process(code, *words))
