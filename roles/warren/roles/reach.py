"""Reach: how a role reaches the trees of its namespace, and on whose authority.

    reach = Reach(root, clock, identity=me, inward=inward, mint=mint)
    reach.ways["$queen"] = Way("tls!127.0.0.1!5640", expect="role/QueenPrimary/*")
    reach.ways["$drone-1"] = Way(inward="drone-1")
    await nursery.start(reach.run)
    SpaceRoot(cell, reach)

`$self` is this role's own trees, and what a guest of one of its machines serves is as near (see `guests`).
Whatever else a namespace names is reached for each caller on a connection
of its own, since authority belongs to a connection:

    local, or ourselves     as ourselves: a local caller runs as our user, who can read our key
    a SPIFFE name           by our token with a block `for=<caller> path=<subtree>` (docs/tokens.md): it
                            allows what our token gives and the caller has a right to there, not more
    any                     nobody is passed on who has proved no name

It follows that a role which is tricked does nothing for a caller that the caller could not do. To keep it so,
a caller is refused who is here by a proxy already (a token names one, and the next server trusts us, not
them), one to whom the way leads back, a way over a local socket (its server would take us for its own
user), and a server that asks for no token, for it would take the caller for us.

An address that is written out (`unix!/path`, `tcp!…`), as a post in /srv has it, is anybody's. It never gets
a token and never our identity, and is reached for local callers, and for others as far as POSTS says.

Connections are dialled when first used and kept for IDLE seconds after the last; MOST at once. One that
was lost is dialled again for the next request.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio
from warren.auth.blocks import BadText, Invalid
from warren.auth.caveats import Caveats
from warren.auth.identity import Identity
from warren.auth.token import Token, narrow, read_token
from warren.mount import Files, dial
from warren.mount.address import Channel, connect
from warren.mount.link import Link, Op
from warren.mount.secure import SecureChannel, secured
from warren.roles.inward import Inward
from warren.tree import Caller, Node, Refused, trace_of
from warren.tree.ports import Clock

IDLE: Final = 60.0
LOOK: Final = 15.0
MOST: Final = 64
PATIENCE: Final = 30.0

Mint = Callable[[str], Token]


@dataclass(frozen=True)
class Way:
    """How an address is had: dialled, expecting somebody there; or taken from those who dialled us."""

    address: str = ""
    expect: str = "role/*/*"
    inward: str = ""  # the name of a worker


class Proof:
    """Our token, to be shown to one server. SHOWN says whether it asked for it."""

    def __init__(self, token: Token, server: str) -> None:
        self.token, self.server = token, server
        self.shown = False

    def __call__(self, nonce: bytes) -> bytes:
        self.shown = True
        return self.token.chain + self.token.prove(nonce, self.server)


Key = tuple[str, str, str]


class Line:
    """A connection, from when it is first wanted until it is given up."""

    def __init__(self, way: Way, now: float) -> None:
        self.way = way
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.files: Files | None = None
        self.link: Link | None = None
        self.error: OSError | None = None
        self.used = now

    @property
    def gone(self) -> bool:
        return self.ended.is_set() or (self.link is not None and self.link.lost)

    @property
    def idle(self) -> bool:
        """Whether nothing of it is open or under way."""
        return self.link is not None and self.link.half.fids.in_use <= 1 and not self.link.half.calls


class Reach:
    """The trees of a role's namespace. WAYS says where its symbolic addresses lead, and may change."""

    def __init__(
        self,
        root: Node,
        clock: Clock,
        *,
        identity: Identity | None = None,
        inward: Inward | None = None,
        mint: Mint | None = None,
        posts: Callable[[str, str], bool] = lambda address, subject: subject == "local",
        most: int = MOST,
    ) -> None:
        self.root = root
        self.clock = clock
        self.identity = identity
        self.inward = inward
        self.mint = mint
        self.posts = posts
        self.most = most
        self.ways: dict[str, Way] = {}
        self.guests: dict[str, Node] = {}  # trees that guests of this role's machines serve, by address
        self._lines: dict[Key, Line] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the connections. Cancelled closes them all."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await self.clock.sleep_until(self.clock.monotonic() + LOOK)
                    self._sweep()
        finally:
            self._nursery = None

    def _sweep(self) -> None:
        now = self.clock.monotonic()
        for line in list(self._lines.values()):
            if line.gone or (line.idle and now - line.used >= IDLE):
                line.ended.set()

    # The port

    def local(self, address: str) -> Node | None:
        """The root of a tree of this very process."""
        return self.root if address == "$self" else self.guests.get(address)

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        """A session with the tree at ADDRESS that acts for CALLER, at PATH and below; OSError if there is
        none. Cancelled leaves a connection that the next request finds."""
        way = self._way(address)
        who = self._for(address, way, caller.subject)
        key = (address, who, path if who else "/")
        line = self._lines.get(key)
        if line is None or line.gone or line.way != way:
            line = self._begin(key, way)
        line.used = self.clock.monotonic()
        await line.ready.wait()
        if line.files is None:
            e = line.error or Refused(503, "this role is going down")
            if isinstance(e, Refused):
                raise Refused(e.code, e.detail, errno=e.errno, reason=e.reason, retry_after=e.retry_after)
            raise OSError(e.errno, e.strerror)
        return line.files

    def _way(self, address: str) -> Way:
        way = self.ways.get(address)
        if way is None:
            if address.startswith("$"):
                raise Refused(502, f"{address} is not known here", errno=errno.EHOSTUNREACH)
            way = Way(address)
        return way

    def _for(self, address: str, way: Way, subject: str) -> str:
        """On whose behalf the connection is to be; nobody's but our own if that is empty."""
        if not address.startswith(("$", "tls!")):
            if not self.posts(address, subject):
                raise Refused(403, f"{address} is no tree of the hive, and is reached for local callers only")
            return ""
        if subject == "local" or (self.identity is not None and subject == self.identity.uri):
            return ""
        if not subject.startswith("spiffe://"):
            raise Refused(403, f"{address} is reached for those who proved a name; come with a certificate")
        if " " in subject:
            raise Refused(403, f"{subject.split()[0]} is here by a proxy, and is passed on by one only")
        if way.address.startswith(("unix!", "tcp!")):
            said = f"{address} is reached over a socket that carries no names, so for local callers only"
            raise Refused(403, said)
        return subject

    # Connections

    def _begin(self, key: Key, way: Way) -> Line:
        if self._nursery is None:
            raise Refused(503, "this role reaches no other now; try again when it is online")
        old = self._lines.pop(key, None)
        if old is not None:
            old.ended.set()
        if len(self._lines) >= self.most:
            unused = [k for k, line in self._lines.items() if line.gone or line.idle]
            if not unused:
                raise Refused(429, f"{self.most} connections to others are in use", retry_after=1)
            self._lines.pop(min(unused, key=lambda k: self._lines[k].used)).ended.set()
        line = self._lines[key] = Line(way, self.clock.monotonic())
        self._nursery.start_soon(self._hold, key, line)
        return line

    async def _hold(self, key: Key, line: Line) -> None:
        address, who, path = key
        try:
            with trio.fail_after(PATIENCE):
                channel, proof = await self._channel(address, line.way, who, path)
            async with dial(channel) as files:
                if proof is not None and not proof.shown:
                    said = f"{address} asks for no token, so it would take {who} for us"
                    raise Refused(403, said)
                line.link = await files.live(Op("/", PATIENCE))
                line.files = files
                line.ready.set()
                await line.ended.wait()
        except trio.TooSlowError:
            line.error = Refused(504, f"{address} did not answer in {PATIENCE:g} s")
        except OSError as e:
            line.error = _failed(address, e)
        except (Invalid, BadText, ValueError) as e:
            line.error = Refused(502, f"{address}: {e}")
        finally:
            line.ended.set()
            line.ready.set()
            if self._lines.get(key) is line:
                del self._lines[key]

    async def _channel(self, address: str, way: Way, who: str, path: str) -> tuple[Channel, Proof | None]:
        """Connected, with whom we want; and how our token is shown there, if it must be."""
        token = narrow(self._token(who), Caveats(for_=who, path=path)) if who else None
        if way.inward:
            if self.inward is None:
                raise Refused(502, f"{address}: nobody dials this role", errno=errno.EHOSTUNREACH)
            secure: SecureChannel = await self.inward.take(way.inward)
        elif way.address.startswith("tls!"):
            if self.identity is None:
                raise Refused(403, f"{address}: this role has no identity to show")
            plain = await connect(way.address)
            secure = await secured(plain.socket, self.identity, way.expect)
        else:
            return await connect(way.address), None
        try:
            return secure, self._present(address, secure, who, token)
        except BaseException:
            await secure.aclose()
            raise

    def _present(self, address: str, channel: SecureChannel, who: str, token: Token | None) -> Proof | None:
        assert channel.who is not None
        server = channel.who.uri or ""
        if server == who or (self.identity is not None and server == self.identity.uri):
            raise Refused(409, f"{address} leads back to {server}", errno=errno.ELOOP)
        if token is not None:
            proof = channel.present = Proof(token, server)
            return proof
        if self.identity is not None and self.identity.token is not None:
            channel.present = Proof(self._own(), server)
        return None

    def _token(self, who: str) -> Token:
        """Ours, to be narrowed for WHO."""
        if self.mint is not None:
            return self.mint(who)
        if self.identity is None or self.identity.token is None:
            said = "this role holds no token to act for others; put one into the folder of its identity"
            raise Refused(403, said)
        return self._own()

    def _own(self) -> Token:
        assert self.identity is not None
        assert self.identity.token is not None
        _, token = read_token(self.identity.token.decode("ascii", "replace"))
        if token is None:
            raise Refused(403, "the token of this role has no key: it can only be looked at")
        return token


def _failed(address: str, e: OSError) -> OSError:
    """Why ADDRESS is not to be had: in its server's own words if that said something."""
    if isinstance(e, Refused) or trace_of(e):
        return e
    said = (e.strerror or str(e)).partition(" trace=")[0]
    # A socket that is gone is no missing file: a union would go on to its next member.
    number = errno.EHOSTUNREACH if e.errno in (errno.ENOENT, errno.ENOTDIR) else e.errno
    return Refused(504 if isinstance(e, TimeoutError) else 502, f"{address}: {said}", errno=number)


__all__ = ["Mint", "Reach", "Way"]
