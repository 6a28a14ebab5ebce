"""Listening: where an export meets the world.

    unix!/path/to/socket     the peer is `local` if it runs as our uid (SO_PEERCRED), else `any`
    tcp!host!port            loopback only; TCP proves nothing, so every peer is `any`
    tls!host!port            mutual TLS: the peer is the SPIFFE name in its certificate; needs a gate
    stdio                    one conversation on standard input and output, as `any`

`async with listening(export, addresses) as addresses:` serves until the block ends and gives back the
addresses with the ports that were chosen. TCP off loopback is refused: it would carry everything in
clear to whoever asks.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import trio
from warren.serve.export import Export
from warren.serve.pool import Pool
from warren.serve.reactor import Reactor
from warren.serve.secure import Gate
from warren.serve.stream import serve_stream

FORMS = "unix!PATH, tcp!HOST!PORT, tls!HOST!PORT or stdio"
_BACKLOG = 1024
_AT_ONCE = 32  # connections accepted before those there are have their turn


class BadAddress(ValueError):
    """An address that cannot be listened on, and why."""


@asynccontextmanager
async def listening(
    export: Export, addresses: Iterable[str], gate: Gate | None = None
) -> AsyncIterator[list[str]]:
    """Serve EXPORT on every address while the block runs; every connection ends with it."""
    async with trio.open_nursery() as nursery:
        pool = Pool(export.limits.buffers)
        reactor = Reactor(nursery.start_soon, pool)
        nursery.start_soon(reactor.run)
        nursery.start_soon(reactor.sweep, export.limits.patience)
        names, sockets = [], []
        try:
            for address in addresses:
                if address == "stdio":
                    nursery.start_soon(_stdio, export, pool)
                    names.append(address)
                    continue
                sock = bind(address)
                sockets.append(sock)
                secure = address.startswith("tls!")
                if secure and gate is None:
                    raise BadAddress(f"{address} needs an identity to show: --id DIR")
                names.append(_name(sock, secure))
                reactor.open(sock, partial(_accept, reactor, export, sock, gate if secure else None))
            if gate is not None:
                gate.recheck = reactor.look
            yield names
        finally:
            nursery.cancel_scope.cancel()
            for sock in sockets:
                _forget(sock)


def bind(address: str) -> socket.socket:
    """A listening socket for an address, or BadAddress."""
    scheme, *rest = address.split("!")
    if scheme == "unix" and len(rest) == 1 and rest[0]:
        return _bind_unix(rest[0])
    if scheme in ("tcp", "tls") and len(rest) == 2 and rest[1].isdigit() and int(rest[1]) < 65536:
        return _bind_tcp(rest[0], int(rest[1]), anywhere=scheme == "tls")
    raise BadAddress(f"{address!r} is no address to listen on; it is {FORMS}")


def _bind_unix(path: str) -> socket.socket:
    if len(os.fsencode(path)) > 107:
        raise BadAddress(f"{path}: a socket's path is at most 107 bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.lstat(path).st_mode) and not _answers(path):
            os.unlink(path)  # left behind by a server that was killed
        old = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
    except OSError as e:
        sock.close()
        raise BadAddress(f"{path}: {e.strerror}") from None
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _bind_tcp(host: str, port: int, anywhere: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise BadAddress(f"{host}: {e.strerror}") from None
    family, kind, proto, _, where = found[0]
    if not anywhere and not ipaddress.ip_address(where[0]).is_loopback:
        raise BadAddress(
            f"{host} is not loopback: plain TCP proves no identity and hides nothing. "
            "Listen on 127.0.0.1, a unix socket or tls!HOST!PORT"
        )
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(where)
    except OSError as e:
        sock.close()
        raise BadAddress(f"{host}!{port}: {e.strerror}") from None
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _name(sock: socket.socket, secure: bool) -> str:
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix!{where}"
    return f"{'tls' if secure else 'tcp'}!{where[0]}!{where[1]}"


def _forget(sock: socket.socket) -> None:
    path = sock.getsockname() if sock.family == socket.AF_UNIX else ""
    sock.close()
    if path:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _accept(reactor: Reactor, export: Export, listener: socket.socket, gate: Gate | None) -> None:
    """Take in who waits at the door, a few at a time."""
    for _ in range(_AT_ONCE):
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as e:
            # Out of descriptors, or the peer left before we came. Neither may end the listener.
            export.refused_connection(f"a connection could not be accepted: {e.strerror}")
            reactor.rest(listener, 0.1)
            return
        if len(reactor.peers) >= export.limits.connections:
            export.refused_connection(f"{len(reactor.peers)} connections are open, the limit")
            sock.close()
            continue
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if gate is None:
            reactor.add(sock, export, peer_subject(sock))
        elif why := gate.turned_away(str(peer[0])):
            export.refused_connection(why)
            sock.close()
        else:
            reactor.add_secure(sock, export, gate, str(peer[0]))


def peer_subject(sock: socket.socket) -> str:
    """Who is at the other end. Only a unix socket says so; on TCP the same call answers nonsense."""
    if sock.family != socket.AF_UNIX:
        return "any"
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return "local" if uid == os.geteuid() else "any"


async def _stdio(export: Export, pool: Pool) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as receive, trio.lowlevel.FdStream(os.dup(1)) as send:
        await serve_stream(export, trio.StapledStream(send, receive), "any", pool)
