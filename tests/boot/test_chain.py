"""The measured chain: one value for an order of contents, and a log that cannot be altered unseen."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.secure import chain
from warren.boot.secure.chain import Chain, Event, measure
from warren.tree import Refused

PARTS = {"kernel": b"k" * 99, "initrd": b"files", "cmdline": b"quiet"}


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


FILES = sha(b"files").hex()


def test_the_value_is_the_formulas() -> None:
    pcr = bytes(32)
    for said in (b"kernel\0", b"k" * 99, b"initrd\0", b"files", b"cmdline\0", b"quiet"):
        pcr = sha(pcr + sha(said))
    assert measure(PARTS).value == pcr
    assert measure({}).value == bytes(32)


def test_a_line_holds_what_sha256sum_says() -> None:
    lines = measure(PARTS).text().splitlines()
    assert lines[1].startswith(f"event=1 name=initrd sha256={sha(b'files').hex()} pcr=")
    assert lines[-1] == f"pcr={measure(PARTS).value.hex()}"


def test_a_log_that_holds() -> None:
    made = measure(PARTS)
    assert chain.parse(made.text()) == made
    assert chain.check(made.text(), made, made.value) == ""


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def swapped(text: str) -> str:
    first, second, *rest = lines_of(text)
    return "".join([second, first, *rest])


def renumbered(text: str) -> str:
    """Swapped with care, so that the numbers are in order."""
    first, second, *rest = lines_of(text)
    return "".join([second.replace("event=1", "event=0"), first.replace("event=0", "event=1"), *rest])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (swapped, "line 1: event 1 stands where event 0 belongs"),
        (renumbered, "line 1: event 0, initrd, does not lead"),
        (lambda text: text.replace(FILES, sha(b"other").hex()), "line 2: event 1, initrd, does not lead"),
        (lambda text: text.replace("name=initrd", "name=inidrt"), "line 2: event 1, inidrt, does not lead"),
        (lambda text: "".join(lines_of(text)[:-1]), "line 3: the log has no last line"),
        (lambda text: "".join([*lines_of(text)[:2], lines_of(text)[3]]), "line 3: the events do not lead"),
        (lambda text: "".join([lines_of(text)[0], *lines_of(text)[2:]]), "line 2: event 2 stands where"),
        (lambda text: text.replace("event=1 ", "event=1  "), "line 2: this is no event"),
        (lambda text: text + "\n", "no last line"),
        (lambda text: "", "no last line"),
    ],
)
def test_the_first_line_that_does_not_follow_is_named(spoil: Callable[[str], str], why: str) -> None:
    assert why in chain.check(spoil(measure(PARTS).text()))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({**PARTS, "initrd": b"other"}, f"event 1, initrd, is {sha(b'other').hex()}, expected {FILES}"),
        (dict(reversed(PARTS.items())), "event 0 is cmdline, expected kernel"),
        ({"kernel": b"k" * 99, "initrd": b"files"}, "event 2, cmdline, is missing"),
        ({**PARTS, "more": b""}, "event 3, more, was not expected"),
    ],
)
def test_a_true_log_of_another_image_is_refused_by_its_first_difference(
    parts: dict[str, bytes], why: str
) -> None:
    text = measure(parts).text()
    assert chain.check(text) == ""
    assert chain.check(text, measure(PARTS)) == why
    assert chain.check(text, claimed=measure(PARTS).value).startswith("the log leads to")


@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 65, "a=b", "\N{SNOWMAN}"])
def test_a_name_stays_in_its_line(name: str) -> None:
    with pytest.raises(Refused, match="no name of a part"):
        measure({name: b""})


def test_a_chain_has_an_end() -> None:
    assert chain.parse(measure({f"n{i}": b"" for i in range(256)}).text())
    with pytest.raises(Refused, match="at most 256"):
        measure({f"n{i}": b"" for i in range(257)})
    with pytest.raises(Refused, match="at most 256"):
        chain.parse(Chain(tuple(Event(f"n{i}", bytes(32)) for i in range(257))).text())


@given(st.text(max_size=300) | st.integers(0, 400).map(lambda n: measure(PARTS).text()[n:]))
def test_any_text_gets_a_verdict(text: str) -> None:
    said = chain.check(text, measure(PARTS))
    assert said == "" if text == measure(PARTS).text() else said


events = st.dictionaries(st.from_regex(r"[a-z._/-]{1,9}", fullmatch=True), st.binary(max_size=9), max_size=9)


@given(events, events)
def test_one_value_is_of_one_chain(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    same = list(one.items()) == list(two.items())
    assert (measure(one).value == measure(two).value) == same
    assert (chain.difference(measure(one), measure(two)) == "") == same
