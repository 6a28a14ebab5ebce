"""How trees say things: attribute lines, event records, counts.

    attributes({"state": "ONLINE", "by": "ann"})    state=ONLINE\\nby=ann\\n     a status file
    pairs({...})                                    state=ONLINE by=ann         one record of many
    Events(now)                                     a ring of `seq= ts= kind= …` records
    counts(read)                                    the files `metrics` and `stats` of a directory

A value is quoted as in a ctl line (`split` reads it back) and never breaks its line: what would is
spelled `\\x0a`. `metrics` is Prometheus text, so that `cat` is a scrape; `stats` is the same for people.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from warren.tree.ctl import quote
from warren.tree.errors import Refused
from warren.tree.node import Node
from warren.tree.stream import Ring
from warren.tree.words import Text

_SPELLED: Final = {n: f"\\x{n:02x}" for n in (*range(32), 127, 0x85, 0x2028, 0x2029)}


def pairs(values: Mapping[str, object]) -> str:
    """`key=value key=value`, on one line whatever the values hold."""
    return " ".join(f"{key}={quote(legible(value))}" for key, value in values.items())


def attributes(values: Mapping[str, object]) -> str:
    """A `key=value` line for each."""
    return "".join(f"{key}={quote(legible(value))}\n" for key, value in values.items())


def legible(value: object) -> str:
    """A value in one line of UTF-8. Yes and no are said so."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if not text.isprintable():
        text = text.translate(_SPELLED).encode("utf-8", "backslashreplace").decode()
    return text


def bad_lines(e: ValueError) -> tuple[str, ...]:
    """What is wrong with a text that somebody wrote, a line each: its `errors`, or its own lines."""
    lines = getattr(e, "errors", None) or str(e).splitlines() or (type(e).__name__,)
    return tuple(legible(line) for line in lines)


def faults(e: ValueError) -> Refused:
    """The same as one refusal, which names every bad line."""
    return Refused(422, "; ".join(bad_lines(e)), reason="bad_text")


class Events(Ring):
    """What happened, for everyone who reads: `seq= ts= kind= …`, one record a line."""

    def __init__(self, now: Callable[[], float], depth: int = 256) -> None:
        super().__init__(depth)
        self.now = now

    def tell(self, kind: str, **values: object) -> bytes:
        """Add a record; returns it as it was written."""
        record = f"seq={self.seq + 1} ts={self.now():.3f} kind={quote(legible(kind))}"
        line = f"{record} {pairs(values)}\n" if values else f"{record}\n"
        self.append(raw := line.encode())
        return raw


class Count(NamedTuple):
    """One measure: its name and help, and its value for each set of labels."""

    name: str
    help: str
    values: Mapping[tuple[str, ...], float]
    labels: tuple[str, ...] = ()
    kind: Literal["counter", "gauge"] = "counter"


def one(name: str, help: str, value: float, kind: Literal["counter", "gauge"] = "counter") -> Count:
    """A measure without labels."""
    return Count(name, help, {(): value}, (), kind)


def metrics(counted: Iterable[Count]) -> str:
    """Prometheus text exposition."""
    out = []
    for c in counted:
        out.append(f"# HELP {c.name} {c.help}\n# TYPE {c.name} {c.kind}\n")
        for words, value in c.values.items():
            said = ",".join(f'{k}="{_label(v)}"' for k, v in zip(c.labels, words, strict=True))
            out.append(f"{c.name}{{{said}}} {_number(value)}\n" if said else f"{c.name} {_number(value)}\n")
    return "".join(out)


def stats(counted: Iterable[Count]) -> str:
    """The same for people: `name=value`, or a record for each set of labels."""
    out = []
    for c in counted:
        for words, value in c.values.items():
            said = pairs(dict(zip(c.labels, words, strict=True)))
            out.append(f"{c.name} {said} n={_number(value)}\n" if said else f"{c.name}={_number(value)}\n")
    return "".join(out)


def counts(read: Callable[[], Iterable[Count]]) -> dict[str, Node]:
    """The two files that show what READ counts."""
    return {"metrics": Text(lambda: metrics(read())), "stats": Text(lambda: stats(read()))}


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _label(value: str) -> str:
    return legible(value).replace("\\", "\\\\").replace('"', '\\"')
