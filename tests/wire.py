"""9P by hand: a served tree, and a client that sends exactly what a test says.

    async with served(Demo()) as service:
        wire = await service.dial()                   version exchange and attach as fid 0
        await wire.ask(Twalk(0, 1, ["hello"]))        one request, its reply
        await wire.send(Tread(1, 0, 10), tag=5)       no reply yet
        reply = await wire.reply()                    the next one, whosever it is

What the server sends is checked as it arrives: every frame whole, of the dialect, and within msize.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TypeVar

import trio
from trio.testing import memory_stream_pair
from warren.auth.rights import Policy
from warren.p9.codec import HEADER, MINFRAME, dialect
from warren.p9.fields import NOFID, NONUNAME, NOTAG
from warren.p9.messages import (
    DOTL,
    PLAIN,
    Message,
    Rattach,
    Rclunk,
    Rerror,
    Rlerror,
    Rlopen,
    Ropen,
    Rread,
    Rversion,
    Rwalk,
    Rwrite,
    Tattach,
    Tclunk,
    Tlopen,
    Topen,
    Tread,
    Tversion,
    Twalk,
    Twrite,
)
from warren.serve.export import Export, Limits
from warren.serve.listen import listening
from warren.serve.stream import serve_stream
from warren.traces.audit import Audit, AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node

EVERYTHING = ("any read,write,create,remove,ctl /**",)
PATIENCE = 8  # seconds for a reply that a test counts on
O_RDONLY, O_WRONLY, O_RDWR, O_TRUNC, O_NONBLOCK = 0, 1, 2, 0o1000, 0o4000
R = TypeVar("R", bound=Message)


class Gone(Exception):
    """The server closed the connection."""


class RefusedBy(OSError):
    """An error reply, as an exception."""


class Wire:
    """One connection, driven by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.codec = dialect(PLAIN)
        self.msize = 8192
        self.got = bytearray()

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send_raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def pack(self, m: Message, tag: int = 1) -> bytes:
        return self.codec.pack(m, tag)

    async def send(self, *messages: Message, tag: int = 1) -> None:
        """All of them in one segment, tagged upward from TAG."""
        await self.send_raw(b"".join(self.pack(m, tag + n) for n, m in enumerate(messages)))

    async def reply(self) -> Message:
        """The next reply; raises Gone when the server hung up."""
        with trio.fail_after(PATIENCE):
            while len(self.got) < MINFRAME or len(self.got) < HEADER.unpack_from(self.got)[0]:
                try:
                    data = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    raise Gone from None
                if not data:
                    raise Gone
                self.got += data
        size = HEADER.unpack_from(self.got)[0]
        assert MINFRAME <= size <= self.msize, f"a reply of {size} bytes, msize is {self.msize}"
        frame = bytes(self.got[:size])
        del self.got[:size]
        return self.codec.parse(frame)

    async def replies(self, count: int) -> list[Message]:
        return [await self.reply() for _ in range(count)]

    async def ask(self, m: Message, tag: int = 1) -> Message:
        """One request and its reply; nothing else may be outstanding."""
        await self.send(m, tag=tag)
        reply = await self.reply()
        assert reply.tag == tag
        return reply

    async def want(self, kind: type[R], m: Message, tag: int = 1) -> R:
        """As ask, for a reply that must be of this kind; a refusal is raised as RefusedBy."""
        reply = await self.ask(m, tag)
        if isinstance(reply, Rlerror):
            raise RefusedBy(reply.ecode, reply.ename)
        if isinstance(reply, Rerror):
            raise RefusedBy(0, reply.ename)
        assert isinstance(reply, kind), reply
        return reply

    async def version(self, name: str = DOTL, msize: int = 65536) -> Rversion:
        self.codec = dialect(PLAIN)
        reply = await self.want(Rversion, Tversion(msize, name), NOTAG)
        if reply.version != "unknown":
            self.codec, self.msize = dialect(reply.version), reply.msize
        return reply

    async def attach(self, fid: int = 0, aname: str = "") -> Rattach:
        return await self.want(Rattach, Tattach(fid, NOFID, "glenda", aname, NONUNAME))

    # What most tests do on the way to what they test

    async def walk(self, path: str, newfid: int, fid: int = 0) -> Rwalk:
        names = path.split("/") if path else []
        reply = await self.want(Rwalk, Twalk(fid, newfid, names))
        assert len(reply.qids) == len(names), f"{path}: only {len(reply.qids)} names were found"
        return reply

    async def open(self, path: str, fid: int, flags: int = O_RDONLY) -> None:
        await self.walk(path, fid)
        if self.codec.name == PLAIN:
            mode = flags & 3 | (0x10 if flags & O_TRUNC else 0)
            await self.want(Ropen, Topen(fid, mode))
        else:
            await self.want(Rlopen, Tlopen(fid, flags))

    async def read(self, fid: int, offset: int = 0, count: int = 8000) -> bytes:
        return bytes((await self.want(Rread, Tread(fid, offset, count))).data)

    async def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        return (await self.want(Rwrite, Twrite(fid, offset, data))).count

    async def clunk(self, fid: int) -> None:
        await self.want(Rclunk, Tclunk(fid))


