"""Send each line of standard input as a message, once.

python -m docs.examples.send TOPIC
"""

from __future__ import annotations

import sys

import trio
from warren.mount.sdk import node


async def main(topic: str) -> None:
    async with node() as n:
        for line in sys.stdin:
            sent = await n.mailbox(topic).send(line.rstrip("\n").encode())
            print("sent", sent.seq)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
