"""Hypothesis strategies for messages, derived from their declarations."""

import struct
from typing import Any

from hypothesis import strategies as st
from warren.p9.fields import MAXWELEM, Kind, Qid, Stat
from warren.p9.messages import MESSAGES, PLAIN, WARREN, Message, absent_value


def integers(fmt: str) -> st.SearchStrategy[int]:
    top = 256 ** struct.calcsize("<" + fmt) - 1
    return st.integers(0, top) | st.sampled_from([0, 1, top - 1, top])


# Any bytes at all: what is no UTF-8 arrives as surrogates and must leave as the same bytes.
words = st.binary(max_size=24).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
qids = st.builds(Qid, integers("B"), integers("I"), integers("Q"))
stats = st.builds(
    Stat, integers("H"), integers("I"), qids, integers("I"), integers("I"), integers("I"), integers("Q"),
    words, words, words, words,
)  # fmt: skip
BY_KIND: dict[str, st.SearchStrategy[Any]] = {
    "str": words,
    "names": st.lists(words, max_size=MAXWELEM),
    "qid": qids,
    "qids": st.lists(qids, max_size=MAXWELEM),
    "data": st.binary(max_size=64),
    "stat": stats,
}


def carried(kind: Kind, dialect: str) -> bool:
    """Whether a dialect has the field, said here a second time so that the codec cannot decide alone."""
    return {"": True, "L": dialect != PLAIN, "warren": dialect == WARREN}[kind.only]


@st.composite
def messages(draw: st.DrawFn, cls: type[Message], dialect: str) -> Message:
    """A message as it reads after a trip through this dialect."""
    values = {}
    for name, kind in cls.fields:
        if not carried(kind, dialect):
            values[name] = absent_value(kind)
        else:
            values[name] = draw(integers(kind.fmt) if kind.name == "int" else BY_KIND[kind.name])
    m = cls(**values)
    if dialect == WARREN and cls.__name__[0] == "T" and cls.__name__ != "Tversion":
        m.trace = draw(integers("Q"))
    return m


@st.composite
def spoken(draw: st.DrawFn, cls: type[Message]) -> tuple[str, Message]:
    """A dialect that has the message, and one of its values."""
    dialect = draw(st.sampled_from(cls.dialects))
    return dialect, draw(messages(cls, dialect))


EVERY = list(MESSAGES.values())
REQUESTS = [m for m in EVERY if m.__name__[0] == "T"]
