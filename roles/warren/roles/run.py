"""One role, one process: the composition root.

    python -m warren.roles --state DIR --name NAME        until SIGTERM

It reads who it is in the hive's state directory, then its role file, and puts together what that says: the
servers, at their places in the role's own trees (`$self`); the namespace over these and over trees that
are elsewhere; one export of it, on a unix socket for this machine and, for a queen, under TLS. A worker
listens nowhere else: it dials its queen and lets itself be mounted there, at /n/NAME.

A role never half starts. A bad file, or one whose signature does not hold, gives the restricted role,
which shows what is wrong and may do little else. What is only out of reach, a queen above all, makes the
role DEGRADED until it is back.

Nothing here knows a server from the inside: `built` names them and hands each its ports. What the role is
meanwhile, its manifest and its namespace, is `inforce`.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import trio
from warren.auth import keyfiles
from warren.auth.identity import Identity
from warren.auth.rights import Policy
from warren.mount import dial
from warren.mount.renew import keep_renewed
from warren.namespaces.export import SpaceRoot
from warren.roles.built import Beside, Rooted, WallClock, build
from warren.roles.guard import Guard
from warren.roles.inforce import InForce
from warren.roles.inward import Inward
from warren.roles.minting import minting
from warren.roles.outward import keep_offering
from warren.roles.reach import Reach, Way
from warren.roles.state import QUEEN, State
from warren.roles.watch import watched
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.servers.ca import JOINING, Ca, joining
from warren.servers.log import Log
from warren.servers.proc import Lifecycle, Proc
from warren.store import Store
from warren.store.open import open_store
from warren.traces.audit import AuditFile
from warren.traces.audit.text import audit_text
from warren.traces.ring import TraceRing
from warren.tree import Node

AWAY = "queen"  # the reason to be degraded while the authority is not heard
LOOK = 0.2
FIRST = 3.0  # seconds that a role waits to hear what is revoked before it says that it is up


class Role:
    """What one process is made of."""

    store: Store

    def __init__(self, state: State, name: str) -> None:
        self.state, self.name = state, name
        self.begun, self.ready_ms = time.time(), 0
        self.clock = WallClock()
        self.hive = state.hive()
        self.identity = Identity.load(state.pki(name))
        self.audit = AuditFile(state.log(name) / "audit", tell=self.tell)
        self.log = Log(state.log(name), self.clock, self.tell, audit_text(self.audit))
        self.inforce = InForce(self)
        self.lifecycle = Lifecycle(self.clock, reread=self.inforce.reload, tell=self.log.event)
        self.proc = Proc(self.lifecycle, ns=self.inforce.ns, boot=self.boot)
        manifest = self.inforce.manifest
        self.guard = Guard(
            self.identity, watch=self._authority(manifest.listens), aname="/cap", strict=manifest.strict,
            tell=self.tell,
        )  # fmt: skip
        self.inward = Inward(self.identity, self.inforce.here)
        self.root = Rooted()
        self.reach = Reach(
            self.root, self.clock, identity=self.identity, inward=self.inward, mint=minting(self.identity)
        )
        self.export = self._export(SpaceRoot(self.inforce.cell, self.reach), self.inforce.policy())
        self.proc.sessions = self.export

    def _export(self, root: Node, policy: Policy) -> Export:
        """A door to ROOT, with the record of all that goes through it."""
        limits = self.inforce.manifest.limits
        made = Export(root, policy, self.audit, TraceRing(), limits, self.guard.verifier)
        made.admit = self.lifecycle.admit
        made.denied = self.log.denied
        return made

    def tell(self, said: str) -> None:
        """To whoever reads the process's log."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        print(f"{now} {said}", file=sys.stderr, flush=True)

    def boot(self) -> Mapping[str, object]:
        """How it started, for /proc/boot."""
        manifest = self.inforce.manifest
        return {
            "role": manifest.role, "name": self.name, "id": self.identity.uri, "manifest": manifest.source,
            "manifest_sha256": manifest.sha256, "verified": self.inforce.verified,
            "restricted": manifest.restricted or "no", "started": self.begun, "ready_ms": self.ready_ms,
            "pid": os.getpid(), "host": socket.gethostname(),
        }  # fmt: skip

    # Where the others are

    def _authority(self, queen: bool) -> str | Callable[[], str]:
        """Whose /cap is watched. A queen watches her own, through the door that her machine has."""
        return self.state.address(self.name) if queen else self.queen

    def queen(self) -> str:
        """Where the queen is now. She may have found another port since."""
        if self.hive.joined:
            return self.hive.queen
        try:
            said = (self.state.run(QUEEN) / "addr").read_text().splitlines()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "the queen has not said yet where she is") from None
        for line in said:
            if line.startswith("tls!"):
                return line
        raise OSError(errno.ENOENT, "the queen listens on no network")

    def _port(self) -> int:
        """The port of last time, else the hive's, else any: the first that is free."""
        wished = [self.hive.port]
        for name in ("addr.last", "addr"):
            try:
                said = (self.state.run(self.name) / name).read_text().splitlines()
                wished[:0] = [int(line.rpartition("!")[2]) for line in said if line.startswith("tls!")]
            except (FileNotFoundError, ValueError):
                continue
        for port in wished:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        return 0

    def _tell_moved(self, names: Sequence[str]) -> None:
        """Whoever has joined dials what it was told then: say so when that is another place now."""
        for name in names:
            port = name.rpartition("!")[2]
            if name.startswith("tls!") and port != str(self.hive.port):
                self.tell(f"port {self.hive.port} is taken; listening on {name}")
                self.log.event("moved", address=name, wished=self.hive.port)

    # Running

    async def run(self) -> None:
        """Serve until cancelled, which ends every connection."""
        manifest = self.inforce.manifest
        kept = open_store(manifest.store, self.state.directory / "store", self.name)
        async with kept as self.store, trio.open_nursery() as nursery:
            beside: list[Beside] = [self.audit.keep, self.lifecycle.keep, self._know_queen]
            if self.hive.joined:
                beside.append(self._keep_renewed)
            for serve in manifest.serves:
                built = build(serve, self)
                self.root.put(serve.names, built.node)
                beside += built.beside
            self.inforce.compose()
            await nursery.start(self.reach.run)
            await nursery.start(self.inward.run)
            for work in beside:
                nursery.start_soon(work)
            addresses = [self.state.address(self.name)]
            if manifest.listens:
                addresses.append(f"tls!127.0.0.1!{self._port()}")
                self.guard.gate.exports = self.inward.offer
            async with (
                self.guard.kept(self.export),
                listening(self.export, addresses, self.guard.gate) as names,
            ):
                said = "".join(f"{name}\n" for name in names)
                keyfiles.write_whole(self.state.run(self.name) / "addr", said.encode())
                self._tell_moved(names)
                for _ in manifest.exports_to:
                    nursery.start_soon(self._offer)
                await self._first_word()
                gc.collect()
                gc.freeze()  # what a role is made of stays: to look through it again held up everybody
                self.ready_ms = round((time.time() - self.begun) * 1000)
                self.lifecycle.ready()
                await self._hear()

    def ca(self) -> Node:
        """The authority's tree, and the door for those who have no certificate yet."""
        ca = Ca(
            self.state.ca, self.store, queen=f"role/{self.inforce.manifest.role}/{self.name}",
            alarm=lambda kind, **values: self.log.event("alarm", what=kind, **values), tell=self.log.event,
        )  # fmt: skip
        self.guard.gate.join = self._export(joining(ca), Policy.parse(JOINING))
        return ca

    async def _offer(self) -> None:
        """Let the queen use what we export, for as long as she is there."""
        await keep_offering(self.queen, self.identity, "role/*/*", self.export, tell=self.tell)

    async def _know_queen(self) -> None:
        """Know where the queen is, which may change."""
        while True:
            try:
                self.reach.ways["$queen"] = Way(self.queen(), expect="role/*/*")
            except OSError:
                self.reach.ways.pop("$queen", None)
            await trio.sleep(LOOK)

    async def _keep_renewed(self) -> None:
        """Where no keeper holds the authority's key, ask the queen for the next certificate in time."""
        me = self.identity

        def reach() -> dial:
            return dial(self.queen(), identity=me, expect="role/*/*")

        await keep_renewed(me.directory, reach, tell=self.tell)

    async def _first_word(self) -> None:
        """Wait for the authority, but not for ever: what it revoked should be known before anybody comes."""
        assert self.guard.watch is not None
        try:
            await watched(self.guard.watch, FIRST)
        except OSError as e:
            self.tell(e.strerror or str(e))

    async def _hear(self) -> None:
        """Be degraded while the authority is not heard."""
        while True:
            fresh = self.export.freshness
            if fresh is not None and not fresh.live:
                self.lifecycle.degrade(AWAY, "the authority is not heard; what it revokes is not known here")
            else:
                self.lifecycle.recover(AWAY)
            await trio.sleep(LOOK)

    def close(self) -> None:
        """Write down what is left."""
        self.lifecycle.offline()
        self.log.close()
        self.audit.close()


async def serve_role(state: State, name: str) -> None:
    """Be that role until SIGTERM or SIGINT."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        role = Role(state, name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(role.run)
                await anext(signals)
                nursery.cancel_scope.cancel()
        finally:
            role.close()
