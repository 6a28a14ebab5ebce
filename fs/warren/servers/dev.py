"""/dev: what every role has at hand.

    /errstr     Text    your newest error
    /time       Text    now, as `s=` seconds since the epoch and `utc=` ISO 8601
    /random     bytes without end, from the system; what is written is thrown away
    /zero       bytes of zero without end
    /null       nothing to read, and swallows what is written
    /version    Text    of this build
    /caps       Text    what this role can do, a capability a line
    /hello      Text    a greeting, to see that one is there

A read of /random or /zero gives what was asked for, at most MOST bytes at a time; the file has no end
and no size, so read it with a count: `head -c 16 /dev/random`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from warren.tree import Bytes, Caller, Changes, Dir, Handle, Maybe, Node, Text
from warren.tree.errstr import ErrStr
from warren.tree.node import BYTES
from warren.tree.ports import Clock
from warren.tree.report import pairs

MOST: Final = 1 << 20
_ZEROS: Final = bytes(MOST)


class Dev(Dir):
    """The tree. CAPS is asked at each read, since a role that is reloaded may have others."""

    def __init__(self, clock: Clock, version: str, caps: Callable[[], str]) -> None:
        self.clock = clock
        super().__init__(
            {
                "errstr": ErrStr(),
                "time": Text(self.time),
                "random": Endless(os.urandom),
                "zero": Endless(lambda count: _ZEROS[:count]),
                "null": Endless(lambda count: b""),
                "version": Text(lambda: version),
                "caps": Text(caps),
                "hello": Text(lambda: f"hello from warren {version}"),
            }
        )

    def time(self) -> str:
        now = self.clock.now()
        iso = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return pairs({"s": now, "utc": iso})


class Endless(Node):
    """Bytes for whoever asks, wherever they ask; what is written is gone."""

    mode = 0o666
    swallows_truncate = True
    word = BYTES

    def __init__(self, some: Callable[[int], bytes]) -> None:
        self.some = some

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return _EndlessHandle(self.some)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """What a shell's redirection sends is harmless."""


class _EndlessHandle(Handle):
    def __init__(self, some: Callable[[int], bytes]) -> None:
        self.some = some

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.some(min(count, MOST))

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        return len(data)
