"""/dev: what every role has at hand.

    /errstr     Text    your newest error
    /time       Text    now, as `s=` seconds since the epoch and `utc=` ISO 8601
    /random     bytes from the system; what is written is thrown away
    /zero       bytes of zero
    /null       nothing to read, and swallows what is written
    /version    Text    of this build
    /caps       Text    what this role can do, a capability a line
    /hello      Text    a greeting, to see that one is there

A read of /random or /zero gives what was asked for, at most MOST bytes at a time, wherever it is read. One
open gives PLENTY in all and then ends, so that whoever searches or copies a whole tree comes to an end. Read
them with a count, `head -c 16 /dev/random`, and open them again for more.
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
PLENTY: Final = 4 << 20
_ZEROS: Final = bytes(MOST)


class Dev(Dir):
    """The tree. CAPS is asked at each read, since a role that is reloaded may have others."""

    def __init__(self, clock: Clock, version: str, caps: Callable[[], str]) -> None:
        self.clock = clock
        super().__init__(
            {
                "errstr": ErrStr(),
                "time": Text(self.time),
                "random": Plenty(os.urandom),
                "zero": Plenty(lambda count: _ZEROS[:count]),
                "null": Plenty(lambda count: b""),
                "version": Text(lambda: version),
                "caps": Text(caps),
                "hello": Text(lambda: f"hello from warren {version}"),
            }
        )

    def time(self) -> str:
        now = self.clock.now()
        iso = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return pairs({"s": now, "utc": iso})


class Plenty(Node):
    """Bytes for whoever asks, wherever they ask; what is written is gone."""

    mode = 0o666
    swallows_truncate = True
    word = BYTES

    def __init__(self, some: Callable[[int], bytes]) -> None:
        self.some = some

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return _PlentyHandle(self.some)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """What a shell's redirection sends is harmless."""


class _PlentyHandle(Handle):
    def __init__(self, some: Callable[[int], bytes]) -> None:
        self.some, self.left = some, PLENTY

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        given = self.some(min(count, MOST, self.left))
        self.left -= len(given)
        return given

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        return len(data)
