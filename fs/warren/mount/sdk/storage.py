"""A storage: blobs that are named by what they hold.

    address = await n.storage.put(b"...")                   sha256:…, which sha256sum says too
    address = await n.storage.put(Path("picture.webp"))     of any size, never all of it in memory
    data = await n.storage.get(address)
    await n.storage.save(address, Path("picture.webp"))
    await n.storage.name("front-page", address)             what has no name may be collected

**A put whose reply was lost is safe**: the same content has the same address, and lies there once. Each try
sends all of it. What the storage answers is compared with what was sent, and what is read with its address,
so neither a network nor a disk can change a byte unseen.

A put or get has a second more for each MiB than other calls.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import trio
from warren.mount.sdk.patience import UNKNOWN, Tries

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

PIECE: Final = 1 << 20
MOST: Final = 64 << 20
_ADDRESS: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


class Storage:
    """One storage. Made by `Node.storage`."""

    def __init__(self, node: Node, path: str) -> None:
        self.node, self.path = node, path

    # Storing

    async def put(self, what: bytes | os.PathLike[str], *, deadline: float | None = None) -> str:
        """Store bytes, or the file at a path; the address, once it is durable.

        Cancelled: it is stored, or not; never a part.
        """
        if isinstance(what, bytes):
            data, size = what, len(what)

            async def give(write: Callable[[bytes], Awaitable[None]]) -> None:
                for at in range(0, size, PIECE):
                    await write(data[at : at + PIECE])

        else:
            local, size = Path(what), os.stat(what).st_size

            async def give(write: Callable[[bytes], Awaitable[None]]) -> None:
                async with await trio.open_file(local, "rb") as file:
                    while piece := await file.read(PIECE):
                        await write(piece)

        path = f"{self.path}/put"

        async def work(tries: Tries) -> str:
            found = hashlib.sha256()
            async with await self.node.files.open(path, os.O_RDWR) as file:

                async def write(piece: bytes) -> None:
                    found.update(piece)
                    await file.write(piece)

                await give(write)
                await file.fsync()  # a close would commit as well, and has no voice
                address = (await file.pread(4096, 0)).decode("ascii", "replace").strip()
            if not address:
                # Another descriptor answered: the one that stored it went with its connection.
                raise ConnectionResetError(errno.ECONNRESET, f"the answer was lost; {UNKNOWN}", path)
            if address != f"sha256:{found.hexdigest()}":
                text = f"what was sent is sha256:{found.hexdigest()}, the storage says {address[:80]!r}"
                raise OSError(errno.EBADMSG, text, path)
            return address

        return await self.node.do(path, work, deadline=self._deadline(deadline, size))

    def _deadline(self, deadline: float | None, size: int) -> float:
        return self.node.patience.deadline + size / (1 << 20) if deadline is None else deadline

    # Having

    async def have(self, address: str) -> bool:
        """Whether the blob is there, and may be read."""

        async def work(tries: Tries) -> bool:
            try:
                return (await self.node.files.read(path)).strip() == b"1"
            except FileNotFoundError:
                return False

        path = f"{self.path}/have/{_checked(address)}"
        return await self.node.do(path, work)

    async def size(self, address: str) -> int:
        """How long it is."""
        path = f"{self.path}/{_checked(address)}"
        return (await self.node.do(path, lambda tries: self.node.files.stat(path))).size

    async def get(self, address: str, *, most: int = MOST, deadline: float | None = None) -> bytes:
        """All of a blob that has at most MOST bytes. Cancelled has no effect."""
        size = await self.size(address)
        if size > most:
            text = f"it has {size} bytes, and at most {most} were asked for; use save, or say most="
            raise OSError(errno.EFBIG, text, f"{self.path}/{address}")

        async def work(tries: Tries) -> bytes:
            async with aclosing(self._pieces(address, size)) as coming:
                return b"".join([piece async for piece in coming])

        path = f"{self.path}/{address}"
        return await self.node.do(path, work, deadline=self._deadline(deadline, size))

    async def save(
        self, address: str, local: str | os.PathLike[str], *, deadline: float | None = None
    ) -> int:
        """Write a blob to a file of this machine, whole or not at all; its size.

        Cancelled: LOCAL is as it was.
        """
        size, where = await self.size(address), Path(local)
        aside = where.with_name(f".{where.name}.{os.urandom(4).hex()}")

        async def work(tries: Tries) -> None:
            async with await trio.open_file(aside, "wb") as file:
                async with aclosing(self._pieces(address, size)) as coming:
                    async for piece in coming:
                        await file.write(piece)
                await trio.to_thread.run_sync(_settled, file.wrapped)
            os.replace(aside, where)

        try:
            path = f"{self.path}/{address}"
            await self.node.do(path, work, deadline=self._deadline(deadline, size))
        finally:
            aside.unlink(missing_ok=True)
        return size

    async def _pieces(self, address: str, size: int) -> AsyncGenerator[bytes, None]:
        """The content, piece by piece; the end is reached only if it is what the address says."""
        path, found, at = f"{self.path}/{address}", hashlib.sha256(), 0
        file = await self.node.files.open(path)
        try:
            while piece := await file.pread(8 * PIECE, at):
                found.update(piece)
                at += len(piece)
                yield piece
        finally:
            await file.close()
        if f"sha256:{found.hexdigest()}" != address:
            text = f"what came is {at} of {size} bytes, sha256:{found.hexdigest()}; ask ctl to verify it"
            raise OSError(errno.EBADMSG, text, path)

    # Names

    async def name(self, name: str, address: str) -> None:
        """Let NAME mean a blob, whatever it meant before: what it means is not collected."""
        path, line = f"{self.path}/refs/{_named(name)}", f"{_checked(address)}\n".encode()

        async def work(tries: Tries) -> None:
            async with await self.node.files.open(path, os.O_WRONLY | os.O_CREAT) as file:
                await file.write(line)

        await self.node.do(path, work)

    async def named(self, name: str) -> str:
        """What NAME means."""
        return (await self.node.read(f"{self.path}/refs/{_named(name)}")).decode().strip()

    async def forget(self, name: str) -> None:
        """NAME means nothing any more. Cancelled: it is gone, or not."""
        path = f"{self.path}/refs/{_named(name)}"

        async def work(tries: Tries) -> None:
            try:
                await self.node.files.remove(path)
            except FileNotFoundError:
                if not tries.unsure:
                    raise

        await self.node.do(path, work)


def _checked(address: str) -> str:
    if _ADDRESS.fullmatch(address) is None:
        raise ValueError(f"{address[:80]!r} is no address; one is sha256: and 64 digits, lower case")
    return address


def _named(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!r} is no name: 1 to 100 letters, digits and _ . -, no dot in front")
    return name


def _settled(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
