"""Signed role files: what holds runs, and what does not hold runs restricted."""

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth.refusal import Refusal
from warren.roles.library import Shelf
from warren.roles.manifest import load_role, parse_role, uses_secure9p
from warren.roles.restricted import restricted
from warren.roles.signature import proved, sign, verify

from tests.roles.place import Place, attempt
from tests.wire import RefusedBy, served

OURS = "role DroneWorker\ninclude worker.role\nallow user/mallory read,ctl /**\n"


class Boot:
    """A state directory whose role files are to be signed."""

    def __init__(self, directory: Path) -> None:
        self.pki, self.roles = directory / "pki", directory / "roles"
        self.pki.mkdir()
        self.roles.mkdir()
        self.key = Ed25519PrivateKey.generate()
        self.pem = self.key.private_bytes(
            ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()
        )
        self.public = self.pki / "boot.pub"

    def ask(self) -> None:
        self.public.write_bytes(
            self.key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
        )

    def write(self, name: str, text: str) -> Path:
        (self.roles / name).write_text(text)
        return self.roles / name

    def says(self) -> tuple[str, str]:
        """What the word is of the drone's files, and why it is restricted."""
        made, word = proved(load_role("DroneWorker", [self.roles]), self.pki)
        return word, made.restricted


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    return Boot(tmp_path)


def test_what_came_with_the_program_needs_no_signature(boot: Boot) -> None:
    assert boot.says() == ("package", "")
    boot.ask()
    assert boot.says() == ("package", "")


def test_without_a_key_nothing_is_asked_and_nothing_is_proved(boot: Boot) -> None:
    boot.write("DroneWorker.role", OURS)
    assert boot.says() == ("unsigned", "")


def test_a_signed_file_holds(boot: Boot) -> None:
    boot.ask()
    path = boot.write("DroneWorker.role", OURS)
    assert sign(path, boot.pem) == boot.roles / "DroneWorker.role.sig"
    assert boot.says() == ("yes", "")
    assert verify(path, OURS, boot.pki) == "yes"


def test_an_unsigned_file_is_restricted_where_a_key_asks(boot: Boot) -> None:
    boot.ask()
    path = boot.write("DroneWorker.role", OURS)
    why = f"{path} is not signed, and {boot.public} asks for it; sign it, or take it away"
    assert boot.says() == ("no", why)


@pytest.mark.parametrize("change", ["text", "signature", "key", "name", "garbage", "short", "empty"])
def test_a_signature_that_does_not_hold_restricts(boot: Boot, change: str) -> None:
    boot.ask()
    path = boot.write("DroneWorker.role", OURS)
    beside = sign(path, boot.pem)
    if change == "text":
        path.write_text(OURS.replace("mallory", "Mallory"))
    elif change == "signature":
        data = bytearray(base64.b64decode(beside.read_bytes()))
        data[0] ^= 1
        beside.write_bytes(base64.b64encode(data))
    elif change == "key":
        boot.key = Ed25519PrivateKey.generate()
        boot.ask()
    elif change == "name":
        other = boot.write("Other.role", OURS)
        beside.write_bytes(sign(other, boot.pem).read_bytes())
    else:
        beside.write_bytes({"garbage": b"\xff" * 88, "short": b"AAAA", "empty": b""}[change])
    word, why = boot.says()
    assert word == "no"
    assert why.startswith(f"{path} is not what was signed; ")


@pytest.mark.parametrize("name", ["worker.role", "overseen.role", "base.role", "worker.ns", "base.ns"])
def test_every_file_that_a_role_is_read_from_must_hold(boot: Boot, name: str) -> None:
    boot.ask()
    sign(boot.write("DroneWorker.role", OURS), boot.pem)
    path = boot.write(name, Shelf().read(name) + "# ours\n")
    word, why = boot.says()
    assert (word, why.split(" is ")[0]) == ("no", str(path))
    sign(path, boot.pem)
    assert boot.says() == ("yes", "")


