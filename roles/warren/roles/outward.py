"""Serving outward: a worker dials, and then it is the other end that asks.

    await export_to(address, identity, expect, export)      until the connection ends

The TLS connection is made as any other, but its protocol is `warren-export/1`: whoever was dialled may use
the export, as the name in its certificate and under the export's policy. So a worker behind any NAT is
reached by its queen, and listens nowhere. On the other side the listener's gate hands the socket to
`Gate.exports`; `dial(SecureChannel(socket))` makes files of it.
"""

from __future__ import annotations

import time

import trio
from warren.auth import tls
from warren.auth.identity import Identity
from warren.mount.address import connect
from warren.mount.secure import SecureChannel, secured
from warren.serve.export import Export
from warren.serve.stream import serve_stream

LOOK = 1.0


class Carried(trio.abc.Stream):
    """A channel as trio knows streams."""

    def __init__(self, channel: SecureChannel) -> None:
        self.channel = channel

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        buffer = bytearray(max_bytes or 65536)
        try:
            n = await self.channel.receive(memoryview(buffer))
        except OSError as e:
            raise trio.BrokenResourceError from e
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


async def export_to(address: str, identity: Identity, expect: str, export: Export) -> None:
    """Let whom EXPECT means, at ADDRESS, use EXPORT until the connection ends. OSError if it is not had."""
    plain = await connect(address)
    channel = await secured(plain.socket, identity, expect, identity.export_context())
    who = channel.who
    assert who is not None
    assert who.uri is not None
    async with Carried(channel) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(_while_it_holds, identity, who, nursery.cancel_scope)
        await serve_stream(export, stream, who.uri)
        nursery.cancel_scope.cancel()


async def _while_it_holds(identity: Identity, who: tls.Peer, scope: trio.CancelScope) -> None:
    """End the session when the other end's certificate does."""
    while True:
        await trio.sleep(LOOK)
        over = who.not_after is not None and time.time() > who.not_after.timestamp()
        if over or identity.revoked(who.issuer, who.serial):
            scope.cancel()
