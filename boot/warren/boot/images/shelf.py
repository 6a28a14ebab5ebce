"""A place for images, as those see it who boot them: `image.Images` is one, and so is one that builds beside.

    shelf.find("standin")     the image, built from the inputs as they are now; None: it has to be built
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Image(Protocol):
    """A built image, as far as booting it goes."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def input_hash(self) -> str: ...

    @property
    def files(self) -> Mapping[str, Path]: ...


class Verdict(NamedTuple):
    """Whether an image is what was signed here, and everything that speaks against it."""

    ok: bool
    faults: tuple[str, ...]


class Shelf(Protocol):
    """Where images are kept and built. Unknown names are Refused (404)."""

    def names(self) -> Sequence[str]: ...

    def find(self, name: str) -> Image | None:
        """Built from the inputs as they are now."""

    def latest(self, name: str) -> Image | None:
        """The last one that was built."""

    async def build(self, name: str, progress: Callable[[str], None] = ...) -> Image:
        """The one that `find` has, or a new one. Cancelled leaves nothing half."""

    def verify(self, image: Any) -> Verdict:
        """Whether an image of this store is what was signed, every file of it. Reads them all."""
