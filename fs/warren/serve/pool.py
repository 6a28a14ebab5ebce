"""Buffers for large frames, under one cap for the process.

A large msize is a promise to accept large frames, not to keep memory for them: a connection holds a
buffer only while a frame is arriving in pieces. Buffers come in powers of two and a few of each
size are kept for the next frame.
"""

from collections import defaultdict

_KEEP = 8
_LEAST = 64


class Pool:
    """At most CAP bytes in use; beyond that `take` raises BufferError and the connection is closed."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.used = 0
        self._free: dict[int, list[bytearray]] = defaultdict(list)

    def take(self, size: int) -> bytearray:
        """A buffer of at least SIZE bytes."""
        n = max(_LEAST, 1 << (size - 1).bit_length())
        if self.used + n > self.cap:
            raise BufferError(f"{self.used} bytes of buffers are in use, the limit is {self.cap}")
        self.used += n
        free = self._free[n]
        return free.pop() if free else bytearray(n)

    def give(self, buffer: bytearray) -> None:
        """It is not used any more."""
        self.used -= len(buffer)
        free = self._free[len(buffer)]
        if len(free) < _KEEP:
            free.append(buffer)
