"""warren ns: whose namespace, what is wrong with one, and the script that mounts it."""

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from warren.namespaces import read
from warren.roles.manifest import load_role
from warren.roles.manifest import roles as all_roles
from warren.roles.state import State, new_hive

from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, Done, serving, warren

QUEEN = "mount $self /\nmount $drone-1 /n/drone-1\n"
DRONE = "mount $self /\nmount -r $queen /mesh /mesh\n"
ROLES = {
    "queen": "QueenPrimary", "drone-0": "DroneWorker", "drone-1": "DroneWorker", "booth": "KioskInteractive",
}  # fmt: skip


@pytest.fixture(scope="module")
def state() -> Iterator[State]:
    """A hive of which the queen and one drone answer: folders, with what they say of themselves in files."""
    home = Path(tempfile.mkdtemp(prefix="warren-"))
    made = State(home)
    made.make()
    made.write(new_hive(ROLES, "hive.example"))
    with ExitStack() as running:
        running.callback(shutil.rmtree, home)
        for name, text in (("queen", QUEEN), ("drone-1", DRONE)):
            made.make_for(name)
            (home / name / "proc").mkdir(parents=True)
            (home / name / "proc/ns").write_text(text)
            running.enter_context(
                serving("disk", str(home / name), "--listen", made.address(name), *EVERYTHING)
            )
        (made.run("queen") / "addr").write_text("tls!127.0.0.1!5640\n")
        yield made


@pytest.fixture
def ns(run: Command, state: State) -> Command:
    return lambda *words: run("ns", "--state", str(state.directory), *words)


def checked(run: Command, text: str, folder: Path, *words: str) -> Done:
    (folder / "x.ns").write_text(text)
    return run("ns", "--state", str(folder), str(folder / "x.ns"), *words)


def test_the_queens_without_a_name_and_any_that_runs_with_its_name(ns: Command) -> None:
    assert ns() == Done(0, QUEEN, "")
    assert ns("drone-1") == Done(0, DRONE, "")


def test_json_has_every_member(ns: Command) -> None:
    done = ns("drone-1", "--json")
    assert json.loads(done.out) == {
        "name": "drone-1",
        "role": "DroneWorker",
        "mounts": [
            {"old": "/", "address": "$self", "path": "/", "read_only": False, "creates": False},
            {"old": "/mesh", "address": "$queen", "path": "/mesh", "read_only": True, "creates": False},
        ],
    }


@pytest.mark.parametrize("role", all_roles())
def test_a_role_that_comes_with_warren_prints_what_rebuilds_it(role: str, ns: Command) -> None:
    done = ns("--role", role)
    assert done.code == 0, done.err
    assert read(done.out) == load_role(role).space


def test_a_role_of_the_hive_goes_before_one_that_comes_with_warren(ns: Command, state: State) -> None:
    text = "role SimulatorTest\nnamespace sim.ns\nexport $queen\n"
    (state.roles / "SimulatorTest.role").write_text(text)
    (state.roles / "sim.ns").write_text("mount $self /sim-alone\n")
    assert ns("--role", "SimulatorTest").out == "mount $self /sim-alone\n"


def test_a_bad_role_file_says_every_line_that_is_bad(ns: Command, state: State) -> None:
    (state.roles / "Bad.role").write_text("role Bad\nnamespace bad.ns\nallow nobody\n")
    (state.roles / "bad.ns").write_text("mont $self /\n")
    done = ns("--role", "Bad")
    assert done.code == 9
    assert "Bad.role:3: " in done.err
    assert "bad.ns:1: there is no operation 'mont'" in done.err


def test_a_text_is_checked_and_printed(run: Command, tmp_path: Path) -> None:
    text = "mount $self /\nmount $queen /n/q\nbind -r /n/q/a /$at\nunmount /n/q\n"
    done = checked(run, text, tmp_path, "--var", "at=b")
    assert done == Done(0, "mount $self /\nmount -r $queen /b /a\n", "")


def test_a_text_includes_what_is_beside_it(run: Command, tmp_path: Path) -> None:
    (tmp_path / "more.ns").write_text("mount $self /\n")
    assert checked(run, "include more.ns", tmp_path).out == "mount $self /\n"


def test_everything_wrong_with_a_text_is_said(run: Command, tmp_path: Path) -> None:
    done = checked(run, "mount $self /\nbind -q /x /y\n\nmount $qeen /n\n", tmp_path)
    assert done == Done(
        9,
        "",
        "warren: x.ns:2: there is no flag 'q'; the flags are -a -b -c -r -i\n"
        "warren: x.ns:4: there is no variable $qeen; is it $queen?\n",
    )


def test_roles_of_the_hive_are_names_in_a_text(ns: Command, tmp_path: Path) -> None:
    (tmp_path / "x.ns").write_text("mount $booth /b\n")
    assert ns(str(tmp_path / "x.ns")).code == 0


