"""Keeping a topic's log short.

    | forgotten | messages that are still wanted … | snapshot | what happened since |

Replay begins at a snapshot, so it is as long as what happened since: at most EVERY records, or four times as
many as there are messages. The log before the snapshot is kept only for the bodies that lie in it, and for
those who may replay it (`set replay=`). A few old messages must not hold all of it for ever: when what is
kept is several times what is wanted, the oldest are written once more at its end.

The order makes it safe to stop anywhere: the snapshot is in the log, then the store's table points at it,
then what lies before is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from warren.servers.mailbox.records import Carry, Message, Snap

if TYPE_CHECKING:
    from warren.servers.mailbox.topic import Topic

EVERY: Final = 16_384
_PIECE: Final = 512 << 10
_CARRIED: Final = 256  # messages, or
_CARRIED_BYTES: Final = 512 << 10
_ROUNDS: Final = 64


class Pointer(msgspec.Struct, array_like=True, frozen=True):
    """What the store's table says of a topic: replay begins behind this record."""

    start: int


def wants_tidying(topic: Topic) -> bool:
    """Whether so much happened since the last snapshot that another is due."""
    since = topic.journal.last - max(topic.base, topic.tidied)
    return since > topic.every and not topic.tidying and since > _enough(topic)


def _enough(topic: Topic) -> int:
    return max(topic.every, 4 * sum(len(queue) for queue in topic.state.queues.values()))


async def shorten(topic: Topic) -> None:
    """Write a snapshot and forget what nobody needs."""
    for _ in range(_ROUNDS):
        if not await _carry(topic):
            break
    await _snapshot(topic)


async def _carry(topic: Topic) -> bool:
    """Write the oldest messages once more, if the log is long for their sake."""
    state = topic.state
    oldest = state.oldest()
    if oldest is None or topic.journal.last - oldest < 4 * _enough(topic):
        return False
    bodies: dict[int, Message] = {}
    size = 0
    for kept in sorted(state.messages.values(), key=lambda kept: kept.at)[:_CARRIED]:
        if size > _CARRIED_BYTES:
            break
        bodies[kept.number] = await topic.body(kept)
        size += kept.size
    state = await topic.fresh()
    numbers = [number for number in bodies if number in state.messages]
    if numbers:
        batch = topic.do(Carry(state.t, numbers, [bodies[number] for number in numbers]))
        await topic.journal.settle(batch)
    return True


async def _snapshot(topic: Topic) -> None:
    state = await topic.fresh()
    data, first = state.dump(), topic.journal.next
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
    for part, piece in enumerate(pieces):
        batch = topic.do(Snap(state.t, part, len(pieces), piece))
    await topic.journal.settle(batch)
    value = msgspec.msgpack.encode(Pointer(first - 1))
    topic.revision = await topic.store.put(topic.key, value, expect=topic.revision)
    topic.base = first - 1
    needed = [first, topic.state.oldest(), topic.state.history(), *topic.pinned]
    # What was decided may let go of a message that is still needed if the decision comes to nothing.
    await topic.journal.flush()
    topic.kept = await topic.store.trim(topic.key, through=min(at for at in needed if at is not None) - 1)