class Service:
    """A served tree and the connections to it, over memory streams."""

    def __init__(self, export: Export, nursery: trio.Nursery) -> None:
        self.export = export
        self.nursery = nursery

    def connect(self, subject: str = "any") -> Wire:
        near, far = memory_stream_pair()
        self.nursery.start_soon(self._serve, far, subject)
        return Wire(near)

    async def _serve(self, stream: trio.abc.Stream, subject: str) -> None:
        async with stream:
            await serve_stream(self.export, stream, subject)

    async def dial(
        self, version: str = DOTL, msize: int = 65536, subject: str = "any", aname: str = ""
    ) -> Wire:
        wire = self.connect(subject)
        await wire.version(version, msize)
        await wire.attach(0, aname)
        return wire

    def errors(self) -> list[str]:
        return [e.text for e in self.export.trace.errors]

    def audited(self) -> list[str]:
        """The audit in short: `intent open /hello`, `outcome open /hello 0`, ..."""
        assert isinstance(self.export.audit, AuditMemory)
        return [
            f"{line.kind} {line.op} {line.path}" + (f" {line.code}" if line.kind != "intent" else "")
            for line in self.export.audit.lines
        ]


def export_of(
    root: Node, allow: Sequence[str] = EVERYTHING, limits: Limits | None = None, audit: Audit | None = None
) -> Export:
    return Export(root, Policy.parse(allow), audit or AuditMemory(), TraceRing(), limits)


@asynccontextmanager
async def served(
    root: Node, allow: Sequence[str] = EVERYTHING, limits: Limits | None = None, audit: Audit | None = None
) -> AsyncIterator[Service]:
    """ROOT behind an export, for connections over memory streams."""
    async with trio.open_nursery() as nursery:
        yield Service(export_of(root, allow, limits, audit), nursery)
        nursery.cancel_scope.cancel()


class Listening:
    """A tree on a real socket, and the connections to it, closed at the end."""

    def __init__(self, export: Export, address: str) -> None:
        self.export = export
        self.address = address
        self.wires: list[Wire] = []

    async def connect(self) -> Wire:
        scheme, where, *port = self.address.split("!")
        stream: trio.SocketStream
        if scheme == "unix":
            stream = await trio.open_unix_socket(where)
        else:
            stream = await trio.open_tcp_stream(where, int(port[0]))
        self.wires.append(Wire(stream))
        return self.wires[-1]

    async def dial(self, version: str = DOTL, msize: int = 65536) -> Wire:
        wire = await self.connect()
        await wire.version(version, msize)
        await wire.attach()
        return wire


@asynccontextmanager
async def listened(
    root: Node,
    address: str = "tcp!127.0.0.1!0",
    allow: Sequence[str] = EVERYTHING,
    limits: Limits | None = None,
) -> AsyncIterator[Listening]:
    """ROOT behind an export, listening on ADDRESS."""
    export = export_of(root, allow, limits)
    async with listening(export, [address]) as names:
        made = Listening(export, names[0])
        try:
            yield made
        finally:
            for wire in made.wires:
                await trio.aclose_forcefully(wire.stream)
