"""A machine's own role: what it believes of the manifest it is given, what it serves, and what it is told.

The first process itself is tried in a real machine, in tests/vm/test_role_image.py; here is what needs none.
"""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.boot.images.manifest import Signer
from warren.mount import Files, dial
from warren.roles import init, inside, trials
from warren.roles.asked import OWN, Found, found
from warren.roles.inside import HOST, Inside
from warren.serve.stream import serve_stream
from warren.store.memory import MemoryStore

# Not any key: the cases bear its signatures in their names, which are the same in every process.
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(bytes([1] * 32)))
KEY = SIGNER.raw.hex()
DRONE = "role DroneWorker\ninclude worker.role\nserve ram /sim\nallow queens read,write,create /sim/**\n"


def signed(text: str, role: str = "DroneWorker", signer: Signer = SIGNER) -> str:
    return signer.sign_role(role, text).decode()


def test_no_wish_is_the_images_own_role() -> None:
    what = found(" \n", "", "")
    assert (what.manifest.role, what.verified, what.manifest.restricted) == ("Guest", "package", "")
    assert what.manifest.text == OWN


def test_a_role_that_is_signed_runs() -> None:
    what = found(DRONE, signed(DRONE), KEY)
    assert (what.manifest.role, what.verified, what.manifest.restricted) == ("DroneWorker", "yes", "")
    assert {serve.path for serve in what.manifest.serves} >= {"/sim", "/dev", "/proc"}


@pytest.mark.parametrize(
    ("text", "signature", "key", "why"),
    [
        (DRONE, "", KEY, "DroneWorker.role is not signed"),
        (DRONE, signed(DRONE), "", "given no key"),
        (DRONE, signed(DRONE), KEY[:-2], "given no key"),
        (DRONE, signed(DRONE), "0" * 64, "not what was signed"),
        (DRONE, signed(DRONE, signer=OTHER), KEY, "not what was signed"),
        (DRONE + "strict\n", signed(DRONE), KEY, "not what was signed"),
        (DRONE, signed(DRONE, "SensorRelay"), KEY, "not what was signed"),
        (DRONE.replace("DroneWorker", "SensorRelay"), signed(DRONE), KEY, "SensorRelay.role is not what"),
        (DRONE, "no base64!", KEY, "not what was signed"),
        (DRONE, "AAAA", KEY, "not what was signed"),
        ("nonsense\n", signed("nonsense\n", "Guest"), KEY, "a role has no 'nonsense'"),
        (DRONE + "store sqlite\n", signed(DRONE + "store sqlite\n"), KEY, "leave out store and listen"),
        (DRONE + "listen tls\n", signed(DRONE + "listen tls\n"), KEY, "leave out store and listen"),
        (DRONE + "serve ca /ca\n", signed(DRONE + "serve ca /ca\n"), KEY, "there is no server 'ca'"),
        (DRONE + "serve disk /d dir=/\n", signed(DRONE + "serve disk /d dir=/\n"), KEY, "no server 'disk'"),
    ],
)
def test_a_role_that_does_not_hold_is_restricted_and_says_why(
    text: str, signature: str, key: str, why: str
) -> None:
    what = found(text, signature, key)
    assert what.verified == "no"
    assert why in what.manifest.restricted
    assert not what.manifest.exports_to
    assert {row.who for row in what.manifest.policy.rows} == {("local",)}


@asynccontextmanager
async def served(what: Found, subject: str = HOST) -> AsyncIterator[tuple[Files, Inside]]:
    """A machine's tree, as its host reaches it."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with MemoryStore() as store, trio.open_nursery() as nursery:
        made = Inside("one", what, store, 0.0)
        made.lifecycle.ready()
        nursery.start_soon(serve_stream, made.export, theirs, subject)
        async with dial(ours) as files:
            yield files, made
        nursery.cancel_scope.cancel()


async def refusal(files: Files, path: str, data: bytes | None = None) -> str:
    with pytest.raises(OSError) as caught:
        await (files.read(path) if data is None else files.write(path, data))
    return caught.value.strerror or ""


async def test_the_host_is_a_queen_for_the_role() -> None:
    async with served(found("", "", "")) as (files, _):
        assert b"role=Guest" in await files.read("/role/status")
        assert b"verified=package" in await files.read("/role/status")
        assert b"serve.ram" in await files.read("/dev/caps")
        await files.write("/scratch/one", b"1", create=True)
        assert await files.read("/scratch/one") == b"1"
        assert b"uid=" in await files.read("/proc/boot")


async def kept_out(what: Found, subject: str) -> None:
    became = ""
    try:
        async with served(what, subject):
            became = "let in"
    except* PermissionError:
        became += "kept out"
    assert became == "kept out"


@pytest.mark.parametrize("subject", ["spiffe://other/role/QueenPrimary/host", "any", "local "])
async def test_nobody_else_is(subject: str) -> None:
    await kept_out(found("", "", ""), subject)


async def test_what_a_machine_cannot_do_says_what_to_do_instead() -> None:
    async with served(found("", "", "")) as (files, _):
        assert "writes `again`" in await refusal(files, "/role/ctl", b"reload\n")
    text = DRONE + "allow queens read /mesh/**\nallow queens write,create /srv/**\n"
    async with served(found(text, signed(text), KEY)) as (files, _):
        assert "$queen is the host here" in await refusal(files, "/mesh/x")
        async with await files.create("/srv/mine") as post:
            with pytest.raises(OSError, match="nothing can be posted here"):
                await post.pwrite(b"unix!/tmp/x\n", 0)


async def test_a_restricted_role_is_for_its_own_machine() -> None:
    what = found(DRONE, "", KEY)
    async with served(what, "local") as (files, made):
        assert b"not signed" in await files.read("/role/status")
        assert made.lifecycle.state == "DEGRADED"
        assert made.boot()["exports"] == "no"
    await kept_out(what, HOST)


@pytest.fixture
def hive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a host would serve, as plain files: ctl is all records at once, boot a pipe with every report."""
    monkeypatch.setattr(inside, "HIVE", str(tmp_path))
    monkeypatch.setattr(trials, "HIVE", str(tmp_path))
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/boot")
    (tmp_path / "job").write_bytes(b"what to do\n")
    (tmp_path / "mail").touch()
    return tmp_path


