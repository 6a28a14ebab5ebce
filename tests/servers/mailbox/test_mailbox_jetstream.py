"""A mailbox on JetStream: the model in part, and a node that is killed under three replicas.

A nats-server acknowledges what it has not fsynced, so what is tried here is the death of a process, never a
power cut.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from warren.mount import Files
from warren.servers.mailbox import Mailbox
from warren.store.jetstream import open_jetstream

from tests.servers.clock import TrioClock
from tests.servers.mailbox.place import Box, T, kept
from tests.servers.mailbox.test_mailbox_model import STEPS, Step, run
from tests.servers.reach import reached
from tests.store.nats import Nats, cluster
from tests.store.test_jetstream_store import leading

SENDERS, RECEIVERS, BATCH = 64, 64, 5
TOTAL = 20 * SENDERS
BUSY = ("503 ", "408 ", "429 ", "409 ")  # come again; 409 is a lease that ran out meanwhile
numbers = count()


@settings(max_examples=5, deadline=None)
@given(steps=st.lists(STEPS, min_size=3, max_size=15))
def test_no_order_of_things_loses_or_doubles_a_message(nats: Nats, steps: list[Step]) -> None:
    async def main() -> None:
        async with open_jetstream(f"{nats.address}/m{next(numbers)}") as store:
            await run(store, steps)

    trio.run(main)


class Work:
    """What was answered to those who send and those who receive."""

    def __init__(self) -> None:
        self.sent: set[bytes] = set()
        self.got: Counter[bytes] = Counter()
        self.refused = 0
        self.well_on = trio.Event()

    async def patiently(self, e: OSError) -> None:
        assert str(e.strerror).startswith(BUSY), e
        self.refused += 1
        for _ in range(50):  # let others have their turn
            await trio.lowlevel.checkpoint()

    async def sends(self, files: Files, who: int) -> None:
        """Batches, each until it is answered, with the same keys."""
        for first in range(0, TOTAL // SENDERS, BATCH):
            bodies = [b"%d-%d" % (who, first + n) for n in range(BATCH)]
            heads = [b"batch=%d " % BATCH, *[b""] * (BATCH - 1)]
            parcel = b"".join(
                b"%sidem=%s len=%d\n\n%s" % (head, body, len(body), body)
                for head, body in zip(heads, bodies, strict=True)
            )
            while not self.sent.issuperset(bodies):
                try:
                    await files.write(f"{T}/send.h", parcel, truncate=False)
                    self.sent.update(bodies)
                except OSError as e:
                    await self.patiently(e)

    async def receives(self, box: Box) -> None:
        """Until all was noted, whoever noted it."""
        while len(self.got) < TOTAL:
            try:
                found = await box.all("max=10 vis=5s wait=500ms")
                self.got.update(message.body for message in found)
                if len(self.got) > TOTAL // 4:
                    self.well_on.set()
                if found:
                    await box.ack(*[f"{message.id}\n" for message in found])
            except OSError as e:
                await self.patiently(e)


async def test_a_node_that_is_killed_under_three_replicas_loses_no_answered_send(tmp_path: Path) -> None:
    with cluster(tmp_path) as servers:
        address = ",".join(server.address.removeprefix("nats://") for server in servers)
        async with open_jetstream(f"nats://{address}/three?replicas=3", patience=30) as store:
            mailbox, work = Mailbox(store, TrioClock()), Work()
            with trio.fail_after(60):
                async with kept(mailbox) as export, reached(export, "ann") as files:
                    await files.mkdir(T)
                    await files.write(f"{T}/ctl", b"set attempts=1000", truncate=False)
                    async with trio.open_nursery() as nursery:
                        for who in range(SENDERS):
                            nursery.start_soon(work.sends, files, who)
                        for _ in range(RECEIVERS):
                            nursery.start_soon(work.receives, Box(files, export))
                        await work.well_on.wait()
                        servers[await leading(store)].kill()
                        before = len(work.got)
                    stats = await Box(files, export).stats()
            assert before < TOTAL, "it was killed too late to be felt"
            assert len(work.sent) == TOTAL
            assert work.sent == set(work.got)
            assert (stats["sent"], stats["depth"]) == (TOTAL, 0)
            twice = sum(work.got.values()) - TOTAL
            known = f"{stats['dup']:.0f} sends were known"
            print(f"{twice} of {TOTAL} came twice, {known}, {work.refused} refused")
            assert twice <= 2 * 10 * RECEIVERS  # what was out when the node died
