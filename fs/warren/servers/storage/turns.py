"""One at a time for each key.

    async with turns("a"): ...        others who want "a" wait; "b" does not
    turns.busy("a")                   whether somebody has it or waits for it

A key counts as busy from the moment its turn is asked for, before the first wait. What must not be done to
a thing while anybody is about to use it asks `busy`, and need not wait.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Turns:
    """Locks by key; those that nobody wants are forgotten."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[trio.Lock, list[None]]] = {}

    def busy(self, key: str) -> bool:
        """Whether somebody has the key or waits for it."""
        return key in self._locks

    @asynccontextmanager
    async def __call__(self, key: str) -> AsyncIterator[None]:
        """Have the key to oneself. Cancelled while waiting: one never had it."""
        lock, wanted = self._locks.setdefault(key, (trio.Lock(), []))
        wanted.append(None)
        try:
            async with lock:
                yield
        finally:
            wanted.pop()
            if not wanted:
                del self._locks[key]
