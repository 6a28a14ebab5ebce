"""Tokens that must not count, over real TLS: each is refused by the name of its reason, and leaves nothing.

What the stranger hears is that word; the detail is for the audit alone.
"""

import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth.blocks import REASONS, Invalid, append, encode, parse
from warren.auth.caveats import Caveats
from warren.auth.identity import Identity
from warren.auth.rights import Policy, parse_grant
from warren.auth.token import Token, by_id, mint, narrow
from warren.p9.fields import NONUNAME
from warren.p9.messages import WARREN, Rattach, Rauth, Rread, Rwrite, Tattach, Tauth, Tread, Tversion
from warren.serve.tokens import Verifier
from warren.servers.demo import Demo

from tests.redteam.hives import EVERY, Door, Hive, guarded, mounted, present, until_gone, with_token
from tests.wire import Gone, RefusedBy, Wire

USERS = ("user/* read,write,create,remove,ctl /**",)
ANN = "spiffe://hive.test/user/ann"


class Court(Hive):
    """A hive with two users and two proxies, one of which is trusted."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.ann = self.member("user/ann")
        self.bob = self.member("user/bob")
        self.proxy = self.member("role/Proxy/p")
        self.other = self.member("role/Proxy/other")


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Court:
    return Court(tmp_path_factory.mktemp("court"))


def pairs(token: Token) -> list[tuple[bytes, bytes]]:
    return [(block.body, block.signature) for block in parse(token.chain)]


async def refused(
    door: Door, me: Identity, token: Token, reason: str, server: str | None = None, **how: Any
) -> None:
    """The presentation is refused by this name, to the stranger and in the audit, and gives nothing."""
    assert reason in REASONS
    wire = await door.connect(me, WARREN)
    with pytest.raises(RefusedBy, match=f"token_{reason}") as told:
        await present(wire, token, server or door.gate.identity.uri, **how)
    assert str(told.value).count(":") <= 3
    line = door.lines("token")[-1]
    assert line.detail.startswith(f"token_{reason}")
    assert (line.code, line.subject) == (401, me.uri)
    assert any(f"token_{reason}" in text for text in door.errors())
    with pytest.raises(RefusedBy):
        await wire.walk("hello", 1)  # no fid was made
    await trio.aclose_forcefully(wire.stream)


def forged(token: Token) -> Iterator[bytes]:
    """The chain with every byte altered in turn, each in another way."""
    dice = random.Random(1)
    for at in range(len(token.chain)):
        data = bytearray(token.chain)
        data[at] ^= dice.randrange(1, 256)
        yield bytes(data)


def test_altered_in_every_byte(court: Court) -> None:
    """The proof is the thief's best: made for the altered chain, with the last key."""
    verifier = court.verifier()
    nonce, server = bytes(32), court.server.uri
    token = narrow(court.token(), Caveats(path="/hello", for_=ANN))
    counts = 0
    for chain in forged(token):
        with pytest.raises(Invalid):
            verifier.first(chain, Token(chain, token.key).prove(nonce, server), nonce, ANN, Policy())
        counts += 1
    proof = token.prove(nonce, server)
    for at in range(len(proof)):
        bad = proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :]
        with pytest.raises(Invalid, match="proof"):
            verifier.first(token.chain, bad, nonce, ANN, Policy())
    assert counts == len(token.chain)


