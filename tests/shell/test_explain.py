"""warren explain: through which line, from which tree and server, and by which row."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from warren.auth.rights import RIGHTS, Policy, decide
from warren.namespaces import read
from warren.roles.state import State, new_hive
from warren.shell.exits import Stopped
from warren.shell.explain import explained, role_of

from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, Done, serving

LOCAL = "allow local read,write,create,remove,ctl /**"
SAID = {
    "queen": (
        "mount $self /\nmount $drone-1 /n/drone-1\nmount -r $drone-2 /n/drone-2\n",
        f"{LOCAL}\nallow role/*/* read /mesh/**\n"
        "allow user/ann read /n/**\nallow user/ann ctl /mesh/ca/ctl#revoke\n",
    ),
    "drone-1": (
        "mount $self /\nmount -r $queen /mesh /mesh\nmount $self /sim\nmount -a $queen /sim /sim\n",
        f"{LOCAL}\nallow role/QueenPrimary/* read /proc/**\nallow role/QueenPrimary/* delegate /**\n"
        "allow user/ann read /proc/ns\n",
    ),
    "bare": ("mount $self /a/b\n", f"{LOCAL}\n"),
    "odd": ("mount everything\n", f"{LOCAL}\n"),
}


@pytest.fixture(scope="module")
def state() -> Iterator[State]:
    home = Path(tempfile.mkdtemp(prefix="warren-"))
    made = State(home)
    made.make()
    roles = {"queen": "QueenPrimary", "drone-1": "DroneWorker", "drone-2": "DroneWorker"}
    made.write(new_hive({**roles, "bare": "SimulatorTest", "odd": "SensorRelay"}, "hive.example"))
    with ExitStack() as running:
        running.callback(shutil.rmtree, home)
        for name, (ns, policy) in SAID.items():
            made.make_for(name)
            for file, text in (("proc/ns", ns), ("role/policy", policy)):
                (home / name / file).parent.mkdir(parents=True)
                (home / name / file).write_text(text)
            running.enter_context(
                serving("disk", str(home / name), "--listen", made.address(name), *EVERYTHING)
            )
        yield made


@pytest.fixture
def explain(run: Command, state: State) -> Command:
    return lambda *words: run("explain", "--state", str(state.directory), *words)


def test_a_path_of_the_role_itself(explain: Command) -> None:
    assert explain("/mesh/ca/crl") == Done(
        0,
        f"""at queen: /mesh/ca/crl as local
    line     mount $self /
    tree     $self /mesh/ca/crl
    server   ca at /mesh/ca
    read     {LOCAL}
    write    {LOCAL}
    create   {LOCAL}
    remove   {LOCAL}
    ctl      {LOCAL}
