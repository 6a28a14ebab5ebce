"""Tokens at the door: Tauth, the proof, and what a session is worth with one.

    Tauth afid            a file of ours is opened
    Tread afid            32 bytes: the nonce, made for this one presentation
    Twrite afid …         the chain, and the signature of its last key over nonce and server (64 bytes)
    Tattach fid afid      verified; from here on the token's grants are the session's, alone

Authority belongs to a connection: it is settled by the first attach, and a later attach cannot bring
another. A session with a token ends when the token does, or when one of its blocks is revoked. Rate
and byte caveats count each operation and the file data it moves; a read is let in while bytes are left
and counted by what it brought.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from warren.auth.blocks import NONCE_BYTES, PROOF_BYTES, Invalid
from warren.auth.meters import Metered, Meters, NoRoom
from warren.auth.rights import NOTHING
from warren.auth.token import Issuer, Limits, Seen, Verified, recheck, verify
from warren.p9.fields import QTAUTH, Qid
from warren.p9.messages import Message, Tattach, Tauth, Tread, Twrite
from warren.serve.fid import Fid, Place
from warren.traces.audit import Event
from warren.tree import Attr, Bytes, Handle, Maybe, Node, Refused

if TYPE_CHECKING:
    from warren.auth.rights import Policy
    from warren.serve.session import Reply, Session

MAX_CHAIN = 4096
MAX_OPEN = 8
_WHY = {"revoked": 401, "expired": 401, "size": 413}


class Verifier:
    """What a server checks tokens with: public keys, its own name, and what is revoked."""

    def __init__(
        self,
        issuers: Mapping[bytes, Issuer],
        server: str,
        *,
        limits: Limits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.issuers = dict(issuers)
        self.server = server
        self.limits = limits or Limits()
        self.now = now
        self.revoked: frozenset[bytes] = frozenset()
        self.meters = Meters()
        self.seen = Seen()

    def first(self, chain: bytes, proof: bytes, nonce: bytes, presenter: str, policy: Policy) -> Verified:
        """A presentation; Invalid says why it counts for nothing."""
        return verify(
            chain, proof, issuers=self.issuers, now=self.now(), nonce=nonce, server=self.server,
            presenter=presenter, revoked=self.revoked, limits=self.limits, policy=policy, seen=self.seen,
        )  # fmt: skip

    def again(self, chain: bytes, presenter: str, policy: Policy) -> Verified:
        """The same token in the same session, after something changed."""
        return recheck(
            chain, issuers=self.issuers, now=self.now(), server=self.server, presenter=presenter,
            revoked=self.revoked, limits=self.limits, policy=policy, seen=self.seen,
        )  # fmt: skip


class Held:
    """The token of a session."""

    def __init__(self, chain: bytes, presenter: str, verified: Verified, metered: Metered) -> None:
        self.chain = chain
        self.presenter = presenter
        self.verified = verified
        self.metered = metered
        self.meters = bool(verified.meters)

    def charge(self, m: Message, now: float) -> None:
        """Count a request; Refused when a caveat says it is too many or too much."""
        size = len(m.data) if isinstance(m, Twrite) else 0
        wait = self.metered.take(now, size)
        if wait == float("inf"):
            raise Refused(429, "the token's bytes are used up", errno=122)
        if wait:
            raise Refused(429, "the token allows no more operations now", retry_after=round(wait, 3))

    def spent(self, m: Message, n: int) -> None:
        """A read brought N bytes."""
        if isinstance(m, Tread):
            self.metered.spend(n)


class _AuthFile(Node):
    """What an afid points at."""

    qtype = QTAUTH

    def attr(self) -> Maybe[Attr]:
        raise Refused(400, "an afid is no file of the tree", errno=9)


class Presentation(Handle):
    """An afid: the nonce out, chain and proof in."""

    def __init__(self) -> None:
        self.nonce = os.urandom(NONCE_BYTES)
        self.said = bytearray()
        self.used = False

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.nonce[offset : offset + count]

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if offset != len(self.said):
            raise Refused(416, f"a presentation is written in order; the next byte is {len(self.said)}")
        if offset + len(data) > MAX_CHAIN + PROOF_BYTES:
            raise Refused(413, f"a token is at most {MAX_CHAIN} bytes, and its proof {PROOF_BYTES}")
        self.said += data
        return len(data)


def tauth(s: Session, m: Tauth) -> Reply:
    s.at = "-"
    if s.export.verifier is None:
        raise Refused(404, "authentication not required")
    s.unused(m.afid)
    if sum(isinstance(f.handle, Presentation) for f in s.fids.values()) >= MAX_OPEN:
        raise Refused(429, f"{MAX_OPEN} afids are open; let one go first", errno=24)
    f = Fid(Place(_AuthFile(), "-", None, "-"), NOTHING, s.export.seq)
    f.handle, f.reads, f.writes = Presentation(), True, True
    s.fids[m.afid] = f
    qid: Qid = f.node.qid()
    return s.pack.Rauth(m.tag, qid)


def present(s: Session, m: Tattach) -> None:
    """Settle the session's authority by the token on the afid, or refuse the attach."""
    f = s.fids.get(m.afid)
    verifier = s.export.verifier
    if verifier is None or f is None or not isinstance(f.handle, Presentation):
        raise Refused(400, "afid was not made by Tauth")
    handle = f.handle
    if handle.used:
        raise Refused(401, "the nonce was used; open another with Tauth", reason="token_proof")
    handle.used = True
    if s.attached:
        raise Refused(409, "this connection's authority is settled: present a token at its first attach")
    chain, proof = bytes(handle.said[:-PROOF_BYTES]), bytes(handle.said[-PROOF_BYTES:])
    try:
        verified = verifier.first(chain, proof, handle.nonce, s.subject, s.export.policy)
        metered = verifier.meters.of(verified.meters, verifier.now())
    except Invalid as e:
        s.export.audit.note(Event(s.number, s.subject, "token", "-", f"token_{e}", m.trace), 401)
        raise refusal(e) from None
    except NoRoom:
        raise Refused(503, "this server counts as many tokens as it can", retry_after=60) from None
    s.hold(Held(chain, s.subject, verified, metered))
    shown = f"block={verified.blocks[-1].hex()} exp={verified.expires}"
    s.export.audit.note(Event(s.number, s.subject, "token", "-", shown, m.trace), 0)


def refusal(e: Invalid) -> Refused:
    """A bad token's reason, for the one who presented it and for the audit."""
    return Refused(401, f"the token counts for nothing: {e.reason}", reason=f"token_{e.reason}")
