"""/cap: what is revoked, and who may mint. The authority's side of the revocation watch.

    /revseq    Stream   a record at once and then one for every change: `seq=N`
    /crl       File     the revocation lists in force, PEM
    /blocks    File     ids of revoked token blocks and minters, a line each
    /keys      File     the certified minters
    /ctl       Ctl      verbs: revoke a certificate or a block
    /status    Text     counts

A watching server reads one record of /revseq, then the three files, and waits for the next record. The
sequence number begins with the time the server started, so it never goes back when it is restarted.
Changes that the `warren ca` and `warren token` commands make in the same directory are seen within POLL
seconds, and lists are signed again before they grow too old to be believed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from warren.auth.blocks import BadText, read_revoked, write_revoked
from warren.auth.ca import CA
from warren.auth.keyfiles import append
from warren.auth.refusal import Refusal
from warren.tree import Ctl, Cursor, Dir, File, Refused, Ring, Stream, Text, verb

POLL: Final = 0.2
RESIGN: Final = 3600.0
WATCHED: Final = ("crl.pem", "blocks", "minters")


class Cap(Dir):
    """The tree of one CA directory. `watch` keeps it true to the directory; run it beside."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.ca = CA(directory)
        self.directory = Path(directory)
        self.ring = Ring(depth=64)
        self.seq = int(time.time()) << 16
        self._seen = self._stamps()
        super().__init__(
            {
                "revseq": Stream(lambda: FromNow(self.ring, self.record())),
                "crl": _file(self.ca.crl),
                "blocks": _file(lambda: self._read("blocks")),
                "keys": _file(lambda: self._read("minters")),
                "ctl": CapCtl(self),
                "status": Text(self.status),
            }
        )

    def record(self) -> bytes:
        return f"seq={self.seq}\n".encode()

    def bump(self) -> None:
        """Something was revoked: every watcher hears of it."""
        self.seq += 1
        self._seen = self._stamps()
        self.ring.append(self.record())

    def status(self) -> str:
        signed = self.ca.certificates()
        revoked = sum(c.revoked is not None for c in signed)
        blocks = len(read_revoked(self._read("blocks").decode()))
        return f"seq={self.seq}\nsigned={len(signed)}\nrevoked={revoked}\nblocks={blocks}\n"

    async def watch(self) -> None:
        """See what others change in the directory, and keep the lists fresh. Runs until cancelled."""
        signed = trio.current_time()
        while True:
            await trio.sleep(POLL)
            if trio.current_time() - signed > RESIGN:
                signed = trio.current_time()
                await trio.to_thread.run_sync(self.ca.sign_lists)
            if self._stamps() != self._seen:
                self.bump()

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _stamps(self) -> list[tuple[int, int]]:
        found = []
        for name in WATCHED:
            try:
                st = (self.directory / name).stat()
                found.append((st.st_mtime_ns, st.st_ino))
            except FileNotFoundError:
                found.append((0, 0))
        return found


class FromNow(Cursor):
    """The state as it is, and then every change."""

    def __init__(self, ring: Ring, first: bytes) -> None:
        self.first: bytes | None = first
        self.rest = ring()

    def next_nowait(self) -> bytes:
        if self.first is not None:
            record, self.first = self.first, None
            return record
        return self.rest.next_nowait()

    async def next(self) -> bytes:
        return await self.rest.next()


def _file(content: Callable[[], bytes]) -> File:
    return File(lambda offset, count: content()[offset : offset + count], size=lambda: len(content()))


class CapCtl(Ctl):
    """What an operator does here."""

    def __init__(self, cap: Cap) -> None:
        self.cap = cap

    @verb
    async def revoke(self, serial: str, reason: str = "unspecified") -> str:
        """Revoke the certificate with this SERIAL, in hexadecimal."""
        try:
            number = int(serial, 16)
        except ValueError:
            raise Refused(400, f"{serial!r} is no serial; read them with warren ca list") from None
        try:
            fresh = await trio.to_thread.run_sync(self.cap.ca.revoke, number, reason)
        except Refusal as e:
            raise Refused(400, str(e)) from None
        self.cap.bump()
        return f"{serial} is revoked" if fresh else f"{serial} was revoked before"

    @verb
    async def block(self, id: str) -> str:
        """Revoke the token block, or the minter, with this ID of 64 hexadecimal digits."""
        try:
            [found] = read_revoked(id)
        except (BadText, ValueError):
            raise Refused(400, f"{id!r} is no id; read it with warren token show") from None
        await trio.to_thread.run_sync(append, self.cap.directory / "blocks", write_revoked(found).encode())
        self.cap.bump()
        return f"{id} is revoked"