""",
        "",
    )


def test_what_is_elsewhere_is_asked_there_as_it_will_be_asked(explain: Command) -> None:
    done = explain("/n/drone-1/proc/ns")
    assert done.out.startswith("""at queen: /n/drone-1/proc/ns as local
    line     mount $drone-1 /n/drone-1
    tree     $drone-1 /proc/ns
    read     allow local""")
    assert done.out.endswith("""at drone-1: /proc/ns as role/QueenPrimary/queen
    line     mount $self /
    tree     $self /proc/ns
    server   proc at /proc
    read     allow role/QueenPrimary/* read /proc/**
    write    no row
    create   no row
    remove   no row
    ctl      no row
""")


def test_others_are_passed_on_by_a_role_that_speaks_for_them(explain: Command) -> None:
    done = explain("/n/drone-1/proc/ns", "--as", "user/ann")
    assert "    read     allow user/ann read /n/**\n    write    no row\n" in done.out
    assert "at drone-1: /proc/ns as user/ann, role/QueenPrimary/queen speaking\n" in done.out
    delegate = "    delegate allow role/QueenPrimary/* delegate /**\n"
    assert f"{delegate}    read     allow user/ann read /proc/ns\n" in done.out


def test_read_only_is_said_of_the_line_and_of_what_it_leaves(explain: Command) -> None:
    done = explain("/n/drone-2/sim")
    assert "    tree     $drone-2 /sim read-only\n" in done.out
    assert f"    read     {LOCAL}\n    write    nobody, as the line says -r\n" in done.out
    assert "at drone-2" not in done.out  # it does not run, so there is nobody to ask


def test_only_one_verb_may_be_allowed(explain: Command) -> None:
    done = explain("/mesh/ca/ctl", "--as", "user/ann")
    assert "    ctl      allow user/ann ctl /mesh/ca/ctl#revoke\n" in done.out
    assert "    read     no row\n" in done.out


def test_another_role_may_be_asked_first(explain: Command) -> None:
    done = explain("/mesh/ca", "--name", "drone-1")
    assert done.out.startswith("at drone-1: /mesh/ca as local\n    line     mount -r $queen /mesh /mesh\n")
    assert "at queen: /mesh/ca as role/DroneWorker/drone-1\n" in done.out


def test_the_source_of_a_mount_says_whose_tree_it_is() -> None:
    assert role_of("unix!/a b/state/run/drone-1/sock") == ("/a b/state", "drone-1")
    with pytest.raises(Stopped, match="no role of this machine answers there"):
        role_of("tcp!127.0.0.1!5640")


def test_what_no_line_has_is_not_found(explain: Command) -> None:
    done = explain("/elsewhere", "--name", "bare")
    assert done.code == 3
    assert "    line     no line has it\n" in done.out
    done = explain("/a", "--name", "bare")
    assert done.code == 0
    assert "    line     leads only to b\n" in done.out


def test_a_role_that_speaks_otherwise_is_no_defect_of_the_command(explain: Command) -> None:
    done = explain("/x", "--name", "odd")
    assert done.code == 9
    assert "odd does not say how it is: odd/proc/ns:1: a word is missing" in done.err


def test_a_union_shows_every_tree_in_the_order_in_which_they_are_tried() -> None:
    drone = explained(read(SAID["drone-1"][0]), Policy.parse([LOCAL]), "local", ("sim", "x"))
    assert drone.lines == ("mount $self /sim", "mount -a $queen /sim /sim")
    assert [(m.address, m.path) for m in drone.members] == [("$self", ("x",)), ("$queen", ("sim", "x"))]


@pytest.mark.parametrize("subject", ["local", "any", "spiffe://h/user/eve", "spiffe://h/role/DroneWorker/d"])
def test_a_right_has_a_row_exactly_if_the_policy_gives_it(subject: str) -> None:
    rows = ["local rw /a/**", "any read /a/*", "role/*/* ctl /a/ctl#x", "user/* create,remove /a/b"]
    policy = Policy.parse([*rows, "local ctl /**"])
    for path in (("a",), ("a", "b"), ("a", "ctl"), ("a", "b", "c"), ()):
        why = explained(read("mount $self /\n"), policy, subject, path)
        given = {right for right, found in why.rows.items() if found}
        asked = RIGHTS.keys() - {"delegate"}
        assert given == {r for r in asked if decide(policy.grants(subject), "/" + "/".join(path), RIGHTS[r])}


def test_json_has_a_document_a_role(explain: Command) -> None:
    first, second = [json.loads(line) for line in explain("/n/drone-1/proc/ns", "--json").out.splitlines()]
    assert first["trees"] == [{"address": "$drone-1", "path": "/proc/ns", "read_only": False}]
    assert (second["role"], second["path"], second["server"]) == ("drone-1", "/proc/ns", "proc at /proc")
    assert second["as"] == "spiffe://hive.example/role/QueenPrimary/queen"
    assert second["rows"]["write"] == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "it takes one PATH"),
        (("/a", "/b"), 2, "it takes one PATH"),
        (("/a", "--as", "ann"), 2, "--as is local, any, user/NAME, role/ROLE/NAME or spiffe://..."),
    ],
)
def test_a_wrong_command_line(words: tuple[str, ...], code: int, says: str, explain: Command) -> None:
    done = explain(*words)
    assert done.code == code
    assert says in done.err
