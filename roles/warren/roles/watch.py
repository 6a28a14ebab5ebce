"""The revocation watch: what the authority revokes reaches the sessions of this server.

    await watch(address, identity, gate, verifier, export, freshness)      runs until cancelled

It dials the authority's `/cap`, reads one record of /revseq, then the lists, the blocks and the minters,
puts them in force, and waits for the next record. In force means: connections of revoked certificates
are closed, sessions whose token has a revoked block end, what is open is decided anew and what is parked
and no longer allowed is cancelled. When the connection breaks it is dialled again, a little later each
time; nothing is forgotten meanwhile, and `freshness` counts the seconds.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from datetime import UTC, datetime

import trio
from warren.auth.blocks import read_revoked
from warren.auth.identity import Identity
from warren.auth.minters import read
from warren.auth.token import by_id
from warren.auth.watch import Freshness
from warren.mount import Files, dial
from warren.serve.export import Export
from warren.serve.secure import Gate
from warren.serve.tokens import Verifier

ALIVE = 2.0  # seconds between looks at whether the authority still answers
_LATEST = 5.0


class Watch:
    """One server's watch of its authority."""

    def __init__(
        self,
        address: str | Callable[[], str],
        identity: Identity,
        export: Export,
        gate: Gate | None,
        freshness: Freshness,
        expect: str = "role/*/*",
        tell: Callable[[str], None] = lambda said: None,
        aname: str = "",
    ) -> None:
        self.aname = aname  # where below the address the authority's tree is
        self.address = address if isinstance(address, str) else "its address"
        self._where = address
        self.identity, self.export, self.gate = identity, export, gate
        self.freshness, self.expect, self.tell = freshness, expect, tell
        self.applied = trio.lowlevel.ParkingLot()
        self._said = ""

    async def run(self) -> None:
        """Watch until cancelled."""
        pause = 0.1
        while True:
            try:
                if not isinstance(self._where, str):
                    self.address = self._where()  # whoever listens on a port it was given may get another
                me, expect = self.identity, self.expect
                async with dial(self.address, self.aname, identity=me, expect=expect) as files:
                    await self._follow(files)
            except* (OSError, ValueError) as group:  # whatever it said that cannot be understood, too
                self._tell(_first(group))
            if self.freshness.live:
                pause = 0.1
            self.freshness.lost()
            await trio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, _LATEST)

    def _tell(self, e: BaseException) -> None:
        """Say why there is no watch: once, until that changes or the authority was heard again."""
        text = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        text = text.partition(" trace=")[0].removeprefix(f"{self.address}: ")
        barred = isinstance(e, OSError) and e.errno in (errno.EACCES, errno.EPERM)
        said = f"the authority at {self.address} {'refuses us' if barred else 'is out of reach'}: {text}"
        if said != self._said:
            self._said = said
            self.tell(said)

    async def _follow(self, files: Files) -> None:
        """Put in force whatever comes, until the connection breaks."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._see_alive, files, nursery.cancel_scope)
            stream = await files.stream("/revseq")
            while record := await stream.record():
                seq = int(record.decode().strip().removeprefix("seq="))
                await self._apply(files, seq)
            nursery.cancel_scope.cancel()

    async def _see_alive(self, files: Files, scope: trio.CancelScope) -> None:
        """A parked read does not notice a peer that went silent; this does."""
        while True:
            await trio.sleep(ALIVE)
            try:
                with trio.fail_after(ALIVE):
                    await files.stat("/revseq")
                self.freshness.alive()
            except (OSError, trio.TooSlowError):
                scope.cancel()

    async def _apply(self, files: Files, seq: int) -> None:
        lists, blocks = await files.read("/crl"), await files.read("/blocks")
        minters = await files.read("/keys")
        changed = False
        if lists and self.identity.with_crl(lists):
            changed = True
        verifier = self.export.verifier
        if verifier is not None:
            changed = self._verify_by(verifier, blocks, minters) or changed
        self.freshness.heard(seq)
        self._said = ""
        if changed:
            self.export.redecide()
            if self.gate is not None:
                self.gate.recheck()  # last, for it also closes the sessions that just ended
        self.applied.unpark_all()

    def _verify_by(self, verifier: Verifier, blocks: bytes, minters: bytes) -> bool:
        revoked = frozenset(read_revoked(blocks.decode()))
        me = self.identity
        issuers = by_id(read(minters.decode(), me.roots, datetime.now(UTC), me.revoked))
        if revoked == verifier.revoked and issuers == verifier.issuers:
            return False
        verifier.revoked, verifier.issuers = revoked, issuers
        return True


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    e: BaseException = group
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    return e


async def watched(watch: Watch, patience: float) -> None:
    """Return once the watch has heard from the authority; OSError if it does not in PATIENCE seconds."""
    with trio.move_on_after(patience):
        while not watch.freshness.live:
            await watch.applied.park()
        return
    raise OSError(errno.ETIMEDOUT, f"the authority at {watch.address} did not answer in {patience:g} s")
