"""What one kind of image needs to be built: the words that all kinds share.

    class Plan                 inputs() and make()
    class Pinned               a plan whose packages are pinned in a lock
    programs("images.build", "formats.elf")   modules of Warren that build, as inputs
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from warren.boot.images import packages
from warren.boot.images.inputs import Lock
from warren.boot.images.manifest import Input, Signer, sum_of
from warren.boot.images.sbom import Component, debian, sbom, wheel
from warren.tree.errors import Refused

Progress = Callable[[str], None]
Outputs = dict[str, tuple[str, bytes]]


class Plan(Protocol):
    """What one kind of image needs to be built."""

    @property
    def inputs(self) -> list[Input]:
        """All that decides what comes out, but the recipe itself, as it was when it was first asked for.
        Refused for what is lacking here."""

    async def make(self, progress: Progress) -> Outputs:
        """The files of the image. Cancelled leaves at most what was fetched."""


@dataclass(frozen=True)
class Recipe:
    """A file of images/: what kind of image, what it is for, and what its kind wants to know."""

    name: str
    kind: str
    about: str
    said: Mapping[str, Any]
    sha256: str


class Wanted(NamedTuple):
    """What is pinned when an image is locked: packages of a suite, the kernel that one stands for, wheels."""

    suite: str
    packages: tuple[str, ...]
    kernel: str
    wheels: tuple[str, ...]


class Pinned:
    """What plans have in common whose packages are pinned."""

    wanted: Wanted

    def __init__(self, recipe: Recipe, folder: Path, store: Path, signer: Signer) -> None:
        self.recipe, self.folder, self.store, self.signer = recipe, folder, store, signer

    @cached_property
    def lock(self) -> Lock:
        """The lock that counts: one of this place's own, or the one that came with the recipe."""
        name = self.recipe.name
        for path in (self.store / "locks" / f"{name}.lock", self.folder / f"{name}.lock"):
            if path.exists():
                return Lock.parse(path.read_text())
        raise Refused(503, f"nothing is pinned for {name}; run warren image lock {name}")

    def pins(self) -> list[Input]:
        return [Input(pin.sha256, pin.kind, f"{pin.name}={pin.version}") for pin in self.lock.pins]

    def bill(self, fetched: Path, more: Iterable[Component], inputs: Iterable[Input]) -> bytes:
        """The SBOM: every package, and what came beside."""
        parts = list(more)
        for pin in self.lock.pins:
            named = packages.licences(pin, fetched / pin.sha256)
            if pin.kind == "deb":
                parts.append(debian(pin.name, pin.version, self.lock.suite, pin.sha256, named))
            else:
                parts.append(wheel(pin.name, pin.version, pin.sha256, named))
        return sbom(self.recipe.name, version("warren-9p"), parts, sum_of(inputs)).encode()


def programs(*modules: str) -> list[Input]:
    """The modules that build, as inputs: another one of them makes another image."""
    boot = Path(__file__).parents[1]
    return [
        Input(digest((boot / f"{name.replace('.', '/')}.py").read_bytes()), "tool", f"warren.boot.{name}")
        for name in modules
    ]


def tool(name: str) -> Input:
    """A program of this machine, by what it says of its version."""
    try:
        done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise Refused(503, f"there is no {name} here, which this image is built with; install it") from None
    return Input(digest(done.stdout.partition("\n")[0].encode()), "tool", name)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
