"""What is held for a time, a message or a task: extended meanwhile, and answered at the end.

    async with topic.receive() as messages:
        async for message in messages: ...       a step of the loop that ends without an error is its success

    await topic.receive().each(work, at_once=8)  the same with several at once; runs until WORK raises

    success    acknowledged, at the next step of the loop or at the end of the block
    an error   given back, and raised again. After GiveBack(delay) `each` goes on; a loop says nack
    cancelled  given back at once, as far as that goes within 2 s

A lease is extended whenever a third of it is over, by a task in the background, so work may last as long as
it likes. If the node cannot be reached until the lease has ended, somebody else may get the same: that is
what *at least once* means. `each` cancels the work then and goes on with what comes; the loop finds out
when it answers, by FileExistsError (409). An answer whose reply was lost is given again while the lease
lives, so it counts once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

PARTING: Final = 2.0  # seconds for giving back what a cancelled task held


class GiveBack(Exception):
    """Raised by who works on something: give it back, to be handed out again after DELAY seconds."""

    def __init__(self, why: str = "", *, delay: float | None = None) -> None:
        super().__init__(why)
        self.delay = delay


class Leased:
    """Something that is held. Answer it once, or let the loop do it."""

    def __init__(self, node: Node, path: str, term: float) -> None:
        self.node, self.path, self.term = node, path, term
        # The lease lives at least until then: it began before the reply that told of it had come.
        self.until = trio.current_time() + 0.9 * term
        self.answered = False
        self.lost = False  # its lease ended before it was answered
        self._extending: trio.CancelScope | None = None
        self._working: trio.CancelScope | None = None

    # What the kinds say in their own words

    async def _done(self) -> None:
        """It is done, in the server's words."""
        raise NotImplementedError

    async def _back(self, why: str, delay: float | None) -> None:
        """It is not done."""
        raise NotImplementedError

    async def _extend(self, seconds: float, limit: float) -> None:
        """Hold it so much longer from now; to be done within LIMIT."""
        raise NotImplementedError

    # Answers

    async def ack(self) -> None:
        """It is done: nobody gets it again. Cancelled: the server may know of it, or not."""
        await self._answer(self._done)

    async def nack(self, why: str = "", *, delay: float | None = None) -> None:
        """It is not done: give it back, for after DELAY seconds or as the server paces it."""
        await self._answer(lambda: self._back(why, delay))

    async def _answer(self, say: Callable[[], Awaitable[None]]) -> None:
        if self.answered:
            raise ValueError("it was answered already")
        self.answered = True
        self.node.held.drop(self)
        if self._extending is not None:
            self._extending.cancel()
        await say()

    # Time

    @property
    def due(self) -> float:
        """When it is to be extended."""
        return self.until - self.term * 2 / 3

    async def longer(self) -> None:
        """Extend the lease once, unless it is answered meanwhile."""
        if self.answered:
            return  # when it was due already, and its turn had not come
        with trio.CancelScope() as self._extending:
            await self._longer()

    async def _longer(self) -> None:
        asked = trio.current_time()
        try:
            await self._extend(self.term, max(self.until - asked, 0.0))
            self.until = asked + self.term
        except OSError as e:
            if not isinstance(e, FileExistsError) and trio.current_time() < self.until:
                # It was refused, or could not be reached, and may still be had: once more in a while.
                await trio.sleep(min(self.term / 6, self.until - trio.current_time()))
                return
            self.lost = True
            if self._working is not None:
                self._working.cancel()

    async def under(self, work: Callable[[], Awaitable[None]]) -> None:
        """WORK under the lease, and the answer: `ack`, or `nack` if it raises.

        If the lease ends first, WORK is cancelled and nothing is raised: somebody else will have it.
        """
        with trio.CancelScope() as self._working:
            if self.lost:
                return
            try:
                await work()
            except BaseException as e:
                if not self.lost:
                    await self.fail(e)
                if not isinstance(e, GiveBack):
                    raise
            else:
                try:
                    if not self.answered:
                        await self.ack()
                except FileExistsError:
                    self.lost = True

    async def fail(self, e: BaseException) -> None:
        """E ended the work on it: give it back, if it was not answered. If that fails, E says so."""
        if self.answered:
            return
        delay = e.delay if isinstance(e, GiveBack) else None
        why = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
        parting = isinstance(e, trio.Cancelled)
        scope = trio.CancelScope(shield=parting)
        if parting:
            scope.deadline, delay, why = trio.current_time() + PARTING, 0.0, "cancelled"
        with scope:
            try:
                await self.nack(why, delay=delay)
            except FileExistsError:
                self.lost = True
            except OSError as refused:
                if isinstance(e, GiveBack):
                    raise
                e.add_note(f"it could not be given back: {refused}")


class Held:
    """What is held: each lease is extended whenever a third of it is over, until it is answered or lost."""

    def __init__(self, background: trio.Nursery) -> None:
        self._background = background
        self._held: dict[Leased, None] = {}
        self._until = inf  # when the keeper looks again
        self._nap: trio.CancelScope | None = None  # of the keeper, while there is one

    def add(self, leased: Leased) -> None:
        """Extend the lease from now on."""
        self._held[leased] = None
        if self._nap is None:
            self._nap = trio.CancelScope()
            self._background.start_soon(self._keep)
        elif leased.due < self._until:
            self._nap.cancel()

    def drop(self, leased: Leased) -> None:
        """It was answered."""
        self._held.pop(leased, None)

    async def _keep(self) -> None:
        """Look at all of them when one is due. Ends when that time has come and nothing is held any more."""
        try:
            while self._held:
                now, self._until = trio.current_time(), inf
                for leased in list(self._held):
                    if leased.due <= now:
                        del self._held[leased]
                        self._background.start_soon(self._longer, leased)
                    else:
                        self._until = min(self._until, leased.due)
                with trio.CancelScope() as self._nap:
                    await trio.sleep_until(self._until)
        finally:
            self._nap = None

    async def _longer(self, leased: Leased) -> None:
        await leased.longer()
        if not leased.answered and not leased.lost:
            self.add(leased)


L = TypeVar("L", bound=Leased)


class Leases(Generic[L]):
    """What comes, one after the other, each held while the loop is at it. NEXT waits for the next one."""

    def __init__(self, next: Callable[[], Awaitable[L]]) -> None:
        self._next = next
        self._held: L | None = None
        self._open = False

    async def __aenter__(self) -> Leases[L]:
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answer what is held."""
        self._open = False
        held, self._held = self._held, None
        if held is not None and not held.answered:
            if value is None:
                await held.ack()
            else:
                await held.fail(value)

    def __aiter__(self) -> AsyncIterator[L]:
        return self

    async def __anext__(self) -> L:
        """The one before is done; wait for the next. Cancelled: nothing was taken."""
        if not self._open:
            raise ValueError("use it in a block, which sees how the loop ends: async with ... as messages")
        held, self._held = self._held, None
        if held is not None and not held.answered:
            await held.ack()
        self._held = held = await self._next()
        held.node.held.add(held)
        return held

    async def each(self, work: Callable[[L], Awaitable[None]], *, at_once: int = 1) -> None:
        """WORK for each that comes, so many at once; never more are held. Runs until WORK raises.

        GiveBack is no end. Cancelled gives back what is held.
        """
        failed: list[BaseException] = []

        async def one() -> None:
            while True:
                held = await self._next()
                held.node.held.add(held)
                await held.under(partial(work, held))

        async def first_error() -> None:
            try:
                await one()
            except Exception as e:
                failed.append(e)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(first_error)
        if failed:
            raise failed[0]
