"""The words all stores share: names, limits, errors."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.store import NAME_MAX, BadName, Conflict, Limits, NotFound, StoreError, TooLarge, Trimmed
from warren.store.interface import check_name, check_under, is_under

FIRST = string.ascii_letters + string.digits + "_"
PARTS = st.builds(str.__add__, st.sampled_from(FIRST), st.text(FIRST + ".-", max_size=20))
NAMES = st.lists(PARTS, min_size=1, max_size=8).map("/".join)


@given(NAMES)
def test_a_name_of_lawful_parts_is_lawful(name: str) -> None:
    check_name(name)
    check_under(name)


@given(NAMES, st.data())
def test_one_unlawful_character_makes_a_name_unlawful(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name)))
    bad = data.draw(st.characters(blacklist_characters=FIRST + ".-/"))
    for refuse in (check_name, check_under):
        with pytest.raises(BadName):
            refuse(name[:at] + bad + name[at:])


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", ".", "a/..", "a/.b", "-a", "x" * (NAME_MAX + 1), "a\n"]
)
def test_unlawful_shapes(name: str) -> None:
    with pytest.raises(BadName):
        check_name(name)


def test_only_a_prefix_may_be_empty() -> None:
    check_under("")
    check_name("x" * NAME_MAX)


def test_an_error_that_quotes_a_name_stays_short() -> None:
    with pytest.raises(BadName) as caught:
        check_name("\0" * 1_000_000)
    assert len(str(caught.value)) < 1000


def test_what_is_under_a_name_goes_by_parts() -> None:
    assert is_under("a/b", "a")
    assert is_under("a", "a")
    assert is_under("a", "")
    assert not is_under("ab", "a")
    assert not is_under("a", "a/b")


@pytest.mark.parametrize(
    ("batch", "size", "limit"),
    [([b"1234"], 4, 3), ([b""] * 5, 5, 4), ([b"123", b"123", b"12"], 8, 7), ([b"1", b"1234", b"1"], 4, 3)],
)
def test_a_batch_over_a_limit_says_which(batch: list[bytes], size: int, limit: int) -> None:
    with pytest.raises(TooLarge) as caught:
        Limits(record=3, batch=4, batch_bytes=7).check_batch("t", batch)
    assert (caught.value.size, caught.value.limit) == (size, limit)


def test_a_batch_at_every_limit_is_taken() -> None:
    Limits(record=3, batch=4, batch_bytes=7).check_batch("t", [b"123", b"123", b"1", b""])


def test_errors_say_what_was_found() -> None:
    assert str(Conflict("mail/a", 3, 5)) == "mail/a: expected 3, found 5"
    assert str(Trimmed("mail/a", 9)) == "mail/a: forgotten through 9"
    assert issubclass(Trimmed, NotFound)
    assert [kind.code for kind in (StoreError, Conflict, Trimmed, TooLarge, BadName)] == [
        500,
        409,
        404,
        413,
        400,
    ]