async def test_altered_and_respliced(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        ann = court.ann
        one = narrow(court.token("read /hello"), Caveats(allow=("read /hello",)))
        two = narrow(court.token(), Caveats(bytes_=10**6))
        assert await present(await door.connect(ann), one, court.server.uri)
        a, b = pairs(one), pairs(two)
        for at in (0, 1, 5, 40, len(one.chain) // 2, len(one.chain) - 1):
            chain = one.chain[:at] + bytes([one.chain[at] ^ 0x55]) + one.chain[at + 1 :]
            wire = await door.connect(ann, WARREN)
            with pytest.raises(RefusedBy, match="token_"):
                await present(wire, Token(chain, one.key), court.server.uri)
        stolen = Token(encode([a[1], a[0]]), one.key)
        await refused(door, ann, stolen, "link")
        await refused(door, ann, Token(encode([b[0], a[1]]), one.key), "link")
        await refused(door, ann, Token(encode([a[1]]), one.key), "issuer")
        await refused(door, ann, Token(encode([a[0]]), one.key), "proof")  # a block cut off: the key is lost
        wider = [(a[0][0].replace(b"/hello", b"/hella"), a[0][1]), a[1]]
        await refused(door, ann, Token(encode(wider), one.key), "link")
        swapped = [(a[0][0], a[1][1]), (a[1][0], a[0][1])]
        await refused(door, ann, Token(encode(swapped), one.key), "signature")
        mine = mint(Ed25519PrivateKey.generate(), Caveats(allow=("read /**",), aud=court.server.uri,
                    nbf=int(time.time()), exp=int(time.time()) + 60))  # fmt: skip
        await refused(door, ann, mine, "issuer")
        assert not [line for line in door.lines("token") if line.code == 0][1:]


async def test_replayed(court: Court) -> None:
    """A presentation that was overheard whole is worth nothing with another nonce."""
    token = court.token("read /**")
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        wire = await door.connect(court.ann)
        await wire.want(Rauth, Tauth(9, "", "", NONUNAME))
        nonce = bytes((await wire.want(Rread, Tread(9, 0, 32))).data)
        proof = token.prove(nonce, court.server.uri)
        await wire.write(9, token.chain + proof)
        await wire.want(Rattach, Tattach(0, 9, "", "", NONUNAME))
        await refused(door, court.ann, token, "proof", proof=proof)
        await refused(door, court.bob, token, "proof", proof=proof)
        await refused(door, court.ann, token, "proof", server="spiffe://hive.test/role/Evil/e")
        nonces = set()
        for _ in range(50):
            await wire.want(Rauth, Tauth(10, "", "", NONUNAME))
            nonces.add(bytes((await wire.want(Rread, Tread(10, 0, 32))).data))
            await wire.clunk(10)
        assert len(nonces) == 50


async def test_whom_it_is_for_and_where(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        anns = court.token("read /**", to=ANN)
        await refused(door, court.bob, anns, "holder")
        assert await present(await door.connect(court.ann), anns, court.server.uri)
        await refused(door, court.ann, court.token(aud="spiffe://hive.test/role/Disk/*"), "audience")
        await refused(door, court.ann, narrow(anns, Caveats(to="spiffe://hive.test/user/bob")), "holder")
        elsewhere = Caveats(aud="spiffe://hive.test/role/Disk/*")
        await refused(door, court.ann, narrow(anns, elsewhere), "audience")


async def test_too_long_too_many_too_old(court: Court) -> None:
    now = int(time.time())
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        ann = court.ann
        long = Token(bytes(4096), court.token().key)
        await refused(door, ann, long, "encoding")
        wire = await door.connect(ann, WARREN)
        with pytest.raises(RefusedBy, match="413"):
            await present(wire, Token(bytes(4097), long.key), court.server.uri)
        deep = court.token()
        for _ in range(7):
            deep = narrow(deep, Caveats(exp=now + 50))
        assert await present(await door.connect(ann), deep, court.server.uri)
        deeper = encode([*pairs(deep), pairs(deep)[-1]])
        await refused(door, ann, Token(deeper, deep.key), "blocks")
        await refused(door, ann, deep, "size", chain=b"", proof=b"short")
        await refused(door, ann, court.token(nbf=now - 60, exp=now - 1), "expired")
        await refused(door, ann, court.token(nbf=now + 3600, exp=now + 7200), "early")
        await refused(door, ann, court.token(nbf=now - 10, exp=now + 90000), "life")
        await refused(door, ann, narrow(court.token(), Caveats(exp=now - 1)), "expired")


async def test_an_unknown_restriction_refuses(court: Court) -> None:
    """Made by hand, well signed: what a newer Warren may say and this one does not understand."""
    now = int(time.time())
    key = Ed25519PrivateKey.generate()
    said: dict[str, Any] = {"allow": [EVERY], "aud": court.server.uri, "nbf": now, "exp": now + 60}
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        bad = (({"weekday": 3}, "caveat"), ({"exp": "soon"}, "value"), ({"to": "ann"}, "value"))
        for more, reason in bad:
            chain = append((), {**said, **more}, court.minting, key.public_key().public_bytes_raw())
            await refused(door, court.ann, Token(chain, key), reason)
        del said["aud"]
        chain = append((), said, court.minting, key.public_key().public_bytes_raw())
        await refused(door, court.ann, Token(chain, key), "missing")


async def test_a_narrower_token_is_all_there_is(court: Court) -> None:
    """The policy would give everything, and adds nothing: token and rows are never put together."""
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        me = with_token(court.member("user/ann"), court.token("read /hello", "ctl /ctl#say"))
        async with mounted(door, me) as files:
            assert await files.read("/hello") == b"hello, world\n"
            await files.write("/ctl", b"say hi")
            for path, data in (("/hello", b"x"), ("/ctl", b"reset"), ("/scratch", b"x"), ("/send", b"x")):
                with pytest.raises(OSError):
                    await files.write(path, data)
            for path in ("/events", "/scratch"):
                with pytest.raises(OSError):
                    await files.read(path)
        async with mounted(door, court.ann) as files:  # without a token the rows count
            await files.write("/scratch", b"x")


async def test_a_token_does_not_exceed_the_policy_of_nobody(court: Court) -> None:
    """A subject without a row comes in by the token alone, for exactly what it says."""
    async with guarded(court, Demo(), [], verifier=court.verifier()) as door:
        me = with_token(court.member("user/carl"), court.token("read /hello"))
        async with mounted(door, me) as files:
            assert await files.read("/hello") == b"hello, world\n"
            with pytest.raises(OSError):
                await files.read("/scratch")


async def test_what_its_issuer_may_not_mint(court: Court) -> None:
    little = replace(court.issuer, mint=(parse_grant("read /hello"),))
    async with guarded(court, Demo(), USERS, verifier=Verifier(by_id([little]), court.server.uri)) as door:
        await refused(door, court.ann, court.token("read,write /hello"), "mint")
        assert await present(await door.connect(court.ann), court.token("read /hello"), court.server.uri)
        over = replace(little, expires=int(time.time()) - 1)
        assert door.export.verifier is not None
        door.export.verifier.issuers = by_id([over])
        await refused(door, court.ann, court.token("read /hello"), "window")


async def test_authority_is_settled_once(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        wire = await door.connect(court.ann, WARREN)
        await present(wire, court.token("read /hello"), court.server.uri)
        for fid in (1, 2):
            with pytest.raises(RefusedBy, match="409"):
                await present(wire, court.token(), court.server.uri, fid=fid, afid=50 + fid)
            await wire.clunk(50 + fid)
            if fid == 1:
                await wire.clunk(0)  # letting go of everything settles nothing anew
        await wire.attach(3)
        with pytest.raises(RefusedBy):
            await wire.open("scratch", 4)
        plain = await door.dial(court.ann, WARREN)
        with pytest.raises(RefusedBy, match="409"):
            await present(plain, court.token(), court.server.uri, fid=1)
        await plain.version(WARREN)  # a new version exchange is a new beginning
        await present(plain, court.token("read /hello"), court.server.uri)
        with pytest.raises(RefusedBy):
            await plain.open("scratch", 4)


async def test_without_a_verifier_the_rows_count(court: Court) -> None:
    async with guarded(court, Demo(), ["user/ann read /hello"]) as door:
        me = with_token(court.member("user/ann"), court.token())
        async with mounted(door, me) as files:
            assert await files.read("/hello") == b"hello, world\n"
            with pytest.raises(OSError):
                await files.write("/hello", b"x")
        assert door.lines("token") == []


async def test_it_expires_in_mid_session(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        token = court.token(exp=int(time.time()) + 2)
        parked, busy = [await door.connect(court.ann, WARREN) for _ in range(2)]
        for wire in (parked, busy):
            await present(wire, token, court.server.uri)
        await parked.open("events", 1)
        await busy.open("hello", 1)
        assert await busy.read(1) == b"hello, world\n"

        async def read_on(wire: Wire) -> None:
            with trio.fail_after(5):
                try:
                    while "403" not in str(reply := await wire.ask(Tread(1, 0, 10))):
                        assert isinstance(reply, Rread)
                        await trio.sleep(0.02)
                    assert await until_gone(wire) == []
                except Gone:
                    pass

        began = time.time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, parked)
            nursery.start_soon(read_on, busy)
        assert time.time() - began < 4
        assert time.time() >= token_end(token)
        said = [line.detail for line in door.lines("token") if line.code == 401]
        assert said == ["token_expired", "token_expired"]
        assert not door.export.sessions
        await refused(door, court.ann, token, "expired")


def token_end(token: Token) -> int:
    end = parse(token.chain)[0].caveats["exp"]
    assert isinstance(end, int)
    return end


async def test_a_revoked_block_ends_sessions_below_it(court: Court) -> None:
    verifier = court.verifier()
    async with guarded(court, Demo(), USERS, verifier=verifier) as door:
        root = court.token()
        left, right = narrow(root, Caveats(bytes_=10**6)), narrow(root, Caveats(bytes_=10**6))
        lower = narrow(left, Caveats(allow=("read /**",)))
        wires = {}
        for name, token in (("root", root), ("left", left), ("lower", lower), ("right", right)):
            wire = wires[name] = await door.connect(court.ann, WARREN)
            await present(wire, token, court.server.uri)
            await wire.open("events", 1)
            await wire.send(Tread(1, 0, 100), tag=7)
        verifier.revoked = frozenset([parse(left.chain)[1].id])
        door.export.redecide()
        door.gate.recheck()
        for name in ("left", "lower"):
            assert all("403" in str(reply) for reply in await until_gone(wires[name]))
        async with mounted(door, court.bob) as files:
            await files.write("/ctl", b"say still-here")
        for name in ("root", "right"):
            reply = await wires[name].reply()
            assert isinstance(reply, Rread)
        assert [line.detail for line in door.lines("token") if line.code == 401] == ["token_revoked"] * 2
        await refused(door, court.ann, left, "revoked")
        await refused(door, court.ann, lower, "revoked")
        verifier.revoked = frozenset([court.issuer.id])
        door.export.redecide()
        door.gate.recheck()
        for name in ("root", "right"):
            with pytest.raises(Gone):
                await wires[name].reply()
        await refused(door, court.ann, root, "revoked")


async def test_rate_is_shared_by_the_sessions_of_a_token(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        token = court.token("read /**", rate=(1, 12))
        wires = []
        for _ in range(2):
            wires.append(await door.connect(court.ann, WARREN))
            await present(wires[-1], token, court.server.uri)
            await wires[-1].open("hello", 1)  # two of the twelve
        done = 0
        began = time.monotonic()
        while isinstance(reply := await wires[done % 2].ask(Tread(1, 0, 100)), Rread):
            done += 1
        assert re.search(r"429 .*retry_after=[0-9.]+", str(reply))
        assert 8 <= done <= 9 + (time.monotonic() - began)
        wait = float(re.findall(r"retry_after=([0-9.]+)", str(reply))[0])
        assert 0 < wait <= 1
        for wire in wires:
            with pytest.raises(RefusedBy, match="429"):
                await wire.read(1)
        mine = await door.connect(court.ann, WARREN)
        await present(mine, narrow(token, Caveats(exp=int(time.time()) + 50)), court.server.uri)
        with pytest.raises(RefusedBy, match="429"):
            await mine.walk("hello", 1)  # narrowing does not wind it back
        await wires[0].clunk(1)  # letting go is free
        await trio.sleep(wait)
        await wires[1].read(1)
        await door.dial(court.ann)  # and nobody else is held up


async def test_bytes_are_shared_and_run_out(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        token = court.token(bytes_=3000)
        one, two = [await door.connect(court.ann, WARREN) for _ in range(2)]
        for wire in (one, two):
            await present(wire, token, court.server.uri)
            await wire.open("scratch", 1, 2)
        assert await one.write(1, bytes(1000)) == 1000
        assert await two.write(1, bytes(1000)) == 1000
        with pytest.raises(RefusedBy, match="429"):
            await two.write(1, bytes(1001))
        assert len(await one.read(1, 0, 999)) == 999  # one byte is left, to the byte
        assert len(await one.read(1, 0, 1000)) == 1000  # let in while bytes are left
        for wire in (one, two):
            with pytest.raises(RefusedBy, match="429"):
                await wire.read(1, 0, 1)
            with pytest.raises(RefusedBy, match="429"):
                await wire.write(1, b"x")
        again = await door.connect(court.ann, WARREN)
        await present(again, token, court.server.uri)
        with pytest.raises(RefusedBy, match="429"):
            await again.open("scratch", 1)


async def test_bytes_of_a_read_that_waited_are_counted(court: Court) -> None:
    async with guarded(court, Demo(), USERS, verifier=court.verifier()) as door:
        wire = await door.connect(court.ann, WARREN)
        await present(wire, court.token("read /events", bytes_=30), court.server.uri)
        await wire.open("events", 1)
        other = await door.dial(court.bob, WARREN)
        await other.open("ctl", 1, 1)
        await wire.send(Tread(1, 0, 1000), tag=5)
        await other.write(1, b"say something-long-enough-for-thirty")
        reply = await wire.reply()
        assert isinstance(reply, Rread)
        assert len(reply.data) > 30
        with pytest.raises(RefusedBy, match="429"):
            await wire.read(1)


async def test_acting_for_another(court: Court) -> None:
    rows = [
        f"allow {court.proxy.uri} delegate /**",
        "user/ann read,ctl /**",
        "user/bob read /hello",
        "role/Proxy/* read,write,create,remove,ctl /**",
    ]
    async with guarded(court, Demo(), rows, verifier=court.verifier()) as door:
        base = court.token(to="spiffe://hive.test/role/Proxy/*")
        acting = narrow(base, Caveats(for_=ANN, path="/ctl"))
        await refused(door, court.other, acting, "delegate")
        await refused(door, court.ann, acting, "holder")
        wire = await door.connect(court.proxy, WARREN)
        await present(wire, acting, court.server.uri)
        for path in ("hello", "scratch", "events"):
            with pytest.raises(RefusedBy):
                await wire.open(path, 5)
        await wire.open("ctl", 1, 1)
        await wire.write(1, b"say hello")
        [line] = [line for line in door.lines("ctl") if line.kind == "intent"]
        assert line.subject == f"{ANN} via={court.proxy.uri}"
        bobs = narrow(base, Caveats(for_="spiffe://hive.test/user/bob", path="/"))
        wire = await door.connect(court.proxy, WARREN)
        await present(wire, bobs, court.server.uri)
        await wire.open("hello", 1)
        for path in ("ctl", "scratch"):  # the proxy's own rows lend nothing
            with pytest.raises(RefusedBy):
                await wire.open(path, 2)
        door.export.replace(Policy.parse(rows[1:]))  # the trust is withdrawn in mid-session
        door.gate.recheck()
        with pytest.raises(Gone):
            await wire.read(1)
        assert [line.detail for line in door.lines("token")][-1] == "token_delegate"


async def test_the_clock_steps(court: Court) -> None:
    now = [time.time()]
    async with guarded(court, Demo(), USERS, verifier=court.verifier(now=lambda: now[0])) as door:
        began = int(now[0])
        token = court.token(nbf=began, exp=began + 3600)
        wire = await door.connect(court.ann, WARREN)
        await present(wire, token, court.server.uri)
        now[0] = began - 50.0  # a clock that is a little behind forgives
        assert await present(await door.connect(court.ann), token, court.server.uri)
        now[0] = began - 3600.0
        await refused(door, court.ann, token, "early")
        now[0] = began + 3600.0
        await refused(door, court.ann, token, "expired")
        door.export.redecide()
        door.gate.recheck()
        with pytest.raises(Gone):
            await wire.want(Rwrite, Tversion(100, "x"))
        now[0] = began + 10.0  # and back: what ended stays so, and the token counts again
        assert await present(await door.connect(court.ann), token, court.server.uri)
        assert [line.detail for line in door.lines("token") if line.detail == "token_expired"] == [
            "token_expired"
        ] * 2


def test_who_steals_the_verifier_can_mint_nothing(court: Court) -> None:
    """Everything a server holds about tokens, in search of a key that signs."""
    verifier = court.verifier()
    secret = court.minting.private_bytes_raw()
    held = repr(vars(verifier)).encode() + b"".join(i.entry() for i in verifier.issuers.values())
    assert secret not in held
    assert secret.hex().encode() not in held
    for issuer in verifier.issuers.values():
        fake = Ed25519PrivateKey.from_private_bytes(issuer.key)  # the public key, taken for a seed
        now = int(time.time())
        token = mint(fake, Caveats(allow=("read /**",), aud=verifier.server, nbf=now, exp=now + 60))
        with pytest.raises(Invalid, match="issuer"):
            verifier.first(token.chain, token.prove(bytes(32), verifier.server), bytes(32), ANN, Policy())
