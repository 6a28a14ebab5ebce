"""A Space served as a tree, so that whatever can mount a tree can mount a namespace.

    cell = Cell(space)
    Export(SpaceRoot(cell, trees), policy, audit, trace)
    cell.space = cell.space.mount("$drone-1", "/n/drone-1")      in force from the next walk on

**Walking.** At a mount point the members are asked in order, and the first that has the name is where the
walk goes on: from there on only there. A directory at a mount point lists what its members list, each name
once and the first member's, and the mount points below it. What lies above a mount point and in no tree is
a directory that leads on.

**Below the last mount point** a node of this process is given as it is, with its identity and all it can do.
What is elsewhere is passed on (see `far`). Members mounted with -r are read-only (see `readonly`).

**New files** go to the first member with -c. A rename or link from one member to another is EXDEV, and so is
one from below a mount point to the very directory of it, which `mv` knows how to do. What is mounted can
be neither removed nor replaced (EBUSY).

**For whom.** Each caller has a root of their own: what is reached for them is reached on their authority,
which is up to the port `Trees`. A tree that cannot be reached makes an error of every path that leads into
it; no other member of the union steps in for what it might have had.

`/dev/errstr` is shown in every Space, since some of its trees have ctl files.
"""

from __future__ import annotations

from warren.namespaces.directory import SpaceDir
from warren.namespaces.view import Cell, Shared, Trees, View
from warren.tree import Caller, Node
from warren.tree.node import QTDIR


class SpaceRoot(Node):
    """What an export is given. Every caller gets a root of their own from it."""

    qtype = QTDIR
    mode = 0o555

    def __init__(self, cell: Cell, trees: Trees) -> None:
        self.shared = Shared(cell, trees)

    def attach(self, caller: Caller) -> Node:
        return SpaceDir(View(self.shared, caller), ())


__all__ = ["Cell", "SpaceRoot", "Trees"]
