"""What operators do to a topic: settings, groups, purging, dead letters, removal.

Every function decides on the topic as it is now and answers when that is durable. Cancelled: it was not done,
or it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import ENOTEMPTY
from typing import TYPE_CHECKING

import trio
from warren.servers.mailbox.records import (
    MAIN,
    Bury,
    Change,
    Delete,
    End,
    Group,
    Record,
    Redrive,
    Settings,
    Ungroup,
)
from warren.servers.mailbox.state import State
from warren.store import StoreError
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic


async def _decide(topic: Topic, record: Callable[[State], Record]) -> None:
    await trio.lowlevel.checkpoint_if_cancelled()
    await topic.settle(topic.do(record(await topic.fresh())))


async def change(topic: Topic, settings: Callable[[Settings], Settings]) -> None:
    """Put other settings in force."""
    await _decide(topic, lambda state: Change(state.t, settings(state.settings)))


async def delete(topic: Topic, ids: Sequence[str]) -> None:
    """Take messages away from everybody, whoever has them leased."""

    def decided(state: State) -> Record:
        for id in ids:
            if id not in state.ids:
                raise Refused(404, f"there is no message {id} (any more)")
        return Delete(state.t, [state.ids[id] for id in ids])

    await _decide(topic, decided)


async def purge(topic: Topic) -> None:
    """Delete all that waits."""
    await _decide(topic, lambda state: Delete(state.t, None))


def letter(state: State, name: str) -> tuple[str, int]:
    """The queue and number of a dead letter, by the name it is listed under."""
    id, _, group = name.partition(".")
    number, queue = state.ids.get(id, 0), state.queues.get(group)
    if queue is None or number not in queue.dead:
        raise Refused(404, f"there is no dead letter {name[:100]!r}")
    return group, number


async def redrive(topic: Topic, name: str) -> None:
    """Put a dead letter back, or `all` of them."""
    await _decide(topic, lambda s: Redrive(s.t, None if name == "all" else [letter(s, name)]))


async def bury(topic: Topic, name: str) -> None:
    """Delete a dead letter, or `all` of them."""
    await _decide(topic, lambda s: Bury(s.t, None if name == "all" else [letter(s, name)]))


async def group(topic: Topic, name: str, waiting: bool) -> None:
    """Make a consumer group."""

    def decided(state: State) -> Record:
        if name in state.queues:
            raise Refused(409, f"there is a group {name}")
        if len(state.queues) > topic.limits.groups:
            raise Refused(507, f"{topic.limits.groups} groups exist, the limit of a topic; remove one")
        return Group(state.t, name, waiting)

    await _decide(topic, decided)


async def ungroup(topic: Topic, name: str) -> None:
    """End a consumer group."""

    def decided(state: State) -> Record:
        if name == MAIN or name not in state.queues:
            raise Refused(404, "file does not exist")
        return Ungroup(state.t, name)

    await _decide(topic, decided)


async def remove(topic: Topic) -> None:
    """End an empty topic. The log says so first, so that what is left undone may be done by anybody."""
    state = await topic.fresh()
    if state.messages:
        says = f"{len(state.messages)} messages are here; receive or purge them, and look into dlq"
        raise Refused(409, says, errno=ENOTEMPTY)
    with trio.CancelScope(shield=True):
        await topic.settle(topic.do(End(state.t)))
        topic.end()
        await forget(topic)


async def forget(topic: Topic) -> None:
    """Take an ended topic out of the store's table."""
    try:
        await topic.store.trim(topic.key, 1)
        await topic.store.delete(topic.key, expect=topic.revision)
    except StoreError:
        pass  # somebody was first, or whoever looks for it next does it
