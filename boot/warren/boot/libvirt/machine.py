"""A machine that libvirt runs: made in a folder of its own, and gone whatever happens.

    async with Machine.started(recipe, Wanted(name=..., kernel=...), folder) as m:
        m.console  m.channel  m.export      byte streams, as of `qemu`; they end with the machine
        m.domain                            see `libvirt`
        await m.wait()                      its exit status, and what libvirt says of its end
        await m.kill()

The streams are sockets in FOLDER, which has to be ours alone (0700): we listen, QEMU connects as libvirt
starts it, and the names are removed before the guest's first instruction. The kernel says who connected, and
so which process the machine is; all must be one process. QEMU runs as our user, as our own driver starts it
(see `libvirt_driver`): another could not enter the folder.

What boots is in the folder as links with plain names, so no path of the caller's is on QEMU's command line.

libvirt detaches QEMU; `libvirt_child` says how it is ours all the same, and ends if we are killed.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import trio
from warren.boot.libvirt.child import Child, bury
from warren.boot.libvirt.domain import Domain
from warren.boot.libvirt.driver import folder as driver_folder
from warren.boot.libvirt.driver import private
from warren.boot.libvirt.library import PATIENCE, opened
from warren.boot.libvirt.xml import Parts, domain, line_names, suitable
from warren.boot.machines.lines import Lines
from warren.boot.machines.probe import QEMU
from warren.boot.machines.qemu import Drive
from warren.boot.machines.recipe import Recipe
from warren.tree import Refused

SAID: Final = 4096
SETTLES: Final = 1.0  # seconds in which firmware resets the machine once more; not all does
QUIET: Final = 0.2  # seconds after which it will not do so again
_NOTICES: Final = 5.0  # seconds in which libvirt sees that a process has ended
_CREDENTIALS: Final = struct.Struct("3i")
# What libvirt writes into the log of a machine, between the lines of QEMU itself, and what QEMU writes when
# libvirt ends it, as it does when the guest has powered off.
_LIBVIRTS: Final = re.compile(
    r"\d{4}-\d\d-\d\d [\d:.+]+: (starting up|shutting down|Domain id=)"
    rf"|\S+ qemu\S*: terminating on signal \d+ from pid {os.getpid()} "
)
_COMMAND_ENDS: Final = "-msg timestamp=on\n"


@dataclass(frozen=True)
class Wanted:
    """A machine as it was asked for. What is 0 or empty is as the recipe says."""

    name: str
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    drives: tuple[Drive, ...] = ()
    mem: int = 0
    cpus: int = 0
    accel: str = "tcg"
    export: bool = False


class Ended(NamedTuple):
    """How a machine ended. STATUS is QEMU's exit status, -N for signal N, or None if it is not known; WHY is
    libvirt's word for the cause; SAID is the last that QEMU said, often nothing."""

    status: int | None
    why: str
    said: str


