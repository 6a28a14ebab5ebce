"""warren token, from a fresh key to a revoked token, and what it refuses and keeps to itself."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth.blocks import read_parts, read_revoked, write_parts
from warren.auth.rights import parse_grant
from warren.auth.token import Issuer
from warren.shell import main

from tests.shell.conftest import Command
from tests.shell.running import Done

SERVER, ADA = "spiffe://hive/role/Disk/d1", "spiffe://hive/user/ada"
ROWS = ("--allow", "rw /vm/**", "--allow", "ctl /vm/*/ctl#stop,start")
TO_ALL = ("--aud", "spiffe://hive/role/Disk/*")


@pytest.fixture
def token(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`token("mint", ...)` in an empty directory that has an issuer's key."""
    monkeypatch.setitem(main.COMMANDS, "token", "make, narrow and check capabilities")
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> Done:
        return run("token", *words)

    assert command("keygen", "--out", "issuer.key").code == 0
    return command


@pytest.fixture
def minted(token: Command) -> Command:
    done = token("mint", "--key", "issuer.key", *ROWS, *TO_ALL, "--to", ADA)
    assert done.code == 0, done.err
    return token


def verify(token: Command, name: str = "token", *more: str) -> Done:
    return token("verify", name, "--issuer", "issuer.key.pub", "--as", SERVER, "--from", ADA, *more)


def mode(name: str) -> int:
    return stat.S_IMODE(os.stat(name).st_mode)


def test_a_key_a_token_and_a_verdict(minted: Command) -> None:
    done = verify(minted, "token", "--path", "/vm/1/disk")
    assert done.code == 0, done.err
    assert f"actor={ADA}" in done.out
    assert "rights=walk,read,write" in done.out
    assert "proof=given" in done.out
    assert "verbs=start,stop" in verify(minted, "token", "--path", "/vm/1/ctl").out
    assert "rights=''" in verify(minted, "token", "--path", "/etc").out


def test_secrets_are_for_their_owner_and_are_never_printed(
    minted: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (mode("issuer.key"), mode("token"), mode("issuer.key.pub")) == (0o600, 0o600, 0o644)
    secret = Path("token").read_text().split("warren-token-key 1\n")[1].strip()
    pem = Path("issuer.key").read_text().splitlines()[1]
    Path("bad").write_text(Path("token").read_text().replace("warren-token-key 1", "warren-token-key 2"))
    os.chmod("bad", 0o600)
    for done in (
        minted("show", "token"), minted("show", "token", "--json"), verify(minted), minted("revoke", "token"),
        minted("show", "bad"), minted("show", "issuer.key"), minted("mint", "--key", "token", *ROWS, *TO_ALL),
    ):  # fmt: skip
        assert secret not in done.out + done.err
        assert pem not in done.out + done.err


def test_openssl_reads_the_key_and_its_own_key_mints(token: Command) -> None:
    text = subprocess.run(
        ["openssl", "pkey", "-in", "issuer.key", "-pubout"], capture_output=True, text=True, check=True
    )
    assert text.stdout == Path("issuer.key.pub").read_text()
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "other.key"], check=True)
    os.chmod("other.key", 0o600)
    assert token("mint", "--key", "other.key", *ROWS, *TO_ALL).code == 0
    done = verify(token)
    assert done.code == 4
    assert "issuer: " in done.err


def test_a_narrowed_token_does_less(minted: Command) -> None:
    done = minted("narrow", "token", "--allow", "read /vm/1/**", "--ttl", "5m", "--out", "lesser")
    assert done.code == 0, done.err
    assert mode("lesser") == 0o600
    assert "rights=walk,read\n" in verify(minted, "lesser", "--path", "/vm/1/disk").out
    assert "rights=''" in verify(minted, "lesser", "--path", "/vm/2/disk").out
    shown = [json.loads(line) for line in minted("show", "lesser", "--json").out.splitlines()]
    assert [d.get("allow") for d in shown] == [
        ["read,write /vm/**", "ctl /vm/*/ctl#start,stop"],
        ["read /vm/1/**"],
        None,
    ]
    assert shown[1]["before"] == shown[0]["id"]
    assert shown[2] == {"blocks": 2, "bytes": shown[2]["bytes"], "key": "yes"}


def test_a_token_is_not_narrowed_over_itself(minted: Command) -> None:
    before = Path("token").read_bytes()
    for out in ((), ("--out", "token"), ("--out", "./token")):
        done = minted("narrow", "token", "--ttl", "1m", *out)
        assert done.code == 5
        assert "--out" in done.err
    assert Path("token").read_bytes() == before


def test_a_public_token_can_be_looked_at_and_not_narrowed(minted: Command) -> None:
    chain = read_parts(Path("token").read_text())[0]
    Path("public").write_text(write_parts([chain]))
    os.chmod("public", 0o644)
    assert "key=no" in minted("show", "public").out
    assert "proof='not asked for" in verify(minted, "public").out
    done = minted("narrow", "public", "--ttl", "1m", "--out", "x")
    assert done.code == 4
    assert "ask its holder" in done.err


def test_a_secret_that_others_can_read_is_not_believed(minted: Command) -> None:
    os.chmod("token", 0o644)
    os.chmod("issuer.key", 0o640)
    for done in (
        minted("narrow", "token", "--ttl", "1m", "--out", "x"),
        minted("show", "token"),
        minted("mint", "--key", "issuer.key", *ROWS, *TO_ALL, "--out", "y"),
    ):
        assert done.code == 4
        assert "chmod 600" in done.err
    assert not os.path.exists("x")
    assert not os.path.exists("y")


