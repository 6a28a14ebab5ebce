"""Identities, tokens and revocation, by the command as it is installed: one hive, three servers, real TLS.

What is started is kept for the module. Every command line, all that was printed and all that was logged is
kept too, and the last test looks for secrets in it.
"""

import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from warren.shell.main import main

from tests.shell.conftest import Command
from tests.shell.running import PATIENCE, WARREN, Done, Served, environment, serving, warren

LISTEN = ("--listen", "tls!127.0.0.1!0")
PIN = "kestrel-in-the-belfry"
PASSPHRASE = "a sentence that is long enough"
HIVE = "spiffe://hive.test"
ANN = f"{HIVE}/user/ann"
DISKS = f"{HIVE}/role/Disk/*"


class Hive:
    """A CA, its authority's tree, a disk and a demonstration that watch it, and ann, who may do all."""

    def __init__(self, root: Path, servers: ExitStack) -> None:
        self.root = root
        self.said: list[str] = []
        self.ca = str(root / "ca")
        assert self.run("ca", "init", self.ca, "--hive", "hive.test").code == 0
        for uri in (f"{HIVE}/role/Authority/cap", f"{HIVE}/role/Disk/d", f"{HIVE}/role/Demo/d", ANN):
            self.issue(uri)
        assert self.run("token", "keygen", "--out", str(root / "mint.key")).code == 0
        (root / "data/pub").mkdir(parents=True)
        (root / "data/pub/x").write_text("one\ntwo\n")
        (root / "passphrase").write_text(f"{PASSPHRASE}\n")
        (root / "passphrase").chmod(0o600)
        heads = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(root / "heads.key")]
        subprocess.run(heads, check=True, capture_output=True)
        (root / "heads.key").chmod(0o600)
        self.servers: list[Served] = []

        def serve(*words: str) -> Served:
            served = servers.enter_context(serving(*words))
            self.servers.append(served)
            return served

        me = self.folder
        self.cap = serve("cap", self.ca, *LISTEN, "--id", me("Authority-cap"),
                         "--allow", "role/*/* read /**")  # fmt: skip
        watch = ("--watch", self.cap.at, "--audit")
        everything = ("--allow", "user/* read,write,create,remove,ctl /**")
        self.disk = serve("disk", str(root / "data"), *LISTEN, "--id", me("Disk-d"), *everything, *watch,
                          str(root / "audit"), "--heads", str(root / "heads"),
                          "--heads-key", str(root / "heads.key"))  # fmt: skip
        self.demo = serve("demo", *LISTEN, "--id", me("Demo-d"), *everything, *watch, str(root / "audit2"))

    def folder(self, name: str) -> str:
        return str(self.root / "ids" / name)

    def issue(self, uri: str, *more: str) -> str:
        """An identity for URI; its folder is named by the last two words, or the user."""
        kind, *name = uri.removeprefix(f"{HIVE}/").split("/")
        into = self.folder("-".join(name))
        assert main(["ca", "issue", self.ca, uri, "--out", into, *more]) == 0  # the same, and quicker
        assert kind in ("role", "user")
        return into

    def run(self, *words: str, stdin: str = "") -> Done:
        done = warren(*words, stdin=stdin)
        self.said += [*words, done.out, done.err]
        return done

    def at_disk(self, who: str, *words: str, stdin: str = "") -> Done:
        command, *rest = words
        return self.run(command, "--at", self.disk.at, "--id", self.folder(who), *rest, stdin=stdin)

    def at_demo(self, who: str, *words: str, stdin: str = "") -> Done:
        command, *rest = words
        return self.run(command, "--at", self.demo.at, "--id", self.folder(who), *rest, stdin=stdin)

    def serial(self, folder: str) -> str:
        certificate = x509.load_pem_x509_certificate((Path(folder) / "cert.pem").read_bytes())
        return f"{certificate.serial_number:x}"

    def denials(self, audit: str) -> str:
        return self.run("audit", "show", str(self.root / audit)).out


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with ExitStack() as servers:
        yield Hive(tmp_path_factory.mktemp("hive"), servers)


def heard(served: Served, text: str) -> str:
    """The next line of a server's log that has TEXT in it; what was read is kept with what it said."""
    assert served.process.stderr is not None
    alarm = threading.Timer(PATIENCE, served.process.kill)
    alarm.start()
    try:
        for line in served.process.stderr:
            served.said.append(line.rstrip("\n"))
            if text in line:
                return line
    finally:
        alarm.cancel()
    raise AssertionError(f"the server never said {text!r}; it said {served.said}")


def eventually(act: Callable[[], Done], code: int, within: float = 5.0) -> Done:
    """ACT until it ends with CODE: a change of the authority's takes up to a second to arrive."""
    deadline = time.monotonic() + within
    while (done := act()).code != code and time.monotonic() < deadline:
        pass
    assert done.code == code, done
    return done