class Machine:
    """One machine. Made by `started`."""

    def __init__(
        self, domain: Domain, child: Child, streams: list[trio.SocketStream], names: Mapping[str, str],
        log: Path,
    ) -> None:  # fmt: skip
        self.domain, self.pid = domain, child.pid
        self.console = streams[0]
        self.lines = Lines(domain, dict(zip(("channel", "export"), streams[1:], strict=False)), names)
        self._one = trio.Lock()  # stops it, or has it go on
        self._child, self._log = child, log
        self._ended: Ended | None = None

    @property
    def channel(self) -> trio.SocketStream:
        return self.lines["channel"]

    @property
    def export(self) -> trio.SocketStream | None:
        return self.lines.get("export")

    async def wait(self) -> Ended:
        """How it ended, once it has. Any number may wait; cancelled has no effect."""
        await self._child.over.wait()
        if self._ended is None:
            with trio.move_on_after(_NOTICES):
                await self.domain.happened("stopped", since=0)
        if self._ended is None:
            end = self.domain.stopped
            self._ended = Ended(self._child.status, end.why if end else "", _words(self._log))
        return self._ended

    async def kill(self) -> None:
        """End it now, and return when it has ended and libvirt has let go of it. Cancelled: as if not."""
        # libvirt would ask QEMU first, and wait ten seconds for one that does not listen.
        self._child.kill()
        with trio.CancelScope(shield=True):
            await self._child.over.wait()
            await self.domain.destroy()
            await self.wait()

    async def pause(self) -> None:
        """The processors stand still. Cancelled: they do, or not."""
        async with self._one:
            await self.domain.suspend()

    async def resume(self) -> None:
        """They go on. Cancelled: they do, or not."""
        async with self._one:
            await self.domain.resume()

    async def reset(self, begins: Callable[[], None]) -> None:
        """As a reset button, with new lines for 9P (see `lines`). BEGINS is called once `channel` and
        `export` are the new ones, before the guest does anything. Raises Refused: 409 if the processors
        stand still, else in libvirt's words; 9P may then be cut off until the next reset. Cancelled: it was
        pressed, or not."""
        # A guest that resets itself ends, and so would this. The firmware of a PC resets a machine that was
        # reset once more, to find it as after power-on: that comes from the guest, and is waited for.
        since = self.domain.seen
        await self.domain.execute("set-action", reboot="reset")
        try:
            async with self._one:
                with trio.CancelScope(shield=True):
                    await self._press(begins)
            latest = trio.current_time() + SETTLES
            with trio.move_on_at(latest) as settled, suppress(Refused):  # it began again, and has ended since
                while True:
                    await self.domain.happened("RESET", since=since, has='"guest":true')
                    since = self.domain.seen
                    settled.deadline = min(latest, trio.current_time() + QUIET)
        finally:
            with trio.CancelScope(shield=True), suppress(Refused):  # it has ended: nothing to set right
                await self.domain.execute("set-action", reboot="shutdown")

    async def _press(self, begins: Callable[[], None]) -> None:
        found = await self.domain.execute("query-status")
        if not found["running"]:
            raise Refused(409, f"the machine stands still ({found['status']}); resume it first")
        await self.lines.change()
        try:
            await self.domain.suspend()
            since = self.domain.seen
            await self.domain.reset()
            with trio.move_on_after(PATIENCE) as late:
                await self.domain.happened("RESET", since=since)
            if late.cancelled_caught:
                raise Refused(504, "the machine did not begin again")
            self.lines.take_up()
            begins()
        finally:
            await self.domain.resume()

    @classmethod
    @asynccontextmanager
    async def started(
        cls, recipe: Recipe, wanted: Wanted, folder: Path, *, adopt: Callable[[int], None] | None = None,
        cache: Path | None = None,
    ) -> AsyncIterator[Machine]:  # fmt: skip
        """The machine, running while the block does. ADOPT is told the process id before the first
        instruction. CACHE: see `libvirt_driver`. Raises Refused: 405 for what libvirt cannot do, 503 if it or
        QEMU is not here, 502 with its words. Cancelled at any point leaves no process, and nothing outside
        FOLDER; a start is waited for to its end."""
        recipe = suitable(recipe)
        if (emulator := shutil.which(QEMU)) is None:
            raise Refused(503, f"{QEMU} is not installed")
        number = str(uuid.uuid4())
        name = f"{wanted.name}-{number[:8]}"
        lines = ["console", "channel", *(["export"] if wanted.export and recipe.export else [])]
        address = private(cache)
        log = driver_folder() / "log/qemu" / f"{name}.log"
        async with AsyncExitStack() as stack:
            listening = {line: _listen(folder / f"{line}.sock", stack) for line in lines}
            xml = domain(recipe, _parts(recipe, wanted, folder, name, number, emulator, lines))
            host = await stack.enter_async_context(opened(address))
            stack.callback(log.unlink, missing_ok=True)
            made: Machine | None = None
            known = await host.create(xml, number)
            try:
                ends = [_accept(listening[line], line) for line in lines]
                streams = [_stream(end, stack) for end, _ in ends]
                if len(pids := {pid for _, pid in ends}) != 1:
                    raise Refused(502, f"more than one process has taken the machine's lines: {sorted(pids)}")
                made = cls(known, child := Child(pids.pop()), streams, line_names(recipe), log)
                stack.callback(made.lines.hang_up)
                if adopt is not None:
                    adopt(made.pid)
                await child.watch()
                await known.execute("set-action", reboot="shutdown")
                await known.resume()
                yield made
            finally:
                with trio.CancelScope(shield=True):
                    if made is not None:
                        await made.kill()
                    else:
                        await known.destroy()
                        bury()


def _parts(
    recipe: Recipe, wanted: Wanted, folder: Path, name: str, number: str, emulator: str, lines: list[str]
) -> Parts:
    """The description's parts, with a link in the folder for each file of the caller's."""

    def link(what: str, file: Path) -> Path:
        (made := folder / what).symlink_to(file.absolute())
        return made

    drives = [
        drive._replace(file=link(f"drive{n}", drive.file)) if drive.file.parent != folder else drive
        for n, drive in enumerate(wanted.drives)
    ]
    return Parts(
        name=name, uuid=number, emulator=emulator, accel=wanted.accel, mem=wanted.mem, cpus=wanted.cpus,
        console=folder / "console.sock", channel=folder / "channel.sock",
        export=folder / "export.sock" if "export" in lines else None,
        kernel=link("kernel", wanted.kernel) if wanted.kernel is not None else None,
        initrd=link("initrd", wanted.initrd) if wanted.initrd is not None else None,
        cmdline=wanted.cmdline, drives=tuple(drives),
    )  # fmt: skip


def _listen(path: Path, stack: AsyncExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    try:
        made.bind(str(path))
    except OSError as e:
        raise Refused(503, f"there is no place for the machine's lines at {path}: {e}") from None
    stack.callback(path.unlink, missing_ok=True)
    made.listen(1)
    return made


def _accept(listening: socket.socket, line: str) -> tuple[socket.socket, int]:
    """The machine's end of a line and its process; the name is gone then."""
    try:
        made, _ = listening.accept()
    except BlockingIOError:
        raise Refused(502, f"QEMU has started and not connected to its {line}") from None
    os.unlink(listening.getsockname())
    who = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(who)
    if uid != os.getuid() or pid <= 0:
        made.close()
        raise Refused(502, f"a process of another user (uid {uid}) has taken the machine's {line}")
    return made, pid


def _stream(end: socket.socket, stack: AsyncExitStack) -> trio.SocketStream:
    end.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    stack.callback(stream.socket.close)
    return stream


def _words(log: Path | None) -> str:
    """The end of what QEMU itself wrote into the log that libvirt keeps."""
    try:
        text = log.read_bytes()[-4 * SAID :].decode("utf-8", "replace") if log else ""
    except OSError:
        return ""
    lines = [line for line in text.rpartition(_COMMAND_ENDS)[2].splitlines() if not _LIBVIRTS.match(line)]
    return "\n".join(lines).strip()[-SAID:]


__all__ = ["Ended", "Machine", "Wanted"]
