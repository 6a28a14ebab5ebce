"""The programs of a benchmark: built, started, waited for, ended.

    build(secure)               compile loadgen and canned into .cache/bench/, and loadgen-tls
    warren_serving(room)        our server over `room.data` on a unix socket, as a context: its address
    marked_file(path, size)     the file that is read: every 4 KiB begins with its offset
    SERVERS[name](room)         the command line of a server over `room.data`
    Running(name, room)         that server, up and listening, as a context
    Running.load(...)           run loadgen against it, return its figures

Servers: `diod` is Debian's, with SIGPIPE ignored because it dies of it when a
client drops. `warren` is ours, with policy, trace and audit on. `canned` serves
no files: it shows what the load generator itself can do.

Under mutual TLS 1.3, with the identities of `hive`: `warren-tls` is ours,
`warren-token` the same, but every client shows a token and has its rights by
nothing else. `diod-tls` and `canned-tls` are those behind Debian's stunnel.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import hive

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "bench"
FILE = "data"
FILE_SIZE = 64 << 20
BLOCK = 4096
PATIENCE = 20.0


Command = Callable[["Room", int], list[str]]


class BenchError(Exception):
    """The measurement could not be made; says what to do about it."""


def build(secure: bool = False) -> Path:
    """Compile what is older than its sources; return the folder of the programs. TLS only if it is wanted."""
    CACHE.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler: apt-get install gcc libc6-dev")
    programs = {"canned": ["canned.c"], "loadgen": ["loadgen.c"]}
    if secure:
        programs["loadgen-tls"] = ["-DWITH_TLS", "loadgen.c", "-lssl", "-lcrypto"]
    newest = max(path.stat().st_mtime for path in HERE.glob("*.[ch]"))
    for name, words in programs.items():
        program = CACHE / name
        if not program.exists() or program.stat().st_mtime < newest:
            fresh = program.with_suffix(f".{os.getpid()}")
            command = [compiler, "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(fresh), *words]
            if subprocess.run(command, cwd=HERE, check=False).returncode:
                also = ", or apt-get install libssl-dev" if secure else ""
                raise BenchError(f"{name} does not compile: see above{also}")
            fresh.replace(program)  # at once, under the feet of a run beside this one
    return CACHE


def marked_file(path: Path, size: int = FILE_SIZE) -> None:
    with path.open("wb") as file:
        for offset in range(0, size, BLOCK):
            file.write(offset.to_bytes(8, "little").ljust(BLOCK, b"."))


@dataclass(frozen=True)
class Room:
    """The folders of one benchmark: served data, and what the servers keep for themselves."""

    data: Path
    kept: Path

    @classmethod
    def make(cls, where: Path | None = None, secure: bool = False) -> Self:
        """Data in memory where possible, so that no disk is measured; audit on a real disk, as in life."""
        build(secure)
        if where is None and shutil.disk_usage("/dev/shm").free > 8 * FILE_SIZE:
            where = Path("/dev/shm")
        room = cls(
            data=Path(tempfile.mkdtemp(prefix="warren-bench-", dir=where or CACHE)),
            kept=Path(tempfile.mkdtemp(prefix="kept-", dir=CACHE)),
        )
        marked_file(room.data / FILE)
        if secure:
            hive.make(room.hive)
        return room

    @property
    def hive(self) -> Path:
        return self.kept / "hive"

    def remove(self) -> None:
        shutil.rmtree(self.data)
        shutil.rmtree(self.kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def diod(room: Room, port: int) -> list[str]:
    program = shutil.which("diod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise BenchError("no diod to compare with: apt-get install diod")
    return [
        program, "-f", "-n", "-N", "-u", str(os.getuid()), "-c", "/dev/null",
        "-l", f"127.0.0.1:{port}", "-e", str(room.data), "-L", str(room.kept / "diod.log"),
    ]  # fmt: skip


def warren_arguments(room: Room, port: int, name: str = "warren") -> list[str]:
    """What follows the word `warren`: everything a served directory has switched on."""
    served = ["serve", "disk", str(room.data), "--audit", str(room.kept / f"audit-{port}")]
    # Where a token is all that counts, the policy knows nobody who asks.
    who = {"warren": "any", "warren-tls": hive.CLIENT, "warren-token": f"spiffe://{hive.HIVE}/user/nobody"}
    allow = ["--allow", f"{who[name]} {hive.ALLOWED}"]
    if name == "warren":
        return [*served, *allow, "--listen", f"tcp!127.0.0.1!{port}"]
    return [*served, *allow, "--listen", f"tls!127.0.0.1!{port}", "--id", str(room.hive / "server")]


def warren(room: Room, port: int, name: str = "warren") -> list[str]:
    program = Path(sys.executable).with_name("warren")
    if not program.exists():
        raise BenchError(f"{program} does not exist: make setup")
    return [str(program), *warren_arguments(room, port, name)]


@contextmanager
def warren_serving(room: Room) -> Iterator[str]:
    """Our server on a unix socket, for whom its own user mounts; everything switched on."""
    sock = room.kept / "sock"
    program = str(Path(sys.executable).with_name("warren"))
    with (room.kept / "serve.out").open("w+") as said:
        process = subprocess.Popen(
            [program, "serve", "disk", str(room.data), "--audit", str(room.kept / "audit"),
             "--allow", f"local {hive.ALLOWED}", "--listen", f"unix!{sock}"],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + PATIENCE
            while not sock.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise BenchError(f"warren does not listen on {sock}: {said.read().strip()}")
                time.sleep(0.02)
            yield f"unix!{sock}"
        finally:
            process.terminate()
            process.wait(10)


def stunnel(room: Room, port: int, behind: int) -> list[str]:
    """Mutual TLS 1.3 in front of what listens on the port BEHIND. It resumes no session, as we do not."""
    program = shutil.which("stunnel", path=os.environ.get("PATH", "") + ":/usr/bin")
    if program is None:
        raise BenchError("no stunnel to compare with: apt-get install stunnel4")
    me = room.hive / "server"
    settings = f"""
