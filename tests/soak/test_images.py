"""The same inputs give the same images, to the byte: built twice, as differently as it can be done here.

The second build has another store, directory, umask, time zone and language, fetches everything again, and
runs in a Python whose sets are ordered otherwise. What both have in common are the keys, which are inputs.

The archives of this machine are asked here as well, for one small package and for one that is gone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warren.boot.images.build import SECURE_BOOT
from warren.boot.images.image import Image, Images, recipes_folder
from warren.boot.images.inputs import Gone, Lock, Pin, fetched, resolved
from warren.boot.images.manifest import KEY, Signer

BUILD = """
import sys, trio
from pathlib import Path
from warren.boot.images.image import Images, recipes_folder
from warren.boot.images.manifest import Signer
store = Path(sys.argv[1])
trio.run(Images(store, recipes_folder(), Signer.at(store)).build, sys.argv[2], print)
"""
OTHERWISE = {"TZ": "Pacific/Kiritimati", "LANG": "C", "LC_ALL": "C", "PYTHONHASHSEED": "7", "HOME": "/"}


def images(store: Path) -> Images:
    return Images(store, recipes_folder(), Signer.at(store))


def build(store: Path, name: str, cwd: Path, umask: int, **environment: str) -> Image:
    cwd.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(store), name], cwd=cwd, umask=umask, text=True,
        env={**os.environ, **environment}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = images(store).latest(name)
    assert made is not None
    return made


@pytest.mark.parametrize("name", ["standin", "v9fs", "linux"])
def test_built_twice_it_is_the_same(tmp_path: Path, name: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = build(one, name, tmp_path / "here", 0o022)
    Signer.at(two)
    shutil.copy(one / KEY, two / KEY)
    if (one / SECURE_BOOT).exists():
        shutil.copytree(one / SECURE_BOOT, two / SECURE_BOOT)
    second = build(two, name, tmp_path / "there", 0o077, **OTHERWISE)
    assert second.manifest.text == first.manifest.text
    for word, path in first.files.items():
        assert path.read_bytes() == second.files[word].read_bytes(), word
    assert (first.folder / "manifest.sig").read_bytes() == (second.folder / "manifest.sig").read_bytes()
    for made, place in ((first, images(one)), (second, images(two))):
        assert place.verify(made).ok
    print(f"{name}: {first.input_hash} in {first.seconds} s and {second.seconds} s, {first.size} bytes")


def test_another_key_is_another_image_with_the_same_system_in_it(tmp_path: Path) -> None:
    """What a key decides is what it signs and what names it: not one byte of what runs."""
    one, two = (build(tmp_path / name, "linux", tmp_path / "here", 0o022) for name in ("one", "two"))
    assert one.input_hash != two.input_hash
    same = {word for word, path in one.files.items() if path.read_bytes() == two.files[word].read_bytes()}
    assert same >= {"kernel", "vmlinuz", "initrd"}
    assert not same & {"cmdline", "uki", "esp"}


async def test_packages_come_by_this_machines_own_archives(tmp_path: Path) -> None:
    found = await resolved("bookworm", ["libffi8"], "", ["sniffio"], tmp_path)
    assert [(pin.kind, pin.name) for pin in found.pins] == [("deb", "libffi8"), ("wheel", "sniffio")]
    said: list[str] = []
    folder = await fetched(found, tmp_path, said.append)
    assert sorted(os.listdir(folder)) == sorted(pin.sha256 for pin in found.pins)
    assert [line.split(",")[0] for line in said] == ["fetching 1 Debian packages", "fetching 1 wheels"]
    assert os.listdir(tmp_path) == ["inputs"]


@pytest.mark.parametrize("kind", ["deb", "wheel"])
async def test_a_version_that_is_gone_says_how_to_go_on(tmp_path: Path, kind: str) -> None:
    name = {"deb": "libffi8", "wheel": "sniffio"}[kind]
    lock = Lock("bookworm", (Pin(kind, name, "0.0.7", "a" * 64, 5),))
    with pytest.raises(Gone, match=rf"{name}.*0\.0\.7.*not to be had any more; .*warren image lock"):
        await fetched(lock, tmp_path)
