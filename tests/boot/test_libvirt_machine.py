"""Machines that libvirt runs, on the QEMU that is here: they do as they are told, and leave nothing."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from warren.boot.libvirt.child import bury
from warren.boot.libvirt.driver import folder, sweep
from warren.boot.libvirt.machine import Machine, Wanted
from warren.boot.machines.qemu import Drive
from warren.boot.machines.recipe import load
from warren.tree import Refused

from tests.boot.tiny import COM2, HANG, WELL, echoes, ends, listens, says, write

CACHE = Path(__file__).parents[2] / ".cache/libvirt"
PATIENCE = 30
RESETS = b"\x66\xba\x64\x00\xb0\xfe\xee" + HANG  # the pulse of the keyboard controller
ODD = "a\"b'c<d>e&f]]>g,h=i $(j) ünïcode"


@asynccontextmanager
async def machine(tmp_path: Path, *code: bytes, kind: str = "standin-pc") -> AsyncIterator[Machine]:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    wanted = Wanted("test", write(tmp_path, *code), export=True)
    with trio.fail_after(PATIENCE):
        async with Machine.started(load(kind), wanted, place, cache=CACHE) as made:
            assert [file.name for file in place.iterdir()] == ["kernel"], "no socket has a name any more"
            yield made
    assert [file.name for file in place.iterdir()] == ["kernel"]
    assert not runs(place)
    assert not list(folder().rglob("*test-*"))


def runs(place: Path) -> list[int]:
    """Processes that name the place on their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                if os.fsencode(place) in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


async def until(stream: trio.abc.ReceiveStream, text: bytes) -> bytes:
    said = b""
    while text not in said:
        said += (got := await stream.receive_some())
        assert got, said
    return said


async def test_an_image_runs_to_its_end(tmp_path: Path) -> None:
    async with machine(tmp_path, says(b"hello"), says(b"channel", COM2), listens(COM2), ends(WELL)) as m:
        await until(m.console, b"hello")
        assert await until(m.channel, b"channel") == b"channel"
        assert m.export is None
        assert runs(tmp_path / "place") == [m.pid]
        await m.channel.send_all(b"!")
        end = await m.wait()
        assert end.status == WELL << 1 | 1
        assert end == await m.wait()
        while await m.console.receive_some():
            pass
        with pytest.raises(Refused):
            await m.domain.resume()


@pytest.mark.parametrize("pressed", [False, True])
async def test_a_reset_machine_begins_again_and_a_guest_that_resets_itself_ends(
    tmp_path: Path, pressed: bool
) -> None:
    async with machine(tmp_path, says(b"up"), listens(), RESETS) as m:
        await until(m.console, b"up")
        if pressed:
            await m.reset(lambda: None)
            await until(m.console, b"up")
        await m.console.send_all(b"!")
        end = await m.wait()
        assert (end.status, end.why) == (0, "shut down")


@pytest.mark.parametrize("kind", ["standin-pc", "linux-pc"])
async def test_lines_end_when_the_machine_is_reset_and_others_begin(tmp_path: Path, kind: str) -> None:
    async with machine(tmp_path, says(b"up"), echoes(COM2), kind=kind) as m:
        await until(m.console, b"up")
        for _ in range(2):
            before = [m.channel, m.export]
            if kind == "standin-pc":
                await m.channel.send_all(b"a" * 20_000)
            await m.reset(lambda: None)
            await until(m.console, b"up")
            assert not {m.channel, m.export} & set(before) - {None}
            for stream in before:
                if stream is not None:
                    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                        await stream.send_all(b"late")
            if kind == "standin-pc":
                await m.channel.send_all(b"hello")
                assert await until(m.channel, b"hello") == b"hello"
        assert (m.export is None) == (kind == "standin-pc")
        await m.pause()
        with pytest.raises(Refused, match="stands still"):
            await m.reset(lambda: None)


async def test_qemu_that_does_not_answer_is_named_and_can_be_ended(tmp_path: Path) -> None:
    async with machine(tmp_path, says(b"up"), HANG) as m:
        await until(m.console, b"up")
        os.kill(m.pid, signal.SIGSTOP)
        m.domain.host.patience = 0.2
        for ask in (m.domain.suspend, m.domain.reset):
            with pytest.raises(Refused) as refused:
                await ask()
            assert refused.value.code == 504
        with trio.fail_after(5):
            await m.kill()


async def test_one_that_is_cancelled_as_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with trio.move_on_after(0.01):
        async with machine(tmp_path, HANG):
            await trio.sleep_forever()
    assert not runs(tmp_path / "place")


async def test_qemus_words_say_why_it_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir(mode=0o700)
    bad = tmp_path / "bad"
    bad.write_bytes(b"no kernel" * 100)
    with pytest.raises(Refused, match="invalid kernel header") as refused:
        async with Machine.started(load("standin-pc"), Wanted("test", bad), tmp_path / "place", cache=CACHE):
            pass
    assert refused.value.code == 502
    assert not runs(tmp_path / "place")
    assert bury() == 0, "it was waited for"


async def test_no_path_of_the_callers_reaches_qemu(tmp_path: Path) -> None:
    odd = tmp_path / ODD
    odd.mkdir()
    disk = odd / "disk"
    disk.write_bytes(bytes(1 << 20))
    initrd = odd / "initrd"
    initrd.write_bytes(b"initrd")
    kernel = write(odd, says(b"up"), HANG)
    (tmp_path / "place").mkdir(mode=0o700)
    wanted = Wanted("test", kernel, initrd, 'a="b" c', (Drive(disk),), mem=96 << 20, export=True)
    async with Machine.started(load("linux-microvm"), wanted, tmp_path / "place", cache=CACHE) as m:
        await until(m.console, b"up")
        line = (await trio.Path(f"/proc/{m.pid}/cmdline").read_bytes()).split(b"\0")
        assert b'console=ttyS0 panic=-1 no_timer_check a="b" c' in line
        assert not [word for word in line if os.fsencode(odd) in word]
        assert m.export is not None
        assert disk.stat().st_uid == os.getuid()


async def test_a_machine_ends_with_the_process_that_wanted_it(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir(mode=0o700)
    code = f"""
        import trio
        from pathlib import Path
        from warren.boot.libvirt.driver import folder
        from warren.boot.libvirt.machine import Machine, Wanted
        from warren.boot.machines.recipe import load

        async def main():
            wanted = Wanted("test", Path({str(write(tmp_path, HANG))!r}))
            place, cache = Path({str(tmp_path / "place")!r}), Path({str(CACHE)!r})
            async with Machine.started(load("standin-pc"), wanted, place, cache=cache) as m:
                print(m.pid, folder(), flush=True)
                await trio.sleep_forever()

        trio.run(main)
        """
    role = await trio.lowlevel.open_process(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
    )
    assert role.stdout is not None
    with trio.fail_after(PATIENCE):
        pid, left = (await until(role.stdout, b"\n")).split()
        fd = os.pidfd_open(int(pid))
        role.kill()
        await trio.lowlevel.wait_readable(fd)
        await role.wait()
    os.close(fd)
    assert await trio.Path(left.decode()).is_dir()
    sweep()
    assert not await trio.Path(left.decode()).exists()
