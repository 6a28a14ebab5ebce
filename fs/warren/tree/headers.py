"""What stands before a body: `key=value` words, an empty line.

    found = head(data, 0, ("key", "len"))      the words, and where the body begins; None if more is to come
    number("len", word, 0, 100)  duration("delay", word)  word("key", word)     what they mean, or a refusal

Words are quoted as in a ctl line. What is unknown, given twice or out of range is refused, and then nothing
of the write counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from warren.tree.ctl import Duration, split
from warren.tree.errors import Refused

HEAD: Final = 4096
LONGEST: Final = 400 * 86400.0
WORD: Final = 200


def number(name: str, word: str, least: int, most: int) -> int:
    """A number within bounds."""
    if not (word.isascii() and word.isdigit() and len(word) < 16 and least <= int(word) <= most):
        raise Refused(400, f"{name} is a number from {least} to {most}, not {word[:32]!r}")
    return int(word)


def duration(name: str, word: str, least: float = 0.0, most: float = LONGEST) -> float:
    """Seconds within bounds."""
    try:
        value = float(Duration.parse(word))
    except (ValueError, KeyError):
        raise Refused(400, f"{name} is a duration such as 250ms, 30s or 5m, not {word[:32]!r}") from None
    if not least <= value <= most:
        raise Refused(400, f"{name} is from {least:g} to {most:g} seconds, not {word[:32]!r}")
    return value


def word(name: str, value: str) -> str:
    """A word that can stand in a line."""
    if not value or len(value) > WORD or not value.isprintable():
        raise Refused(400, f"{name} is a word of 1 to {WORD} printable characters")
    return value


def text(data: bytes, what: str) -> str:
    """What was written, as text."""
    try:
        said = data.decode()
    except UnicodeDecodeError as e:
        raise Refused(400, f"byte {e.start} of the {what} is not UTF-8") from None
    if "\0" in said:
        raise Refused(400, f"a NUL byte is in the {what}")
    return said


def keyed(data: bytes, known: Sequence[str], what: str) -> dict[str, str]:
    """The words of all lines, by their keys; WHAT one of them is called."""
    found: dict[str, str] = {}
    for line in text(data, f"{what}s").split("\n"):
        for each in split(line.rstrip("\r")):
            name, eq, value = each.partition("=")
            if not eq or name not in known:
                says = f"{each[:40]!r} is no {what}; there are {', '.join(f'{k}=' for k in known)}"
                raise Refused(400, says)
            if name in found:
                raise Refused(400, f"{name} is given twice")
            found[name] = value
    return found


def head(data: bytes, at: int, known: Sequence[str]) -> tuple[dict[str, str], int] | None:
    """The headers that begin AT, and where the body does; None if there is more to come."""
    if data[at : at + 1] == b"\n":
        return {}, at + 1
    end = data.find(b"\n\n", at, at + HEAD + 2)
    if end < 0:
        if len(data) - at > HEAD:
            raise Refused(400, f"no empty line ends the headers within {HEAD} bytes")
        return None
    return keyed(data[at:end], known, "header"), end + 2


def options(data: bytes, known: Sequence[str]) -> dict[str, str]:
    """What was written to a file before it is read."""
    if len(data) > HEAD:
        raise Refused(413, f"options are at most {HEAD} bytes")
    return keyed(data, known, "option")
