"""Guests: what a role gives the machines it runs.

    guests = Guests(export, reach.guests, inforce.post, inforce.withdraw)
    owner = guests.standing(caller)                    whoever shares, with what they may do as it changes
    await guests.serve(channel, "vm/3", own, [Share("/mailbox", ("read",), owner)])
    await guests.take(channel, "vm-3")                 the tree that a guest serves, at /n/vm-3

**A guest is known by the channel its machine gave it**, whatever it says of itself: its subject is `vm/<id>`.
What it may do, in a tree of its own and in what is shared with it, is the affair of `shares`.

**What a guest serves** is reached as this role, so by local callers and by ourselves only: for others we
would lend our own authority. The guest decides what it gives; it is asked as whoever its channel is for.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Final
from weakref import WeakSet

import trio
from warren.mount import Files, dial
from warren.mount.link import Op
from warren.namespaces.far import FarNode
from warren.namespaces.reached import FarTree, Placed
from warren.roles.shares import ITS_OWN, GuestExport, Standing, fitting
from warren.serve.export import Export
from warren.serve.session import Session
from warren.serve.stream import serve_stream
from warren.tree import Caller, Dir, Node, Refused
from warren.tree.node import QTDIR
from warren.tree.ports import Share

LOOK: Final = 0.2  # seconds until a parked read notices that its owner is gone
ANSWER: Final = 30.0  # seconds for a guest that says it is ready to answer


class _Taken(Node):
    """The root of a tree that a guest serves."""

    qtype = QTDIR

    def __init__(self, name: str, lines: Mapping[str, Files], us: str) -> None:
        self.name, self.lines, self.us = name, lines, us
        self.nodes: WeakSet[Placed] = WeakSet()

    def attach(self, caller: Caller) -> Node:
        if caller.subject not in ("local", self.us):
            said = f"{self.name} is the tree of a guest, which knows us alone: it is for local callers"
            raise Refused(403, said)
        return FarNode.at(FarTree(_address(self.name), self, caller, self.nodes), ())

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        # Looked up each time: whoever is attached to us keeps this node, and another guest may have the name.
        files = self.lines.get(self.name)
        if files is None:
            raise Refused(502, f"{self.name} serves nothing now", errno=errno.EHOSTUNREACH)
        return files


class Guests:
    """What `tree.ports.Guests` asks for. TREES is where the role finds trees of this process by address."""

    def __init__(
        self, export: Export, trees: MutableMapping[str, Node], post: Callable[[str, str, str], None],
        withdraw: Callable[[str], None], us: str = "",
    ) -> None:  # fmt: skip
        self.export, self.trees, self.us = export, trees, us
        self.post, self.withdraw = post, withdraw
        self.lines: dict[str, Files] = {}  # by name, of those who serve

    def standing(self, caller: Caller) -> Caller:
        """CALLER as the owner of a share, to be asked for later. Refused (403) for whom we do not know."""
        if isinstance(caller, Standing):
            return caller
        known = isinstance(caller, Session) and getattr(caller.export, "role", caller.export) is self.export
        if not isinstance(caller, Session) or not known:
            raise Refused(403, f"{caller.subject} has no session here, so nobody can say what they may do")
        return Standing(caller)

    async def serve(
        self, channel: trio.abc.Stream, subject: str, own: Node, shares: Sequence[Share] = ()
    ) -> None:
        """Serve a guest until the channel closes. Cancelled lets go of everything it had."""
        if not isinstance(own, Dir):
            raise TypeError("a guest's own tree is a directory of words")
        fitting(shares, (*own.entries, *ITS_OWN))
        shares = [share._replace(owner=self.standing(share.owner)) for share in shares]
        export = GuestExport(self.export, subject, own, shares)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, export)
                await serve_stream(export, channel, subject)
                nursery.cancel_scope.cancel()
        finally:
            self.export.past += export.past
            self.export.flushed += export.flushed

    async def take(
        self, channel: trio.abc.Stream, name: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Keep the guest's tree at /n/NAME until the channel closes. Cancelled withdraws it."""
        address = _address(name)
        if address in self.trees:
            raise Refused(409, f"/n/{name} is taken; give the machine another name")
        async with dial(channel, uname="warren", deadline=ANSWER) as files:
            gone = trio.Event()
            link = await files.live(Op("/", ANSWER))
            link.on_loss = gone.set
            if link.lost or address in self.trees:
                raise Refused(502, f"{name} did not stay")
            self.trees[address] = _Taken(name, self.lines, self.us)
            self.lines[name] = files
            try:
                self.post(name, address, "guest")
                try:
                    task_status.started()
                    await gone.wait()
                finally:
                    self.withdraw(name)
            finally:
                del self.trees[address], self.lines[name]


def _address(name: str) -> str:
    """Of its tree. `$NAME` is the address of a worker by that name, who may come when the guest is there."""
    return f"${name}.guest"


async def _watch(export: GuestExport) -> None:
    """A read that is parked must end when its owner does, though nobody asks anything."""
    seen = export.seq
    while True:
        await trio.sleep(LOOK)
        if export.seq != seen:
            seen = export.seq
            for session in list(export.sessions):
                if session.export is export:
                    session.policy_changed()