def test_every_client_command_takes_an_identity(hive: Hive) -> None:
    assert hive.at_disk("ann", "ls", "/").out == "pub\n"
    assert hive.at_disk("ann", "cat", "/pub/x").out == "one\ntwo\n"
    assert hive.at_disk("ann", "tail", "-n", "1", "/pub/x").out == "two\n"
    assert hive.at_disk("ann", "stat", "/pub/x").code == 0
    assert hive.at_disk("ann", "write", "/pub/y", stdin="three\n").code == 0
    assert (hive.root / "data/pub/y").read_text() == "three\n"
    assert hive.at_demo("ann", "ctl", "/", "say", "hi").code == 0
    assert hive.at_demo("ann", "write", "/ctl", stdin=f"unlock front {PIN}\n").code == 0
    assert f" {ANN} " in hive.denials("audit2")


def test_without_an_identity_or_with_a_wrong_one_the_way_out_is_said(hive: Hive) -> None:
    done = hive.run("ls", "--at", hive.disk.at, "/")
    assert done.code == 2
    assert done.err == (
        f"warren: {hive.disk.at}: it wants to know who you are; "
        "say --id DIR, a folder that warren ca issue made\n"
    )
    assert hive.run("ls", "--at", hive.disk.at, "--id", hive.folder("nobody"), "/").code == 3
    done = hive.at_disk("ann", "ls", "--expect", "role/Gate/*", "/")
    assert done.code == 4
    assert "wrong_role: role/Gate/* was expected, and spiffe://hive.test/role/Disk/d answered" in done.err


def test_another_hives_identity_is_refused_by_both_ends(hive: Hive) -> None:
    other = str(hive.root / "other")
    assert main(["ca", "init", other, "--hive", "hive.test"]) == 0
    assert hive.run("ca", "issue", other, ANN, "--out", hive.folder("false-ann")).code == 0
    done = hive.at_disk("false-ann", "ls", "/")
    assert (done.code, "unknown_ca: nobody that is trusted vouches for it" in done.err) == (4, True)
    # With the right roots it believes the server, and now the server refuses it.
    shutil.copy(Path(hive.folder("ann"), "ca.pem"), hive.root / "roots.pem")
    bundle = Path(hive.folder("false-ann"), "ca.pem")
    bundle.write_bytes(bundle.read_bytes() + (hive.root / "roots.pem").read_bytes())
    done = hive.at_disk("false-ann", "ls", "/")
    assert done.code == 4
    assert "certificate was refused: unknown_ca: nobody whom that server trusts vouches for it" in done.err
    assert re.search(r" handshake 127\.0\.0\.1 401 unknown_ca ", hive.denials("audit"))


def test_a_key_that_openssl_made_never_leaves_its_owner(hive: Hive) -> None:
    folder, csr = Path(hive.folder("bob")), str(hive.root / "bob.csr")
    key = str(hive.root / "bob.key")
    new = ["openssl", "req", "-new", "-newkey", "ed25519", "-nodes", "-subj", "/CN=queen"]
    subprocess.run([*new, "-keyout", key, "-out", csr], check=True, capture_output=True)
    assert hive.run("ca", "sign", hive.ca, csr, "--uri", f"{HIVE}/user/bob", "--out", str(folder)).code == 0
    Path(key).rename(folder / "key.pem")
    assert hive.at_disk("bob", "cat", "/pub/x").out == "one\ntwo\n"


