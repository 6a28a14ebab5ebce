"""Attribute lines, event records and counts: one line is one line whatever the values hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from warren.tree import split
from warren.tree.report import Count, Events, attributes, faults, legible, metrics, one, pairs, stats


class Bad(ValueError):
    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


@given(st.text())
def test_a_value_is_read_back_as_a_word_of_one_line(value: str) -> None:
    line = pairs({"key": value})
    assert len(line.splitlines()) == 1
    assert line.encode().decode() == line
    assert split(line) == [f"key={legible(value)}"]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_what_can_be_printed_is_not_changed(value: str) -> None:
    assert legible(value) == value


def test_yes_no_and_numbers_are_said_shortly() -> None:
    said = attributes({"up": True, "ill": False, "at": 1.23456, "n": 7, "none": "", "two": "a b"})
    assert said == "up=yes\nill=no\nat=1.235\nn=7\nnone=''\ntwo='a b'\n"


async def test_an_event_is_one_record_with_its_number(autojump_clock: MockClock) -> None:
    events = Events(lambda: 1.5, depth=2)
    cursor = events()
    events.tell("odd kind", said="two\nlines", by="ann")
    assert cursor.next_nowait() == b"seq=1 ts=1.500 kind='odd kind' said=two\\x0alines by=ann\n"
    events.tell("plain")
    assert cursor.next_nowait() == b"seq=2 ts=1.500 kind=plain\n"


def test_counts_are_prometheus_text_and_lines_for_people() -> None:
    counted = [
        one("up", "whether it is up", 1, "gauge"),
        Count("refused_total", "refusals", {("a\"b\\c",): 2, ("two words",): 1000000}, ("reason",)),
    ]  # fmt: skip
    assert metrics(counted) == (
        "# HELP up whether it is up\n# TYPE up gauge\nup 1\n"
        "# HELP refused_total refusals\n# TYPE refused_total counter\n"
        'refused_total{reason="a\\"b\\\\c"} 2\nrefused_total{reason="two words"} 1000000\n'
    )
    assert stats(counted) == (
        "up=1\nrefused_total reason=a\"b\\c n=2\nrefused_total reason='two words' n=1000000\n"
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Bad("f:1: no", "f:9: never"), "f:1: no; f:9: never"),
        (ValueError("one\ntwo"), "one; two"),
        (ValueError(), "ValueError"),
    ],
)
def test_every_bad_line_is_in_one_refusal(error: ValueError, says: str) -> None:
    refusal = faults(error)
    assert (refusal.code, refusal.reason, refusal.detail) == (422, "bad_text", says)
