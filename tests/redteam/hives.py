"""A hive on loopback to attack: real sockets, real handshakes, and everything a stranger's socket received.

    hive = Hive(tmp_path)                         a CA, and a server's identity
    me = hive.member("user/ann")                  a member's identity
    async with guarded(hive, Demo(), allow) as door:
        wire = await door.dial(me)                9P by hand under TLS
        heard = await knock(door, context)        what a stranger gets
"""

import itertools
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth import tls
from warren.auth.ca import CA
from warren.auth.caveats import Caveats
from warren.auth.identity import Identity
from warren.auth.rights import Policy, parse_grant
from warren.auth.token import Issuer, Token, by_id, mint
from warren.mount import dial
from warren.p9.codec import dialect
from warren.p9.fields import NONUNAME, NOTAG
from warren.p9.messages import DOTL, PLAIN, Message, Rattach, Rauth, Rread, Tattach, Tauth, Tread, Tversion
from warren.serve.export import Export, Limits
from warren.serve.listen import listening
from warren.serve.secure import Gate
from warren.serve.tokens import Verifier
from warren.traces.audit import AuditMemory, Line
from warren.traces.ring import TraceRing
from warren.tree import Node

from tests.wire import Gone, Wire

VERSION = dialect(PLAIN).pack(Tversion(65536, DOTL), NOTAG)
EVERY = "read,write,create,remove,ctl /**"


class Hive:
    """A CA, a server, and as many members as a test wants."""

    def __init__(self, top: Path, name: str = "hive.test") -> None:
        self.top = top
        self.name = name
        self.ca = CA.create(top / "ca", name)
        self.made = 0
        self.minting = Ed25519PrivateKey.generate()
        self.issuer = Issuer(
            self.minting.public_key().public_bytes_raw(), (parse_grant(EVERY),),
            int(time.time()) - 86400, int(time.time()) + 86400,
        )  # fmt: skip

    @cached_property
    def server(self) -> Identity:
        return self.member("role/QueenPrimary/queen")

    def member(self, who: str, **how: Any) -> Identity:
        """A fresh identity: `role/R/N` or `user/N`."""
        return Identity.load(self.folder(who, **how))

    def folder(self, who: str, **how: Any) -> Path:
        """The same, not loaded: it may be one that no Identity would load."""
        self.made += 1
        out = self.top / f"m{self.made}"
        self.ca.issue(f"spiffe://{self.name}/{who}", out, **how)
        return out

    def verifier(self, **how: Any) -> Verifier:
        return Verifier(by_id([self.issuer]), self.server.uri, **how)

    def token(self, *allow: str, **more: Any) -> Token:
        """A token for the server, good for a minute unless it is said otherwise."""
        now = int(time.time())
        said = {"allow": allow or (EVERY,), "aud": self.server.uri, "nbf": now - 10, "exp": now + 60, **more}
        return mint(self.minting, Caveats(**said))


