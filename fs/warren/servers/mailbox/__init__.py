"""/mailbox: messages that wait until somebody has done with them.

    /ctl              Ctl     verbs: create, remove
    /stats /metrics   Text    every topic's counts
    /<topic>/         mkdir makes one, rmdir removes an empty one
        send          Sink    one write is one message, never looked into; read back: id= seq= dup=
        send.h        Blob    headers, an empty line, the body; or a batch of such
        recv          read    waits; one message or batch an open: id= seq= attempt= lease= vis_until= len=,
                              an empty line, the body. Write options first: max= vis= wait= ack=
        ack           Sink    ID [LEASE] | nack ID [LEASE] [delay=D] | extend ID [LEASE] D, a line each
        sub           Stream  every message to every reader, from now on; write `from SEQ|TIME` or `since D`
        del           Sink    ids of messages to delete, whoever has them
        peek          bytes   what recv would give next
        ctl           Ctl     verbs: set, purge, group, ungroup
        settings      Text    what set has set
        stats         Text    depth= inflight= dlq= …
        events        Stream  dead, expired, dropped, purged, redriven, set, …: one record a read
        groups/<g>/   mkdir makes a consumer group, with recv ack peek stats of its own
        dlq/          dead letters: <id>/{reason,head,body}, and ctl: redrive, delete

**At least once.** A send that was answered is in the store. A message is handed out under a lease, and again
when the lease ends without an acknowledgement, until it was tried `attempts` times; then it is a dead letter.
Nothing unacknowledged is ever dropped unless `set full=drop`, `age=` or the sender's `ttl=` says so: a full
topic refuses (429). With `ack=none` a message is gone when it is handed out: at most once.

**Order.** Messages with the same `key=` are handed out one after the other, as they were sent. Others come
by priority, then in order of sending, but a lease that ends, a delay or a second reader changes that.

**Leases** are random and belong to whoever received. To name one, its message's id is enough, or the lease's
own too. An open that is closed before its last byte was read gives its message back, uncounted. A read that
is flushed while it waits takes nothing.

**sub** is not a queue: it has no leases, and a reader that lags behind what is kept finds `lost n=`. What is
done with is kept for it while `set replay=` says so. Who must not lose anything makes a group.

Everything is in the store, also leases and attempts, so another process can go on where this one stopped.
`keep` sees to what comes by time alone; run it beside. Without it that happens at the next use.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Final

import msgspec
import trio
from warren.servers.mailbox.files import TopicDir, named
from warren.servers.mailbox.operating import remove
from warren.servers.mailbox.tidy import Pointer
from warren.servers.mailbox.topic import COUNTED, Limits, Topic, refusal
from warren.store import Conflict, NotFound, Store, StoreError
from warren.tree import Caller, Ctl, Dir, Maybe, Node, Refused, verb
from warren.tree.ports import Clock
from warren.tree.report import Count, counts

TAKEN: Final = frozenset(("ctl", "stats", "metrics", "dev"))
_AGAIN: Final = 1.0  # seconds until a topic whose store refused is looked at again


GAUGES: Final = {
    "depth": "messages that wait in the topic's own queue",
    "inflight": "messages under a lease, of all queues",
    "delayed": "messages that wait for a time",
    "dlq": "dead letters",
    "messages": "messages that somebody has still to get",
    "bytes": "what they are charged",
    "readers": "reads that wait",
    "oldest_age": "seconds since the oldest of them was sent",
    "log": "records kept",
}


class Mailbox(Dir):
    """The tree. Topics live in STORE under the name UNDER."""

    mode = 0o755

    def __init__(
        self, store: Store, clock: Clock, *, limits: Limits | None = None, under: str = "mailbox",
        chance: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.store, self.clock, self.under = store, clock, under
        self.limits = limits or Limits()
        self.chance = chance or random.SystemRandom()
        self.topics: dict[str, TopicDir] = {}
        self._until = -inf  # when `keep` looks again; never, while it does not run
        self._nap: trio.CancelScope | None = None
        super().__init__({"ctl": MailboxCtl(self), **counts(self._counted)})

    # Topics

    def lookup(self, name: str) -> Maybe[Node | None]:
        known = self.topics.get(name)
        if known is not None and not known.topic.gone:
            return known
        return self.entries.get(name) or self._find(name)

    async def _names(self) -> Sequence[str]:
        try:
            keys = await self.store.keys(self.under, limit=self.limits.topics)
        except StoreError as e:
            raise refusal(e) from e
        return [key.removeprefix(f"{self.under}/") for key in keys]

    async def list(self) -> Iterable[tuple[str, Node]]:
        found: dict[str, Node] = dict(self.entries)
        for name in await self._names():
            if (topic := await self._find(name)) is not None:
                found[name] = topic
        return found.items()

    async def _find(self, name: str) -> TopicDir | None:
        """The topic of that name, its log read. Cancelled: no effect."""
        known = self.topics.get(name)
        if known is not None and not known.topic.gone:
            return known
        self.topics = {known: node for known, node in self.topics.items() if not node.topic.gone}
        try:
            named(name)
            await self.store.get(f"{self.under}/{name}")
        except (Refused, NotFound):
            return None
        except StoreError as e:
            raise refusal(e) from e
        if len(self.topics) >= self.limits.topics:
            raise Refused(507, f"{self.limits.topics} topics are in use, the limit")
        made = Topic(name, self.under, self.store, self.clock, self.limits, self.chance, self._soon)
        node = self.topics.setdefault(name, TopicDir(made))
        try:
            await node.topic.fresh()
        except Refused as e:
            if e.code != 404:
                raise
            self.topics.pop(name, None)
            return None
        return node

    async def make(self, name: str) -> TopicDir:
        """Make a topic. Cancelled: it was made, or not."""
        if named(name) in TAKEN:
            raise Refused(400, f"{name} is a file of the mailbox; choose another name")
        if len(await self._names()) >= self.limits.topics:
            raise Refused(507, f"{self.limits.topics} topics exist, the limit; remove one")
        key = f"{self.under}/{name}"
        try:
            start = await self.store.last(key)
            await self.store.put(key, msgspec.msgpack.encode(Pointer(start)), expect=0)
        except Conflict:
            raise Refused(409, f"there is a topic {name}") from None
        except StoreError as e:
            raise refusal(e) from e
        made = await self._find(name)
        if made is None:
            raise Refused(409, f"the topic {name} was removed at once by another process")
        return made

    async def remove(self, name: str) -> None:
        """Remove an empty topic. Cancelled: it is there, or not."""
        found = await self._find(name)
        if found is None:
            raise Refused(404, "file does not exist")
        await remove(found.topic)
        self.topics.pop(name, None)

    async def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Node:
        return await self.make(name)

    async def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        if name in self.entries:
            raise Refused(403, f"{name} belongs to the mailbox")
        if directory is False:
            raise Refused(400, "a topic is a directory", errno=21)
        await self.remove(name)

    # Time

    async def keep(self) -> None:
        """Let happen what time brings: leases that run out, delays, readers that waited long enough.

        Runs until cancelled, which leaves all that for the next use of each topic.
        """
        try:
            while True:
                soonest = self._until = inf
                for node in list(self.topics.values()):
                    soonest = min(soonest, await self._tick(node.topic))
                self._until = soonest = min(soonest, self._until)  # what came while we looked counts too
                with trio.CancelScope() as self._nap:
                    if soonest == inf:
                        await trio.sleep_forever()
                    await self.clock.sleep_until(soonest)
                self._nap = None
        finally:
            self._until, self._nap = -inf, None

    async def _tick(self, topic: Topic) -> float:
        due = topic.due()
        now = self.clock.monotonic()
        if topic.gone:
            return inf
        if (due is not None and due <= now) or not topic.journal.idle or topic.stale:
            try:
                await topic.tick()
            except Refused:
                return self.clock.monotonic() + _AGAIN
            due = topic.due()
        return inf if due is None else due

    def _soon(self, due: float) -> None:
        """Look again at that time."""
        if due < self._until:
            self._until = due
            if self._nap is not None:
                self._nap.cancel()

    # Counts

    def _counted(self) -> Iterable[Count]:
        measured: dict[str, Mapping[str, float]] = {
            name: node.topic.measures() for name, node in sorted(self.topics.items()) if not node.topic.gone
        }
        for name in (*GAUGES, *COUNTED, "dup"):
            values: dict[tuple[str, ...], float] = {(topic,): m[name] for topic, m in measured.items()}
            if name in GAUGES:
                yield Count(f"mailbox_{name}", GAUGES[name], values, ("topic",), "gauge")
            else:
                yield Count(f"mailbox_{name}_total", f"messages {name}", values, ("topic",))


class MailboxCtl(Ctl):
    """Topics, by verb."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    @verb
    async def create_(self, topic: str) -> None:
        """Make a TOPIC, as mkdir does."""
        await self.mailbox.make(topic)

    @verb
    async def remove(self, topic: str) -> None:
        """Remove an empty TOPIC, as rmdir does."""
        await self.mailbox.remove(topic)


__all__ = ["Limits", "Mailbox"]
