"""What a server may need of the world outside its tree.

A server imports no transport, no client and no other server. It takes what it needs as one of these
small protocols; the composition root hands in the real thing, a test hands in another that passes the
same suite. If something is missing here, first ask whether a file would do: a server that wants to log
writes to `/log` like anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

if TYPE_CHECKING:
    from warren.tree.node import Caller, Node


class Clock(Protocol):
    """Time as a server may know it; tests move it by hand."""

    def now(self) -> float:
        """Seconds since the epoch, for what people read."""

    def monotonic(self) -> float:
        """Seconds that never go back, for leases and deadlines."""

    async def sleep_until(self, deadline: float) -> None:
        """Return at that monotonic time. Cancelled leaves nothing behind."""


class Files(Protocol):
    """Other trees, by path. A deadline applies to every call; OSError carries the server's words."""

    async def read(self, path: str) -> bytes:
        """A whole file. Cancelled has no effect on the server."""

    async def write(self, path: str, data: bytes) -> int:
        """One write, truncating what can be truncated. Cancelled: it was not done, or the flush lost the
        race and it was."""

    async def remove(self, path: str) -> None:
        """Remove a name."""

    async def mkdir(self, path: str, mode: int = 0o777) -> None:
        """Make a directory."""


class Dial(Protocol):
    """Reach another tree by address."""

    def __call__(self, address: str, aname: str = "") -> AbstractAsyncContextManager[Files]:
        """Connected and attached while the block runs."""


class Attach(Protocol):
    """A byte channel onto this role's own export, for whoever cannot dial: a machine, a child process."""

    async def __call__(self, channel: trio.abc.Stream, subject: str) -> None:
        """Serve the channel until it closes. Cancelled lets go of everything it had."""


class Share(NamedTuple):
    """A path of this role that a machine's guest may use, on the authority of whoever shared it."""

    path: str  # absolute, spelt plainly; the guest finds it at the same path
    rights: tuple[str, ...]  # of read write create remove ctl
    owner: Caller  # nothing is allowed that the owner could not do now


class Guests(Protocol):
    """What a role gives the machines it runs: a tree on a channel, and a place for the tree they serve."""

    async def serve(
        self, channel: trio.abc.Stream, subject: str, own: Node, shares: Sequence[Share] = ()
    ) -> None:
        """Serve a guest its OWN tree with SHARES beside it, until the channel closes. It is SUBJECT, whatever
        it says of itself, and has all rights in its own tree. Cancelled lets go of everything it had."""

    async def take(
        self, channel: trio.abc.Stream, name: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Keep the tree that a guest serves on this channel at `/n/NAME`, until the channel closes; started
        once it is there. The role reaches it as itself. Raises Refused if another is there by that name."""


class Authority(Protocol):
    """Decisions about others, for servers that act on behalf of a caller."""

    def may(self, subject: str, right: str, path: str) -> bool:
        """Whether SUBJECT holds RIGHT at PATH, by the policy in force now."""


class Conversation(NamedTuple):
    """One session, as it is now."""

    number: int
    subject: str
    state: str  # attached, greeted (no attach yet), new (no version yet) or ended
    dialect: str  # - before the version exchange
    fids: int
    operations: int
    sent: int  # bytes of replies
    written: int  # bytes of file data taken
    outstanding: int  # requests without a reply
    parked: int  # of those, the ones that wait for an event


class Pressure(NamedTuple):
    """How often work was turned away since the start, by who could change it."""

    busy: int = 0  # too much at once: the same may succeed later
    quota: int = 0  # no room, or a token's bytes are used up
    cut: int = 0  # connections that we ended
    policy: int = 0  # not allowed


class Sessions(Protocol):
    """Who is attached and what they asked, for trees that show it."""

    def conversations(self) -> Iterable[Conversation]:
        """Every session there is, in order of their numbers."""

    def conversation(self, number: int) -> Conversation | None:
        """The session with that number."""

    def pressure(self) -> Pressure:
        """What was refused."""

    def statistics(self) -> Mapping[str, int]:
        """Counts by name: sessions, fids, parked, outstanding, operations, errors, flushed."""


class Lifecycle(Protocol):
    """The role's own state."""

    @property
    def state(self) -> str:
        """BOOTING, DEGRADED, ONLINE, DRAINING, QUIESCED or OFFLINE."""

    async def changed(self) -> str:
        """The next state, once there is one. Cancelled has no effect."""
