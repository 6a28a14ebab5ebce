"""Images as directories. What they show is read from their files when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import trio
from warren.boot.formats import elf
from warren.boot.harness.prepare import measured
from warren.boot.images.shelf import Image, Shelf
from warren.tree import Dir, Node, Text
from warren.tree.report import attributes


class ImagesDir(Dir):
    """A directory for each image that there is a recipe for, built or not."""

    def __init__(self, images: Shelf) -> None:
        self.images = images
        self.known: dict[str, ImageDir] = {}
        super().__init__()

    def lookup(self, name: str) -> Node | None:
        if name not in self.images.names():
            self.known.pop(name, None)
            return None
        return self._directory(name)

    def list(self) -> Iterable[tuple[str, Node]]:
        return [(name, self._directory(name)) for name in self.images.names()]

    def _directory(self, name: str) -> ImageDir:
        return self.known.setdefault(name, ImageDir(self.images, name))


class ImageDir(Dir):
    """One image. What is not built has nothing to show but that."""

    def __init__(self, images: Shelf, name: str) -> None:
        self.images, self.name = images, name
        self.verify = self._shows(self._verified)
        self.whole: Mapping[str, Node] = {
            "manifest": self._shows(lambda image: (image.folder / "manifest").read_text()),
            "sig": self._shows(lambda image: (image.folder / "manifest.sig").read_text()),
            "elf": self._shows(described),
            "chain": self._shows(lambda image: measured(image).text()),
            "verify": self.verify,
        }
        super().__init__()

    def lookup(self, name: str) -> Node | None:
        return self._there().get(name)

    def list(self) -> Iterable[tuple[str, Node]]:
        return self._there().items()

    def _there(self) -> Mapping[str, Node]:
        return {"verify": self.verify} if self.images.latest(self.name) is None else self.whole

    def _shows(self, read: Callable[[Image], str]) -> Text:
        def work() -> str:
            image = self.images.latest(self.name)
            if image is None:
                return attributes({"image": self.name, "verdict": "unbuilt"})
            return read(image)

        async def get() -> str:
            return await trio.to_thread.run_sync(work)

        return Text(get)

    def _verified(self, image: Image) -> str:
        found = self.images.verify(image)
        known = {"image": image.name, "verdict": "ok" if found.ok else "refused", "inputs": image.input_hash}
        return attributes(known | {f"fault{n}": fault for n, fault in enumerate(found.faults, 1)})


def described(image: Image) -> str:
    """What the validator says of each ELF that it judges."""
    if "root" not in image.files:
        return "judged=no\nreason='its kernel is no ELF of ours: who built it signed it'\n"
    parts = []
    for word, rules in (("kernel", elf.KERNEL), ("root", elf.ROOT_TASK)):
        parts.append(f"# {word}\n{elf.describe(image.files[word].read_bytes(), rules)}")
    return "\n".join(parts)
