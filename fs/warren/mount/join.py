"""Joining, the joiner's side: from a token to a certificate of one's own.

    joined = await join("tls!hub!5640", token_text, "DroneWorker")
    keep(joined, directory)                     cert.pem key.pem ca.pem, as `Identity` loads them

The token brings the hive's root and the name of whom to expect. The other end has to prove both in the
handshake, before it gets a byte; then it is shown the token and a signing request, on the one connection.
The private key never leaves this process but for the directory. Whoever fears to lose the answer gives the
KEY, and keeps it until it has one: the authority answers the same key again while the token lives, and no
other.

`Unjoined` says which step failed and the way out. Nothing is retried here.
"""

from __future__ import annotations

import errno
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import trio
from warren.auth import keyfiles, tls
from warren.auth.blocks import BadText
from warren.auth.certificates import PrivateKey, Unfit, key_pem, load_chain, new_key, pem, same_key, uris
from warren.auth.identity import joining_context
from warren.auth.join import Ticket, fingerprint, read_ticket, request
from warren.mount.address import connect, parse
from warren.mount.dial import DEADLINE, dial
from warren.mount.files import Files
from warren.mount.secure import SecureChannel

LONGEST_CHAIN: Final = 65536


class Unjoined(OSError):
    """What kept one from joining: the step, why, and the way out."""

    def __init__(self, step: str, number: int, text: str, way_out: str) -> None:
        super().__init__(number, f"{step}: {text}")
        self.step, self.text, self.way_out = step, text, way_out


class Joined(NamedTuple):
    """An identity that was had: the name, and what its directory is to hold."""

    uri: str
    chain: bytes
    key: PrivateKey
    ca: bytes


def _silent(step: str, said: str) -> None:
    pass


