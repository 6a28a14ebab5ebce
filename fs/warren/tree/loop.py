"""asyncio inside trio, for clients that speak nothing else.

    async with open_loop() as loop:            in a task that stays for as long as the client is needed
        answer = await loop.do(client.ask, "what")     from any task; LoopEnded if it has ended

Work is done in a task of asyncio's, for whichever task of trio asks; what the work calls back is called in
the same thread as everything else.

It is not among the names of `tree`: it is the one door to trio-asyncio, which only some installations have.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio_asyncio  # type: ignore[import-untyped]

T = TypeVar("T")


class LoopEnded(ConnectionError):
    """The loop has ended, and all that ran in it, connections too."""


class Loop:
    """One loop. Made by `open_loop`."""

    def __init__(self, loop: Any) -> None:
        self._loop, self._context = loop, contextvars.copy_context()
        self._open = True

    async def do(self, work: Callable[..., Awaitable[T]], *values: object) -> T:
        """WORK of these VALUES, done in the loop. Cancelled: the work was, too, and has taken note of it.

        Raises what it raises, and `LoopEnded` if the loop ends before it does.
        """
        if not self._open:
            raise LoopEnded
        task = self._context.copy().run(lambda: self._loop.create_task(work(*values)))
        try:
            answer: T = await trio_asyncio.run_aio_future(task)
        except asyncio.CancelledError:  # not by us, or trio would have said so
            raise LoopEnded from None
        return answer


@asynccontextmanager
async def open_loop() -> AsyncIterator[Loop]:
    """A loop for as long as the block; then its tasks are cancelled and waited for."""
    async with trio_asyncio.open_loop() as inner:
        made = Loop(inner)
        try:
            yield made
        finally:
            made._open = False  # what begins from here on, the loop's end might not see


__all__ = ["Loop", "LoopEnded", "open_loop"]
