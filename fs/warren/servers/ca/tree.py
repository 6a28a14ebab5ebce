"""The tree of /mesh/ca, as the package draws it."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

import trio
from warren.auth import spiffe
from warren.auth.blocks import BadText
from warren.auth.ca import CA, LONGEST, SHORTEST, TTL
from warren.auth.certificates import PublicKey, Unfit, key_id, pem, read_request, utc_now
from warren.auth.join import LONGEST as LARGEST
from warren.auth.join import Ticket, fingerprint, key_digest, read_ticket
from warren.auth.refusal import Refusal
from warren.auth.register import Issued
from warren.servers.ca.tokens import Say, Tokens
from warren.store import NotFound, Store
from warren.tree import (
    Bytes,
    Caller,
    Ctl,
    Dir,
    Duration,
    File,
    Handle,
    Maybe,
    Node,
    Refused,
    Sink,
    Text,
    verb,
)

T = TypeVar("T")

JOINING: Final = ("any read,write /csr", "any read /bundle")  # the rows that fit `joining`
LIVE: Final = 16  # certificates of one name that may live at once
TOKEN_TTL: Final = Duration(600)
TOKEN_LONGEST: Final = 86400


def _nowhere(kind: str, **values: object) -> None:
    pass


class Ca(Dir):
    """The tree of the CA in a directory. QUEEN is who a joiner must find when it dials."""

    def __init__(
        self, directory: str | os.PathLike[str], store: Store, *, queen: str = "role/QueenPrimary/*",
        alarm: Say = _nowhere, tell: Say = _nowhere, now: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self.ca = CA(directory)
        self.store, self.queen, self.tell, self.now = store, queen, tell, now
        self.tokens = Tokens(store, alarm, tell, now)
        self._lock = trio.Lock()
        self.bundle = _file(self.ca.bundle)
        super().__init__(
            {
                "csr": Csr(self.renew),
                "bundle": self.bundle,
                "crl": _file(self.ca.crl),
                "status": Text(self.status),
                "issued": IssuedDir(self),
                "ctl": CaCtl(self),
            }
        )

    async def do(self, work: Callable[[], T]) -> T:
        """Work of the CA, which waits for the disk: one at a time, and not in the loop.

        Cancelled: it was not begun, or it was done.
        """
        async with self._lock:
            try:
                return await trio.to_thread.run_sync(work)
            except Refusal as e:
                raise Refused(400, str(e)) from None

    async def signed(self) -> list[Issued]:
        """All certificates, as the register has them now. Cancelled has no effect."""
        return await self.do(self.ca.certificates)

    async def renew(self, data: bytes, caller: Caller) -> str:
        """Another certificate for the name the caller has proved. Cancelled: it was made or not."""
        uri = caller.subject
        try:
            name = spiffe.parse(uri)
        except Refusal:
            raise Refused(403, "only who shows a certificate can renew one; see warren help join") from None
        if name.domain != self.ca.domain:
            raise Refused(403, f"the names of {name.domain} are given by its own authority")
        key = _key(data)
        chain = await self._issue(uri, key, partial(self._see_member, uri))
        self.tell("certificate_renewed", uri=uri)
        return chain

    async def join(self, data: bytes, caller: Caller) -> str:
        """A first certificate, for a join token.

        Cancelled: the token is taken or not; the key that came may come again.
        """
        text, mark, rest = data.partition(b"-----BEGIN")
        try:
            ticket = read_ticket(text.decode("ascii"))
        except (BadText, UnicodeDecodeError):
            raise Refused(400, "write the join token, then a signing request in PEM, in one write") from None
        await self.tokens.find(ticket)  # before any arithmetic: a stranger is to cost little
        key = _key(mark + rest)
        digest = key_digest(key)
        await self.tokens.find(ticket, digest)
        free = partial(self._see_free, ticket.uri, key)
        try:
            await self.do(free)  # a name that is taken is no reason to spend the token
        except Refused:
            await self.tokens.find(ticket, digest)  # unless it was taken with this token, just now
            raise
        known, revision = await self.tokens.take(ticket, digest)
        if not known.chain:
            chain = await self._issue(ticket.uri, key, free)
            await self.tokens.answered(ticket, known, revision, chain)
            self.tell("join_certified", uri=ticket.uri, by=known.by)
        return known.chain

    async def invite(self, uri: str, seconds: float, by: str) -> str:
        """The text of a token for whoever is to be URI. Cancelled: there is one that nobody has, or none."""
        if not 1 <= seconds <= TOKEN_LONGEST:
            raise Refused(400, f"a join token lives from 1s to {TOKEN_LONGEST // 3600}h")
        await self.do(partial(self._see_free, uri, None))
        ends = int(self.now().timestamp() + seconds)
        ticket = Ticket.make(self.ca.root, uri, self.queen, ends)
        await self.tokens.add(ticket, by)
        return ticket.write()

    async def _issue(self, uri: str, key: PublicKey, see: Callable[[], None]) -> str:
        ttl, now = await self.ttl(), self.now()

        def work() -> str:
            see()
            return pem(*self.ca.certify(key, uri, ttl, now)).decode()

        return await self.do(work)

    def _live(self, uri: str) -> list[Issued]:
        now = self.now()
        return [c for c in self.ca.certificates() if c.kind == "leaf" and c.name == uri and c.live(now)]

    def _see_member(self, uri: str) -> None:
        live = self._live(uri)
        if not live:
            raise Refused(403, f"no certificate of {uri} is in force: join again")
        if len(live) >= LIVE:
            wait = min(c.not_after for c in live) - self.now()
            raise Refused(429, f"{LIVE} certificates of {uri} are in force", retry_after=wait.total_seconds())

    def _see_free(self, uri: str, key: PublicKey | None) -> None:
        """Refuse a name that another key has."""
        ours = key_id(key) if key else ""
        if any(c.key != ours for c in self._live(uri)):
            raise Refused(409, f"the name {uri} is taken: choose another, or revoke its certificate first")

    async def ttl(self) -> timedelta:
        """How long certificates live that are made from now on. Cancelled has no effect."""
        try:
            return timedelta(seconds=float((await self.tokens.kept(self.store.get("ca/ttl"))).value))
        except NotFound:
            return TTL

    async def set_ttl(self, seconds: float) -> None:
        """Cancelled: it was set or not."""
        await self.tokens.kept(self.store.put("ca/ttl", f"{seconds:.3f}".encode()))

    async def status(self) -> str:
        """Counts of members' certificates. Cancelled has no effect."""
        now = self.now()
        signed = [c for c in await self.signed() if c.kind == "leaf"]
        live = [c.not_after for c in signed if c.live(now)]
        values = {
            "issued": len(signed),
            "active": len(live),
            "revoked": sum(c.revoked is not None for c in signed),
            "invited": await self.tokens.outstanding(),
            "ttl": f"{(await self.ttl()).total_seconds():.0f}s",
            "next_expiry": _utc(min(live)) if live else "none",
            "root_sha256": fingerprint(self.ca.root),
        }
        return _lines(values)


