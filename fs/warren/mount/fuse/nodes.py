"""The kernel's nodes: what each number stands for, and for how long.

A node is remembered as often as the kernel was told of it, and forgotten when the kernel has dropped all
of that. Its number is never used again, so its generation is always 1.

**Identity.** A stored file that is no directory is one node under all its names, known by its qid's path:
hard links share their pages. Directories and synthetic files are known by place (the kernel wants one name
for a directory, and a server may bind one at two places; a synthetic file is whatever stands there now).
`st_ino` is the qid's path in any case.

**Names.** Every node knows a name that led to it, so that it can be walked to again. A rename moves it,
and with it everything below, because a path is read off the parents when it is needed.

**Fids** are kept for stored nodes only, at most `FIDS`, the oldest let go first. A fid keeps what a clone
file made alive; the kernel would keep it for as long as it has memory, so synthetic nodes hold none.
"""

from __future__ import annotations

import stat as S
from typing import Final

from warren.mount.fuse.messages import ROOT
from warren.p9.fields import NOFID, Qid
from warren.tree.node import STORED

FIDS: Final = 4096
_NAMES: Final = 64  # of one file that are remembered
Key = tuple[object, ...]


class Node:
    """One node of the kernel's."""

    __slots__ = ("cached", "fid", "id", "key", "line", "lookups", "mode", "name", "names", "owners", "parent",
                 "qid", "word")  # fmt: skip

    def __init__(self, number: int, parent: Node | None, name: str, qid: Qid, mode: int, word: int) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        self.qid = qid
        self.mode = mode
        self.word = word
        self.key: Key = ()
        self.lookups = 0
        self.names: list[tuple[int, str]] = []  # (parent's number, name), all that are known
        self.fid = NOFID  # kept on `line`, if any
        self.line: object = None
        self.cached = -1  # the version whose pages the kernel may have
        self.owners: dict[int, int] = {}  # who locked it through us, and as which process

    @property
    def is_dir(self) -> bool:
        return S.S_ISDIR(self.mode)

    @property
    def stored(self) -> bool:
        """Whether a cache may keep what it holds. Servers that are not ours say so by the version alone."""
        return self.word == STORED and self.qid.version != 0

    def path(self) -> list[str]:
        """The names that lead here from the root."""
        out: list[str] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            out.append(node.name)
            node = node.parent
        out.reverse()
        return out


class Nodes:
    """All nodes of one mount."""

    def __init__(self) -> None:
        self.root = Node(ROOT, None, "", Qid(0x80, 0, 0), S.S_IFDIR | 0o755, STORED)
        self.root.lookups = 1
        self.by_id: dict[int, Node] = {ROOT: self.root}
        self._by_key: dict[Key, Node] = {}
        self._by_name: dict[tuple[int, str], Node] = {}
        self._next = ROOT + 1

    def __len__(self) -> int:
        return len(self.by_id)

    def child(self, parent: Node, name: str) -> Node | None:
        """What is known to stand there."""
        return self._by_name.get((parent.id, name))

    def entered(self, parent: Node, name: str, qid: Qid, mode: int, word: int) -> Node:
        """The node that was found at a name. It is not counted yet."""
        kind = S.S_IFMT(mode)
        if word == STORED and qid.version and kind != S.S_IFDIR:
            key: Key = (qid.path, kind)
        elif qid.version:
            key = (parent.id, name, kind, qid.path)
        else:
            key = (parent.id, name, kind, word)
        node = self._by_key.get(key)
        if node is None:
            node = Node(self._next, parent, name, qid, mode, word)
            self._next += 1
            node.key = key
            self._by_key[key] = self.by_id[node.id] = node
        node.qid, node.mode = qid, mode
        self._call(node, parent, name)
        return node

    def _call(self, node: Node, parent: Node, name: str) -> None:
        """NODE has this name, and nothing else has."""
        place = (parent.id, name)
        before = self._by_name.get(place)
        if before is not node:
            if before is not None:
                before.names.remove(place)
            self._by_name[place] = node
            node.names.append(place)
            if len(node.names) > _NAMES:
                del self._by_name[node.names.pop(0)]
        node.parent, node.name = parent, name

    def renamed(self, parent: Node, name: str, newparent: Node, newname: str) -> None:
        """A name moved; what stood at the new one is gone from there."""
        self.removed(newparent, newname)
        node = self.child(parent, name)
        if node is not None:
            placed = node.key[2:]
            self.removed(parent, name)
            if placed:
                self._by_key.pop(node.key, None)
                node.key = (newparent.id, newname, *placed)
                self._by_key[node.key] = node
            self._call(node, newparent, newname)

    def removed(self, parent: Node, name: str) -> Node | None:
        """A name is gone; its node lives on while the kernel knows it."""
        place = (parent.id, name)
        node = self._by_name.pop(place, None)
        if node is None:
            return None
        node.names.remove(place)
        if len(node.key) > 2:
            # Something new may stand there before the kernel forgets this.
            self._by_key.pop(node.key, None)
            node.key = (node.id, "", "gone")
            self._by_key[node.key] = node
        if node.names:
            above, node.name = node.names[-1]
            node.parent = self.by_id.get(above, node.parent)
        return node

    def forget(self, number: int, count: int) -> Node | None:
        """The kernel drops COUNT lookups; returns the node if that was the last of it."""
        node = self.by_id.get(number)
        if node is None or node is self.root:
            return None
        node.lookups -= count
        if node.lookups > 0:
            return None
        del self.by_id[number]
        self._by_key.pop(node.key, None)
        for place in node.names:
            self._by_name.pop(place, None)
        node.names.clear()
        return node


class Kept:
    """The fids that nodes keep on one line, oldest first."""

    def __init__(self, limit: int = FIDS) -> None:
        self.limit = limit
        self._nodes: dict[int, Node] = {}

    def keep(self, node: Node, line: object, fid: int) -> Node | None:
        """NODE holds FID from now on; returns another that must let go of its own."""
        node.fid, node.line = fid, line
        self._nodes[node.id] = node
        if len(self._nodes) <= self.limit:
            return None
        oldest = next(iter(self._nodes.values()))
        del self._nodes[oldest.id]
        return oldest

    def drop(self, node: Node) -> None:
        """NODE holds no fid any more."""
        self._nodes.pop(node.id, None)
        node.fid, node.line = NOFID, None

    def clear(self) -> None:
        """The connection is gone, and all fids with it."""
        for node in self._nodes.values():
            node.fid, node.line = NOFID, None
        self._nodes.clear()