def test_a_text_may_come_on_standard_input() -> None:
    assert warren("ns", "-", stdin="mount $self /x\n") == Done(0, "mount $self /x\n", "")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("drone-0",), 3, "no role drone-0 runs here; there are queen drone-1"),
        (("--role", "Nobody"), 3, "Nobody"),
        (("/nowhere/x.ns",), 3, "/nowhere/x.ns: No such file or directory; give a text of mount"),
        (("/bin/sh",), 9, "is not UTF-8"),
        (("queen", "drone-1"), 2, "one namespace at a time"),
        (("queen", "--role", "DroneWorker"), 2, "one namespace at a time"),
        (("queen", "--var", "a=b"), 2, "--var is for a FILE"),
        (("x.ns", "--var", "a"), 2, "--var is NAME=VALUE, not 'a'"),
        (("--as-script", "--json"), 2, "leave one out"),
        (("--role", "KioskInteractive", "--as-script"), 3, "no KioskInteractive runs here; start one: "),
        (("--role", "SensorRelay", "--as-script"), 3, "NAME=SensorRelay"),
        (("drone-1", "--as-script", "--name", "booth"), 7, "$self cannot be reached from here; start it"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_and_the_way_out(
    words: tuple[str, ...], code: int, says: str, ns: Command
) -> None:
    done = ns(*words)
    assert done.code == code, done.err
    assert says in done.err
    assert done.out == ""


def test_without_a_hive_it_says_how_to_make_one(run: Command, tmp_path: Path) -> None:
    done = run("ns", "--state", str(tmp_path))
    way_out = f"make one: warren up --state {tmp_path}"
    assert done == Done(3, "", f"warren: {tmp_path}: there is no hive; {way_out}\n")


def test_a_socket_that_nobody_answers_at_is_no_namespace(run: Command) -> None:
    home = Path(tempfile.mkdtemp(prefix="warren-"))
    try:
        state = State(home)
        state.make()
        state.write(new_hive({"queen": "QueenPrimary"}, "hive.example"))
        state.make_for("queen")
        state.sock("queen").touch()
        done = run("ns", "--state", str(home))
        assert done.code == 7
        assert "queen does not answer: " in done.err
        assert done.err.endswith("see what is up: warren status\n")
    finally:
        shutil.rmtree(home)


# The script


@pytest.fixture
def mounted(ns: Command, tmp_path: Path) -> Command:
    """The script is run as a user would run it, and a `warren` of ours says what it is told to do."""
    told = tmp_path / "bin/warren"
    told.parent.mkdir()
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho --\ncat\n')
    told.chmod(told.stat().st_mode | stat.S_IXUSR)

    def do(*words: str) -> Done:
        path = f"{told.parent}:{os.environ['PATH']}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", path)
            said = ns(*words, "--as-script")
        assert said.code == 0, said.err
        done = subprocess.run(
            ["sh", "-s", "my dir"],
            input=said.out, env={"PATH": path}, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    return do


def test_the_script_mounts_what_a_worker_sees_as_the_worker_sees_it(mounted: Command, state: State) -> None:
    done = mounted("--role", "DroneWorker")
    space = load_role("DroneWorker").space
    told, _, text = done.out.partition("--\nmount")
    assert told.split("\n")[:-1] == [
        "mount", "--ns", "-",
        "--id", str(state.pki("drone-1")),
        "--var", "queen=tls!127.0.0.1!5640",
        "--var", f"self={state.address('drone-1')}",
        "--", "my dir",
    ]  # fmt: skip
    assert read("mount" + text) == space
    assert mounted("drone-1").out.endswith(f"--\n{DRONE}")


def test_the_queen_is_local_to_itself_and_so_are_the_workers_here(mounted: Command, state: State) -> None:
    told = mounted().out.split("\n")
    assert "--id" not in told
    assert [word for word in told if "=" in word] == [
        f"drone-1={state.address('drone-1')}", f"self={state.address('queen')}",
    ]  # fmt: skip


def test_a_text_is_mounted_as_the_queen_would_or_as_who_is_named(
    mounted: Command, state: State, tmp_path: Path
) -> None:
    (tmp_path / "x.ns").write_text("mount $self '/it''s'\nmount tcp!h!1 /t\n")
    path = str(tmp_path / "x.ns")
    assert mounted(path).out.endswith("--\nmount $self '/it''s'\nmount tcp!h!1 /t\n")
    assert f"self={state.address('queen')}\n" in mounted(path).out
    assert f"self={state.address('drone-1')}\n" in mounted(path, "--name", "drone-1").out


def test_the_script_wants_a_directory(ns: Command) -> None:
    text = ns("--as-script").out
    done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0
    assert "is the directory to mount it at: sh -s DIR" in done.stderr
