"""warren export: a queen mounts what we have, and we listen nowhere."""

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from warren.roles.state import State

from tests.shell.conftest import Command
from tests.shell.running import Done, Served, warren
from tests.shell.staying import hive as a_hive
from tests.shell.staying import staying

READS = "role/QueenPrimary/* read /**"
EVERY = "role/QueenPrimary/* read,write,create,remove,ctl /**"


class Hive:
    """A hive of a queen, and identities in it."""

    def __init__(self, state: State, folder: Path) -> None:
        self.state, self.folder = state, folder
        addresses = (state.run("queen") / "addr").read_text().split()
        [self.queen] = [line for line in addresses if line.startswith("tls!")]

    def issued(self, who: str) -> str:
        """The folder of an identity of that name."""
        where = self.folder / who.replace("/", "-")
        if not where.exists():
            uri = f"spiffe://{self.state.hive().hive}/{who}"
            done = warren("ca", "issue", str(self.state.ca), uri, "--out", str(where))
            assert done.code == 0, done.err
        return str(where)

    def words(self, name: str, *rows: str) -> list[str]:
        allowed = [word for row in rows for word in ("--allow", row)]
        return ["--to", self.queen, "--id", self.issued(f"role/FileServer/{name}"), *allowed]

    def on(self, *words: str, stdin: str = "") -> Done:
        """A command on the queen's namespace, as who runs her machine."""
        name, *rest = words
        return warren(name, "--state", str(self.state.directory), *rest, stdin=stdin)


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with a_hive("queen=QueenPrimary") as state:
        yield Hive(state, tmp_path_factory.mktemp("issued"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures/old").mkdir(parents=True)
    (tmp_path / "pictures/one").write_text("a picture")
    return tmp_path / "pictures"


def test_a_directory_is_below_n_while_it_is_offered(hive: Hive, pictures: Path) -> None:
    with staying("export", str(pictures), *hive.words("nas", EVERY), until="offered to ") as it:
        assert hive.on("cat", "/n/nas/one") == Done(0, "a picture", "")
        in_use = it.hear("in use by ")
        assert in_use == f"spiffe://{hive.state.hive().hive}/role/QueenPrimary/queen"
        assert hive.on("write", "/n/nas/old/two", "another").code == 0
        assert (pictures / "old/two").read_text() == "another\n"
        assert it.end(signal.SIGTERM) == 0
    assert hive.on("cat", "/n/nas/one").code in (3, 7)


def test_nobody_may_do_what_no_row_allows(hive: Hive, pictures: Path) -> None:
    with staying("export", str(pictures), *hive.words("shut"), until="offered to ") as it:
        assert any("everyone is refused; let a queen in" in line for line in it.said)
        assert hive.on("cat", "/n/shut/one").code != 0
        assert hive.on("ls", "/n/shut").code != 0
    with staying("export", str(pictures), *hive.words("reads", READS), until="offered to "):
        assert hive.on("cat", "/n/reads/one").out == "a picture"
        assert hive.on("write", "/n/reads/one", "x").code == 4
    assert (pictures / "one").read_text() == "a picture"


def test_read_only_is_so_whatever_the_rows_say(hive: Hive, pictures: Path) -> None:
    words = hive.words("kept", EVERY)
    with staying("export", str(pictures), "--read-only", *words, until="offered to "):
        assert hive.on("cat", "/n/kept/one").out == "a picture"
        assert hive.on("write", "/n/kept/one", "x").code != 0
    assert (pictures / "one").read_text() == "a picture"


def test_a_tree_at_an_address_is_passed_on_with_its_words(hive: Hive, demo: Served) -> None:
    with staying("export", demo.at, *hive.words("demo", EVERY), until="offered to "):
        assert hive.on("cat", "/n/demo/hello").out == "hello, world\n"
        assert hive.on("ctl", "/n/demo", "say", "hallo").code == 0
        refused = hive.on("ctl", "/n/demo", "nonsense")
        assert (refused.code, "no verb 'nonsense'" in refused.err) == (9, True)


def test_who_did_what_is_in_the_audit(hive: Hive, pictures: Path, tmp_path: Path) -> None:
    words = [*hive.words("seen", EVERY), "--audit", str(tmp_path / "audit")]
    with staying("export", str(pictures), *words, until="offered to ") as it:
        assert hive.on("write", "/n/seen/one", "x").code == 0
        assert it.end(signal.SIGTERM) == 0
    shown = warren("audit", "show", str(tmp_path / "audit"), "--json").out.splitlines()
    assert any("/role/QueenPrimary/queen" in line and '"/one"' in line for line in shown)


def test_it_is_offered_again_when_the_queen_is_back(hive: Hive, pictures: Path) -> None:
    with staying("export", str(pictures), *hive.words("again", READS), until="offered to ") as it:
        warren("ctl", "--at", f"unix!{hive.state.run('hive')}/sock", "/", "restart", "queen")
        it.hear("not offered: ")
        it.hear("offered to ")
        assert hive.on("cat", "/n/again/one").out == "a picture"


def test_a_name_that_a_role_runs_under_is_not_used_twice(hive: Hive, pictures: Path) -> None:
    words = ["--to", hive.queen, "--id", str(hive.state.pki("queen"))]
    done = warren("export", str(pictures), *words)
    assert done.code == 5
    assert "the role queen runs under this name; have another issued" in done.err


def test_a_user_is_mounted_by_no_queen(hive: Hive, pictures: Path) -> None:
    done = warren("export", str(pictures), "--to", hive.queen, "--id", hive.issued("user/ann"))
    assert done.code == 9
    assert "a queen mounts roles, and this is none; have a name issued" in done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("", 2, "say what"),
        ("DIR", 2, "--to ADDR says whom to"),
        ("DIR --to tls!127.0.0.1!1", 2, "--id DIR who you are"),
        ("DIR --to unix!/x --id ID", 2, "is no tls!HOST!PORT, as a queen's is"),
        ("DIR --to tls!x --id ID", 2, "is not an address"),
        ("tcp!x --to QUEEN --id ID", 2, "is not an address"),
        ("DIR --to QUEEN --id /nowhere", 3, "/nowhere"),
        ("DIR --to QUEEN --id ID --allow nonsense", 2, "--allow"),
        ("/nowhere --to QUEEN --id ID", 3, "give a directory that is there"),
        ("unix!/nowhere --to QUEEN --id ID", 7, "unix!/nowhere: No such file or directory"),
        ("DIR --to tls!127.0.0.1!1 --id ID", 7, "Connection refused; see whether the server runs there"),
        ("DIR --to QUEEN --id ID --expect role/Nobody/*", 4, "wrong_role"),
    ],
)
def test_what_cannot_be_exported(
    run: Command, hive: Hive, pictures: Path, words: str, code: int, says: str
) -> None:
    meant = {"DIR": str(pictures), "QUEEN": hive.queen, "ID": hive.issued("role/FileServer/x")}
    done = run("export", *(meant.get(word, word) for word in shlex.split(words)))
    assert done.code == code, done.err
    assert says in done.err
