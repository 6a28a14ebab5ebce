"""The files of a topic: who may do what is decided by their paths, so each trade has its own.

    write   send send.h      to send
    read    recv, write ack  to receive, for the topic or one of its groups
    ctl     ctl, dlq/ctl     to operate
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from warren.servers.mailbox.leasing import answer
from warren.servers.mailbox.operating import bury, change, delete, group, letter, purge, redrive, ungroup
from warren.servers.mailbox.queue import Item
from warren.servers.mailbox.receiving import Recv, Shown, Sub
from warren.servers.mailbox.records import MAIN, Settings
from warren.servers.mailbox.words import (
    LEASE_LEAST,
    LEASE_MOST,
    answers,
    identity,
    shown,
)
from warren.servers.mailbox.writing import Send, SendH
from warren.store import Kept as KeptDir
from warren.store import named
from warren.tree import (
    Caller,
    Ctl,
    Dir,
    Duration,
    Handle,
    Maybe,
    Node,
    Refused,
    Sink,
    Stream,
    Text,
    verb,
)
from warren.tree.headers import LONGEST
from warren.tree.report import attributes, pairs
from warren.tree.words import SinkHandle

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic

_SIZE: Final = re.compile(r"(\d{1,12})([kmg]?)", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30}
MOST_COUNT, MOST_BYTES = 100_000, 16 << 30


class By(Sink):
    """A sink that knows who writes."""

    def __init__(self, put: Callable[[str, bytes], Maybe[str | bytes | None]]) -> None:
        super().__init__(lambda data: put("", data))
        self.put_by = put

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return SinkHandle(Sink(lambda data: self.put_by(caller.subject, data)))



class TopicDir(KeptDir):
    """A topic."""

    def __init__(self, topic: Topic) -> None:
        self.topic = self.ledger = topic
        super().__init__(
            {
                "send": Send(topic),
                "send.h": SendH(topic),
                **receiver(topic, MAIN),
                "sub": Sub(topic),
                "del": By(lambda by, data: _delete(topic, data)),
                "peek": Shown(lambda: peek(topic, MAIN)),
                "ctl": TopicCtl(topic),
                "settings": Text(lambda: settings(topic)),
                "stats": Text(lambda: stats(topic)),
                "events": Stream(topic.events),
                "groups": Groups(topic),
                "dlq": Letters(topic),
            }
        )


def receiver(topic: Topic, name: str) -> dict[str, Node]:
    """The two files that a receiver needs."""

    async def put(by: str, data: bytes) -> None:
        await answer(topic, name, by, answers(data))

    return {"recv": Recv(topic, name), "ack": By(put)}


async def _delete(topic: Topic, data: bytes) -> None:
    """Delete messages by their ids, one a line."""
    lines = data.decode("ascii", "replace").split()
    await delete(topic, list(dict.fromkeys(identity(line) for line in lines)))


async def peek(topic: Topic, name: str) -> bytes:
    """The message that would be given out next, or nothing."""
    await topic.fresh()
    item = topic.queue(name).first()
    if item is None:
        return b""
    kept = item.kept
    said = {"seq": kept.number, "ts": kept.sent, "attempt": item.attempts + 1}
    return shown(await topic.body(kept), said)


async def settings(topic: Topic) -> str:
    """As `set` takes them."""
    state = await topic.fresh()
    return attributes(msgspec.structs.asdict(state.settings))


async def stats(topic: Topic) -> str:
    """What there is now, and what happened ever since the topic was made."""
    await topic.fresh()
    return attributes(topic.measures())


class Groups(Dir):
    """Consumer groups: `mkdir` makes one, `rmdir` ends it."""

    mode = 0o755

    def __init__(self, topic: Topic) -> None:
        super().__init__()
        self.topic = topic
        self._nodes: dict[str, Dir] = {}

    async def lookup(self, name: str) -> Node | None:
        state = await self.topic.fresh()
        return self._node(name) if name and name in state.queues else None

    async def list(self) -> Iterable[tuple[str, Node]]:
        state = await self.topic.fresh()
        return [(name, self._node(name)) for name in state.queues if name]

    def _node(self, name: str) -> Dir:
        topic = self.topic
        for gone in [known for known in self._nodes if known not in topic.state.queues]:
            del self._nodes[gone]
        if name not in self._nodes:
            self._nodes[name] = Dir(
                {
                    **receiver(topic, name),
                    "peek": Shown(lambda: peek(topic, name)),
                    "stats": Text(lambda: self._stats(name)),
                }
            )
        return self._nodes[name]

    async def _stats(self, name: str) -> str:
        await self.topic.fresh()
        return attributes(self.topic.measures_of(name))

    async def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Node:
        await group(self.topic, named(name), waiting=False)
        return self._node(name)

    async def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        if directory is False:
            raise Refused(400, "a group is a directory", errno=21)
        await ungroup(self.topic, name)


class Letters(Dir):
    """Dead letters, each by its id; those of a group by `id.group`."""

    def __init__(self, topic: Topic) -> None:
        super().__init__({"ctl": LettersCtl(topic)})
        self.topic = topic
        self._nodes: dict[tuple[str, int], Dir] = {}

    async def lookup(self, name: str) -> Node | None:
        if name in self.entries:
            return self.entries[name]
        state = await self.topic.fresh()
        try:
            return self._node(*letter(state, name))
        except Refused:
            return None

    async def list(self) -> Iterable[tuple[str, Node]]:
        state = await self.topic.fresh()
        found: list[tuple[str, Node]] = list(self.entries.items())
        for name, queue in state.queues.items():
            tail = f".{name}" if name else ""
            found += [(item.kept.id + tail, self._node(name, n)) for n, item in queue.dead.items()]
        return found

    def _node(self, queue: str, number: int) -> Dir:
        state = self.topic.state
        if len(self._nodes) > 2 * state.dead + 64:
            kept = {(name, n) for name, known in state.queues.items() for n in known.dead}
            self._nodes = {key: node for key, node in self._nodes.items() if key in kept}
        if (queue, number) not in self._nodes:
            self._nodes[queue, number] = Dir(
                {
                    "reason": Shown(lambda: self._reason(queue, number)),
                    "head": Shown(lambda: self._letter(queue, number, body=False)),
                    "body": Shown(lambda: self._letter(queue, number, body=True)),
                }
            )
        return self._nodes[queue, number]

    async def _item(self, queue: str, number: int) -> Item:
        state = await self.topic.fresh()
        found = state.queues.get(queue)
        if found is None or number not in found.dead:
            raise Refused(404, "it is no dead letter any more")
        return found.dead[number]

    async def _reason(self, queue: str, number: int) -> bytes:
        item = await self._item(queue, number)
        said: dict[str, object] = {
            "reason": "max_attempts", "attempts": item.attempts, "last": item.why, "by": item.by,
            "ts": item.when,
        }  # fmt: skip
        return f"{pairs(said | ({'group': queue} if queue else {}))}\n".encode()

    async def _letter(self, queue: str, number: int, body: bool) -> bytes:
        item = await self._item(queue, number)
        message = await self.topic.body(item.kept)
        if body:
            return message.body
        whole = shown(message, {"seq": number, "ts": item.kept.sent})
        return whole[: len(whole) - len(message.body) - 1]


class LettersCtl(Ctl):
    """What is done with dead letters."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic

    @verb
    async def redrive(self, id: str) -> None:
        """Put the dead letter ID back with no attempts, or `all` of them."""
        await redrive(self.topic, id)

    @verb
    async def delete(self, id: str) -> None:
        """Delete the dead letter ID, or `all` of them."""
        await bury(self.topic, id)


