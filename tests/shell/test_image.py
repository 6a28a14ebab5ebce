"""`warren image`: what it prints, and its exit codes. The stand-in is built for real; it takes a second."""

import json
from pathlib import Path

import pytest
from warren.boot.images.image import STORE
from warren.shell import exits, image
from warren.shell.exits import Stopped, Usage
from warren.shell.main import parser


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STORE, str(tmp_path))
    return tmp_path


def run(*words: str) -> int:
    return image.run(parser("image").read(words))


def test_what_is_built_is_listed_verified_and_billed(capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert run("ls") == exits.OK
    assert "standin    not built" in capfd.readouterr().out
    assert run("build", "standin") == exits.OK
    told = capfd.readouterr()
    digest, folder = told.out.split()
    assert Path(folder) == place / "standin" / digest
    assert f"built standin {digest[:16]}" in told.err
    assert run("build", "standin") == exits.OK
    assert capfd.readouterr() == (told.out, "")
    assert run("verify", "standin") == exits.OK
    assert capfd.readouterr().out == "standin: every file is what was signed\n"
    assert run("sbom", "standin") == exits.OK
    assert json.loads(capfd.readouterr().out)["bomFormat"] == "CycloneDX"
    assert run("ls") == exits.OK
    assert "standin    built" in capfd.readouterr().out


def test_it_speaks_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("build", "standin", "--json") == exits.OK
    built = json.loads(capfd.readouterr().out)
    assert built["files"].keys() == {"kernel", "root", "sbom"}
    assert run("verify", "standin", "--json") == exits.OK
    assert json.loads(capfd.readouterr().out) == {"name": "standin", "ok": True, "faults": []}
    assert run("ls", "--json") == exits.OK
    listed = {one["name"]: one for one in map(json.loads, capfd.readouterr().out.splitlines())}
    assert listed["standin"]["state"] == "built"
    assert listed["linux"]["state"] in ("not built", "cannot be built")


def test_one_byte_that_is_changed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    run("build", "standin")
    root = Path(capfd.readouterr().out.split()[1]) / "root.elf"
    body = bytearray(root.read_bytes())
    body[-1] ^= 1
    root.write_bytes(body)
    assert run("verify", "standin") == exits.BAD_INPUT
    assert capfd.readouterr().out == "standin: root.elf: it is not what was signed\n"


@pytest.mark.parametrize("words", [[], ["bake"], ["ls", "linux"], ["build"], ["sbom"], ["sbom", "x", "y"]])
def test_a_command_line_that_is_wrong_says_how_it_is_written(words: list[str]) -> None:
    with pytest.raises(Usage, match="warren image"):
        run(*words)


@pytest.mark.parametrize(("verb", "name"), [("build", "none"), ("verify", "standin"), ("sbom", "linux")])
def test_what_is_not_there_is_not_found(verb: str, name: str) -> None:
    with pytest.raises(Stopped) as caught:
        run(verb, name)
    assert exits.of(caught.value) == exits.NOT_FOUND
    assert caught.value.way_out.startswith("warren image")


def test_what_nothing_can_be_pinned_for_says_so() -> None:
    with pytest.raises(OSError, match="nothing that could be pinned"):
        run("lock", "standin")