def joining(ca: Ca) -> Dir:
    """The tree for those who have no certificate yet; its export has the rows of JOINING."""
    return Dir({"csr": Csr(ca.join), "bundle": ca.bundle})


class Csr(Sink):
    """One write is a request; what is read afterwards is the chain."""

    mode = 0o600

    def __init__(self, answer: Callable[[bytes, Caller], Awaitable[str]]) -> None:
        super().__init__(lambda data: None)
        self.answer = answer

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return CsrHandle(self.answer, caller)


class CsrHandle(Handle):
    record = True
    tells = True

    def __init__(self, answer: Callable[[bytes, Caller], Awaitable[str]], caller: Caller) -> None:
        self.answer, self.caller = answer, caller
        self.asked = False
        self.chain = b""

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if len(data) > LARGEST:
            raise Refused(413, f"a signing request is at most {LARGEST} bytes, the join token included")
        if self.asked:
            raise Refused(409, "one request an opening: open csr again for another")
        self.asked = True
        return self._ask(bytes(data))

    async def _ask(self, data: bytes) -> int:
        self.chain = (await self.answer(data, self.caller)).encode()
        return len(data)

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.chain[offset : offset + count]


class IssuedDir(Dir):
    """Every certificate by its serial, in hexadecimal."""

    def __init__(self, ca: Ca) -> None:
        super().__init__()
        self.ca = ca
        self.nodes: dict[int, Text] = {}

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self._named(name) or self._look_again(name)

    async def _look_again(self, name: str) -> Node | None:
        """Others sign too: the register is read again before a name is said to be absent."""
        await self.ca.signed()
        return self._named(name)

    def _named(self, name: str) -> Node | None:
        if not re.fullmatch("[1-9a-f][0-9a-f]{0,63}", name):
            return None
        c = self.ca.ca.register.certificates.get(int(name, 16))
        return self._node(c) if c else None

    async def list(self) -> Iterable[tuple[str, Node]]:
        return [(f"{c.serial:x}", self._node(c)) for c in await self.ca.signed()]

    def _node(self, c: Issued) -> Text:
        if c.serial not in self.nodes:
            self.nodes[c.serial] = Text(partial(self._says, c.serial))
        return self.nodes[c.serial]

    async def _says(self, serial: int) -> str:
        [c] = [c for c in await self.ca.signed() if c.serial == serial]
        over = "active" if c.not_after > self.ca.now() else "expired"
        values = {
            "serial": f"{c.serial:x}", "kind": c.kind, "name": c.name, "issuer": c.issuer, "key": c.key,
            "not_before": _utc(c.not_before), "not_after": _utc(c.not_after),
            "state": "revoked" if c.revoked else over,
        }  # fmt: skip
        if c.revoked:
            values |= {"revoked": _utc(c.revoked.at), "reason": c.revoked.reason}
        return _lines(values)


