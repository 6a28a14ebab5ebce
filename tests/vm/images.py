"""The images that tests boot, built once for all of them, in the checkout's cache.

A pin that the archive has dropped fails no test of what is built from it: the packages are pinned anew, in
the cache alone, and it is said that the lock in images/ is old.
"""

import os
from pathlib import Path

import trio
from warren.boot.images.image import STORE, Image, Images, recipes_folder
from warren.boot.images.inputs import Gone
from warren.boot.images.manifest import Signer
from warren.tree import Refused

HERE = Path(__file__).resolve().parents[2] / ".cache" / "images"
KERNELS = {"6.1": "v9fs", "6.12": "v9fs-next"}
"""Series of kernels, and the images with one of them. The first must be had; the archive may lack others."""


class Unreachable(Exception):
    """An image could not be built, for lack of something from elsewhere; the text says of what."""


def images() -> Images:
    store = Path(os.environ.get(STORE) or HERE)
    return Images(store, recipes_folder(), Signer.at(store))


def built(name: str) -> Image:
    """The image, of the sources as they are now."""
    place = images()
    try:
        return trio.run(place.build, name, print)
    except Gone as e:
        print(f"images/{name}.lock is old: {e.detail}")
        trio.run(place.lock, name)
        return trio.run(place.build, name, print)


def v9fs(series: str) -> Image:
    """The test image with a kernel of that series."""
    try:
        return built(KERNELS[series])
    except Refused as e:
        raise Unreachable(e.detail) from e
