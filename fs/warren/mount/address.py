"""Addresses, and the byte channels they lead to.

    tcp!HOST!PORT     a host by name or number
    unix!/PATH        a socket in the file system
    tls!HOST!PORT     the first, under mutual TLS (see `secure`)

`SCHEMES` is the whole grammar: a scheme is a word, the form to show in errors, and a coroutine that
takes the words after the first and opens a channel. Anything else that carries bytes both ways is a
`StreamChannel` around a trio stream.
"""

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import trio

Parts = list[bytes | memoryview]

_IOV_MAX = 1024
_GREEDY = 4  # receives in a row without letting others run


Present = Callable[[bytes], bytes]  # a server's nonce to what shows it our token


class Channel(Protocol):
    """Bytes both ways. One task receives; sending never overlaps."""

    present: Present | None  # only where the channel has proved whom the token is shown to

    async def receive(self, into: memoryview) -> int:
        """Fill some of INTO; 0 at the end. Raises OSError. Cancelled means nothing was taken."""

    def send_now(self, parts: Parts) -> int:
        """How many bytes were taken without waiting. Raises OSError."""

    async def send(self, parts: Parts) -> None:
        """Send everything. Raises OSError. Cancelled leaves it unknown how much was sent."""

    async def aclose(self) -> None:
        """Close at once, whatever is under way."""


def rest(parts: Parts, n: int) -> Parts:
    """What is left of PARTS when N bytes are gone."""
    for i, part in enumerate(parts):
        if n < len(part):
            return [memoryview(part)[n:], *parts[i + 1 :]]
        n -= len(part)
    return []


class SocketChannel:
    """A connected socket, tried before it is waited on: a ready one costs no trip through the loop."""

    present: Present | None = None

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock: socket.socket = sock
        self._row = 0

    @property
    def socket(self) -> socket.socket:
        """For what is laid over it."""
        return self._sock

    async def receive(self, into: memoryview) -> int:
        while True:
            if self._row >= _GREEDY:
                self._row = 0
                await trio.lowlevel.checkpoint()
            try:
                n = self._sock.recv_into(into)
                self._row += 1
                return n
            except BlockingIOError:
                self._row = 0
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                return 0

    def send_now(self, parts: Parts) -> int:
        try:
            return self._sock.sendmsg(parts[:_IOV_MAX])
        except BlockingIOError:
            return 0

    async def send(self, parts: Parts) -> None:
        while True:
            parts = rest(parts, self.send_now(parts))
            if not parts:
                return
            await trio.lowlevel.wait_writable(self._sock)

    async def aclose(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.cancel_shielded_checkpoint()


class StreamChannel:
    """Any trio stream: a pair of pipes, memory."""

    present: Present | None = None

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self, into: memoryview) -> int:
        try:
            data = await self._stream.receive_some(len(into))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise ConnectionResetError(errno.ECONNRESET, str(e) or "the stream broke") from e
        into[: len(data)] = data
        return len(data)

    def send_now(self, parts: Parts) -> int:
        return 0

    async def send(self, parts: Parts) -> None:
        try:
            await self._stream.send_all(b"".join(parts))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise ConnectionResetError(errno.ECONNRESET, str(e) or "the stream broke") from e

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


async def _connected(family: int, kind: int, proto: int, where: Any) -> SocketChannel:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
    try:
        failed = sock.connect_ex(where)
        if failed == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return SocketChannel(sock)


async def _tcp(words: list[str]) -> SocketChannel:
    host, port = words
    if not port.isdigit():
        raise ValueError(f"port {port!r} is not a number")
    found = await trio.socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    refused: OSError | None = None
    for family, kind, proto, _, where in found:
        try:
            return await _connected(family, kind, proto, where)
        except OSError as e:
            refused = refused or e
    raise refused or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")


async def _unix(words: list[str]) -> SocketChannel:
    return await _connected(socket.AF_UNIX, socket.SOCK_STREAM, 0, words[0])


class Scheme(NamedTuple):
    """One kind of address: its form, how many words follow the first, how to open it."""

    form: str
    words: int
    open: Callable[[list[str]], Awaitable[SocketChannel]]


SCHEMES: dict[str, Scheme] = {
    "tcp": Scheme("tcp!HOST!PORT", 2, _tcp),
    "unix": Scheme("unix!/PATH", 1, _unix),
    "tls": Scheme("tls!HOST!PORT", 2, _tcp),
}


def parse(address: str) -> tuple[Scheme, list[str]]:
    """The scheme and the words of an address; ValueError names the forms there are."""
    first, *words = address.split("!")
    scheme = SCHEMES.get(first)
    if scheme is None or len(words) != scheme.words or not all(words):
        forms = " or ".join(s.form for s in SCHEMES.values())
        raise ValueError(f"{address!r} is not an address; write {forms}")
    return scheme, words


async def connect(address: str) -> SocketChannel:
    """Open a channel. ValueError if the address is none, OSError if nobody answers there.

    Cancelled means that nothing was left open.
    """
    scheme, words = parse(address)
    return await scheme.open(words)
