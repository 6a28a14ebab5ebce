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
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
from warren.servers.mailbox.records import Message, Seen, Send
from warren.servers.mailbox.words import Draft
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


class Sent(NamedTuple):
    """What became of a draft."""

    id: str
    number: int
    dup: bool


def longest(topic: Topic) -> int:
    """The longest body that can be sent."""
    return topic.store.limits.record - ROOM


def send(topic: Topic, drafts: Sequence[Draft], by: str) -> Awaitable[list[Sent]]:
    """Send all of them or none. Cancelled: none, or all.

    It is a promise, unless the topic's log must be read first.
    """
    if topic.stale:
        return _send_later(topic, drafts, by)
    return _send(topic, topic.fresh_nowait(), drafts, by)


async def _send_later(topic: Topic, drafts: Sequence[Draft], by: str) -> list[Sent]:
    await trio.lowlevel.checkpoint_if_cancelled()
    sent: list[Sent] = await _send(topic, await topic.fresh(), drafts, by)
    return sent


def _send(topic: Topic, state: State, drafts: Sequence[Draft], by: str) -> Promise:
    if not state.settings.queue and len(state.queues) == 1:
        raise Refused(409, "nobody would get it: the queue is off, and there is no group")
    sent: list[Sent | None] = []
    new: list[Draft] = []
    named: dict[bytes, Draft] = {}
    for draft in drafts:
        before = None
        if idem := draft.idem:
            key = _hashed(idem)
            if (seen := state.seen.get(key)) is not None:
                before = _again(seen, draft)
            elif named.setdefault(key, draft) is not draft:
                raise Refused(400, "an idempotency key is given twice in one batch")
        sent.append(before)
        if before is None:
            new.append(draft)
    topic.dups += len(drafts) - len(new)
    if not new:
        # It was decided, and may not be durable yet.
        return topic.promise(topic.journal.newest).then(lambda _: sent)
    heard = [key for d in new if d.heard and (key := _hashed(d.heard)) in state.seen and key not in named]
    _admit(topic, state, new, len(named) - len(set(heard)))
    record = _record(topic, state, new, list(named), heard, by)
    said = [Sent(m.id, number, False) for number, m in enumerate(record.messages, record.first)]
    if len(new) < len(drafts):
        ours = iter(said)
        said = [before or next(ours) for before in sent]
    return topic.promise(topic.do(record)).then(lambda _: said)


def _again(seen: Seen, draft: Draft) -> Sent:
    """The same message, sent before."""
    if not hmac.compare_digest(seen.payload, draft.payload()):
        raise Refused(409, f"idem={draft.idem} was used for another message, {seen.id}; use a new key")
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
    s, t = state.settings, state.t
    messages, seen = [], []
    keys, until = iter(named), t + s.dedupe
    for number, draft in enumerate(new, state.next):
        body, prio, delay, ttl, key, corr, type, idem, whole, _ = draft
        ends = min([t + life for life in (ttl, s.age) if life]) if ttl or s.age else 0.0
        message = Message(
            topic.ids.next(t), body, prio, t + delay if delay else 0.0, ends, key, corr, type, by, whole
        )
        messages.append(message)
        if idem:
            name = next(keys)
            if s.dedupe:
                seen.append(Seen(name, message.id, number, draft.payload(), until))
    topic.remember(state.next, messages)
    return Send(t, state.next, messages, seen, heard)


class Ids:
    """New ids: 48 bits of milliseconds, 80 of chance, as 26 letters."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._drawn = ""
        self._at = 0
        self._millisecond = -1
        self._time = ""

    def next(self, t: float) -> str:
        """One for a message that is sent at T."""
        millisecond, at = int(t * 1000), self._at
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._time = "".join([CROCKFORD[millisecond >> shift & 31] for shift in range(45, -1, -5)])
        if at == len(self._drawn):
            at = 0
            self._drawn = self._chance.randbytes(16 * _AHEAD).translate(_LETTERS).decode()
        self._at = at + 16
        return self._time + self._drawn[at : at + 16]


def _hashed(idem: str) -> bytes:
    """A key as it is remembered: of a long one the digest, which has 16 bytes as nothing else here has."""
    key = idem.encode()
    return b"=" + key if 15 != len(key) <= SHORT else blake2b(key, digest_size=16).digest()
