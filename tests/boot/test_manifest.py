"""Manifests: one text for one image, and a signature over every byte of it."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.boot.images.manifest import DOMAIN, KEY, Input, Manifest, Output, Signer, sum_of
from warren.tree import Refused

A, B, C = (letter * 64 for letter in "abc")
MADE = Manifest(
    "linux", "linux",
    (Input(B, "deb", "libc6=2.36-9"), Input(A, "recipe", "linux.toml"), Input(C, "tool", "zstd 1.5 (of it)")),
    (Output(C, 7, "kernel", "vmlinux"), Output(A, 0, "cmdline", "cmdline")),
)  # fmt: skip
TEXT = MADE.text


def test_the_text_says_it_all_and_reads_back() -> None:
    assert TEXT.splitlines()[:3] == ["warren image 1", "name=linux", "kind=linux"]
    assert f"inputs={MADE.input_hash}" in TEXT
    assert f"output {C} 7 kernel vmlinux" in TEXT
    assert Manifest.parse(TEXT).text == TEXT
    assert Manifest.parse(TEXT).input_hash == MADE.input_hash


def test_the_sum_of_the_inputs_is_of_all_of_them_in_any_order() -> None:
    assert sum_of(MADE.inputs) == sum_of(reversed(MADE.inputs))
    assert sum_of(MADE.inputs) != sum_of(MADE.inputs[1:])
    assert sum_of([Input(A, "deb", "x")]) != sum_of([Input(A, "wheel", "x")])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("warren image 1", "warren image 2"),
        ("name=linux", "name=../linux"),
        (f"inputs={MADE.input_hash}", f"inputs={A}"),
        (f"input {A}", f"input {A[:-1]}"),
        ("recipe linux.toml", "spell linux.toml"),
        ("kernel vmlinux", "kernel ../../etc/passwd"),
        ("kernel vmlinux", "kernel cmdline"),
        ("kernel vmlinux", "cmdline vmlinux"),
        (" 7 kernel", " 07 kernel"),
        (" 7 kernel", " -7 kernel"),
        ("kernel vmlinux\n", "kernel vmlinux\n\n"),
        ("kernel vmlinux\n", "kernel vmlinux"),
        ("kernel vmlinux\n", "kernel vmlinux\nmore\n"),
        ("\ninput", "\nhello=1\ninput"),
    ],
)
def test_a_text_that_is_not_written_as_one_is_refused(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(Refused):
        Manifest.parse(TEXT.replace(old, new, 1))


def test_rows_in_another_order_are_another_text_and_refused() -> None:
    lines = TEXT.splitlines(keepends=True)
    with pytest.raises(Refused, match="not written as one"):
        Manifest.parse("".join([*lines[:4], *reversed(lines[4:7]), *lines[7:]]))


def test_a_signature_is_over_every_byte(tmp_path: Path) -> None:
    signer = Signer.at(tmp_path)
    signature = signer.sign(MADE)
    assert signer.fault(TEXT, signature) == ""
    assert "not what was signed" in signer.fault(TEXT.replace("libc6", "libc7"), signature)
    assert "not what was signed" in signer.fault(TEXT, base64.b64encode(bytes(64)))
    assert "not what was signed" in signer.fault(TEXT, b"no base64!")
    assert "not what was signed" in Signer(Ed25519PrivateKey.generate()).fault(TEXT, signature)
    bare = base64.b64encode(signer.key.sign(TEXT.encode()))
    assert "not what was signed" in signer.fault(TEXT, bare), f"{DOMAIN!r} keeps other signatures out"


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    place = tmp_path / "images"
    first, again = Signer.at(place), Signer.at(place)
    assert first.raw == again.raw
    assert len(first.raw) == 32
    assert (place / KEY).stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "image.pub").read_bytes() == first.public_pem
    assert sorted(path.name for path in place.iterdir()) == ["image.key", "image.pub"]
    (place / KEY).chmod(0o644)
    with pytest.raises(Refused, match="can be read by others"):
        Signer.at(place)


PEM = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("held", [b"", b"hello", PEM])
def test_what_is_no_key_is_refused(tmp_path: Path, held: bytes) -> None:
    (tmp_path / KEY).touch(0o600)
    (tmp_path / KEY).write_bytes(held)
    with pytest.raises(Refused, match="holds no Ed25519 key"):
        Signer.at(tmp_path)
