"""What a topic's log holds: everything that ever happened to its messages, one record each.

A record says what was decided, never what is to be decided: which messages a lease took, until when one is
put back. So the state of a topic follows from its records alone, whoever reads them and whenever.

Every record begins with its time `t`, by the topic's own clock, which never goes back. What time alone brings
about (a lease runs out, a delay is over) needs no record: it follows from `t` of the next one.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

MAIN: Final = ""
"""The name of the topic's own queue, among those of its groups."""


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message as it was sent, and what `recv` shows of it."""

    id: str
    body: bytes
    prio: int = 0
    after: float = 0.0  # not handed out before
    expires: float = 0.0  # of no use to anybody from then on; 0 is never
    key: str = ""
    corr: str = ""
    type: str = ""
    by: str = ""
    whole: bool = True  # False: the sender closed the file without having said how long the body is


class Seen(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An idempotency key: what it stood for, and until when."""

    key: bytes
    id: str
    number: int
    payload: bytes
    until: float


class Settings(msgspec.Struct, array_like=True, frozen=True):
    """What `set` sets."""

    ack: str = "explicit"
    lease: float = 30.0
    attempts: int = 5
    backoff: float = 0.2
    inflight: int = 1000
    count: int = 10_000
    bytes: int = 64 << 20
    age: float = 0.0
    full: str = "refuse"
    dedupe: float = 300.0
    replay: float = 0.0
    queue: bool = True


class Send(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Messages, numbered from FIRST on; of those with an idempotency key, what to remember; and which keys
    of earlier ones to forget."""

    t: float
    first: int
    messages: list[Message]
    seen: list[Seen] = []
    heard: list[bytes] = []


class Lease(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Messages handed out until then. Without a lease they are done with as they go (`ack=none`)."""

    t: float
    group: str
    numbers: list[int]
    lease: str
    by: str
    until: float


class Done(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Acknowledged."""

    t: float
    group: str
    numbers: list[int]


class Back(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Leases that end without an acknowledgement. What nobody could read does not count as an attempt."""

    t: float
    group: str
    numbers: list[int]
    after: float
    counted: bool


class Extend(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Leases that last until then instead."""

    t: float
    group: str
    numbers: list[int]
    until: float


class Change(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Settings in force from here on."""

    t: float
    settings: Settings


class Delete(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """Messages taken away from everybody; all that wait, if none is named."""

    t: float
    numbers: list[int] | None


class Redrive(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Dead letters put back with no attempts; all of them, if none is named."""

    t: float
    letters: list[tuple[str, int]] | None


class Bury(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """Dead letters that are deleted; all of them, if none is named."""

    t: float
    letters: list[tuple[str, int]] | None


class Group(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """A consumer group, which gets what waits now too, or only what is sent from here on."""

    t: float
    name: str
    waiting: bool


class Ungroup(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """A consumer group that is no more; what only it had still to get is gone."""

    t: float
    name: str


class Carry(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """Old messages that are still wanted, once more, so that the log before can be forgotten."""

    t: float
    numbers: list[int]
    messages: list[Message]


class Snap(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """A piece of the whole state, from which a reader may begin."""

    t: float
    part: int
    parts: int
    data: bytes


class End(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """The topic was removed."""

    t: float


Record: TypeAlias = (
    Send | Lease | Done | Back | Extend | Change | Delete | Redrive | Bury
    | Group | Ungroup | Carry | Snap | End
)

pack: Final = msgspec.msgpack.Encoder().encode
unpack: Final = msgspec.msgpack.Decoder[Record](Record).decode
