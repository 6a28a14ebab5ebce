"""warren import: a tree behind TLS on a unix socket, for clients that we did not write."""

import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from warren.auth.ca import CA
from warren.roles.state import State

from tests.shell.conftest import Command
from tests.shell.running import PATIENCE, WARREN, Done, Served, environment, serving, warren
from tests.shell.staying import Stays, hive, staying

ANN = "spiffe://hive.test/user/ann"


class Hive(NamedTuple):
    """Who serves, and who imports."""

    server: str
    ann: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Hive:
    folder = tmp_path_factory.mktemp("hive")
    ca = CA.create(folder / "ca", "hive.test")
    ca.issue("spiffe://hive.test/role/FileServer/f", folder / "f")
    ca.issue(ANN, folder / "ann")
    return Hive(str(folder / "f"), str(folder / "ann"))


@contextmanager
def secure(two: Hive, *words: str, listen: str = "tls!127.0.0.1!0") -> Iterator[Served]:
    row = f"{ANN} read,write,create,remove,ctl /**"
    with serving(*words, "--listen", listen, "--id", two.server, "--allow", row) as served:
        yield served


@contextmanager
def imported(two: Hive, at: str, *words: str) -> Iterator[tuple[Stays, str]]:
    with staying("import", at, "--id", two.ann, *words) as it:
        yield it, it.hear("listening on ")


def tool(name: str, at: str, *words: str) -> bytes:
    done = subprocess.run(
        [f"/usr/sbin/{name}", "-s", at.removeprefix("unix!"), "-a", "/", *words],
        capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_of(path: str, at: str) -> str:
    """The first line of a stream, which has no end."""
    done = subprocess.run(
        ["bash", "-c", f"{WARREN} cat {path} | head -1"], env=environment(at), capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    return done.stdout


def test_diods_tools_use_what_is_behind_tls(two: Hive, tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    data = bytes(range(256)) * 5000
    (tmp_path / "d/big").write_bytes(data)
    with secure(two, "disk", str(tmp_path / "d")) as served, imported(two, served.at) as (it, at):
        socket = Path(at.removeprefix("unix!"))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        said = f"mount -t 9p -o trans=unix,version=9p2000.L {socket} DIR"
        assert it.hear("mount it with: ") == said
        assert sorted(tool("diodls", at).split()) == [b"big", b"sub"]
        assert tool("diodcat", at, "big") == data
        assert it.end(signal.SIGTERM) == 0
        assert not socket.parent.exists()


def test_all_words_go_through(two: Hive, tmp_path: Path) -> None:
    place = f"unix!{tmp_path}/here"
    with secure(two, "demo") as served, imported(two, served.at, "--listen", place) as (it, at):
        assert at == place
        assert warren("ctl", "/", "say", "hallo", at=at).code == 0
        assert tool("diodcat", at, "hello") == b"hello, world\n"
        done = warren("ctl", "/", "nonsense", at=at)
        assert (done.code, "no verb 'nonsense'" in done.err) == (9, True)
        assert warren("write", "/send", "one", at=at).code == 0
        assert first_of("/recv", at) == "one\n"
        assert it.end(signal.SIGINT) == 130
    assert not (tmp_path / "here").exists()


def test_it_goes_on_when_its_server_was_away(two: Hive, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    with secure(two, "disk", str(tmp_path / "d")) as served, imported(two, served.at) as (_, at):
        assert tool("diodcat", at, "f") == b"x"
        served.process.kill()
        served.process.wait()
        done = warren("cat", "/f", at=at)
        assert done.code == 7
        assert "502 upstream: " in done.err
        with secure(two, "disk", str(tmp_path / "d"), listen=served.at):
            assert warren("cat", "/f", at=at) == Done(0, "x", "")


def test_it_may_be_read_only(two: Hive, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    with secure(two, "disk", str(tmp_path / "d")) as served:
        with imported(two, served.at, "--read-only") as (_, at):
            assert warren("write", "/f", "y", at=at).code == 4
        assert (tmp_path / "d/f").read_text() == "x"


def test_posted_in_a_hive_it_is_below_n(two: Hive, tmp_path: Path) -> None:
    with hive("queen=QueenPrimary") as state, secure(two, "demo") as served:
        words = ("--state", str(state.directory))
        with imported(two, served.at, "--as", "far", *words) as (it, at):
            assert at == f"unix!{state.directory}/srv/queen/far.sock"
            assert it.hear("posted: ") == "/n/far"
            assert warren("cat", *words, "/n/far/hello") == Done(0, "hello, world\n", "")
            assert it.end(signal.SIGTERM) == 0
        taken(state, served.at, two)


def taken(state: State, at: str, two: Hive) -> None:
    done = warren("import", at, "--id", two.ann, "--as", "queen", "--state", str(state.directory))
    assert done == Done(5, "", "warren: queen: /n/queen is for the role of that name; choose another name\n")


def test_json_says_where_it_is(demo: Served, tmp_path: Path) -> None:
    place = f"unix!{tmp_path}/here"
    command = f"mount -t 9p -o trans=unix,version=9p2000.L {tmp_path}/here DIR"
    with subprocess.Popen(
        [WARREN, "import", demo.at, "--listen", place, "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {
            "tree": demo.at, "listening": [place], "mount": command,
        }  # fmt: skip
        process.terminate()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "say what: warren import ADDR"),
        (("nonsense",), 2, "'nonsense' is not an address"),
        (("unix!/nowhere", "--as", "a", "--listen", "unix!/b"), 2, "leave one out"),
        (("unix!/nowhere", "--listen", "tcp!127.0.0.1!1"), 2, "is no unix!/PATH"),
        (("unix!/nowhere",), 7, "unix!/nowhere: No such file or directory; see whether the server runs"),
        (("tls!127.0.0.1!1",), 2, "it wants to know who you are"),
        (("unix!/nowhere", "--as", "x", "--state", "/nowhere"), 3, "there is no hive"),
    ],
)
def test_what_cannot_be_imported(run: Command, words: tuple[str, ...], code: int, says: str) -> None:
    done = run("import", *words)
    assert done.code == code, done.err
    assert says in done.err


def test_a_socket_that_is_taken_is_not_replaced(run: Command, demo: Served) -> None:
    done = run("import", demo.at, "--listen", demo.at)
    assert done.code == 5
    assert "Address already in use; another server may run there" in done.err
    assert warren("cat", "/hello", at=demo.at).code == 0
