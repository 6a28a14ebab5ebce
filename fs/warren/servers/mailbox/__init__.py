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
from typing import Final

import msgspec
from warren.servers.mailbox.files import TopicDir
from warren.servers.mailbox.operating import remove
from warren.servers.mailbox.tidy import Pointer
from warren.servers.mailbox.topic import COUNTED, Limits, Topic
from warren.store import Keeper, Store
from warren.tree import Ctl, verb
from warren.tree.ports import Clock
from warren.tree.report import counts

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


class Mailbox(Keeper[TopicDir]):
    """The tree. Topics live in STORE under the name UNDER."""

    noun = "topic"
    counting = ("mailbox", "messages")
    gauges = GAUGES
    counters = (*COUNTED, "dup")

    def __init__(
        self, store: Store, clock: Clock, *, limits: Limits | None = None, under: str = "mailbox",
        chance: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.limits = limits or Limits()
        super().__init__(store, clock, under, self.limits.topics, chance)
        self.entries = {"ctl": MailboxCtl(self), **counts(self.counts)}

    def _made(self, name: str) -> TopicDir:
        topic = Topic(name, self.under, self.store, self.clock, self.limits, self.chance, self.soon)
        return TopicDir(topic)

    def _begins(self, start: int) -> bytes:
        return msgspec.msgpack.encode(Pointer(start))

    async def _end(self, node: TopicDir) -> None:
        await remove(node.topic)


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
