"""A channel under mutual TLS.

The dialler states whom it expects, and hangs up on anybody else before a byte of 9P is said. What a
server thinks of *our* certificate is learnt only after the handshake, for so TLS 1.3 is: from an alert
that the first read finds, or that waits behind a write that failed. `Barred` then says so in words.

An identity that has a token shows it here, and only here: to show one is to sign the server's name, which
nothing but TLS has proved.
"""

from __future__ import annotations

import errno
import socket
import ssl

import trio
from warren.auth import tls
from warren.auth.blocks import BadText
from warren.auth.identity import Identity
from warren.auth.refusal import Refusal
from warren.auth.token import read_token
from warren.mount.address import Parts, Present, SocketChannel
from warren.mount.link import Barred

_RECORD = 16384
# What an alert of TLS tells us of the reason that stands in the server's audit.
_ALERTS = {
    "certificate_revoked": "revoked", "certificate_expired": "expired", "unknown_ca": "unknown_ca",
    "bad_certificate": "bad_certificate", "unsupported_certificate": "bad_certificate",
    "certificate_required": "no_certificate",
}  # fmt: skip
_OURS = {
    "revoked": "it, or its issuer, is revoked",
    "expired": "it, or a revocation list of that server, has expired",
    "unknown_ca": "nobody whom that server trusts vouches for it",
    "bad_certificate": "it is not fit, or not valid yet",
    "no_certificate": "it wants one",
}


class SecureChannel(SocketChannel):
    """A TLS socket, tried before it is waited on."""

    _sock: ssl.SSLSocket
    who: tls.Peer | None = None

    async def prove(self, hive: str, expect: str) -> tls.Peer:
        """Finish the handshake; the peer if it is of HIVE and whom we EXPECT. Cancelled: hang up."""
        while True:
            try:
                self._sock.do_handshake()
                return tls.expect(tls.peer(self._sock, hive), expect)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._sock)

    async def shake(self, identity: Identity, expect: str) -> tls.Peer:
        """As `prove`; OSError says what was wrong."""
        try:
            return await self.prove(identity.hive, expect)
        except ssl.SSLEOFError:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up in the handshake") from None
        except (ssl.SSLError, tls.Unwelcome) as e:
            reason = tls.reason(e)
            detail = e.detail if isinstance(e, tls.Unwelcome) else ""
            raise PermissionError(errno.EACCES, f"{reason}: {detail or tls.REASONS[reason]}") from e

    async def receive(self, into: memoryview) -> int:
        while True:
            try:
                return self._sock.recv_into(into)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._sock)
                continue
            except ssl.SSLError as e:
                raise _broken(e) from e
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                return 0

    def send_now(self, parts: Parts) -> int:
        """A record at a time. What TLS could not send it must be offered again with the same beginning,
        and here every offer is the next record's worth of all that is waiting."""
        sent, left = 0, sum(map(len, parts))
        try:
            while left:
                chunk = _first(parts, sent, min(_RECORD, left))
                n = self._sock.send(chunk)
                sent += n
                left -= n
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as e:
            raise self._said_before(e) from e
        return sent

    def _said_before(self, e: OSError) -> OSError:
        """Why sending failed: a peer that hung up may have left an alert first."""
        try:
            while self._sock.recv(_RECORD):
                pass
        except ssl.SSLError as alert:
            found = _broken(alert)
            if isinstance(found, Barred):
                return found
        except OSError:
            pass
        return ConnectionResetError(errno.ECONNRESET, "it hung up") if isinstance(e, ssl.SSLError) else e


def _broken(e: ssl.SSLError) -> OSError:
    """What ended a connection whose handshake, as far as we saw it, was done."""
    if tls.reason(e) != "refused_by_peer":
        return ConnectionResetError(errno.ECONNRESET, f"TLS failed: {e.reason or e.strerror}")
    alert = (e.reason or "").lower().partition("_alert_")[2]
    reason = _ALERTS.get(alert, "refused_by_peer")
    detail = _OURS.get(reason, "it does not say why")
    return Barred(errno.EACCES, f"our certificate was refused: {reason}: {detail}")


def _first(parts: Parts, start: int, n: int) -> bytes | memoryview:
    """N bytes of PARTS from START on; without a copy when one part holds them all."""
    out: list[bytes | memoryview] = []
    for part in parts:
        if start >= len(part):
            start -= len(part)
            continue
        piece = memoryview(part)[start : start + n]
        start = 0
        n -= len(piece)
        out.append(piece)
        if not n:
            break
    return out[0] if len(out) == 1 else b"".join(out)


def _presenting(text: bytes, server: str) -> Present:
    """How the token in an identity's folder is shown to SERVER, which has proved that it is that."""
    try:
        _, token = read_token(text.decode("ascii"))
    except (BadText, UnicodeDecodeError) as e:
        raise PermissionError(errno.EACCES, f"the token of this identity: {e}") from None
    if token is None:
        raise PermissionError(errno.EACCES, "the token of this identity has no key: it can only be looked at")
    held = token
    return lambda nonce: held.chain + held.prove(nonce, server)


def refreshed(identity: Identity) -> None:
    """See that it is the identity that lies in its folder now: a mount outlives many certificates."""
    try:
        identity.refresh()
    except Refusal as e:
        raise PermissionError(errno.EACCES, f"the identity in {identity.directory}: {e}") from None


async def secured(
    plain: socket.socket, identity: Identity, expect: str, context: ssl.SSLContext | None = None
) -> SecureChannel:
    """A connected socket, under TLS and with the right peer; closed if it has another.

    Another CONTEXT of the identity asks for another protocol: `export_context` to serve the other end.
    """
    plain.setblocking(False)
    context = context or identity.client_context()
    wrapped = context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=None)
    channel = SecureChannel(wrapped)
    try:
        channel.who = who = await channel.shake(identity, expect)
        if identity.token is not None:
            channel.present = _presenting(identity.token, who.uri or "")
    except BaseException:
        wrapped.close()
        raise
    return channel
