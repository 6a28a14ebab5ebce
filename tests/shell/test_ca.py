"""warren ca: each verb once as it is meant, and the ways it goes wrong."""

import json
import stat
import subprocess
from pathlib import Path

import pytest
from warren.auth.certificates import load_chain, uris

from tests.shell.conftest import Command
from tests.shell.running import warren

QUEEN = "spiffe://hive.test/role/QueenPrimary/q"


@pytest.fixture
def ca(run: Command, tmp_path: Path) -> str:
    done = run("ca", "init", str(tmp_path / "ca"), "--hive", "hive.test")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{tmp_path}/ca names spiffe://hive.test/...\n"
    return str(tmp_path / "ca")


def test_an_identity_is_issued_listed_and_revoked(run: Command, ca: str, tmp_path: Path) -> None:
    done = run("ca", "issue", ca, QUEEN, "--out", str(tmp_path / "id"), "--ttl", "12h", "--json")
    said = json.loads(done.out)
    assert said["uri"] == QUEEN
    assert {p.name for p in (tmp_path / "id").iterdir()} == {"cert.pem", "key.pem", "ca.pem"}
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in (tmp_path / "id").iterdir())
    listed = [json.loads(line) for line in run("ca", "list", ca, "--json").out.splitlines()]
    assert [row["kind"] for row in listed] == ["root", "issuer", "leaf"]
    assert (listed[2]["serial"], listed[2]["state"]) == (said["serial"], "live")
    before = (tmp_path / "ca/crl.pem").read_bytes()
    shown = ["openssl", "x509", "-in", str(tmp_path / "id/cert.pem"), "-noout", "-serial"]
    serial = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
    assert (
        " revoked; " in run("ca", "revoke", ca, serial.removeprefix("serial="), "--reason", "superseded").out
    )
    assert (tmp_path / "ca/crl.pem").read_bytes() != before
    again = run("ca", "revoke", ca, said["serial"])
    assert (again.code, " was revoked before; " in again.out) == (0, True)
    assert " revoked:superseded " in run("ca", "list", ca).out


def test_a_request_is_signed_for_the_name_that_is_said(ca: str, tmp_path: Path) -> None:
    csr = str(tmp_path / "csr.pem")
    new = [
        "openssl",
        "req",
        "-new",
        "-newkey",
        "ed25519",
        "-nodes",
        "-keyout",
        str(tmp_path / "k.pem"),
        "-out",
        csr,
    ]
    wish = ["-subj", "/CN=x", "-addext", f"subjectAltName=URI:{QUEEN}", "-addext", "basicConstraints=CA:TRUE"]
    subprocess.run([*new, *wish], check=True, capture_output=True)
    asked = warren("ca", "sign", ca, csr)
    assert asked.code == 2
    assert f"which name? the request asks for {QUEEN}; it is yours to say: --uri URI" in asked.err
    name = "spiffe://hive.test/user/ann"
    printed = warren("ca", "sign", ca, "-", "--uri", name, stdin=Path(csr).read_text())
    chain = load_chain(printed.out.encode(), "")
    assert [uris(c) for c in chain] == [[name], []]
    assert warren("ca", "sign", ca, csr, "--uri", name, "--out", str(tmp_path / "ann")).code == 0
    assert {p.name for p in (tmp_path / "ann").iterdir()} == {"cert.pem", "ca.pem"}


def test_rotation_regions_and_lists(run: Command, ca: str, tmp_path: Path) -> None:
    assert run("ca", "rotate", ca).out == f"new issuer; hand out {ca}/crl.pem, then issue\n"
    assert run("ca", "rotate", ca, "--root").out.startswith("new root and issuer; ")
    west = str(tmp_path / "west")
    assert run("ca", "region", ca, "west", "--out", west).out == f"{west} names spiffe://west.hive.test/...\n"
    done = run(
        "ca", "issue", west, "spiffe://west.hive.test/user/bo", "--out", str(tmp_path / "bo"), "--json"
    )
    assert run("ca", "revoke", west, json.loads(done.out)["serial"]).code == 0
    assert (
        run("ca", "crl", ca, f"{west}/crl.pem").out
        == f"{ca}/crl.pem is signed again, with 1 newer of regions\n"
    )
    (tmp_path / "ca/root.key").rename(tmp_path / "safe.key")
    done = run("ca", "rotate", ca)
    assert done.code == 3
    assert done.err.endswith("the root's key is not here; bring it, or say with --root-key where it is\n")
    assert run("ca", "rotate", ca, "--root-key", str(tmp_path / "safe.key")).code == 0


def test_a_backup_and_back_with_the_passphrase_on_standard_input(ca: str, tmp_path: Path) -> None:
    safe, again = str(tmp_path / "safe"), str(tmp_path / "again")
    assert warren("ca", "backup", ca, safe, "--passphrase", "-", stdin="a long enough sentence\n").code == 0
    secret = tmp_path / "passphrase"
    secret.write_text("a long enough sentence\n")
    secret.chmod(0o644)
    done = warren("ca", "restore", safe, again, "--passphrase", str(secret))
    assert (done.code, "others can read this secret; chmod 600" in done.err) == (9, True)
    secret.chmod(0o600)
    done = warren("ca", "restore", safe, again, "--passphrase", str(secret))
    assert done.code == 0, done.err
    assert (tmp_path / "again/issuer.key").read_bytes() == (tmp_path / "ca/issuer.key").read_bytes()
    done = warren("ca", "restore", safe, again, "--passphrase", str(secret))
    assert (done.code, "it is not empty" in done.err) == (5, True)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "a verb is missing; there are init, issue, sign,"),
        (["sing"], 2, "no verb sing; there are init,"),
        (["issue", "CA"], 2, "warren ca issue: it takes DIR URI; see"),
        (["init", "CA"], 2, "which hive? Say --hive NAME"),
        (["init", "CA", "--hive", "x"], 5, "it is not empty; give a directory"),
        (["init", "new", "--hive", "Not Good"], 9, "'Not Good' cannot name a hive; "),
        (["issue", "CA", QUEEN], 2, "where to? Say --out DIR"),
        (["issue", "CA", "spiffe://else/user/x", "--out", "new"], 9, "is no name of hive.test; "),
        (["issue", "CA", QUEEN, "--out", "new", "--ttl", "1y"], 2, "--ttl '1y' is no time; "),
        (["issue", "CA", QUEEN, "--out", "new", "--ttl", "365d"], 9, "from one second to 90 days; "),
        (["issue", "new", QUEEN, "--out", "new"], 3, "there is no CA; make one: warren ca init"),
        (["revoke", "CA", "xyz"], 2, "'xyz' is no serial; "),
        (["revoke", "CA", "12ab"], 3, "12ab is no serial of this CA; see warren ca list"),
        (["sign", "CA", "none.csr", "--uri", QUEEN], 3, "there is no such file; "),
        (["backup", "CA", "new"], 2, "a passphrase is needed; say --passphrase FILE"),
        (["restore", "none", "new", "--passphrase", "none"], 3, "there is no such file; "),
    ],
)
def test_what_goes_wrong_is_one_line_with_a_way_out(
    run: Command,
    ca: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("ca", *[ca if word == "CA" else word for word in words])
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done.err
    assert says in done.err
    assert not (tmp_path / "new").exists()
