"""What people write to a queue's files.

    headers    effect=ID key=KEY prio=0-9 delay=DURATION max_attempts=N len=BYTES
    a task     a line of key=value, or several, an empty line, the body
    options    for=DURATION wait=DURATION

Words are quoted as in a ctl line. What is unknown, given twice or out of range is refused, and then nothing
of the write counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from warren.tree import Duration, Refused, split

HEAD: Final = 4096
LEASE_LEAST, LEASE_MOST = 0.25, 12 * 3600.0
LONGEST: Final = 400 * 86400.0
ATTEMPTS: Final = 1000
WORD: Final = 200
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


def number(name: str, word: str, least: int, most: int) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 16 and least <= int(word) <= most):
        raise Refused(400, f"{name} is a number from {least} to {most}, not {word[:32]!r}")
    return int(word)


def duration(name: str, word: str) -> float:
    try:
        value = float(Duration.parse(word))
    except (ValueError, KeyError):
        raise Refused(400, f"{name} is a duration such as 250ms, 30s or 5m, not {word[:32]!r}") from None
    return within(name, value, 0.0, LONGEST)


def within(name: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise Refused(400, f"{name} is from {least:g} to {most:g}, not {value:g}")
    return float(value)


def term(name: str, seconds: float) -> float:
    """How long a lease may be."""
    return within(name, seconds, LEASE_LEAST, LEASE_MOST)


def word(name: str, value: str) -> str:
    if not value or len(value) > WORD or not value.isprintable():
        raise Refused(400, f"{name} is a word of 1 to {WORD} printable characters")
    return value


def _keyed(data: bytes, known: Sequence[str], what: str) -> dict[str, str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise Refused(400, f"byte {e.start} of the {what}s is not UTF-8") from None
    if "\0" in text:
        raise Refused(400, f"a NUL byte is in the {what}s")
    found: dict[str, str] = {}
    for each in (each for line in text.split("\n") for each in split(line.rstrip("\r"))):
        name, eq, value = each.partition("=")
        if not eq or name not in known:
            raise Refused(400, f"{each[:40]!r} is no {what}; there are {', '.join(f'{k}=' for k in known)}")
        if name in found:
            raise Refused(400, f"{name} is given twice")
        found[name] = value
    return found


def _head(data: bytes) -> tuple[dict[str, str], int] | None:
    """The headers, and where the body begins; None if there is more to come."""
    if data[:1] == b"\n":
        return {}, 1
    end = data.find(b"\n\n", 0, HEAD + 2)
    if end < 0:
        if len(data) > HEAD:
            raise Refused(400, f"no empty line ends the headers within {HEAD} bytes")
        return None
    return _keyed(data[:end], _HEADERS, "header"), end + 2


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
    if len(data) > HEAD:
        raise Refused(413, f"options are at most {HEAD} bytes")
    named = _keyed(data, ("for", "wait"), "option")
    return Options(
        term("for", duration("for", named["for"])) if "for" in named else None,
        duration("wait", named["wait"]) if "wait" in named else None,
    )
