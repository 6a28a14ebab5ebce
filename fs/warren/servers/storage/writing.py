"""The two files that take a body: `put`, and `declared`, whose first line says what follows.

The rules are those of the word Blob: written in order from the first byte; committed by fsync, by the last
byte of a declared length, or by clunk; discarded by a disconnect. A body goes to a file of its own as it
comes, so that one of many gigabytes needs little memory, and is charged to its subject meanwhile.

An fsync commits also where nothing was written: the empty file is a content like any other. A clunk without
a byte commits nothing, since that is how a shell looks at a file.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, Protocol

import trio
from warren.servers.storage.accounts import Account, Accounts
from warren.servers.storage.shelf import Coming, is_hex
from warren.tree import Bytes, Caller, Changes, Handle, Maybe, Node, Refused, split
from warren.tree.inflate import Guard, Inflating
from warren.tree.node import BLOB

INLINE: Final = 64 << 10  # bytes that are written and hashed in the loop
SQUEEZED: Final = 4 << 10  # the same of bytes that may become more
SYNC: Final = 64 << 20  # bytes that may wait for their fsync
LINE: Final = 512
_ACCESS: Final = 0o3
ADDRESS: Final = "sha256:"


class Storing(Protocol):
    """What a body needs of the server."""

    accounts: Accounts
    guard: Guard
    largest: int
    loaded: bool

    def begin(self) -> Coming:
        """A file for a body."""

    async def ready(self) -> None:
        """The accounts are read."""

    async def store(self, coming: Coming, account: Account) -> None:
        """Give a body its name, and charge for it."""

    def now(self) -> float:
        """The time, for the blob."""


class Body:
    """One body, from its first byte to its name. It belongs to one handle."""

    def __init__(self, server: Storing, subject: str, inflating: Inflating | None = None) -> None:
        self.server, self.subject = server, subject
        self.account: Account | None = None
        self._inflating = inflating
        self._coming: Coming | None = None
        self._reserved = 0
        self._waiting: list[bytes] = []
        self._lock = trio.Lock()
        self._failed: OSError | None = None
        self._gone = False

    def take(self, data: Bytes) -> Awaitable[None] | None:
        """The next bytes. Cancelled means that they were taken. A refusal is for good."""
        self._check()
        try:
            self._reserve(0 if self._inflating else len(data))
            if self._coming is None:
                self._coming = self.server.begin()
            idle = not self._waiting and not self._lock.locked()
            few = len(data) <= (SQUEEZED if self._inflating else INLINE)
            if idle and few and self._coming.unsynced < SYNC:
                self._add(data)
                if self._inflating is not None:
                    self._reserve(self._coming.size - self._reserved)
                return None
        except OSError as e:
            self.fail(e)
            raise
        self._waiting.append(bytes(data))
        return self._drain()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._gone:
            raise Refused(409, "this body was given up; open the file again for another")

    def _reserve(self, size: int) -> None:
        """Room for further bytes of content, whoever sent fewer."""
        accounts, largest = self.server.accounts, self.server.largest
        if self._reserved + size > largest:
            raise Refused(413, f"a blob is at most {largest} bytes here; put it in parts")
        if self.account is None:
            self.account = accounts.begin(self.subject)
        accounts.reserve(self.account, size)
        self._reserved += size

    async def _drain(self) -> None:
        async with self._lock:
            try:
                await self._write()
            finally:
                self._let_go()

    async def _write(self) -> None:
        """Write what waits. The lock is held."""
        self._check()
        try:
            await trio.to_thread.run_sync(self._add_waiting)
            if self._inflating is not None and self._coming is not None:
                self._reserve(self._coming.size - self._reserved)
        except OSError as e:
            self._failed = e
            raise

    def _add_waiting(self) -> None:
        while self._waiting:
            self._add(self._waiting.pop(0))
            if self._coming is not None and self._coming.unsynced >= SYNC:
                self._coming.sync()

    def _add(self, data: Bytes) -> None:
        assert self._coming is not None
        if self._inflating is None:
            self._coming.add(data)
        else:
            for piece in self._inflating.feed(data):
                self._coming.add(piece)

    async def commit(self, address: str = "") -> str:
        """All of it came: give it its name. With ADDRESS, only if that is it.

        Cancelled: it is committed, or can be committed again.
        """
        async with self._lock:
            try:
                self._check()
                self._reserve(0)
                assert self.account is not None
                if self._coming is None:
                    self._coming = self.server.begin()
                await self._write()
                if self._inflating is not None:
                    self._inflating.end()
                hex = await trio.to_thread.run_sync(self._coming.finish, self.server.now())
                if address and address != ADDRESS + hex:
                    raise Refused(422, f"{address} was declared, what came is {ADDRESS}{hex}; send it again")
                await self.server.store(self._coming, self.account)
                self._gone = True
                return ADDRESS + hex
            except OSError as e:
                self._failed = e
                raise
            finally:
                self._let_go()

    def fail(self, e: OSError) -> None:
        """Nothing becomes of this body; whoever goes on with it hears the same again."""
        self._failed = self._failed or e
        if not self._lock.locked():
            self._let_go()

    def discard(self) -> None:
        """Give it up. What a thread is still at is left to who waits for that thread."""
        self._gone = True
        if not self._lock.locked():
            self._let_go()

    def _let_go(self) -> None:
        if not self._gone and self._failed is None:
            return
        if self._coming is not None:
            self._coming.discard()
        self._waiting.clear()
        if self.account is not None:
            self.server.accounts.end(self.account, self._reserved)
            self.account, self._reserved = None, 0


class Put(Node):
    """`put`: the bytes as they come."""

    mode = 0o200
    swallows_truncate = True
    word = BLOB

    def __init__(self, server: Storing) -> None:
        self.server = server

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        handle = self.handle(caller.subject)
        handle.writes = bool(flags & _ACCESS)
        return handle if self.server.loaded else self._later(handle)

    async def _later(self, handle: PutHandle) -> Handle:
        await self.server.ready()
        return handle

    def handle(self, subject: str) -> PutHandle:
        return PutHandle(self.server, subject)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class PutHandle(Handle):
    """An open `put`."""

    tells = True
    writes = False
    address = ""  # what the content must be, where that was declared

    def __init__(self, server: Storing, subject: str) -> None:
        self.server, self.subject = server, subject
        self.body: Body | None = None
        self.size = 0  # bytes that were taken from the wire
        self.says = b""
        self.done = False
        self.failed: OSError | None = None

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if self.failed is not None:
            raise self.failed
        if self.done:
            raise Refused(409, "this body was committed; open the file again for another")
        size = len(data)
        try:
            if offset != self.size:
                raise Refused(416, f"a body is written in order; the next byte is {self.size}")
            waits = self.take(data)
        except OSError as e:
            # What a writer was refused and closes nevertheless must not become a shorter body.
            self.failed = e
            self.abandon()
            raise
        self.size += size
        return size if waits is None else _count(waits, size)

    def take(self, data: Bytes) -> Awaitable[None] | None:
        """The next bytes from the wire."""
        if self.body is None:
            self.body = Body(self.server, self.subject)
        return self.body.take(data)

    def fsync(self) -> Maybe[None]:
        if self.failed is not None:
            raise self.failed
        return None if self.done or not self.writes else self.commit()

    async def commit(self) -> None:
        """Cancelled: it is committed, or can be committed again."""
        body = self.body = self.body or Body(self.server, self.subject)
        self.done = True  # for writes that come meanwhile
        try:
            address = await body.commit(self.address)
        except OSError as e:
            self.failed = e
            raise
        except trio.Cancelled:
            self.done = False
            raise
        self.says = f"{address}\n".encode()

    def close(self) -> Maybe[None]:
        if self.done or not self.size:
            self.abandon()
            return None
        return self._close()

    async def _close(self) -> None:
        """Cancelled: it is committed or discarded."""
        try:
            await self.commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        body, self.body = self.body, None
        self.done = True
        if body is not None:
            body.discard()

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.says[offset : offset + count]


async def _count(waits: Awaitable[None], size: int) -> int:
    await waits
    return size


@dataclass(frozen=True)
class Declaration:
    """The first line of a declared body."""

    len: int
    encoding: str = ""
    address: str = ""

    @classmethod
    def parse(cls, line: bytes) -> Declaration:
        shape = "`len=BYTES [encoding=NAME] [address=sha256:HEX]`"
        said: dict[str, str] = {}
        try:
            words = split(line.decode().rstrip("\r"))
        except UnicodeDecodeError:
            raise Refused(400, f"the first line is {shape}, and this is not text") from None
        for word in words:
            key, _, value = word.partition("=")
            if key not in ("len", "encoding", "address") or key in said or not value:
                raise Refused(400, f"the first line is {shape}; {word[:80]!r} does not belong there")
            said[key] = value
        size, address = said.get("len", ""), said.get("address", "")
        if not (size.isascii() and size.isdigit()) or len(size) > 18:
            raise Refused(400, f"the first line is {shape}; len is a number of bytes")
        if address and not (address.startswith(ADDRESS) and is_hex(address.removeprefix(ADDRESS))):
            raise Refused(400, f"the first line is {shape}; the address is sha256: and 64 digits, lower case")
        return cls(int(size), said.get("encoding", ""), address)


class Declared(Put):
    """`declared`: a line, then so many bytes. The last one commits, or its write fails."""

    def handle(self, subject: str) -> PutHandle:
        return DeclaredHandle(self.server, subject)


class DeclaredHandle(PutHandle):
    """An open `declared`."""

    def __init__(self, server: Storing, subject: str) -> None:
        super().__init__(server, subject)
        self.line = b""
        self.left: int | None = None  # bytes that are still to come, once that was said

    def take(self, data: Bytes) -> Awaitable[None] | None:
        if self.left is not None:
            return self._rest(data)
        line, found, rest = (self.line + bytes(data)).partition(b"\n")
        if len(line) > LINE or not (found or len(self.line) + len(data) <= LINE):
            raise Refused(400, f"the first line is at most {LINE} bytes, and says `len=BYTES`")
        if not found:
            self.line = line
            return None
        said = Declaration.parse(line)
        self._begin(said)
        return self._rest(rest)

    def _begin(self, said: Declaration) -> None:
        if said.len > self.server.largest:
            largest = self.server.largest
            raise Refused(413, f"{said.len} bytes are too many, a blob is at most {largest}; put it in parts")
        inflating = self.server.guard.begin(said.encoding, self.server.largest) if said.encoding else None
        self.body = Body(self.server, self.subject, inflating)
        self.left, self.address = said.len, said.address

    def _rest(self, data: Bytes) -> Awaitable[None] | None:
        assert self.left is not None
        if len(data) > self.left:
            raise Refused(413, f"{self.left} more bytes were declared, {len(data)} came")
        assert self.body is not None
        waits = self.body.take(data)
        self.left -= len(data)
        return waits if self.left else self._last(waits)

    async def _last(self, waits: Awaitable[None] | None) -> None:
        if waits is not None:
            await waits
        await self.commit()

    def fsync(self) -> Maybe[None]:
        if self.failed is not None:
            raise self.failed
        if self.done or self.left is None:
            return None
        if self.left:
            raise self._missing()
        return self.commit()

    def close(self) -> Maybe[None]:
        if self.done or self.left is None:
            self.abandon()
            return None
        if self.left:
            raise self._missing()
        return self._close()

    def _missing(self) -> Refused:
        self.abandon()
        self.failed = missing = Refused(422, f"{self.left} bytes of the declared length are missing")
        return missing
