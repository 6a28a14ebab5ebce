"""Serving the board: what a role does for the servers of Warren, in its smallest form.

python -m docs.examples.serve_board ADDRESS ROW...
"""

import sys
import time

import trio
from warren.auth.rights import Policy
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing

from docs.examples.board import Board


class SystemClock:
    """`warren.tree.ports.Clock` of this machine."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return trio.current_time()

    async def sleep_until(self, deadline: float) -> None:
        await trio.sleep_until(deadline)


async def main(address: str, rows: list[str]) -> None:
    export = Export(Board(SystemClock()), Policy.parse(rows), AuditMemory(), TraceRing())
    async with listening(export, [address]) as names:
        print("listening on", *names, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2:])
    except* KeyboardInterrupt:
        pass
