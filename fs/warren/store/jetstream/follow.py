"""What changes in a stream, as it changes: subjects, places and headers, no bodies.

It is how those who wait are woken, whoever wrote. A message arrives when it is as durable as the stream makes
it, in the order of places. Where anything may have been missed (a connection that was lost, a number left
out, no heartbeat) the follower begins again after the last place it saw, and says so first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
from warren.store.interface import StoreClosed, StoreError
from warren.store.jetstream.engine import PAUSE, Engine
from warren.store.jetstream.line import STATUS, Message

HEARTBEAT: Final = 2.0  # seconds between two when nothing happens
SILENCE: Final = 3 * HEARTBEAT


class Follower:
    """`take(subject, place, headers)` for each change; `missed(seen, place)` where some may have been lost.

    With HISTORY it begins with the newest message of every subject, else with what comes next.
    """

    def __init__(
        self,
        engine: Engine,
        stream: str,
        root: str,
        take: Callable[[str, int, dict[str, str]], None],
        missed: Callable[[int, int], None],
        *,
        history: bool,
    ) -> None:
        self.engine, self.stream, self.root = engine, stream, root
        self.take, self.missed, self.history = take, missed, history
        self.seen = 0  # every change up to this place was taken
        self._next = 1  # what the next message is numbered by the server
        self._caught_up = trio.Event()
        self._broken = trio.Event()
        self._silence = trio.CancelScope()
        self._moved = trio.lowlevel.ParkingLot()

    def begin_again(self) -> None:
        """Something may have been missed."""
        self._broken.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled; started once all that there was has been taken."""
        first = True
        while True:
            try:
                await self._follow(first, task_status)
            except StoreClosed:
                return
            except StoreError:
                if first:
                    raise
                await trio.sleep(PAUSE)  # the cluster is away: whoever asks it is told so, this waits for it
            first = False

    async def _follow(self, first: bool, task_status: trio.TaskStatus[None]) -> None:
        self._broken = trio.Event()
        self._next = 1
        last = (await self.engine.state(self.stream)).last_seq
        if not first:
            self.missed(self.seen, last)
        if not self.history:
            self.seen = max(self.seen, last)
        ear = await self.engine.line.listen(self._heard)
        try:
            found = await self.engine.follow(self.stream, f"{self.root}.>", ear.subject, self.seen, HEARTBEAT)
            if not found.num_pending:
                self._at(last)
                self._caught_up.set()
            with trio.CancelScope(deadline=trio.current_time() + SILENCE) as self._silence:
                if first:
                    await self._caught_up.wait()
                    task_status.started()
                await self._broken.wait()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await ear.close()

    def _heard(self, message: Message) -> None:
        if self._broken.is_set():
            return
        self._silence.deadline = trio.current_time() + SILENCE
        if STATUS in message.headers:
            if int(message.headers.get("Nats-Last-Consumer", "0")) >= self._next:
                self._broken.set()
            return
        place, number, pending = _numbers(message.reply)
        if number != self._next:
            self._broken.set()
            return
        self._next += 1
        if place > self.seen:
            self.take(message.subject, place, message.headers)
            self._at(place)
        if not pending:
            self._caught_up.set()

    def _at(self, place: int) -> None:
        self.seen = max(self.seen, place)
        self._moved.unpark_all()

    async def reach(self, place: int) -> None:
        """Wait until all up to PLACE was taken. Cancelled has no effect."""
        while self.seen < place:
            await self._moved.park()


def _numbers(reply: str) -> tuple[int, int, int]:
    """The place, the number among those delivered, and how many are still to come."""
    parts = reply.split(".")
    shift = 0 if len(parts) == 9 else 2  # newer servers name their domain and account before the stream
    return int(parts[5 + shift]), int(parts[6 + shift]), int(parts[8 + shift])
