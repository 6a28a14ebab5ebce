"""FAT volumes, judged by the programs that others use: fsck.fat and mtools."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warren.boot.formats import esp
from warren.tree import Refused

FILES = {
    esp.BOOT: b"program" * 5000,
    "/EFI/BOOT/EMPTY": b"",
    "/EFI/LINUX/A-B_1.EFI": b"x" * 513,
    "/LOADER.CNF": b"timeout 0\n",
}


def fsck(volume: Path) -> str:
    """What fsck finds; it fails the test where it would repair something."""
    done = subprocess.run(["fsck.fat", "-nv", volume], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def taken(volume: Path, path: str) -> bytes:
    return subprocess.run(
        ["mcopy", "-n", "-i", volume, f"::{path}", "-"], check=True, capture_output=True, timeout=20
    ).stdout


@pytest.mark.parametrize(
    "files",
    [FILES, {}, {f"/D/F{n}": bytes([n % 251]) * n for n in range(600)}, {esp.BOOT: bytes(40 << 20)}],
    ids=["few", "none", "many", "large"],
)
def test_others_find_every_file(files: dict[str, bytes], tmp_path: Path) -> None:
    volume = tmp_path / "esp"
    volume.write_bytes(esp.build(files))
    said = fsck(volume)
    assert "FATs, 16 bit entries" in said
    folders = {path.rsplit("/", n)[0] for path in files for n in range(1, path.count("/"))}
    assert f"{len(files) + len(folders)} files" in said
    for path in sorted(files)[:20]:
        assert taken(volume, path) == files[path]


def test_the_same_files_in_any_order_give_the_same_bytes() -> None:
    again = esp.build(dict(reversed(FILES.items())))
    assert hashlib.sha256(esp.build(FILES)).digest() == hashlib.sha256(again).digest()


def test_it_is_as_large_as_its_files_need() -> None:
    body = bytes(40 << 20)
    assert len(body) < len(esp.build({esp.BOOT: body})) < len(body) * 1.01 + (1 << 20)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/efi/BOOT/X", "8.3"),
        ("/TOOLONGNAME", "8.3"),
        ("/X.LONG", "8.3"),
        ("/../X", "8.3"),
        ("//X", "8.3"),
        ("/", "8.3"),
        ("/A/B/C/D/E/F/G/H/I/J", "folders deep"),
        ("/LOADER.CNF/X", "a file and a folder"),
        ("/EFI", "a file and a folder"),
    ],
)
def test_names_that_firmware_would_not_find_are_refused(path: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        esp.build({**FILES, path: b"x"})


def test_too_many_names_are_refused() -> None:
    with pytest.raises(Refused, match="room for 512"):
        esp.build({f"/F{n}": b"" for n in range(513)})


paths = st.from_regex(r"/([A-D]/){0,2}[E-Z]{1,8}", fullmatch=True)


@settings(max_examples=20)
@given(st.dictionaries(paths, st.binary(max_size=3000), max_size=9))
def test_any_files_make_a_sound_volume(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    volume = tmp_path_factory.mktemp("esp") / "esp"
    volume.write_bytes(esp.build(files))
    fsck(volume)
    for path, body in files.items():
        assert taken(volume, path) == body
    volume.unlink()
