"""Shares: what a machine's guest may use of this role, and the door through which it does.

    export = GuestExport(role's export, "vm/3", own, [Share("/mailbox", ("read",), Standing(session))])

A guest sees a tree of its own, where it may do everything, and the shares beside, each at the path where the
role has it. Nothing else is there for it.

**In a share it may do what the share names and its owner may do there, now.** Both are asked for each
decision: a policy that changes, a token that runs out or a block that is revoked is in force with the next
request, and ends a read that is parked. What goes on to a tree that is elsewhere goes there for the owner. In
the audit the subject is `vm/<id> for=<owner>`.

An owner who is local and shows no token owns what they shared for as long as the policy says so. Anybody else
is vouched for by their session, with its certificate and its token, and when that ends there is nobody left
to ask: the share is gone then.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from warren.auth.rights import CTL, EVERY, READ, RIGHTS, WALK, Allowed, Grants, Policy
from warren.serve.export import Export, Limits
from warren.serve.fid import Place
from warren.serve.session import Session
from warren.traces.audit import Audit, Event, Recorded
from warren.tree import Dir, Maybe, Node, Refused
from warren.tree.ports import Share

ITS_OWN: Final = frozenset(("dev",))  # names at its root that no share takes, beside those of its own tree
# A guest may be paused for hours, so it has no time to read its replies in; but few are kept for it.
LIMITS: Final = Limits(
    connections=1, fids=4096, running=8, waiting=64, parked=64, unread=1 << 20, buffers=8 << 20,
    patience=math.inf,
)  # fmt: skip
_NONE: Final = Grants(())

Path = tuple[str, ...]
T = TypeVar("T")


class Standing:
    """A caller of an export, and what they may do there now. To trees elsewhere it is the `Caller`."""

    last_error = ""

    def __init__(self, session: Session) -> None:
        self._of, self.token = session, session.token
        self.export = session.export
        self.subject, self.session = session.subject, session.number
        self._lasting = session.subject == "local" and session.token is None

    @property
    def here(self) -> bool:
        """Whether they can still be asked for."""
        s = self._of
        if self._lasting:
            return True
        same = s.subject == self.subject and s.token is self.token
        return s in self.export.sessions and not s.ended and same

    def grants(self) -> Grants:
        """What they may do, by the policy or the token that is in force now."""
        if self._lasting:
            return self.export.grants(self.subject)
        if not self.here or self._of.lapsed(time.time()):
            return _NONE
        return self._of.grants


class Reached:
    """What a guest may do at a path, asked anew each time."""

    def __init__(self, own: Dir, shares: Sequence[Share]) -> None:
        self.names = own.entries
        self.shares = [(names(share.path), _mask(share), standing(share)) for share in shares]

    def own(self, name: str) -> bool:
        """Whether this name at the root is the guest's own."""
        return name in self.names or name in ITS_OWN

    def at(self, path: str) -> Allowed:
        here = names(path)
        if here and self.own(here[0]):
            return Allowed(EVERY | WALK, None)
        mask, verbs = (0 if here else WALK | READ), frozenset[str]()
        all_verbs = False
        for top, given, owner in self.shares:
            if len(top) > len(here) and top[: len(here)] == here:
                mask |= WALK | READ  # it leads there, and shows nothing else
            if here[: len(top)] != top:
                continue
            allowed = owner.grants().at(path)
            mask |= allowed.mask & (given | WALK)
            if allowed.mask & given & CTL:
                all_verbs = all_verbs or allowed.verbs is None
                verbs |= allowed.verbs or frozenset()
        return Allowed(mask, None if all_verbs else verbs)


class _Grants(Grants):
    """The same, in the form that a session asks."""

    def __init__(self, reached: Reached) -> None:
        super().__init__(())
        self.reached = reached

    def at(self, path: str) -> Allowed:
        return self.reached.at(path)


class _Rows(Policy):
    """The policy of one guest's export: it has one subject."""

    def __init__(self, subject: str, reached: Reached) -> None:
        super().__init__()
        self.subject, self.reached = subject, reached

    def grants(self, subject: str) -> Grants:
        return _Grants(self.reached) if subject == self.subject else _NONE


class _Said:
    """The role's audit, with a word on whose behalf a guest acts."""

    def __init__(self, audit: Audit, behalf: Callable[[str], str]) -> None:
        self.audit, self.behalf = audit, behalf

    def _of(self, event: Event) -> Event:
        owner = self.behalf(event.path)
        return event._replace(subject=f"{event.subject} for={owner}") if owner else event

    def intent(self, event: Event) -> Recorded:
        return self.audit.intent(self._of(event))

    def outcome(self, intent: int, event: Event, code: int) -> None:
        self.audit.outcome(intent, self._of(event), code)

    def note(self, event: Event, code: int) -> None:
        self.audit.note(self._of(event), code)


