"""The store of images: built once for the same inputs, whole or not at all, and every change to it is seen.

Most of it is shown with a kind of image that takes no time: its one input is a file, and its outputs are that
file's bytes. It passes through the same store as the real ones; the stand-in is built for real.
"""

import os
from pathlib import Path
from typing import cast

import pytest
import trio
from warren.boot.images import build
from warren.boot.images.image import KEPT, LATEST, STORE, Images, recipes_folder
from warren.boot.images.inputs import Lock
from warren.boot.images.manifest import Input, Signer
from warren.boot.images.plan import Outputs, Plan, Progress, Recipe, digest
from warren.boot.sel4 import abi
from warren.tree import Refused


class PlainPlan:
    """An image of one file's bytes."""

    def __init__(self, recipe: Recipe, folder: Path, store: Path, signer: Signer) -> None:
        self.source, self.store = Path(recipe.said["source"]), store

    @property
    def inputs(self) -> list[Input]:
        return [Input(digest(self.source.read_bytes()), "source", "source")]

    async def make(self, progress: Progress) -> Outputs:
        progress("copying")
        await trio.lowlevel.checkpoint()
        body = self.source.read_bytes()
        if body == b"wait":
            await trio.sleep_forever()
        return {"kernel": ("kernel.elf", body), "sbom": ("sbom.json", b"{}")}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    monkeypatch.setitem(cast("dict[str, object]", build.PLANS), "plain", PlainPlan)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (tmp_path / "source").write_text("one")
    (recipes / "plain.toml").write_text(f'kind = "plain"\nabout = "a test"\nsource = "{tmp_path}/source"\n')
    return Images(tmp_path / "store", recipes, Signer.at(tmp_path / "store"))


async def test_the_same_inputs_are_built_once(images: Images, tmp_path: Path) -> None:
    said: list[str] = []
    assert images.find("plain") is None
    first = await images.build("plain", said.append)
    assert first.files["kernel"].read_bytes() == b"one"
    assert (await images.build("plain", said.append)).folder == first.folder
    assert said == ["copying", f"built plain {first.input_hash[:16]} in 0.0 s, 0 MiB"]
    found = images.find("plain")
    assert found is not None
    assert (found.input_hash, found.kind, found.size, found.seconds) == (first.input_hash, "plain", 5, 0.0)


async def test_another_input_is_another_image_and_the_last_one_is_remembered(
    images: Images, tmp_path: Path
) -> None:
    first = await images.build("plain")
    (tmp_path / "source").write_text("two")
    assert images.find("plain") is None
    assert images.latest("plain") == first
    second = await images.build("plain")
    assert second.input_hash != first.input_hash
    assert images.latest("plain") == second
    assert first.files["kernel"].read_bytes() == b"one"
    (tmp_path / "source").write_text("one")
    assert images.find("plain") == first


