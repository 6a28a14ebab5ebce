"""ls, cat, stat and tail, against trees that `warren serve` gives."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warren.shell import cat

from tests.shell.conftest import Command
from tests.shell.running import Served

Documents = Callable[[str], list[Any]]


@pytest.fixture(autouse=True, scope="module")
def _contents(folder: Path) -> None:
    (folder / "numbers").write_text("".join(f"{n}\n" for n in range(1, 20001)))
    (folder / "unended").write_text("one\ntwo")
    (folder / "empty").touch()
    (folder / "bytes").write_bytes(b"\xff\x00")
    (folder / "sub").mkdir()
    (folder / "sub" / "two words").write_text("x")
    (folder / "sub" / "esc\x1b[31m\nape").write_text("x")
    (folder / "sub" / os.fsdecode(b"by\xffte")).write_text("x")
    os.symlink("numbers", folder / "link")


def test_ls_lists_names_in_order_from_the_root(run: Command, demo: Served) -> None:
    done = run("ls", at=demo.at)
    names = done.out.split()
    assert (done.code, done.err) == (0, "")
    assert names == sorted(names)
    assert {"hello", "ctl", "events", "clone", "dev"} <= set(names)
    assert run("ls", "hello", at=demo.at).out == "/hello\n"


def test_a_tree_may_be_entered_below_its_root(run: Command, disk: Served) -> None:
    assert run("ls", "--aname", "/sub", "/", at=disk.at).out == run("ls", "/sub", at=disk.at).out
    assert run("ls", "--aname", "/none", "/", at=disk.at).code == 3


def test_ls_heads_several_directories_and_shows_no_raw_character(run: Command, disk: Served) -> None:
    done = run("ls", "/sub", "/empty", at=disk.at)
    assert done.out == "/sub:\nby\\xffte\nesc\\x1b[31m\\nape\ntwo words\n/empty\n"


def test_ls_long_shows_mode_size_time_and_target(run: Command, disk: Served, folder: Path) -> None:
    rows = {line.split()[4]: line for line in run("ls", "-l", "/", at=disk.at).out.splitlines()}
    mode, size, *_ = rows["numbers"].split()
    assert (mode, int(size)) == ("-rw-r--r--", (folder / "numbers").stat().st_size)
    assert rows["link"].endswith("link -> numbers")
    assert rows["sub"].startswith("drwx")


def test_ls_and_stat_say_the_same_in_json(run: Command, disk: Served, documents: Documents) -> None:
    (listing,) = documents(run("ls", "--json", "/", at=disk.at).out)
    assert listing["path"] == "/"
    for path in ("/numbers", "/link", "/sub"):
        (alone,) = documents(run("stat", "--json", path, at=disk.at).out)
        (listed,) = [e for e in listing["entries"] if e["path"] == path]
        # Reading a link changes its access time.
        assert {**alone, "atime": 0} == {**listed, "atime": 0}
    (raw,) = documents(run("ls", "--json", "/sub", at=disk.at).out)
    assert os.fsdecode(b"/sub/by\xffte") in [e["path"] for e in raw["entries"]]


def test_stat_is_key_and_value_in_a_fixed_order(
    run: Command, disk: Served, demo: Served, folder: Path
) -> None:
    done = run("stat", "/link", "/sub/two words", at=disk.at)
    link, words = ([line.partition("=") for line in part.splitlines()] for part in done.out.split("\n\n"))
    keys = [
        *("path", "kind", "mode", "size", "nlink", "owner", "group"),
        *("mtime", "atime", "ctime", "btime", "qid", "version"),
    ]
    assert [key for key, _, _ in words] == keys
    assert [key for key, _, _ in link] == [*keys, "target"]
    assert words[0][2] == "'/sub/two words'"
    assert {key: value for key, _, value in link}["kind"] == "link"
    followed = dict(line.split("=") for line in run("stat", "-L", "/link", at=disk.at).out.splitlines())
    assert (followed["kind"], int(followed["size"])) == ("file", (folder / "numbers").stat().st_size)
    stamp = f"{(folder / 'numbers').stat().st_mtime_ns % 10**9:09d}Z"
    assert followed["mtime"].endswith(stamp)
    assert "\nmtime=-\n" in run("stat", "/hello", at=demo.at).out


def test_cat_gives_the_bytes_of_several_files_through_links(run: Command, disk: Served, folder: Path) -> None:
    done = run("cat", "/link", "/unended", "/empty", at=disk.at)
    assert done == (0, (folder / "numbers").read_text() + "one\ntwo", "")


def test_cat_reads_a_large_file_in_pieces(run: Command, disk: Served, folder: Path) -> None:
    text = ("0123456789abcde\n" * 65536) * 9
    assert len(text) > 2 * cat.AT_ONCE
    (folder / "large").write_text(text)
    assert run("cat", "/large", at=disk.at).out == text


def test_cat_in_json_keeps_what_is_not_utf8(run: Command, disk: Served, documents: Documents) -> None:
    done = run("cat", "--json", "/unended", "/bytes", at=disk.at)
    assert documents(done.out) == [
        {"path": "/unended", "text": "one\ntwo"},
        {"path": "/bytes", "base64": base64.b64encode(b"\xff\x00").decode()},
    ]


def test_a_refusal_names_path_reason_and_way_out_and_the_rest_is_done(run: Command, disk: Served) -> None:
    done = run("cat", "/nope", "/sub", "/unended", at=disk.at)
    assert done.code == 3
    assert done.out == "one\ntwo"
    missing, directory = done.err.splitlines()
    assert missing.startswith("warren: /nope: 404 not_found: file does not exist trace=")
    assert missing.endswith("; see what is there: warren ls /")
    assert directory == "warren: /sub: this is a directory; list it: warren ls /sub"
    assert run("cat", "/sub", at=disk.at).code == 9


@pytest.mark.parametrize(
    ("n", "path", "says"),
    [
        ("3", "/numbers", "19998\n19999\n20000\n"),
        ("0", "/numbers", ""),
        ("1", "/unended", "two"),
        ("2", "/unended", "one\ntwo"),
        ("9", "/unended", "one\ntwo"),
        ("5", "/empty", ""),
    ],
)
def test_tail_shows_the_last_lines(run: Command, disk: Served, n: str, path: str, says: str) -> None:
    assert run("tail", "-n", n, path, at=disk.at) == (0, says, "")


def test_tail_reaches_back_over_many_blocks(run: Command, disk: Served) -> None:
    out = run("tail", "-n", "15000", "/numbers", at=disk.at).out
    assert out.split() == [str(n) for n in range(5001, 20001)]


def test_tail_heads_several_files_and_speaks_json(run: Command, disk: Served, documents: Documents) -> None:
    done = run("tail", "-n", "1", "/numbers", "/unended", at=disk.at)
    assert done.out == "==> /numbers <==\n20000\n==> /unended <==\ntwo"
    done = run("tail", "--json", "-n", "2", "/unended", at=disk.at)
    assert documents(done.out) == [{"path": "/unended", "text": "one"}, {"path": "/unended", "text": "two"}]


def test_tail_sends_readers_of_streams_to_cat(run: Command, demo: Served) -> None:
    done = run("tail", "/recv", at=demo.at)
    assert done.code == 9
    assert done.err.endswith("; read it: warren cat /recv\n")
    assert run("tail", "-n", "x", "/recv", at=demo.at).code == 2


@pytest.mark.parametrize(
    ("words", "equal"),
    [
        (["ls", "-l", "-n", "/a b"], "ls -l '/a b'"),
        (["cat", "-n", "a", "b"], "cat /a /b"),
        (["stat", "-n", "/x"], "stat /x"),
        (["tail", "-f", "--dry-run", "/x"], "tail -f -n 10 /x"),
        (["write", "-n", "/x", "two", "words"], "echo two words >/x"),
        (["write", "-n", "-a", "/x"], "cat >>/x"),
        (["ctl", "-n", "/d/ctl", "say", "two words"], "echo \"say 'two words'\" >/d/ctl"),
        (["ctl", "-n", "/d/ctl"], "cat /d/ctl"),
    ],
)
def test_a_dry_run_prints_the_equal_and_needs_no_server(run: Command, words: list[str], equal: str) -> None:
    assert run(*words, at="unix!/nowhere") == (0, equal + "\n", "")
