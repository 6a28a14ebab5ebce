"""libvirt's library, on the driver it has for tests; the driver inside this process; and its children."""

import fcntl
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.boot.libvirt.child import Child, adopting, bury
from warren.boot.libvirt.domain import Happened
from warren.boot.libvirt.driver import folder, private, sweep
from warren.boot.libvirt.library import lacking, opened
from warren.tree import Refused

from tests.boot.tiny import children

CACHE = Path(__file__).parents[2] / ".cache/libvirt"
PATIENCE = 30


def pretended(number: str) -> str:
    """A machine of the driver that libvirt has for tests."""
    named = f"<name>{number}</name><uuid>{number}</uuid>"
    return f"<domain type='test'>{named}<memory>8192</memory><os><type>hvm</type></os></domain>"


async def test_the_library_is_here() -> None:
    assert lacking() == ""


async def test_a_machine_goes_through_its_states() -> None:
    number = str(uuid.uuid4())
    async with opened("test:///default") as host:
        made = await host.create(pretended(number), number)
        assert await made.happened("started", since=0) == Happened("started")
        await made.suspend()
        assert await made.state() == "paused"
        with pytest.raises(Refused, match="not running"):
            await made.suspend()
        await made.resume()
        await made.reset()
        assert await made.state() == "running"
        await made.shutdown()
        assert await made.happened("stopped", since=0) == Happened("stopped", "shut down")
        with pytest.raises(Refused) as refused:
            await made.resume()
        assert refused.value.code == 409
        await made.destroy()
        kinds = [event.kind for event in made.events]
        assert kinds == ["started", "suspended", "resumed", "stopped"]
        with pytest.raises(Refused, match="has ended"):
            await made.happened("started")


async def test_two_connections_see_their_own_machines() -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    async with opened("test:///default") as here, opened("test:///default") as there:
        mine, other = await here.create(pretended(one), one), await there.create(pretended(two), two)
        await mine.destroy()
        assert await mine.happened("stopped", since=0) == Happened("stopped", "destroyed")
        assert await other.state() == "running"
        await other.destroy()
        await other.happened("stopped", since=0)
        assert [event.kind for event in mine.events] == ["started", "stopped"]


async def test_a_lost_wait_takes_no_event() -> None:
    number = str(uuid.uuid4())
    async with opened("test:///default") as host:
        made = await host.create(pretended(number), number)
        await made.happened("started", since=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.happened, "suspended")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await made.suspend()
        assert await made.happened("suspended", since=0) == Happened("suspended")
        await made.destroy()


@pytest.mark.parametrize("address", ["nonsense:///", "qemu+unix:///system?socket=/nowhere/sock"])
async def test_a_daemon_that_is_not_there_says_so(address: str) -> None:
    with pytest.raises(Refused) as refused:
        async with opened(address):
            pass
    assert refused.value.code in (405, 502)
    assert "libvirt says" in refused.value.detail


async def test_bad_xml_is_refused_in_libvirts_words() -> None:
    async with opened("test:///default") as host:
        with pytest.raises(Refused, match="libvirt says"):
            await host.create("<domain", str(uuid.uuid4()))


def test_without_the_library_it_is_said_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['libvirt'] = None\n"
        "from warren.boot.libvirt.library import lacking; print(lacking())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'warren-9p[libvirt]'" in done.stdout


# The module that keeps the connection outlives libvirt's own, as it does where others hold it at the end.
ENDS = """
import sys, trio
from pathlib import Path
from warren.boot.libvirt import library
from warren.boot.libvirt.driver import private
sys.held = library
async def main():
    async with library.opened(private(Path(sys.argv[1]))):
        pass
trio.run(main)
"""


def test_a_process_ends_without_a_word_of_the_driver_that_stayed_open() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS, str(CACHE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_driver_lives_in_a_folder_of_ours() -> None:
    where = folder(CACHE)
    assert where == folder()
    assert private() == f"qemu:///embed?root={where}"
    assert where.stat().st_mode & 0o777 == 0o700
    assert (where / "cache").resolve() == CACHE.resolve()
    assert f'user = "+{os.getuid()}"' in (where / "etc/qemu.conf").read_text()
    sweep()
    assert where.is_dir(), "it is in use"


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a driver whose process was killed."""
    folder(CACHE)  # our own is elsewhere
    with_names_that_fit = Path("/tmp", f"w{uuid.uuid4().hex[:8]}")
    with_names_that_fit.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(with_names_that_fit))
    made = with_names_that_fit / "warren-libvirt-x"
    (made / "run/qemu").mkdir(parents=True)
    (made / "lock").touch(0o600)
    yield made
    subprocess.run(["rm", "-rf", str(with_names_that_fit)], check=True)


def test_what_a_killed_process_left_is_swept(stale: Path) -> None:
    theirs = subprocess.Popen(
        ["sh", "-c", "echo; read x", f"{stale}/lib"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    strangers = subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE)
    with theirs, strangers:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == b"\n", "a process has a command line a little later than a number"
        (stale / "run/qemu/a.pid").write_text(str(theirs.pid))
        (stale / "run/qemu/b.pid").write_text(str(strangers.pid))
        (stale / "run/qemu/c.pid").write_text("nonsense")
        assert sweep() == 1
        assert theirs.wait() == -signal.SIGKILL
        assert not stale.exists()
        assert strangers.poll() is None, "the number was somebody else's by now"


def test_what_is_in_use_is_not_swept(stale: Path) -> None:
    with open(stale / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep() == 0
        assert stale.is_dir()


# As libvirt starts QEMU: forked twice, in a session whose leader is gone. It ends with 7 when its input does.
FORKS = """
import os, sys
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
os._exit(7)
"""


def detached() -> tuple[int, int]:
    """Its process id, and the descriptor that is its input."""
    theirs, ours = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=theirs, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as made:
        os.close(theirs)
        assert made.stdout is not None
        pid = int(made.stdout.readline())
    return pid, ours


async def test_who_is_orphaned_while_we_ask_is_our_child() -> None:
    pid, line = await trio.to_thread.run_sync(adopting, detached)
    child = Child(pid)
    os.close(line)
    with trio.fail_after(PATIENCE):
        await child.over.wait()
    assert child.status == 7


async def test_who_is_orphaned_later_is_not() -> None:
    pid, line = await trio.to_thread.run_sync(detached)
    child = Child(pid)
    child.kill()
    os.close(line)
    with trio.fail_after(PATIENCE):
        await child.over.wait()
    assert child.status is None


def test_who_died_before_we_knew_them_is_waited_for_and_our_own_are_not() -> None:
    with subprocess.Popen(["sh", "-c", "exit 3"], start_new_session=True) as own:
        pid, line = adopting(detached)
        fd = os.pidfd_open(pid)
        os.close(line)
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
        assert bury() == 1
        assert pid not in children()
        assert own.pid in children()
        os.close(fd)
    assert own.returncode == 3
