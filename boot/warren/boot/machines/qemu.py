"""QEMU as a process of ours: started from a recipe, told by QMP, and gone whatever happens.

    async with Qemu.started(recipe, Boots(kernel=..., initrd=...)) as q:
        q.console       the first serial line, both ways: the log, and what people type
        q.channel       9P: the guest is the client
        q.export        9P the other way round, or None where the recipe has no such port
        await q.reset(begins)    the guest begins again; see there
        q.qmp           see `qmp`
        await q.wait()  how it ended: an exit status, or -N for signal N

**Nothing is on by itself.** The machine has the devices that a recipe asks for and no others: no network, no
display, no monitor, no configuration of the host's. It does not reboot; it ends.

**Nothing is left behind.** The four streams are socket pairs whose other ends QEMU inherits: they have no
name and no port, and nobody else can connect. They end, or break, with it. QEMU is the head of a session of
its own, which is killed when the block ends, and by the kernel when the thread that started it ends. A shell
in between looks whether that has happened already, for between a fork and the request to be killed with
one's parent there is a moment.

What QEMU itself says, a few lines at most if all is well, is kept up to `SAID` bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import trio
from warren.boot.machines.lines import Lines
from warren.boot.machines.probe import QEMU
from warren.boot.machines.qmp import PATIENCE, Qmp, lacking
from warren.boot.machines.recipe import Recipe
from warren.tree import Refused

SAID: Final = 16 << 10
EXPORT: Final = "warren.export"
DEBUG_EXIT: Final = 0xF4
LONGEST_CMDLINE: Final = 2047  # what the oldest kernels take
# Between setpriv and QEMU: if the parent is another by now, ours had died before its death was asked about.
_ORPHAN: Final = '[ "$PPID" = "$0" ] && exec "$@"; echo "whoever wanted this machine has ended"; exit 1'


class Drive(NamedTuple):
    """A file that the guest sees as a disk."""

    file: Path
    format: str = "raw"
    read_only: bool = True


@dataclass(frozen=True)
class Boots:
    """What a machine boots. CMDLINE goes behind the recipe's own. ARGUMENTS are QEMU's own words, as the
    firmware's part of Warren writes them; with MACHINE they say what the machine is, too."""

    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    drives: tuple[Drive, ...] = ()
    arguments: tuple[str, ...] = ()
    machine: bool = False


class Ends(NamedTuple):
    """Descriptors that QEMU inherits."""

    qmp: int
    console: int
    channel: int
    export: int = -1


def arguments(
    recipe: Recipe, boots: Boots, ends: Ends, *, accel: str = "tcg", mem: int = 0, cpus: int = 0,
    name: str = "", cpu: str = "", counted: bool = False,
) -> list[str]:  # fmt: skip
    """QEMU's command line. COUNTED: time in the guest is the number of its instructions, and nothing else."""
    cmdline = " ".join(part for part in (recipe.cmdline, boots.cmdline) if part)
    if len(cmdline.encode()) > LONGEST_CMDLINE:
        raise Refused(413, f"a kernel's command line has at most {LONGEST_CMDLINE} bytes")
    if (boots.kernel is None) != (recipe.boots == "disk"):
        wants = "a kernel" if recipe.boots == "kernel" else "a disk, and no kernel"
        raise Refused(400, f"the recipe {recipe.name} boots {wants}")
    if counted and accel != "tcg":
        raise Refused(400, "only the interpreter counts instructions; use accel tcg")
    line = [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
        "-name", _value(name or recipe.name), "-accel", accel, "-cpu", cpu or recipe.cpu,
        "-m", f"size={(mem or recipe.mem) >> 10}k", "-smp", str(cpus or recipe.cpus),
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]  # fmt: skip
    if not boots.machine:
        line += ["-machine", recipe.machine]
    if recipe.bios:
        line += ["-bios", recipe.bios]
    if counted:
        line += ["-icount", "shift=0,sleep=off"]
    line += _socket("qmp", ends.qmp) + ["-mon", "chardev=qmp,mode=control"]
    line += _socket("console", ends.console) + ["-device", "isa-serial,index=0,chardev=console"]
    line += _socket("channel", ends.channel)
    if recipe.channel == "serial":
        line += ["-device", "isa-serial,index=1,chardev=channel"]
    if recipe.bus != "none":
        line += ["-device", f"virtio-serial-{_bus(recipe)},max_ports=4"]
    if recipe.channel == "virtio":
        line += ["-device", "virtconsole,chardev=channel"]
    if ends.export >= 0:
        line += _socket("export", ends.export) + ["-device", f"virtserialport,chardev=export,name={EXPORT}"]
    if recipe.exits:
        line += ["-device", f"isa-debug-exit,iobase={DEBUG_EXIT:#x},iosize=4"]
    for number, drive in enumerate(boots.drives):
        if recipe.bus == "none":
            raise Refused(400, f"the recipe {recipe.name} has no bus for a disk")
        # The lock of an image is a lock among writers; many machines may read one.
        reading = ",read-only=on,file.locking=off" if drive.read_only else ""
        what = f"id=d{number},if=none,format={drive.format},file={_path(drive.file)}{reading}"
        line += ["-drive", what, "-device", f"virtio-blk-{_bus(recipe)},drive=d{number}"]
    line += boots.arguments
    if boots.kernel is not None:
        line += ["-kernel", os.path.abspath(boots.kernel)]
        line += ["-append", cmdline] if cmdline else []
    if boots.initrd is not None:
        line += ["-initrd", _path(boots.initrd)]
    return line


