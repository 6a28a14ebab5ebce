"""Signatures of images, beside sbverify, which shares nothing with what writes them."""

import struct
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from warren.boot.formats import authenticode, pe
from warren.boot.secure.firmware import Pair, made
from warren.tree import Refused

from .pes import plain_sum, small_pe

IMAGE = small_pe((".text", b"\x90" * 700), (".data", b"data" * 99))


@pytest.fixture(scope="module")
def ours() -> Pair:
    return made("db")


@pytest.fixture(scope="module")
def theirs() -> Pair:
    return made("db")


def sign(pair: Pair, image: bytes = IMAGE) -> bytes:
    return authenticode.sign(image, pair.key, pair.certificate)


def sbverify(image: bytes, pair: Pair, folder: Path) -> bool:
    (folder / "image").write_bytes(image)
    (folder / "cert").write_bytes(pair.certificate.public_bytes(Encoding.PEM))
    done = subprocess.run(
        ["sbverify", "--cert", folder / "cert", folder / "image"], capture_output=True, timeout=20
    )
    return done.returncode == 0


@pytest.mark.parametrize("more", [b"", b"x", b"12345678"], ids=["whole", "odd", "more"])
def test_another_program_believes_it(ours: Pair, theirs: Pair, more: bytes, tmp_path: Path) -> None:
    """With something behind the sections as well, which is signed with the rest."""
    signed = sign(ours, IMAGE + more)
    assert sbverify(signed, ours, tmp_path)
    assert not sbverify(signed, theirs, tmp_path)
    assert not sbverify(signed[:0x500] + b"X" + signed[0x501:], ours, tmp_path)


def test_what_is_signed_is_sound_and_for_one_key(ours: Pair, theirs: Pair) -> None:
    signed = sign(ours)
    assert authenticode.unsound(signed, ours.certificate) == ""
    assert "another key signed it" in authenticode.unsound(signed, theirs.certificate)
    assert authenticode.unsound(IMAGE, ours.certificate) == "it is not signed"
    assert "does not begin" in authenticode.unsound(b"", ours.certificate)


def test_the_same_is_signed_the_same(ours: Pair, theirs: Pair) -> None:
    assert sign(ours) == sign(ours)
    assert sign(ours) != sign(theirs)


def test_signing_changes_nothing_that_is_signed(ours: Pair) -> None:
    signed = sign(ours)
    assert authenticode.digest(signed) == authenticode.digest(IMAGE)
    at = pe.read(signed).checksum_at
    assert struct.unpack_from("<I", signed, at) == (plain_sum(signed, at),)


def test_every_byte_counts(ours: Pair) -> None:
    """Whatever byte is changed, it is no more sound; but the checksum, which nobody signs."""
    signed = sign(ours)
    free = range(pe.read(signed).checksum_at, pe.read(signed).checksum_at + 4)
    for at in range(len(signed)):
        altered = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
        assert bool(authenticode.unsound(altered, ours.certificate)) == (at not in free), at


def test_another_keys_number_does_not_do(ours: Pair, theirs: Pair, tmp_path: Path) -> None:
    """Ours in every byte, but the number that only our key can make."""

    def number(signed: bytes) -> bytes:
        at, _ = pe.read(signed).certificates
        end = at + int.from_bytes(signed[at : at + 4], "little")
        return signed[end - 256 : end]

    posed = sign(ours).replace(number(sign(ours)), number(sign(theirs)))
    assert authenticode.unsound(posed, ours.certificate) == "its signature is not the key's"
    assert not sbverify(posed, ours, tmp_path)


def test_what_is_signed_is_not_signed_again(ours: Pair, theirs: Pair) -> None:
    with pytest.raises(Refused, match="signed already"):
        sign(theirs, sign(ours))


def test_a_key_signs_with_its_own_certificate(ours: Pair, theirs: Pair) -> None:
    with pytest.raises(Refused, match="not the certificate's"):
        authenticode.sign(IMAGE, ours.key, theirs.certificate)
