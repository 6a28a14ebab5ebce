"""Completion: commands and options from the parsers, paths and verbs from the tree."""

import os
import select
import subprocess
import tempfile
from pathlib import Path

import pytest
from warren.roles.state import State, new_hive
from warren.shell.complete import candidates
from warren.shell.main import COMMANDS

from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, PATIENCE, WARREN, Served, environment, serving


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
        (["completion", ""], ["bash", "zsh"]),
        (["im"], ["import", "image"]),
        (["import", ""], []),
        (["export", "--t"], ["--to"]),
        (["mount", "--ns", ""], []),
        (["mount", "--va"], ["--var"]),
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


@pytest.fixture
def hive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own hive, which need not be up to have names and roles."""
    state = State(tmp_path)
    state.make()
    state.write(new_hive({"queen": "QueenPrimary", "drone-1": "DroneWorker", "drone-2": "Ours"}, "hive.test"))
    (state.roles / "Ours.role").write_text("role Ours\nnamespace worker.ns\n")
    monkeypatch.setenv("WARREN_STATE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "could_be"),
    [
        (["up", ""], ["queen=", "drone-1=", "drone-2="]),
        (["up", "drone-1=DroneWorker", "dr"], ["drone-2="]),
        (["up", "new=O"], ["new=Ours"]),
        (["up", "--detach", "new=Dr"], ["new=DroneWorker"]),
        (["down", ""], ["queen", "drone-1", "drone-2"]),
        (["down", "drone-1", "dr"], ["drone-2"]),
        (["ns", "q"], ["queen"]),
        (["ns", "queen", ""], []),
        (["ns", "--role", "O"], ["Ours"]),
        (["ns", "--name", "drone-2", "--role", "Dr"], ["DroneWorker"]),
        (["explain", "--name", "q"], ["queen"]),
        (["mount", "drone-"], ["drone-1", "drone-2"]),
        (["mount", "queen", ""], []),
        (["mount", "--ns", "-", ""], []),
    ],
)
def test_names_and_roles_are_those_of_the_hive(
    hive: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], could_be: list[str]
) -> None:
    assert candidates(words) == could_be
    name, *rest = words
    monkeypatch.setenv("WARREN_STATE", "/nowhere")
    assert candidates([name, "--state", str(hive), *rest]) == could_be


@pytest.mark.usefixtures("hive")
def test_where_there_is_no_hive_there_are_the_roles_and_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_STATE", "/nowhere")
    assert candidates(["down", ""]) == []
    assert candidates(["up", "a=QueenP"]) == ["a=QueenPrimary"]


def test_verbs_are_asked_of_the_hive_that_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="warren-") as folder:
        state = State(folder)
        state.make()
        state.make_for("queen")
        with serving("demo", "--listen", state.address("queen"), *EVERYTHING):
            monkeypatch.delenv("WARREN_AT", raising=False)
            monkeypatch.setenv("WARREN_STATE", folder)
            assert candidates(["ctl", "/ctl", "re"]) == ["reset"]
            assert candidates(["explain", "/he"]) == ["/hello"]


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
    first, *found = done.stdout.splitlines()
    assert first == "complete -o default -F _warren warren"
    assert found == ["status stat", "say", "times="]


class Zsh:
    """A shell that somebody types at."""

    def __init__(self, env: dict[str, str]) -> None:
        self.terminal, theirs = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "zsh", "-f", "-i"], env=env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)

    def type(self, text: str, until: str) -> None:
        """Type it, and read until that is seen."""
        os.write(self.terminal, text.encode())
        seen = ""
        while until not in seen:
            assert select.select([self.terminal], [], [], PATIENCE)[0], seen
            seen += os.read(self.terminal, 4096).decode(errors="replace").replace("\a", "")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


def test_zsh_completes(demo: Served, hive: Path) -> None:
    path = f"{WARREN.parent}:{os.environ['PATH']}"
    zsh = Zsh(environment(demo.at, PATH=path, TERM="dumb", HOME=str(hive), WARREN_STATE=str(hive)))
    try:
        zsh.type("PS1='re''ady> '\n", "ready> ")
        zsh.type("source <(warren completion zsh)\n", "ready> ")
        for typed, becomes in (
            ("warren compl", "warren completion "),
            ("warren ctl / s", "warren ctl / say "),
            ("warren ctl / say 'h i' ti", "times="),
            ("warren cat /de", "warren cat /dev/"),
            ("warren up drone-3=Ou", "warren up drone-3=Ours "),
            ("warren mount que", "warren mount queen "),
            (f"warren mount queen {hive}/hi", "hive.toml "),
        ):
            zsh.type(f"{typed}\t", becomes)
            zsh.type("\x15\n", "ready> ")
    finally:
        zsh.close()
