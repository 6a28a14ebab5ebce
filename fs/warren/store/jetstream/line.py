"""One connection to a NATS cluster: questions and answers, subscriptions, and a line that comes back by
itself.

The NATS client speaks asyncio, so a loop runs inside trio here, in a task of its own (see `tree.loop`), and
nothing outside this module knows of it. What the client calls back is called in the same thread as everything
else.

Nothing here decides what a lost answer means. `Unanswered` says that there was none in time; whoever wrote
looks what became of it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import nats.errors
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg
from warren.store.interface import StoreClosed, StoreFailed
from warren.tree.loop import LoopEnded, open_loop

T = TypeVar("T")

OUTSTANDING: Final = 512  # questions that wait for an answer; more wait for their turn to be asked
STATUS: Final = "Status"
STALLED: Final = "Nats-Consumer-Stalled"
AGAIN: Final = 0.2  # seconds between two attempts to reach the same server


class Unanswered(Exception):
    """No answer came in time, or nobody was there to give one."""


class Message(NamedTuple):
    """What came."""

    subject: str
    reply: str
    headers: dict[str, str]
    data: bytes


class Line:
    """The connection. `run` holds it; `again` is called when it was lost and has come back."""

    def __init__(self, servers: list[str], shown: str, again: Callable[[], None]) -> None:
        self.servers, self.shown = servers, shown
        self.again = again
        self.max_payload = 0
        self.lost = 0  # how often it was
        self.trouble = ""  # the client's newest complaint
        self._ended = trio.Event()
        self._slots = trio.Semaphore(OUTSTANDING)
        self._asking: set[trio.CancelScope] = set()
        self._client = Client()

    async def run(
        self, patience: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Connect, and stay so until `close`; `up` says whether anybody was reached in PATIENCE seconds."""
        async with open_loop() as self._loop:
            try:
                with trio.move_on_after(patience):
                    try:
                        await self._done(self._connect)
                    except (nats.errors.Error, OSError) as e:
                        self.trouble = str(e) or repr(e)
                self.max_payload = self._client.max_payload if self._client.is_connected else 0
                task_status.started()
                if self.up:
                    await self._ended.wait()
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(2):
                    try:
                        await self._done(self._client.close)
                    except (nats.errors.Error, OSError):
                        pass  # it was cut off already

    @property
    def up(self) -> bool:
        return self.max_payload > 0

    async def _connect(self) -> None:
        await self._client.connect(
            self.servers,
            name="warren",
            error_cb=self._complained,
            disconnected_cb=self._left,
            reconnected_cb=self._came_back,
            max_reconnect_attempts=-1,
            reconnect_time_wait=AGAIN,  # type: ignore[arg-type]
            connect_timeout=2,
            ping_interval=5,
        )

    def close(self) -> None:
        """No more questions. Those that wait get StoreClosed."""
        self._ended.set()
        for scope in self._asking:
            scope.cancel()

    async def ask(self, subject: str, data: bytes, headers: dict[str, str] | None, wait: float) -> Message:
        """One question, one answer. Cancelled: it was asked or not.

        Raises `Unanswered` after WAIT seconds, or at once when the servers say that nobody listens there.
        """
        async with self._slots:
            self._check_open()
            try:
                with trio.move_on_after(wait) as scope:
                    self._asking.add(scope)
                    found = await self._done(self._client.request, subject, data, math.inf, False, headers)
                    return _message(found)
            except nats.errors.MaxPayloadError:
                raise StoreFailed(f"{self.shown}: its max_payload is smaller than it was") from None
            except nats.errors.NoRespondersError:
                raise Unanswered("nobody is there for JetStream (nats-server -js)") from None
            except (nats.errors.Error, OSError) as e:
                self._check_open()
                raise Unanswered(self.trouble or repr(e)) from None
            finally:
                self._asking.discard(scope)
        self._check_open()
        raise Unanswered(self.trouble or f"no answer within {wait:g} s")

    def _check_open(self) -> None:
        if self._ended.is_set():
            raise StoreClosed("the store is closed")

    async def listen(self, take: Callable[[Message], None]) -> Ear:
        """Have TAKE called with what comes to a subject of its own, until the ear is closed."""

        async def taken(found: Msg) -> None:
            message = _message(found)
            # Flow control: a server that has sent much waits for a word before it sends more.
            flow = message.headers.get(STALLED) or (message.reply if STATUS in message.headers else "")
            if flow:
                await self._client.publish(flow)
            take(message)

        subject = self._client.new_inbox()
        return Ear(self, subject, await self._done(self._client.subscribe, subject, "", taken))

    async def _done(self, work: Callable[..., Awaitable[T]], *values: object) -> T:
        """Run a piece of the client, for whichever task asks."""
        try:
            return await self._loop.do(work, *values)
        except LoopEnded:
            raise StoreClosed("the store is closed") from None

    async def _complained(self, e: Exception) -> None:
        self.trouble = str(e) or repr(e)

    async def _left(self) -> None:
        self.lost += 1

    async def _came_back(self) -> None:
        self.trouble = ""
        self.again()


class Ear:
    """A subscription to a subject that nobody else knows."""

    def __init__(self, line: Line, subject: str, subscription: Any) -> None:
        self.line, self.subject, self._subscription = line, subject, subscription

    async def close(self) -> None:
        """Hear nothing more. Cancelled: what comes is heard by nobody, or the server still sends it."""
        try:
            await self.line._done(self._subscription.unsubscribe)
        except (nats.errors.Error, OSError, StoreClosed):
            pass  # who is gone sends nothing


def _message(found: Msg) -> Message:
    return Message(found.subject, found.reply, dict(found.headers or {}), found.data)
