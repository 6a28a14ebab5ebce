"""From a built image to a job: what is looked at before a machine starts.

    job = prepare(image, recipe, folder)          a Job; `refusal` says why it must not start
    job = secured(image, recipe, folder, keys)    from a disk, so that the firmware itself decides
    chain = measured(image)                       its files, folded into one value that any change changes

The files of an image are words: `kernel` and `root` of a stand-in, `kernel`, `initrd` and `cmdline` of a
Linux, `esp` of one for Secure Boot. What runs first on a machine of ours is an ELF that our own validator has
passed; the kernels are less strict. A Linux kernel was judged by who built it, and is not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from warren.boot.formats import elf, multiboot
from warren.boot.harness.harness import Job
from warren.boot.images.shelf import Image
from warren.boot.machines.qemu import Boots
from warren.boot.machines.recipe import Recipe
from warren.boot.secure import firmware
from warren.boot.secure.chain import Chain, Event
from warren.tree import Refused

_ORDER: Final = ("kernel", "root", "initrd", "cmdline", "uki", "esp")
_PIECE: Final = 1 << 20
_NO_MARKER: Final = b"\0"  # READY is said on the channel and not on the serial line


def prepare(image: Image, recipe: Recipe, folder: Path) -> Job:
    """What to boot. Reads small files only."""
    if recipe.boots != "kernel":
        raise Refused(400, f"the recipe {recipe.name} boots a disk, which is for secure=yes alone")
    if "root" in image.files:
        kernel, root = _file(image, "kernel"), _file(image, "root")
        return Job(
            image.name, recipe, Boots(kernel, root), folder=folder, facts=_facts(image),
            refusal=judged(kernel.read_bytes(), root.read_bytes()),
        )  # fmt: skip
    cmdline = _file(image, "cmdline").read_text().strip() if "cmdline" in image.files else ""
    cmdline = f"{cmdline} warren.name={image.name}".strip()
    boots = Boots(_file(image, "kernel"), _file(image, "initrd"), cmdline)
    return Job(image.name, recipe, boots, folder=folder, facts=_facts(image))


def secured(image: Image, recipe: Recipe, folder: Path, keys: Path) -> Job:
    """The disk of an image on a machine that takes only what the keys in KEYS have signed. Nothing of it is
    looked at before: whether it may run is the firmware's to say. Its variables are written to FOLDER."""
    if recipe.boots != "disk":
        raise Refused(400, f"the recipe {recipe.name} loads a kernel past the firmware; leave recipe= out")
    if "esp" not in image.files:
        raise Refused(405, f"the image {image.name} has no disk that firmware could boot")
    own = firmware.variables(firmware.Keys.at(keys))
    line = firmware.machine(own, _file(image, "esp"), folder)
    return Job(
        image.name, recipe, Boots(arguments=tuple(line), machine=True), folder=folder, facts=_facts(image),
        seen=firmware.watching(_NO_MARKER),
    )  # fmt: skip


def judged(kernel: bytes, root: bytes) -> str:
    """Why these two must not be booted, by name; nothing if they may."""
    faults = [
        *(f"kernel: {fault.name}: {fault.text}" for fault in elf.check(kernel, elf.KERNEL)),
        *(f"kernel: {fault.name}: {fault.text}" for fault in multiboot.check(kernel)),
        *(f"root: {fault.name}: {fault.text}" for fault in elf.check(root, elf.ROOT_TASK)),
    ]
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"the validator refuses it: {faults[0]}{more}" if faults else ""


def measured(image: Image) -> Chain:
    """The files of an image in the order in which they count, as they are now. Reads all of them."""
    return Chain(tuple(Event(word, digest(image.files[word])) for word in _ORDER if word in image.files))


def digest(path: Path) -> bytes:
    """The SHA-256 of a file of any size."""
    summed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            summed.update(piece)
    return summed.digest()


def _facts(image: Image) -> dict[str, str]:
    return {"inputs": image.input_hash}


def _file(image: Image, word: str) -> Path:
    try:
        return image.files[word]
    except KeyError:
        raise Refused(422, f"the image {image.name} has no {word}; build it again") from None
