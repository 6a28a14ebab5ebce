"""The tile server of docs/examples: a map that is drawn, put, named, and pulled by many at once."""

import struct
import subprocess
import sys
import zlib
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import trio
from warren.check.tree import check_tree
from warren.mount import dial

from docs.examples.tiles import SIDE, SystemClock, Tiles, draw, fill, tiles
from tests.servers.storing import storing
from tests.sources import ROOT
from tests.wire import listened


def pixels(png: bytes) -> list[int]:
    """The shades of a picture, by a decoder that knows no more than it needs."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size)[0] == zlib.crc32(kind + data)
        parts[kind] = data
        at += 12 + size
    assert struct.unpack_from(">IIBB", parts[b"IHDR"]) == (SIDE, SIDE, 4, 0)
    raw = zlib.decompress(parts[b"IDAT"])
    width = 1 + SIDE // 2
    rows = [raw[n : n + width] for n in range(0, len(raw), width)]
    assert all(row[0] == 0 for row in rows)
    return [shade for row in rows for byte in row[1:] for shade in (byte >> 4, byte & 15)]


def test_a_tile_is_a_picture_and_four_of_them_are_the_one_above() -> None:
    above = pixels(draw(0, 0, 0))
    assert len(set(above)) > 5
    below = {(x, y): pixels(draw(1, x, y)) for x in (0, 1) for y in (0, 1)}
    for row in range(SIDE):
        for column in range(SIDE):
            (x, c), (y, r) = divmod(2 * column, SIDE), divmod(2 * row, SIDE)
            assert below[x, y][r * SIDE + c] == above[row * SIDE + column]


async def test_a_map_is_pulled_out_of_a_storage(tmp_path: Path) -> None:
    async with storing(tmp_path) as at, listened(at.storage, f"unix!{tmp_path / 'sock'}") as listening:
        async with dial(listening.address) as files:
            assert await fill(files, 3) == 21
            server, pictures = Tiles(files, SystemClock()), {tile: draw(*tile) for tile in tiles(3)}
            async with listened(server, f"unix!{tmp_path / 'tiles'}") as shown, dial(shown.address) as map:

                async def look() -> None:
                    for z, x, y in tiles(3):
                        assert await map.read(f"/{z}/{x}/{y}.png") == pictures[z, x, y]

                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(look)
                said = dict(line.split("=") for line in (await map.read("/stats")).decode().splitlines())
                assert int(said["tiles_pulls_total"]) == 84
                assert int(said["tiles_hits_total"]) >= 84 - 4 * 21
                assert float(said["tiles_seconds_p95"]) < 1
            assert "took blobs=0" in await (await at.client()).ctl("gc grace=0s"), "every tile has a name"
            await check_tree(lambda: nullcontext(server), dialects=["9P2000.L"])


async def test_a_new_picture_is_seen_at_the_next_look(tmp_path: Path) -> None:
    async with storing(tmp_path) as at, listened(at.storage, f"unix!{tmp_path / 'sock'}") as listening:
        async with dial(listening.address) as files:
            await fill(files, 1)
            server = Tiles(files, SystemClock())
            async with listened(server, f"unix!{tmp_path / 'tiles'}") as shown, dial(shown.address) as map:
                assert await map.read("/0/0/0.png") == draw(0, 0, 0)
                client = await at.client()
                await client.name("tile.0.0.0", await client.put(draw(1, 0, 0)))
                assert await map.read("/0/0/0.png") == draw(1, 0, 0)


async def test_it_runs_as_its_page_says(tmp_path: Path) -> None:
    async with storing(tmp_path) as at, listened(at.storage, f"unix!{tmp_path / 'sock'}") as listening:
        words = [sys.executable, "-m", "docs.examples.tiles", listening.address, f"unix!{tmp_path / 'tiles'}"]
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, cwd=ROOT, stdout=subprocess.PIPE, check=False)
            process = await nursery.start(start, [*words, "any read /**"])
            said = b""
            while b"listening on" not in said:
                said += await process.stdout.receive_some()
            assert said.startswith(b"21 tiles are in the storage\n")
            async with dial(f"unix!{tmp_path / 'tiles'}") as map:
                assert await map.read("/2/1/3.png") == draw(2, 1, 3)
            nursery.cancel_scope.cancel()
