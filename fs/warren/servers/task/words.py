"""What people write to a queue's files.

    headers    effect=ID key=KEY prio=0-9 delay=DURATION max_attempts=N len=BYTES
    a task     a line of key=value, or several, an empty line, the body
    options    for=DURATION wait=DURATION

Words are quoted as in a ctl line. What is unknown, given twice or out of range is refused, and then nothing
of the write counts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from warren.tree import Refused
from warren.tree.headers import duration, head, number, word
from warren.tree.headers import options as said

LEASE_LEAST, LEASE_MOST = 0.25, 12 * 3600.0
ATTEMPTS: Final = 1000
_HEADERS: Final = ("effect", "key", "prio", "delay", "max_attempts", "len")


class Draft(NamedTuple):
    """A task that somebody wants done."""

    body: bytes
    effect: str = ""
    key: str = ""
    prio: int = 0
    delay: float = 0.0
    most: int = 0


class Options(NamedTuple):
    """What a worker asks for; None is as the queue has it, or without end."""

    term: float | None = None
    wait: float | None = None


def within(name: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise Refused(400, f"{name} is from {least:g} to {most:g}, not {value:g}")
    return float(value)


def term(name: str, seconds: float) -> float:
    """How long a lease may be."""
    return within(name, seconds, LEASE_LEAST, LEASE_MOST)


def _head(data: bytes) -> tuple[dict[str, str], int] | None:
    return head(data, 0, _HEADERS)


def declared(data: bytes, most: int) -> int | None:
    """How long headers and body will be together, once that is said."""
    found = _head(data)
    if found is None or "len" not in found[0]:
        return None
    return found[1] + number("len", found[0]["len"], 0, most)


def draft(data: bytes) -> Draft:
    """The task that was written to `enq.h`."""
    found = _head(data)
    if found is None:
        raise Refused(400, "no empty line ends the headers")
    named, at = found
    if "len" in named and named["len"] != str(len(data) - at):
        raise Refused(422, f"{named['len'][:32]} bytes were declared, {len(data) - at} came")
    return Draft(
        data[at:],
        word("effect", named["effect"]) if "effect" in named else "",
        word("key", named["key"]) if "key" in named else "",
        number("prio", named["prio"], 0, 9) if "prio" in named else 0,
        duration("delay", named["delay"]) if "delay" in named else 0.0,
        number("max_attempts", named["max_attempts"], 1, ATTEMPTS) if "max_attempts" in named else 0,
    )


def options(data: bytes) -> Options:
    """What was written to `lease` before it is read."""
    named = said(data, ("for", "wait"))
    return Options(
        term("for", duration("for", named["for"])) if "for" in named else None,
        duration("wait", named["wait"]) if "wait" in named else None,
    )
