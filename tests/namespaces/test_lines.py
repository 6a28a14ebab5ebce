"""The text of a namespace, line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.namespaces.lines import BadNamespace, Line, expand, parse, symbol, write
from warren.tree import Refused

WORDS = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" '$#=-"), min_size=1)


def one(text: str) -> Line:
    (line,) = parse(text, "x.ns")
    return line


def wrong(text: str) -> str:
    with pytest.raises(BadNamespace) as e:
        parse(text, "x.ns")
    (error,) = e.value.errors
    return error


def test_a_line_knows_where_it_stands() -> None:
    text = "# what a worker sees\n\nmount $self /\n  bind -ra\t/a /b # quietly\nclear\r\n"
    assert parse(text, "w.ns") == [
        Line("w.ns:3", "mount", "", ("$self", "/")),
        Line("w.ns:4", "bind", "ar", ("/a", "/b")),
        Line("w.ns:5", "clear", "", ()),
    ]


def test_flags_may_stand_together_or_apart() -> None:
    assert one("mount -a -c $self /x") == one("mount -ca $self /x")


def test_quotes_make_one_word_and_end_nothing() -> None:
    assert one("mount $self '/two words' '/it''s # one'").words == ("$self", "/two words", "/it's # one")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mout $self /", "there is no operation 'mout'; there are mount, bind, unmount, clear, include"),
        ("mount -x $self /", "there is no flag 'x'; the flags are -a -b -c -r -i"),
        ("mount - $self /", "there is no flag '-'; the flags are -a -b -c -r -i"),
        ("bind -ab /x /y", "-a and -b exclude each other: it cannot be after and before"),
        ("bind -r -c /x /y", "-r and -c exclude each other: it cannot be read-only and open for new files"),
        ("mount $self", "a word is missing; it is mount [-abcri] ADDR OLD [ANAME]"),
        ("mount $self / /a /b", "'/b' is one word too many; it is mount [-abcri] ADDR OLD [ANAME]"),
        ("bind /x", "a word is missing; it is bind [-abcri] NEW OLD"),
        ("unmount", "a word is missing; it is unmount [NEW] OLD"),
        ("clear all", "'all' is one word too many; it is clear"),
        ("include", "a word is missing; it is include FILE"),
        ("unmount -i /x /y", "'/y' is one word too many; it is unmount [NEW] OLD"),
        ("mount $self '/x", "a quote is not closed"),
        ("mount $self /\x1b[0m", "'\\x1b' is in the line; write it with printable characters alone"),
        ("mount $self /" + "x" * 8192, "the line is longer than 8192 characters"),
    ],
)
def test_what_is_no_line_says_what_is(text: str, says: str) -> None:
    assert wrong(text) == f"x.ns:1: {says}"


def test_every_bad_line_is_said_at_once() -> None:
    with pytest.raises(BadNamespace) as e:
        parse("mount\nclear\nbind\n\nmont\n", "x.ns")
    assert [error.partition(": ")[0] for error in e.value.errors] == ["x.ns:1", "x.ns:3", "x.ns:5"]
    assert str(e.value) == "\n".join(e.value.errors)


def test_a_text_without_end_is_not_read() -> None:
    assert "include parts of it" in wrong("#" * (3 << 20))


def expanded(text: str) -> str:
    def value(name: str) -> str:
        return f"<{name}>"

    return expand(one(f"include {text}").words[0], value)


def test_a_variable_stands_alone_or_within_a_word() -> None:
    assert expanded("$name") == "<name>"
    assert expanded("/n/$name/log") == "/n/<name>/log"
    assert expanded("tls!$hub!564") == "tls!<hub>!564"
    assert expanded("/$drone-1.a.") == "/<drone-1.a>."
    assert expanded("/${name}-spare") == "/<name>-spare"


def test_a_dollar_sign_is_doubled_or_quoted() -> None:
    assert expanded("/a$$b") == "/a$b"
    assert expanded("'/a$b'") == "/a$b"
    assert expanded("/$x'$x'$x") == "/<x>$x<x>"


def test_a_dollar_sign_without_a_name_is_a_mistake() -> None:
    with pytest.raises(Refused, match=r"no name follows \$; for a dollar sign write \$\$"):
        expanded("/a/$")


def test_a_symbol_is_a_variable_and_nothing_else() -> None:
    assert symbol("$drone-1") == "drone-1"
    assert not any(map(symbol, ("drone-1", "$", "$$", "$a/b", "/$a", "$a$b")))


@given(st.lists(WORDS, min_size=2, max_size=2))
def test_what_is_written_is_read_back(words: list[str]) -> None:
    paths = [f"/{word}" for word in words]
    line = one(write("bind", "a", *paths))
    assert (line.op, line.flags) == ("bind", "a")
    assert [expand(word, lambda name: pytest.fail(name)) for word in line.words] == paths
