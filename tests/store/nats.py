"""Real nats-servers with JetStream, alone or three of them, on free ports and in directories of their own.

They are started and not waited for: the store waits, as it does in life.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Nats:
    """One server: `start` it, `kill` it, start it again."""

    def __init__(self, folder: Path, port: int, *more: str, jetstream: bool = True) -> None:
        self.folder, self.port = folder, port
        self.more = ("-js", "-sd", str(folder), *more) if jetstream else more
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
                [program, "-a", "127.0.0.1", "-p", str(self.port), *self.more],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """As a power cut does, as far as a process can be cut."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def alone(folder: Path, *more: str, jetstream: bool = True) -> Iterator[Nats]:
    """A single server, started; whoever connects waits for it."""
    (port,) = free_ports(1)
    server = Nats(folder, port, *more, jetstream=jetstream)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def cluster(folder: Path) -> Iterator[list[Nats]]:
    """Three servers that know each other and choose who leads."""
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
        yield servers
    finally:
        for server in servers:
            server.kill()
