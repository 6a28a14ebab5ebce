"""One suite for all back ends: the stand-in of the other tests passes it, and so does QEMU."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from warren.servers.vm.backend import Backend, Spec
from warren.servers.vm.backends import usual
from warren.servers.vm.images import Built
from warren.servers.vm.qemu import QemuBackend

from tests.boot.shim import built
from tests.boot.without import without
from tests.servers.vm.place import Shelved, house
from tests.servers.vm.standin import StandIn
from tests.servers.vm.suite import LONG, PROMISES, children

Promise = Callable[[Backend, Spec, Path], Awaitable[None]]
RECIPES = ["standin-microvm", "standin-pc"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_the_stand_in(promise: Promise, tmp_path: Path) -> None:
    await promise(StandIn(), Spec("one", 64 << 20), tmp_path / "place")


async def test_the_stand_in_serves_a_tree_if_it_is_to(tmp_path: Path) -> None:
    await PROMISES[-1](StandIn(), Spec("one", 64 << 20, export=True), tmp_path / "place")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_qemu(promise: Promise, recipe: str, shim: Path, tmp_path: Path) -> None:
    spec = Spec("one", 64 << 20, recipe=recipe, kernel=shim / "standin.elf", initrd=shim / "root.elf")
    await promise(QemuBackend("tcg"), spec, tmp_path / "place")


@pytest.mark.parametrize("on_its_way", [False, True], ids=["quiet", "an answer on its way"])
@pytest.mark.parametrize("recipe", RECIPES)
async def test_a_real_root_task_is_reset_and_found_again(
    recipe: str, on_its_way: bool, shim: Path, tmp_path: Path
) -> None:
    files = {"kernel": shim / "standin.elf", "initrd": shim / "root.elf"}
    image = Built("standin", "standin", "0" * 64, recipe, files, then="exit 0", stops="exit 0")
    async with house(tmp_path, QemuBackend("tcg"), images=Shelved(image)) as h:
        async with h.machine("image standin", "stay", "start") as (m, ctl):
            await h.until(m, "ready")
            for number in range(3):
                await ctl.write(f"tell say waits {number}\n".encode())
                async with await h.files.open(f"{m}/console", os.O_RDONLY | os.O_NONBLOCK) as console:
                    got = b""
                    while b"waits %d" % number not in got:
                        got += await console.record()
                while h.export.statistics()["parked"] != 1:
                    await trio.lowlevel.checkpoint()  # the guest has asked for the next verb
                if on_its_way:
                    await ctl.write(f"tell say {LONG}\n".encode())
                await ctl.write(b"reset\n")
                while (await h.status(m))["state"] != "ready":
                    await trio.lowlevel.checkpoint()
            assert (await h.status(m))["state"] == "ready"
            await ctl.write(b"stop\n")
            told = "".join(await h.until(m, "stopping"))
            assert told.count("kind=ready") == 4
            assert "hung-up" not in told
            assert "ended=stop status=85 verdict=booted" in (await h.all_of(f"{m}/wait")).decode()


async def test_a_real_root_task_boots_as_its_image_does(shim: Path, tmp_path: Path) -> None:
    files = {"kernel": shim / "standin.elf", "initrd": shim / "root.elf"}
    image = Built("standin", "standin", "0" * 64, "standin-microvm", files, then="exit 0", stops="exit 0")
    async with house(tmp_path, QemuBackend("tcg"), images=Shelved(image)) as h:
        async with h.machine("image standin", "start") as (m, _):
            console = (await h.all_of(f"{m}/console")).decode()
            assert "stand-in" in console
            status = await h.status(m)
            assert (status["ended"], status["verdict"], status["code"]) == ("exit", "booted", "0")
            assert status["guest_kernel"] == "standin"
        lines = ("image standin", "share /demo", "start")
        async with h.machine(*lines) as (m, ctl):
            await h.until(m, "ready")
            assert (await h.status(m))["state"] == "ready", "something is shared, so it stays"
            await ctl.write(b"tell say hello there\n")
            await ctl.write(b"stop\n")
            assert "ended=stop" in (await h.all_of(f"{m}/wait")).decode()
            assert "hello there" in (await h.all_of(f"{m}/console")).decode()
    assert children() == set()


def test_every_back_end_that_is_promised_is_there() -> None:
    assert [one.name for one in usual()] == ["qemu-tcg", "qemu-kvm", "libvirt", "firecracker"]


async def test_without_what_speaks_with_qemu_the_back_ends_say_so(shim: Path, tmp_path: Path) -> None:
    files = {"kernel": shim / "standin.elf", "initrd": shim / "root.elf"}
    image = Built("standin", "standin", "0" * 64, "standin-microvm", files)
    with without("qemu"):
        async with house(tmp_path, QemuBackend("tcg"), QemuBackend("kvm"), images=Shelved(image)) as h:
            way_out = "why='qemu.qmp is not installed: pip install ''warren-9p[vm]'''"
            lines = (await h.all_of("/vm/backends")).decode().splitlines()
            assert lines == [f"qemu-tcg=0 {way_out}", f"qemu-kvm=0 {way_out}"]
            async with h.machine("image standin", "start") as (m, _):
                said = (await h.all_of(f"{m}/wait")).decode()
                assert "ended=error" in said
                assert "pip install ''warren-9p[vm]''" in said
    assert children() == set()
