"""Print so many messages. Each is acknowledged when it has been printed, and not before.

python -m docs.examples.receive TOPIC COUNT
"""

from __future__ import annotations

import sys

import trio
from warren.mount.sdk import node


async def main(topic: str, count: int) -> None:
    async with node() as n, n.mailbox(topic).receive() as messages:
        async for message in messages:
            print(message.seq, message.body.decode(), flush=True)
            count -= 1
            if not count:
                break


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
