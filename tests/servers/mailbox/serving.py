"""A mailbox in a process of its own, to be killed: `python -m tests.servers.mailbox.serving STORE SOCKET`."""

import os
import sys
import time

import trio
from warren.auth.rights import Policy
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.servers.mailbox import Mailbox
from warren.store.sqlite import open_sqlite
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir


class WallClock:
    """The clocks of this machine."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return trio.current_time()

    async def sleep_until(self, deadline: float) -> None:
        await trio.sleep_until(deadline)


async def main(path: str, socket: str) -> None:
    async with open_sqlite(path) as store, trio.open_nursery() as nursery:
        mailbox = Mailbox(store, WallClock())
        nursery.start_soon(mailbox.keep)
        policy = Policy.parse(["local read,write,create,remove,ctl /**"])
        export = Export(Dir({"mailbox": mailbox}), policy, AuditMemory(), TraceRing())
        async with listening(export, [f"unix!{socket}"]):
            print("listening", flush=True)
            # Whoever started it is gone when this ends.
            async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
                await stdin.receive_some()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
