"""warren mount --ns: a namespace of the user's own as a directory, for real."""

import os
import select
import shlex
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from warren.roles.mounts import mounted
from warren.roles.state import State

from tests.fuse.mounts import mounted_at
from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, PATIENCE, WARREN, Done, Served, environment, serving, socket_in
from tests.shell.running import warren as plainly
from tests.shell.staying import hive as a_hive
from tests.shell.staying import staying
from tests.sources import ROOT

TWO = "mount $demo /\nmount -c $disk /n/disk\n"


@pytest.fixture(scope="module")
def hive() -> Iterator[State]:
    with a_hive("queen=QueenPrimary", "drone-1=DroneWorker") as state:
        yield state


@pytest.fixture
def point(tmp_path: Path, fuse: None) -> Iterator[Path]:
    """Where to mount. What a mount made for itself is gone in the end."""
    (tmp_path / "m").mkdir()
    (tmp_path / "t").mkdir()
    yield tmp_path / "m"
    if mounted_at(tmp_path / "m"):
        unmount(tmp_path / "m")
    assert os.listdir(tmp_path / "t") == []


def unmount(point: Path) -> None:
    """Take it away, and wait for the process that served it."""
    [source] = [each.source for each in mounted() if each.point == str(point)]
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(source.removeprefix("unix!"))
        pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        ended = os.pidfd_open(pid)
    try:
        assert plainly("umount", str(point)).code == 0
        assert select.select([ended], [], [], PATIENCE)[0], "the mount's process stays"
    finally:
        os.close(ended)


def sh(script: str, point: Path, stdin: str = "", **env: str) -> Done:
    """A script with $M as the mount, and `warren` in its PATH."""
    path = f"{WARREN.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], input=stdin, capture_output=True, text=True, timeout=PATIENCE,
        env=environment(M=str(point), TMPDIR=str(point.parent / "t"), PATH=path, LC_ALL="C.UTF-8", **env),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def variables(demo: Served, disk: Served) -> str:
    return f"--var {shlex.quote(f'demo={demo.at}')} --var {shlex.quote(f'disk={disk.at}')}"


def test_two_trees_are_one_directory(point: Path, demo: Served, disk: Served, folder: Path) -> None:
    (folder / "kept").write_text("kept\n")
    up = sh(f"warren mount --ns - {variables(demo, disk)} $M", point, TWO)
    assert up == Done(0, "", "")
    done = sh(
        """
        ls $M/n $M/n/disk; cat $M/hello $M/n/disk/kept
        echo made > $M/n/disk/made; mkdir $M/n/disk/sub; mv $M/n/disk/made $M/n/disk/sub/
        echo nonsense > $M/ctl; cat $M/dev/errstr
        cat $M/n/disk/gone
        warren cat $M/hello
        """,
        point,
    )
    lines = done.out.splitlines()
    assert lines[:2] == [f"{point}/n:", "disk"]
    assert lines[3:8] == [f"{point}/n/disk:", "kept", "hello, world", "kept", lines[7]]
    assert lines[7].startswith("400 unknown_verb: no verb 'nonsense'")
    assert lines[8:] == ["hello, world"]
    assert "gone: No such file" in done.err
    assert (folder / "sub/made").read_text() == "made\n"


def test_a_stream_waits_and_a_reader_may_give_up(point: Path, demo: Served, disk: Served) -> None:
    sh(f"warren mount --ns - {variables(demo, disk)} $M", point, TWO)
    one = "(head -1 $M/recv; echo done) & echo one > $M/send; wait"
    done = sh(f"{one}; timeout 1 cat $M/recv; echo $?", point)
    assert done.out == "one\ndone\n124\n"


def test_it_outlives_the_servers_of_its_trees(tmp_path: Path, point: Path, demo: Served) -> None:
    listen = socket_in(tmp_path)
    text = tmp_path / "x.ns"
    text.write_text("mount $demo /\nmount -b $other /\n")
    address = f"unix!{tmp_path}/sock"
    words = (str(text), "--var", f"demo={demo.at}", "--var", f"other={address}", "--foreground", str(point))
    with serving("demo", *listen, *EVERYTHING) as served:
        plainly("write", "/hello", "the other", at=address)
        mount = staying("mount", "--ns", *words, until="mounted ", TMPDIR=str(tmp_path / "t"))
        with mount as it:
            assert sh("cat $M/hello", point).out == "the other\n"
            served.process.kill()
            served.process.wait()
            # An error, and not what the next member of the union has.
            assert "Connection refused" in sh("cat $M/hello", point).err
            with serving("demo", *listen, *EVERYTHING):
                assert sh("cat $M/hello", point) == Done(0, "hello, world\n", "")
            assert it.end(signal.SIGTERM) == 0
    assert not mounted_at(point)


