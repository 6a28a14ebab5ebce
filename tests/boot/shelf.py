"""A shelf of images that a test put there: `warren.boot.images.shelf`, in the simplest form."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio
from warren.boot.images.shelf import Verdict
from warren.tree import Refused

from tests.boot import mutants, tiny


@dataclass(frozen=True)
class Image:
    name: str
    folder: Path
    files: Mapping[str, Path]
    sums: Mapping[str, str]
    kind: str = "standin"
    input_hash: str = "00" * 32


def image(folder: Path, name: str, **files: bytes) -> Image:
    """An image of these files, signed as it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {word: folder / f"{word}.bin" for word in files}
    for word, data in files.items():
        paths[word].write_bytes(data)
    sums = {word: hashlib.sha256(data).hexdigest() for word, data in files.items()}
    (folder / "manifest").write_text("".join(f"{word}={said}\n" for word, said in sums.items()))
    (folder / "manifest.sig").write_text("c2ln\n")
    return Image(name, folder, paths, sums)


def tiny_image(folder: Path, name: str, *code: bytes) -> Image:
    """A kernel that does this, beside a root task that is sound and never runs."""
    return image(folder, name, kernel=tiny.image(*code), root=mutants.sound())


@dataclass
class Shelf:
    """Images by name; one that is None is not built, and `make` builds it."""

    held: dict[str, Image | None]
    make: Callable[[str], Image] | None = None
    built: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return sorted(self.held)

    def find(self, name: str) -> Image | None:
        return self.latest(name)

    def latest(self, name: str) -> Image | None:
        if name not in self.held:
            raise Refused(404, f"there is no image {name!r}")
        return self.held[name]

    async def build(self, name: str, progress: Callable[[str], None] = lambda said: None) -> Image:
        await trio.lowlevel.checkpoint()
        if self.make is None:
            raise Refused(503, "there is no compiler here")
        progress("compiling")
        made = self.held[name] = self.make(name)
        self.built.append(name)
        return made

    def verify(self, image: Image) -> Verdict:
        faults = [
            f"{word}: it is not what was signed"
            for word, path in image.files.items()
            if hashlib.sha256(path.read_bytes()).hexdigest() != image.sums[word]
        ]
        return Verdict(not faults, tuple(faults))