@dataclass
class Door:
    """A listener under TLS."""

    export: Export
    gate: Gate
    address: str
    wires: list[Wire] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.address.rpartition("!")[2])

    async def wire(self, context: ssl.SSLContext) -> Wire:
        """A connection; its handshake happens when something is first sent."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.wires.append(Wire(trio.SSLStream(stream, context)))
        return self.wires[-1]

    async def connect(self, me: Identity, version: str = DOTL) -> Wire:
        wire = await self.wire(me.client_context())
        await wire.version(version)
        return wire

    async def dial(self, me: Identity, version: str = DOTL) -> Wire:
        wire = await self.connect(me, version)
        await wire.attach()
        return wire

    def lines(self, op: str) -> list[Line]:
        assert isinstance(self.export.audit, AuditMemory)
        return [line for line in self.export.audit.lines if line.op == op]

    def reasons(self, op: str = "handshake") -> list[str]:
        """The details of the notes about OP: for handshakes, the names of their reasons."""
        return [line.detail for line in self.lines(op)]

    def errors(self) -> list[str]:
        return [e.text for e in self.export.trace.errors]


@asynccontextmanager
async def guarded(
    hive: Hive, root: Node, allow: Sequence[str] = ("user/* read,write,create,remove,ctl /**",), *,
    verifier: Verifier | None = None, limits: Limits | None = None, identity: Identity | None = None,
    gate: Gate | None = None, address: str = "tls!127.0.0.1!0", audit: AuditMemory | None = None,
) -> AsyncIterator[Door]:  # fmt: skip
    """ROOT on a real socket under TLS. Its audit names every denial, however many there are in a second."""
    audit = audit or AuditMemory(clock=itertools.count().__next__)
    export = Export(root, Policy.parse(allow), audit, TraceRing(), limits, verifier)
    gate = gate or Gate(identity or hive.server)
    async with listening(export, [address], gate) as [name]:
        door = Door(export, gate, name)
        try:
            yield door
        finally:
            for wire in door.wires:
                await trio.aclose_forcefully(wire.stream)
    assert not [e for e in export.trace.errors if e.code == 500]


async def present(
    wire: Wire, token: Token, server: str, *, chain: bytes | None = None, proof: bytes | None = None,
    fid: int = 0, afid: int = 99, aname: str = "",
) -> Rattach:  # fmt: skip
    """Show TOKEN and attach; RefusedBy if it does not count."""
    await wire.want(Rauth, Tauth(afid, "", aname, NONUNAME))
    nonce = bytes((await wire.want(Rread, Tread(afid, 0, 32))).data)
    proof = token.prove(nonce, server) if proof is None else proof
    said = (token.chain if chain is None else chain) + proof
    for at in range(0, len(said), 4000):
        await wire.write(afid, said[at : at + 4000], at)
    return await wire.want(Rattach, Tattach(fid, afid, "", aname, NONUNAME))


@dataclass
class Heard:
    """What a stranger got of a listener."""

    raw: bytes  # every byte
    said: bytes  # what of it TLS gave the stranger to read
    alpn: str | None
    shaken: bool


def stranger(roots: bytes, shown: Path | None = None, alpn: str | None = tls.SERVE) -> ssl.SSLContext:
    """A TLS client of somebody else's making, that shows what is in a folder, if anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=roots.decode())
    if shown is not None:
        context.load_cert_chain(shown / "cert.pem", shown / "key.pem")
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


async def tcp(port: int, source: str = "127.0.0.1") -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    await sock.bind((source, 0))
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


async def knock(
    door: Door, context: ssl.SSLContext, say: bytes = VERSION, source: str = "127.0.0.1"
) -> Heard:
    """Shake hands if one can, SAY something, and take all there is until the listener hangs up."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    heard = Heard(b"", b"", None, False)
    stream = await tcp(door.port, source)

    def step() -> None:
        if not heard.shaken:
            client.do_handshake()
            heard.shaken, heard.alpn = True, client.selected_alpn_protocol()
            client.write(say)
        while data := client.read(65536):
            heard.said += data

    async with stream:
        with trio.fail_after(10):
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    break
                try:
                    await stream.send_all(outgoing.read())
                    data = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    break
                if not data:
                    break
                heard.raw += data
                incoming.write(data)
    return heard


async def blurt(door: Door, data: bytes, source: str = "127.0.0.1") -> bytes:
    """Say DATA without TLS; every byte that comes back until the listener hangs up."""
    got = b""
    async with await tcp(door.port, source) as stream:
        with trio.fail_after(10):
            try:
                await stream.send_all(data)
                while more := await stream.receive_some(65536):
                    got += more
            except trio.BrokenResourceError:
                pass
    return got


async def until_gone(wire: Wire) -> list[Message]:
    """What is still said before the listener hangs up."""
    said = []
    try:
        while True:
            said.append(await wire.reply())
    except Gone:
        return said


def with_token(me: Identity, token: Token) -> Identity:
    """The identity, with that token in its folder."""
    path = me.directory / "token"
    path.write_text(token.write())
    os.chmod(path, 0o600)
    return Identity.load(me.directory)


def mounted(door: Door, me: Identity, expect: str = "role/QueenPrimary/*") -> dial:
    """Files of the door's tree, by our own client."""
    return dial(door.address, identity=me, expect=expect)
