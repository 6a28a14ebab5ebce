"""What the files of topics and queues have in common: `key=value` words, an empty line, a body."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import trio
from warren.mount.file import File
from warren.mount.sdk.patience import Tries
from warren.tree import split

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

WAIT: Final = 25.0  # seconds that one read waits; a peer that is gone without a word is found so
_LINE: Final = 4096
_MUTE: Final = 1024
_HEAD: Final = 16 << 10


async def answer(file: File) -> dict[str, str]:
    """What a writer reads back: `key=value` words."""
    return words(await file.pread(_LINE, 0))


def words(line: bytes) -> dict[str, str]:
    """`key=value` words as a mapping; others are left out."""
    found = (word.partition("=") for word in split(line.decode("utf-8", "replace").replace("\n", " ")))
    return {name: value for name, eq, value in found if eq}


def parted(data: bytes) -> tuple[dict[str, str], bytes]:
    """What stands before the empty line, and what behind."""
    head, _, body = data.partition(b"\n\n")
    return words(head), body


async def make(node: Node, path: str) -> None:
    """A directory at PATH, if there is none."""

    async def work(tries: Tries) -> None:
        try:
            await node.files.mkdir(path)
        except FileExistsError:
            pass

    await node.do(path, work)


async def ask(node: Node, path: str, data: bytes) -> dict[str, str]:
    """One body or line, and what is answered; nothing where one may write and not read."""
    mute = path in node.mute
    try:
        file = await node.files.open(path, os.O_WRONLY if mute else os.O_RDWR)
    except PermissionError:
        if mute:
            raise
        file, mute = await node.files.open(path, os.O_WRONLY), True
        if len(node.mute) < _MUTE:
            node.mute.add(path)  # or each further write would be denied once, and stand so in the audit
    async with file:
        await file.write(data)
        return {} if mute else await answer(file)


async def take(node: Node, path: str, options: str) -> bytes:
    """What one open of PATH gives after these OPTIONS were written; b"" if nothing comes in WAIT seconds.

    Cancelled: nothing was taken, or it is given back.
    """

    options += f" wait={WAIT:g}s"
    limit = WAIT + node.files.deadline

    async def work(tries: Tries) -> bytes:
        file = await node.files.open(path, os.O_RDWR | os.O_NONBLOCK)
        data, total = b"", 1
        try:
            await file.write(options.encode())
            with trio.move_on_after(limit) as patience:
                data = await file.record()
            if patience.cancelled_caught:
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {limit:g} s", path)
            total = _total(data)
            while len(data) < total:
                more = await file.pread(total - len(data), len(options) + len(data))
                if not more:
                    raise OSError(errno.EBADMSG, f"{len(data)} of {total} bytes came", path)
                data += more
        finally:
            try:
                await file.close()
            except ConnectionError:
                if len(data) < total:
                    raise
        return data

    return await node.do(path, work, waits=True)


def _total(data: bytes) -> int:
    """How long all of it is, by what its head says."""
    head, empty, _ = data[:_HEAD].partition(b"\n\n")
    return len(head) + len(empty) + int(words(head).get("len", "0")) if empty else len(data)