def test_everything_wrong_with_the_text_is_said_and_nothing_is_mounted(point: Path, demo: Served) -> None:
    text = "mount $demo /\nbind -q /x /y\nmount $qeen /n\n"
    done = sh(f"warren mount --ns - --var {shlex.quote(f'demo={demo.at}')} $M", point, text)
    assert done == Done(
        9,
        "",
        "warren: standard input:2: there is no flag 'q'; the flags are -a -b -c -r -i\n"
        "warren: standard input:3: there is no variable $qeen; there are $demo\n",
    )
    assert not mounted_at(point)


def test_every_tree_must_answer_but_those_that_may_be_left_out(point: Path, demo: Served) -> None:
    gone = f"unix!{point.parent}/gone"
    command = f"warren mount --ns - {shlex.join(['--var', f'demo={demo.at}', '--var', f'gone={gone}'])} $M"
    done = sh(command, point, "mount $demo /\nmount $gone /gone\n")
    assert done.code == 7
    way_out = "start it first, or say mount -i to do without it"
    assert done.err == (
        f"warren: {gone}: No such file or directory\n"
        f"warren: standard input:2: there is no tree {gone}; {way_out}\n"
    )
    assert not mounted_at(point)
    done = sh(command, point, "mount $demo /\nmount -i $gone /gone\n")
    assert done == Done(0, "", f"warren: {gone}: No such file or directory\n")
    assert sh("cat $M/hello; ls $M/gone", point).out == "hello, world\n"


def test_a_tree_that_refuses_us_is_not_left_out(point: Path, hive: State) -> None:
    queen = (hive.run("queen") / "addr").read_text().split()
    [address] = [line for line in queen if line.startswith("tls!")]
    words = f"--id {hive.pki('drone-1')} --expect 'role/Nobody/*' --var 'q={address}'"
    done = sh(f"warren mount --ns - {words} $M", point, "mount -i $q /\n")
    assert done.code == 4
    assert "wrong_role" in done.err
    done = sh(f"warren mount --ns - --var 'q={address}' $M", point, "mount $q /\n")
    assert done.code == 2
    assert "it wants to know who you are; say --id DIR" in done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--ns", "-"), 2, "say where, and nothing else"),
        (("--ns", "-", "a", "b"), 2, "say where, and nothing else"),
        (("--var", "a=b", "x", "y"), 2, "--var is for --ns FILE"),
        (("--ns", "/nowhere", "DIR"), 3, "/nowhere: No such file or directory; give a text"),
        (("--ns", "/dev/null", "DIR"), 9, "/dev/null: it mounts nothing"),
        (("--ns", "/dev/null", "--var", "a", "DIR"), 2, "--var is NAME=VALUE, not 'a'"),
        (("--ns", "/dev/null", "/nowhere"), 3, "there is no such directory"),
    ],
)
def test_what_cannot_be_meant(
    run: Command, tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    done = run("mount", *(str(tmp_path) if word == "DIR" else word for word in words))
    assert done.code == code, done.err
    assert says in done.err


# In a hive


def test_a_workers_namespace_is_mounted_as_the_worker_sees_it(point: Path, hive: State) -> None:
    state = str(hive.directory)
    up = sh("warren ns --role DroneWorker --as-script | sh -s $M", point, WARREN_STATE=state)
    assert up == Done(0, "", "")
    golden = (ROOT / "tests/roles/goldens/DroneWorker.ns").read_text()
    done = sh("cat $M/proc/ns; cat $M/role/status; ls $M; cat $M/mesh/ca/bundle", point)
    assert done.out.startswith(golden)
    assert "\nname=drone-1\n" in f"\n{done.out}"
    assert {"cap", "dev", "log", "mesh", "proc", "role", "sim", "srv"} <= set(done.out.splitlines())
    assert (hive.pki("drone-1") / "ca.pem").read_text().strip() in done.out
    done = sh("echo x > $M/mesh/ca/csr; echo nonsense > $M/proc/lifecycle/ctl; cat $M/dev/errstr", point)
    assert done.err.count("bash: ") == 2  # the queen's part is read-only; a verb is refused by its role
    assert done.out.startswith("400 unknown_verb: ")


def test_roles_that_are_killed_come_back_below_the_mount(point: Path, hive: State) -> None:
    state = str(hive.directory)
    sh("warren ns drone-1 --as-script | sh -s $M", point, WARREN_STATE=state)
    for name, path in (("drone-1", "proc/ns"), ("queen", "mesh/ca/crl")):
        before = sh(f"cat $M/{path}", point).out
        os.kill(int((hive.run(name) / "pid").read_text()), signal.SIGKILL)
        assert sh(f"until cat $M/{path} 2>/dev/null; do sleep 0.05; done", point).out == before


def test_the_queens_own_is_mounted_likewise(point: Path, hive: State) -> None:
    state = str(hive.directory)
    up = sh("warren ns --as-script | sh -s $M", point, WARREN_STATE=state)
    assert up == Done(0, "", "")
    done = sh("cat $M/n/drone-1/role/status; warren ns queen | diff - $M/proc/ns", point, WARREN_STATE=state)
    assert "name=drone-1\n" in done.out
    assert "<" not in done.out
