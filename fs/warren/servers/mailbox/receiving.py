"""The open files of those who receive: `recv`, `ack` and `sub`.

`recv` gives one message or batch an open, then the end of the file.

    nothing read yet     closing takes nothing
    part of it read      closing gives it back, and it does not count as an attempt
    all of it read       acknowledged at the close (`auto`), or by a line written to `ack` (`explicit`).
                         Options that are written now ask for another (not with `auto`)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from errno import EINTR
from typing import TYPE_CHECKING, Final

from warren.servers.mailbox.leasing import bodies, finish, release, take
from warren.servers.mailbox.line import Reader, Taken
from warren.servers.mailbox.records import End, Message, Send, unpack
from warren.servers.mailbox.words import Options, options, place, shown
from warren.store import StoreError
from warren.tree import (
    Bytes,
    Caller,
    Changes,
    Cursor,
    Ended,
    Handle,
    Maybe,
    Node,
    Refused,
    Stream,
    StreamHandle,
)
from warren.tree.node import STREAM
from warren.tree.once import Once
from warren.tree.stream import WouldBlock

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic


AT_ONCE: Final = 256  # records looked at before others have their turn


class Recv(Node):
    """`recv` of a topic or of one of its groups."""

    mode = 0o600
    swallows_truncate = True
    word = STREAM

    def __init__(self, topic: Topic, group: str) -> None:
        self.topic, self.group = topic, group

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return RecvHandle(self.topic, self.group, caller)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class RecvHandle(Once):
    """One message or batch."""

    def __init__(self, topic: Topic, group: str, caller: Caller) -> None:
        super().__init__()
        self.topic, self.group, self.caller = topic, group, caller
        self.options = Options()
        self.taken: Taken | None = None
        self.gone = False

    def _told(self, data: bytes) -> None:
        self.options = options(data)

    def _again(self) -> bool:
        """Who read all of it goes on by options: where the close acknowledges, that is another open."""
        if not self.read_whole or self._acked_at_close():
            return False
        self.taken = None
        return True

    def _acked_at_close(self) -> bool:
        return (self.options.ack or self.topic.state.settings.ack) == "auto"

    async def _wanted(self) -> bytes:
        """Wait for it. Cancelled: nothing was taken. What came too late for a closed file goes back."""
        taken = await take(self.topic, Reader(self.group, self.caller.subject, self.options))
        if taken is None:
            return b""
        self.taken = taken
        try:
            messages = await bodies(self.topic, taken)
            if self.gone:
                raise Refused(408, "the file was closed", errno=EINTR)
        except OSError:
            if (batch := release(self.topic, self.group, taken)) is not None:
                await self.topic.settle(batch)
            raise
        return b"".join(map(self._shown, messages, range(len(messages))))

    def _shown(self, message: Message, nth: int) -> bytes:
        assert self.taken is not None
        kept, attempt, _, _ = self.taken.messages[nth]
        said: dict[str, object] = {"seq": kept.number, "ts": kept.sent, "attempt": attempt}
        if not nth and len(self.taken.messages) > 1:
            said["batch"] = len(self.taken.messages)
        if self.taken.lease:
            said |= {"lease": self.taken.lease, "vis_until": self.taken.until}
        return shown(message, said)

    def _finish(self, closed: bool) -> Awaitable[None] | None:
        self.gone = True
        taken, self.taken = self.taken, None
        if taken is None or self.data is None:
            return None
        topic, batch = self.topic, None
        if not self.read_whole:
            batch = release(topic, self.group, taken)
        elif closed and self._acked_at_close():
            batch = finish(topic, self.group, taken)
        if batch is None:
            return None
        topic.hurry()
        return topic.settle(batch) if closed else None

    def close(self) -> Maybe[None]:
        return self._finish(True)

    def abandon(self) -> None:
        self._finish(False)


class Sub(Stream):
    """`sub`: every message to every reader."""

    def __init__(self, topic: Topic) -> None:
        super().__init__(lambda: Follower(topic))

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        cursor = self.start()
        assert isinstance(cursor, Follower)
        return SubHandle(cursor)


class SubHandle(StreamHandle):
    """A stream that can also begin at a time."""

    cursor: Follower

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        number, t = place(bytes(data), self.cursor.topic.time())
        if self.began:
            raise Refused(409, "the first record was read already; open the stream again to seek")
        self.cursor.start(number, t)
        return len(data)


class Follower(Cursor):
    """A place in the topic's log. It holds nothing back: what is forgotten before it is read is lost."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.at = topic.journal.last
        self.number = topic.settled  # the next message
        self.since = 0.0
        self._rest: deque[bytes] = deque()

    def start(self, number: int | None, t: float | None) -> None:
        """Begin at a message, or with the first one that was sent at that time or later."""
        state = self.topic.state
        if number is not None:
            if number > self.topic.settled:
                raise Refused(416, f"the newest message is {self.topic.settled - 1}")
            self.number = max(number, 1)
            self.at = max(state.before(number=self.number) - 1, 0)
        elif t is not None:
            self.since = t
            self.at, self.number = max(state.before(t=t) - 1, 0), 0

    def next_nowait(self) -> bytes:
        for _ in range(AT_ONCE):
            if self._rest:
                return self._rest.popleft()
            try:
                record = self.topic.store.first_after_nowait(self.topic.key, self.at)
            except StoreError as e:
                raise Refused(503, str(e), retry_after=1) from e
            self._read(record.seq, record.data)
        raise WouldBlock

    async def next(self) -> bytes:
        while True:
            try:
                return self.next_nowait()
            except WouldBlock:
                pass
            try:
                record = await self.topic.store.first_after(self.topic.key, self.at)
            except StoreError as e:
                raise Refused(503, str(e), retry_after=1) from e
            self._read(record.seq, record.data)

    def _read(self, seq: int, data: bytes) -> None:
        self.at = seq
        record = unpack(data)
        if isinstance(record, End):
            self._rest.clear()
            raise Ended
        if not isinstance(record, Send) or record.first + len(record.messages) <= self.number:
            return
        if record.t < self.since:
            return
        if 0 < self.number < record.first:
            self._rest.append(f"lost n={record.first - self.number}\n".encode())
        for number, message in enumerate(record.messages, record.first):
            if number >= self.number:
                self._rest.append(shown(message, {"seq": number, "ts": record.t}))
        self.number = record.first + len(record.messages)


class Shown(Node):
    """Bytes that are found when the file is first read."""

    mode = 0o400

    def __init__(self, find: Callable[[], Awaitable[bytes]]) -> None:
        self.find = find

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        if flags & 0o1003:
            raise Refused(403, "this file is not for writing")
        return ShownHandle(self.find)


class ShownHandle(Handle):
    def __init__(self, find: Callable[[], Awaitable[bytes]]) -> None:
        self.find = find
        self.says: bytes | None = None

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        if self.says is None:
            return self._find(offset, count)
        return self.says[offset : offset + count]

    async def _find(self, offset: int, count: int) -> bytes:
        self.says = await self.find()
        return self.says[offset : offset + count]


