"""A map in tiles, out of /storage.

    /<z>/<x>/<y>.png    File    a picture of 64 by 64; level z has 2**z columns of 2**z rows
    /metrics            Text    pulls, bytes, and how long they took
    /stats              Text    the same for people

The pictures are blobs, and `refs/tile.<z>.<x>.<y>` of the storage names them; this server holds none but a
few that were wanted last. It takes the storage as the port `Files`, so it does not know where that is. `fill`
is the other side, a client that draws a map and puts it there. Both together, beside a storage:

    python -m docs.examples.tiles STORAGE LISTEN [ROW...]
"""

import os
import struct
import sys
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import trio
from warren.auth.rights import Policy
from warren.mount import Files as Client
from warren.mount import dial
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, File, Maybe, Node
from warren.tree.report import Count, counts, one

LEVELS, SIDE, KEPT, LATEST = 3, 64, 64, 256


class Reads(Protocol):
    """All that the server needs of a storage: `warren.tree.ports.Files` has it."""

    async def read(self, path: str) -> bytes:
        """A whole file."""


class Time(Protocol):
    """And of a clock."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class Tiles(Dir):
    """The root."""

    def __init__(self, storage: Reads, clock: Time, levels: int = LEVELS) -> None:
        self.storage, self.clock = storage, clock
        self.kept: OrderedDict[str, bytes] = OrderedDict()
        self.pulls = self.bytes = self.hits = 0
        self.took: deque[float] = deque(maxlen=LATEST)
        entries = {str(z): self.level(z) for z in range(levels)}
        super().__init__({**entries, **counts(self.measures)})

    def level(self, z: int) -> Node:
        def column(x: int) -> Node:
            return Numbered(2**z, lambda y: Tile(self, f"tile.{z}.{x}.{y}"), ".png")

        return Numbered(2**z, column)

    async def pull(self, name: str) -> bytes:
        """A picture by its name. Cancelled has no effect."""
        began = self.clock.monotonic()
        address = (await self.storage.read(f"/refs/{name}")).decode().strip()
        data = self.kept.pop(address, None)
        if data is None:
            data = await self.storage.read(f"/{address}")
        else:
            self.hits += 1
        self.kept[address] = data
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        self.pulls += 1
        self.bytes += len(data)
        self.took.append(self.clock.monotonic() - began)
        return data

    def measures(self) -> Iterable[Count]:
        took = sorted(self.took) or [0.0]
        return [
            one("tiles_pulls_total", "Pictures given.", self.pulls),
            one("tiles_bytes_total", "Their bytes.", self.bytes),
            one("tiles_hits_total", "Pictures that were at hand.", self.hits),
            one("tiles_seconds_p50", "Half of the latest took no longer.", took[len(took) // 2], "gauge"),
            one("tiles_seconds_p95", "And all but a twentieth.", took[len(took) * 19 // 20], "gauge"),
        ]


class Numbered(Dir):
    """So many names, each a number with an ending; a node is made when it is first asked for."""

    def __init__(self, most: int, make: Callable[[int], Node], ending: str = "") -> None:
        self.names = {f"{n}{ending}": n for n in range(most)}
        self.make = make
        self.made: dict[str, Node] = {}
        super().__init__(self.made)

    def lookup(self, name: str) -> Node | None:
        if name not in self.made and name in self.names:
            self.made[name] = self.make(self.names[name])
        return self.made.get(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [(name, node) for name in self.names if (node := self.lookup(name))]


class Tile(File):
    """One picture. A read at 0 pulls it; what follows is of the same one."""

    def __init__(self, tiles: Tiles, name: str) -> None:
        super().__init__(self.read)
        self.tiles, self.name = tiles, name
        self.latest = b""

    async def read(self, offset: int, count: int) -> bytes:
        """Cancelled has no effect."""
        if not offset or not self.latest:
            self.latest = await self.tiles.pull(self.name)
        return self.latest[offset : offset + count]


def draw(z: int, x: int, y: int) -> bytes:
    """A tile of Mandelbrot's set as PNG, in 16 shades."""
    rows = []
    for row in range(SIDE):
        line = bytearray(b"\0")  # no filter
        for column in range(0, SIDE, 2):
            line.append(_shade(z, x, y, column, row) << 4 | _shade(z, x, y, column + 1, row))
        rows.append(bytes(line))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 4, 0, 0, 0, 0)
    body = _part(b"IHDR", head) + _part(b"IDAT", zlib.compress(b"".join(rows), 9)) + _part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _shade(z: int, x: int, y: int, column: int, row: int) -> int:
    scale = 3.0 / 2**z / SIDE
    point = complex(-2.25 + (x * SIDE + column) * scale, -1.5 + (y * SIDE + row) * scale)
    value, steps = point, 0
    while steps < 45 and value.real**2 + value.imag**2 < 4:
        value = value * value + point
        steps += 1
    return 15 - steps // 3


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiles(levels: int) -> Iterator[tuple[int, int, int]]:
    """Every tile of the first levels."""
    return ((z, x, y) for z in range(levels) for x in range(2**z) for y in range(2**z))


async def fill(storage: Client, levels: int = LEVELS) -> int:
    """Draw a map and put it into a storage; returns how many pictures there are."""
    done = 0
    for z, x, y in tiles(levels):
        picture = draw(z, x, y)
        async with await storage.open("/put", os.O_RDWR) as put:
            await put.write(picture)
            await put.fsync()
            address = await put.pread(100, 0)
        await storage.write(f"/refs/tile.{z}.{x}.{y}", address, create=True)
        done += 1
    return done


class SystemClock:
    """The time of this machine."""

    def monotonic(self) -> float:
        return trio.current_time()


async def main(storage: str, listen: str, rows: list[str]) -> None:
    async with dial(storage) as files:
        print(f"{await fill(files)} tiles are in the storage", flush=True)
        export = Export(Tiles(files, SystemClock()), Policy.parse(rows), AuditMemory(), TraceRing())
        async with listening(export, [listen]) as names:
            print("listening on", *names, flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
    except* KeyboardInterrupt:
        pass
