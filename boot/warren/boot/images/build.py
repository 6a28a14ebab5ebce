"""How each kind of image is built: what goes in, and what comes out of it.

    recipe = read(folder, name)                 images/NAME.toml
    plan = planned(recipe, folder, store, signer)
    plan.inputs                                 everything that decides what comes out, with its sum
    outputs = await plan.make(progress)         word -> (file name, bytes)

`inputs` looks at files as they are now and fetches nothing: it says whether an image is still what would be
built. So the programs that build count too, modules of Warren among them, and the keys that sign.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio
from cryptography.hazmat.primitives.serialization import Encoding
from warren.boot.formats import uki
from warren.boot.images import inputs, linux
from warren.boot.images.manifest import NAME, Input, Signer, sum_of
from warren.boot.images.plan import Outputs, Pinned, Plan, Progress, Recipe, Wanted, digest, programs, tool
from warren.boot.images.sbom import Component, wheel
from warren.boot.images.standin import StandinPlan
from warren.boot.images.v9fs import V9fsPlan
from warren.boot.secure.firmware import Keys
from warren.tree.errors import Refused

LARGEST: Final = 1 << 16  # of a recipe
SECURE_BOOT: Final = "secure-boot"  # in the store: PK, KEK and db
_SYSTEM: Final = ("formats.initramfs", "images.linux", "images.packages")
_BUILDERS: Final = (
    "formats.authenticode", "formats.esp", "formats.pe", "formats.uki", "images.build", "images.plan",
    "images.sbom",
)  # fmt: skip


def names(folder: Path) -> list[str]:
    """Every image there is a recipe for."""
    found = (path.stem for path in folder.glob("*.toml"))
    return sorted(name for name in found if NAME.fullmatch(name))


def read(folder: Path, name: str) -> Recipe:
    """The recipe of that name. Refused says what is wrong with it, or which there are."""
    try:
        if not NAME.fullmatch(name):
            raise FileNotFoundError
        with open(folder / f"{name}.toml", "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise Refused(404, f"there is no image {name!r}; there are {', '.join(names(folder))}") from None
    try:
        if len(data) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        said = tomllib.loads(data.decode())
        kind, about = said.pop("kind"), said.pop("about")
    except (ValueError, KeyError) as e:
        raise Refused(422, f"{name}.toml: {e}; a recipe is TOML with kind and about") from None
    if kind not in PLANS or not isinstance(about, str):
        raise Refused(422, f"{name}.toml: there is no kind {kind!r}; there are {', '.join(PLANS)}")
    return Recipe(name, kind, about, said, hashlib.sha256(data).hexdigest())


def planned(recipe: Recipe, folder: Path, store: Path, signer: Signer) -> Plan:
    """How that recipe is built."""
    return PLANS[recipe.kind](recipe, folder, store, signer)


class LinuxPlan(Pinned):
    """The Linux role image; see `linux`."""

    def __init__(self, recipe: Recipe, folder: Path, store: Path, signer: Signer) -> None:
        super().__init__(recipe, folder, store, signer)
        self.linux = said = linux.Linux.read(recipe.said)
        self.wanted = Wanted(said.suite, said.packages, said.kernel, said.wheels)

    def keys(self) -> Keys:
        return Keys.at(self.store / SECURE_BOOT)

    @cached_property
    def sources(self) -> dict[str, bytes]:
        """Warren, read once: what is built is what was summed, though somebody writes to it meanwhile."""
        return linux.sources(portions())

    def base(self) -> list[Input]:
        """What the system is made of, without Warren."""
        return [*self.pins(), *programs(*_SYSTEM), tool("zstd")]

    @cached_property
    def inputs(self) -> list[Input]:
        held = self.sources
        found = [Input(digest(body), "source", name) for name, body in held.items()]
        return [
            *self.base(), *found, *programs(*_BUILDERS),
            Input(digest(uki.stub()), "tool", "linuxx64.efi.stub"),
            Input(digest(self.signer.raw), "key", "roles"),
            Input(digest(_certificate(self.keys())), "key", "db"),
        ]  # fmt: skip

    async def make(self, progress: Progress) -> Outputs:
        fetched = await inputs.fetched(self.lock, self.store, progress)

        def all_of_it() -> Outputs:
            base = self._base(fetched, progress)
            initrd = base + linux.ours(self.sources, base, progress)
            lock, keys = self.lock, self.keys()
            made = linux.assemble(self.linux, lock, fetched, initrd, self.signer, keys, progress)
            return {**made, "sbom": ("sbom.json", self.bill(fetched, [self._itself()], self.inputs))}

        return await trio.to_thread.run_sync(all_of_it)

    def _base(self, fetched: Path, progress: Progress) -> bytes:
        """The system's archive. It changes with its lock and not with us, so it is kept."""
        key = digest(f"{sum_of(self.base())} {self.recipe.sha256}".encode())
        parts = self.store / "parts"
        parts.mkdir(exist_ok=True)
        path = parts / key
        if not path.exists():
            made = linux.system(self.linux, self.lock, fetched, progress)
            new = path.with_suffix(f".{os.getpid()}.new")
            new.write_bytes(made)
            new.replace(path)
            for old in sorted(parts.iterdir(), key=lambda p: p.stat().st_mtime)[:-2]:
                old.unlink()
        return path.read_bytes()

    def _itself(self) -> Component:
        """Warren, as a part of the image."""
        held = b"".join(name.encode() + b"\0" + body for name, body in self.sources.items())
        return wheel("warren-9p", version("warren-9p"), digest(held), ("Apache-2.0",))


PLANS: Final[Mapping[str, Callable[[Recipe, Path, Path, Signer], Plan]]] = {
    "linux": LinuxPlan,
    "standin": StandinPlan,
    "v9fs": V9fsPlan,
}


def portions() -> list[Path]:
    """Where Warren itself lies: the folders that make up the package."""
    return [Path(portion) for portion in sys.modules["warren"].__path__]


def _certificate(keys: Keys) -> bytes:
    """Who signs EFI programs: the public half."""
    return keys.db.certificate.public_bytes(Encoding.DER)
