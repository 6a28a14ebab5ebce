"""The back end libvirt, on the QEMU that is here; and firecracker, which only says why not."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from warren.boot.libvirt.driver import folder
from warren.boot.machines.accel import Accelerators
from warren.servers.vm.backend import Backend, Disk, Place, Spec
from warren.servers.vm.firecracker import FirecrackerBackend
from warren.servers.vm.libvirt import LibvirtBackend, RunningLibvirt, _way_out
from warren.servers.vm.limits import groups
from warren.tree import Refused

from tests.boot.shim import built
from tests.boot.tiny import HANG, listens, says, write
from tests.servers.vm.place import house
from tests.servers.vm.suite import PROMISES

CACHE = Path(__file__).parents[3] / ".cache/libvirt"
BACKEND = LibvirtBackend(CACHE, Accelerators(CACHE.with_name("accelerators.json")))  # tried once
PATIENCE = 30

Promise = Callable[[Backend, Spec, Path], Awaitable[None]]


@asynccontextmanager
async def started(
    tmp_path: Path, *code: bytes, recipe: str = "standin-microvm", disks: tuple[Disk, ...] = (),
    adopt: Callable[[int], None] = lambda pid: None,
) -> AsyncIterator[RunningLibvirt]:  # fmt: skip
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    spec = Spec("one", 64 << 20, recipe=recipe, kernel=write(tmp_path, *code), disks=disks)
    with trio.fail_after(PATIENCE):
        async with BACKEND.started(spec, Place(place, adopt=adopt)) as running:
            yield running
    assert not list(folder().rglob("*one-*"))


async def until(stream: trio.abc.ReceiveStream, text: bytes) -> None:
    said = b""
    while text not in said:
        said += (got := await stream.receive_some())
        assert got, said


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_it_keeps_every_promise(promise: Promise, shim: Path, tmp_path: Path) -> None:
    spec = Spec("one", 64 << 20, recipe="standin-pc", kernel=shim / "standin.elf", initrd=shim / "root.elf")
    await promise(BACKEND, spec, tmp_path / "place")


async def test_it_works_here_and_the_probe_proved_it() -> None:
    assert BACKEND.name == "libvirt"
    assert await BACKEND.probe() == (True, "")


@pytest.mark.parametrize(
    ("said", "way"),
    [
        ("invalid argument: Failed to parse user 'libvirt-qemu'", "useradd --system libvirt-qemu"),
        ("no connection driver available for qemu:///embed", "libvirt-daemon-driver-qemu"),
        ("anything else", ""),
    ],
)
def test_what_is_missing_has_a_way_out(said: str, way: str) -> None:
    assert way in _way_out(said)
    assert bool(_way_out(said)) == bool(way)


async def test_without_qemu_it_does_not_work_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    works, why = await BACKEND.probe()
    assert not works
    assert "qemu-system-x86_64 is not installed" in why


async def test_limits_are_set_before_the_first_instruction(tmp_path: Path) -> None:
    seen = []

    def adopt(pid: int) -> None:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        seen.append((os.fsencode(tmp_path / "place/kernel") in words, b"-S" in words))
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)

    async with started(tmp_path, says(b"up"), HANG, adopt=adopt) as m:
        assert seen == [(True, True)]
        await until(m.console, b"up")
        used = m.usage()
        assert used.cpu > 0
        assert used.rss > 1 << 20
        await m.kill()
        assert (await m.wait()).status == -signal.SIGKILL
        assert m.usage().cpu >= used.cpu


async def test_a_restored_machine_is_as_it_was(tmp_path: Path) -> None:
    async with started(tmp_path, says(b"up"), listens(), says(b"one"), listens(), says(b"two"), HANG) as m:
        await until(m.console, b"up")
        await m.snapshot("before")
        for _ in range(2):
            await m.console.send_all(b"!")
            await until(m.console, b"one")
            await m.restore("before")
        await m.console.send_all(b"!!")
        await until(m.console, b"two")
        with pytest.raises(Refused, match="there are before") as refused:
            await m.restore("another")
        assert refused.value.code == 404


async def test_what_a_guest_writes_to_a_disk_stays_in_its_place(tmp_path: Path) -> None:
    disk, shown = tmp_path / "disk", tmp_path / "shown"
    for file in (disk, shown):
        file.write_bytes(b"A" * (1 << 20))
    before = disk.stat()
    disks = (Disk(shown, read_only=True), Disk(disk), Disk(None, 1 << 20))
    async with started(tmp_path, HANG, recipe="linux-pc", disks=disks) as m:
        execute, overlay = m.machine.domain.execute, tmp_path / "place/disk1.qcow2"
        blocks = [block["inserted"] for block in await execute("query-block")]
        assert [block["ro"] for block in blocks] == [True, False, False]
        assert [block["image"].get("backing-filename") for block in blocks] == [None, str(disk), None]
        empty = overlay.stat().st_blocks
        device = "-d /machine/peripheral/virtio-disk1/virtio-backend"  # as the guest would
        for io in (f'qemu-io {device} "write -P 66 0 512"', f"qemu-io {device} flush"):
            assert await execute("human-monitor-command", command_line=io) == ""
        assert overlay.stat().st_blocks > empty
        await m.snapshot("one")
        await m.restore("one")
    after = disk.stat()
    for what in ("st_mtime_ns", "st_uid", "st_mode"):
        assert getattr(after, what) == getattr(before, what)
    assert disk.read_bytes() == shown.read_bytes() == b"A" * (1 << 20)


async def test_its_own_protocol_is_qemus(tmp_path: Path) -> None:
    async with started(tmp_path, HANG) as m:
        answer = await m.qmp(b'{"execute": "query-status"}')
        assert b'"id"' not in answer
        assert await m.qmp(b'{"execute": "query-status", "id": 7}') == answer.replace(b"}}", b'},"id":7}')
        assert b'"CommandNotFound"' in await m.qmp(b'{"execute": "nonsense"}')
        for bad in (b"", b"no json", b"[]", b'{"execute": 1}', b"{" * 100_000):
            with pytest.raises(Refused) as refused:
                await m.qmp(bad)
            assert refused.value.code == 400
        with pytest.raises(Refused) as refused:
            await m.qmp(b'{"execute": "' + b"x" * (1 << 20) + b'"}')
        assert refused.value.code == 413
        await m.stop()  # the button is pressed; this guest does not listen
        assert b'"running"' in await m.qmp(b'{"execute": "query-status"}')
        await m.kill()
        with pytest.raises(Refused):
            await m.qmp(b'{"execute": "query-name"}')


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (Spec("one", 64 << 20, recipe="nonsense"), 400),
        (Spec("one", 64 << 20, recipe="standin-pc"), 400),
        (Spec("one", 64 << 20, recipe="linux-q35-secboot"), 405),
        (Spec("one", 64 << 20, recipe="standin-pc", kernel=Path("/nowhere")), 502),
        (Spec("one", 64 << 20, kernel=Path("/nowhere"), disks=(Disk(None, 0),)), 400),
    ],
)
async def test_what_cannot_be_started_is_refused(tmp_path: Path, spec: Spec, code: int) -> None:
    with pytest.raises(Refused) as refused:
        async with BACKEND.started(spec, Place(tmp_path)):
            pass
    assert refused.value.code == code


async def test_a_machine_of_vm_is_limited_by_it_too(tmp_path: Path) -> None:
    kernel = write(tmp_path, b"\xeb\xfe")  # round and round
    lines = (f"kernel {kernel}", "backend libvirt", "recipe standin-pc", "mem 8M", "limit cpu=0.1", "start")
    where = groups()
    assert where.version, "no control groups can be made here"
    async with house(tmp_path, BACKEND, where=where) as h, h.machine(*lines) as (m, ctl):
        assert "limit=cpu" in (await h.until(m, "limit"))[-1]
        await ctl.write(b"kill\n")
        assert "ended=kill" in (await h.all_of(f"{m}/wait")).decode()
        assert (await h.status(m))["backend"] == "libvirt"


async def test_firecracker_says_what_is_missing_and_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    backend: Backend = FirecrackerBackend()
    works, why = await backend.probe()
    assert not works
    assert "firecracker is not installed" in why
    assert "KVM" in why
    with pytest.raises(Refused) as refused:
        async with backend.started(Spec("one", 64 << 20), Place(Path("/nowhere"))):
            pass
    assert refused.value.code == 405
    assert refused.value.detail == why
