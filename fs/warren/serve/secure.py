"""A socket under mutual TLS, and the gate that decides who may come through.

A handshake is served by the reactor like any other traffic, a step at a time, so that one slow stranger
costs nobody anything. Only when it is done and `auth.tls` has named the peer does a conversation begin:
the name is its subject. What is refused is recorded with its reason, and the stranger hears nothing.

The gate holds the process's identity. It takes a context anew for every connection, so rotated
certificates and newer revocation lists are in force from the next handshake on; `recheck` ends the
conversations of those who were revoked meanwhile, and the sweep those whose certificate has run out.
A flood of handshakes is turned away before the arithmetic that makes it expensive.
"""

from __future__ import annotations

import fcntl
import ssl
import sys
import termios
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from socket import IPPROTO_TCP, TCP_CORK
from typing import TYPE_CHECKING, Final

from cryptography import x509
from warren.auth import tls
from warren.auth.certificates import issuer_of
from warren.auth.identity import Identity
from warren.serve.peer import READ, WRITE, Peer

if TYPE_CHECKING:
    import socket

    from warren.serve.export import Export
    from warren.serve.reactor import Reactor
    from warren.serve.session import Parts
    from warren.tree import Bytes

_RECORD: Final = 16384
_DER: Final = 2  # of the ssl module, ENCODING_DER
_RECORDS: Final = 16  # taken in one turn of a connection
_JOIN: Final = 64 << 10  # as much as is cheaper to join than to take apart
_HANDSHAKES: Final = 256  # under way at once
_EACH: Final = 64  # of them, of one address
_PATIENCE: Final = 10.0  # seconds for a handshake
_FAILURES: Final = 32  # of one address, after which it waits
_PENALTY: Final = 10.0
_ADDRESSES: Final = 4096
_unread = array("i", [0])  # what the last ioctl found


class Gate:
    """Who may connect: an identity, and limits on those who try."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.shaking: Counter[str] = Counter()  # handshakes under way, by address
        self.refused: dict[str, int] = {}
        self.recheck: Callable[[], None] = lambda: None  # set by the listener: end who is revoked, now
        self.join: Export | None = None  # the one tree for those who have no certificate yet
        self.exports: Callable[[ssl.SSLSocket, tls.Peer], None] | None = None  # takes who comes to serve us
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def turned_away(self, address: str) -> str:
        """Why a new connection from ADDRESS is not even shaken hands with, or nothing."""
        if (under_way := self.shaking.total()) >= _HANDSHAKES:
            return f"{under_way} handshakes are under way, the limit"
        if self.shaking[address] >= _EACH:
            return f"{_EACH} handshakes of {address} are under way, the limit of one address"
        count, until = self._failures.get(address, (0, 0.0))
        if count >= _FAILURES and time.monotonic() < until:
            return f"{count} handshakes from {address} have failed"
        return ""

    def done(self, address: str) -> None:
        """A handshake is over, however it ended."""
        self.shaking[address] -= 1
        if not self.shaking[address]:
            del self.shaking[address]

    def failed(self, address: str, reason: str) -> None:
        """A handshake was refused."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        now = time.monotonic()
        count, until = self._failures.pop(address, (0, 0.0))
        self._failures[address] = (count + 1 if now < until else 1, now + _PENALTY)
        while len(self._failures) > _ADDRESSES:
            self._failures.popitem(last=False)


