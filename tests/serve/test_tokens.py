"""Tauth and afids: the rules of a presentation, in all three dialects; and what a served token is worth.

The machine at the end drives a connection with a model beside it: whatever is attached, narrowed,
delegated, revoked or outlived, in whatever order, no session may do more than its token's root.
"""

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from warren.auth.blocks import parse
from warren.auth.caveats import Caveats
from warren.auth.rights import Policy, parse_grant
from warren.auth.token import Issuer, Token, by_id, mint, narrow
from warren.p9.codec import HEADER, dialect
from warren.p9.fields import NOFID, NONUNAME, NOTAG, QTAUTH
from warren.p9.messages import (
    ALL,
    PLAIN,
    WARREN,
    Message,
    Rattach,
    Rauth,
    Rclunk,
    Rerror,
    Rlerror,
    Rlopen,
    Rread,
    Rwalk,
    Rwrite,
    Tattach,
    Tauth,
    Tclunk,
    Tgetattr,
    Tlopen,
    Topen,
    Tread,
    Tremove,
    Tsetattr,
    Tstat,
    Tstatfs,
    Tversion,
    Twalk,
    Twrite,
    Txattrwalk,
)
from warren.serve.connection import Connection
from warren.serve.export import Export
from warren.serve.pool import Pool
from warren.serve.tokens import MAX_OPEN, Verifier
from warren.servers.demo import Demo
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, File

from tests.wire import RefusedBy, Service, Wire, served

SERVER, ANN = "spiffe://hive/role/Disk/d", "spiffe://hive/user/ann"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def issuer(*rows: str) -> Issuer:
    now = int(time.time())
    return Issuer(
        KEY.public_key().public_bytes_raw(), tuple(map(parse_grant, rows)), now - 86400, now + 86400
    )


def token(*allow: str, **more: Any) -> Token:
    now = int(time.time())
    return mint(KEY, Caveats(**{"allow": allow, "aud": SERVER, "nbf": now, "exp": now + 600, **more}))


@asynccontextmanager
async def door(*allow: str) -> AsyncIterator[Service]:
    async with served(Demo(), allow or ["user/* read,write,create,remove,ctl /**"]) as service:
        service.export.verifier = Verifier(by_id([issuer("read,write,create,remove,ctl /**")]), SERVER)
        yield service


async def connected(service: Service, version: str) -> Wire:
    wire = service.connect(ANN)
    await wire.version(version)
    return wire


async def opened(wire: Wire, afid: int = 9) -> bytes:
    """The nonce of a fresh afid."""
    reply = await wire.want(Rauth, Tauth(afid, "", "", NONUNAME))
    assert reply.aqid.type == QTAUTH
    return await wire.read(afid, 0, 100)


def attach(fid: int = 0, afid: int = 9) -> Tattach:
    return Tattach(fid, afid, "", "", NONUNAME)


async def no(wire: Wire, m: Message, words: str = "") -> None:
    """It is refused, and the connection goes on."""
    reply = await wire.ask(m)
    assert isinstance(reply, Rerror | Rlerror), (m, reply)
    assert words in reply.ename or wire.codec.name != WARREN, reply


@pytest.mark.parametrize("version", ALL)
async def test_a_token_is_shown_and_counts(version: str) -> None:
    async with door() as service:
        wire = await connected(service, version)
        nonce = await opened(wire)
        assert len(nonce) == 32
        assert await wire.read(9, 30, 100) == nonce[30:]
        assert await wire.read(9, 32, 100) == b""
        assert await wire.read(9, 0, 5) == nonce[:5]
        held = token("read /hello")
        said = held.chain + held.prove(nonce, SERVER)
        for at in range(0, len(said), 50):  # in as many writes as one likes
            await wire.write(9, said[at : at + 50], at)
        await wire.want(Rattach, attach())
        await wire.clunk(9)
        await wire.open("hello", 1)
        await no(wire, Twalk(0, 2, ["scratch"]))
        line = next(line for line in cast(AuditMemory, service.export.audit).lines if line.op == "token")
        assert (line.subject, line.code) == (ANN, 0)
        assert parse(held.chain)[0].id.hex() in line.detail
        assert held.chain.hex() not in str(list(cast(AuditMemory, service.export.audit).lines))


