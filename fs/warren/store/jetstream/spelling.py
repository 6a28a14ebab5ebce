"""How names, records and addresses are written for JetStream.

    topic   a/b.c      subject  PREFIX.log.a.b=c      a message is a lot: records in a row, or a trim
    key     a/b.c      subject  $KV.PREFIX.a.b=c      the value as it is, as any client of a bucket writes it

A part of a name becomes a part of a subject. The dot within, which ends a part of a subject, is written =.
"""

from __future__ import annotations

import re
import secrets
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec
from warren.store.interface import StoreFailed

OVERHEAD: Final = 8192  # what a subject, headers and the frame of a lot take of the largest message
REPLICAS: Final = (1, 3, 5)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
WAY_OUT: Final = "write nats://HOST:PORT[,HOST:PORT...][/PREFIX][?replicas=1|3|5]"


class Address(NamedTuple):
    """Where a store is, and which one it is there."""

    servers: list[str]
    prefix: str
    replicas: int

    @property
    def shown(self) -> str:
        """The address for people and logs, without what proves who one is."""
        hosts = ",".join(re.split("[@/]", server)[-1] for server in self.servers)
        return f"nats://{hosts}/{self.prefix}"


def read_address(text: str, prefix: str) -> Address:
    """An address as it is written in a role file. Without a prefix of its own it has PREFIX."""
    shown = re.sub(r"//[^/]*@", "//", text)
    try:
        parts = urlsplit(text)
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        replicas = int(options.pop("replicas", ["1"])[0])
    except ValueError:
        raise StoreFailed(f"{shown}: not an address of a store; {WAY_OUT}") from None
    prefix = parts.path.strip("/") or prefix
    if parts.scheme not in ("nats", "tls") or not parts.netloc or options or parts.fragment:
        raise StoreFailed(f"{shown}: not an address of a store; {WAY_OUT}")
    if not _PREFIX.fullmatch(prefix):
        raise StoreFailed(f"{shown}: {prefix!r} is no prefix: at most 64 letters, digits, _ and -; {WAY_OUT}")
    if replicas not in REPLICAS:
        raise StoreFailed(f"{shown}: {replicas} replicas decide nothing better than fewer; {WAY_OUT}")
    who, at, hosts = parts.netloc.rpartition("@")
    servers = [f"{parts.scheme}://{who}{at}{host}" for host in hosts.split(",")]
    return Address(servers, prefix, replicas)


def tokens(name: str) -> str:
    return name.replace(".", "=").replace("/", ".")


def name_of(tokens: str) -> str:
    return tokens.replace(".", "/").replace("=", ".")


def below(root: str, name: str) -> tuple[str, ...]:
    """The subjects that together are NAME and all below it; "" is above all."""
    if not name:
        return (f"{root}.>",)
    return f"{root}.{tokens(name)}", f"{root}.{tokens(name)}.>"


class Lot(msgspec.Struct, array_like=True, frozen=True):
    """One message of a topic. It says how things stand once it is there, so the newest says it for all."""

    mark: bytes  # of the write it belongs to: by this a writer knows its own again
    floor: int  # forgotten through here
    first: int  # the number of its first record, or of the next one if it has none
    records: tuple[bytes, ...]

    @property
    def last(self) -> int:
        """The number given last."""
        return self.first + len(self.records) - 1


def new_mark() -> bytes:
    return secrets.token_bytes(8)


encode_lot = msgspec.msgpack.Encoder().encode
decode_lot = msgspec.msgpack.Decoder(Lot).decode