async def join(
    address: str, token_text: str, role: str, *, name: str | None = None, key: PrivateKey | None = None,
    deadline: float = DEADLINE, tell: Callable[[str, str], None] = _silent,
) -> Joined:  # fmt: skip
    """A certificate for ROLE (and NAME, if given) from the hive at ADDRESS; TELL hears of each step.

    Cancelled: there may be a certificate for the key that nobody has; the same key can ask again.
    """
    ticket = see_token(token_text, role, name)
    left = ticket.expires - int(time.time())
    tell("token", f"for {ticket.uri}, good for {left} s more")
    key = key or new_key()
    with trio.move_on_after(deadline) as scope:
        channel = await _reach(address, ticket)
        try:
            who = await _prove(channel, ticket)
            tell("queen", f"{who.uri} under root sha256 {fingerprint(ticket.certificate)}")
        except BaseException:
            await channel.aclose()
            raise
        chain, bundle = await _ask(channel, ticket, key, deadline)
    if scope.cancelled_caught:
        text, way_out = f"no answer within {deadline:g} s", "see whether the hive is well, then join again"
        raise Unjoined("ask", errno.ETIMEDOUT, text, way_out)
    joined = _checked(ticket, key, chain, bundle)
    leaf = load_chain(chain, "the answer")[0]
    tell("certificate", f"{leaf.serial_number:x} until {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    return joined


def see_token(text: str, role: str, name: str | None = None) -> Ticket:
    """The join token in TEXT, if it is for ROLE and NAME and not over by this machine's clock."""
    try:
        ticket = read_ticket(text)
        _ = ticket.certificate
    except BadText as e:
        way_out = "give the file that warren token invite wrote"
        raise Unjoined("token", errno.EINVAL, str(e), way_out) from None
    its_role, its_name = ticket.name.parts[1:]
    if role != its_role:
        raise Unjoined("token", errno.EINVAL, f"it is for the role {its_role}", f"say --role {its_role}")
    if name is not None and name != its_name:
        raise Unjoined("token", errno.EINVAL, f"it is for the name {its_name}", f"say --name {its_name}")
    if (over := int(time.time()) - ticket.expires) >= 0:
        text = f"it ended {over} s ago, by this machine's clock"
        raise Unjoined("token", errno.ETIMEDOUT, text, "have another: warren token invite; or set the clock")
    return ticket


async def _reach(address: str, ticket: Ticket) -> SecureChannel:
    if not address.startswith("tls!"):
        raise Unjoined("dial", errno.EINVAL, f"{address} is no place to join at", "write tls!HOST!PORT")
    try:
        parse(address)
        plain = await connect(address)
    except ValueError as e:
        raise Unjoined("dial", errno.EINVAL, str(e), "write tls!HOST!PORT") from None
    except OSError as e:
        text = f"nobody answers at {address}: {e.strerror or e}"
        way_out = "see that the queen runs, and that ADDR is what her run/queen/addr says"
        raise Unjoined("dial", e.errno or errno.EHOSTUNREACH, text, way_out) from None
    plain.socket.setblocking(False)
    context = joining_context(pem(ticket.certificate))
    wrapped = context.wrap_socket(plain.socket, do_handshake_on_connect=False, server_hostname=None)
    return SecureChannel(wrapped)


async def _prove(channel: SecureChannel, ticket: Ticket) -> tls.Peer:
    try:
        return await channel.prove(ticket.hive, ticket.queen)
    except (ssl.SSLError, tls.Unwelcome) as e:
        reason = tls.reason(e)
        detail = e.detail if isinstance(e, tls.Unwelcome) else ""
        text = f"{reason}: {detail or tls.REASONS[reason]}"
        if reason == "unknown_ca":
            text = "another hive answers: the root in the token does not vouch for it"
        way_out = "nothing was sent; see that ADDR is of the hive that the token is for"
        raise Unjoined("queen", errno.EACCES, text, way_out) from None
    except OSError as e:
        text = f"it hung up in the handshake: {e.strerror or e}"
        raise Unjoined("queen", errno.ECONNRESET, text, "see that ADDR is a queen's tls! address") from None


async def _ask(
    channel: SecureChannel, ticket: Ticket, key: PrivateKey, deadline: float
) -> tuple[bytes, bytes]:
    try:
        async with dial(channel, deadline=deadline) as files:
            chain = await sign(files, "/csr", ticket.write().encode() + b"\n" + request(key))
            return chain, await files.read("/bundle")
    except OSError as e:
        said = e.strerror or str(e)
        if isinstance(e, ConnectionError):
            text, way_out = f"it hung up: {said}", "see that it is a queen, and that she takes joiners"
        elif said.startswith("409"):
            text, way_out = said, "have a token with another --name, or the old certificate revoked"
        elif said.startswith("403"):
            text, way_out = said, "a token is good once and not for long; have another: warren token invite"
        else:
            text, way_out = said, "her log names the reason; the same token counts until it ends"
        raise Unjoined("ask", e.errno or errno.EIO, text, way_out) from None


async def sign(files: Files, path: str, asked: bytes) -> bytes:
    """Write what is ASKED to a csr file and read the chain. Cancelled: it may have been signed."""
    async with await files.open(path, os.O_RDWR) as csr:
        await csr.write(asked)
        return await csr.pread(LONGEST_CHAIN, 0)


def _checked(ticket: Ticket, key: PrivateKey, chain: bytes, bundle: bytes) -> Joined:
    try:
        leaf, roots = load_chain(chain, "the chain")[0], load_chain(bundle, "the bundle")
        fits = same_key(leaf, key) and uris(leaf) == [ticket.uri] and ticket.certificate in roots
    except Unfit:
        fits = False
    if not fits:
        text = "the answer is no certificate for this key and name under the token's root"
        raise Unjoined("certificate", errno.EBADMSG, text, "tell whoever runs the hive; nothing was written")
    return Joined(ticket.uri, chain, key, bundle)


def keep(joined: Joined, directory: Path) -> None:
    """Write an identity into a directory, the certificate last: without it there is none."""
    keyfiles.make_directory(directory)
    with keyfiles.locked(directory):
        keyfiles.write_whole(directory / "key.pem", key_pem(joined.key))
        keyfiles.write_whole(directory / "ca.pem", joined.ca)
        keyfiles.write_whole(directory / "cert.pem", joined.chain)
