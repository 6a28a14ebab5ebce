"""A channel that is lent: its user may not close it.

The line of a machine outlives what is spoken on it: after a reset another conversation begins there.
"""

from __future__ import annotations

import trio


class Lent(trio.abc.Stream):
    """STREAM, for somebody who will close what they were given."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
