"""What the bench boots images with: where they are kept, how a guest is served, and the keys of Secure Boot.

    bench = alone(State(...).directory)           for a command, whether a hive runs or not
    bench = of(role)                              for /boot of a role

A guest that is only booted gets its own tree and nothing else of anybody's: an Export of that tree, on the
one channel, with all rights in it, and with the role's own audit where there is a role. What it says of
itself counts for nothing: it is `vm/boot-N`, since that is whose channel it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from warren.auth.rights import Policy
from warren.boot.harness.bench import Bench
from warren.boot.harness.harness import Job
from warren.boot.harness.prepare import secured
from warren.boot.images.image import Images
from warren.boot.images.shelf import Image, Shelf, Verdict
from warren.boot.machines.accel import Accelerators
from warren.boot.machines.recipe import Recipe
from warren.roles.builder import Beside
from warren.serve.export import Export, Limits
from warren.serve.stream import serve_stream
from warren.traces.audit import Audit, AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node, Refused

if TYPE_CHECKING:
    from warren.roles.run import Role

_ALL: Final = Policy.parse(["any read,write,create,remove,ctl /**"])
# One guest on a line of its own: a crowd of fids would be a mistake of the guest's.
_LIMITS: Final = Limits(connections=1, fids=256, running=8, waiting=32, parked=8, buffers=8 << 20)


def alone(state: Path) -> Bench:
    """A bench for one command. Raises Refused if there are no recipes of images."""
    return _bench(Images.at(state), state, AuditMemory())


def of(role: Role) -> Bench:
    """The bench of a role. Where there are no recipes it has no images, and the role's log says why."""
    state = role.state.directory
    try:
        images: Shelf = Beside(Images.at(state), state)
    except Refused as e:
        role.tell(f"/boot has no images: {e.detail}")
        images = _Empty(e)
    return _bench(images, state, role.audit)


def _bench(images: Shelf, state: Path, audit: Audit) -> Bench:
    folder, secure = state / "boot", partial(_secured, state)
    return Bench(images, partial(_serve, audit), Accelerators(folder / "accelerators.json"), folder, secure)


class _Empty:
    """No images, and why."""

    def __init__(self, why: Refused) -> None:
        self.why = why

    def names(self) -> Sequence[str]:
        return ()

    def find(self, name: str) -> Image | None:
        raise self.why

    latest = find

    async def build(self, name: str, progress: Callable[[str], None] = lambda said: None) -> Image:
        raise self.why

    def verify(self, image: Image) -> Verdict:
        raise self.why


def _secured(state: Path, image: Image, recipe: Recipe, folder: Path) -> Job:
    return secured(image, recipe, folder, Images.at(state).store / "secure-boot")


async def _serve(audit: Audit, channel: trio.abc.Stream, subject: str, own: Node) -> None:
    """Serve a guest its own tree until the channel ends."""
    export = Export(own, _ALL, audit, TraceRing(), _LIMITS)
    export.shown_to_all = True
    await serve_stream(export, channel, subject)
