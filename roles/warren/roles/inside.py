"""A role inside a machine: the worker that the first process starts (see `init`), already without rights.

    /n/hive/role, role.sig   the role manifest that the host wants run here, and its signature
    /n/hive/proc/boot        what became of it is written here, `state=ready` when it is served
    /n/hive/ctl              what the host wants then, a verb a record:
        say TEXT             a line in the log
        test NAME [WORD...]  try something and report it: rights root mount orphan, read PATH, write PATH TEXT
        again                read the role afresh, in a new process
        exit N, stop         switch the machine off

What may run of what the host wants is the affair of `asked`: a role that does not hold leaves the restricted
one, which says why.

The role is served on the port `warren.export`, where the host is the client. Who that is, the port says: it
leads to the host and nowhere else, so the host is HOST here, and rows of the role file about a queen are
about it. A role that exports to nobody, the restricted one above all, is served to nobody there.

`$queen` is the host too. What it shares is at /n/hive for every program of this machine, through the kernel;
in the tree that is served it is not shown again, for whoever is served here has it already.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio
from warren.auth.rights import Policy
from warren.mount import Files
from warren.namespaces.export import Cell, SpaceRoot
from warren.p9.client import VERSIONS
from warren.roles.asked import HERE, Found, found, parsed
from warren.roles.built import Rooted, WallClock
from warren.roles.init import AGAIN, HIVE, is_read_only, rights, say
from warren.roles.serves import Serve, count, names
from warren.roles.trials import tried
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.dev import Dev
from warren.servers.log import Log
from warren.servers.proc import Lifecycle, Proc
from warren.servers.role import RoleFiles
from warren.store import Store
from warren.store.memory import MemoryStore
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Caller, Node, Refused, split
from warren.tree.report import legible

DOMAIN: Final = "machine"
HOST: Final = f"spiffe://{DOMAIN}/role/QueenPrimary/host"
MOST: Final = 256 << 10  # bytes of a role file
PIECE: Final = 4096
RESTRICTED: Final = "restricted"


class Ways:
    """The trees of the namespace: our own, and nobody else's."""

    def __init__(self, root: Node) -> None:
        self.root = root

    def local(self, address: str) -> Node | None:
        return self.root if address == "$self" else None

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        said = f"{address} is the host here, which has its trees itself"
        raise Refused(502, said, errno=errno.EHOSTUNREACH)


