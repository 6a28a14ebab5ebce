"""What a process needs to face a network: an identity that is kept current, a gate, tokens, a watch.

    guard = Guard.of(directory, policy's export, ...)
    async with guard.kept(): ...          files that change are read again, the authority is watched

The files of the identity are looked at every second. New ones are taken whole or not at all: if they are
wrong the old ones stay in force, and it is said why.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio
from warren.auth.identity import Identity
from warren.auth.minters import read
from warren.auth.token import Issuer, by_id
from warren.auth.watch import Freshness
from warren.roles.watch import Watch
from warren.serve.export import Export
from warren.serve.secure import Gate
from warren.serve.tokens import Verifier

LOOK = 1.0
FILES = ("cert.pem", "key.pem", "ca.pem", "crl.pem", "minters")


class Guard:
    """The authority of one process."""

    def __init__(
        self, identity: Identity, *, watch: str | Callable[[], str] | None = None, strict: bool = False,
        aname: str = "", expect: str = "role/*/*", tell: Callable[[str], None] = lambda said: None,
    ) -> None:  # fmt: skip
        self.identity = identity
        self.gate = Gate(identity)
        self.tell = tell
        self.watches, self.aname, self.strict, self.expect = watch, aname, strict, expect
        issuers = self._minters()
        counts = watch is not None or bool(issuers)
        self.verifier = Verifier(by_id(issuers), identity.uri) if counts else None
        self.watch: Watch | None = None
        self._seen = self._stamps()

    def _minters(self) -> list[Issuer]:
        path = self.identity.directory / "minters"
        text = path.read_text() if path.exists() else ""
        return read(text, self.identity.roots, datetime.now(UTC), self.identity.revoked)

    def _stamps(self) -> list[tuple[int, int]]:
        return [_stamp(self.identity.directory / name) for name in FILES]

    def look(self, export: Export) -> None:
        """Take the files as they are now, if they have changed."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self.identity.reload()
            if self.verifier is not None and self.watch is None:
                self.verifier.issuers = by_id(self._minters())
        except (OSError, ValueError) as e:
            self.tell(f"{self.identity.directory}: {e}; what was in force stays so")
            return
        self.tell(f"{self.identity.directory} was read again")
        export.redecide()
        self.gate.recheck()

    @asynccontextmanager
    async def kept(self, export: Export) -> AsyncIterator[None]:
        """Look and watch while the block runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_again, export)
            if self.watches is not None:
                export.freshness = Freshness(self.strict)
                self.watch = Watch(
                    self.watches,
                    self.identity,
                    export,
                    self.gate,
                    export.freshness,
                    self.expect,
                    self.tell,
                    self.aname,
                )
                nursery.start_soon(self.watch.run)
                nursery.start_soon(self._say_when_stale, export.freshness)
            yield
            nursery.cancel_scope.cancel()

    async def _look_again(self, export: Export) -> None:
        while True:
            await trio.sleep(LOOK)
            self.look(export)

    async def _say_when_stale(self, freshness: Freshness) -> None:
        stale = False
        while True:
            await trio.sleep(LOOK)
            if freshness.stale != stale:
                stale = freshness.stale
                self.tell(str(freshness))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        st = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return st.st_mtime_ns, st.st_ino
