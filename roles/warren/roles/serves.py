"""What a role may serve, and the words that a role file has for it.

    serve ram /mnt size=16M dirs=ui_in,speak

`SERVERS` names every server that a role can run, with its options and what their values must be. Values are
looked at when a file is read, so that a mistake is a bad line and no failed start; a `Serve` keeps them as
they were written, and `count` and `names` read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def count(word: str) -> int:
    """A number from 1 on, `K`, `M` or `G` behind it for the powers of 1024."""
    found = re.fullmatch(r"(\d{1,15})([KMG]?)", word, re.ASCII)
    number = int(found[1]) * _UNITS[found[2]] if found else 0
    if not number:
        raise ValueError(f"{word!r} is no number from 1 on, such as 64 or 16M")
    return number


def seconds(word: str) -> float:
    """Seconds, more than none."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{word!r} is no number of seconds, such as 30 or 0.5")
    return value


def names(word: str) -> tuple[str, ...]:
    """Names with commas between."""
    found = tuple(word.split(","))
    for name in found:
        if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 255:
            raise ValueError(f"{name!r} is no name of a directory; write names with commas between")
    return found


def path_of(word: str) -> tuple[str, ...]:
    """The names of an absolute path that is spelt plainly."""
    parts = word.split("/")[1:]
    plain = all(p not in ("", ".", "..") and p.isprintable() and "*" not in p for p in parts)
    if not (word.startswith("/") and plain):
        raise ValueError(f"{word!r} is no place for a tree; write an absolute path such as /sim or /mesh/ca")
    return tuple(parts)


def _yes(word: str) -> bool:
    if word not in ("yes", "no"):
        raise ValueError(f"{word!r} is neither yes nor no")
    return word == "yes"


def _directory(word: str) -> str:
    if not word.startswith("/") or "\0" in word:
        raise ValueError(f"{word!r} is no absolute path of this machine")
    return word


Options = Mapping[str, Callable[[str], object]]
SERVERS: Final[Mapping[str, Options]] = {
    "dev": {},
    "proc": {},
    "role": {},
    "srv": {},
    "log": {},
    "ca": {},
    "cap": {},
    "ram": {"size": count, "files": count, "dirs": names},
    "mailbox": {},
    "task": {},
    "storage": {"quota": count, "largest": count},
    "store": {},
    "boot": {},
    "vm": {"machines": count, "memory": count},
    "disk": {"dir": _directory, "read-only": _yes},
    "demo": {},
}
NEEDED: Final = {"disk": ("dir",)}


@dataclass(frozen=True)
class Serve:
    """A tree of the role's own: which server makes it, where it is, and what else was said."""

    server: str
    path: str
    options: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return path_of(self.path)

    def __str__(self) -> str:
        return " ".join([self.server, self.path, *(f"{k}={v}" for k, v in self.options.items())])
