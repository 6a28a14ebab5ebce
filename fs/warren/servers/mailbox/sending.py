"""Sending: all of a write or none of it, once for each idempotency key.

A message with a key that is remembered is not sent again. If it is the same message, the answer is that of
the first time; if it is another one, it is refused. It is the same by body, `key`, `corr` and `type`.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
from warren.servers.mailbox.records import Message, Seen, Send
from warren.servers.mailbox.words import Draft
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic

CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ROOM: Final = 1 << 14  # of a record, for what stands beside the bodies


class Sent(NamedTuple):
    """What became of a draft."""

    id: str
    number: int
    dup: bool


def longest(topic: Topic) -> int:
    """The longest body that can be sent."""
    return topic.store.limits.record - ROOM


async def send(topic: Topic, drafts: Sequence[Draft], by: str) -> list[Sent]:
    """Send all of them or none. Cancelled: none, or all."""
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await topic.fresh()
    if not state.settings.queue and len(state.queues) == 1:
        raise Refused(409, "nobody would get it: the queue is off, and there is no group")
    sent: list[Sent | None] = [_before(topic, draft) for draft in drafts]
    new = [draft for draft, before in zip(drafts, sent, strict=True) if before is None]
    named = [draft.idem for draft in new if draft.idem]
    if len(set(named)) < len(named):
        raise Refused(400, "an idempotency key is given twice in one batch")
    topic.dups += len(drafts) - len(new)
    if not new:
        # It was decided, and may not be durable yet.
        await topic.barrier()
        return [before for before in sent if before is not None]
    _admit(topic, new, len(named))
    record = _record(topic, new, by)
    ours = iter([Sent(m.id, number, False) for number, m in enumerate(record.messages, record.first)])
    await topic.settle(topic.do(record))
    return [before or next(ours) for before in sent]


def _before(topic: Topic, draft: Draft) -> Sent | None:
    """The same message, sent before."""
    seen = topic.state.seen.get(_hashed(draft.idem)) if draft.idem else None
    if seen is None:
        return None
    if not hmac.compare_digest(seen.payload, draft.payload()):
        raise Refused(409, f"idem={draft.idem} was used for another message, {seen.id}; use a new key")
    return Sent(seen.id, seen.number, True)


def _admit(topic: Topic, new: Sequence[Draft], keys: int) -> None:
    state, s = topic.state, topic.state.settings
    size, most = sum(len(draft.body) for draft in new), longest(topic)
    if size > most:
        raise Refused(413, f"a message is at most {most} bytes, and so is a batch")
    if len(new) > s.count or size > s.bytes:
        raise Refused(413, f"the topic takes {s.count} messages and {s.bytes} bytes in all")
    if s.full == "refuse" and state.full(len(new), size):
        says = f"{len(state.messages)} of {s.count} messages, {state.bytes} of {s.bytes} bytes"
        raise Refused(429, f"the topic is full: {says}; receive some, or purge it", retry_after=1)
    if keys and len(state.seen) + keys > topic.limits.keys:
        raise Refused(429, f"{len(state.seen)} idempotency keys are remembered, the limit", retry_after=1)


def _record(topic: Topic, new: Sequence[Draft], by: str) -> Send:
    state, s, t = topic.state, topic.state.settings, topic.state.t
    messages, seen = [], []
    for number, draft in enumerate(new, state.next):
        ends = [t + life for life in (draft.ttl, s.age) if life]
        message = Message(
            _ulid(topic, t), draft.body, draft.prio, t + draft.delay if draft.delay else 0.0,
            min(ends, default=0.0), draft.key, draft.corr, draft.type, by, draft.whole,
        )  # fmt: skip
        messages.append(message)
        topic.remember(number, message)
        if draft.idem and s.dedupe:
            seen.append(Seen(_hashed(draft.idem), message.id, number, draft.payload(), t + s.dedupe))
    return Send(t, state.next, messages, seen)


def _ulid(topic: Topic, t: float) -> str:
    """A new id: 48 bits of milliseconds, 80 of chance."""
    value = int(t * 1000) << 80 | topic.chance.getrandbits(80)
    return "".join([CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5)])


def _hashed(idem: str) -> bytes:
    return blake2b(idem.encode(), digest_size=16).digest()
