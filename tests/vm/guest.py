"""A Linux guest in QEMU, emulated, that reaches chosen servers on this host.

    async with guest("6.1", ports=[port]) as g:
        done = await g.run("mount -t 9p … 10.0.2.100 /mnt && ls /mnt")
        assert done.status == 0, done.output

        async with g.start("cat /mnt/events") as reader:    # meanwhile, on the host …
            await reader.expect(b"kind=fire")

In the guest `address(n)` port 564 is 127.0.0.1:`ports[n]` here, and there is
no other way out.  The servers need not run before something is mounted:
QEMU's own `guestfwd` to a TCP address would connect once, when the machine
starts, so a command is run for each of the guest's connections instead, and
ours (`probe relay`) dials the server anew.

Scripts run at the same time as each other and as the host: each is a job of
the guest's first process, agent.c, whose frames are read here.  Everything
has a time limit, and a guest that stops talking ends with the last lines of
its console in the exception.  QEMU is the plain `pc` machine entered through
the kernel's PVH note: half a second slower than microvm, but its clocks need
no tricks and its devices no ACPI tables of the right age.
"""

import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from warren.boot.images.image import Image

from .images import Unreachable, v9fs

BOOT_LIMIT = 90.0
LIFETIME = 300
"""Seconds until QEMU is ended from outside, whatever became of the test that started it."""

_RUN, _INPUT, _CLOSE, _SIGNAL = 1, 2, 3, 4
_HELLO, _OUTPUT, _EXIT = 16, 17, 18
_HEADER = struct.Struct("<III")
_SCRIPT_MAX = 120 * 1024


class GuestDied(Exception):
    """The guest or its QEMU ended, or never spoke; the text ends with its console."""


@dataclass(frozen=True)
class Result:
    status: int
    """Exit status, or 128 + signal."""
    output: bytes
    """Standard output and standard error, as they came."""

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


@dataclass
class Job:
    """A script that runs in the guest."""

    guest: "Guest"
    number: int
    script: str
    output: bytearray = field(default_factory=bytearray)
    status: int | None = None
    _changed: trio.Event = field(default_factory=trio.Event)

    async def wait(self, limit: float = 30.0) -> Result:
        """Its result.  TimeoutError after `limit` seconds; cancelled or not, the job runs on."""
        await self._until(lambda: self.status is not None, limit, "end")
        assert self.status is not None
        return Result(self.status, bytes(self.output))

    async def expect(self, text: bytes, limit: float = 30.0) -> bytes:
        """All output so far, once it contains `text`."""
        await self._until(lambda: text in self.output, limit, f"say {text!r}")
        return bytes(self.output)

    async def write(self, data: bytes) -> None:
        await self.guest.send(self.number, _INPUT, data)

    async def close_input(self) -> None:
        await self.guest.send(self.number, _CLOSE, b"")

    async def signal(self, number: int) -> None:
        """Signal the job's whole session."""
        await self.guest.send(self.number, _SIGNAL, struct.pack("<I", number))

    async def _until(self, holds: Callable[[], bool], limit: float, what: str) -> None:
        with trio.move_on_after(limit):
            while not holds():
                self.guest.check_alive()
                if self.status is not None:
                    break
                await self._changed.wait()
        if not holds():
            ended = "it is still running" if self.status is None else f"it ended with status {self.status}"
            said = self.output[-2000:].decode(errors="replace")
            raise TimeoutError(
                f"the guest's script did not {what} ({limit} s; {ended})\n"
                f"script: {self.script}\nsaid: {said}\nconsole: {self.guest.console()}"
            )

    def took(self, kind: int, body: bytes) -> None:
        if kind == _OUTPUT:
            self.output += body
        else:
            (self.status,) = struct.unpack("<I", body)
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@dataclass
class Guest:
    release: str
    boot_seconds: float
    _stream: trio.SocketStream
    _console: Path
    _jobs: dict[int, Job] = field(default_factory=dict)
    _numbers: int = 0
    _dead: bool = False
    _sending: trio.Lock = field(default_factory=trio.Lock)

    async def run(self, script: str, limit: float = 30.0) -> Result:
        """Run a script with `sh -c` and wait for it; past `limit` it is killed."""
        async with self.start(script) as job:
            return await job.wait(limit)

    @asynccontextmanager
    async def start(self, script: str) -> AsyncIterator[Job]:
        """Run a script beside the block; what still runs at the block's end is killed."""
        if len(script.encode()) > _SCRIPT_MAX:
            raise ValueError("a script that long must go through a file")
        self.check_alive()
        self._numbers += 1
        job = self._jobs[self._numbers] = Job(self, self._numbers, script)
        try:
            await self.send(job.number, _RUN, script.encode())
            yield job
        finally:
            if job.status is None and not self._dead:
                with trio.move_on_after(5, shield=True):
                    await job.signal(signal.SIGKILL)

    async def send(self, number: int, kind: int, body: bytes) -> None:
        """Cancelled, a frame may be cut, and the guest is of no more use."""
        async with self._sending:
            try:
                await self._stream.send_all(_HEADER.pack(number, kind, len(body)) + body)
            except trio.BrokenResourceError:
                self._dead = True
                self.check_alive()

    def console(self) -> str:
        """The last of what its kernel, its agent and QEMU said."""
        return _tail(self._console)

    def check_alive(self) -> None:
        if self._dead:
            raise GuestDied(f"the guest is gone\n{self.console()}")

    async def receive(self) -> None:
        """Hand the guest's frames to their jobs until it is gone."""
        try:
            while True:
                number, kind, body = await _frame(self._stream)
                job = self._jobs.get(number)
                if job is not None:
                    job.took(kind, body)
                    if kind == _EXIT:
                        del self._jobs[number]
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            self._dead = True
            for job in self._jobs.values():
                job.wake()