class TopicCtl(Ctl):
    """How a topic is operated."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic

    @verb
    async def set(
        self, *, ack: Literal["explicit", "auto", "none"] | None = None, lease: Duration | None = None,
        attempts: int | None = None, backoff: Duration | None = None, inflight: int | None = None,
        count: int | None = None, bytes: str | None = None, age: Duration | None = None,
        full: Literal["refuse", "drop"] | None = None, dedupe: Duration | None = None,
        replay: Duration | None = None, queue: bool | None = None,
    ) -> None:  # fmt: skip
        """Change settings; the file settings shows them all, and the manual what they mean."""
        asked = {
            "ack": ack,
            "lease": _within("lease", lease, LEASE_LEAST, LEASE_MOST),
            "attempts": _within("attempts", attempts, 1, 1000),
            "backoff": _within("backoff", backoff, 0, 3600),
            "inflight": _within("inflight", inflight, 1, 10_000),
            "count": _within("count", count, 1, MOST_COUNT),
            "bytes": None if bytes is None else _within("bytes", _size(bytes), 1 << 10, MOST_BYTES),
            "age": _within("age", age, 0, LONGEST),
            "full": full,
            "dedupe": _within("dedupe", dedupe, 0, 86400),
            "replay": _within("replay", replay, 0, LONGEST),
            "queue": queue,
        }
        wanted = {name: value for name, value in asked.items() if value is not None}
        if not wanted:
            raise Refused(400, "say what to set, such as lease=1m; the file settings shows how it stands")

        def changed(now: Settings) -> Settings:
            return msgspec.structs.replace(now, **wanted)

        await change(self.topic, changed)

    @verb
    async def purge(self) -> None:
        """Delete all that waits; leased messages and dead letters stay."""
        await purge(self.topic)

    @verb
    async def group(self, name: str, begins: Literal["next", "first"] = "next") -> None:
        """Make a consumer group that begins with the next message, or with the first that waits now."""
        await group(self.topic, named(name), waiting=begins == "first")

    @verb
    async def ungroup(self, name: str) -> None:
        """End a consumer group; what only it had still to get is gone."""
        await ungroup(self.topic, name)


def _within(name: str, value: float | None, least: float, most: float) -> float | None:
    if value is not None and not least <= value <= most:
        raise Refused(400, f"{name} is from {least:g} to {most:g}, not {value:g}")
    return float(value) if isinstance(value, Duration) else value


def _size(word: str) -> int:
    found = _SIZE.fullmatch(word)
    if found is None:
        raise Refused(400, f"bytes is a number with k, m or g behind it, not {word[:32]!r}")
    return int(found[1]) << _UNITS[found[2].lower()]
