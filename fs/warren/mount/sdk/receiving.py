"""Those of a process who wait for messages of one `recv`: they are received together, and each gets one.

One read asks for as many messages as there are who wait, and two reads are under way at most. The lease of
what comes together is one; each message is answered for itself.

Who is cancelled waits no more; if then more is asked for than there are who wait, the read is given up, which
takes nothing, and asked again. What came all the same, and nobody wants any more, is given back at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from warren.mount.sdk.drafts import lost, same
from warren.mount.sdk.wire import messages, parted, take

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

AT_ONCE: Final = 2  # reads under way
MOST: Final = 32  # messages that one read brings


class _Wait:
    """Somebody who waits."""

    __slots__ = ("error", "given", "task")

    def __init__(self) -> None:
        self.given = b""
        self.error: OSError | None = None
        self.task: trio.lowlevel.Task = trio.lowlevel.current_task()


class Receiver:
    """Who waits at the `recv` of one topic or group, for leases of the same length."""

    def __init__(self, node: Node, path: str, lease: float) -> None:
        self.node, self.path, self.answers = node, f"{path}/recv", f"{path}/ack"
        self.options = f"ack=explicit vis={lease:g}s"
        self._waiting: dict[_Wait, None] = {}  # in the order in which they came
        self._asked: dict[trio.CancelScope, int] = {}  # for how many the reads are that are under way
        self._pumps = 0

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nothing is under way."""
        return not self._pumps and not self._waiting

    async def next(self) -> bytes:
        """One message, as `recv` gives it. Cancelled: nothing was taken, or it is given back."""
        wait = _Wait()

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[wait]
            self._ask_less()
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting[wait] = None
        try:
            self._go()
        except RuntimeError:  # the nursery of the node takes nothing more
            del self._waiting[wait]
            raise lost(self.path, "nothing was received") from None
        await trio.lowlevel.wait_task_rescheduled(abort)
        if wait.error is not None:
            raise wait.error
        return wait.given

    def _ask_less(self) -> None:
        """Nobody may be given what nobody waits for."""
        if self._asked and sum(self._asked.values()) > len(self._waiting):
            scope, _ = self._asked.popitem()
            scope.cancel()

    def _go(self) -> None:
        if self._pumps < AT_ONCE:
            self.node.background.start_soon(self._pump)
            self._pumps += 1

    async def _pump(self) -> None:
        """Ask for those who wait, and those who come meanwhile."""
        try:
            while (many := min(len(self._waiting) - sum(self._asked.values()), MOST)) > 0:
                await self._receive(many)
        finally:
            self._pumps -= 1
            if not self._pumps:
                for wait in list(self._waiting):  # the node was left, and nobody sees to them any more
                    self._fail(wait, lost(self.path, "nothing was received"))

    async def _receive(self, many: int) -> None:
        with trio.CancelScope() as scope:
            self._asked[scope] = many
            try:
                data = await take(self.node, self.path, f"max={many} {self.options}")
            except OSError as e:
                for wait in list(self._waiting)[:many]:
                    self._fail(wait, same(e))
                return
            finally:
                self._asked.pop(scope, None)
            for message in messages(data):
                self._give(message)

    def _give(self, message: bytes) -> None:
        if not self._waiting:
            self.node.background.start_soon(self._unwanted, message)
            return
        wait = next(iter(self._waiting))
        del self._waiting[wait]
        wait.given = message
        trio.lowlevel.reschedule(wait.task)

    def _fail(self, wait: _Wait, e: OSError) -> None:
        del self._waiting[wait]
        wait.error = e
        trio.lowlevel.reschedule(wait.task)

    async def _unwanted(self, message: bytes) -> None:
        head, _ = parted(message)
        id, lease = head.get("id", ""), head.get("lease", "")
        try:
            line = f"nack {id} {lease} delay=0s"
            await self.node.answers(self.answers).say(id, line, trio.current_time())
        except OSError:
            pass  # its lease ends by itself