@pytest.mark.parametrize("version", ALL)
async def test_writes_come_in_order_and_fit(version: str) -> None:
    async with door() as service:
        wire = await connected(service, version)
        await opened(wire)
        await no(wire, Twrite(9, 5, b"later"), "416")
        assert await wire.write(9, b"12345", 0) == 5
        for at in (0, 4, 6, 1 << 40):
            await no(wire, Twrite(9, at, b"x"), "416")
        assert await wire.write(9, bytes(4096 + 64 - 5), 5) == 4096 + 64 - 5
        await no(wire, Twrite(9, 4096 + 64, b"x"), "413")
        await no(wire, attach(), "token_")
        await opened(wire, 10)
        await no(wire, Twrite(10, 0, bytes(4096 + 65)), "413")


@pytest.mark.parametrize("version", ALL)
async def test_an_afid_is_good_for_one_attach(version: str) -> None:
    async with door() as service:
        wire = await connected(service, version)
        held = token("read /**")
        nonce = await opened(wire)
        await no(wire, attach(), "token_size")  # nothing was written
        await wire.write(9, held.chain + held.prove(nonce, SERVER))
        await no(wire, attach(), "token_proof")  # the nonce is spent, whatever was shown
        nonce = await opened(wire, 10)
        await wire.write(10, held.chain + held.prove(nonce, SERVER))
        await wire.want(Rattach, attach(0, 10))
        await no(wire, attach(1, 10))
        await no(wire, attach(1, 77), "afid was not made by Tauth")
        await no(wire, attach(1, 0), "afid was not made by Tauth")
        await wire.clunk(10)
        await no(wire, attach(1, 10), "afid was not made by Tauth")
        await wire.want(Rattach, attach(1, NOFID))  # a second attach is under the same authority


@pytest.mark.parametrize("version", ALL)
async def test_an_afid_is_a_fid_of_its_own(version: str) -> None:
    async with door() as service:
        wire = await connected(service, version)
        await wire.attach()
        await no(wire, Tauth(0, "", "", NONUNAME))
        first = await opened(wire)
        await no(wire, Tauth(9, "", "", NONUNAME))
        assert await opened(wire, 10) != first
        await wire.clunk(9)
        await no(wire, Tread(9, 0, 32))
        assert await opened(wire) != first
        for afid in range(11, 9 + MAX_OPEN):
            await opened(wire, afid)
        await no(wire, Tauth(50, "", "", NONUNAME), "429")
        await wire.version(version)  # forgets them all
        await no(wire, Tread(9, 0, 32))
        await opened(wire)


@pytest.mark.parametrize("version", ALL)
async def test_an_afid_is_no_file_of_the_tree(version: str) -> None:
    async with door() as service:
        wire = await connected(service, version)
        await wire.attach()
        nonce = await opened(wire)
        for names in ([], ["hello"], ["..", "hello"], ["."]):
            await no(wire, Twalk(9, 20, names))
        await no(wire, Twalk(9, 9, []))
        if version == PLAIN:
            questions: list[Message] = [Topen(9, 0), Tstat(9)]
        else:
            questions = [
                Tlopen(9, 0), Tgetattr(9, 0x7FF), Tsetattr(9, *[0] * 9), Tstatfs(9), Txattrwalk(9, 20, ""),
            ]  # fmt: skip
        for m in questions:
            await no(wire, m)
        service.export.replace(service.export.policy)  # decided anew, an afid is still what it was
        assert await wire.read(9, 0, 100) == nonce
        await wire.write(9, b"x")
        for m in questions:
            await no(wire, m)
        await no(wire, Twalk(9, 20, []))
        await no(wire, Tread(20, 0, 1))
        await wire.ask(Tremove(9))
        assert await wire.read(await _hello(wire), 0, 100) == b"hello, world\n"


