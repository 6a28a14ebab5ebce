"""Reaching the other trees of a namespace, for the caller who asks.

    tree = FarTree("$drone-1", ways, caller)
    await tree.do(names, work)          WORK with a live link, once more if it was lost before any effect

`Ways` is the port: who composes a role says there how an address is reached, and on whose authority. A
session may be lost and be another the next time; it is asked for anew with each request.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Final, Protocol, TypeVar
from weakref import WeakSet

from warren.mount import Files, walk
from warren.mount.link import Link, Op
from warren.mount.walk import Reached
from warren.mount.words import Request
from warren.namespaces.opened import worded
from warren.p9.fields import Qid
from warren.tree import Caller, Refused

T = TypeVar("T")
Path = tuple[str, ...]

MAX_NAMES: Final = 64
MAX_PATH: Final = 4096
_OURS: Final = 1 << 63  # in the path of every qid that is made here: no counter and no inode has it


class Ways(Protocol):
    """How the trees of a namespace are had."""

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        """A session with the tree at ADDRESS that acts for CALLER, at PATH and below; OSError if there is
        none. Cancelled leaves nothing behind that the caller would have to close."""


def number(*words: object) -> int:
    """The path of a qid for what these words name: the same each time, and another for anything else."""
    spelt = "\0".join(str(word) for word in words).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(spelt, digest_size=8).digest(), "little") | _OURS


class Placed(Protocol):
    """What stands somewhere in a tree."""

    tree: FarTree
    names: Path

    def __hash__(self) -> int: ...


class FarTree:
    """One tree for one caller. NODES are all that stand in it or another, for renames."""

    def __init__(
        self, address: str, ways: Ways, caller: Caller, nodes: WeakSet[Placed] | None = None, path: str = "/"
    ) -> None:
        self.address = address
        self.ways = ways
        self.caller = caller
        self.nodes: WeakSet[Placed] = WeakSet() if nodes is None else nodes
        self.path = path

    def qid(self, theirs: Qid) -> Qid:
        """A qid of theirs as one of ours."""
        return Qid(theirs.type, theirs.version, number(self.address, theirs.path))

    async def do(self, names: Path, work: Callable[[Files, Link, Op], Awaitable[T]]) -> T:
        """WORK, with a live link; once more if that was lost before anything was changed."""
        again = True
        while True:
            op = None
            try:
                files = await self.ways.reach(self.address, self.caller, self.path)
                op = Op(spell(names), files.deadline)
                link = await files.live(op)
                return await work(files, link, op)
            except ConnectionError as e:
                if op is not None and op.effect:
                    raise worded(self.address, files.unknown(op, e)) from None
                if op is None or not again:
                    raise worded(self.address, e) from None
                again = False
            except OSError as e:
                raise worded(self.address, e) from None

    def moved(self, old: Path, new: Path) -> None:
        """A rename went through here."""
        for node in list(self.nodes):
            if node.tree.address == self.address and node.names[: len(old)] == old:
                node.names = new + node.names[len(old) :]


def spell(names: Path) -> str:
    return "/" + "/".join(names)


def longer(names: Path, name: str) -> Path:
    """NAMES and one more. Trees that show each other have no end, so paths do."""
    names = (*names, name)
    if len(names) > MAX_NAMES or sum(len(n) + 1 for n in names) > MAX_PATH:
        most = f"{MAX_NAMES} names and {MAX_PATH} characters"
        said = f"{spell(names)[:40]}... is too long a path: {most} are the most"
        raise Refused(413, said, errno=errno.ELOOP)
    return names


async def straight(link: Link, op: Op, names: Path, *then: Request) -> Reached:
    """Walk to a path and send THEN on the fid, which is the caller's. Nothing is followed on the way."""
    found = await walk.straight(link, op, list(names), *then)
    if found is None:
        raise Refused(400, f"{spell(names)} leads through a symbolic link", errno=errno.ENOTDIR)
    return found
