"""Real nats-servers with JetStream, alone or three of them, on free ports and in a directory of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Nats:
    """One server: `start` it, `kill` it, start it again."""

    def __init__(self, folder: Path, port: int, *more: str) -> None:
        self.folder, self.port, self.more = folder, port, more
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        program = shutil.which("nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        assert program, "nats-server is missing: apt-get install nats-server"
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [program, "-js", "-sd", self.folder, "-a", "127.0.0.1", "-p", str(self.port), *self.more],
                stdout=log,
                stderr=log,
            )

    async def ready(self) -> None:
        """Wait for the port to be open: the server's own word for it goes to a log."""
        with trio.fail_after(10):
            while True:
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / "log").read_text()
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", self.port)).aclose()
                    return
                except OSError:
                    await trio.sleep(0.02)

    def kill(self) -> None:
        """As a power cut does, as far as a process can be cut."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def alone(folder: Path, *more: str) -> Iterator[Nats]:
    """A single server, started; whoever connects waits for it."""
    (port,) = free_ports(1)
    server = Nats(folder, port, *more)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[list[Nats]]:
    """Three servers that know each other and have chosen who leads."""
    ports = free_ports(6)
    routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports[3:])
    servers = [
        Nats(
            folder / f"n{at}", ports[at], "--server_name", f"n{at}", "--cluster_name", "three",
            "--cluster", f"nats://127.0.0.1:{ports[3 + at]}", "--routes", routes,
        )
        for at in range(3)
    ]  # fmt: skip
    try:
        for server in servers:
            server.start()
        for server in servers:
            await server.ready()
        yield servers
    finally:
        for server in servers:
            server.kill()
