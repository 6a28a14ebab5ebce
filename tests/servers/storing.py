"""A storage under test: its tree served over memory streams, and clients that put and read."""

import gzip
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from warren.p9 import messages as p9
from warren.p9.messages import WARREN
from warren.servers.storage import Storage
from warren.store import MemoryStore, Store

from tests.servers.clock import StillClock
from tests.wire import EVERYTHING, O_RDWR, O_WRONLY, RefusedBy, Service, Wire, served

ANN, BOB = "spiffe://hive/user/ann", "spiffe://hive/user/bob"
CHUNK = 64 << 10


def address(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def squeezed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


class Client:
    """One conversation with a storage."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.fid = 0

    async def open(self, path: str, flags: int = 0) -> int:
        self.fid += 1
        await self.wire.open(path, self.fid, flags)
        return self.fid

    async def send(self, fid: int, body: bytes, at: int = 0, piece: int = 60_000) -> None:
        for offset in range(0, len(body), piece):
            await self.wire.write(fid, body[offset : offset + piece], at + offset)

    async def fsync(self, fid: int) -> None:
        await self.wire.want(p9.Rfsync, p9.Tfsync(fid, 0))

    async def put(self, body: bytes, piece: int = 60_000) -> str:
        """The address that is read back after an fsync."""
        fid = await self.open("put", O_RDWR)
        try:
            await self.send(fid, body, piece=piece)
            await self.fsync(fid)
            return (await self.wire.read(fid)).decode().removesuffix("\n")
        finally:
            await self.wire.clunk(fid)

    async def declare(self, line: str, body: bytes, piece: int = 60_000) -> str:
        """The address after the last byte of a declared body."""
        fid = await self.open("declared", O_RDWR)
        try:
            await self.send(fid, f"{line}\n".encode() + body, piece=piece)
            return (await self.wire.read(fid)).decode().removesuffix("\n")
        finally:
            await self.wire.clunk(fid)

    async def range(self, path: str, offset: int, count: int) -> bytes:
        """One read."""
        fid = await self.open(path)
        try:
            return await self.wire.read(fid, offset, count)
        finally:
            await self.wire.clunk(fid)

    async def read(self, path: str, piece: int = 60_000) -> bytes:
        """All of a file."""
        fid, got = await self.open(path), b""
        try:
            while data := await self.wire.read(fid, len(got), piece):
                got += data
            return got
        finally:
            await self.wire.clunk(fid)

    async def ctl(self, line: str) -> str:
        fid = await self.open("ctl", O_RDWR)
        try:
            await self.wire.write(fid, line.encode())
            return (await self.wire.read(fid)).decode().removesuffix("\n")
        finally:
            await self.wire.clunk(fid)

    async def name(self, name: str, to: str) -> None:
        """Make a name in refs."""
        self.fid += 1
        await self.wire.walk("refs", self.fid)
        await self.wire.want(p9.Rlcreate, p9.Tlcreate(self.fid, name, O_WRONLY, 0o644, 0))
        try:
            await self.wire.write(self.fid, f"{to}\n".encode())
        finally:
            await self.wire.clunk(self.fid)

    async def unname(self, name: str) -> None:
        self.fid += 1
        await self.wire.walk("refs", self.fid)
        await self.wire.want(p9.Runlinkat, p9.Tunlinkat(self.fid, name, 0))

    async def has(self, path: str) -> bool:
        self.fid += 1
        try:
            await self.wire.walk(path, self.fid)
        except (AssertionError, RefusedBy):
            return False
        await self.wire.clunk(self.fid)
        return True


class Storing:
    """A storage, and what stands behind it."""

    def __init__(self, service: Service, storage: Storage, folder: Path, clock: StillClock) -> None:
        self.service, self.storage, self.folder, self.clock = service, storage, folder, clock

    async def client(self, subject: str = "any") -> Client:
        return Client(await self.service.dial(WARREN, msize=1 << 20, subject=subject))

    def file(self, address: str) -> Path:
        """Where a blob lies."""
        hex = address.removeprefix("sha256:")
        return self.folder / hex[:2] / hex

    def spoil(self, address: str, at: int) -> None:
        """Flip one bit on the disk."""
        path = self.file(address)
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)

    def lying(self) -> list[str]:
        """Every file in the directory of blobs, but for what the directory itself needs."""
        return sorted(
            str(p.relative_to(self.folder))
            for p in self.folder.rglob("*")
            if p.is_file() and p.name not in ("lock", "key")
        )

    async def counts(self) -> dict[str, float]:
        text = (await (await self.client()).read("stats")).decode()
        return {line.rpartition("=")[0].replace(" n", ""): float(line.rpartition("=")[2])
                for line in text.splitlines()}  # fmt: skip

    async def used(self, subject: str) -> dict[str, str]:
        """One subject's line of `quota`."""
        for line in (await (await self.client()).read("quota")).decode().splitlines():
            said = dict(word.split("=", 1) for word in line.split())
            if said["subject"] == subject:
                return said
        return {}


@asynccontextmanager
async def storing(
    folder: Path, store: Store | None = None, clock: StillClock | None = None,
    allow: Sequence[str] = EVERYTHING, **limits: Any,
) -> AsyncIterator[Storing]:  # fmt: skip
    """A storage in FOLDER until the block ends."""
    clock = clock or StillClock()
    storage = Storage(folder, store or MemoryStore(), clock, **limits)
    try:
        async with served(storage, allow) as service:
            yield Storing(service, storage, folder, clock)
    finally:
        storage.close()