async def told(hive: Path, ctl: str) -> tuple[int, list[str]]:
    """How a worker ends that reads CTL, and every line that it reported."""
    (hive / "ctl").write_text(ctl)
    reports = os.open(hive / "proc/boot", os.O_RDWR | os.O_NONBLOCK)
    try:
        async with MemoryStore() as store:
            code = await Inside("one", found("", "", ""), store, 0.0).run(-1)
        return code, os.read(reports, 1 << 16).decode().splitlines()
    finally:
        os.close(reports)


@pytest.mark.parametrize(
    ("ctl", "code", "said"),
    [
        ("exit 3\n", 3, ["state=ended", "code=3"]),
        ("stop\n", 0, ["state=ended", "code=0"]),
        ("again\nexit 3\n", init.AGAIN, ["state=again"]),
        ("", 0, []),
        ("say hello there\n", 0, ["said=hello there"]),
        ("test read /job\nstop\n", 0, ["read.text=what to do\\x0a", "state=ended", "code=0"]),
        ("test write /mail 'from inside'\n", 0, ["write.bytes=11"]),
        ("exit 256\n", 0, ["error=exit 256: no verb is exit; there are say, test, again, exit N and stop"]),
        (f"exit {init.AGAIN}\n", 0, [f"error=exit {init.AGAIN}: no verb is exit; there are"]),
        ("fly\n", 0, ["error=fly: no verb is fly"]),
        ("say 'open\n", 0, ["error=say 'open: "]),
        ("test gold\n", 0, ["error=test gold: there are the tests"]),
    ],
)
async def test_it_does_what_the_host_wants(hive: Path, ctl: str, code: int, said: list[str]) -> None:
    ended, lines = await told(hive, ctl)
    assert ended == code
    assert lines[:4] == ["state=ready", "role=Guest", "name=one", "verified=package"]
    for wanted in said:
        assert any(line.startswith(wanted) for line in lines), (wanted, lines)
    if ctl.startswith("test write"):
        assert (hive / "mail").read_bytes() == b"from inside"


def test_a_worker_that_cannot_go_on_says_why(hive: Path) -> None:
    (hive / "role").write_bytes(b"\xff")
    (hive / "role.sig").touch()
    reports = os.open(hive / "proc/boot", os.O_RDWR | os.O_NONBLOCK)
    with pytest.raises(UnicodeDecodeError):
        inside.work({}, -1)
    said = os.read(reports, 4096).decode().splitlines()
    os.close(reports)
    assert said[0] == "state=failed"
    assert said[1].startswith("error=UnicodeDecodeError: ")


async def test_a_host_that_is_gone_ends_it(hive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hive / "ctl").mkdir()  # which can be opened and not be read
    reports = os.open(hive / "proc/boot", os.O_RDWR | os.O_NONBLOCK)
    async with MemoryStore() as store:
        assert await Inside("one", found("", "", ""), store, 0.0).run(-1) == 0
    os.close(reports)
    assert "the host is gone" in capsys.readouterr().out


async def test_a_host_that_gives_an_endless_role_is_refused(hive: Path) -> None:
    (hive / "role").write_bytes(b"#" * (inside.MOST + 1))
    with pytest.raises(OSError, match="a role is shorter") as caught:
        inside.read("role")
    assert caught.value.errno == errno.EFBIG


def test_the_last_word_of_a_command_line_counts() -> None:
    words = init.cmdline("console=ttyS0 quiet warren.key=aa virtio-mmio.device=1 warren.key=bb\n")
    assert words == {"console": "ttyS0", "quiet": "", "warren.key": "bb", "virtio_mmio.device": "1"}


def test_rights_are_what_the_kernel_says() -> None:
    held = init.rights()
    assert held["uid"] == os.getuid()
    assert held["permitted"] | held["bounding"] == held["bounding"] or os.getuid() == 0
    assert init.rights().keys() >= {"effective", "ambient", "inheritable", "no_new_privs", "groups"}


def test_only_a_first_process_mounts_and_ends_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried without the system calls: a guard that failed would do it to this machine."""
    monkeypatch.setattr(init, "libc", None)
    for act in (init.main, init.run, init.first):
        with pytest.raises(SystemExit, match="first process of a machine"):
            act()