def test_the_verdict_names_what_is_wrong(minted: Command) -> None:
    assert (
        minted("verify", "token", "--issuer", "issuer.key.pub", "--as", "spiffe://hive/role/Log/l").code == 4
    )
    done = minted("verify", "token", "--issuer", "issuer.key.pub", "--as", SERVER)
    assert done.code == 4
    assert "holder: " in done.err
    minted("keygen", "--out", "second.key")
    assert minted("mint", "--key", "second.key", *ROWS, *TO_ALL, "--ttl", "2d").code == 0
    assert "life: " in minted("verify", "token", "--issuer", "second.key.pub", "--as", SERVER).err


def test_a_certified_issuer_is_held_to_what_it_may_mint(minted: Command) -> None:
    key = Ed25519PrivateKey.generate()
    own = (json.loads(minted("show", "token", "--json").out.splitlines()[0]))["issuer"]
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = load_pem_public_key(Path("issuer.key.pub").read_bytes())
    raw = public.public_bytes_raw()  # type: ignore[union-attr]
    for rows, code in ((("read,write,ctl /vm/**",), 0), (("read,write /vm/**",), 4)):
        issuer = Issuer(raw, tuple(map(parse_grant, rows)), 0, 1 << 40)
        assert issuer.id.hex() == own
        Path("issuers").write_text(write_parts([("warren-issuer", issuer.certify(key.sign))]))
        assert minted("verify", "token", "--issuer", "issuers", "--as", SERVER, "--from", ADA).code == code


def test_what_is_revoked_counts_no_more_nor_what_came_of_it(minted: Command) -> None:
    minted("narrow", "token", "--ttl", "5m", "--out", "lesser")
    assert verify(minted, "lesser").code == 0
    done = minted("revoke", "lesser", "--list", "revoked")
    assert done.code == 0
    assert "already" not in done.out
    assert "already" in minted("revoke", "lesser", "--list", "revoked").out
    assert verify(minted, "lesser", "--list", "revoked").code == 4
    assert verify(minted, "token", "--list", "revoked").code == 0
    root = json.loads(minted("revoke", "lesser", "--block", "0", "--json").out)["revoked"]
    assert minted("revoke", root, "--list", "revoked").code == 0
    assert "revoked: " in verify(minted, "token", "--list", "revoked").err
    assert len(read_revoked(Path("revoked").read_text())) == 2


def test_a_proxy_acts_for_another(token: Command) -> None:
    gate, bob = "spiffe://hive/role/Gate/g", "spiffe://hive/user/bob"
    token("mint", "--key", "issuer.key", *ROWS, *TO_ALL, "--to", gate)
    assert token("narrow", "token", "--for", bob, "--path", "/vm/1", "--out", "lent").code == 0
    asked = (
        "verify",
        "lent",
        "--issuer",
        "issuer.key.pub",
        "--as",
        SERVER,
        "--from",
        gate,
        "--path",
        "/vm/1/disk",
    )
    assert "delegate: " in token(*asked).err
    trusted = ("--allow", "role/Gate/* delegate /vm/**", "--allow", "user/bob read /vm/**")
    done = token(*asked, *trusted)
    assert f"actor={bob}" in done.out
    assert f"via={gate}" in done.out
    assert "rights=walk,read\n" in done.out


def test_a_key_is_never_written_over(token: Command) -> None:
    before = Path("issuer.key").read_bytes()
    assert token("keygen", "--out", "issuer.key").code == 5
    os.rename("issuer.key", "elsewhere")
    assert token("keygen", "--out", "issuer.key").code == 5
    assert Path("elsewhere").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "a verb is missing"),
        (("melt",), "no verb 'melt'"),
        (("show",), "one FILE"),
        (("mint", "token"), "options only"),
        (("mint", "--key", "issuer.key", *TO_ALL), "--allow is missing"),
        (("mint", "--key", "issuer.key", *ROWS), "--aud is missing"),
        (("show", "token", "--ttl", "1h"), "--ttl is not for it"),
        (("mint", "--key", "issuer.key", *ROWS, *TO_ALL, "--ttl", "soon"), "90s"),
        (("mint", "--key", "issuer.key", *ROWS, *TO_ALL, "--rate", "fast"), "a number"),
        (("mint", "--key", "issuer.key", "--allow", "fly /", *TO_ALL), "no right 'fly'"),
        (("narrow", "token", "--for", ADA), "go together"),
        (("revoke", "0" * 64, "--block", "1"), "one block already"),
    ],
)
def test_a_wrong_line_says_how_it_goes(token: Command, words: tuple[str, ...], says: str) -> None:
    done = token(*words)
    assert done.code == 2
    assert says in done.err
    assert not os.path.exists("token")


@pytest.mark.parametrize("who", ["role/Disk/*", "any", "spiffe://hive"])
def test_a_name_that_is_not_whole_is_refused(token: Command, who: str) -> None:
    done = token("mint", "--key", "issuer.key", *ROWS, "--aud", who)
    assert done.code == 9
    assert not os.path.exists("token")


def test_files_that_are_not_there_or_are_others(token: Command) -> None:
    assert token("show", "nothing").code == 3
    assert token("show", "issuer.key").code == 9
    assert token("mint", "--key", "issuer.key.pub", *ROWS, *TO_ALL).code in (4, 9)
    assert token("mint", "--key", "issuer.key", *ROWS, *TO_ALL, "--out", "no/where").code == 3


def test_the_help_lists_every_option(token: Command) -> None:
    done = token("--help")
    assert done.code == 0
    for option in ("--allow", "--aud", "--ttl", "--for", "--issuer", "--list"):
        assert option in done.out
