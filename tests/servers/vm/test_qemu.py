"""The back ends of QEMU, with QEMU: machines that run for real, and limits that bite."""

import json
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from warren.boot.machines.probe import image
from warren.servers.vm.backend import Disk, Place, Spec
from warren.servers.vm.limits import groups, leftovers
from warren.servers.vm.qcow2 import make
from warren.servers.vm.qemu import QemuBackend
from warren.tree import Refused

from tests.servers.vm.place import House, house
from tests.servers.vm.suite import children

TCG = QemuBackend("tcg")
PC = ("recipe standin-pc", "mem 8M")
DISK = ("recipe linux-pc", "mem 16M")


def spinning() -> bytes:
    """The image of the probe, which goes round and round instead."""
    found = image()
    at = found.index(b"\xb9", 52 + 32 + 12)
    return found[:at] + b"\xeb\xfe" + found[at + 2 :]


@pytest.fixture
def spin(tmp_path: Path) -> Path:
    path = tmp_path / "spin.elf"
    path.write_bytes(spinning())
    return path


async def test_a_kernel_of_ones_own_runs_and_leaves(tmp_path: Path) -> None:
    (tmp_path / "k.elf").write_bytes(image())
    async with house(tmp_path, TCG) as h, h.machine(f"kernel {tmp_path}/k.elf", *PC, "start") as (m, _):
        line = (await h.all_of(f"{m}/wait")).decode()
        assert "ended=exit code=0 status=85 verdict=error" in line, line  # it never said that it was ready


async def test_what_the_emulator_says_no_to_is_told_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "k.elf").write_bytes(b"no kernel at all" * 64)
    async with house(tmp_path, TCG) as h, h.machine(f"kernel {tmp_path}/k.elf", *PC, "start") as (m, _):
        line = (await h.all_of(f"{m}/wait")).decode()
        assert "ended=error" in line
        assert "QEMU did not start: " in line


async def test_verbs_reach_the_emulator(spin: Path, tmp_path: Path) -> None:
    async with house(tmp_path, TCG) as h, h.machine(f"kernel {spin}", *PC, "start") as (m, ctl):
        await h.until(m, "running")
        assert b'"running"' in await _qmp(h, m, '{"execute": "query-status"}')
        await ctl.write(b"pause\n")
        assert b'"paused"' in await _qmp(h, m, '{"execute": "query-status"}')
        await ctl.write(b"resume\n")
        await ctl.write(b"reset\n")
        assert b'"running"' in await _qmp(h, m, '{"execute": "query-status"}')
        assert (await h.status(m))["state"] == "running"
        await ctl.write(b"kill\n")
        line = (await h.all_of(f"{m}/wait")).decode()
        assert line.startswith("id=1 ended=kill verdict=error")


async def _qmp(h: House, m: str, command: str) -> bytes:
    async with await h.files.open(f"{m}/qmp", os.O_RDWR) as file:
        await file.write(command.encode())
        return bytes(await file.pread(65536, 0))


async def _write(h: House, m: str, value: int, at: int, size: int) -> None:
    """Write to the first disk, as its guest would."""
    for command in (f"write -P {value} {at} {size}", "flush"):
        line = {"command-line": f'qemu-io d0 "{command}"'}
        said = await _qmp(h, m, json.dumps({"execute": "human-monitor-command", "arguments": line}))
        assert b"error" not in said, said


def on_disk(path: Path, at: int, size: int) -> bytes:
    """What an overlay has there, read by hand; of the file behind it where it has nothing."""
    raw = path.read_bytes()
    name_at, name_size = struct.unpack_from(">QI", raw, 8)
    [table] = struct.unpack_from(">Q", raw, 40)
    out = bytearray()
    for offset in range(at, at + size, 512):
        number = offset >> 16
        [second] = struct.unpack_from(">Q", raw, table + 8 * (number >> 13))
        second &= 0x00FFFFFFFFFFFE00
        [cluster] = struct.unpack_from(">Q", raw, second + 8 * (number & 8191)) if second else (0,)
        cluster &= 0x00FFFFFFFFFFFE00
        if cluster:
            out += raw[cluster + (offset & 65535) :][:512]
        elif name_at:
            out += Path(raw[name_at : name_at + name_size].decode()).read_bytes()[offset:][:512]
        else:
            out += bytes(512)
    return bytes(out)


