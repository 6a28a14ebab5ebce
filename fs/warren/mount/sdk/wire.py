"""What the files of topics and queues have in common: `key=value` words, an empty line, a body."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from warren.mount.file import File
from warren.mount.link import Link, Op
from warren.mount.sdk.patience import Tries, code
from warren.p9.messages import Rread, Tread, Twrite
from warren.tree import Refused, split

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

KEPT: Final = 64
WAIT: Final = 25.0  # seconds that one read waits; a peer that is gone without a word is found so
_LINE: Final = 4096
_MUTE: Final = 1024
_HEAD: Final = 16 << 10
_TOGETHER: Final = 32  # messages
_LONGEST: Final = 64 << 20  # bytes of what comes at once
_NUMBER: Final = 10**15 - 1  # of a message or task
_MORE: Final = 64 << 10  # that is asked for at once where it is not known yet how much there is


class Shelf:
    """Files that are kept open, to be used again: what a close and an open cost is that much of a message.

    At most KEPT of them lie here. Of those that lie here longest one is closed for each further one.
    """

    def __init__(self, background: trio.Nursery) -> None:
        self._background = background
        self._files: dict[int, tuple[str, File]] = {}

    def take(self, path: str) -> File | None:
        """The file of that path that was put here last."""
        for key, (name, file) in reversed(self._files.items()):
            if name == path:
                del self._files[key]
                return file
        return None

    def put(self, path: str, file: File) -> None:
        """It is not used for now."""
        self._files[id(file)] = path, file
        if len(self._files) > KEPT:
            _, oldest = self._files.pop(next(iter(self._files)))
            self.drop(oldest)

    def drop(self, file: File) -> None:
        """Close one. What was written is known by its answers, so nothing hangs on how that goes."""
        try:
            self._background.start_soon(_closed, file)
        except RuntimeError:
            pass  # the node was left, and the file goes with its connection


async def _closed(file: File) -> None:
    try:
        await file.close()
    except OSError:
        pass


async def answer(file: File) -> dict[str, str]:
    """What a writer reads back: `key=value` words."""
    return words(await file.pread(_LINE, 0))


def words(line: bytes) -> dict[str, str]:
    """`key=value` words as a mapping; others are left out."""
    try:
        found = [word.partition("=") for word in split(line.decode("utf-8", "replace").replace("\n", " "))]
    except Refused as e:
        raise OSError(errno.EBADMSG, f"what came cannot be read: {e.detail}") from None
    return {name: value for name, eq, value in found if eq}


def said(head: Mapping[str, str], name: str) -> str:
    """One of the words, or OSError where it was left out."""
    if name not in head:
        raise OSError(errno.EBADMSG, f"what came cannot be read: it does not say {name}=")
    return head[name]


def number(head: Mapping[str, str], name: str) -> int:
    """One of the words that is a number, or OSError."""
    return _number(said(head, name), _NUMBER)


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


async def opened(node: Node, path: str) -> File:
    """A file that one writes to and reads the answer from; `node.mute` has it where one may not read."""
    mute = path in node.mute
    try:
        return await node.files.open(path, os.O_WRONLY if mute else os.O_RDWR)
    except PermissionError:
        if mute:
            raise
    file = await node.files.open(path, os.O_WRONLY)
    if len(node.mute) < _MUTE:
        node.mute.add(path)  # or each further write would be denied once, and stand so in the audit
    return file


async def exchange(file: File, data: bytes, n: int, limit: float | None = None) -> bytes:
    """Write DATA at offset 0 and read at most N bytes of what is answered, both asked for at once.

    Of a server of ours, which begins requests in their order and lets such a read wait for the answer. Never
    done again after a loss. LIMIT is in seconds. Cancelled: it was written, or not.
    """
    limit = file._files.deadline if limit is None else limit
    if not file._link.in_order or len(data) >= file.payload:
        await file.pwrite(data, 0)
        return await file._do(Op(file.path, limit), partial(_read, file, n), again=False)

    async def work(op: Op, link: Link) -> bytes:
        op.effect = file._unsure = True
        calls = [
            link.start(op, Twrite, file._fid, 0, memoryview(data)),
            link.start(op, Tread, file._fid, 0, n),
        ]
        try:
            await link.finish(op, calls[0])
            reply = await link.finish(op, calls[1])
        finally:
            for call in calls:
                link.abandon(call)
        assert isinstance(reply, Rread)
        return bytes(reply.data)

    # Where the read did not wait, the answer is there by now.
    said = await file._do(Op(file.path, limit), work, again=False)
    return said or await file.pread(n, 0)


async def _read(file: File, n: int, op: Op, link: Link) -> bytes:
    return bytes((await link.ask(op, Tread, file._fid, 0, n)).data)


async def ask(node: Node, path: str, data: bytes) -> dict[str, str]:
    """One body or line, and what is answered; nothing where one may write and not read."""
    async with await opened(node, path) as file:
        await file.write(data)
        return {} if file.flags & os.O_ACCMODE == os.O_WRONLY else await answer(file)


async def tell(node: Node, path: str, line: bytes) -> None:
    """A line to which no answer is read. Cancelled: it was taken, or not."""
    used = node.shelf.take(path)
    file = used or await node.files.open(path, os.O_WRONLY)
    try:
        await file.pwrite(line, 0)
    except OSError as e:
        node.shelf.drop(file)
        if used is None or code(e) not in (403, 404):
            raise
        await tell(node, path, line)  # what stands there now may be another file
    except BaseException:
        node.shelf.drop(file)
        raise
    else:
        node.shelf.put(path, file)


async def take(node: Node, path: str, options: str) -> bytes:
    """What is given by PATH, which is told these OPTIONS; b"" if nothing comes in WAIT seconds.

    Cancelled: nothing was taken, or it is given back.
    """
    asked = f"{options} wait={WAIT:g}s".encode()

    async def work(tries: Tries) -> bytes:
        used = node.shelf.take(path)
        file = used or await node.files.open(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            data = await exchange(file, asked, file.payload, WAIT + node.files.deadline)
            while len(data) < (total := _total(data)):
                more = await file.pread(max(total - len(data), _MORE), len(data))
                if not more:
                    raise OSError(errno.EBADMSG, f"{len(data)} of {total} bytes came", path)
                data += more
        except OSError as e:
            node.shelf.drop(file)
            if used is None or not (isinstance(e, ConnectionError) or code(e) in (403, 404, 409)):
                raise
            return await work(tries)  # it may have been lost long ago, or another file stands there now
        except BaseException:
            node.shelf.drop(file)
            raise
        node.shelf.put(path, file)
        return data

    return await node.do(path, work, waits=True)


def messages(data: bytes) -> list[bytes]:
    """What came together, one by one."""
    ends, _ = _ends(data)
    return [data[begins:end] for begins, end in zip([0, *ends], ends, strict=False)]


def _total(data: bytes) -> int:
    """How long all of it is, by what the heads say, or at least."""
    ends, count = _ends(data)
    return max(ends[-1], len(data) + (len(ends) < count)) if ends else len(data)


def _ends(data: bytes) -> tuple[list[int], int]:
    """Where each message ends whose head is here, and how many come together."""
    ends: list[int] = []
    at, count = 0, 1
    while len(ends) < count and (empty := data.find(b"\n\n", at, at + _HEAD)) >= 0:
        head = words(data[at:empty])
        if not ends:
            count = _number(head.get("batch", "1"), _TOGETHER)
        at = empty + 2 + _number(head.get("len", "0"), _LONGEST - at)
        ends.append(at)
    return ends, count


def _number(word: str, most: int) -> int:
    """A number as a head has it, or OSError: a server that is none of ours is not believed either."""
    if not (word.isascii() and word.isdigit() and len(word) < 16 and int(word) <= most):
        raise OSError(errno.EBADMSG, f"what came cannot be read: {word[:32]!r} is no number up to {most}")
    return int(word)