class CaCtl(Ctl):
    """What an operator does here."""

    def __init__(self, ca: Ca) -> None:
        self.ca = ca

    @verb
    async def invite(self, caller: Caller, *, role: str, name: str, ttl: Duration = TOKEN_TTL) -> str:
        """Answer a join token: whoever has it may be NAME in ROLE. It is a secret, and good once."""
        try:
            uri = str(spiffe.parse(f"{spiffe.SCHEME}{self.ca.ca.domain}/role/{role}/{name}"))
        except Refusal as e:
            raise Refused(400, str(e)) from None
        return await self.ca.invite(uri, ttl, caller.subject)

    @verb
    async def revoke(self, serial: str, reason: str = "unspecified") -> str:
        """Revoke the certificate with this SERIAL, in hexadecimal; those who watch /cap hear of it."""
        try:
            number = int(serial, 16)
        except ValueError:
            raise Refused(400, f"{serial!r} is no serial; list the directory issued") from None
        fresh = await self.ca.do(partial(self.ca.ca.revoke, number, reason, self.ca.now()))
        self.ca.tell("revoked", serial=f"{number:x}", reason=reason)
        return f"{number:x} is revoked" if fresh else f"{number:x} was revoked before"

    @verb
    async def rotate(self) -> str:
        """Make a new issuer; certificates of the old one count until they end."""
        made = await self.ca.do(partial(self.ca.ca.rotate, self.ca.now()))
        self.ca.tell("rotated", serial=f"{made.serial_number:x}")
        return f"the issuer is {made.serial_number:x} until {_utc(made.not_valid_after_utc)}"

    @verb
    async def ttl(self, time: Duration) -> None:
        """How long certificates live that are made from now on, such as 24h or 7d."""
        if not SHORTEST.total_seconds() <= time <= LONGEST.total_seconds():
            raise Refused(400, "a certificate lives from 1s to 90d")
        await self.ca.set_ttl(time)


def _key(request: bytes) -> PublicKey:
    try:
        return read_request(request)[0]
    except Unfit as e:
        raise Refused(400, str(e)) from None


def _file(content: Callable[[], bytes]) -> File:
    return File(lambda offset, count: content()[offset : offset + count], size=lambda: len(content()))


def _lines(values: dict[str, object] | dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
