"""The dispatcher, its help, and what it may import before it knows what is asked."""

import re
import subprocess
import sys
from importlib import import_module

import pytest
from warren.shell import docs
from warren.shell.main import COMMANDS, UNLISTED, parser

from tests.shell.conftest import Command
from tests.shell.running import warren


def imported(*words: str) -> set[str]:
    """The modules that a command line loads."""
    code = (
        "import sys; from warren.shell.main import main; main(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_neither_trio_nor_a_command_it_does_not_show() -> None:
    assert not imported("--help") & {"trio", "warren.tree", "warren.shell.ls", "importlib.metadata"}
    loaded = imported("ls", "--help")
    assert "warren.shell.ls" in loaded
    assert not loaded & {"trio", "warren.mount", "warren.serve"}


def test_looking_at_a_tree_loads_no_server() -> None:
    loaded = imported("ls", "--at", "unix!/nowhere")
    assert "warren.mount" in loaded
    assert not [name for name in loaded if name.startswith(("warren.serve", "warren.auth", "warren.traces"))]


def test_the_installed_command_says_its_version() -> None:
    done = warren("--version")
    assert re.fullmatch(r"warren \d+\.\d+\.\d+\n", done.out)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_manual(run: Command, name: str) -> None:
    manual = (import_module(f"warren.shell.{name}").__doc__ or "").strip()
    assert manual.split("\n")[0] == f"{name}: {COMMANDS[name]}"
    done = run(name, "--help")
    assert done.code == 0
    assert done.out.startswith(manual)
    assert "-h, --help" in done.out
    assert run("help", name).out == done.out
    assert max(map(len, done.out.splitlines())) <= 110
    for flags, says in parser(name).options():
        assert says, flags


def test_help_lists_every_command_and_no_inner_one(run: Command) -> None:
    out = run("help").out
    assert run("--help").out == out
    assert re.findall(r"^    (\w+) {2,}\S", out, re.MULTILINE) == list(COMMANDS)
    assert not set(UNLISTED) & set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "warren: a COMMAND is missing; there are up, down, status, ls,"),
        (["lss"], "warren: there is no command lss, but there is ls; see warren help\n"),
        (["\x1b[31m"], "warren: there is no command \\x1b[31m; see warren help\n"),
        (["help", "nope"], "warren help: there is no command nope; see warren help\n"),
        (["ls", "--nope"], "warren ls: unrecognized arguments: --nope (after -- nothing is an option); see"),
        (["ls", "--at"], "warren ls: argument --at: expected one argument; see warren ls --help\n"),
        (["completion", "fish"], "warren completion: for which shell? There is bash:"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(run: Command, words: list[str], says: str) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(says)
    assert done.err.count("\n") == 1


def test_the_page_has_every_command_option_and_exit() -> None:
    page = docs.render()
    for name in COMMANDS:
        assert f"\n## warren {name}\n" in page
        for written, says in parser(name).options():
            assert f"| `{written}` | {says} |" in page
    assert "| 7 | unavailable |" in page
    assert page == docs.render()