@asynccontextmanager
async def guest(series: str, *, ports: Sequence[int]) -> AsyncIterator[Guest]:
    """A booted guest with Debian's kernel of `series`, gone when the block ends.

    Raises `Unreachable` where this machine has not what it takes, before
    anything is started, and `GuestDied` when the guest does not come up.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise Unreachable("there is no qemu-system-x86_64 here")
    image = await trio.to_thread.run_sync(v9fs, series)
    with tempfile.TemporaryDirectory(prefix="warren-vm-") as work:
        console = Path(work) / "console"
        console.touch()
        ours, theirs = socket.socketpair()
        # QEMU's own complaints are told in the same place.
        with theirs, console.open("ab") as complaints:
            relay = Path(work) / "relay"
            shutil.copyfile(image.files["probe"], relay)
            relay.chmod(0o700)
            command = _command(qemu, image, relay, ports, theirs.fileno(), console)
            started = time.monotonic()
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=[theirs.fileno()],
            )
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                release = await _hello(stream, console)
                booted = Guest(release, time.monotonic() - started, stream, console)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(booted.receive)
                    yield booted
                    nursery.cancel_scope.cancel()
        finally:
            await _end(process)


def address(number: int) -> str:
    """The guest's name for the server at `ports[number]`."""
    return f"10.0.2.{100 + number}"


def _command(
    qemu: str, image: Image, relay: Path, ports: Sequence[int], fd: int, console: Path
) -> list[str]:
    # `timeout` leads a process group of its own and outlives a test that was killed with a guest that hangs.
    command = ["timeout", "--kill-after=5", str(LIFETIME), "nice", "-n", "10", qemu]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512"]
    files, words = image.files, image.files["cmdline"].read_text().strip()
    command += ["-kernel", str(files["kernel"]), "-initrd", str(files["initrd"]), "-append", words]
    command += ["-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"]
    command += ["-chardev", f"socket,id=host,fd={fd}", "-device", "virtio-serial-pci"]
    command += ["-device", "virtserialport,chardev=host,name=host"]
    forwards = [f"guestfwd=tcp:{address(n)}:564-cmd:{relay} relay {port}" for n, port in enumerate(ports)]
    command += ["-netdev", ",".join(["user,id=net,restrict=on", *forwards])]
    return command + ["-device", "virtio-net-pci,netdev=net,romfile="]


async def _hello(stream: trio.SocketStream, console: Path) -> str:
    kind, body = 0, b""
    with trio.move_on_after(BOOT_LIMIT):
        try:
            _, kind, body = await _frame(stream)
        except (trio.BrokenResourceError, EOFError):
            pass
    if kind != _HELLO:
        raise GuestDied(f"the guest did not come up within {BOOT_LIMIT} s\n{_tail(console)}")
    return body.decode()


async def _frame(stream: trio.SocketStream) -> tuple[int, int, bytes]:
    number, kind, length = _HEADER.unpack(await _exactly(stream, _HEADER.size))
    return number, kind, await _exactly(stream, length)


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(10):
            await process.wait()
            return
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _tail(console: Path) -> str:
    return console.read_bytes()[-4000:].decode(errors="replace")
