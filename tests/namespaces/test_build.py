"""From a text to a Space: fail closed, and say everything that is wrong at once."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from warren.namespaces import BadNamespace, Space, build, library, read

SYMBOLS = {"self", "queen", "drone-1"}
VALUES = {"name": "drone-1", "hub": "10.0.0.1"}


Known = Callable[[str], bool]


def made(text: str, files: Mapping[str, str] | None = None, known: Known | None = None) -> str:
    """The printed Space."""

    def include(name: str) -> str:
        if name not in (files or {}):
            raise FileNotFoundError(2, "there is no such file; there are none", name)
        return (files or {})[name]

    space = build(text, "x.ns", values=VALUES, symbols=SYMBOLS, include=include, known=known)
    assert read(space.lines()) == space
    return space.lines()


def wrong(text: str, files: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(BadNamespace) as e:
        made(text, files)
    return list(e.value.errors)


def test_mounted_whole_bound_in_parts_and_the_whole_taken_away() -> None:
    text = """
        mount $self /
        mount $queen /n/queen
        bind -r /n/queen/mesh /mesh
        bind -ac /n/queen/tools /tools
        unmount /n/queen
    """
    assert made(text) == (
        "mount $self /\n"
        "mount -r $queen /mesh /mesh\n"
        "mount $self /tools /tools\n"
        "mount -ac $queen /tools /tools\n"
    )


def test_values_are_put_in_and_symbols_stay() -> None:
    text = "mount tls!$hub!564 /n/$name\nmount $drone-1 /mine x/$name\nmount $self '/a$name'\n"
    assert made(text) == (
        "mount $self '/a$name'\nmount $drone-1 /mine /x/drone-1\nmount tls!10.0.0.1!564 /n/drone-1\n"
    )


def test_a_value_is_not_looked_into() -> None:
    text = build("mount $self /$odd", "x", values={"odd": "$queen 'x"}, symbols=SYMBOLS, include=library())
    assert text == Space().mount("$self", "/$queen 'x")


def test_an_included_file_says_its_lines_in_its_place() -> None:
    files = {"base.ns": "mount $self /\n", "n.ns": "include base.ns\nmount $queen /n/queen"}
    text = "include n.ns\nunmount /n/queen\nmount $queen /q"
    assert made(text, files) == "mount $self /\nmount $queen /q\n"


def test_clear_begins_again() -> None:
    assert made("mount $self /\nclear\nmount $queen /\n") == "mount $queen /\n"


def test_all_errors_come_at_once_each_with_its_line() -> None:
    files = {"more.ns": "mount $self\n\nmount $qeen /q\n"}
    text = """mount $self /