class GuestExport(Export):
    """The door of one guest. Its sessions are among the role's, so a new policy reaches them as it reaches
    all, and a rename moves what they have open."""

    def __init__(self, role: Export, subject: str, own: Dir, shares: Sequence[Share]) -> None:
        self.role = role
        self._own_seq = 0
        self._here: tuple[bool, ...] = ()
        self._owners = [standing(share) for share in shares]
        self.reached = reached = Reached(own, shares)
        audit = _Said(role.audit, self._behalf)
        super().__init__(_Root(role, own, shares), _Rows(subject, reached), audit, role.trace, LIMITS)
        self.sessions = role.sessions
        self.freshness = role.freshness
        self.admit, self.denied = self._admit, role.denied
        self.shown_to_all = True

    @property
    def seq(self) -> int:
        """Moves with the role's, and when an owner is there no longer."""
        here = tuple(owner.here for owner in self._owners)
        if here != self._here:
            self._here = here
            self._own_seq += 1
        return self.role.seq + self._own_seq

    @seq.setter
    def seq(self, value: int) -> None:
        self._own_seq = value

    def number(self) -> int:
        return self.role.number()

    def moved(self, by: Session, old: str, new: str, above: Place) -> None:
        if self._behalf(old):
            super().moved(by, old, new, above)
        else:
            by.moved(old, new, above)  # in its own tree, which no other session has

    def _behalf(self, path: str) -> str:
        here = names(path)
        if not here or self.reached.own(here[0]):
            return ""
        return next((o.subject for top, _, o in self.reached.shares if here[: len(top)] == top), "")

    def _admit(self, op: str, path: str) -> None:
        """A role that drains takes no effects in its trees. What a guest does in its own is its affair."""
        if self._behalf(path):
            self.role.admit(op, path)


class _Way(Dir):
    """A directory that leads to shares, and shows nothing else."""

    def __init__(self, role: Export, at: Path, shares: Sequence[Share]) -> None:
        super().__init__()
        self.role, self.at, self.shares = role, at, shares
        self._ways: dict[str, _Way] = {}

    def lookup(self, name: str) -> Maybe[Node | None]:
        path = (*self.at, name)
        for share in self.shares:
            top = names(share.path)
            if path[: len(top)] == top:
                return _walked(self.role.root.attach(standing(share)), path)
            if top[: len(path)] == path:
                return self._ways.setdefault(name, _Way(self.role, path, self.shares))
        return None

    async def list(self) -> Iterable[tuple[str, Node]]:
        deep = len(self.at)
        tops = [names(share.path) for share in self.shares]
        below = [top[deep] for top in tops if len(top) > deep and top[:deep] == self.at]
        for share in self.shares:
            if not names(share.path):
                root = self.role.root.attach(standing(share))
                handle = await now(root.open(0, standing(share)))
                below += [entry.name for entry in await now(handle.entries())]
        found: dict[str, Node] = {}
        for name in dict.fromkeys(below):
            try:
                node = await now(self.lookup(name))
            except OSError:
                continue  # what cannot be had now is not shown now
            if node is not None:
                found[name] = node
        return found.items()


class _Root(_Way):
    """The root of a guest: its own tree, and the shares beside."""

    def __init__(self, role: Export, own: Dir, shares: Sequence[Share]) -> None:
        super().__init__(role, (), shares)
        self.own, self.entries = own, own.entries

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.own.lookup(name) if name in self.own.entries else super().lookup(name)

    async def list(self) -> Iterable[tuple[str, Node]]:
        own = dict(await now(self.own.list()))
        return [*own.items(), *((n, node) for n, node in await super().list() if n not in own)]


def fitting(shares: Sequence[Share], own: Iterable[str]) -> None:
    """Refuse shares that lie in one another, or on a name that is the guest's own."""
    taken = set(own)
    for i, share in enumerate(shares):
        top = names(share.path)
        if not share.path.startswith("/") or not {".", ".."}.isdisjoint(top) or not share.path.isprintable():
            raise Refused(400, f"{share.path!r} is no path to share; it is absolute and spelt plainly")
        if top and top[0] in taken:
            raise Refused(409, f"/{top[0]} is a guest's own; share something else")
        for other in shares[:i]:
            least = min(len(top), len(names(other.path)))
            if top[:least] == names(other.path)[:least]:
                raise Refused(409, f"{share.path} and {other.path} lie in one another; share one of them")


def names(path: str) -> Path:
    return tuple(name for name in path.split("/") if name)


def standing(share: Share) -> Standing:
    assert isinstance(share.owner, Standing)
    return share.owner


def _mask(share: Share) -> int:
    mask = 0
    for word in share.rights:
        if word not in RIGHTS or word == "delegate":
            raise Refused(400, f"{word!r} is no right of a share; they are read write create remove ctl")
        mask |= RIGHTS[word]
    return mask


def _walked(node: Node, path: Path) -> Maybe[Node]:
    for i, name in enumerate(path):
        found = node.walk(name)
        if not isinstance(found, Node):
            return _walk_on(found, path[i + 1 :])
        node = found
    return node


async def _walk_on(coming: Awaitable[Node], path: Path) -> Node:
    return await now(_walked(await coming, path))


async def now(coming: Maybe[T]) -> T:
    return await coming if inspect.isawaitable(coming) else coming
