"""One attached conversation: its fids, its subject, and what was decided for it.

The functions that answer requests are in `calls`, `linux` and `plain`; each takes the session and the
message and returns a reply, or an awaitable of one. What they share is here: finding a fid,
deciding rights, writing audit around an effect, and wording an error.
"""

from __future__ import annotations

import inspect
import math
import time
import traceback
from collections.abc import Awaitable, Callable
from errno import EBADF, ENODATA, ENOENT
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from warren.auth.blocks import Invalid
from warren.auth.rights import CTL, READ, WALK, WRITE, Allowed, Grants
from warren.p9.codec import BadValue
from warren.p9.messages import MESSAGES, Message, Twalk, Twrite, Txattrwalk
from warren.serve.fid import Fid, Place
from warren.serve.tokens import Held, Presentation
from warren.traces.audit import Event
from warren.tree import Bytes, Lock, Maybe, Refused, absent, describe, plain_words, trace_of
from warren.tree.ports import Conversation

if TYPE_CHECKING:
    from warren.p9.server import Server
    from warren.serve.export import Export

T = TypeVar("T")
Parts: TypeAlias = list[Bytes]
Frame: TypeAlias = bytes | Parts
Reply: TypeAlias = Frame | Awaitable[Frame]


class Session:
    """A conversation attached to an export as one subject. It is also the tree's `Caller`."""

    def __init__(self, export: Export, subject: str, half: Server) -> None:
        self.export = export
        self.subject = subject
        self.half = half
        self.number = self.session = export.number()
        self.grants = export.grants(subject)
        self.token: Held | None = None
        self.attached = False
        self.expires = math.inf
        self.ended = ""  # why this session may not go on; its connection closes
        self.fids: dict[int, Fid] = {}
        self.at: str = "-"  # the path of the request being answered, for the trace
        self.last_error = ""
        self.operations = 0
        self.sent = 0  # bytes of replies
        self.written = 0  # bytes of file data taken, by fids that are closed
        self.parked = 0
        self.pack: Packers = Packers(half)
        export.sessions.add(self)

    # Fids

    def fid(self, number: int) -> Fid:
        """The fid of that number, with its rights as of now."""
        f = self.fids.get(number)
        if f is None:
            self.at = "-"
            raise Refused(400, f"fid {number} is not in use", errno=9)
        self.at = f.place.path
        if isinstance(f.handle, Presentation):
            raise Refused(400, "an afid is read, written, attached with and let go, and no more", errno=9)
        if f.seq != self.export.seq:
            self.decide(f)
        return f

    def unused(self, number: int) -> None:
        """Refuse a number that is taken, or one more fid than the limit."""
        if number in self.fids:
            raise Refused(400, f"fid {number} is already in use", errno=9)
        if len(self.fids) >= self.export.limits.fids:
            raise Refused(429, f"{len(self.fids)} fids are in use, the limit of a connection", errno=24)

    def decide(self, f: Fid) -> None:
        """Decide a fid's rights anew; one that lost the right to what it has open reads 403."""
        f.allowed = self.grants.at(f.place.path)
        if not f.allowed.mask & WALK:
            raise Refused(403, "this was allowed and is no longer")
        if f.handle is not None:
            may = f.allowed.mask
            need = CTL if f.node.is_ctl else READ * f.reads | WRITE * f.writes
            if need & ~may:
                raise Refused(403, "this was allowed and is no longer")
        f.seq = self.export.seq  # not before: a fid that was refused is decided again at its next use

    def policy_changed(self) -> None:
        """The export's policy is another one: what is parked and no longer allowed ends now."""
        if self.token is None:
            self.grants = self.export.grants(self.subject)
        elif not self._token_still_counts(self.token):
            return
        for f in self.fids.values():
            if f.parked:
                try:
                    self.decide(f)
                except Refused:
                    for parked in list(f.parked):
                        parked.cancel("revoked")
            if isinstance(f.handle, Presentation):
                f.seq = self.export.seq  # nothing about it was decided
            if f.locked and not self.grants.at(f.place.path).mask & WRITE:
                self.unlock(f)

    def hold(self, token: Held) -> None:
        """From here on the token counts, and the policy does not."""
        verified = token.verified
        self.token, self.grants, self.expires = token, verified.grants, float(verified.expires)
        if verified.via is not None:
            self.subject = f"{verified.actor} via={verified.via}"

    def _token_still_counts(self, token: Held) -> bool:
        verifier = self.export.verifier
        try:
            if verifier is None:
                raise Invalid("issuer", "no token counts here any more")
            verified = verifier.again(token.chain, token.presenter, self.export.policy)
        except Invalid as e:
            self.end(f"token_{e.reason}")
            return False
        token.verified, self.grants, self.expires = verified, verified.grants, float(verified.expires)
        return True

    def end(self, why: str) -> None:
        """This session may do nothing any more; whoever drives its connection closes it."""
        if not self.ended:
            trace = self.export.new_trace()
            self.export.audit.note(Event(self.number, self.subject, "token", "-", why, trace), 401)
            self.export.deny(self.subject, "token", "-", 401, why, trace)
        self.ended = self.ended or why
        self.grants = Grants(())
        for f in self.fids.values():
            f.seq = 0
            for parked in list(f.parked or ()):
                parked.cancel("revoked")

    def lapsed(self, now: float) -> str:
        """Why the connection must be closed now, if it must."""
        if now >= self.expires:
            self.end("token_expired")
        return self.ended

    def moved(self, old: str, new: str, above: Place | None) -> None:
        """Paths at or below OLD are now at or below NEW; ABOVE is the new directory if we moved it.

        In another session `..` still leads to the old directory: the new one may lie above what it
        attached to.
        """
        seen: set[int] = set()
        for f in self.fids.values():
            if isinstance(f.handle, Presentation):
                continue
            f.seq = 0  # decided anew at its next use
            place: Place | None = f.place
            while place is not None and id(place) not in seen:
                seen.add(id(place))
                if place.path == old:
                    place.name = new.rsplit("/", 1)[1]
                    place.above = above or place.above
                if place.path == old or place.path.startswith(old + "/"):
                    place.path = new + place.path[len(old) :]
                place = place.above

    # Rights

    def need(self, f: Fid, right: int, what: str) -> None:
        """Refuse unless the fid's path has all of these rights."""
        if right & ~f.allowed.mask:
            raise Refused(403, f"you may not {what} {f.place.path}")

    def at_child(self, directory: Place, name: str, right: int, what: str) -> str:
        """The path of NAME in a directory, if the rights are held there."""
        path = directory.child(name)
        allowed: Allowed = self.grants.at(path)
        if right & ~allowed.mask or not allowed.mask & WALK:
            self.at = path  # what was refused is the child, not the directory that the request names
            hidden = what == "remove" and not allowed.mask & WALK
            raise absent() if hidden else Refused(403, f"you may not {what} {path}")
        return path

    # Effects

    def effect(
        self, op: str, path: str, detail: str, trace: int,
        do: Callable[[], Maybe[T]], finish: Callable[[T], Frame],
    ) -> Reply:  # fmt: skip
        """Record the intent, act, record the outcome, answer. Refused intents have no effect."""
        fresh = self.export.freshness
        if fresh is not None and fresh.strict and fresh.stale:
            raise Refused(503, "revocation=stale: nothing is done until the authority answers", retry_after=5)
        self.export.admit(op, path)
        event = Event(self.number, self.subject, op, legible(path), legible(detail), trace)
        number, wait = self.export.audit.intent(event)
        if wait is not None:
            return self._effect_later(event, number, wait.durable(), do, finish)
        code = 500
        try:
            done = do()
            if inspect.isawaitable(done):
                code = -1
                return self._effect_later(event, number, None, lambda: done, finish)
            reply = finish(done)
            code = 0
            return reply
        except OSError as e:
            code = describe(e)[1]
            raise
        finally:
            if code >= 0:
                self.export.audit.outcome(number, event, code)

    async def _effect_later(
        self, event: Event, number: int, durable: Awaitable[None] | None,
        do: Callable[[], Maybe[T]], finish: Callable[[T], Frame],
    ) -> Frame:  # fmt: skip
        code = 408  # cancelled, unless we come further
        try:
            if durable is not None:
                await durable
            done = do()
            reply = finish(await done if inspect.isawaitable(done) else done)
            code = 0
            return reply
        except OSError as e:
            code = describe(e)[1]
            raise
        except Exception:
            code = 500
            raise
        finally:
            self.export.audit.outcome(number, event, code)

    # Errors

    def refusal(self, m: Message, e: Exception, path: str) -> bytes:
        """The error reply, after it was recorded where one would look for it."""
        trace = (trace_of(e) if isinstance(e, OSError) else 0) or m.trace or self.export.new_trace()
        detail = ""
        if not isinstance(e, OSError):
            wrong = isinstance(e, BadValue)
            detail = f"{type(e).__name__}: {e}" if wrong else "".join(traceback.format_exception(e)).rstrip()
            e = Refused(413, str(e)) if wrong else Refused(500, "")
        errno, code, line = describe(e)
        plain = plain_words(e, f"{line} trace={trace:016x}")
        text = f"{line} trace={trace:016x}"
        # What a shell's own lookups miss must not hide the error one looks for, nor must what was
        # pipelined behind a refused walk and so has no fid.
        if errno != EBADF and not (isinstance(m, Twalk | Txattrwalk) and errno in (ENOENT, ENODATA)):
            self.last_error = text
        self.export.failed(self, type(m).__name__, path, code, detail or line, trace, errno)
        if isinstance(m, Twrite):
            f = self.fids.get(m.fid)
            if f is not None and f.handle is not None and f.handle.tells and f.reads:
                f.told = text.encode("utf-8", "surrogateescape") + b"\n"
        return self.half.refusal(m.tag, errno, text, plain)

    def trace_ok(self, m: Message, path: str) -> None:
        """Record a success that took a task; the batch loop records the others itself."""
        self.export.trace.recent.append((time.time(), self.number, type(m), path, 0))

    # Ending

    def release(self, f: Fid, cause: str = "gone") -> None:
        """The fid is gone without a clunk of its own: the same, but nothing is committed."""
        for parked in list(f.parked or ()):
            parked.cancel(cause)
        f.gone = True
        if f.handle is not None:
            f.handle.abandon()
            self.account(f)
        self.unlock(f)
        if f.place.held is not None:
            f.place.held.release()

    def unlock(self, f: Fid) -> None:
        """Free what was locked through this fid."""
        for owner in f.locked or ():
            f.node.unlock(Lock(False, 0, 0, owner))
        f.locked = None

    def account(self, f: Fid) -> None:
        """One audit record for the data of an open fid, with its byte count."""
        if f.moved and f.place.path != "-":  # the showing of a token is no file's data
            self.export.audit.note(
                Event(self.number, self.subject, "wrote", legible(f.place.path), f"bytes={f.moved}"), 0
            )
            self.written += f.moved
            f.moved = 0

    def reset(self) -> None:
        """Forget every fid, and any token: a new version exchange, or the end of the connection."""
        if self.token is not None:
            self.subject, self.token, self.expires = self.token.presenter, None, math.inf
            self.grants = self.export.grants(self.subject)
        self.attached = False
        fids, self.fids = self.fids, {}
        for f in fids.values():
            if f.on_clunk == "remove":
                self._remove_at_end(f)
            self.release(f)

    def _remove_at_end(self, f: Fid) -> None:
        """Opened with ORCLOSE, and never clunked. The right was decided when it was opened."""
        place, above = f.place, f.place.above
        if above is None:
            return
        event = Event(self.number, self.subject, "remove", legible(place.path), "opened to be removed")
        try:
            number, _ = self.export.audit.intent(event)
        except OSError:
            return  # no effect without evidence
        code = 0
        try:
            done = above.node.unlink(place.name, None, f.node)
            if inspect.iscoroutine(done):
                done.close()  # nobody is left to wait for it
                code = 408
        except OSError as e:
            code = describe(e)[1]
        self.export.audit.outcome(number, event, code)

    def close(self) -> None:
        """The connection is gone."""
        self.reset()
        self.export.sessions.discard(self)
        self.export.past += self.operations
        self.operations = 0

    def conversation(self) -> Conversation:
        """This session as it is now, for whoever looks."""
        dialect = self.half.dialect
        state = "ended" if self.ended else "attached" if self.attached else "greeted" if dialect else "new"
        return Conversation(
            self.number, self.subject, state, dialect.name if dialect else "-", len(self.fids),
            self.operations, self.sent, self.written + sum(f.moved for f in self.fids.values()),
            len(self.half.outstanding), self.parked,
        )  # fmt: skip


def legible(words: str) -> str:
    """For the audit: the bytes of a name that is no UTF-8 are spelled out."""
    if words.isascii():
        return words
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Packers:
    """The packing functions of the current dialect, by message name: `pack.Rclunk(tag)`."""

    def __init__(self, half: Server) -> None:
        self._half = half

    def __getattr__(self, name: str) -> Callable[..., bytes]:
        assert self._half.dialect is not None
        made = self._half.dialect.packer(MESSAGES[name])
        setattr(self, name, made)
        return made
