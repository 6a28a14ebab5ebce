"""/vm as an operator has it: a real hive, a real mount, real machines.

The image of the stand-in is built by the first start that wants it, as it is on a fresh hive; images are kept
in .cache/images, so the next run finds it.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from warren.roles.state import State

from tests.shell.running import environment, warren
from tests.shell.test_hive import Running, down
from tests.sources import ROOT

IMAGES = ROOT / ".cache/images"
LINUX_PATIENCE = 240.0

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.fixture(scope="module")
def hive() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="vm-"))
    try:
        words = ("up", "--state", str(folder / "s"), "--detach", "queen=QueenPrimary")
        done = warren(*words, WARREN_IMAGES=str(IMAGES))
        assert done.code == 0, done.err
        made = Running(State(folder / "s"), done)
        yield made
        with_it = made.sh("exec 3<>$M/vm/clone; printf 'image standin\\nkeep\\nstart\\n' >&3")
        assert with_it.code == 0, with_it
        assert down(folder / "s").code == 0
        assert emulators(made) == set(), "a hive that went down left a machine"
        assert not (folder / "s/vm/queen").exists()
    finally:
        down(folder / "s")
        shutil.rmtree(folder)


def emulators(hive: Running) -> set[int]:
    """Emulators that this hive's queen runs."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                where = os.readlink(f"/proc/{name}/cwd")
            except OSError:
                continue
            if line.startswith(b"qemu-system") and where.startswith(str(hive.state.directory)):
                found.add(int(name))
    return found


def test_a_machine_is_cloned_started_watched_and_looked_at(hive: Running) -> None:
    out = hive.good(
        "exec 3<>$M/vm/clone; read -r v <&3; echo 'image standin' >&3; echo start >&3; "
        "cat $M/vm/$v/console; echo ---; cat $M/vm/$v/status; echo ---; cat $M/vm/$v/wait",
    )
    console, status, wait = out.split("---\n")
    assert "stand-in kernel" in console
    said = dict(line.split("=", 1) for line in status.splitlines())
    assert (said["state"], said["ended"], said["verdict"]) == ("ended", "exit", "booted")
    assert said["owner"] == "local"
    assert (said["boots"], said["backend"], said["code"]) == ("standin", "qemu-tcg", "0")
    assert "verdict=booted" in wait
    assert emulators(hive) == set()


def test_it_is_gone_when_the_shell_lets_go(hive: Running) -> None:
    script = "exec 3<>$M/vm/clone; read -r v <&3; printf 'image standin\\nstay\\nstart\\n' >&3; "
    out = hive.good(script + "grep -m1 kind=ready $M/vm/$v/events; exec 3>&-; echo $v")
    id = out.split()[-1]
    hive.good(f"exec 5<>$M/vm/events; echo from 1 >&5; grep -m1 'kind=gone id={id}$' <&5")
    assert id not in hive.good("ls $M/vm").split()
    assert emulators(hive) == set()


def test_what_is_shared_is_there_for_the_guest_as_a_guest_of_its_owner(hive: Running) -> None:
    hive.good("mkdir -p $M/mailbox/jobs")
    out = hive.good(
        "exec 3<>$M/vm/clone; read -r v <&3; "
        "printf 'image standin\\nshare /mailbox read,write\\nstart\\n' >&3; "
        "grep -m1 kind=ready $M/vm/$v/events; cat $M/vm/$v/ns",
    )
    assert "mount $guest /\nbind $role/mailbox /mailbox  # read,write as local\n" in out


def test_a_wrong_word_says_what_is_wrong(hive: Running) -> None:
    script = "exec 3<>$M/vm/clone; read -r v <&3; echo 'image nosuch' >&3 || cat $M/dev/errstr"
    done = hive.sh(script)
    assert re.match(r"404 not_found: there is no image nosuch; there are .*standin", done.out), done


def test_it_takes_files_and_leaves_an_archive(hive: Running) -> None:
    out = hive.good(
        "exec 3<>$M/vm/clone; read -r v <&3; head -c 300000 /dev/urandom > $S/blob; "
        "cp $S/blob $M/vm/$v/in/blob; cmp $S/blob $M/vm/$v/in/blob; "
        "printf 'image standin\\nstart\\n' >&3; cat $M/vm/$v/wait; "
        "echo export >&3; tar tf $M/vm/$v/out/export.tar",
    )
    assert set(out.splitlines()[1:]) == {"status", "console", "events", "ns", "in/blob"}


def test_the_commands_do_the_same(hive: Running) -> None:
    made = hive.sh("exec 3<>$M/vm/clone; read -r v <&3; printf 'image standin\\nkeep\\n' >&3; echo $v")
    id = made.out.strip()
    for words in ("start", "kill", "finish"):
        done = hive.warren("ctl", f"/vm/{id}", *words.split())
        assert done.code == 0, done.err
    back = hive.warren("cat", "/vm/backends")
    assert "qemu-tcg=" in back.out
    assert id not in hive.warren("ls", "/vm").out.split()


def test_none_is_left_when_the_queen_is_killed(hive: Running) -> None:
    lines = "image standin\\nkeep\\nlimit mem=400M\\nstart\\n"
    script = f"exec 3<>$M/vm/clone; read -r v <&3; printf '{lines}' >&3; "
    hive.good(script + "grep -m1 kind=ready $M/vm/$v/events")
    [pid] = emulators(hive)
    pidfd = os.pidfd_open(pid)
    os.kill(hive.pid("queen"), signal.SIGKILL)
    back = "until [ \"$(cat $M/proc/lifecycle/state 2>/dev/null)\" = ONLINE ]; do :; done"
    names = hive.sh(f"timeout 30 bash -c '{back}; ls $M/vm'").out.split()
    os.close(pidfd)
    assert emulators(hive) == set()
    assert [name for name in names if name.isdigit()] == []
    assert os.listdir(hive.state.directory / "vm/queen") == []


LINUX = r"""
set -eu
mkdir -p $M/mailbox/orders; echo hello > $M/mailbox/orders/send
exec 4<>$M/vm/clone; read -r w <&4
printf 'image linux\nmem 512M\nshare /mailbox\nlimit wall=200s\nstart\n' >&4
grep -m1 -e kind=ready -e kind=ended $M/vm/$w/events
grep -m1 -e kind=serving -e kind=ended $M/vm/$w/events
echo 'tell test read /mailbox/orders/stats' >&4
grep -m1 read.text= $M/vm/$w/events
echo 'tell test write /mailbox/orders/send mine' >&4
grep -m1 'test write.*Permission denied' $M/vm/$w/events
cat $M/vm/$w/status; cat $M/n/vm-$w/proc/lifecycle/state
echo stop >&4; cat $M/vm/$w/wait
"""


def test_a_linux_guest_gets_ready_reads_what_was_shared_and_is_at_n(hive: Running) -> None:
    done = subprocess.run(
        ["bash", "-c", LINUX], capture_output=True, text=True, timeout=LINUX_PATIENCE,
        env=environment(M=str(hive.mnt), LC_ALL="C.UTF-8"),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    ready, serving, read, denied, *rest = done.stdout.splitlines()
    assert "/mailbox/orders/send" in denied
    assert "kind=ready boot_ms=" in ready, ready
    assert "kind=serving at=/n/vm-" in serving, serving
    assert "depth=1" in read, read
    assert "guest_uid=1000" in rest
    assert "ONLINE" in rest
    assert "verdict=booted" in rest[-1]
    assert "depth=1\n" in hive.good("cat $M/mailbox/orders/stats"), "what was shared to be read was written"
