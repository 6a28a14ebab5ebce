"""What a Space is made of, as one caller has it.

    shared = Shared(cell, trees)          the Space of now, and what is known of its mount points
    view = View(shared, caller)
    view.of(member)                       the directory that a member is: of this process, or far

`Trees` is the port to what the addresses mean.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable
from typing import Protocol, TypeVar
from weakref import WeakSet

from warren.namespaces.far import FarNode
from warren.namespaces.reached import FarTree, Path, Placed, Ways, spell
from warren.namespaces.readonly import ReadOnly
from warren.namespaces.space import Member, Space
from warren.tree import Caller, Maybe, Node
from warren.tree.errstr import ErrStr
from warren.tree.node import QTDIR, Qid

T = TypeVar("T")


class Trees(Ways, Protocol):
    """Where the addresses of a Space lead."""

    def local(self, address: str) -> Node | None:
        """The root of a tree of this very process."""


class Cell:
    """A Space that may be replaced by another; `version` moves with it."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.version = 0

    @property
    def space(self) -> Space:
        return self._space

    @space.setter
    def space(self, space: Space) -> None:
        if space != self._space:
            self._space = space
            self.version += 1


class Shared:
    """A Space, and what all its callers know of it."""

    def __init__(self, cell: Cell, trees: Trees) -> None:
        self.cell = cell
        self.trees = trees
        self.far: WeakSet[Placed] = WeakSet()
        self.errstr = ErrStr()
        self._kinds: dict[Path, Qid | None] = {}  # of mount points: the qid of a file, None of a directory
        self._tops: dict[str, str] = {}
        self.quiet: dict[Path, float] = {}  # mount points whose tree said nothing: until when nobody asks
        self._version = cell.version

    def _current(self) -> None:
        if self._version != self.cell.version:
            self._version = self.cell.version
            self._kinds.clear()
            self._tops.clear()
            self.quiet.clear()

    @property
    def kinds(self) -> dict[Path, Qid | None]:
        """What is known of the mount points of this Space."""
        self._current()
        return self._kinds

    def top(self, address: str) -> str:
        """The deepest directory of a tree that has all of it that this Space shows."""
        self._current()
        if address not in self._tops:
            members = [m for found in self.cell.space.table.values() for m in found if m.address == address]
            paths = [spell(m.path) for m in members]
            self._tops[address] = os.path.commonpath(paths) if paths else "/"
        return self._tops[address]


class View:
    """A Space as one caller has it."""

    def __init__(self, shared: Shared, caller: Caller) -> None:
        self.shared = shared
        self.caller = caller
        self._local: dict[str, Node] = {}
        self._far: dict[str, FarTree] = {}

    @property
    def space(self) -> Space:
        return self.shared.cell.space

    def below(self, path: Path) -> frozenset[str]:
        """The names in a directory that are mount points, or lead to one."""
        names = self.space.at(path)[1]
        return names | {"dev"} if not path else names

    def of(self, member: Member) -> Maybe[Node]:
        """The directory that a member of a mount point is."""
        node = self._of(member)
        if not member.read_only:
            return node
        return ReadOnly(node) if isinstance(node, Node) else _read_only(node)

    def _of(self, member: Member) -> Maybe[Node]:
        node = self._local.get(member.address)
        if node is None:
            here = self.shared.trees.local(member.address)
            if here is None:
                return FarNode.at(self._tree(member.address), member.path)
            node = self._local[member.address] = here.attach(self.caller)
        for i, name in enumerate(member.path):
            found = node.walk(name)
            if not isinstance(found, Node):
                return _walk(found, member.path[i + 1 :])
            node = found
        return node

    def _tree(self, address: str) -> FarTree:
        tree = self._far.get(address)
        if tree is None:
            tree = self._far[address] = FarTree(address, self.shared.trees, self.caller, self.shared.far)
        tree.path = self.shared.top(address)
        return tree

    async def kind(self, member: Member) -> Node | None:
        """What a member is if it is a file, which can be mounted too."""
        if not member.path:
            return None
        if self.shared.trees.local(member.address) is None:
            above = FarNode.at(self._tree(member.address), member.path[:-1])
            node = await now(above.walk(member.path[-1]))
            node = ReadOnly(node) if member.read_only else node
        else:
            node = await now(self.of(member))
        return None if node.qtype & QTDIR else node


async def now(coming: Maybe[T]) -> T:
    """A result, whether or not it has to be waited for."""
    return await coming if inspect.isawaitable(coming) else coming


async def _read_only(coming: Awaitable[Node]) -> Node:
    return ReadOnly(await coming)


async def _walk(coming: Awaitable[Node], names: Path) -> Node:
    node = await coming
    for name in names:
        node = await now(node.walk(name))
    return node