async def _hello(wire: Wire) -> int:
    await wire.open("hello", 30)
    return 30


@pytest.mark.parametrize("version", ALL)
async def test_without_a_verifier_there_is_no_tauth(version: str) -> None:
    async with served(Demo(), ["user/* read /**"]) as service:
        wire = await connected(service, version)
        await no(wire, Tauth(9, "", "", NONUNAME), "authentication not required")
        await no(wire, attach(), "afid was not made by Tauth")
        await wire.attach()
        with pytest.raises(RefusedBy):
            await wire.walk("nothing", 1)


# The machine

NAMES = ("a", "b")

MINTED = ("read,write /a/**", "read /b/**", "ctl /ctl")
PROXY, BOB = "spiffe://hive/role/Gate/g", "spiffe://hive/user/bob"
BOBS = "read /a/**"
POLICY = (f"{PROXY} read,write /**", f"{PROXY} delegate /a/**", f"{BOB} {BOBS}")
Can = frozenset[tuple[tuple[str, ...], str]]


def tree() -> Dir:
    """/a/a /a/b /b/a /b/b, files of which each can be read and written."""

    def file() -> File:
        return File(lambda offset, count: b"x"[offset : offset + count], lambda offset, data: len(data))

    return Dir({name: Dir({below: file() for below in NAMES}) for name in NAMES})