def test_revoking_reaches_a_reader_who_waits_and_whoever_dials_after(hive: Hive) -> None:
    eve = hive.issue(f"{HIVE}/user/eve")
    command = [str(WARREN), "cat", "--at", hive.demo.at, "--id", eve, "/events"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as reader:  # fmt: skip
        assert reader.stdout is not None
        # Its stream begins where it was opened: what is said until the first record comes is its greeting.
        came = threading.Event()
        first: list[str] = []

        def wait() -> None:
            assert reader.stdout is not None
            first.append(reader.stdout.readline())
            came.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not came.is_set():
            assert hive.at_demo("ann", "ctl", "/", "say", "hello").code == 0
        waiting.join()
        assert "hello" in first[0]
        assert hive.run("ca", "revoke", hive.ca, hive.serial(eve), "--reason", "keyCompromise").code == 0
        began = time.monotonic()
        _, err = reader.communicate(timeout=PATIENCE)
        took = time.monotonic() - began
    assert took < 2, f"{took} s; the authority looks five times a second, and this machine may be busy"
    assert reader.returncode == 7
    assert "was lost" in err
    for at in (hive.at_demo, hive.at_disk):
        done = eventually(partial(at, "eve", "ls", "/"), 4)
        assert "our certificate was refused: revoked: it, or its issuer, is revoked; " in done.err
        assert "have --id issued again: warren ca issue" in done.err
    assert " handshake 127.0.0.1 401 revoked " in hive.denials("audit")
    assert hive.at_demo("ann", "cat", "/hello").code == 0
    # A lost key: the same name under a new key is let in, and the old one stays out.
    shutil.copytree(eve, hive.folder("thief"))
    hive.issue(f"{HIVE}/user/eve")
    assert hive.at_demo("eve", "cat", "/hello").code == 0
    assert hive.at_demo("thief", "cat", "/hello").code == 4


def test_rotation_is_picked_up_without_a_restart(hive: Hive) -> None:
    address = hive.disk.at.split("!")[1], int(hive.disk.at.split("!")[2])

    def shown() -> str:
        certificate = x509.load_pem_x509_certificate(ssl.get_server_certificate(address).encode())
        return f"{certificate.serial_number:x}"

    before = shown()
    assert hive.run("ca", "rotate", hive.ca).code == 0
    folder = hive.issue(f"{HIVE}/role/Disk/d")
    heard(hive.disk, f"{folder} was read again")
    assert before != shown() == hive.serial(folder)
    hive.issue(ANN)
    assert eventually(lambda: hive.at_disk("ann", "cat", "/pub/x"), 0).out == "one\ntwo\n"
    # Half of a new identity is no identity: the one in force stays so.
    key = Path(folder, "key.pem")
    good = key.read_bytes()
    key.write_bytes(Path(hive.folder("ann"), "key.pem").read_bytes())
    assert "it is not the key of cert.pem" in heard(hive.disk, "what was in force stays so")
    assert hive.at_disk("ann", "cat", "/pub/x").code == 0
    key.write_bytes(good)
    heard(hive.disk, f"{folder} was read again")


def test_a_token_from_its_key_to_its_end(hive: Hive) -> None:
    root = hive.root
    key, token, less = (str(root / name) for name in ("mint.key", "token", "less"))
    done = hive.run("ca", "minter", hive.ca, f"{key}.pub", "--allow", "rw /pub/**", "--ttl", "2d")
    assert done.code == 0, done.err
    assert re.search(r"may mint read,write /pub/\*\* until \d{4}-", done.out)
    done = hive.run("token", "mint", "--key", key, "--allow", "read,write /pub/**", "--aud", DISKS,
                    "--to", ANN, "--out", token)  # fmt: skip
    assert done.code == 0, done.err
    assert hive.run("token", "narrow", token, "--allow", "read /pub/x", "--out", less).code == 0
    assert "allow='read /pub/x'" in hive.run("token", "show", less).out
    done = hive.run("token", "verify", less, "--issuer", f"{key}.pub", "--as", f"{HIVE}/role/Disk/d",
                    "--from", ANN, "--path", "/pub/x")  # fmt: skip
    assert "rights=walk,read\n" in done.out
    holder = Path(hive.folder("holder"))
    shutil.copytree(hive.folder("ann"), holder)
    shutil.copy(token, holder / "token")
    # The token alone counts now: ann's own rows would let her write anywhere.
    eventually(lambda: hive.at_disk("holder", "cat", "/pub/x"), 0)
    assert hive.at_disk("holder", "write", "/pub/z", stdin="z").code != 0
    assert hive.at_disk("holder", "write", "/pub/y", stdin="four\n").code == 0
    shutil.copy(less, holder / "token")
    assert hive.at_disk("holder", "cat", "/pub/x").code == 0
    assert hive.at_disk("holder", "write", "/pub/y", stdin="five\n").code == 4
    # A server that it is not for, and a presenter whom it is not for.
    assert hive.at_demo("holder", "ls", "/").code == 4
    thief = Path(hive.folder("bob-thief"))
    shutil.copytree(hive.folder("bob"), thief)
    shutil.copy(token, thief / "token")
    assert hive.at_disk("bob-thief", "cat", "/pub/x").code == 4
    assert " token_holder: " in hive.denials("audit")
    assert " token_audience: " in hive.denials("audit2")
    # Revoking block 0 ends what was narrowed from it too.
    done = hive.run("token", "revoke", token, "--block", "0", "--list", f"{hive.ca}/blocks")
    assert done.code == 0, done.err
    eventually(lambda: hive.at_disk("holder", "cat", "/pub/x"), 4)
    assert " token_revoked" in hive.denials("audit")
    assert hive.at_disk("ann", "cat", "/pub/x").code == 0


def test_a_minter_is_certified_within_bounds_or_refused_with_the_way_out(hive: Hive, run: Command) -> None:
    public = f"{hive.root}/mint.key.pub"
    for words, code, says in (
        ((public,), 2, "what may it mint? Say --allow 'RIGHTS PATTERN'"),
        ((public, "--allow", "reed /**"), 2, "no right 'reed'; the rights are read, write,"),
        ((public, "--allow", "delegate /**"), 2, "no token states delegate"),
        ((public, "--allow", "read /**", "--ttl", "900d"), 9, "lasts until "),
        ((f"{hive.root}/mint.key", "--allow", "read /**"), 9, "give FILE.pub of warren token keygen"),
        ((f"{hive.root}/none", "--allow", "read /**"), 3, "there is no such file; "),
    ):
        done = run("ca", "minter", hive.ca, *words)
        assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done.err
        assert says in done.err
    minters = Path(hive.ca, "minters")
    other = str(hive.root / "other.key")
    assert run("token", "keygen", "--out", other).code == 0
    assert hive.run("ca", "minter", hive.ca, f"{other}.pub", "--allow", "read /**", "--json").code == 0
    assert run("ca", "minter", hive.ca, f"{other}.pub", "--allow", "read /pub/**").code == 0
    assert minters.read_text().count("warren-minter 1") == 2
    good = minters.read_bytes()
    minters.write_bytes(good.replace(b"A", b"B", 1))
    done = run("ca", "minter", hive.ca, f"{other}.pub", "--allow", "read /**")
    assert (done.code, "move it away, and certify its keys again" in done.err) == (9, True)
    minters.write_bytes(good)


def test_a_server_whom_its_authority_refuses_says_so_once(hive: Hive) -> None:
    with serving("demo", *LISTEN, "--id", hive.folder("ann"), "--watch", hive.cap.at,
                 "--allow", "user/* read /**") as served:  # fmt: skip
        assert "403 denied" in heard(served, f"the authority at {hive.cap.at} refuses us: ")
        mine = ("--at", served.at, "--id", hive.folder("ann"), "--expect", "user/*")
        for _ in range(3):  # it tries again meanwhile, several times
            assert hive.run("cat", *mine, "/hello").out == "hello, world\n"
        served.process.terminate()
        assert served.process.stderr is not None
        assert "refuses us" not in served.process.stderr.read()


def test_a_restored_authority_goes_on(hive: Hive) -> None:
    safe, again = str(hive.root / "safe"), str(hive.root / "again")
    passphrase = ("--passphrase", str(hive.root / "passphrase"))
    assert hive.run("ca", "backup", hive.ca, safe, *passphrase).code == 0
    wrong = hive.run("ca", "restore", safe, again, "--passphrase", "-", stdin="another long sentence\n")
    assert wrong.code == 9
    assert hive.run("ca", "restore", safe, again, *passphrase).code == 0
    hive.run("ca", "issue", again, f"{HIVE}/user/cyd", "--out", hive.folder("cyd"))
    assert hive.at_disk("cyd", "cat", "/pub/x").code == 0


def test_after_all_that_the_audit_is_whole_and_no_secret_is_anywhere(hive: Hive) -> None:
    root = hive.root
    public = subprocess.run(["openssl", "pkey", "-in", str(root / "heads.key"), "-pubout"],
                            capture_output=True, check=True)  # fmt: skip
    (root / "heads.pub").write_bytes(public.stdout)
    done = hive.run("audit", "verify", str(root / "audit"), "--heads", str(root / "heads"),
                    "--key", str(root / "heads.pub"))  # fmt: skip
    assert done.code == 0, done.out
    assert hive.run("audit", "verify", str(root / "audit2")).code == 0
    hive.run("ca", "list", hive.ca, "--json")
    for verb in ("show", "revoke"):
        hive.run("token", verb, str(root / "token"), "--json")

    secrets = {PIN, PASSPHRASE}
    files = [*root.rglob("*.key"), *root.rglob("key.pem"), root / "token", root / "less"]
    assert len(files) > 15
    for file in files:
        text = file.read_text()
        if "warren-token-key 1" in text:
            secrets.update(text.partition("warren-token-key 1\n")[2].split())
        else:
            secrets.update(line for line in text.splitlines() if len(line) > 32 and "-----" not in line)
    places = ["\n".join(hive.said)]
    for served in hive.servers:
        places.append("\n".join(served.said))
        places += [Path(f"/proc/{served.process.pid}/{name}").read_text() for name in ("cmdline", "environ")]
    places += [log.read_text() for folder in ("audit", "audit2") for log in (root / folder).glob("*.log")]
    places += [head.read_text() for head in (root / "heads").iterdir()]
    assert any("/ctl#unlock" in place for place in places)
    for secret in secrets:
        assert not [place[:60] for place in places if secret in place]
