"""Store files and print their addresses, or bring one back.

python -m docs.examples.blobs put FILE...
python -m docs.examples.blobs get ADDRESS FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from warren.mount.sdk import node


async def main(what: str, words: list[str]) -> None:
    async with node() as n:
        if what == "put":
            for name in words:
                print(await n.storage.put(Path(name)))
        else:
            address, name = words
            print(await n.storage.save(address, name), "bytes")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2:])
