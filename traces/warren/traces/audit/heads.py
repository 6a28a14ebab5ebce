"""Signed heads: what the audit was at a moment, kept where its writer's disk is not.

A head names the last durable line (history, segment, sequence, hash) and a time, signed. Whoever cuts
the tail of an audit or writes its history anew makes a chain that is whole again, but not the one that
was signed. The signer and the second place are ports; `HeadFiles` is the simplest second place, a
directory on another disk, with a file for each segment.

What is signed is the JSON line of the head without `,"sig":"…"`, behind the words of CONTEXT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

CONTEXT = b"warren audit head 1\n"
_MAX_HEAD = 4096
_SIG = b',"sig":"'


class Signer(Protocol):
    """Signs heads."""

    @property
    def key_id(self) -> str:
        """Which key this is, for whoever verifies."""

    def sign(self, data: bytes) -> bytes:
        """The signature over DATA."""


class Checker(Protocol):
    """Checks what a signer signed."""

    def check(self, signature: bytes, data: bytes) -> bool:
        """Whether SIGNATURE is over DATA."""


Keys = Mapping[str, Checker]  # by key id


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The audit at a moment."""

    chain: str
    segment: int
    seq: int
    h: str
    ts: float
    key: str
    sig: str = ""  # hex

    def line(self) -> bytes:
        """As it is kept."""
        return _body(self)[:-1] + _SIG + self.sig.encode() + b'"}\n'


def _body(head: Head) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(head, sig=""))


def parse_head(raw: bytes) -> tuple[Head, bytes] | None:
    """(the head, what its signature is over) of a line, or None if it is none."""
    body, found, _ = raw.rpartition(_SIG)
    try:
        head = msgspec.json.decode(raw, type=Head)
        exact = bytes.fromhex(head.sig).hex() == head.sig
    except (msgspec.DecodeError, ValueError):
        return None
    whole = exact and found and raw == body + _SIG + head.sig.encode() + b'"}\n'
    return (head, CONTEXT + body + b"}") if whole else None


class Heads(Protocol):
    """The second place. It is called from a worker thread, one head at a time."""

    def __call__(self, head: Head, /) -> None:
        """Keep HEAD; OSError means it is not kept, and a later one will be offered."""


def signed(chain: str, segment: int, seq: int, h: str, ts: float, signer: Signer) -> Head:
    """A head with its signature."""
    bare = Head(chain, segment, seq, h, ts, signer.key_id)
    return msgspec.structs.replace(bare, sig=signer.sign(CONTEXT + _body(bare)).hex())


class HeadFiles:
    """Heads in a directory, a file for each segment."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __call__(self, head: Head) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.directory / f"{head.segment:08}.heads", flags, 0o600)
        try:
            raw = head.line()
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":  # a head that was cut short stays apart
                raw = b"\n" + raw
            if os.write(fd, raw) != len(raw):
                raise OSError(28, "the head was cut short")
            os.fdatasync(fd)
        finally:
            os.close(fd)


def read_heads(directory: str | os.PathLike[str]) -> Iterator[tuple[str, int, tuple[Head, bytes] | None]]:
    """(file, line, what `parse_head` says of it) in the order of segments."""
    for path in sorted(Path(directory).glob("*.heads")):
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(_MAX_HEAD):
                number += 1
                yield path.name, number, parse_head(raw)