class Inside:
    """What the worker is made of. It is the port behind /role as well."""

    def __init__(
        self, name: str, what: Found, store: Store, began: float, dialect: str = ""
    ) -> None:
        self.name, self.what, self.store, self.began = name, what, store, began
        self.dialect = dialect
        self.clock = WallClock()
        manifest = what.manifest
        self.log = Log(None, self.clock, say)
        self.lifecycle = Lifecycle(self.clock, reread=self.reload, tell=self.log.event)
        self.proc = Proc(self.lifecycle, ns=self.ns, boot=self.boot)
        self.root = Rooted()
        self.beside: list[Callable[[], Awaitable[None]]] = []
        for serve in manifest.serves:
            self.root.put(serve.names, self._built(serve))
        self.cell = Cell(manifest.space)
        policy: Policy = manifest.policy.in_hive(DOMAIN)
        audit, ring = AuditMemory(), TraceRing()
        self.export = Export(SpaceRoot(self.cell, Ways(self.root)), policy, audit, ring, manifest.limits)
        self.export.admit = self.lifecycle.admit
        self.export.denied = self.log.denied
        self.proc.sessions = self.export
        if manifest.restricted:
            self.lifecycle.degrade(RESTRICTED, manifest.restricted)

    def _built(self, serve: Serve) -> Node:
        """The server that a line asks for."""
        options = serve.options
        match serve.server:
            case "dev":
                return Dev(self.clock, version("warren-9p"), self.caps)
            case "proc":
                return self.proc
            case "role":
                return RoleFiles(self)
            case "log":
                return self.log
            case "srv":
                from warren.servers.srv import Srv

                return Srv(self.clock, self._no_post, lambda name: None, self.log.event)
            case "ram":
                from warren.servers.ram import Ram

                dirs = names(options["dirs"]) if "dirs" in options else ()
                return Ram(count(options.get("size", "16M")), count(options.get("files", "4096")), dirs)
            case "mailbox":
                from warren.servers.mailbox import Mailbox

                mailbox = Mailbox(self.store, self.clock)
                self.beside.append(mailbox.keep)
                return mailbox
            case "task":
                from warren.servers.task import Tasks

                tasks = Tasks(self.store, self.clock)
                self.beside.append(tasks.keep)
                return tasks
            case "demo":
                from warren.servers.demo import Demo

                return Demo()
        raise Refused(405, f"a machine has no server {serve.server}; it has {', '.join(HERE)}")

    def _no_post(self, name: str, address: str, subject: str) -> None:
        raise Refused(403, "a machine reaches nobody but its host, so nothing can be posted here")

    def caps(self) -> str:
        served = sorted({serve.server for serve in self.what.manifest.serves})
        return "\n".join([
            f"build.version={version('warren-9p')}", *(f"9p.{dialect}" for dialect in VERSIONS),
            *(f"serve.{server}" for server in served), "store.memory",
        ])  # fmt: skip

    # The port behind /role

    def text(self) -> str:
        return self.what.manifest.text

    def rows(self) -> str:
        return "".join(f"{row}\n" for row in self.what.manifest.policy.rows)

    def ns(self) -> str:
        return self.cell.space.lines()

    def status(self) -> Mapping[str, object]:
        manifest = self.what.manifest
        return {
            "role": manifest.role, "name": self.name, "state": self.lifecycle.state,
            "policy_rows": len(manifest.policy.rows), "manifest_sha256": manifest.sha256,
            "verified": self.what.verified, "restricted": manifest.restricted or "no",
        }  # fmt: skip

    async def reload(self) -> str:
        raise Refused(405, "the host says what runs here; it writes `again` to this machine's ctl")

    async def load(self, name: str) -> str:
        raise Refused(405, "the host says what runs here; give it another role, then `again`")

    def validate(self, text: str) -> str:
        from warren.roles.changes import compare

        return compare(self.what.manifest, parsed(text, "validate"))

    # What the host is told

    def boot(self) -> Mapping[str, object]:
        """How it started: for /proc/boot here, and for the host."""
        manifest = self.what.manifest
        held = rights()
        return {
            "role": manifest.role, "name": self.name, "verified": self.what.verified,
            "restricted": (manifest.restricted or "no")[:400], "manifest_sha256": manifest.sha256,
            "kernel": os.uname().release, "uid": held["uid"], "caps": f"{held['bounding']:x}",
            "no_new_privs": held["no_new_privs"], "root": "ro" if is_read_only("/") else "rw",
            "exports": "yes" if self.what.manifest.exports_to else "no",
            "dialect": self.dialect, "host": socket.gethostname(),
            "worker_ms": round((time.monotonic() - self.began) * 1000),
            "uptime_ms": round(float(Path("/proc/uptime").read_text().split()[0]) * 1000),
        }  # fmt: skip

    async def run(self, port: int) -> int:
        """Serve, tell the host, and do what it wants; the exit code."""
        async with trio.open_nursery() as nursery:
            for work in self.beside:
                nursery.start_soon(work)
            nursery.start_soon(self.lifecycle.keep)
            if port >= 0 and self.what.manifest.exports_to:
                nursery.start_soon(self._serve, port)
            self.lifecycle.ready()
            await tell({"state": "ready", **self.boot()})
            code = await self._follow()
            nursery.cancel_scope.cancel()
        return code

    async def _serve(self, port: int) -> None:
        """The host may hang up and come again; nobody else can."""
        while True:
            async with trio.lowlevel.FdStream(os.dup(port)) as stream:
                await serve_stream(self.export, stream, HOST)
            await trio.sleep(0.2)

    async def _follow(self) -> int:
        """Do what the host wants until it wants an end, or is gone."""
        # One record a read, and still blocking: that is what O_NONBLOCK means to the server.
        fd = await trio.to_thread.run_sync(os.open, f"{HIVE}/ctl", os.O_RDONLY | os.O_NONBLOCK)
        while True:
            try:
                record = await trio.to_thread.run_sync(os.read, fd, PIECE, abandon_on_cancel=True)
            except OSError as e:
                say(f"the host is gone: {e.strerror}")
                return 0
            if not record:
                return 0
            for line in record.decode(errors="replace").splitlines():
                self.log.event("told", verb=line[:200])
                try:
                    code = await self._do(split(line))
                except (OSError, ValueError) as e:
                    await tell({"error": f"{line[:100]}: {e}"[:400]})
                    continue
                if code is not None:
                    return code

    async def _do(self, words: list[str]) -> int | None:
        match words:
            case ["say", *text]:
                say(" ".join(text))
                await tell({"said": " ".join(text)})
            case ["test", name, *more]:
                await tell(await trio.to_thread.run_sync(tried, name, more))
            case ["again"]:
                await tell({"state": "again"})
                return AGAIN
            case ["stop"]:
                return await self._end(0)
            case ["exit", code] if re.fullmatch(r"\d{1,3}", code) and int(code) < 256 and int(code) != AGAIN:
                return await self._end(int(code))
            case [verb, *_]:
                raise ValueError(f"no verb is {verb}; there are say, test, again, exit N and stop")
        return None

    async def _end(self, code: int) -> int:
        await tell({"state": "ended", "code": code})
        return code


async def tell(said: Mapping[str, object]) -> None:
    await trio.to_thread.run_sync(report, said)


def report(said: Mapping[str, object]) -> None:
    """Say it to the host, in one write."""
    fd = os.open(f"{HIVE}/proc/boot", os.O_WRONLY)
    with open(fd, "wb", buffering=0) as file:
        file.write("".join(f"{key}={legible(value)}\n" for key, value in said.items()).encode())


def read(name: str) -> str:
    """A file of the host's, which may be as it likes."""
    with open(f"{HIVE}/{name}", "rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise OSError(errno.EFBIG, f"more than {MOST} bytes; a role is shorter", f"{HIVE}/{name}")
    return data.decode()


def work(words: Mapping[str, str], port: int) -> int:
    """Be the role until the host wants something else; what the first process is to make of it."""
    try:
        return _work(words, port)
    except Exception as e:
        report({"state": "failed", "error": f"{type(e).__name__}: {e}"[:400]})
        raise


def _work(words: Mapping[str, str], port: int) -> int:
    began = time.monotonic()
    what = found(read("role"), read("role.sig"), words.get("warren.key", ""))
    if what.manifest.restricted:
        say(f"restricted: {what.manifest.restricted}")

    async def main() -> int:
        async with MemoryStore() as store:
            name, dialect = words.get("warren.name", "guest"), words.get("dialect", "")
            return await Inside(name, what, store, began, dialect).run(port)

    return trio.run(main)
