"""Servers on this host for a guest to mount, each on a port of its own on loopback.

    async with warren("disk", str(directory), "--allow", "any read /**") as port: …
    async with diod(directory) as port: …

diod is an independent server that the same kernels have long mounted: what
fails against it too is the case's fault, or a limit of diod's that
`test_linux.py` names.
"""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

START_LIMIT = 20.0


@asynccontextmanager
async def warren(*arguments: str) -> AsyncIterator[int]:
    """`warren serve …` in a process of its own; yields its port."""
    port = free_port()
    command = [sys.executable, "-c", "import sys; from warren.shell.main import main; sys.exit(main())"]
    command += ["serve", *arguments, "--listen", f"tcp!127.0.0.1!{port}"]
    async with _running(command, port):
        yield port


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
                raise RuntimeError(f"{process.args} ended with status {process.returncode}")
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                # Another process gives no event to wait for; this is the connection's own retry.
                await trio.sleep(0.02)
            else:
                await stream.aclose()
                return