foreground = yes
pid =
syslog = no
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[bench]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{behind}
cert = {me / "cert.pem"}
key = {me / "key.pem"}
CAfile = {me / "ca.pem"}
verifyChain = yes
requireCert = yes
sslVersion = TLSv1.3
options = NO_TICKET
sessionResume = no
"""
    path = room.kept / f"stunnel-{port}.conf"
    path.write_text(settings.lstrip())
    return [program, str(path)]


def canned(room: Room, port: int) -> list[str]:
    return [str(CACHE / "canned"), str(port)]


SERVERS: dict[str, Command] = {"diod": diod, "warren": warren, "canned": canned}
SECURE: dict[str, Command] = {name: partial(warren, name=name) for name in ("warren-tls", "warren-token")}
BEHIND = {"diod-tls": "diod", "canned-tls": "canned"}


class Running:
    """One server over a room, listening from `__enter__` on and gone after `__exit__`."""

    def __init__(self, name: str, room: Room, command: Command | None = None) -> None:
        self.name = name
        self.room = room
        self.port = free_port()
        self.behind: Running | None = None
        if name in BEHIND and command is None:
            self.behind = Running(BEHIND[name], room)
            command = partial(stunnel, behind=self.behind.port)
        self.command = (command or (SERVERS | SECURE)[name])(room, self.port)
        self.aname = str(room.data) if name in ("diod", "diod-tls") else ""
        self.secure = name in SECURE or name in BEHIND

    def __enter__(self) -> Self:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.said = (self.room.kept / f"{self.name}-{self.port}.out").open("w+")
        if self.behind is not None:
            self.behind.__enter__()
        # Python ignores SIGPIPE; restore_signals=False hands that on.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, restore_signals=False
        )
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            self._wait_until_listening()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise BenchError(f"{self.name} does not listen on port {self.port}: {self.last_words()}")

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()
        if self.behind is not None:
            self.behind._end()

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *(self.behind.pids if self.behind is not None else ())]

    def last_words(self) -> str:
        state = self.process.poll()
        lines = Path(self.said.name).read_text(errors="replace").splitlines()[-5:]
        return "; ".join([f"exit status {state}" if state is not None else "still running", *lines])

    def load(self, scenario: Sequence[str], seconds: float, version: str = "9P2000.L") -> dict[str, Any]:
        """Run one scenario of loadgen and return its figures."""
        words = ["-k", "-n", self.aname, "-V", version, "-f", FILE, "-t", str(seconds)]
        for pid in self.pids:
            words += ["-p", str(pid)]
        program, kind = CACHE / "loadgen", "tcp"
        if self.secure:
            program, kind = CACHE / "loadgen-tls", "tls"
            words += ["-i", str(self.room.hive / "client")]
        if self.name == "warren-token":
            words += ["-T", str(self.room.hive / "token"), "-S", hive.SERVER]
        run = subprocess.run(
            [program, *words, "-a", f"{kind}!127.0.0.1!{self.port}", *scenario],
            capture_output=True, text=True, timeout=seconds + 60, check=False,
        )  # fmt: skip
        if run.returncode or self.process.poll() is not None:
            what = f"{' '.join(scenario)} on {self.name}"
            raise BenchError(f"{what}: {run.stderr.strip()} ({self.last_words()})")
        figures: dict[str, Any] = json.loads(run.stdout)
        return figures
