"""A topic: to send to it, and to receive from it.

    sent = await n.mailbox("orders").send(b"...", key="ann", ttl=60)     Sent(id, seq, dup)

    async with n.mailbox("orders").receive() as messages:
        async for message in messages:
            message.body, message.id, message.attempt, message.head["key"]

**A send whose reply was lost is safe.** Each has an idempotency key, made here unless one is given, and
each try carries the same: the topic sends once, and tells a later try the id of the first (`dup` is then
true). A topic knows a key for its `dedupe=` time, 300 s unless it was set otherwise, so no try is made
later than SAFE seconds after the first. An error that leaves the outcome unknown has the key in its notes:
a send with that key and the same body may still be made within the time.

`echo … > /mailbox/orders/send` has no key. When its reply is lost, nobody knows.

**A full topic** answers 429; the send then waits as long as it is told to, within its deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warren.mount.sdk.drafts import Draft, Sent
from warren.mount.sdk.leases import Leased, Leases
from warren.mount.sdk.patience import NEVER
from warren.mount.sdk.sending import SAFE
from warren.mount.sdk.wire import make, number, parted, said
from warren.tree.report import pairs

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node


class Topic:
    """One topic, and the group of it that one receives with. Made by `Node.mailbox`."""

    def __init__(self, node: Node, path: str, group: str) -> None:
        self.node, self.path = node, path
        self._send = f"{path}/send.h"
        self._at = f"{path}/groups/{group}" if group else path

    async def make(self) -> None:
        """Make the topic, if it is not there. Cancelled: it was made, or not."""
        await make(self.node, self.path)

    async def send(
        self, body: bytes, *, idem: str | None = None, key: str = "", corr: str = "", type: str = "",
        prio: int = 0, delay: float = 0.0, ttl: float = 0.0, deadline: float | None = None,
    ) -> Sent:  # fmt: skip
        """Send a message, once. The words are those of `send.h`; IDEM is made here unless it is given.

        What is sent at the same time goes together (see `sending`); with a DEADLINE of its own it goes alone.
        Cancelled: it was sent, or not; the same again with the same IDEM is safe.
        """
        sender = self.node.sender(self._send)
        named, size = idem or sender.name(), len(body)
        if idem or key or corr or type or prio or delay or ttl:
            words: dict[str, object] = {"idem": named, "key": key, "corr": corr, "type": type}
            words |= {"prio": prio or "", "delay": delay and f"{delay:g}s", "ttl": ttl and f"{ttl:g}s"}
            head = pairs({word: value for word, value in words.items() if value} | {"len": size})
        else:
            head = f"idem={named} len={size}"
        draft = Draft(named, key, f"{head}\n\n".encode(), bytes(body), sender.limit, not idem)
        if deadline is None:
            return await sender.send(draft)
        draft.within(min(SAFE, deadline))
        try:
            return await sender.alone(draft)
        except OSError as e:
            e.add_note(f"idem={named}")
            raise

    def receive(self, *, lease: float = 30.0) -> Leases[Message]:
        """Messages as they come, each under a lease of so many seconds, made longer while it is worked on."""

        async def next() -> Message:
            data = await self.node.receiver(self._at, lease).next()
            return Message(self.node, f"{self._at}/ack", data, lease)

        return Leases(next)


class Message(Leased):
    """A message that we hold. `head` is all that was said of it."""

    def __init__(self, node: Node, path: str, data: bytes, term: float) -> None:
        super().__init__(node, path, term)
        self.head, self.body = parted(data)
        self.id, self.seq = said(self.head, "id"), number(self.head, "seq")
        self.attempt = number(self.head, "attempt")
        self._lease = said(self.head, "lease")

    async def _done(self) -> None:
        await self._say(f"{self.id} {self._lease}")

    async def _back(self, why: str, delay: float | None) -> None:
        line = f"nack {self.id} {self._lease}"
        line += "" if delay is None else f" delay={delay:g}s"
        await self._say(line)

    async def _extend(self, seconds: float, limit: float) -> None:
        line = f"extend {self.id} {self._lease} {seconds:g}s"
        await self.node.answers(self.path).say(self.id, line, NEVER, limit)

    async def _say(self, line: str) -> None:
        await self.node.answers(self.path).say(self.id, line, self.until)
