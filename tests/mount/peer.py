"""A peer whose every answer the test writes: real bytes, made by the codec alone."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import memory_stream_pair
from warren.mount import Files, dial
from warren.p9.codec import dialect
from warren.p9.fields import NOTAG, QTDIR, Qid
from warren.p9.messages import (
    PLAIN,
    WARREN,
    Message,
    Rattach,
    Rclunk,
    Rflush,
    Rgetattr,
    Rlopen,
    Rversion,
    Rwalk,
    Tattach,
    Tclunk,
    Tflush,
    Tlopen,
    Tversion,
    Twalk,
)

MSIZE = 8192
ROOT = Qid(QTDIR, 1, 1)
FILE = Qid(0, 1, 2)  # a stored file: its version moves
SYNTHETIC = Qid(0, 0, 3)


class Peer:
    """The server's end of one connection."""

    def __init__(self, stream: trio.abc.Stream, version: str = WARREN, msize: int = MSIZE) -> None:
        self.stream = stream
        self.version = version
        self.msize = msize
        self.codec = dialect(PLAIN)
        self.clunked: list[int] = []
        self._data = b""

    async def heard(self) -> Message:
        """The next request, whatever it is."""
        while len(self._data) < 4 or len(self._data) < int.from_bytes(self._data[:4], "little"):
            more = await self.stream.receive_some()
            if not more:
                raise EOFError
            self._data += bytes(more)
        size = int.from_bytes(self._data[:4], "little")
        frame, self._data = self._data[:size], self._data[size:]
        return self.codec.parse(frame)

    async def next(self) -> Message:
        """The next request that is no clunk; clunks are answered on the way."""
        while isinstance(m := await self.heard(), Tclunk):
            self.clunked.append(m.fid)
            await self.say(m, Rclunk())
        return m

    async def say(self, m: Message | int, *answers: Message) -> None:
        """Answer a request."""
        tag = m if isinstance(m, int) else m.tag
        await self.stream.send_all(b"".join(self.codec.pack(a, tag) for a in answers))

    async def hello(self) -> None:
        """Settle the version and let the client attach."""
        m = await self.next()
        assert isinstance(m, Tversion)
        await self.say(NOTAG, Rversion(self.msize, self.version))
        self.codec = dialect(self.version)
        m = await self.next()
        assert isinstance(m, Tattach)
        await self.say(m, Rattach(ROOT))

    async def walked(self, qid: Qid = FILE) -> Twalk:
        """Let one walk succeed."""
        m = await self.next()
        assert isinstance(m, Twalk), m
        await self.say(m, Rwalk([ROOT] * (len(m.names) - 1) + [qid] if m.names else []))
        return m

    async def opened(self, qid: Qid = FILE, walked: Qid | None = None) -> Tlopen:
        """Let one walk and the open behind it succeed."""
        await self.walked(walked or qid)
        m = await self.next()
        assert isinstance(m, Tlopen), m
        await self.say(m, Rlopen(qid, 0))
        return m

    async def flushed(self, m: Message) -> Tflush:
        """A flush of M comes; say that it had no effect."""
        flush = await self.next()
        assert isinstance(flush, Tflush), flush
        assert flush.oldtag == m.tag
        await self.say(flush, Rflush())
        return flush


def attributes(qid: Qid = FILE, size: int = 0) -> Rgetattr:
    return Rgetattr(0x7FF, qid, 0o100644, 0, 0, 1, 0, size, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@asynccontextmanager
async def attached(version: str = WARREN, deadline: float = 30.0) -> AsyncIterator[tuple[Files, Peer]]:
    """A client and its peer, joined by memory and past the attach."""
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs, version)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.hello)
        async with dial(ours, deadline=deadline) as files:
            yield files, peer


class Host:
    """A place to dial: each connection is the next peer."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix!{path}"
        self._sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self._accepted: list[trio.SocketStream] = []

    async def listen(self) -> None:
        await self._sock.bind(str(self._path))
        self._sock.listen()

    async def accept(self, version: str = WARREN) -> Peer:
        """The next connection, past the attach."""
        sock, _ = await self._sock.accept()
        self._accepted.append(trio.SocketStream(sock))
        peer = Peer(self._accepted[-1], version)
        await peer.hello()
        return peer

    async def accept_and_drop(self) -> None:
        """The next connection, closed at once."""
        sock, _ = await self._sock.accept()
        sock.close()

    def close(self) -> None:
        for stream in self._accepted:
            stream.socket.close()
        self._sock.close()
        self._path.unlink(missing_ok=True)


@asynccontextmanager
async def hosted(path: Path, deadline: float = 30.0) -> AsyncIterator[tuple[Files, Peer, Host]]:
    """A client that dialled an address, its first peer, and the host where it may dial again."""
    host = Host(path)
    await host.listen()
    peers: list[Peer] = []

    async def first() -> None:
        peers.append(await host.accept())

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            async with dial(host.address, deadline=deadline) as files:
                yield files, peers[0], host
    finally:
        host.close()


__all__ = [
    "FILE", "MSIZE", "ROOT", "SYNTHETIC", "Host", "Peer", "attached", "attributes", "hosted",
]  # fmt: skip
