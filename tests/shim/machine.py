"""Boots root tasks in QEMU, for the tests of kernel-shim.

    build = built()                       # make, once per variant and session
    end = await boot(build, Host())       # microvm unless told otherwise
    end.code, end.log

Everything runs under TCG. A machine that does not end within PATIENCE is killed, and then its
end has no code: a test that expects one fails.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import trio
from warren.boot.sel4.abi import Abi, patch

SHIM = Path(__file__).parents[2] / "kernel-shim"
PATIENCE = 60.0
WELL, REFUSED, BOOTINFO, PROTOCOL = 0x2A, 0x2B, 0x2C, 0x2D
FAULT, KERNEL, NO_ROOT, UNKNOWN = 0x31, 0x32, 0x33, 0x34
MACHINES = {"microvm": "microvm,acpi=off,isa-serial=off,rtc=off", "pc": "pc"}


class Serves(Protocol):
    """Whoever is at the other end of COM2."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer until the machine is gone."""


@dataclass(frozen=True)
class Build:
    """What make left: the stand-in and the root task."""

    standin: Path
    root: Path


@dataclass(frozen=True)
class End:
    """How a machine ended: what debug-exit was told (None: it ended otherwise), and what COM1 said."""

    code: int | None
    status: int
    log: str
    began: float  # trio's time of exec


# Past faults, and the object that each is built into.
FAULTS = {
    "": (),
    "privileged": ("root/log.o",),
    "thread": ("root/log.o",),
    "sign": ("root/abi.o",),
    "bootinfo": ("root/entry.o",),
    "irq": ("standin/trap.o",),
    "unzeroed": ("standin/calls.o",),
    "twice": ("standin/calls.o",),
    "unmap": ("standin/calls.o",),
    "user_memory": ("standin/calls.o",),
    "object32": ("root/text.o",),
}


def scratch() -> Path:
    """A folder that lives as long as the session."""
    folder = tempfile.TemporaryDirectory(prefix="warren-shim-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def make(out: Path, *words: str, shim: Path = SHIM) -> subprocess.CompletedProcess[str]:
    line = ["make", "-s", "-j2", "-C", str(shim), f"OUT={out}", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@cache
def good() -> Path:
    """The output folder of a plain build."""
    out = scratch()
    done = make(out)
    assert done.returncode == 0, done.stderr
    return out


def variant(fault: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The plain build with the one object made anew that has the fault."""
    out = scratch() / "out"
    shutil.copytree(good(), out)
    for name in FAULTS[fault]:
        (out / name).unlink()
    return out, make(out, f"FAULT={fault}")


@cache
def built(fault: str = "") -> Build:
    """The images, with one past fault put back."""
    out, done = variant(fault) if fault else (good(), None)
    assert done is None or done.returncode == 0, done.stderr
    return Build(out / "standin.elf", out / "root.elf")


def with_abi(build: Build, abi: Abi) -> Build:
    """The same stand-in, and a root task that has these numbers."""
    root = scratch() / "root.elf"
    root.write_bytes(patch(build.root.read_bytes(), abi))
    return Build(build.standin, root)


def command(build: Build, folder: Path, machine: str, append: str, extra: Sequence[str]) -> list[str]:
    return [
        "qemu-system-x86_64", "-accel", "tcg", "-machine", MACHINES[machine], "-cpu", "max", "-m", "32",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-chardev", f"socket,id=com1,path={folder}/com1", "-device", "isa-serial,chardev=com1,index=0",
        "-chardev", f"socket,id=com2,path={folder}/com2", "-device", "isa-serial,chardev=com2,index=1",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        "-kernel", str(build.standin), "-initrd", str(build.root),
        *(["-append", append] if append else []), *extra,
    ]  # fmt: skip


async def boot(
    build: Build, host: Serves, *, machine: str = "microvm", append: str = "", extra: Sequence[str] = (),
    patience: float = PATIENCE,
) -> End:  # fmt: skip
    """Run one machine to its end, or for PATIENCE seconds; then its status is -1."""
    log, said = bytearray(), bytearray()
    status, began = -1, 0.0

    async def keep(stream: trio.abc.Stream) -> None:
        try:
            while data := await stream.receive_some(65536):
                log.extend(data)
        except trio.BrokenResourceError:
            pass

    with tempfile.TemporaryDirectory(prefix="warren-shim-") as name, trio.move_on_after(patience):
        folder = Path(name)
        com1, com2 = await _listen(folder / "com1"), await _listen(folder / "com2")
        began = trio.current_time()
        process = await trio.lowlevel.open_process(
            command(build, folder, machine, append, extra), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            async with trio.open_nursery() as ends:
                ends.start_soon(_one, com1, keep)
                ends.start_soon(_one, com2, host.serve)
                assert process.stderr is not None
                async for data in process.stderr:
                    said += data
                status = await process.wait()
                if said:  # QEMU itself complained, and perhaps never came
                    ends.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    assert not said, said.decode()
    code = status >> 1 if status > 1 and status & 1 else None
    return End(code, status, log.decode(errors="replace"), began)


async def _listen(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(1)
    return trio.SocketListener(sock)


async def _one(listener: trio.SocketListener, serve: Callable[[trio.abc.Stream], Awaitable[None]]) -> None:
    async with listener:
        stream = await listener.accept()
    async with stream:
        await serve(stream)
