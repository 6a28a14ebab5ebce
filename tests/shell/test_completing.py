"""Completion: commands and options from the parsers, paths and verbs from the tree."""

import subprocess
from pathlib import Path

import pytest
from warren.shell.complete import candidates
from warren.shell.main import COMMANDS

from tests.shell.conftest import Command
from tests.shell.running import WARREN, Served, environment


@pytest.mark.parametrize(
    ("words", "could_be"),
    [
        ([""], [*COMMANDS, "--help", "--version"]),
        (["c"], ["cat", "ctl", "ca", "completion"]),
        (["nope", ""], []),
        (["tail", "-"], ["-f", "-n", "--at", "--state", "--id", "--expect", "--aname", "--json", "--dry-run",
                         "-h", "--help"]),
        (["serve", "d"], ["disk", "demo"]),
        (["ca", "r"], ["revoke", "rotate", "region", "restore"]),
        (["token", "m"], ["mint"]),
        (["serve", "disk", ""], []),
        (["completion", ""], ["bash"]),
        (["help", "exi"], ["exit"]),
        (["ls", "--at", "un"], []),
    ],
)
def test_what_needs_no_tree(words: list[str], could_be: list[str]) -> None:
    assert candidates(words) == could_be


@pytest.mark.parametrize(
    ("words", "could_be"),
    [
        (["cat", "/h"], ["/hello"]),
        (["write", "/c"], ["/clone", "/ctl"]),
        (["cat", "/hello", "/de"], ["/dev/"]),
        (["cat", "/dev/"], ["/dev/errstr"]),
        (["write", "/hello", ""], []),
        (["ctl", "/c"], ["/clone", "/ctl"]),
        (["ctl", "/", ""], ["say", "reset", "unlock"]),
        (["ctl", "/ctl", "re"], ["reset"]),
        (["ctl", "/ctl", "say", "hi", ""], ["times="]),
        (["ctl", "/ctl", "say", "hi", "times=2", ""], []),
        (["ctl", "/nope", ""], []),
        (["cat", "/nope/"], []),
    ],
)
def test_paths_and_verbs_are_asked_of_the_tree(
    demo: Served, monkeypatch: pytest.MonkeyPatch, words: list[str], could_be: list[str]
) -> None:
    monkeypatch.setenv("WARREN_AT", demo.at)
    assert candidates(words) == could_be
    monkeypatch.setenv("WARREN_AT", "unix!/nowhere")
    assert candidates(words) == []
    name, *rest = words
    assert candidates([name, "--at", demo.at, *rest]) == could_be
    assert candidates([name, f"--at={demo.at}", *rest]) == could_be
    below = candidates([name, "--at", demo.at, "--aname", "/dev", *rest])
    assert below == []


def test_an_aname_is_where_paths_begin(demo: Served) -> None:
    assert candidates(["cat", "--at", demo.at, "--aname", "/dev", "/"]) == ["/errstr"]


def test_names_are_quoted_for_the_shell(run: Command, disk: Served, folder: Path) -> None:
    (folder / "a; rm b").touch()
    assert run("complete", "--", "cat", "/a", at=disk.at).out == "'/a; rm b'\n"


def test_bash_completes(demo: Served) -> None:
    script = f"""
        PATH={WARREN.parent}:$PATH
        source <(warren completion bash)
        complete -p warren
        for line in 'warren sta' 'warren ctl / s' 'warren ctl / say hi ti'; do
            COMP_WORDS=($line) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _warren
            echo "${{COMPREPLY[@]}}"
        done
    """
    done = subprocess.run(["bash", "-c", script], env=environment(demo.at), capture_output=True, text=True)
    assert done.stdout.splitlines() == ["complete -o default -F _warren warren", "status stat", "say", "times="]