mont $self /x
include more.ns
bind y /y
include gone.ns
mount $hub /h
"""
    assert wrong(text, files) == [
        "x.ns:2: there is no operation 'mont'; there are mount, bind, unmount, clear, include",
        "more.ns:1: a word is missing; it is mount [-abcri] ADDR OLD [ANAME]",
        "more.ns:3: there is no variable $qeen; is it $queen?",
        "x.ns:4: 'y' is no absolute path; write it from /",
        "x.ns:5: include gone.ns: there is no such file; there are none",
        "x.ns:6: '10.0.0.1' is not an address; write tcp!HOST!PORT or unix!/PATH or tls!HOST!PORT, "
        "or $name for a tree of the hive",
    ]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (
            "mount $self /$other",
            1,
            "there is no variable $other; there are $drone-1, $hub, $name, $queen, $self",
        ),
        (
            "mount $self /$queen",
            1,
            "$queen is the address of a tree and no part of a word; mount it, then bind",
        ),
        ("mount $self /x/$", 1, "in '/x/$' no name follows $; for a dollar sign write $$"),
        ("mount $self n", 1, "'n' is no absolute path; write it from /"),
        ("bind /a /b", 1, "/a is not there: mount what has it first, or correct the path"),
        ("mount $self /a/b\nbind /a /c", 2, "/a only leads to what is mounted below it: b; bind that"),
        (
            "mount $self /\nbind /a /a/b",
            2,
            "/a cannot be bound into itself, at /a/b; bind what is in it, one by one",
        ),
        ("mount $self /\nunmount /a", 2, "nothing is mounted at /a; warren ns shows what is"),
        ("mount $self /\nunmount $queen /", 2, "$queen is not in the union at /, which has $self"),
        (
            "mount $self /a\nmount $queen /a",
            2,
            "this hides /a, mounted by x.ns:1; unite with -a or -b, or say unmount /a first",
        ),
        (
            "mount $self /a/b\nmount $queen /a",
            2,
            "this hides /a/b, mounted by x.ns:1; "
            "say this line before that one, unite with -a or -b, or say unmount /a/b first",
        ),
        (
            "mount $self /\nmount $queen /n/q\nmount $queen /n/r\nbind /x /n",
            4,
            "this hides /n/q and 1 more, mounted by x.ns:2; "
            "say this line before that one, unite with -a or -b, or say unmount /n/q first",
        ),
        ("mount -r $self /a\nbind -c /a /b", 2, "/a is read-only, so it takes no new files; leave -c out"),
        (
            "mount $self /" + "a/" * 65,
            1,
            f"/{'a/' * 19}a... is too deep: 64 names and 1024 characters are the most",
        ),
    ],
)
def test_what_is_wrong_and_the_way_out(text: str, line: int, says: str) -> None:
    assert wrong(text) == [f"x.ns:{line}: {says}"]


def test_a_line_that_is_bound_over_is_named_by_the_line_that_bound_it() -> None:
    text = "mount $self /s\nmount $queen /s/q\nbind /s /t\nmount $queen /t/q\n"
    assert wrong(text)[0].startswith("x.ns:4: this hides /t/q, mounted by x.ns:3; ")


def test_uniting_or_unmounting_first_is_no_hiding() -> None:
    assert made("mount $self /a\nmount -b $queen /a\n") == "mount $queen /a\nmount -a $self /a\n"
    assert made("mount $self /a\nunmount /a\nmount $queen /a\n") == "mount $queen /a\n"


def test_too_many_mounts_name_the_line_that_was_too_many() -> None:
    text = "".join(f"mount $self /{i}\n" for i in range(257))
    assert wrong(text) == ["x.ns:257: 257 mounts are too many, there may be 256; bind a directory above"]


def test_what_includes_itself_is_shown_as_a_chain() -> None:
    files = {"a.ns": "include b.ns", "b.ns": "mount $self /\ninclude a.ns"}
    assert wrong("include a.ns", files) == [
        "b.ns:2: a.ns includes b.ns includes a.ns, without end; take one of these lines out"
    ]
    assert wrong("include x.ns", files) == [
        "x.ns:1: x.ns includes x.ns, without end; take one of these lines out"
    ]


def test_a_tower_of_includes_ends() -> None:
    files = {f"{i}": f"include {i + 1}" for i in range(20)}
    (error,) = wrong("include 0", files)
    assert error.startswith("15:1: files are included 16 deep and no more: x.ns 0 1")


def test_a_few_files_cannot_say_lines_without_end() -> None:
    files = {f"{i}": f"include {i + 1}\n" * 8 for i in range(8)} | {"8": ""}
    (error,) = wrong("include 0", files)
    assert "more than 4096 lines; include less" in error


def test_a_tree_that_is_not_there_stops_it_unless_the_line_is_optional() -> None:
    def known(address: str) -> bool:
        return address == "$self"

    with pytest.raises(BadNamespace) as e:
        made("mount $self /\nmount $queen /n/queen\n", known=known)
    assert e.value.errors == (
        "x.ns:2: there is no tree $queen; start it first, or say mount -i to do without it",
    )
    text = "mount $self /\nmount -i $queen /n/queen\nbind -i /n/queen /q\nmount -i $drone-1 /d\n"
    # $self may have a /n/queen of its own: what is there is known when somebody walks.
    assert made(text, known=known) == "mount $self /\nmount $self /q /n/queen\n"
    assert made("mount $self /s\nbind -i /gone /x\n") == "mount $self /s\n"


def test_optional_forgives_nothing_else() -> None:
    assert wrong("mount -i $qeen /q") == ["x.ns:1: there is no variable $qeen; is it $queen?"]
    assert len(wrong("mount -i $self q\nmount $self /a\nmount -i $queen /a\nbind -i /a /a/b")) == 3


def test_what_a_bad_line_would_have_made_is_not_missed_again() -> None:
    assert wrong("mount $qeen /n/q\nbind /n/q/x /x\nunmount /n/q\nbind /other /y") == [
        "x.ns:1: there is no variable $qeen; is it $queen?",
        "x.ns:4: /other is not there: mount what has it first, or correct the path",
    ]
    assert len(wrong("mount -q $queen /n/q\nbind /n/q/x /x\nbind /x /y")) == 1
    assert len(wrong("include gone.ns\nbind /n/q/x /x")) == 1


def test_the_library_looks_in_the_given_directories_first(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "one.ns").write_text(folder.name)
    (second / "two.ns").write_text("two")
    include = library(first, second, tmp_path / "none")
    assert (include("one.ns"), include("two.ns")) == ("a", "two")
    with pytest.raises(FileNotFoundError, match=r"there is no such file; there are .*\bone\.ns, .*\btwo\.ns"):
        include("three.ns")


@pytest.mark.parametrize("name", ["../one.ns", "/etc/passwd", ".", "..", "", "a/b", ".hidden"])
def test_the_library_gives_nothing_from_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "one.ns").write_text("")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("")
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(FileNotFoundError):
        library(tmp_path / "a", tmp_path)(name)


def test_an_included_file_is_text(tmp_path: Path) -> None:
    (tmp_path / "x.ns").write_bytes(b"mount \xff")
    with pytest.raises(BadNamespace, match=r"y:1: include x\.ns: byte 6 is not UTF-8"):
        build("include x.ns", "y", values={}, symbols=(), include=library(tmp_path))


def test_printed_lines_are_read_without_being_told_a_name() -> None:
    assert read("mount $drone-9 /n/drone-9\n").addresses() == {"$drone-9"}
    with pytest.raises(BadNamespace, match="printed lines include nothing"):
        read("include base.ns")