def covered(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(covered(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return bool(path) and pattern[0] in ("*", path[0]) and covered(pattern[1:], path[1:])


def allowed(rows: tuple[str, ...]) -> Can:
    """Every (file, right) that the rows give, found by trying."""
    found = set()
    for row in rows:
        rights, where = row.split(" ")
        pattern = tuple(part for part in where.split("/") if part)
        for path in itertools.product(NAMES, repeat=2):
            if covered(pattern, path):
                found |= {(path, right) for right in rights.split(",") if right in ("read", "write")}
    return frozenset(found)


class Line:
    """A connection without a socket, asked one thing at a time."""

    def __init__(self, export: Export, subject: str) -> None:
        self.conn = Connection(export, subject, Pool(1 << 20), self._never, lambda: None)
        self.codec = dialect(PLAIN)
        self.ask(Tversion(65536, WARREN), NOTAG)
        self.codec = dialect(WARREN)

    def _never(self, *_: object) -> None:
        raise AssertionError("nothing in this tree takes its time")

    def ask(self, m: Message, tag: int = 1) -> Message:
        self.conn.consume(memoryview(self.codec.pack(m, tag)))
        data = b"".join(self.conn.half.out)
        self.conn.half.out.clear()
        assert len(data) == HEADER.unpack_from(data)[0]
        return self.codec.parse(data)

    def present(self, shown: Token) -> bool:
        self.ask(Tauth(99, "", "", NONUNAME))
        nonce = self.ask(Tread(99, 0, 32))
        assert isinstance(nonce, Rread)
        said = shown.chain + shown.prove(bytes(nonce.data), SERVER)
        assert isinstance(self.ask(Twrite(99, 0, said)), Rwrite)
        done = isinstance(self.ask(Tattach(0, 99, "", "", NONUNAME)), Rattach)
        assert isinstance(self.ask(Tclunk(99)), Rclunk)
        return done

    def can(self) -> Can:
        """What it gets done, tried on every file."""
        found = set()
        for path in itertools.product(NAMES, repeat=2):
            for right, flags in (("read", 0), ("write", 1)):
                walked = self.ask(Twalk(0, 1, list(path)))
                if not (isinstance(walked, Rwalk) and len(walked.qids) == 2):
                    continue
                if isinstance(self.ask(Tlopen(1, flags)), Rlopen):
                    m: Message = Tread(1, 0, 1) if right == "read" else Twrite(1, 0, b"x")
                    if isinstance(self.ask(m), Rread | Rwrite):
                        found.add((path, right))
                self.ask(Tclunk(1))
        return frozenset(found)


class Shown:
    """A token, what the model says of it, and the sessions that are attached with it."""

    def __init__(self, held: Token, may: Can, exp: int, acting: bool = False) -> None:
        self.token, self.may, self.exp, self.acting = held, may, exp, acting


patterns = st.lists(st.sampled_from(["a", "b", "*", "**"]), max_size=3).map(lambda p: "/" + "/".join(p))
rows = st.builds("{} {}".format, st.sampled_from(["read", "write", "read,write"]), patterns)


class Sessions(RuleBasedStateMachine):
    shown: Bundle[Shown] = Bundle("shown")

    def __init__(self) -> None:
        super().__init__()
        self.base = self.now = int(time.time())
        self.verifier = Verifier(by_id([issuer(*MINTED)]), SERVER, now=lambda: self.now)
        self.export = Export(tree(), Policy.parse(POLICY), AuditMemory(), TraceRing(), verifier=self.verifier)
        self.lines: list[tuple[Line, Shown]] = []
        self.root_may = allowed(MINTED)

    @initialize(target=shown)
    def root(self) -> Shown:
        return Shown(token(*MINTED, to=PROXY, nbf=self.base, exp=self.base + 3600), self.root_may, 3600)

    def add(self, held: Shown, caveats: Caveats, may: Can, exp: int | None = None) -> Shown:
        if len(parse(held.token.chain)) == 8:
            return held
        return Shown(narrow(held.token, caveats), may, held.exp if exp is None else exp, held.acting)

    @rule(target=shown, held=shown, allow=st.lists(rows, min_size=1, max_size=2).map(tuple))
    def narrow_rows(self, held: Shown, allow: tuple[str, ...]) -> Shown:
        return self.add(held, Caveats(allow=allow), held.may & allowed(allow))

    @rule(target=shown, held=shown, ttl=st.integers(1, 7200))
    def narrow_time(self, held: Shown, ttl: int) -> Shown:
        return self.add(held, Caveats(exp=self.base + ttl), held.may, min(held.exp, ttl))

    @rule(target=shown, held=shown, path=st.sampled_from(["/a", "/a/b", "/", "/b"]))
    def delegate(self, held: Shown, path: str) -> Shown:
        if held.acting or len(parse(held.token.chain)) == 8:
            return held
        below = allowed((f"read,write {path.rstrip('/')}/**",)) & allowed((BOBS,))
        made = self.add(
            held, Caveats(for_=BOB, path=path), held.may & below if path.startswith("/a") else frozenset()
        )
        made.acting = True
        return made

    @rule(held=shown)
    def attach(self, held: Shown) -> None:
        line = Line(self.export, PROXY)
        if line.present(held.token):
            self.lines.append((line, held))
        else:
            assert not self.alive(held) or not held.may
        self.lines = self.lines[-5:]

    @rule(held=consumes(shown), number=st.integers(0, 7))
    def revoke(self, held: Shown, number: int) -> None:
        chain = parse(held.token.chain)
        self.verifier.revoked |= {chain[max(number, 1) % len(chain)].id}
        self.export.redecide()

    @rule(seconds=st.integers(1, 1800))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.export.redecide()

    @rule()
    def trust_and_policy_come_and_go(self) -> None:
        """Another policy that says the same: everything is decided again, and nothing is different."""
        self.export.replace(Policy.parse(POLICY))

    def alive(self, held: Shown) -> bool:
        ids = {block.id for block in parse(held.token.chain)}
        return self.now < self.base + held.exp and not ids & self.verifier.revoked

    @invariant()
    def sessions_do_what_the_model_says(self) -> None:
        for line, held in self.lines:
            if line.conn.session.ended:
                assert not self.alive(held)
                continue
            assert self.alive(held)
            can = line.can()
            assert can == held.may
            assert can <= self.root_may


Sessions.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestNoSessionExceedsItsRoot = Sessions.TestCase
