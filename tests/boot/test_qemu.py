"""QEMU as a process: what it is started with, what its streams are, and that nothing of it stays."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.boot.machines import qemu, recipe
from warren.boot.machines.qemu import Boots, Drive, Ends, Qemu, arguments
from warren.tree import Refused

from tests.boot import tiny

ENDS = Ends(5, 6, 7, 8)
PATIENCE = 20


def booted(name: str) -> Boots:
    return Boots(None if recipe.load(name).boots == "disk" else Path("/k"), None, "quiet")


def pairs_of(line: list[str], option: str) -> list[str]:
    return [value for at, value in pairwise(line) if at == option]


# The command line


@pytest.mark.parametrize("name", recipe.names())
def test_nothing_is_on_by_itself(name: str) -> None:
    line = arguments(recipe.load(name), booted(name), ENDS)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(line)
    assert pairs_of(line, "-display") == ["none"]
    assert not {"-netdev", "-nic", "-net", "-monitor", "-vnc"} & set(line)
    sockets = pairs_of(line, "-chardev")
    assert sockets
    assert all(",fd=" in socket for socket in sockets), "a name or a port is a door"


def test_a_recipe_becomes_a_machine() -> None:
    line = arguments(recipe.load("linux-pc"), booted("linux-pc"), ENDS, mem=256 << 20, cpus=2, name="vm,1")
    assert pairs_of(line, "-m") == ["size=262144k"]
    assert pairs_of(line, "-smp") == ["2"]
    assert pairs_of(line, "-name") == ["vm,,1"]
    assert pairs_of(line, "-append") == ["console=ttyS0 panic=-1 no_timer_check quiet"]
    assert "virtserialport,chardev=export,name=warren.export" in pairs_of(line, "-device")


def test_a_comma_in_a_path_is_no_option(tmp_path: Path) -> None:
    odd = tmp_path / "a,readonly=off"
    boots = Boots(Path("/k"), odd, drives=(Drive(odd),))
    line = arguments(recipe.load("linux-pc"), boots, ENDS)
    spelt = f"{tmp_path}/a,,readonly=off"
    assert pairs_of(line, "-initrd") == [spelt]
    assert f"file={spelt}," in pairs_of(line, "-drive")[0]


@pytest.mark.parametrize(
    ("name", "boots", "how", "code"),
    [
        ("standin-pc", Boots(), {}, 400),
        ("linux-q35-secboot", Boots(Path("/k")), {}, 400),
        ("linux-pc", Boots(Path("/k"), cmdline="x" * 2048), {}, 413),
        ("standin-pc", Boots(Path("/k"), drives=(Drive(Path("/d")),)), {}, 400),
        ("standin-pc", Boots(Path("/k")), {"counted": True, "accel": "kvm"}, 400),
    ],
)
def test_what_cannot_be_is_refused(name: str, boots: Boots, how: dict[str, object], code: int) -> None:
    with pytest.raises(Refused) as refused:
        arguments(recipe.load(name), boots, ENDS, **how)  # type: ignore[arg-type]
    assert refused.value.code == code


# A machine


async def until(stream: trio.abc.ReceiveStream, text: bytes) -> bytes:
    said = b""
    while text not in said:
        said += (got := await stream.receive_some())
        assert got, said
    return said


@pytest.mark.parametrize("name", ["standin-microvm", "standin-pc"])
@pytest.mark.parametrize("code", [tiny.WELL, tiny.FAULT])
async def test_a_machine_ends_as_its_guest_wants(tmp_path: Path, name: str, code: int) -> None:
    kernel = tiny.write(tmp_path, tiny.ends(code))
    async with Qemu.started(recipe.load(name), Boots(kernel)) as q:
        with trio.fail_after(PATIENCE):
            assert await q.wait() == code << 1 | 1
        assert q.status == code << 1 | 1
    assert q.said == ""


@pytest.mark.parametrize("port", [tiny.COM1, tiny.COM2])
async def test_the_streams_go_both_ways_and_end_with_the_machine(tmp_path: Path, port: int) -> None:
    boots = Boots(tiny.write(tmp_path, tiny.echoes(port)))
    async with Qemu.started(recipe.load("standin-microvm"), boots) as q:
        stream = q.console if port == tiny.COM1 else q.channel
        heard = b""
        with trio.fail_after(PATIENCE):
            await stream.send_all(b"hello")
            while heard != b"hello":
                heard += await stream.receive_some()
        await q.kill()
        assert q.status == -signal.SIGKILL
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("name", ["standin-microvm", "standin-pc"])
async def test_nothing_of_before_is_on_the_lines_of_a_reset_machine(tmp_path: Path, name: str) -> None:
    """The guest has read some of it, and would answer on the new line while it still runs."""
    boots = Boots(tiny.write(tmp_path, tiny.says(b"up"), tiny.echoes(tiny.COM2)))
    begun: list[trio.SocketStream] = []
    async with Qemu.started(recipe.load(name), boots) as q:
        await q.qmp.execute("set-action", reboot="reset")
        with trio.fail_after(PATIENCE):
            await until(q.console, b"up")
            for _ in range(5):
                await q.channel.send_all(b"a" * 20_000)
                await until(q.channel, b"a")
                await q.reset(lambda: begun.append(q.channel))
                await until(q.console, b"up")  # firmware may reset the machine once more before
                await q.channel.send_all(b"hello")
                assert await until(q.channel, b"hello") == b"hello"
    assert len({id(stream) for stream in begun}) == 5


@pytest.mark.parametrize("name", ["standin-pc", "linux-pc", "linux-microvm"])
async def test_lines_end_when_the_machine_is_reset_and_others_begin(tmp_path: Path, name: str) -> None:
    boots = Boots(tiny.write(tmp_path, tiny.says(b"up"), tiny.HANG))
    async with Qemu.started(recipe.load(name), boots) as q, trio.open_nursery() as nursery:
        heard: list[str] = []

        async def hear(line: str, stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                assert not await stream.receive_some()
            heard.append(line)

        def lines() -> dict[str, trio.SocketStream]:
            return {"channel": q.channel} | ({"export": q.export} if q.export else {})

        await q.qmp.execute("set-action", reboot="reset")
        with trio.fail_after(PATIENCE):
            for _ in range(2):
                await until(q.console, b"up")
                before = lines()
                for line, stream in before.items():
                    nursery.start_soon(hear, line, stream)
                await q.reset(lambda: None)
                while len(heard) < len(before):
                    await trio.lowlevel.checkpoint()
                assert sorted(heard) == sorted(before)
                assert not set(before.values()) & set(lines().values())
                heard.clear()
            await q.pause()
            with pytest.raises(Refused, match="stands still") as refused:
                await q.reset(heard.clear)
            assert refused.value.code == 409
            await q.kill()
            with pytest.raises(Refused, match="QEMU has ended"):
                await q.reset(heard.clear)


async def test_a_paused_machine_waits_until_it_is_told(tmp_path: Path) -> None:
    kernel = tiny.write(tmp_path, tiny.listens(), tiny.ends(tiny.WELL))
    async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel), paused=True) as q:
        assert await q.qmp.execute("query-status") == {
            "status": "prelaunch", "singlestep": False, "running": False,
        }  # fmt: skip
        assert q.status is None
        await q.qmp.execute("cont")
        await q.console.send_all(b"x")
        with trio.fail_after(PATIENCE):
            assert await q.wait() == 85


async def test_what_goes_before_qemu_goes_before_it(tmp_path: Path) -> None:
    pids: list[int] = []
    prefix = ("sh", "-c", 'ulimit -c 0; echo "limits of $$" >&2; exec "$@"', "sh")
    kernel = tiny.write(tmp_path, tiny.ends(tiny.WELL))
    started = Qemu.started(
        recipe.load("standin-microvm"), Boots(kernel), prefix=prefix, adopt=pids.append, folder=tmp_path
    )
    async with started as q:
        with trio.fail_after(PATIENCE):
            await q.wait()
    assert pids == [q.pid]
    assert q.said == f"limits of {q.pid}"


# What is left


async def test_nothing_is_left(tmp_path: Path) -> None:
    kernel = tiny.write(tmp_path, tiny.HANG)
    before, fds = tiny.children(), set(os.listdir("/proc/self/fd"))
    async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel), folder=tmp_path) as q:
        assert tiny.children() - before == {q.pid}
    assert q.status == -signal.SIGKILL
    assert tiny.children() == before
    assert set(os.listdir("/proc/self/fd")) == fds
    assert os.listdir(tmp_path) == ["tiny.elf"]


async def test_who_still_reads_when_the_block_ends_is_not_left_waiting(tmp_path: Path) -> None:
    kernel = tiny.write(tmp_path, tiny.HANG)
    ends: list[str] = []

    async def read(stream: trio.SocketStream) -> None:
        try:
            ends.append(f"{len(await stream.receive_some())} bytes")
        except (trio.ClosedResourceError, trio.BrokenResourceError) as e:
            ends.append(type(e).__name__)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel)) as q:
                nursery.start_soon(read, q.console)
                nursery.start_soon(read, q.channel)
                await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(ends) == 2


async def test_an_error_in_the_block_comes_out_as_it_is_and_ends_the_machine(tmp_path: Path) -> None:
    before = tiny.children()
    with pytest.raises(ValueError, match="mine"):
        async with Qemu.started(recipe.load("standin-microvm"), Boots(tiny.write(tmp_path, tiny.HANG))):
            raise ValueError("mine")
    assert tiny.children() == before


@pytest.mark.parametrize("ms", [0, 1, 3, 8, 15, 25, 60])
async def test_cancelled_at_any_point_leaves_no_process(tmp_path: Path, ms: int) -> None:
    kernel = tiny.write(tmp_path, tiny.HANG)
    before, fds = tiny.children(), set(os.listdir("/proc/self/fd"))
    with trio.move_on_after(ms / 1000) as scope:
        async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel)):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert tiny.children() == before
    assert set(os.listdir("/proc/self/fd")) == fds


KILLED = """
import sys, trio
from pathlib import Path
from warren.boot.machines import recipe
from warren.boot.machines.qemu import Boots, Qemu
async def main():
    async with Qemu.started(recipe.load("standin-microvm"), Boots(Path(sys.argv[1]))) as q:
        print(q.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_a_machine_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    kernel = tiny.write(tmp_path, tiny.HANG)
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(kernel)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout as out:
        machine = os.pidfd_open(int(out.readline()))
        parent.kill()
        assert select.select([machine], [], [], PATIENCE)[0] == [machine]
        os.close(machine)


def test_an_orphan_does_not_begin() -> None:
    guard = ["sh", "-c", qemu._ORPHAN]
    said = subprocess.run([*guard, "1", "echo", "machine"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (1, "whoever wanted this machine has ended\n")
    ours = subprocess.run([*guard, str(os.getpid()), "echo", "machine"], capture_output=True, check=True)
    assert ours.stdout == b"machine\n"


# What goes wrong


async def test_qemus_own_words_are_the_refusal(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="QEMU did not start: qemu: could not open kernel file") as refused:
        async with Qemu.started(recipe.load("standin-microvm"), Boots(tmp_path / "none")):
            raise AssertionError("it started")
    assert refused.value.code == 502


async def test_without_qemu_there_is_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("setpriv", "sh"):
        (tmp_path / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="qemu-system-x86_64 is not installed") as refused:
        async with Qemu.started(recipe.load("standin-microvm"), Boots(Path("/k"))):
            raise AssertionError("it started")
    assert refused.value.code == 503


async def test_what_it_says_is_bounded(tmp_path: Path) -> None:
    prefix = ("sh", "-c", 'yes warning | head -c 50000; exec "$@"', "sh")
    kernel = tiny.write(tmp_path, tiny.ends(tiny.WELL))
    async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel), prefix=prefix) as q:
        with trio.fail_after(PATIENCE):
            await q.wait()
    assert q.said.startswith("... ")
    assert len(q.said) <= qemu.SAID + 4
