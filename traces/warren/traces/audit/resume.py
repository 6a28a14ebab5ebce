"""What a restart finds: where the chain ended, what was cut short behind it, and which intents are open.

Only the newest segment is read, since its `carried` lines name what was open when it began. What lies
behind its last good line is never dropped. If it has no end of line it is the rest of a line that a
crash cut short, and is `torn`. Anything else was not left by a crash of this program alone, but by a
disk that lost power, or by a hand; it is `damaged`, and verifying will say so for ever.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from warren.traces.audit.lines import GENESIS, Aside, Place, chained, parse, unseal
from warren.traces.audit.reading import pieces, segments


class Tail(NamedTuple):
    """Bytes that are no audit, as they will lie in the file once a line follows them."""

    kind: str  # torn, damaged
    size: int
    sha256: str
    ended: bool  # it has an end of line already
    apart: str = ""  # the file it was moved to, of a segment that had not one good line


class Found(NamedTuple):
    """The state of a directory."""

    at: Place
    chain: str
    began: float
    size: int
    open: frozenset[int]
    tails: list[Tail]
    unended: bool  # the last good line lacks nothing but its end


EMPTY = Found(Place(0, 0, 0, GENESIS), "", 0.0, 0, frozenset(), [], False)


def find(directory: Path) -> Found:
    """Read the newest segment; one without a good line is set apart and the one before is read."""
    apart: list[Tail] = []
    for number, path in reversed(segments(directory)):
        found = _scan(number, path)
        if found is not None:
            return found._replace(tails=[*found.tails, *apart[::-1]])
        apart.append(_set_apart(path))
    return EMPTY._replace(tails=apart[::-1])


def _scan(number: int, path: Path) -> Found | None:
    """None if not even the first line is good."""
    at, chain, began = Place(number, 0, 0, GENESIS), "", 0.0
    open_intents: set[int] = set()
    good = count = 0
    unended = False
    aside: Aside | None = None
    for raw in pieces(path):
        count += 1
        whole = raw if raw.endswith(b"\n") else raw + b"\n"
        taken, line = unseal(whole), parse(whole)
        if taken is not None and line is not None:
            body, stated = taken
            if aside is not None and aside.noted_by(line, body, stated):
                good += aside.size
                aside = None
            first = count == 1 and line.kind == "begin"
            previous = line.after.encode() if first else at.h
            if aside is None and (first or at.line) and chained(previous, body) == stated:
                if first:
                    chain, began = line.chain, line.ts
                at = Place(number, count, line.seq, stated)
                good += len(raw)
                unended = raw is not whole
                if line.kind == "intent":
                    open_intents.add(line.seq)
                elif line.kind == "outcome":
                    open_intents.discard(line.of)
                elif line.kind == "carried":
                    open_intents.update(line.open)
                elif line.kind == "recovered":
                    open_intents.difference_update(line.open)
                continue
        aside = aside or Aside(at.h)
        aside.add(raw)
    if not at.line:
        return None
    return Found(
        at, chain, began, good, frozenset(open_intents), [_tail(aside)] if aside is not None else [], unended
    )


def _tail(aside: Aside, apart: str = "") -> Tail:
    """As it will lie there: an end of line is added where there is none, but not to what is moved."""
    kind = "damaged" if aside.ends else "torn"
    ended = aside.ended or bool(apart)
    if not ended:
        aside.add(b"\n")
    return Tail(kind, aside.size, aside.sum.hexdigest(), ended, apart)


def _set_apart(path: Path) -> Tail:
    aside = Aside(GENESIS)
    for raw in pieces(path):
        aside.add(raw)
    number = 0
    while (kept := path.with_name(f"{path.stem}.{number}.apart")).exists():
        number += 1
    os.rename(path, kept)
    return _tail(aside, kept.name)
