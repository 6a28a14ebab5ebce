"""Fids and the places they stand at.

A `Place` is one step of a walk: a node, its name, and the place above it. The path is ours, made of
the names that were walked and never of anything a client claims. `..` goes to the place above and
never above the attach point, whose place has none. Places are shared by the fids cloned from one
another, and a rename moves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warren.auth.rights import Allowed
from warren.tree import Attr, Dirent, Handle, Node

if TYPE_CHECKING:
    from warren.serve.connection import Parked


class Place:
    """Where a fid stands."""

    __slots__ = ("above", "held", "name", "node", "path")

    def __init__(self, node: Node, name: str, above: Place | None, path: str) -> None:
        self.node = node
        self.name = name
        self.above = above
        self.path = path
        # The nearest object around us that lives by being held (see Life).
        self.held: Node | None = node if node.counted else (above.held if above else None)

    def child(self, name: str) -> str:
        """The path of a name in this directory."""
        return f"{self.path}/{name}" if self.path != "/" else f"/{name}"


class Fid:
    """What a client's number stands for, and what was decided about it."""

    __slots__ = (
        "allowed", "attr", "flags", "gone", "handle", "listing", "locked", "moved", "node", "on_clunk",
        "packed", "pages", "parked", "place", "reads", "seq", "told", "writes",
    )  # fmt: skip

    def __init__(self, place: Place, allowed: Allowed, seq: int) -> None:
        self.place = place
        self.node = place.node
        self.allowed = allowed
        self.seq = seq  # the policy's number when `allowed` was decided
        self.handle: Handle | None = None
        self.attr: Attr | None = None  # as it was last packed
        self.packed = b""
        self.reads = self.writes = False
        self.flags = 0
        self.gone = False  # clunked, though work begun on it may still end
        self.moved = 0  # bytes written, for the audit's record at clunk
        self.told: bytes | None = None  # the error of a write, to be read back
        self.listing: list[Dirent] | None = None
        self.locked: set[tuple[int, str, int]] | None = None
        self.parked: set[Parked] | None = None
        self.on_clunk: str = ""  # "remove": opened with ORCLOSE
        self.pages: object = None  # a directory that the plain dialect is reading
        if place.held is not None:
            place.held.hold()

    @property
    def path(self) -> str:
        return self.place.path
