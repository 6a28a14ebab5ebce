"""Images: what machines boot, built from recipes, kept by the sum of what went in, and signed.

    images = Images.at(state)
    image = images.find("linux") or await images.build("linux", print)
    image.files["initrd"]
    images.verify(image)              -> Verdict(ok, faults)

    STORE/NAME/SUM/                   an image: its files, manifest, manifest.sig, built
    STORE/NAME/latest                 the SUM that was built last
    STORE/image.key, image.pub        who signs
    STORE/locks/NAME.lock             packages pinned here, instead of those that came with the recipe
    STORE/inputs, STORE/parts         what was fetched, by its sum; what was half made of it

STORE is $WARREN_IMAGES, else `images` in a hive's state. Two who build do not meet: one builds and the other
finds it built. An image appears whole or not at all, and the last KEPT of a name stay.

Recipes are in images/ of a checkout, and come with the program where it is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from warren.boot.images.build import SECURE_BOOT, names, planned, read
from warren.boot.images.inputs import Lock, resolved
from warren.boot.images.manifest import MAX_TEXT, Input, Manifest, Output, Signer, sum_of
from warren.boot.images.plan import Pinned, Plan, Progress, Recipe
from warren.boot.images.shelf import Verdict
from warren.boot.secure.firmware import Keys
from warren.tree.errors import Refused

STORE: Final = "WARREN_IMAGES"
MANIFEST, SIGNATURE, BUILT, LATEST = "manifest", "manifest.sig", "built", "latest"
KEPT: Final = 2
LOOK: Final = 0.2


@dataclass(frozen=True)
class Image:
    """An image that was built."""

    name: str
    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def input_hash(self) -> str:
        return self.manifest.input_hash

    @property
    def files(self) -> Mapping[str, Path]:
        """Each file by its word; docs/images.md has the words of each kind."""
        return {output.word: self.folder / output.file for output in self.manifest.outputs}

    @property
    def size(self) -> int:
        return sum(output.size for output in self.manifest.outputs)

    @property
    def seconds(self) -> float | None:
        """How long it took to build, as far as anybody says."""
        try:
            return float((self.folder / BUILT).read_text().removeprefix("seconds="))
        except (FileNotFoundError, ValueError):
            return None


def recipes_folder() -> Path:
    """Where the recipes are: beside the source, or in the program."""
    here = Path(__file__).resolve().parent
    for folder in (here / "recipes", here.parents[3] / "images"):
        if (folder / "linux.toml").exists():
            return folder
    raise Refused(503, "the recipes of images are not here; install warren-9p again, or use its checkout")


class Images:
    """The images of one place."""

    def __init__(self, store: Path, recipes: Path, signer: Signer) -> None:
        self.store, self.recipes, self.signer = store, recipes, signer

    @classmethod
    def at(cls, state: Path) -> Images:
        """Those of a hive's state directory, or of $WARREN_IMAGES."""
        store = Path(os.environ.get(STORE) or state / "images").absolute()
        return cls(store, recipes_folder(), Signer.at(store))

    def names(self) -> list[str]:
        return names(self.recipes)

    @property
    def secure_boot(self) -> Keys:
        """Who signs what firmware boots, made when it is first wanted."""
        return Keys.at(self.store / SECURE_BOOT)

    def recipe(self, name: str) -> Recipe:
        return read(self.recipes, name)

    def input_hash(self, name: str) -> str:
        """The sum of what NAME would be built from now."""
        recipe = self.recipe(name)
        return sum_of(self._inputs(recipe, self._plan(recipe)))

    def find(self, name: str) -> Image | None:
        """The image that a build would give now, if it is there."""
        return self._load(name, self.input_hash(name))

    def latest(self, name: str) -> Image | None:
        """The image of that name that was built last, of whatever."""
        self.recipe(name)
        try:
            return self._load(name, (self.store / name / LATEST).read_text().strip())
        except FileNotFoundError:
            return None

    async def build(self, name: str, progress: Progress = lambda said: None) -> Image:
        """The image of what the inputs are now, built if it is not there. Refused: what is missing, and the
        way out. Cancelled leaves no image."""
        recipe = self.recipe(name)
        plan = self._plan(recipe)
        async with self._alone(name, progress):
            inputs = await trio.to_thread.run_sync(self._inputs, recipe, plan)
            there = self._load(name, sum_of(inputs))
            if there is not None:
                return there
            begun = time.monotonic()
            outputs = await plan.make(progress)
            seconds = time.monotonic() - begun

            def keep() -> Image:
                return self._keep(recipe, inputs, outputs, seconds)

            made = await trio.to_thread.run_sync(keep)
        progress(f"built {name} {made.input_hash[:16]} in {seconds:.1f} s, {made.size >> 20} MiB")
        return made

    def pinned(self, name: str) -> Lock | None:
        """The packages that NAME is pinned to, if there are any."""
        plan = self._plan(self.recipe(name))
        try:
            return plan.lock if isinstance(plan, Pinned) else None
        except Refused:
            return None

    async def lock(self, name: str, progress: Progress = lambda said: None) -> tuple[Path, Lock]:
        """Pin what the archives have now, for this place; where that is written, and what it says."""
        plan = self._plan(self.recipe(name))
        if not isinstance(plan, Pinned):
            raise Refused(405, f"{name} is made of nothing that could be pinned")
        progress("asking the archives")
        found = await resolved(*plan.wanted, self.store)
        path = self.store / "locks" / f"{name}.lock"
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(found.text)
        new.replace(path)
        return path, found

    def verify(self, image: Image) -> Verdict:
        """Read all of it again: the signature, every file's sum and size, and what is there beside."""
        faults: list[str] = []
        try:
            text = _text(image.folder / MANIFEST)
            if why := self.signer.fault(text, (image.folder / SIGNATURE).read_bytes()[:4096]):
                faults.append(why)
            manifest = Manifest.parse(text)
        except (OSError, UnicodeDecodeError) as e:
            return Verdict(False, (f"{MANIFEST}: {getattr(e, 'detail', '') or e}",))
        if manifest.name != image.name or manifest.input_hash != image.folder.name:
            faults.append(f"{MANIFEST}: it is of another image, {manifest.name} {manifest.input_hash[:16]}")
        for output in manifest.outputs:
            faults += _faults(image.folder / output.file, output)
        expected = {MANIFEST, SIGNATURE, BUILT, *(output.file for output in manifest.outputs)}
        beside = sorted(set(os.listdir(image.folder)) - expected)
        faults += [f"{extra}: no part of the image" for extra in beside]
        return Verdict(not faults, tuple(faults))

    # Inside

    def _plan(self, recipe: Recipe) -> Plan:
        return planned(recipe, self.recipes, self.store, self.signer)

    def _inputs(self, recipe: Recipe, plan: Plan) -> list[Input]:
        return [Input(recipe.sha256, "recipe", f"{recipe.name}.toml"), *plan.inputs]

    def _load(self, name: str, digest: str) -> Image | None:
        """The image, if its manifest says that it is that one."""
        folder = self.store / name / digest
        try:
            manifest = Manifest.parse(_text(folder / MANIFEST))
        except (OSError, UnicodeDecodeError):
            return None
        image = Image(name, folder, manifest)
        whole = all(path.exists() for path in image.files.values())
        return image if whole and manifest.name == name and manifest.input_hash == digest else None

    def _keep(
        self, recipe: Recipe, inputs: list[Input], outputs: Mapping[str, tuple[str, bytes]], seconds: float
    ) -> Image:
        """Write an image down, whole, and let older ones go."""
        rows = tuple(
            Output(hashlib.sha256(body).hexdigest(), len(body), word, file)
            for word, (file, body) in sorted(outputs.items())
        )
        manifest = Manifest(recipe.name, recipe.kind, tuple(sorted(inputs)), rows)
        place = self.store / recipe.name
        place.mkdir(exist_ok=True)
        folder = place / manifest.input_hash
        with tempfile.TemporaryDirectory(dir=self.store, prefix="new-") as work:
            new = Path(work) / "image"
            new.mkdir(0o755)
            for file, body in outputs.values():
                (new / file).write_bytes(body)
            (new / MANIFEST).write_text(manifest.text)
            (new / SIGNATURE).write_bytes(self.signer.sign(manifest))
            (new / BUILT).write_text(f"seconds={seconds:.1f}\n")
            if folder.exists():  # what did not load: it is no image
                shutil.rmtree(folder)
            new.rename(folder)
        latest = place / f"{LATEST}.new"
        latest.write_text(f"{manifest.input_hash}\n")
        latest.replace(place / LATEST)
        there = (path for path in place.iterdir() if path.is_dir())
        for old in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(old)
        return Image(recipe.name, folder, manifest)

    @asynccontextmanager
    async def _alone(self, name: str, progress: Progress) -> AsyncIterator[None]:
        """While this block runs nobody else builds that image here. Cancelled lets go of it."""
        os.makedirs(self.store, exist_ok=True)
        file = os.open(self.store / f"{name}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        told = False
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        progress(f"another process builds {name}; waiting for it")
                        told = True
                    await trio.sleep(LOOK)
            await trio.lowlevel.checkpoint()
            yield
        finally:
            os.close(file)


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(MAX_TEXT + 1).decode()


def _faults(path: Path, output: Output) -> Iterator[str]:
    """What is wrong with one file."""
    try:
        with open(path, "rb") as file:
            told = os.fstat(file.fileno())
            if not stat.S_ISREG(told.st_mode) or told.st_size != output.size:
                yield f"{output.file}: {told.st_size} bytes, and {output.size} were signed"
            elif hashlib.file_digest(file, "sha256").hexdigest() != output.sha256:
                yield f"{output.file}: it is not what was signed"
    except OSError as e:
        yield f"{output.file}: {(e.strerror or str(e)).lower()}"
