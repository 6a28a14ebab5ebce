"""The only door to a tree.

    export = Export(root, policy, audit, trace)

Whatever brings requests (a TLS listener, a unix socket, FUSE, a machine's channel, a client in this
process) attaches to an Export; there is no second path to the nodes. All four arguments are
required, the default is deny, and nothing here can be switched off. A request takes this way:

    path (ours) -> ctl write parsed to calls -> decide(subject, path#verb) -> audit intent -> node -> outcome

Policy changes by `replace`: its number moves on, and every fid is decided anew at its next use.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import EDQUOT
from typing import TYPE_CHECKING

from warren.auth.rights import Grants, Policy
from warren.serve.errstr import with_errstr
from warren.traces.audit import Audit, Event
from warren.traces.denial import Denial, denial
from warren.traces.ring import Entry, TraceRing
from warren.tree import Node
from warren.tree.ports import Conversation, Pressure

if TYPE_CHECKING:
    from warren.auth.watch import Freshness
    from warren.serve.fid import Place
    from warren.serve.session import Session
    from warren.serve.tokens import Verifier


@dataclass(frozen=True)
class Limits:
    """What one export gives, and to how many. Beyond a limit the answer is 429, never silence."""

    connections: int = 4096
    fids: int = 16384  # a connection
    running: int = 32  # requests of a connection that are being worked on
    waiting: int = 128  # and that wait for one of those to end
    parked: int = 256  # reads and locks of a connection that wait for an event
    unread: int = 4 << 20  # bytes of replies a connection may leave unread before it is not served
    buffers: int = 256 << 20  # bytes for large frames that are arriving, all connections together
    patience: float = 30.0  # seconds a frame may take to arrive, or replies may lie unread


class Export:
    """A tree, who may use it, and the record of what they did."""

    def __init__(
        self,
        root: Node,
        policy: Policy,
        audit: Audit,
        trace: TraceRing,
        limits: Limits | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.root = with_errstr(root)
        self.policy = policy
        self.audit = audit
        self.trace = trace
        self.limits = limits or Limits()
        self.verifier = verifier  # without one no token is asked for, and none counts
        self.freshness: Freshness | None = None  # set where the authority is watched
        self.admit: Callable[[str, str], None] = lambda op, path: None  # a role that drains refuses here
        self.denied: Callable[[Denial], None] = lambda denial: None  # a log of denials; must not raise
        self.shown_to_all = False  # to a kernel that judges by modes before it asks: the owner's bits for all
        self.seq = 1  # moves when the policy does
        self.sessions: set[Session] = set()
        self.past = 0  # operations of sessions that are gone
        self.flushed = 0  # requests whose answer was no longer wanted
        self.busy = self.quota = self.cut = self.refused = 0  # see Pressure
        self.started = time.time()
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A number for a new session."""
        return next(self._numbers)

    def grants(self, subject: str) -> Grants:
        return self.policy.grants(subject)

    def replace(self, policy: Policy) -> None:
        """Put another policy in force for everyone, also for what is open and what is parked."""
        self.policy = policy
        self.redecide()

    def redecide(self) -> None:
        """Something that was decided may no longer hold: the policy, an issuer, a token's block."""
        self.seq += 1
        for session in list(self.sessions):
            session.policy_changed()

    def moved(self, by: Session, old: str, new: str, above: Place) -> None:
        """A rename succeeded: fids at or below OLD are now at or below NEW, a name in ABOVE."""
        for session in self.sessions:
            session.moved(old, new, above if session is by else None)

    def new_trace(self) -> int:
        """A trace id for an error whose request brought none."""
        return int.from_bytes(os.urandom(8), "big") or 1

    def failed(
        self, session: Session, op: str, path: str, code: int, text: str, trace: int, errno: int = 0
    ) -> None:
        """Record an error; denials are audited too."""
        self.trace.fail(Entry(time.time(), session.number, op, path, code, trace, text))
        if code in (401, 403):
            shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            self.audit.note(Event(session.number, session.subject, op, shown, "denied", trace), code)
            self.deny(session.subject, op, shown, code, text.partition(":")[0].partition(" ")[2], trace)
        elif op == "connection":
            self.cut += 1
        elif code == 507 or errno == EDQUOT:
            self.quota += 1
        elif code == 429:
            self.busy += 1

    def deny(self, subject: str, op: str, path: str, code: int, reason: str, trace: int) -> None:
        """Count a denial and tell the log of denials."""
        self.refused += 1
        self.denied(denial(subject, op, path, code, reason, trace))

    def refused_connection(self, why: str) -> None:
        """A connection was turned away before it was one."""
        self.busy += 1
        self.trace.fail(Entry(time.time(), 0, "connection", "-", 429, self.new_trace(), why))

    def refused_handshake(self, address: str, reason: str, detail: str) -> None:
        """Somebody did not get as far as a session: audited by the name of the reason."""
        trace = self.new_trace()
        self.trace.fail(Entry(time.time(), 0, "handshake", address, 401, trace, f"{reason}: {detail}"))
        self.audit.note(Event(0, "", "handshake", address, reason, trace), 401)
        self.deny("", "handshake", address, 401, reason, trace)

    def conversations(self) -> list[Conversation]:
        """Every session there is, in order of their numbers."""
        return [s.conversation() for s in sorted(self.sessions, key=lambda s: s.number)]

    def conversation(self, number: int) -> Conversation | None:
        """The session with that number."""
        return next((s.conversation() for s in self.sessions if s.number == number), None)

    def pressure(self) -> Pressure:
        """How often work was turned away."""
        return Pressure(self.busy, self.quota, self.cut, self.refused)

    def statistics(self) -> Mapping[str, int]:
        """Counts for people and for scraping."""
        return {
            "sessions": len(self.sessions),
            "fids": sum(len(s.fids) for s in self.sessions),
            "parked": sum(s.parked for s in self.sessions),
            "outstanding": sum(len(s.half.outstanding) for s in self.sessions),
            "operations": self.past + sum(s.operations for s in self.sessions),
            "errors": self.trace.failed,
            "flushed": self.flushed,
        }
