"""The open files of those who send: `send` and `send.h`.

    send      one write is one message
    send.h    one body a message or a batch, in as many writes as it takes. When its declared length has come
              it is sent, and another body may be written to the same file, from offset 0 on.

Both are read back: `id= seq= dup=`, a line a message. A read while a body is being sent waits for that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from warren.servers.mailbox.sending import Sent, longest, send
from warren.servers.mailbox.words import BATCH, BATCH_BYTES, Draft, Form, Parcel
from warren.tree import Blob, Bytes, Caller, Handle, Maybe, Refused, Sink
from warren.tree.headers import HEAD
from warren.tree.promise import Promise
from warren.tree.words import BlobHandle, SinkHandle

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic


def told(sent: Sequence[Sent]) -> bytes:
    """What became of each."""
    return "".join([f"id={m.id} seq={m.number} dup={m.dup:d}\n" for m in sent]).encode()


class Send(Sink):
    """`send`: the whole write is the message."""

    def __init__(self, topic: Topic) -> None:
        super().__init__(lambda data: None)
        self.topic = topic

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return SendHandle(self, self.topic, caller.subject)


class SendHandle(SinkHandle):
    def __init__(self, sink: Sink, topic: Topic, by: str) -> None:
        super().__init__(sink)
        self.topic, self.by = topic, by

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        n = len(data)

        def tell(sent: Sequence[Sent]) -> int:
            self.says = told(sent)
            return n

        sent = send(self.topic, Parcel([Draft(bytes(data))]), self.by)
        return sent.then(tell) if isinstance(sent, Promise) else self._coming(sent, n)

    async def _coming(self, coming: Awaitable[list[Sent]], n: int) -> int:
        self.says = told(await coming)
        return n


class SendH(Blob):
    """`send.h`: headers, an empty line, the body."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.form = Form(longest(topic))
        most = max(longest(topic) + HEAD, BATCH_BYTES + BATCH * HEAD)
        super().__init__(lambda body, declared: None, self.form.measure, most)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return ParcelHandle(self, caller.subject)


class ParcelHandle(BlobHandle):
    def __init__(self, node: SendH, by: str) -> None:
        super().__init__(node)
        self.node, self.by = node, by
        self._ended = False  # by its declared length, so whoever writes knows where another body begins
        self._owed: Promise | None = None

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if not offset and self._ended:
            self._again()
        if not self.done and not self.body:
            parcel = self.node.form.simple(bytes(data)) if not offset else None
            if parcel is not None:
                self.done = self._ended = True
                n, sent = len(data), self._send(parcel)
                return sent.then(lambda _: n) if isinstance(sent, Promise) else _when(sent, n)
        done = super().write(offset, data)
        self._ended = self.done
        return done

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        if self._owed is None or self._owed.settled:
            return super().read(offset, count)
        found = Promise().then(lambda _: self.says[offset : offset + count])
        self._owed.told(lambda _: found.keep())
        return found

    def _again(self) -> None:
        """Another body."""
        if self._owed is not None and not self._owed.settled:
            raise Refused(409, "the body before is still being sent; wait for its answer, or open another")
        self.done, self._ended, self.length, self.says = False, False, None, b""

    def _commit(self, declared: bool) -> Awaitable[None] | None:
        body, self.body, self.done = bytes(self.body), bytearray(), True
        return self._send(self.node.form.open(body, declared))

    def _send(self, parcel: Parcel) -> Awaitable[None]:
        sent = send(self.node.topic, parcel, self.by)
        if isinstance(sent, Promise):
            self._owed = sent
            return sent.then(self._told)
        self._owed = Promise()
        return self._coming(sent, self._owed)

    def _told(self, sent: Sequence[Sent]) -> None:
        self.says = told(sent)

    async def _coming(self, coming: Awaitable[list[Sent]], owed: Promise) -> None:
        try:
            self._told(await coming)
        finally:
            owed.keep()  # whatever became of it, it is no longer being sent


async def _when(coming: Awaitable[None], n: int) -> int:
    await coming
    return n
