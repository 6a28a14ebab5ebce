"""Receiving: who gets a message, for how long, and what ends it.

A reader is given messages only by `serve` or at once by `take`; both note the lease before anything else can
happen, so no message goes to two. From then until the lease is durable the reader cannot be cancelled: a
flush that comes too late finds the message in the reply.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio
from warren.servers.mailbox.line import Line, Reader, Taken
from warren.servers.mailbox.queue import Item, Queue
from warren.servers.mailbox.records import MAIN, Back, Done, Extend, Lease, Message
from warren.servers.mailbox.words import BATCH_BYTES, Answer
from warren.store import Batch
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic

BACKOFF_MOST: Final = 60.0


async def take(topic: Topic, reader: Reader) -> Taken | None:
    """Messages for a reader, leased and durable; None when it waited as long as it wanted.

    Cancelled: nothing was taken.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await topic.fresh()
    queue = topic.queue(reader.group)
    if reader.group == MAIN and not state.settings.queue:
        raise Refused(409, "the queue of this topic is off; read from one of its groups")
    if topic.lines.get(reader.group) or not _lease(topic, queue, reader):
        await _wait(topic, reader)
    if reader.error is not None:
        raise reader.error
    if (taken := reader.taken) is None:
        return None
    try:
        await topic.settle(taken.batch)
    except Refused:
        _unpin(topic, taken)
        raise
    return taken


async def _wait(topic: Topic, reader: Reader) -> None:
    if topic.readers() >= topic.limits.readers:
        raise Refused(429, f"{topic.limits.readers} readers wait here, the limit", retry_after=1)
    line = topic.lines.setdefault(reader.group, Line())
    if reader.options.wait is not None:
        topic.wake_at(topic.clock.monotonic() + reader.options.wait, reader)
    try:
        await line.wait(reader)
    finally:
        if not line and topic.lines.get(reader.group) is line:
            del topic.lines[reader.group]


async def bodies(topic: Topic, taken: Taken) -> list[Message]:
    """What was taken. Cancelled: not while it is read."""
    places = [(kept.number, at, index) for kept, _, at, index in taken.messages]
    try:
        with trio.CancelScope(shield=True):
            found = await topic.messages(places)
    finally:
        _unpin(topic, taken)
    return found


def _unpin(topic: Topic, taken: Taken) -> None:
    for _, _, at, _ in taken.messages:
        topic.unpin(at)


def serve(topic: Topic, group: str) -> None:
    """Give what there is to those whose turn it is."""
    line, queue = topic.lines[group], topic.state.queues.get(group)
    if queue is None:
        line.end(Refused(404, f"the group {group} was removed"))
    while line and queue is not None and queue.ready and len(queue.leased) < topic.state.settings.inflight:
        reader = line.next()
        _lease(topic, queue, reader)
        reader.wake()


def _lease(topic: Topic, queue: Queue, reader: Reader) -> bool:
    s, t, o = topic.state.settings, topic.state.t, reader.options
    picked = queue.pick(min(o.max, s.inflight - len(queue.leased)), BATCH_BYTES)
    if not picked:
        return False
    lease = "" if (o.ack or s.ack) == "none" else f"{topic.chance.getrandbits(96):024x}"
    until = t + (s.lease if o.vis is None else o.vis) if lease else 0.0
    given = [(item.kept, item.attempts + 1, item.kept.at, item.kept.index) for item in picked]
    for _, _, at, _ in given:
        topic.pin(at)
    numbers = [kept.number for kept, _, _, _ in given]
    batch = topic.do(Lease(t, queue.name, numbers, lease, reader.subject, until))
    reader.taken = Taken(given, lease, until, batch)
    return True


def release(topic: Topic, group: str, taken: Taken) -> Batch | None:
    """Give back what nobody could read. It does not count as an attempt."""
    numbers, t = _still(topic, group, taken), topic.state.t
    return topic.do(Back(t, group, numbers, t, False)) if numbers else None


def finish(topic: Topic, group: str, taken: Taken) -> Batch | None:
    """Acknowledge what was read to its end (`ack=auto`)."""
    numbers = _still(topic, group, taken)
    return topic.do(Done(topic.state.t, group, numbers)) if numbers else None


def _still(topic: Topic, group: str, taken: Taken) -> list[int]:
    """What is leased by this very lease now."""
    if topic.stale or topic.gone or not taken.lease:
        return []
    topic.advance()
    queue = topic.state.queues.get(group)
    leased = queue.leased if queue is not None else {}
    numbers = [kept.number for kept, _, _, _ in taken.messages]
    return [n for n in numbers if n in leased and leased[n].lease == taken.lease]


async def answer(topic: Topic, group: str, subject: str, answers: Sequence[Answer]) -> None:
    """Acknowledge, give back or extend, all or none. Cancelled: none, or all."""
    await trio.lowlevel.checkpoint_if_cancelled()
    t = (await topic.fresh()).t
    queue = topic.queue(group)
    found = [(each, _leased(topic, queue, subject, each)) for each in answers]
    batch: Batch | None = None
    if done := [item.kept.number for each, item in found if each.verb == "ack"]:
        batch = topic.do(Done(t, group, done))
    for each, item in found:
        number, delay = [item.kept.number], each.delay
        if each.verb == "nack":
            after = t + (_backoff(topic, item) if delay is None else delay)
            batch = topic.do(Back(t, group, number, after, True))
        elif each.verb == "extend":
            batch = topic.do(Extend(t, group, number, t + (delay or 0.0)))
    if batch is not None:
        await topic.settle(batch)


def _leased(topic: Topic, queue: Queue, subject: str, answer: Answer) -> Item:
    """The lease that an answer is about. Whoever guesses learns nothing from the refusal."""
    item = queue.leased.get(topic.state.ids.get(answer.id, 0))
    mine = item is not None and item.by == subject
    if item is None or not mine or (answer.lease and not hmac.compare_digest(item.lease, answer.lease)):
        why = "it ran out, it was answered before, or it is another's"
        raise Refused(409, f"you have no such lease on {answer.id}: {why}")
    return item


def _backoff(topic: Topic, item: Item) -> float:
    """Full jitter: as likely at once as at the end of a time that doubles with every attempt."""
    most = topic.state.settings.backoff * 2.0 ** min(item.attempts - 1, 30)
    return topic.chance.uniform(0.0, min(most, BACKOFF_MOST))