def test_a_key_that_is_none_restricts_what_it_should_prove(boot: Boot) -> None:
    path = boot.write("DroneWorker.role", OURS)
    sign(path, boot.pem)
    wrong = ec.generate_private_key(ec.SECP256R1()).public_key()
    for data in (b"", b"no key", wrong.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)):
        boot.public.write_bytes(data)
        word, why = boot.says()
        assert (word, why.startswith(f"{boot.public}: it holds no Ed25519 public key")) == ("no", True)
    boot.public.unlink()
    boot.public.mkdir()
    assert boot.says()[0] == "no"


def test_only_an_ed25519_key_signs(boot: Boot) -> None:
    path = boot.write("DroneWorker.role", OURS)
    p256 = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()
    )
    for data in (p256, b"no key"):
        with pytest.raises(Refusal):
            sign(path, data)
    assert not (boot.roles / "DroneWorker.role.sig").exists()


def test_a_text_that_came_from_no_file_proves_nothing(boot: Boot) -> None:
    read = Shelf().read
    made = parse_role(OURS, "DroneWorker.role", include=read, include_roles=read)
    assert proved(made, boot.pki)[1] == "no"


def test_openssl_can_sign_what_we_verify(boot: Boot, tmp_path: Path) -> None:
    boot.ask()
    boot.write("DroneWorker.role", OURS)
    (tmp_path / "key").write_bytes(boot.pem)
    (tmp_path / "message").write_bytes(b"warren role 1\0DroneWorker.role\0" + OURS.encode())
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", "key", "-in", "message"]
    signature = subprocess.check_output(command, cwd=tmp_path)
    (boot.roles / "DroneWorker.role.sig").write_bytes(base64.b64encode(signature))
    assert boot.says() == ("yes", "")


# What is left then


def test_a_restricted_role_has_no_federation_and_only_its_own_trees() -> None:
    for role in ("QueenPrimary", "DroneWorker"):
        made = restricted(role, "it was tampered with")
        assert (made.role, made.restricted) == (role, "it was tampered with")
        assert (made.listens, made.exports_to, uses_secure9p(made)) == (False, (), False)
        assert [s.path for s in made.serves] == ["/dev", "/proc", "/role", "/log"]
        assert made.space.lines() == "mount $self /\n"
        assert made.store == "memory"


def test_nothing_of_a_restricted_role_is_taken_from_files_that_do_not_hold(boot: Boot) -> None:
    boot.ask()
    boot.write("restricted.role", "namespace base.ns\nlisten tls\nserve dev /dev\nallow any read,ctl /**\n")
    boot.write("base.ns", "mount $self /\nmount $queen /other\n")
    boot.write("DroneWorker.role", OURS)
    made, word = proved(load_role("DroneWorker", [boot.roles]), boot.pki)
    assert word == "no"
    assert made.policy.rows == restricted("DroneWorker", "").policy.rows
    assert made.space.lines() == "mount $self /\n"
    assert "mallory" not in made.text


async def test_a_restricted_role_is_read_by_its_own_machine_and_by_nobody_else(tmp_path: Path) -> None:
    made = restricted("QueenPrimary", "it was tampered with")
    place = Place(tmp_path)
    async with served(place.root, [str(row) for row in made.policy.in_hive("hive.test").rows]) as service:
        for op, path in (("read", "/proc/ns"), ("read", "/log/events.log"), ("ctl", "/role/ctl"),
                         ("ctl", "/proc/lifecycle/ctl")):  # fmt: skip
            await attempt(await service.dial(subject="local"), op, path)
        before = place.state()
        for op, path in (("create", "/srv/there"), ("write", "/srv/there"), ("remove", "/srv/there"),
                         ("ctl", "/log/ctl"), ("ctl", "/mesh/ca/ctl")):  # fmt: skip
            with pytest.raises(RefusedBy):
                await attempt(await service.dial(subject="local"), op, path)
        for subject in ("any", "spiffe://hive.test/user/guest", "spiffe://hive.test/role/QueenPrimary/queen"):
            with pytest.raises(RefusedBy):
                await service.dial(subject=subject)
        assert place.state() == before