@pytest.mark.parametrize("recipe", ["linux-pc", "linux-microvm"])
async def test_a_snapshot_has_the_disk_as_it_was(recipe: str, spin: Path, tmp_path: Path) -> None:
    lines = (f"kernel {spin}", f"recipe {recipe}", "mem 16M", "disk 1M", "start")
    async with house(tmp_path, TCG) as h, h.machine(*lines) as (m, ctl):
        await h.until(m, "running")
        disk = h.folder / "1/run/disk0.qcow2"
        await _write(h, m, 1, 0, 4096)
        await ctl.write(b"snapshot one\n")
        await _write(h, m, 2, 0, 4096)
        assert on_disk(disk, 0, 4096) == bytes([2]) * 4096
        await ctl.write(b"snapshot two\nrestore one\n")
        assert on_disk(disk, 0, 4096) == bytes([1]) * 4096
        await ctl.write(b"restore two\n")
        assert on_disk(disk, 0, 4096) == bytes([2]) * 4096
        assert b'"running"' in await _qmp(h, m, '{"execute": "query-status"}')
        with pytest.raises(OSError, match="there are one, two"):
            await ctl.write(b"restore three\n")


async def test_a_disk_shows_a_file_and_never_writes_to_it(spin: Path, tmp_path: Path) -> None:
    was = bytes([7]) * 65536 + bytes([8]) * 65536
    (tmp_path / "disk.img").write_bytes(was)
    lines = (f"kernel {spin}", *DISK, f"disk {tmp_path}/disk.img", "start")
    async with house(tmp_path, TCG) as h, h.machine(*lines) as (m, _):
        await h.until(m, "running")
        await _write(h, m, 9, 4096, 512)
        disk = h.folder / "1/run/disk0.qcow2"
        changed = was[:4096] + bytes([9]) * 512 + was[4608:]
        assert on_disk(disk, 0, len(was)) == changed
    assert (tmp_path / "disk.img").read_bytes() == was


