"""What a queue's log holds, one record for each thing that was decided, and how it reads as text.

A record says what was decided, never what is to be decided: which lease a worker got, until when a task
waits. So the state of a queue follows from its records alone, whoever reads them and whenever. What time
alone brings about (a lease that ends, a delay that is over) needs no record: it follows from the time of the
next one.

    seq=12 ts=1800000000.25 kind=enq task=3 prio=0 … len=5      a record as `log` and `drain` show it
                                                                an empty line
    hello                                                       the body, if there is `len=`, and a newline

Records that begin anywhere but at `made` begin at a `snapshot`, which is followed by its parts: `item`,
`effect` and `finish`. A snapshot that is not whole means nothing, as if it had never been written.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec
from warren.tree import Refused, quote, split

ALL: Final = 0
"""In the place of a task's number."""


class Settings(msgspec.Struct, array_like=True, frozen=True):
    """What `set` sets."""

    lease: float = 30.0
    attempts: int = 5
    backoff: float = 1.0
    high: int = 1000
    low: int = 100
    count: int = 10_000
    bytes: int = 16 << 20
    keep: float = 7 * 86400.0


class Made(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The queue begins."""

    t: float
    generation: int


class Enq(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A task."""

    t: float
    task: int
    prio: int
    key: str
    effect: str
    most: int  # attempts; 0 is as the queue has it
    after: float  # not handed out before
    by: str
    body: bytes


class Lease(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A task handed out until then. `mark` is the hash of its fence's secret, so that no reader of the log
    can answer in the worker's place."""

    t: float
    task: int
    attempt: int
    mark: str
    by: str
    until: float


class Hb(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """A lease that lasts until then instead."""

    t: float
    task: int
    until: float


class Done(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """A task done, with its result; the first one for that effect stands."""

    t: float
    task: int
    effect: str
    result: str


class Back(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """A lease that ended otherwise. What nobody could read does not count against the attempts."""

    t: float
    task: int
    after: float
    counted: bool
    bury: bool
    why: str


class Requeue(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """A dead task that waits again; all of them for ALL."""

    t: float
    task: int


class Set(Settings, array_like=True, frozen=True, tag=8):
    """Settings in force from here on."""

    t: float = 0.0


class Drain(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """All that is left was given away: leases end, and nothing is taken or handed out any more."""

    t: float


class Resume(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """A drained queue that goes on after all, in another generation."""

    t: float
    generation: int


class End(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """The queue was removed; one of the same name begins in a later generation."""

    t: float
    generation: int


class Snapshot(Settings, array_like=True, frozen=True, tag=12):
    """The whole state; so many parts follow."""

    t: float = 0.0
    parts: int = 0
    generation: int = 0
    next: int = 1
    drained: bool = False
    pressed: bool = False
    enqueued: int = 0
    leased: int = 0
    done: int = 0
    failed: int = 0
    expired: int = 0
    returned: int = 0
    died: int = 0
    requeued: int = 0


class Item(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """A task as it stands: ready, delayed, blocked, leased or dead."""

    task: int
    sent: float
    prio: int
    key: str
    effect: str
    most: int
    by: str
    state: str
    when: float
    attempt: int
    tries: int
    mark: str
    worker: str
    why: str
    body: bytes


class Effect(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """What was done once and is not done again until then."""

    effect: str
    task: int
    result: str
    until: float


class Finish(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """A task that was done, so that a late worker can be told."""

    task: int
    at: float
    attempt: int
    mark: str
    by: str
    effect: str
    result: str


Record: TypeAlias = (
    Made | Enq | Lease | Hb | Done | Back | Requeue | Set | Drain | Resume | End
    | Snapshot | Item | Effect | Finish
)
Part: TypeAlias = Item | Effect | Finish

pack: Final = msgspec.msgpack.Encoder().encode
unpack: Final = msgspec.msgpack.Decoder[Record](Record).decode

_KINDS: Final[dict[str, Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        Made, Enq, Lease, Hb, Done, Back, Requeue, Set, Drain, Resume, End, Snapshot, Item, Effect, Finish
    )
}  # fmt: skip
_HEAD: Final = 16 << 10  # of a record as text
_NAMES: Final = {"t": "ts"}


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    # All digits of a float: a replica must come to the same times.
    return repr(value) if isinstance(value, float) else quote(str(value))


def shown(seq: int, record: Record) -> bytes:
    """A record as text."""
    kind = type(record)
    words = [f"seq={seq}"]
    if (t := getattr(record, "t", None)) is not None:
        words.append(f"ts={t!r}")
    words.append(f"kind={kind.__name__.lower()}")
    body: bytes | None = None
    for name in kind.__struct_fields__:
        value = getattr(record, name)
        if name == "body":
            body = value
        elif name != "t":
            words.append(f"{name}={_word(value)}")
    if body is None:
        return " ".join(words).encode() + b"\n"
    return f"{' '.join(words)} len={len(body)}\n\n".encode() + body + b"\n"


def read(data: bytes, at: int) -> tuple[int, Record, int]:
    """The record that begins at AT: its seq, itself, and where the next one begins."""
    end = data.find(b"\n", at, at + _HEAD)
    if end < 0:
        raise Refused(422, f"no record begins at byte {at}")
    try:
        said = dict(word.split("=", 1) for word in split(data[at:end].decode()))
        seq, kind, size = int(said.pop("seq")), _KINDS[said.pop("kind")], said.pop("len", None)
        values = dict[str, Any](said)
        end += 1
        if size is not None:
            stop = end + 1 + int(size)
            around = data[end : end + 1] + data[stop : stop + 1]
            if not 0 <= int(size) < len(data) or around != b"\n\n":
                raise ValueError("its body is not whole")
            values["body"], end = data[end + 1 : stop], stop + 1
        names = kind.__struct_fields__
        found = [values.pop(_NAMES.get(name, name)) for name in names]
        if values:
            raise ValueError(f"it has a field too many, {next(iter(values))!r}")
        record: Record = msgspec.convert([kind.__struct_config__.tag, *found], kind, strict=False)
    except (ValueError, KeyError, Refused) as e:
        raise Refused(422, f"the record at byte {at} cannot be read: {type(e).__name__}: {e}") from None
    return seq, record, end