def _bus(recipe: Recipe) -> str:
    return "pci" if recipe.bus == "pci" else "device"


def _socket(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd}"]


def _value(text: str) -> str:
    """A value as QEMU's options spell it: a comma is doubled."""
    return text.replace(",", ",,")


def _path(file: Path) -> str:
    return _value(os.path.abspath(file))


class Qemu:
    """One machine. Made by `started`."""

    def __init__(
        self, process: subprocess.Popen[bytes], qmp: Qmp, streams: Sequence[trio.SocketStream],
        begun: tuple[float, float],
    ) -> None:  # fmt: skip
        self.pid = process.pid
        self.qmp = qmp
        self.console = streams[0]
        self.lines = Lines(qmp, dict(zip(("channel", "export"), streams[1:], strict=False)))
        self._one = trio.Lock()  # stops it, or has it go on
        self.begun, self.begun_wall = begun  # trio's clock and the wall's, just before the fork
        self.status: int | None = None
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._said = bytearray()
        self._over, self._heard = trio.Event(), trio.Event()
        self._cut = False

    @property
    def channel(self) -> trio.SocketStream:
        return self.lines["channel"]

    @property
    def export(self) -> trio.SocketStream | None:
        return self.lines.get("export")

    @property
    def said(self) -> str:
        """The last that QEMU itself said."""
        text = self._said.decode("utf-8", "replace").strip()
        return f"... {text}" if self._cut else text

    async def wait(self) -> int:
        """How it ended. Any number may wait; cancelled has no effect."""
        await self._over.wait()
        with trio.move_on_after(1):
            await self._heard.wait()
        assert self.status is not None
        return self.status

    async def kill(self) -> None:
        """End it now, and return when it has ended. Cancelled: it will, soon."""
        self._slay()
        await self._over.wait()

    async def power_button(self) -> None:
        """Press it. The guest may not listen."""
        await self.qmp.execute("system_powerdown")

    async def pause(self) -> None:
        """The processors stand still. Cancelled: they do, or not."""
        async with self._one:
            await self.qmp.execute("stop")

    async def resume(self) -> None:
        """They go on. Cancelled: they do, or not."""
        async with self._one:
            await self.qmp.execute("cont")

    async def reset(self, begins: Callable[[], None]) -> None:
        """As a reset button, with new lines for 9P (see `lines`). BEGINS is called once `channel` and
        `export` are the new ones, before the guest does anything. A machine ends when its guest resets it,
        and would of this, so `set-action reboot=reset` comes first.

        Raises Refused: 409 if the processors stand still, else as `qmp`; 9P may then be cut off until the
        next reset. Not to be cancelled once it has begun.
        """
        async with self._one:
            with trio.CancelScope(shield=True):
                await self._reset(begins)

    async def _reset(self, begins: Callable[[], None]) -> None:
        qmp = self.qmp
        if not (found := await qmp.execute("query-status"))["running"]:
            raise Refused(409, f"the machine stands still ({found['status']}); resume it first")
        await self.lines.change()
        try:
            await qmp.execute("stop")
            since = qmp.seen
            await qmp.execute("system_reset")
            with trio.move_on_after(PATIENCE) as late:
                await qmp.event("RESET", since=since)
            if late.cancelled_caught:
                raise Refused(504, "the machine did not begin again")
            self.lines.take_up()
            begins()
        finally:
            await qmp.execute("cont")

    def _slay(self) -> None:
        if self.status is None:  # not yet waited for, so the number is still its own
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    async def _reap(self) -> None:
        """Wait for its end, also while everything else is being cancelled, and take with it what is left of
        its session."""
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self._pidfd)
        self._slay()
        self.status = self._process.wait()
        os.close(self._pidfd)
        self._over.set()

    async def _listen(self, out: trio.lowlevel.FdStream) -> None:
        async with out:
            while data := await out.receive_some(4096):
                self._said += data
                if (extra := len(self._said) - SAID) > 0:
                    del self._said[:extra]
                    self._cut = True
            self._heard.set()

    @classmethod
    @asynccontextmanager
    async def started(
        cls, recipe: Recipe, boots: Boots, *, accel: str = "tcg", mem: int = 0, cpus: int = 0, name: str = "",
        cpu: str = "", export: bool = True, counted: bool = False, paused: bool = False,
        prefix: Sequence[str] = (), adopt: Callable[[int], None] | None = None, folder: Path | None = None,
    ) -> AsyncIterator[Qemu]:  # fmt: skip
        """The machine, from before its first instruction; it ends with the block.

        PREFIX goes before QEMU's words: a program that limits itself and executes the rest. ADOPT is told the
        process id before QEMU runs. FOLDER is where it works. Raises Refused (503) if QEMU is not installed,
        or not what speaks with it, and (502) with its words if it ended at once. Cancelled at any point
        leaves no process.
        """
        if why := lacking():
            raise Refused(503, why)
        async with AsyncExitStack() as stack:
            ours, theirs = _pairs(stack, 4 if export and recipe.export else 3)
            line = arguments(
                recipe, boots, Ends(*(end.fileno() for end in theirs)), accel=accel, mem=mem, cpus=cpus,
                name=name, cpu=cpu, counted=counted,
            )  # fmt: skip
            begun = trio.current_time(), time.time()
            process, said = _spawn([*prefix, *line], [end.fileno() for end in theirs], folder)
            for end in theirs:
                end.close()
            streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ours[1:]]
            made = cls(process, Qmp(ours[0]), streams, begun)
            stack.callback(made.console.socket.close)
            stack.callback(made.lines.hang_up)
            failed: Exception | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made._reap)
                try:
                    nursery.start_soon(made._listen, trio.lowlevel.FdStream(said))
                    nursery.start_soon(made.qmp.run)
                    if adopt is not None:
                        adopt(made.pid)
                    await made._greet(paused)
                    yield made
                except Exception as e:
                    failed = e  # raised below as it is; from in here it would come in a group
                finally:
                    made._slay()
                    nursery.cancel_scope.cancel()
            if failed is not None:
                raise failed

    async def _greet(self, paused: bool) -> None:
        try:
            await self.qmp.ready()
            if not paused:
                await self.qmp.execute("cont")
        except Refused:
            with trio.move_on_after(5):
                await self.wait()
            if self.status is None:
                raise
            if self.qmp.version and self.status > 0 and (self.status, bool(self.said)) != (1, True):
                return  # it began, and a guest in haste has ended it: QEMU itself ends with 1 and a word
            said = self.said or f"it ended with {self.status}"
            raise Refused(502, f"QEMU did not start: {said.splitlines()[-1]}") from None


def _pairs(stack: AsyncExitStack, count: int) -> tuple[list[socket.socket], list[socket.socket]]:
    ours, theirs = zip(*(socket.socketpair() for _ in range(count)), strict=True)
    for end in (*ours, *theirs):
        stack.callback(end.close)
    return list(ours), list(theirs)


def _spawn(line: list[str], fds: list[int], folder: Path | None) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and where it can be read what it says.

    Not async, and never in a worker thread: the kernel takes the end of the thread that forks for the end of
    the parent, and trio's worker threads come and go.
    """
    for tool in ("setpriv", "sh", QEMU):
        if shutil.which(tool) is None:
            raise Refused(503, f"{tool} is not installed; `warren doctor` says what to install")
    guard = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _ORPHAN, str(os.getpid())]
    scratch = str(folder or "/tmp")
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TMPDIR": scratch}
    said, saying = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            [*guard, *line], stdin=subprocess.DEVNULL, stdout=saying, stderr=saying, pass_fds=fds,
            start_new_session=True, cwd=scratch, env=env,
        )  # fmt: skip
    except OSError as e:
        os.close(said)
        raise Refused(502, f"QEMU cannot be started: {e}") from None
    finally:
        os.close(saying)
    return process, said