@pytest.mark.parametrize("size", [512, 1 << 20, 600 << 20, 5 << 30])
async def test_an_overlay_is_whole_by_the_emulators_own_check(size: int, spin: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    spec = Spec("one", 16 << 20, recipe="linux-pc", kernel=spin, disks=(Disk(None, size),))
    async with TCG.started(spec, Place(place)) as running:
        qmp = running.q.qmp
        [found] = [block["inserted"] for block in await qmp.execute("query-block") if block.get("inserted")]
        assert found["image"]["virtual-size"] == size
        for at, value in ((0, 5), (size - 512, 6)):
            for command in (f"write -P {value} {at} 512", "flush"):
                line = f'qemu-io d0 "{command}"'
                assert "error" not in await qmp.execute("human-monitor-command", command_line=line)
            assert on_disk(place / "disk0.qcow2", at, 512) == bytes([value]) * 512


@pytest.mark.parametrize("size", [0, -1, 1 << 60])
def test_no_disk_has_such_a_size(size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no disk has"):
        make(tmp_path / "x", size)


# Limits


async def test_memory_is_limited_by_a_group_and_named(spin: Path, tmp_path: Path) -> None:
    lines = (f"kernel {spin}", *PC, "limit mem=8M", "start")
    async with house(tmp_path, TCG, where=groups()) as h, h.machine(*lines) as (m, _):
        line = (await h.all_of(f"{m}/wait")).decode()
        assert "ended=limit limit=mem" in line, line
        assert (await h.status(m))["limits_by"].startswith("cgroup")


async def test_memory_is_limited_by_the_watch_where_there_are_no_groups(spin: Path, tmp_path: Path) -> None:
    lines = (f"kernel {spin}", *PC, "limit mem=8M", "start")
    async with house(tmp_path, TCG) as h, h.machine(*lines) as (m, _):
        line = (await h.all_of(f"{m}/wait")).decode()
        assert "ended=limit limit=mem" in line, line
        assert (await h.status(m))["limits_by"] == "watch"


async def test_a_processor_is_limited_by_a_group_and_it_shows(spin: Path, tmp_path: Path) -> None:
    lines = (f"kernel {spin}", *PC, "limit cpu=0.1", "start")
    async with house(tmp_path, TCG, where=groups()) as h, h.machine(*lines) as (m, _):
        events = await h.until(m, "limit")
        assert "limit=cpu" in events[-1]
        status = await h.status(m)
        assert int(status["throttled"]) > 0
        assert float(status["cpu_seconds"]) < 0.7 * float(status["uptime"])


async def test_processors_are_counted_where_there_are_no_groups(spin: Path, tmp_path: Path) -> None:
    lines = (f"kernel {spin}", *PC, "limit cpu=0.5", "start")
    async with house(tmp_path, TCG) as h, h.machine(*lines) as (m, _):
        await h.until(m, "running")
        running = h.vm.machines["1"].run.running
        assert running is not None
        assert len(os.sched_getaffinity(running.q.pid)) == 1  # type: ignore[attr-defined]


async def test_a_disk_that_grows_too_large_ends_the_machine_at_once(spin: Path, tmp_path: Path) -> None:
    lines = (f"kernel {spin}", *DISK, "disk 64M", "limit disk=2M", "start")
    async with house(tmp_path, TCG) as h, h.machine(*lines) as (m, _):
        await h.until(m, "running")
        try:
            await _write(h, m, 1, 0, 8 << 20)
        except OSError:
            pass  # it was ended while it answered
        assert "ended=limit limit=disk" in (await h.all_of(f"{m}/wait")).decode()


async def test_groups_are_gone_with_their_machines(spin: Path, tmp_path: Path) -> None:
    where = groups()
    assert where.version, "no control groups can be made here"
    lines = (f"kernel {spin}", *PC, "limit cpu=1 mem=300M", "start")
    async with house(tmp_path, TCG, where=where) as h:
        async with h.machine(*lines) as (m, _):
            await h.until(m, "running")
            assert len(leftovers(where, h.vm.prefix)) == len(where.where)
        await h.gone(m)
        assert leftovers(where, h.vm.prefix) == []
    assert children() == set()


SERVER = """
    import sys, trio
    from pathlib import Path
    from warren.servers.vm.limits import groups
    from warren.servers.vm.qemu import QemuBackend
    from tests.servers.vm.place import house

    async def main():
        async with house(Path(sys.argv[1]), QemuBackend("tcg"), where=groups()) as h:
            lines = "recipe linux-pc", "mem 16M", "disk 1M", "limit mem=300M", "start"
            async with h.machine(f"kernel {sys.argv[2]}", *lines) as (m, _):
                await h.until(m, "running")
                print(h.vm.machines["1"].run.running.q.pid, flush=True)
                await trio.sleep_forever()

    trio.run(main)
"""


async def test_a_role_that_is_killed_takes_its_machines_along_and_the_next_sweeps(
    spin: Path, tmp_path: Path
) -> None:
    line = [sys.executable, "-c", textwrap.dedent(SERVER), str(tmp_path), str(spin)]
    server = await trio.lowlevel.open_process(line, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    assert server.stdout is not None
    pid = int(await server.stdout.receive_some(64))
    pidfd = os.pidfd_open(pid)
    server.kill()
    await server.wait()
    await server.stdout.aclose()
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(pidfd)  # the emulator has ended
    os.close(pidfd)
    assert list((tmp_path / "vm").glob("*/run/disk0.qcow2")), "the test wants something left to be swept"
    where = groups()
    async with house(tmp_path, TCG, where=where) as h:
        assert list(h.folder.iterdir()) == []
        assert leftovers(where, h.vm.prefix) == []


async def test_a_recipe_that_is_none_is_refused(spin: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no recipe"):
        async with TCG.started(Spec("one", 8 << 20, recipe="nosuch", kernel=spin), Place(tmp_path)):
            pass
