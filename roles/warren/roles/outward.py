"""Serving outward: a worker dials, and then it is the other end that asks.

    await export_to(address, identity, expect, export)      until the connection ends
    await keep_offering(address, identity, expect, export)  again and again

The TLS connection is made as any other, but its protocol is `warren-export/1`: whoever was dialled may use
the export, as the name in its certificate and under the export's policy. So a worker behind any NAT is
reached by its queen, and listens nowhere. On the other side the listener's gate hands the socket to
`Gate.exports`; `dial(SecureChannel(socket))` makes files of it (see `inward`).

A connection has one authority, and a queen acts for many. So one connection is kept waiting, and as soon
as it is taken into use, which the first byte tells, another is made, up to a limit.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import Final

import trio
from warren.auth import tls
from warren.auth.identity import Identity
from warren.mount.address import connect
from warren.mount.secure import SecureChannel, secured
from warren.serve.export import Export
from warren.serve.stream import serve_stream

LOOK = 1.0
PATIENCE: Final = 5.0  # for a connection and its handshake: whoever has our queen's port may be no queen
_PAUSE: Final = (0.05, 5.0)


class Carried(trio.abc.Stream):
    """A channel as trio knows streams. BEGUN is called when the first bytes come."""

    def __init__(self, channel: SecureChannel, begun: Callable[[], None]) -> None:
        self.channel = channel
        self.begun: Callable[[], None] | None = begun

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        buffer = bytearray(max_bytes or 65536)
        try:
            n = await self.channel.receive(memoryview(buffer))
        except OSError as e:
            raise trio.BrokenResourceError from e
        if n and self.begun is not None:
            begun, self.begun = self.begun, None
            begun()
        return bytes(buffer[:n])

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self.channel.send([memoryview(data)])
        except OSError as e:
            raise trio.BrokenResourceError from e

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self.channel.aclose()


async def export_to(
    address: str, identity: Identity, expect: str, export: Export,
    *, offered: Callable[[], None] = lambda: None, begun: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Let whom EXPECT means, at ADDRESS, use EXPORT until the connection ends. OSError if it is not had.

    OFFERED is called when the connection is there, BEGUN when it is taken into use.
    """
    with trio.move_on_after(PATIENCE) as patience:
        plain = await connect(address)
        channel = await secured(plain.socket, identity, expect, identity.export_context())
    if patience.cancelled_caught:
        raise OSError(errno.ETIMEDOUT, f"{address}: no handshake within {PATIENCE:g} s")
    who = channel.who
    assert who is not None
    assert who.uri is not None
    offered()
    async with Carried(channel, begun) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(_while_it_holds, identity, who, nursery.cancel_scope)
        await serve_stream(export, stream, who.uri)
        nursery.cancel_scope.cancel()


async def keep_offering(
    address: str | Callable[[], str], identity: Identity, expect: str, export: Export,
    *, spare: int = 1, limit: int = 32, tell: Callable[[str], None] = lambda said: None,
) -> None:  # fmt: skip
    """As `export_to`, for good: SPARE connections wait to be used, LIMIT are the most there are.

    What is lost is dialled again, after pauses that grow from 50 ms to 5 s while nothing comes of it. An
    ADDRESS that may change is asked for each time. Cancelled ends all of them.
    """
    await _Offering(address, identity, expect, export, spare, limit, tell).run()


class _Offering:
    """The connections of one worker to one queen."""

    def __init__(
        self, address: str | Callable[[], str], identity: Identity, expect: str, export: Export,
        spare: int, limit: int, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.address, self.identity, self.expect, self.export = address, identity, expect, export
        self.spare, self.limit, self.tell = spare, limit, tell
        self.idle = self.total = self.failures = 0
        self.due = 0.0  # when to dial next
        self.news = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self.news = trio.Event()
                while self.idle < self.spare and self.total < self.limit:
                    await trio.sleep_until(self.due)
                    self.idle += 1
                    self.total += 1
                    nursery.start_soon(self._one)
                await self.news.wait()

    async def _one(self) -> None:
        idle, since, why = True, trio.current_time(), "the connection was closed before it was used"

        def begun() -> None:
            nonlocal idle
            idle = False
            self.idle -= 1
            self.failures = 0
            self.news.set()

        try:
            address = self.address if isinstance(self.address, str) else self.address()
            await export_to(
                address, self.identity, self.expect, self.export,
                offered=lambda: self.tell(f"offered to {address}"), begun=begun,
            )  # fmt: skip
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or str(e)
        if idle:
            self.idle -= 1
            if trio.current_time() - since > _PAUSE[1]:
                self.failures = 0
            pause = min(_PAUSE[0] * 2**self.failures, _PAUSE[1]) * random.uniform(0.5, 1)
            self.failures = min(self.failures + 1, 16)
            self.due = trio.current_time() + pause
            self.tell(f"not offered: {why}; again in {pause:.2g} s")
        self.total -= 1
        self.news.set()


async def _while_it_holds(identity: Identity, who: tls.Peer, scope: trio.CancelScope) -> None:
    """End the session when the other end's certificate does."""
    while True:
        await trio.sleep(LOOK)
        over = who.not_after is not None and time.time() > who.not_after.timestamp()
        if over or identity.revoked(who.issuer, who.serial):
            scope.cancel()
