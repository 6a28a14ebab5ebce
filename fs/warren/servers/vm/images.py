"""What /vm needs of images: to have one that is built, and to know how it is run.

    images = StoredImages(open)                      OPEN gives a store, as of `warren.boot.images.image`
    built = await images.find("standin", progress)   builds it first if that is needed; PROGRESS is told steps

Which file is what differs from one kind of image to another, and so does what the guest understands: `KINDS`
says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import trio
from warren.boot.images.shelf import Image, Shelf
from warren.boot.machines.recipe import BadRecipe, chosen
from warren.tree import Refused

Progress = Callable[[str], None]


class Kind(NamedTuple):
    """How images of one kind are run."""

    files: Mapping[str, str]  # what a machine calls a file, and what the image does
    then: str = ""  # what a guest is told when it has said that it is ready, and nobody wants it to stay
    stops: str = "stop"  # what it is told to end
    named: bool = False  # it takes its name from the kernel's command line, and serves a tree under it


KINDS: Final[Mapping[str, Kind]] = {
    "standin": Kind({"kernel": "kernel", "initrd": "root"}, then="exit 0", stops="exit 0"),
    "linux": Kind({"kernel": "kernel", "initrd": "initrd"}, named=True),
}


@dataclass(frozen=True)
class Built:
    """An image, and how it is run."""

    name: str
    kind: str
    input_hash: str
    recipe: str
    files: Mapping[str, Path]
    cmdline: str = ""
    then: str = ""
    stops: str = "stop"
    named: bool = False


class Images(Protocol):
    """What a machine asks for."""

    def names(self) -> Iterable[str]:
        """All that there are."""

    async def find(self, name: str, progress: Progress) -> Built:
        """That image, built. Cancelled leaves nothing half. Refused says what is missing, and the way out."""


class NoImages:
    """A role that has none."""

    def names(self) -> Iterable[str]:
        return ()

    async def find(self, name: str, progress: Progress) -> Built:
        raise Refused(404, f"there is no image {name}: this role has no store of images")


class StoredImages:
    """Those of a store, which is opened when somebody first asks: most roles never run a machine."""

    def __init__(self, open: Callable[[], Shelf]) -> None:
        self._open = open

    @cached_property
    def store(self) -> Shelf:
        return self._open()

    def names(self) -> Iterable[str]:
        return self.store.names()

    async def find(self, name: str, progress: Progress) -> Built:
        image = await trio.to_thread.run_sync(self.store.find, name)
        if image is None:
            progress(f"the image {name} is not built yet")
            image = await self.store.build(name, progress)
            progress(f"the image {name} is built")
        return _built(image)


def _built(image: Image) -> Built:
    kind = KINDS.get(image.kind)
    if kind is None:
        raise Refused(405, f"images of the kind {image.kind} are not run by /vm; see warren boot run")
    try:
        recipe = chosen(image.kind).name
    except BadRecipe as e:
        raise Refused(405, str(e)) from None
    files = {ours: image.files[theirs] for ours, theirs in kind.files.items()}
    cmdline = image.files["cmdline"].read_text().strip() if "cmdline" in image.files else ""
    return Built(
        image.name, image.kind, image.input_hash, recipe, files, cmdline, kind.then, kind.stops, kind.named
    )