async def test_only_the_last_ones_stay(images: Images, tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        (tmp_path / "source").write_text(str(number))
        made = await images.build("plain")
        os.utime(made.folder, (number, number))
    there = [path.name for path in (tmp_path / "store/plain").iterdir() if path.is_dir()]
    assert len(there) == KEPT
    assert made.input_hash in there


async def test_the_recipe_is_an_input_too(images: Images, tmp_path: Path) -> None:
    before = images.input_hash("plain")
    path = tmp_path / "recipes/plain.toml"
    path.write_text(path.read_text().replace("a test", "another"))
    assert images.input_hash("plain") != before


async def test_an_image_that_is_as_it_was_made_is_verified(images: Images) -> None:
    made = await images.build("plain")
    assert images.verify(made) == (True, ())


@pytest.mark.parametrize(
    ("file", "data", "fault"),
    [
        ("kernel.elf", b"onf", "kernel.elf: it is not what was signed"),
        ("kernel.elf", b"one more", "kernel.elf: 8 bytes, and 3 were signed"),
        ("sbom.json", None, "sbom.json: no such file or directory"),
        ("manifest.sig", b"AAAA\n", "the manifest is not what was signed here"),
        ("manifest", b"warren image 1\n", "manifest: the manifest does not say whose it is"),
        ("manifest", b"\xff", "manifest: "),
        ("manifest", None, "manifest: "),
        ("extra", b"x", "extra: no part of the image"),
    ],
)
async def test_whatever_is_changed_is_named(
    images: Images, file: str, data: bytes | None, fault: str
) -> None:
    made = await images.build("plain")
    if data is None:
        (made.folder / file).unlink()
    else:
        (made.folder / file).write_bytes(data)
    verdict = images.verify(made)
    assert not verdict.ok
    assert any(one.startswith(fault) for one in verdict.faults), verdict.faults


async def test_a_manifest_of_somebody_else_is_no_manifest_here(images: Images, tmp_path: Path) -> None:
    made = await images.build("plain")
    other = Images(images.store, images.recipes, Signer.at(tmp_path / "other"))
    assert "the manifest is not what was signed here" in other.verify(made).faults[0]


async def test_an_old_image_with_its_own_signature_is_no_other_image(images: Images, tmp_path: Path) -> None:
    """A good manifest, but of what was built before."""
    old = await images.build("plain")
    (tmp_path / "source").write_text("two")
    new = await images.build("plain")
    for path in old.folder.iterdir():
        (new.folder / path.name).write_bytes(path.read_bytes())
    assert images.find("plain") is None
    assert "it is of another image" in images.verify(new).faults[0]


async def test_what_is_half_there_is_not_there_and_is_built_again(images: Images) -> None:
    made = await images.build("plain")
    made.files["kernel"].unlink()
    assert images.find("plain") is None
    again = await images.build("plain")
    assert images.verify(again).ok
    assert again.folder == made.folder


async def test_two_builders_do_not_meet(images: Images) -> None:
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(images.build, "plain", said.append)
        nursery.start_soon(images.build, "plain", said.append)
    assert said.count("copying") == 1


async def test_cancelled_it_leaves_no_image(images: Images, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("wait")
    async with trio.open_nursery() as nursery:

        def stop(line: str) -> None:
            nursery.cancel_scope.cancel()

        nursery.start_soon(images.build, "plain", stop)
    assert images.find("plain") is None
    left = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert left == ["image.key", "image.pub", "plain.lock"]
    (tmp_path / "source").write_text("one")
    assert images.verify(await images.build("plain")).ok


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind = 'cake'\nabout = 'x'\n", "there is no kind 'cake'"),
        ("about = 'x'\n", "kind"),
        ("kind = [", "a recipe is TOML"),
        ("kind = 'linux'\nabout = 'x'\nsuite = 'bookworm'\n", "a linux recipe has"),
        ("kind = 'standin'\nabout = 'x'\nabi = 1\n", "a standin recipe says nothing"),
    ],
)
async def test_a_recipe_that_is_none_is_refused(images: Images, text: str, why: str) -> None:
    (images.recipes / "odd.toml").write_text(text)
    with pytest.raises(Refused, match=why):
        await images.build("odd")


@pytest.mark.parametrize("name", ["none", "../plain", "Plain", "plain.toml", ""])
def test_a_name_that_no_recipe_has_is_refused(images: Images, name: str) -> None:
    with pytest.raises(Refused, match=r"there is no image .*; there are plain"):
        images.find(name)


def test_images_lie_in_the_state_or_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STORE, raising=False)
    assert Images.at(tmp_path).store == tmp_path / "images"
    monkeypatch.setenv(STORE, str(tmp_path / "elsewhere"))
    made = Images.at(tmp_path)
    assert made.store == tmp_path / "elsewhere"
    assert {"linux", "standin"} <= set(made.names())
    assert made.recipes == recipes_folder()
    assert made.latest("linux") is None
    assert LATEST not in os.listdir(tmp_path / "elsewhere")


def test_a_lock_of_this_place_counts_before_the_one_of_the_recipe(tmp_path: Path) -> None:
    images = Images(tmp_path, recipes_folder(), Signer.at(tmp_path))
    shipped = images.pinned("linux")
    assert shipped is not None
    own = Lock("bookworm", shipped.pins[1:])
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/linux.lock").write_text(own.text)
    assert images.pinned("linux") == own
    assert images.pinned("standin") is None


async def test_the_stand_in_is_built_from_its_sources(tmp_path: Path) -> None:
    images = Images(tmp_path, recipes_folder(), Signer.at(tmp_path))
    made = await images.build("standin")
    assert images.verify(made).ok
    assert made.files["kernel"].read_bytes()[:5] == b"\x7fELF\x01", "QEMU's loader takes 32 bits"
    root = made.files["root"].read_bytes()
    assert root[:5] == b"\x7fELF\x02"
    assert abi.read(root) == abi.Abi.standin(abi.load_toml())
    named = {one.name for one in made.manifest.inputs}
    assert {"standin.toml", "kernel-shim/Makefile", "kernel-shim/abi.toml", "gcc"} <= named
    again = Images(tmp_path / "again", recipes_folder(), Signer.at(tmp_path))
    assert (await again.build("standin")).manifest == made.manifest, "the same bytes, built elsewhere"


def test_the_plan_of_a_test_is_a_plan() -> None:
    plan: type[Plan] = PlainPlan
    assert plan is PlainPlan
