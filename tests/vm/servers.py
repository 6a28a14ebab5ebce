"""Servers on this host for a guest to mount, each on a port of its own on loopback.

    async with served(Disk(directory), ["allow any read /**"]) as here: … here.port
    async with diod(directory, log) as port: …

`served` is an Export in this very process, so a case can reach behind it: do
what makes an event, or see what is parked.

diod is an independent server that the same kernels have long mounted: what
fails against it too is the case's fault, or a limit of diod's that
`test_linux.py` names.
"""

import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from warren.auth.rights import Policy
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node

START_LIMIT = 20.0


@dataclass(frozen=True)
class Served:
    export: Export
    port: int


@asynccontextmanager
async def served(root: Node, rows: Iterable[str]) -> AsyncIterator[Served]:
    """An export of `root` to whoever `rows` allow."""
    export = Export(root, Policy.parse(rows), AuditMemory(), TraceRing())
    async with listening(export, ["tcp!127.0.0.1!0"]) as (address,):
        yield Served(export, int(address.rpartition("!")[2]))


@asynccontextmanager
async def diod(directory: Path, log: Path) -> AsyncIterator[int]:
    port = free_port()
    program = shutil.which("diod") or "/usr/sbin/diod"
    # Without a user database and squashing, as root; nothing of the machine's own configuration.
    command = [program, "-f", "-n", "-N", "-u", "0", "-c", "/dev/null", "-L", str(log)]
    command += ["-l", f"127.0.0.1:{port}", "-e", str(directory)]
    # It dies of SIGPIPE when a client leaves early, and the disposition is inherited.
    async with _running(["sh", "-c", 'trap "" PIPE; exec "$@"', "sh", *command], port):
        yield port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def _running(command: list[str], port: int) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL)
    try:
        await _listening(process, port)
        yield
    finally:
        with trio.CancelScope(shield=True):
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(5):
                await process.wait()
            process.kill()
            await process.wait()


async def _listening(process: trio.Process, port: int) -> None:
    with trio.fail_after(START_LIMIT):
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                # Another process gives no event to wait for; this is the connection's own retry.
                await trio.sleep(0.02)
            else:
                await stream.aclose()
                return
