"""Trees put together by a user, served for that user alone.

    async with composed(space, identity=me) as address:      a namespace, as one tree of this process
    async with imported("tls!hub!5640", identity=me) as address:     one tree from elsewhere
    async with elsewhere("tls!hub!5640", identity=me) as root:       the same, for an export of one's own
    await unanswered(addresses)                              where nobody answers, and why

What is served is on a unix socket, by default in a new directory that only its owner enters, and is for
`local`: processes of the same user. To the trees behind it goes everything as that user, with IDENTITY where
an address is `tls!`. So whoever may use the socket may do what the user may, and nobody else may use it.

A namespace reaches its trees as a role does (see `reach`): dialled when they are used, and again when they
were lost. One tree is passed on as it is, over one connection that all share; when that is lost it is
dialled for AWAY seconds before a request is told that nobody answers. What such a tree has in /dev/errstr is
the newest error of any who share it. Either way the socket stays, and what is on it is back when the servers
are.

Identities are read again when their files change. What the block raises comes in a group, as of a nursery.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakSet

import trio
from warren.auth.identity import Identity
from warren.auth.rights import Policy
from warren.mount import Files, dial
from warren.mount.link import Op
from warren.namespaces import Space
from warren.namespaces.export import Cell, SpaceRoot
from warren.namespaces.far import FarNode
from warren.namespaces.reached import FarTree, Placed, Ways
from warren.namespaces.readonly import ReadOnly
from warren.roles.built import WallClock
from warren.roles.guard import Guard
from warren.roles.reach import Reach, Way
from warren.serve.export import Export
from warren.serve.listen import BadAddress, listening
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Caller, Node, Refused
from warren.tree.node import QTDIR

ANYBODY: Final = "role/*/*"
AWAY: Final = 1.0
ANSWER: Final = 10.0
_LOCAL: Final = "local read,write,create,remove,ctl /**"

Tell = Callable[[str], None]


@asynccontextmanager
async def composed(
    space: Space, *, identity: Identity | None = None, expect: str = ANYBODY,
    ways: Mapping[str, Way] | None = None, tell: Tell = lambda said: None,
) -> AsyncIterator[str]:  # fmt: skip
    """Serve SPACE while the block runs; its address. WAYS say what symbols in it are.

    Nothing is dialled before it is used: see `unanswered`.
    """
    reach = Reach(Node(), WallClock(), identity=identity)
    reach.ways.update({address: Way(address, expect) for address in space.addresses() if address[0] != "$"})
    reach.ways.update(ways or {})
    async with trio.open_nursery() as nursery:
        await nursery.start(reach.run)
        async with _for_its_user(SpaceRoot(Cell(space), reach), identity, "", tell) as address:
            yield address
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def imported(
    address: str, *, identity: Identity | None = None, expect: str = ANYBODY, aname: str = "",
    read_only: bool = False, listen: str = "", tell: Tell = lambda said: None,
) -> AsyncIterator[str]:  # fmt: skip
    """Serve the tree at ADDRESS here while the block runs, at LISTEN or a socket of its own; where that is.

    Raises OSError if it is not to be had now, BadAddress for a LISTEN that cannot be.
    """
    where = elsewhere(address, identity=identity, expect=expect, aname=aname, read_only=read_only)
    async with where as root, _for_its_user(root, identity, listen, tell) as here:
        yield here


@asynccontextmanager
async def elsewhere(
    address: str, *, identity: Identity | None = None, expect: str = ANYBODY, aname: str = "",
    read_only: bool = False,
) -> AsyncIterator[Node]:  # fmt: skip
    """The tree at ADDRESS as a root to be exported, reached as ourselves for whoever that export lets in.

    Raises OSError if it is not to be had now.
    """
    async with dial(address, aname, identity=identity, expect=expect) as files:
        yield _Passed(address, _One(files), read_only)


async def unanswered(
    addresses: Iterable[str], *, identity: Identity | None = None, expect: str = ANYBODY
) -> dict[str, OSError]:
    """Those of ADDRESSES where no tree is to be had now, and why. ValueError for what is no address.

    Cancelled leaves no connection.
    """
    found: dict[str, OSError] = {}

    async def ask(address: str, dialled: dial) -> None:
        try:
            async with dialled:
                pass
        except OSError as e:
            found[address] = e

    every = {a: dial(a, identity=identity, expect=expect, deadline=ANSWER) for a in addresses}
    async with trio.open_nursery() as nursery:
        for address, dialled in every.items():
            nursery.start_soon(ask, address, dialled)
    return found


class _Passed(Node):
    """The root of one tree that is elsewhere: all of it as it is, and nothing else."""

    qtype = QTDIR

    def __init__(self, address: str, ways: Ways, read_only: bool) -> None:
        self.address, self.ways, self.read_only = address, ways, read_only
        self.nodes: WeakSet[Placed] = WeakSet()

    def attach(self, caller: Caller) -> Node:
        node = FarNode.at(FarTree(self.address, self.ways, caller, self.nodes), ())
        return ReadOnly(node) if self.read_only else node


class _One:
    """The way to one tree: the same connection for everybody."""

    def __init__(self, files: Files) -> None:
        self.files = files

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        try:
            await self.files.live(Op("/", AWAY))
        except OSError as e:
            raise _away(address, e) from None
        return self.files


def _away(address: str, e: OSError) -> Refused:
    """Why the tree at ADDRESS is not to be had."""
    said = (e.strerror or str(e)).partition(" trace=")[0].removeprefix(f"{address}: ")
    number = errno.EHOSTUNREACH if e.errno in (None, errno.ENOENT, errno.ENOTDIR) else e.errno
    return Refused(504 if isinstance(e, TimeoutError) else 502, f"{address}: {said}", errno=number)


@asynccontextmanager
async def _for_its_user(
    root: Node, identity: Identity | None, listen: str, tell: Tell
) -> AsyncIterator[str]:
    """Serve ROOT to processes of this user while the block runs."""
    export = Export(root, Policy.parse([_LOCAL]), AuditMemory(), TraceRing())
    refused: BadAddress | None = None
    with tempfile.TemporaryDirectory(prefix="warren-") as folder:
        try:
            async with trio.open_nursery() as nursery:
                if identity is not None:
                    await nursery.start(_keep, Guard(identity, tell=tell), export)
                async with listening(export, [listen or f"unix!{Path(folder) / 'sock'}"]) as [address]:
                    yield address
                nursery.cancel_scope.cancel()
        except* BadAddress as group:
            e: BaseException = group
            while isinstance(e, BaseExceptionGroup):
                e = e.exceptions[0]
            assert isinstance(e, BadAddress)
            refused = e
        if refused is not None:
            raise refused


async def _keep(
    guard: Guard, export: Export, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with guard.kept(export):
        task_status.started()
        await trio.sleep_forever()
