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


class Head(msgspec.Struct, frozen=True):
    """The audit at a moment."""

    chain: str
    segment: int
    seq: int
    h: str
    ts: float
    key: str
    sig: str = ""  # hex

    def signed(self) -> bytes:
        """What the signature is over."""
        said = {name: getattr(self, name) for name in self.__struct_fields__ if name != "sig"}
        return CONTEXT + msgspec.json.encode(said)

    def valid(self, checker: Checker) -> bool:
        """Whether the signature is this key's."""
        try:
            return checker.check(bytes.fromhex(self.sig), self.signed())
        except ValueError:
            return False


class Heads(Protocol):
    """The second place. It is called from a worker thread, one head at a time."""

    def __call__(self, head: Head) -> None:
        """Keep HEAD; OSError means it is not kept, and a later one will be offered."""


def signed(chain: str, segment: int, seq: int, h: str, ts: float, signer: Signer) -> Head:
    """A head with its signature."""
    bare = Head(chain, segment, seq, h, ts, signer.key_id)
    return msgspec.structs.replace(bare, sig=signer.sign(bare.signed()).hex())


class HeadFiles:
    """Heads in a directory, a file for each segment."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __call__(self, head: Head) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.directory / f"{head.segment:08}.heads", flags, 0o600)
        try:
            raw = msgspec.json.encode(head) + b"\n"
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":  # a head that was cut short stays apart
                raw = b"\n" + raw
            if os.write(fd, raw) != len(raw):
                raise OSError(28, "the head was cut short")
            os.fdatasync(fd)
        finally:
            os.close(fd)


def read_heads(directory: str | os.PathLike[str]) -> Iterator[tuple[str, int, Head | None]]:
    """(file, line, head) in the order of segments; None for a line that is no head."""
    for path in sorted(Path(directory).glob("*.heads")):
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(_MAX_HEAD):
                number += 1
                try:
                    yield path.name, number, msgspec.json.decode(raw, type=Head)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    yield path.name, number, None
