"""A hive as an operator has it: up, mounted, used from a shell, killed and down. Real roles, a real mount."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from warren.roles.mounts import mounted
from warren.roles.processes import Born
from warren.roles.state import State

from tests.shell.running import WARREN, Done, environment, warren
from tests.sources import ROOT

PATIENCE = 60.0


class Running:
    """A hive that is up."""

    def __init__(self, state: State, said: Done) -> None:
        self.state, self.said = state, said
        self.mnt = state.mnt

    def warren(self, *words: str) -> Done:
        return warren(*words, WARREN_STATE=str(self.state.directory))

    def sh(self, script: str, **env: str) -> Done:
        """A shell script with $M as the mount, $S as the state and `warren` in its PATH."""
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE,
            env=environment(M=str(self.mnt), S=str(self.state.directory), LC_ALL="C.UTF-8",
                            PATH=f"{WARREN.parent}:{os.environ['PATH']}", **env),
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def good(self, script: str, **env: str) -> str:
        """What a script says that does all it should and complains of nothing."""
        done = self.sh(f"set -eu; {script}", **env)
        assert (done.code, done.err) == (0, ""), script
        return done.out

    def pid(self, name: str) -> int:
        return int((self.state.run(name) / "pid").read_text())


def up(folder: Path, *words: str) -> Running:
    done = warren("up", "--state", str(folder), "--detach", *words)
    assert done.code == 0, done.err
    return Running(State(folder), done)


def down(folder: Path) -> Done:
    return warren("down", "--state", str(folder))


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder with a short name, as a socket's path must have."""
    folder = Path(tempfile.mkdtemp(prefix="hive-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hive(short: Path) -> Iterator[Running]:
    try:
        yield up(short / "s")
    finally:
        down(short / "s")


def gone(pids: list[int]) -> None:
    for pid in pids:
        assert Born.of(pid) is None


@pytest.mark.usefixtures("fuse")
def test_it_says_where_it_is_and_three_things_to_try_that_work(hive: Running) -> None:
    first, try_, *rest = hive.said.out.splitlines()
    assert first == f"up: {hive.state.hive().hive} at {hive.mnt}"
    assert try_ == "try:"
    tries = [line.strip() for line in rest if line.startswith("    ")]
    assert len(tries) == 3
    for line in tries:
        assert hive.good(line), line
    first, *progress = hive.said.err.splitlines()
    assert first == "starting queen, drone-1, drone-2, mount …"
    assert {line.split()[0] for line in progress} == {"queen", "drone-1", "drone-2", "mount"}
    assert all(" ready after " in line for line in progress)


@pytest.mark.usefixtures("fuse")
def test_a_shell_sees_a_file_tree(hive: Running) -> None:
    assert {"cap", "dev", "log", "mesh", "n", "proc", "role", "srv"} <= set(hive.sh("ls $M").out.split())
    assert hive.sh("ls $M/n").out.split() == ["drone-1", "drone-2"]
    assert "role=QueenPrimary\n" in hive.sh("cat $M/role/status").out
    namespace = hive.sh("cat $M/proc/ns").out.splitlines()
    assert namespace == [
        *(ROOT / "tests/roles/goldens/QueenPrimary.ns").read_text().splitlines(),
        "mount -c $drone-1 /n/drone-1", "mount -c $drone-2 /n/drone-2",
    ]  # fmt: skip
    golden = (ROOT / "tests/roles/goldens/DroneWorker.ns").read_text()
    assert hive.sh("cat $M/n/drone-1/proc/ns").out == golden


@pytest.mark.usefixtures("fuse")
def test_what_is_wrong_is_said_in_errstr(hive: Running) -> None:
    done = hive.sh("echo nonsense > $M/proc/lifecycle/ctl; cat $M/dev/errstr")
    assert "write error: Invalid argument" in done.err
    assert done.out.startswith("400 unknown_verb: no verb 'nonsense'; the verbs are cordon, drain,")
    assert " trace=" in done.out


@pytest.mark.usefixtures("fuse")
def test_a_reader_that_gives_up_leaves_nothing_behind(hive: Running) -> None:
    before = hive.sh("cat $M/proc/9p/outstanding").out
    began = time.monotonic()
    done = hive.sh("timeout 1 cat $M/log/events >/dev/null; echo $?")
    assert done.out == "124\n"
    assert time.monotonic() - began < 2
    assert hive.sh("cat $M/proc/9p/outstanding").out == before


@pytest.mark.usefixtures("fuse")
def test_who_may_not_is_refused_and_is_written_down_by_name(hive: Running, short: Path) -> None:
    guest = f"spiffe://{hive.state.hive().hive}/user/guest"
    done = hive.sh(
        f"""
        set -e
        warren ca issue $S/pki/ca {guest} --out {short}/guest >/dev/null
        mkdir {short}/mnt
        warren mount "$(grep ^tls $S/run/queen/addr)" {short}/mnt --id {short}/guest
        trap 'warren umount {short}/mnt' EXIT
        echo drain > {short}/mnt/n/drone-1/proc/lifecycle/ctl || echo refused
        """
    )
    assert "Permission denied" in done.err
    assert done.out.splitlines()[0] == "refused"
    log = hive.sh("cat $M/log/net_trace_secure9p.log").out.splitlines()
    assert f" actor={guest} " in log[-1]
    assert " path=/n/drone-1/proc/lifecycle/ctl " in log[-1]
    assert " code=403 " in log[-1]
    assert hive.sh("cat $M/n/drone-1/proc/lifecycle/state").out == "ONLINE\n"


@pytest.mark.usefixtures("fuse")
def test_a_killed_worker_is_back_below_n_within_three_seconds_and_the_log_says_so(hive: Running) -> None:
    before = hive.pid("drone-1")
    began = time.monotonic()
    os.kill(before, signal.SIGKILL)
    golden = (ROOT / "tests/roles/goldens/DroneWorker.ns").read_text()
    back = hive.sh(
        f"""
        until p=$(cat $S/run/drone-1/pid) && [ $p != {before} ] && cat $M/n/drone-1/proc/ns
        do sleep 0.02; done
        """
    )
    assert back.out == golden
    assert time.monotonic() - began < 3
    seen = hive.sh(
        "until grep 'kind=crashed service=drone-1 reason=signal_9' $M/log/events.log; do sleep 0.02; done;"
        "grep ServiceCrashed $M/log/metrics"
    ).out
    assert 'rejected_total{reason="ServiceCrashed"} 1' in seen
    row = next(row for row in status(hive) if row.get("name") == "drone-1")
    assert (row["restarts"], row["pid"]) == ("1", str(hive.pid("drone-1")))


def status(hive: Running) -> list[dict[str, str]]:
    return [json.loads(line) for line in hive.warren("status", "--json").out.splitlines()]


@pytest.mark.usefixtures("fuse")
def test_a_mount_outlives_the_queen(hive: Running) -> None:
    mount = hive.pid("mount")
    os.kill(hive.pid("queen"), signal.SIGKILL)
    done = hive.sh("until cat $M/n/drone-2/proc/ns 2>/dev/null; do sleep 0.02; done; cat $M/role/status")
    assert "role=QueenPrimary" in done.out
    assert hive.pid("mount") == mount


@pytest.mark.usefixtures("fuse")
def test_a_path_under_a_mount_is_that_trees_path(hive: Running) -> None:
    script = """
        cd /
        warren cat $M/dev/version
        cd $M/n && warren ls && warren cat drone-1/dev/version ./../dev/version
        warren ctl $M/proc/lifecycle nonsense
        WARREN_AT=unix!/nowhere warren ls $M/n
        warren ls --at unix!/nowhere $M/n
        warren cat $M/dev/time /hello
        ln -s $M $S/link && warren ls $S/link/n
    """
    done = hive.sh(script, WARREN_STATE="/nowhere")
    names = ["drone-1", "drone-2"]
    version = hive.sh("cat $M/dev/version").out.strip()
    assert done.out.splitlines() == [version, *names, version, version, *names, *names]
    said = done.err.splitlines()
    assert said[0].startswith("warren: /proc/lifecycle/ctl: 400 unknown_verb: no verb 'nonsense'")
    assert said[1].startswith("warren: unix!/nowhere: ")
    assert said[2].startswith("warren cat: the paths lie in two trees, unix!")
    assert len(said) == 3


def test_without_a_mount_the_command_does_the_same(hive: Running) -> None:
    at = ("--state", str(hive.state.directory))
    assert warren("ls", *at, "/n").out == "drone-1\ndrone-2\n"
    assert hive.warren("cat", "/n/drone-2/role/status").out.startswith("role=DroneWorker\n")
    done = warren("write", *at, "/proc/lifecycle/ctl", "nonsense")
    assert done.code == 9
    assert "no verb 'nonsense'" in done.err
    assert warren("ls", "--at", "unix!/x", *at, "/").code == 2


@pytest.mark.usefixtures("fuse")
def test_where_there_is_no_dev_fuse_it_comes_up_and_says_how_to_use_it(short: Path) -> None:
    folder = short / "f"
    script = f"""
        mount -t tmpfs none /dev && ln -s /proc/self/fd /dev/fd && mknod -m 666 /dev/null c 1 3 || exit 99
        mknod -m 666 /dev/urandom c 1 9
        {WARREN} up --state {folder} --detach queen=QueenPrimary
        {WARREN} ls --state {folder} /
        {WARREN} down --state {folder}
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True, env=environment(),
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    way_out = f"use it with warren ls|cat|write --state {folder} PATH"
    assert f"warren: there is no /dev/fuse, so nothing is mounted; {way_out}\n" in done.stderr
    assert f"    warren ls --state {folder} /n\n" in done.stdout
    assert "\nproc\n" in done.stdout
    assert done.stdout.endswith("\ndown\n")


def test_status_is_a_table_and_an_exit_code(hive: Running) -> None:
    done = hive.warren("status")
    assert done.code == 0
    title, head, *rows = done.out.splitlines()
    assert title.startswith(hive.state.hive().hive)
    assert head.split() == ["NAME", "ROLE", "STATE", "PID", "RESTARTS", "SINCE", "REASON"]
    assert {row.split()[0] for row in rows} >= {"queen", "drone-1", "drone-2"}
    assert all(row.split()[2] in ("ONLINE", "DEGRADED", "up") for row in rows)
    assert hive.warren("down", "drone-2").out == "drone-2 is down\n"
    stopped = hive.warren("status")
    assert stopped.code == 7
    assert "stopped" in next(row for row in stopped.out.splitlines() if row.startswith("drone-2"))
    again = hive.warren("up", "--detach")
    assert again.code == 0
    assert hive.warren("up", "--detach").out.startswith("already up: ")
    assert hive.warren("status").code == 0


def test_json_has_the_same(hive: Running) -> None:
    [now] = [json.loads(line) for line in hive.warren("up", "--detach", "--json").out.splitlines()]
    assert (now["hive"], now["state"]) == (hive.state.hive().hive, str(hive.state.directory))
    about, *rows = status(hive)
    assert about["hive"] == now["hive"]
    assert [row["name"] for row in rows] == [row["name"] for row in now["services"]]
    assert set(rows[0]) == {"name", "role", "pid", "state", "lifecycle", "restarts", "since", "reason"}


def test_hives_run_side_by_side_and_down_leaves_nothing(hive: Running, short: Path) -> None:
    other = up(short / "o", "queen=QueenPrimary", "relay-1=SensorRelay")
    pids = [other.pid(name) for name in ("queen", "relay-1", *(["mount"] if mounts(other) else []))]
    pids.append(int((other.state.directory / "lock").read_text().split()[0]))
    try:
        assert other.warren("ls", "/n").out == "relay-1\n"
        assert hive.warren("ls", "/n").out == "drone-1\ndrone-2\n"
        assert other.state.hive().hive != hive.state.hive().hive
        ours, theirs = ((one.state.run("queen") / "addr").read_text() for one in (hive, other))
        assert not set(ours.split()) & set(theirs.split())
    finally:
        last = down(short / "o")
    assert (last.code, last.out) == (0, "down\n")
    gone(pids)
    assert not mounts(other)
    assert not list(other.state.directory.glob("run/*/sock"))
    assert (down(short / "o").code, down(short / "o").out) == (0, "already down\n")
    assert other.warren("status").code == 7
    assert hive.warren("status").code == 0


def mounts(hive: Running) -> list[str]:
    return [one.point for one in mounted() if str(hive.state.directory) in one.source]


def test_kill_everything_and_come_up_again_loses_nothing(short: Path) -> None:
    folder = short / "k"
    hive = up(folder, "queen=QueenPrimary", "relay-1=SensorRelay")
    try:
        name = hive.state.hive()
        lock = int((folder / "lock").read_text().split()[0])
        for pid in [lock, *(hive.pid(path.parent.name) for path in folder.glob("run/*/pid"))]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it went with the one before
                pass
        hive = up(folder)
        assert hive.state.hive() == name
        assert {row["name"] for row in status(hive) if "name" in row} >= {"queen", "relay-1"}
        assert warren("ls", "--state", str(folder), "/n").out == "relay-1\n"
        assert len(mounts(hive)) <= 1
    finally:
        down(folder)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["queen"], 2, "warren up: queen is no NAME=ROLE, such as drone-3=DroneWorker\n"),
        (["q=A", "q=B"], 2, "warren up: q is given two roles; say one\n"),
        (["x=DroneWorker"], 9, "warren: a hive needs a queen; say queen=QueenPrimary too\n"),
        (["queen=QueenPrimary", "x=Drone"], 9, "warren: x=Drone: "),
        (["--mount", "/nowhere/at/all"], 3, "warren: /nowhere/at/all: No such file or directory; "),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(
    tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    done = warren("up", "--state", str(tmp_path / "s"), "--detach", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(says)
    assert not (tmp_path / "s/hive.toml").exists()


def test_status_where_there_is_no_hive(tmp_path: Path) -> None:
    done = warren("status", "--state", str(tmp_path))
    assert done.code == 3
    assert f"there is no hive; make one: warren up --state {tmp_path}" in done.err
    assert warren("down", "--state", str(tmp_path)).out == "already down\n"
