"""Joining by the installed commands: a hive that runs, a token from it, and the state of another machine."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shell.conftest import Command
from tests.shell.running import Done, warren


class Hive:
    """A queen that runs, alone."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.said: list[str] = []
        up = self.run("up", "queen=QueenPrimary", "--detach")
        assert up.code == 0, up.err

    def run(self, *words: str, stdin: str = "") -> Done:
        done = warren(*words, "--state", str(self.state), stdin=stdin)
        self.said += [*words, done.out, done.err]
        return done

    @property
    def at(self) -> str:
        lines = (self.state / "run/queen/addr").read_text().splitlines()
        return next(line for line in lines if line.startswith("tls!"))

    def invite(self, name: str, out: Path, *more: str) -> str:
        done = self.run("token", "invite", "--role", "DroneWorker", "--name", name, "--out", str(out), *more)
        assert done.code == 0, done.err
        return str(out)

    def join(self, token: str, state: Path, *more: str, stdin: str = "") -> Done:
        words = ["join", self.at, "--role", "DroneWorker", "--token", token, "--state", str(state), *more]
        done = warren(*words, stdin=stdin)
        self.said += [*words, done.out, done.err]
        return done


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    state = tmp_path_factory.mktemp("q") / "s"
    made = None
    try:
        made = Hive(state)
        yield made
    finally:
        down = warren("down", "--state", str(state))
    assert down.code == 0, down.err


def test_one_command_from_nothing_to_a_worker_that_the_queen_uses(hive: Hive, tmp_path: Path) -> None:
    token, here = hive.invite("d1", tmp_path / "token"), tmp_path / "w"
    try:
        joined = hive.join(token, here, "--detach")
        assert joined.code == 0, joined.err
        steps = [line.split()[0] for line in joined.err.splitlines()]
        assert steps[:5] == ["key", "token", "queen", "certificate", "proved"]
        status = warren("status", "--state", str(here))
        assert status.code == 0
        assert "DroneWorker" in status.out
        state = hive.run("cat", "/n/d1/proc/lifecycle/state")
        assert (state.code, state.out) == (0, "ONLINE\n"), state.err
        again = hive.join(token, here)
        assert again.code == 5
        assert "there is an identity already; it has joined: warren up --state" in again.err
    finally:
        down = warren("down", "--state", str(here))
    assert down.code == 0
    assert not (here / "pki/.joining").exists()


def test_a_token_that_somebody_used_is_no_good_and_the_queen_is_alarmed(hive: Hive, tmp_path: Path) -> None:
    token = hive.invite("d2", tmp_path / "token")
    first = hive.join(token, tmp_path / "w", "--no-up", "--json")
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert found["name"].endswith("/role/DroneWorker/d2")
    folder = Path(found["identity"])
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("cert.pem", "key.pem", "ca.pem", "crl.pem"), 0o600
    )
    thief = hive.join(token, tmp_path / "thief")
    assert thief.code == 4
    assert "ask: 403 denied: this join token does not count here" in thief.err
    assert "have another: warren token invite" in thief.err
    assert not (tmp_path / "thief/pki/d2").exists()
    events = hive.run("cat", "/log/events.log")
    assert "join_reused" in events.out
    assert "why=used" in events.out


def test_a_join_whose_answer_was_lost_is_done_again_by_the_same_command(hive: Hive, tmp_path: Path) -> None:
    token, here = hive.invite("d3", tmp_path / "token"), tmp_path / "w"
    first = hive.join(token, here, "--no-up")
    assert first.code == 0, first.err
    key = (here / "pki/d3/key.pem").read_bytes()
    # As a crash before the end would have left it: the key, and no certificate.
    [pending] = [line.split()[-1] for line in first.err.splitlines() if line.startswith("key ")]
    os.makedirs(pending, 0o700)
    (here / "pki/d3/key.pem").rename(Path(pending) / "key.pem")
    for left in (here / "pki/d3").iterdir():
        left.unlink()
    (here / "pki/d3").rmdir()
    again = hive.join(token, here, "--no-up")
    assert again.code == 0, again.err
    assert (here / "pki/d3/key.pem").read_bytes() == key


def test_the_token_may_come_through_a_pipe(hive: Hive, tmp_path: Path) -> None:
    given = hive.run("token", "invite", "--role", "DroneWorker", "--name", "d4", "--out", "-")
    assert given.code == 0, given.err
    hive.said.pop(-2)  # the one place where it is to be printed
    joined = hive.join("-", tmp_path / "w", "--no-up", "--name", "d4", stdin=given.out)
    assert joined.code == 0, joined.err


def test_what_cannot_be_is_said_with_the_step_and_the_way_out(hive: Hive, tmp_path: Path) -> None:
    token = hive.invite("d5", tmp_path / "token", "--ttl", "1h")
    os.chmod(tmp_path / "token", 0o644)
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("--no-up",), 4, "others can read this secret; chmod 600"),
        (("--no-up", "--name", "other"), 9, "token: it is for the name d5; say --name d5"),
        (("--no-up", "--role", "X"), 9, "token: it is for the role DroneWorker; say --role DroneWorker"),
    ]
    for more, code, says in cases:
        done = hive.join(token, tmp_path / "w", *more)
        assert (done.code, says in done.err) == (code, True), done.err
        os.chmod(tmp_path / "token", 0o600)
    own = hive.join(token, hive.state)
    assert own.code == 5
    assert "it is the state of a hive of its own; give another --state" in own.err
    absent = hive.join(str(tmp_path / "absent"), tmp_path / "w")
    assert absent.code == 3
    taken = hive.run("token", "invite", "--role", "QueenPrimary", "--name", "queen")
    assert taken.code == 5
    assert "is taken: choose another, or revoke" in taken.err


def test_no_token_was_said_or_logged_anywhere(hive: Hive, tmp_path: Path) -> None:
    token = Path(hive.invite("d6", tmp_path / "token"))
    assert hive.join(str(token), tmp_path / "w", "--no-up").code == 0
    secret = token.read_text().splitlines()[1][8:52]
    assert secret not in " ".join(hive.said)
    logs = [path for path in (hive.state / "log").rglob("*") if path.is_file()]
    assert logs
    for path in [*logs, *(p for p in (hive.state / "store").rglob("*") if p.is_file())]:
        assert secret.encode() not in path.read_bytes(), path


def test_command_lines_that_cannot_be(run: Command, tmp_path: Path) -> None:
    cases = {
        ("join",): "it takes one ADDR",
        ("join", "tls!a!1"): "--role is missing",
        ("join", "tls!a!1", "--role", "R"): "--token is missing",
        ("token", "invite", "--role", "R"): "--name is missing",
        ("token", "invite", "--role", "R", "--name", "n", "--key", "k"): "--key is not for it",
        ("token", "invite", "--role", "R", "--name", "n", "--at", "a", "--state", "b"): "give one",
        ("token", "show", "x", "--at", "unix!/x"): "it asks no tree",
    }
    for words, says in cases.items():
        done = run(*words)
        assert (done.code, says in done.err) == (2, True), (words, done.err)


def test_what_invite_does_is_a_line_that_a_shell_could_write(run: Command) -> None:
    done = run("token", "invite", "--role", "DroneWorker", "--name", "d 7", "--ttl", "5m", "-n")
    assert done.out == "echo 'invite role=DroneWorker name='\"'\"'d 7'\"'\"' ttl=300s' >/mesh/ca/ctl\n"
