"""The text of a namespace: one thing a line.

    mount [-abcri] ADDR OLD [ANAME]    put a tree, or the directory ANAME of it, at OLD
    bind [-abcri] NEW OLD              show at OLD what is at NEW
    unmount [NEW] OLD                  take away what is at OLD, or only NEW from the union there
    clear                              begin again with nothing
    include FILE                       the lines of another file

    -a after, -b before: unite with what is at OLD instead of replacing it
    -c   files may be created here        -r   read-only
    -i   optional: where what it names is not there, drop the line instead of failing

ADDR is a tree of the hive, written `$queen`, or an address such as `unix!/run/sock`. OLD and NEW are
absolute paths. `$name` in a word, or `${name}`, stands for a value; `$$` is a dollar sign, and so is `$`
in quotes. `#` at a word's start begins a comment. Quotes are those of ctl files: 'two words', '' is a quote.

In a `Line` a word is as it was written, its quotes undone and a literal dollar sign doubled. `expand` puts
the values in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from warren.tree import Refused, quote, split

MAX_TEXT = 2 << 20  # more than 256 printed lines can be
MAX_LINE = 8192
FLAGS = "abcri"
_SHAPES = {
    "mount": "mount [-abcri] ADDR OLD [ANAME]",
    "bind": "bind [-abcri] NEW OLD",
    "unmount": "unmount [NEW] OLD",
    "clear": "clear",
    "include": "include FILE",
}
_WORDS = {"mount": (2, 3), "bind": (2, 2), "unmount": (1, 2), "clear": (0, 0), "include": (1, 1)}
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_VARIABLE = re.compile(rf"\$(?:(\$)|({_NAME})|\{{({_NAME})\}}|)")
_SYMBOL = re.compile(rf"\$({_NAME})")


class BadNamespace(ValueError):
    """A namespace that cannot be. `errors` has every reason, each `file:line: what is wrong; the way out`."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


class Line(NamedTuple):
    """One line: where it stands, and what it says."""

    where: str
    op: str
    flags: str
    words: tuple[str, ...]


def parse(text: str, name: str) -> list[Line]:
    """The lines of a text called NAME, or BadNamespace with every bad one."""
    found = scan(text, name)
    bad = [f"{each.where}: {each.wrong}" for each in found if isinstance(each, Bad)]
    if bad:
        raise BadNamespace(bad)
    return [each for each in found if isinstance(each, Line)]


class Bad(NamedTuple):
    """A line that is none: where, what is wrong with it, and its words as far as there are any."""

    where: str
    wrong: str
    words: tuple[str, ...]


def scan(text: str, name: str) -> list[Line | Bad]:
    """Every line, good or bad, for who wants to know what else is wrong."""
    if len(text) > MAX_TEXT:
        return [Bad(f"{name}:1", f"the text is longer than {MAX_TEXT} characters; include parts of it", ())]
    found: list[Line | Bad] = []
    for number, raw in enumerate(text.split("\n"), 1):
        where, words = f"{name}:{number}", list[str]()
        try:
            words = _words(raw.rstrip("\r"))
            if words:
                found.append(_line(where, words))
        except Refused as e:
            found.append(Bad(where, e.detail, tuple(words)))
    return found


def _words(raw: str) -> list[str]:
    if len(raw) > MAX_LINE:
        raise Refused(413, f"the line is longer than {MAX_LINE} characters")
    odd = next((c for c in raw if not c.isprintable() and c != "\t"), None)
    if odd is not None:
        raise Refused(400, f"{odd!r} is in the line; write it with printable characters alone")
    # Every second piece between quote characters is quoted.
    pieces = (piece.replace("$", "$$") if i % 2 else piece for i, piece in enumerate(raw.split("'")))
    return split("'".join(pieces))


def _line(where: str, words: list[str]) -> Line:
    op, *rest = words
    if op not in _SHAPES:
        raise Refused(400, f"there is no operation {op!r}; there are {', '.join(_SHAPES)}")
    flags = ""
    while rest and rest[0].startswith("-") and op in ("mount", "bind"):
        flags += rest.pop(0)[1:] or "-"
    least, most = _WORDS[op]
    if not least <= len(rest) <= most:
        what = "a word is missing" if len(rest) < least else f"{rest[most]!r} is one word too many"
        raise Refused(400, f"{what}; it is {_SHAPES[op]}")
    check_flags(flags)
    return Line(where, op, "".join(sorted(set(flags))), tuple(rest))


def check_flags(flags: str) -> None:
    """Refuse flags that there are not, and those that go ill together."""
    for flag in flags:
        if flag not in FLAGS:
            raise Refused(400, f"there is no flag {flag!r}; the flags are -a -b -c -r -i")
    for both, why in (("ab", "after and before"), ("rc", "read-only and open for new files")):
        if set(both) <= set(flags):
            raise Refused(400, f"-{both[0]} and -{both[1]} exclude each other: it cannot be {why}")


def expand(word: str, value: Callable[[str], str]) -> str:
    """A word with its variables' values in it. VALUE may raise Refused."""

    def one(found: re.Match[str]) -> str:
        name = found[2] or found[3]
        if found[1]:
            return "$"
        if name is None:
            raise Refused(400, f"in {word!r} no name follows $; for a dollar sign write $$")
        return value(name)

    return _VARIABLE.sub(one, word)


def symbol(word: str) -> str:
    """The name in a word that is `$name` and nothing else; else nothing."""
    found = _SYMBOL.fullmatch(word)
    return found[1] if found else ""


def write(op: str, flags: str, *words: str) -> str:
    """A line that parse() reads back: variables of an address stay such, other dollar signs are quoted."""
    shown = [f"-{flags}"] if flags else []
    return " ".join([op, *shown, *(w if symbol(w) else _quoted(w) for w in words)])


def _quoted(word: str) -> str:
    if "$" in word:
        return "'" + word.replace("'", "''") + "'"
    return quote(word)
