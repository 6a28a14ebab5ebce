"""A stand-in for the kernel's end of /dev/fuse: whole messages over a socket, one a packet.

    async with mounted(Demo()) as kernel:
        entry = await kernel.lookup("hello")
        fh = await kernel.open(entry.nodeid)
        await kernel.read(fh, entry.nodeid)

The session on the other side, its connection and the server are the real ones. What comes back is checked:
every reply is whole, and answers a request that waits for one; a second answer fails the test.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from warren.mount import dial
from warren.mount.fuse import messages as m
from warren.mount.fuse.session import Session
from warren.tree import Node

from tests.wire import EVERYTHING, PATIENCE, Listening, listened

MINE = os.getpid()
SILENT = (m.FORGET, m.BATCH_FORGET, m.INTERRUPT)


class Packets:
    """The device's side of the socket, as a `Channel`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self, into: bytearray) -> int:
        try:
            return self._sock.recv_into(into)
        except ConnectionResetError:
            return 0

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        try:
            self._sock.sendmsg(list(parts))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def close(self) -> None:
        self._sock.close()


class Entry:
    """A reply that names a node."""

    def __init__(self, body: bytes) -> None:
        head = m.REPLIES["Entry"]
        self.head: m.Entry = head.parse(memoryview(body)[: head.fixed.size])
        at = head.fixed.size
        self.attr: m.Attr = m.REPLIES["Attr"].parse(memoryview(body)[at : at + m.REPLIES["Attr"].fixed.size])
        self.nodeid = self.head.nodeid
        self.more = body[at + m.REPLIES["Attr"].fixed.size :]


class Kernel:
    """Asks, and keeps account of what was answered."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.session = session
        self.waiting: dict[int, int] = {}  # unique -> opcode
        self.answered: dict[int, tuple[int, bytes]] = {}
        self.notices: list[tuple[int, bytes]] = []
        self._next = 1

    async def send(self, opcode: int, body: Any, nodeid: int = m.ROOT) -> int:
        """A request; its unique number."""
        self._next += 2
        await self.send_raw(m.pack_request(opcode, body, self._next, nodeid, 0, 0, MINE))
        return self._next

    async def send_raw(self, raw: bytes) -> None:
        if len(raw) >= m.HEAD.size:
            h = m.Header._make(m.HEAD.unpack_from(raw))
            if h.opcode not in SILENT and h.length == len(raw):
                assert h.unique not in self.waiting
                self.waiting[h.unique] = h.opcode
        await self.sock.send(raw)

    async def listen(self) -> None:
        """One message from the session."""
        with trio.fail_after(PATIENCE):
            raw = await self.sock.recv(2 << 20)
        length, error, unique = m.REPLY.unpack_from(raw)
        assert length == len(raw)
        if unique == 0:
            self.notices.append((error, raw[m.REPLY.size :]))
            return
        assert unique in self.waiting, f"{unique} was not asked, or answered before"
        del self.waiting[unique]
        assert -512 < error <= 0
        self.answered[unique] = (-error, raw[m.REPLY.size :])

    async def reply(self, unique: int) -> bytes:
        """The answer to one request; raises its errno."""
        while unique not in self.answered:
            await self.listen()
        error, body = self.answered.pop(unique)
        if error:
            raise OSError(error, os.strerror(error))
        return body

    async def ask(self, opcode: int, body: Any, nodeid: int = m.ROOT) -> bytes:
        return await self.reply(await self.send(opcode, body, nodeid))

    # What most tests do

    async def begin(self) -> m.Agreed:
        flags = (1 << 30) - 1
        raw = await self.ask(m.INIT, m.Init(7, 40, 1 << 20, flags, bytes(48)), 0)
        agreed: m.Agreed = m.REPLIES["Agreed"].parse(memoryview(raw))
        return agreed

    async def lookup(self, path: str) -> Entry:
        node = m.ROOT
        for name in path.split("/"):
            entry = Entry(await self.ask(m.LOOKUP, m.Named(name), node))
            node = entry.nodeid
        return entry

    async def open(self, node: int, flags: int = os.O_RDONLY) -> m.Opened:
        raw = await self.ask(m.OPEN, m.Open(flags, 0), node)
        opened: m.Opened = m.REPLIES["Opened"].parse(memoryview(raw))
        return opened

    async def read(self, fh: int, node: int, offset: int = 0, size: int = 4096, flags: int = 0) -> bytes:
        return await self.ask(m.READ, m.Read(fh, offset, size, 0, 0, flags, 0), node)

    async def write(self, fh: int, node: int, data: bytes, offset: int = 0) -> int:
        raw = await self.ask(m.WRITE, m.Write(fh, offset, len(data), 0, 0, 0, 0, data), node)
        return int(m.REPLIES["Written"].parse(memoryview(raw)).size)

    async def release(self, fh: int, node: int) -> None:
        await self.ask(m.RELEASE, m.Release(fh, 0, 0, 0), node)

    async def interrupt(self, unique: int) -> None:
        await self.send(m.INTERRUPT, m.Interrupt(unique), 0)


@asynccontextmanager
async def session_at(
    address: str | trio.abc.Stream, tell: Callable[[str], None] | None = None, each_user: bool = False
) -> AsyncIterator[Kernel]:
    """A session with a server, and the kernel it works for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    async with dial(address) as files:

        def introduce(uid: int) -> dial:
            return dial(address, uname=str(uid))

        def unexpected(said: str) -> None:
            raise AssertionError(said)

        device = Packets(ours)
        session = Session(
            device, files, introduce=introduce if each_user else None, tell=tell or unexpected
        )
        try:
            await session.first()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                kernel = Kernel(theirs, session)
                try:
                    yield kernel
                finally:
                    theirs.close()
                    nursery.cancel_scope.cancel()
        finally:
            device.close()
            theirs.close()


@asynccontextmanager
async def mounted(
    root: Node, folder: Path, allow: Sequence[str] = EVERYTHING
) -> AsyncIterator[tuple[Kernel, Listening]]:
    """ROOT served on a socket in FOLDER, and mounted."""
    async with listened(root, f"unix!{folder / 'sock'}", allow) as service:
        async with session_at(service.address) as kernel:
            await kernel.begin()
            yield kernel, service