class SecurePeer(Peer):
    """One socket under TLS."""

    __slots__ = ("address", "context", "gate", "shaken", "who")
    sock: ssl.SSLSocket

    def __init__(
        self, reactor: Reactor, sock: socket.socket, export: Export, gate: Gate, address: str
    ) -> None:
        self.address = address  # not asked of the socket: whoever has hung up since has none
        context = gate.identity.server_context()
        secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        super().__init__(reactor, secure, export)
        self.gate = gate
        self.shaken = False
        self.who: tls.Peer | None = None
        self.context = context  # whose revocation lists this peer was last held against
        gate.shaking[address] += 1

    def receive(self, into: memoryview) -> int:
        """Several records at a time: each costs a call, and a large frame has many."""
        got = 0
        for _ in range(_RECORDS):
            try:
                n = self.sock.recv_into(into[got:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if got:
                    return got
                raise BlockingIOError from None
            except ssl.SSLEOFError:
                return got  # without a closing word: 9P has no truncation that its frames would not show
            got += n
            if n == 0 or got == len(into) or not self._has_more():
                break
        return got

    def _has_more(self) -> bool:
        """Whether to try for another record: to ask costs much less than the exception that says no."""
        if self.sock.pending():
            return True
        fcntl.ioctl(self.sock, termios.FIONREAD, _unread)
        return _unread[0] > 0

    def transmit(self, out: Parts) -> int:
        """Record by record. What TLS could not send it must be offered again with the same beginning."""
        if len(out) > 1 and sum(map(len, out)) <= _JOIN:
            out[:] = [b"".join(out)]
        sent, several = 0, len(out) > 1 or len(out[0]) > _RECORD
        if several:
            self.sock.setsockopt(IPPROTO_TCP, TCP_CORK, 1)  # records leave together, and wake the peer once
        try:
            for record in _records(out):
                n = self.sock.send(record)
                sent += n
                if n < len(record):
                    break
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not sent:
                raise BlockingIOError from None
        finally:
            if several:
                self.sock.setsockopt(IPPROTO_TCP, TCP_CORK, 0)
        return sent

    def readable(self) -> None:
        if not self.shaken:
            self._shake()
            return
        super().readable()
        while not self.closed and self.sock.pending():
            super().readable()  # what TLS holds decrypted, epoll does not know of

    def writable(self) -> None:
        if self.shaken:
            super().writable()
        else:
            self._shake()

    def _shake(self) -> None:
        try:
            self.sock.do_handshake()
            self.who = tls.peer(self.sock, self.gate.identity.hive)
            self._choose(self.who)
        except ssl.SSLWantReadError:
            self._wait_for(READ)
        except ssl.SSLWantWriteError:
            self._wait_for(WRITE)
        except (OSError, ValueError, tls.Unwelcome) as e:
            self._refuse(e)
        else:
            self.shaken = True
            self.gate.done(self.address)
            if self.who.alpn == tls.EXPORT and self.gate.exports is not None:
                self.reactor.release(self)
                self.gate.exports(self.sock, self.who)
                return
            self.begin(self.who.uri or "any")
            self._wait_for(READ)
            self.readable()  # the first request often comes with the end of the handshake

    def _choose(self, who: tls.Peer) -> None:
        """What the protocol asks for, if it is to be had here. Without a name one reaches join alone."""
        if who.alpn == tls.JOIN and self.gate.join is not None:
            self.export = self.gate.join
        elif who.uri is None or not (
            who.alpn == tls.SERVE or (who.alpn == tls.EXPORT and self.gate.exports is not None)
        ):
            raise tls.Unwelcome("no_protocol", f"{who.alpn or 'none'} is not served here")

    def _wait_for(self, mask: int) -> None:
        if mask != self.mask:
            self.mask = mask
            self.reactor.epoll.modify(self.sock, mask)

    def _refuse(self, e: Exception) -> None:
        """Record the reason; the stranger is only hung up on."""
        reason = tls.reason(e)
        self.gate.failed(self.address, reason)
        detail = e.detail if isinstance(e, tls.Unwelcome) else ""
        self.export.refused_handshake(self.address, reason, detail or tls.REASONS[reason])
        self.close("")

    def sweep(self, now: float) -> None:
        if not self.shaken:
            if now - self.since > min(_PATIENCE, self.export.limits.patience):
                self._refuse(TimeoutError())
            return
        assert self.who is not None
        if self.who.not_after is None:
            super().sweep(now)
            return
        identity = self.gate.identity
        if time.time() > self.who.not_after.timestamp():
            self.close("the certificate of this session has expired")
            return
        if identity.server_context() is not self.context:
            self.context = identity.server_context()
            if any(identity.revoked(issuer, serial) for issuer, serial in _shown(self.sock)):
                self.close("the certificate of this session is revoked")
                return
        super().sweep(now)

    def ended(self, why: str) -> None:
        if self.shaken:
            super().ended(why)
        else:
            self.gate.done(self.address)


def _shown(sock: ssl.SSLSocket) -> Iterator[tuple[str, str]]:
    """Issuer and serial of each certificate between the peer and a root, the peer's own first."""
    if sys.version_info >= (3, 13):
        chain = sock.get_verified_chain()
    else:  # there it has no public name yet
        found = sock._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined]
        chain = [certificate.public_bytes(_DER) for certificate in found]
    for der in chain[:-1]:
        certificate = x509.load_der_x509_certificate(der)
        yield issuer_of(certificate), f"{certificate.serial_number:x}"


def _records(out: Parts) -> Iterator[Bytes]:
    """OUT in pieces of a record; only what lies in several parts is copied, for large parts are costly to."""
    held: list[Bytes] = []
    room = _RECORD
    for part in out:
        view, at, size = memoryview(part), 0, len(part)
        while at < size:
            piece = view[at : at + room]
            at += room
            if len(piece) == _RECORD:
                yield piece
                continue
            held.append(piece)
            room -= len(piece)
            if not room:
                yield b"".join(held)
                held, room = [], _RECORD
    if held:
        yield b"".join(held)
