"""write and ctl: what reaches the tree, what comes back, what is refused."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warren.shell import write

from tests.shell.conftest import Command
from tests.shell.running import WARREN, Served, environment, warren

Documents = Callable[[str], list[Any]]


def test_text_is_one_line_that_replaces_and_dash_a_appends(run: Command, disk: Served, folder: Path) -> None:
    for words in (["/f", "a", "longer", "first"], ["/f", "good", "evening"], ["-a", "/f", "two", "--", "-x"]):
        assert run("write", *words, at=disk.at) == (0, "", "")
    assert (folder / "f").read_text() == "good evening\ntwo -x\n"


def test_options_may_stand_behind_the_text(run: Command, disk: Served, folder: Path) -> None:
    assert run("write", "/g", "text", "--at", disk.at).code == 0
    assert (folder / "g").read_text() == "text\n"
    assert run("write", "/g", "-x", at=disk.at).err.endswith(
        "(after -- nothing is an option); see warren write --help\n"
    )


def test_standard_input_is_written_as_it_is(disk: Served, folder: Path) -> None:
    body = "no newline " * 300_000  # several messages
    assert warren("write", "/stdin", at=disk.at, stdin=body) == (0, "", "")
    assert (folder / "stdin").read_text() == body
    assert warren("write", "/stdin", at=disk.at).code == 0
    assert (folder / "stdin").read_text() == ""


def test_standard_input_may_be_a_file(disk: Served, folder: Path) -> None:
    command = [str(WARREN), "write", "/copy"]
    with open(__file__, "rb") as source:
        done = subprocess.run(command, stdin=source, env=environment(disk.at), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "copy").read_bytes() == Path(__file__).read_bytes()


def test_standard_input_over_the_limit_changes_nothing(disk: Served, folder: Path) -> None:
    (folder / "kept").write_text("kept")
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [WARREN, "write", "/kept"],
            stdin=endless,
            env=environment(disk.at),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 9
    assert f"longer than {write.LIMIT >> 20} MiB, and nothing was written" in done.stderr
    assert (folder / "kept").read_text() == "kept"


def test_one_write_is_one_record(run: Command, demo: Served) -> None:
    assert warren("write", "/send", at=demo.at, stdin="two\nlines\n").code == 0
    assert run("write", "/send", "third", at=demo.at).code == 0
    command = [str(WARREN), "cat", "--json", "/recv"]
    with subprocess.Popen(command, env=environment(demo.at), stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == '{"path":"/recv","text":"two\\nlines\\n"}\n'
        assert reader.stdout.readline() == '{"path":"/recv","text":"third\\n"}\n'
        reader.terminate()


def test_what_a_file_answers_is_printed_if_asked(run: Command, demo: Served, documents: Documents) -> None:
    assert run("write", "/submit", "body", at=demo.at).out == ""
    done = run("write", "-r", "/submit", "body", at=demo.at)
    assert done.out.startswith("bytes=5 sha256=")
    (said,) = documents(run("write", "-r", "--json", "/submit", "body", at=demo.at).out)
    assert said == {"path": "/submit", "bytes": 5, "reply": done.out}


def test_ctl_shows_help_sends_verbs_and_prints_replies(run: Command, demo: Served) -> None:
    help_ = run("ctl", "/", at=demo.at)
    assert help_.out == run("cat", "/ctl", at=demo.at).out
    assert "unlock DOOR PIN  # " in help_.out
    assert run("ctl", "/ctl", "say", "two 'quoted' words", "times=2", at=demo.at) == (0, "", "")
    assert run("ctl", "/", "unlock", "front door", "1", at=demo.at).out == "front door is open\n"
    assert run("ctl", "/clone", "add", "--", "-5", at=demo.at).out == "-5\n"


def test_ctl_in_json(run: Command, demo: Served, documents: Documents) -> None:
    (help_,) = documents(run("ctl", "--json", "/", at=demo.at).out)
    assert help_["path"] == "/ctl"
    assert {"verb": "reset", "words": [], "help": "Forget the greeting and the scratch file."} in help_[
        "verbs"
    ]
    (said,) = documents(run("ctl", "--json", "/", "reset", at=demo.at).out)
    assert said == {"path": "/ctl", "verb": "reset", "reply": None}
    (said,) = documents(run("ctl", "--json", "/", "unlock", "x", "1", at=demo.at).out)
    assert said == {"path": "/ctl", "verb": "unlock", "reply": "x is open"}


def test_a_bad_verb_is_told_with_the_servers_words(run: Command, demo: Served) -> None:
    done = run("ctl", "/", "unlock", at=demo.at)
    assert done.code == 9
    assert done.err.startswith("warren: /ctl: 400 bad_request: door is missing; usage: unlock DOOR PIN")
    assert done.err.endswith("; see what it takes: warren ctl /ctl\n")
    assert run("ctl", "/", "say", "a\nb", at=demo.at).code == 2


def test_ctl_is_not_for_stored_files(run: Command, disk: Served, folder: Path) -> None:
    (folder / "plain").write_text("x")
    done = run("ctl", "/plain", "verb", at=disk.at)
    assert done.code == 9
    assert "no ctl file" in done.err
    assert (folder / "plain").read_text() == "x"


@pytest.mark.parametrize("words", [["write"], ["ctl"], ["cat"], ["stat", ""], ["tail"], ["write", ""]])
def test_a_missing_path_is_a_usage_error(run: Command, words: list[str]) -> None:
    done = run(*words)
    assert done.code == 2
    assert done.err == f"warren {words[0]}: a PATH is missing; see warren {words[0]} --help\n"
