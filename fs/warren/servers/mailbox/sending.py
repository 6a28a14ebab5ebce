"""Sending: all of a write or none of it, once for each idempotency key.

A message with a key that is remembered is not sent again. If it is the same message, the answer is that of
the first time; if it is another one, it is refused. It is the same by body, `key`, `corr` and `type`.

Who heard the answer, and has no try of that message on its way any more, says so with a later message
(`heard=`). The earlier key is then forgotten with that record, before its time: so those who send much have
the topic remember what is outstanding, and not all of the last minutes.

A send is decided in the call, so what one writer sends is in the order in which it was written; what is
waited for is the disk.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Sequence
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from warren.servers.mailbox.records import Message, Seen, Send
from warren.servers.mailbox.words import Draft, Parcel
from warren.tree import Refused
from warren.tree.promise import Promise

if TYPE_CHECKING:
    from warren.servers.mailbox.state import State
    from warren.servers.mailbox.topic import Topic

CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ROOM: Final = 1 << 14  # of a record, for what stands beside the bodies
_LETTERS: Final = (CROCKFORD * 8).encode()
SHORT: Final = 48  # bytes of an idempotency key that is remembered as it is
_AHEAD: Final = 256  # ids that chance is drawn for at a time: each draw of the system's is a call to it


class Sent(msgspec.Struct, frozen=True, gc=False):
    """What became of a draft."""

    id: str
    number: int
    dup: bool


def longest(topic: Topic) -> int:
    """The longest body that can be sent."""
    return topic.store.limits.record - ROOM


def send(topic: Topic, parcel: Parcel, by: str) -> Awaitable[list[Sent]]:
    """Send all that is in it or nothing. Cancelled: nothing, or all.

    It is a promise, unless the topic's log must be read first.
    """
    if topic.stale:
        return _send_later(topic, parcel, by)
    return _send(topic, topic.fresh_nowait(), parcel, by)


async def _send_later(topic: Topic, parcel: Parcel, by: str) -> list[Sent]:
    await trio.lowlevel.checkpoint_if_cancelled()
    sent: list[Sent] = await _send(topic, await topic.fresh(), parcel, by)
    return sent


def _send(topic: Topic, state: State, parcel: Parcel, by: str) -> Promise:
    if not state.settings.queue and len(state.queues) == 1:
        raise Refused(409, "nobody would get it: the queue is off, and there is no group")
    drafts = parcel.drafts
    keys = [_kept(draft.idem) for draft in drafts]
    given = [key for key in keys if key]
    before: list[Sent | None] = []
    new, named = drafts, given
    if not state.seen.keys().isdisjoint(given):
        before = [_again(state.seen.get(key), draft) for key, draft in zip(keys, drafts, strict=True)]
        new = [draft for draft, was in zip(drafts, before, strict=True) if was is None]
        named = [key for key, was in zip(keys, before, strict=True) if key and was is None]
    if len(set(named)) < len(named):
        raise Refused(400, "an idempotency key is given twice in one batch")
    topic.dups += len(drafts) - len(new)
    if not new:
        # It was decided, and may not be durable yet.
        return topic.promise(topic.journal.newest).then(lambda _: before)
    heard = {key for idem in parcel.heard if (key := _kept(idem)) in state.seen}.difference(given)
    _admit(topic, state, new, len(named) - len(heard))
    record = _record(topic, state, new, named, list(heard), by)
    sent = [Sent(m.id, number, False) for number, m in enumerate(record.messages, record.first)]
    if before:
        ours = iter(sent)
        sent = [was or next(ours) for was in before]
    return topic.promise(topic.do(record)).then(lambda _: sent)


def _again(seen: Seen | None, draft: Draft) -> Sent | None:
    """The same message, if it was sent before."""
    if seen is None:
        return None
    if not hmac.compare_digest(seen.payload, draft.payload()):
        idem = draft.idem.decode()
        raise Refused(409, f"idem={idem} was used for another message, {seen.id}; use a new key")
    return Sent(seen.id, seen.number, True)


def _admit(topic: Topic, state: State, new: Sequence[Draft], keys: int) -> None:
    s = state.settings
    size, most = sum([len(draft.body) for draft in new]), longest(topic)
    if size > most:
        raise Refused(413, f"a message is at most {most} bytes, and so is a batch")
    if len(new) > s.count or size > s.bytes:
        raise Refused(413, f"the topic takes {s.count} messages and {s.bytes} bytes in all")
    if s.full == "refuse" and state.full(len(new), size):
        says = f"{len(state.messages)} of {s.count} messages, {state.bytes} of {s.bytes} bytes"
        raise Refused(429, f"the topic is full: {says}; receive some, or purge it", retry_after=1)
    if keys > 0 and len(state.seen) + keys > topic.limits.keys:
        raise Refused(429, f"{len(state.seen)} idempotency keys are remembered, the limit", retry_after=1)


def _record(
    topic: Topic, state: State, new: Sequence[Draft], named: list[bytes], heard: list[bytes], by: str
) -> Send:
    s, t, first = state.settings, state.t, state.next
    life, until = s.age, t + s.dedupe
    messages = [
        Message(
            id, d.body, d.prio, t + d.delay if d.delay else 0.0,
            t + min(d.ttl or life, life or d.ttl) if d.ttl or life else 0.0,
            d.key, d.corr, d.type, by, d.whole,
        )
        for id, d in zip(topic.ids.take(t, len(new)), new, strict=True)
    ]  # fmt: skip
    seen: list[Seen] = []
    if named and s.dedupe:
        keys = iter(named)
        seen = [
            Seen(next(keys), m.id, number, d.payload(), until)
            for number, (m, d) in enumerate(zip(messages, new, strict=True), first) if d.idem
        ]  # fmt: skip
    topic.remember(first, messages)
    return Send(t, first, messages, seen, heard)


class Ids:
    """New ids: 48 bits of milliseconds, 80 of chance, as 26 letters."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._drawn = ""
        self._at = 0
        self._millisecond = -1
        self._time = ""

    def take(self, t: float, count: int) -> list[str]:
        """So many for messages that are sent at T."""
        millisecond, at = int(t * 1000), self._at
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._time = "".join([CROCKFORD[millisecond >> shift & 31] for shift in range(45, -1, -5)])
        if at + 16 * count > len(self._drawn):
            at = 0
            self._drawn = self._chance.randbytes(16 * max(_AHEAD, count)).translate(_LETTERS).decode()
        self._at = at + 16 * count
        time, drawn = self._time, self._drawn
        return [time + drawn[begins : begins + 16] for begins in range(at, self._at, 16)]


def _kept(idem: bytes) -> bytes:
    """A key as it is remembered: of a long one the digest, which has 16 bytes as nothing else here has."""
    if 15 != len(idem) <= SHORT:
        return b"=" + idem if idem else b""
    return blake2b(idem, digest_size=16).digest()
