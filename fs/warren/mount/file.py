"""One open file: reads and writes that are split to the message size and kept in flight together.

**A file outlives its connection.** The first use after a loss walks to the path again and opens it
again, without truncating or creating; another file found there is ESTALE. Where going on in silence
would hide a loss, that first use raises ConnectionResetError instead, once, and the next one goes on:

    streams              records may have been missed
    locks                they were given up with the connection
    synthetic files      what was written and not fsynced may have been a body that was discarded

What a clone file made lives with its connection; such a File stays broken.

**Cancelled** means that the one request had no effect, as `Link.finish` has it. A read larger than one
message has none either. A write larger than one message may have written any of its pieces.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import trio
from warren.mount.entry import Entry
from warren.mount.link import Link, Lost, Op
from warren.mount.walk import reach
from warren.mount.words import Opened, Range
from warren.p9.client import Call
from warren.p9.fields import QTAPPEND, Qid
from warren.p9.messages import Rread, Rwrite, Tread, Twrite
from warren.tree.node import Changes

if TYPE_CHECKING:
    from warren.mount.session import Session

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

WINDOW = 8  # requests of one read or write in flight
SHARED, EXCLUSIVE, UNLOCK = 0, 1, 2
_ONCE = os.O_TRUNC | os.O_CREAT | os.O_EXCL
_LOCK_PAUSE = (0.01, 0.5)  # between tries at a server that does not wait for us


class File:
    """An open file, from `Files.open`. Use it as an async context manager, or close it."""

    def __init__(
        self, files: Session, path: str, flags: int, link: Link, fid: int, walked: Qid | None, opened: Opened
    ) -> None:
        self.path = path
        self.flags = flags & ~_ONCE
        self.qid = opened.qid
        self.position = 0
        self.stream = bool(flags & os.O_NONBLOCK)
        self._files = files
        self._link = link
        self._fid = fid
        self._walked = walked or opened.qid
        self._iounit = opened.iounit
        self._locked = False
        self._unsure = False  # bytes were written that a loss may have discarded
        self._closed = False
        self._opening = trio.Lock()

    async def __aenter__(self) -> File:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def payload(self) -> int:
        """The most bytes that one message carries to or from this file."""
        return min(self._iounit, self._link.payload) if self._iounit else self._link.payload

    # Reading

    async def read(self, n: int = -1) -> bytes:
        """The next N bytes, or fewer where the server gives fewer; all there are without N. b"" at the end.

        Cancelled moves nothing.
        """
        if n < 0:
            pieces = []
            at = self.position
            while piece := await self.pread(WINDOW * self.payload, at):
                pieces.append(piece)
                at += len(piece)
            self.position = at
            return b"".join(pieces)
        data = await self.pread(n, self.position)
        self.position += len(data)
        return data

    async def pread(self, n: int, offset: int) -> bytes:
        """N bytes at OFFSET; fewer where the server gives fewer. Done again after a loss, if not a stream."""
        pieces = await self.pread_pieces(n, offset)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    async def pread_pieces(self, n: int, offset: int) -> list[bytes | memoryview]:
        """As `pread`, without copying: pieces in order, which may be views of receive buffers."""

        async def work(op: Op, link: Link) -> list[bytes | memoryview]:
            return await self._read(op, link, n, offset)

        return await self._do(Op(self.path, self._files.deadline), work, again=not self.stream)

    async def _read(self, op: Op, link: Link, n: int, offset: int) -> list[bytes | memoryview]:
        size, window = self.payload, 1 if self.stream else WINDOW
        calls: list[tuple[Call, int]] = []
        pieces: list[bytes | memoryview] = []
        asked = 0
        try:
            while True:
                while asked < n and len(calls) < window:
                    count = min(size, n - asked)
                    calls.append((link.start(op, Tread, self._fid, offset + asked, count), count))
                    asked += count
                if not calls:
                    return pieces
                reply = await link.finish(op, calls[0][0])
                assert isinstance(reply, Rread)
                _, count = calls.pop(0)
                if reply.data:
                    pieces.append(reply.data)
                if len(reply.data) < count or self.stream:
                    # What lies behind a short read does not join on to it.
                    for call, _ in calls:
                        link.ignore(call)
                    calls.clear()
                    return pieces
        finally:
            for call, _ in calls:
                link.abandon(call)

    async def record(self) -> bytes:
        """The next record of a stream, however long it takes; b"" at the end.

        The file must have been opened with O_NONBLOCK: one read is one record, and waits for it.
        Cancelled means that no record was taken. ConnectionResetError, once after a loss, means that
        records may have been missed; the next call goes on with what comes then.
        """

        async def work(op: Op, link: Link) -> bytes:
            reply = await link.ask(op, Tread, self._fid, self.position, self.payload)
            return bytes(reply.data)

        try:
            data = await self._do(Op(self.path), work, again=False)
        except Lost:
            self._told()
            raise
        self.position += len(data)
        return data

    # Writing

    async def write(self, data: Buffer) -> int:
        """All of DATA at the position, which moves on; with O_APPEND at the end. Returns its size.

        Never done again: ConnectionResetError says that the outcome is unknown.
        """
        if self.flags & os.O_APPEND and not self.position:
            self.position = (await self.stat()).size
        await self.pwrite(data, self.position)
        self.position += len(data)
        return len(data)

    async def pwrite(self, data: Buffer, offset: int) -> int:
        """All of DATA at OFFSET. Never done again after a loss. Returns its size.

        A stored file takes the pieces of a large write in any order; every other file takes one after
        the other, so that none is written behind one that was refused.
        """
        view = memoryview(data).cast("B")

        async def work(op: Op, link: Link) -> int:
            op.effect = True
            self._unsure = self.qid.version == 0
            ordered = self._unsure or self.flags & os.O_APPEND or self.qid.type & QTAPPEND
            done = 0
            while done < len(view):
                done += await self._write(op, link, view[done:], offset + done, 1 if ordered else WINDOW)
            return done

        return await self._do(Op(self.path, self._files.deadline), work, again=False)

    async def _write(self, op: Op, link: Link, view: memoryview, offset: int, window: int) -> int:
        """Write until a piece is taken only in part; returns how many bytes lie in a row."""
        size = self.payload
        calls: list[tuple[Call, int]] = []
        asked = done = 0
        try:
            while calls or asked < len(view):
                while asked < len(view) and len(calls) < window:
                    piece = view[asked : asked + size]
                    calls.append((link.start(op, Twrite, self._fid, offset + asked, piece), len(piece)))
                    asked += len(piece)
                reply = await link.finish(op, calls[0][0])
                assert isinstance(reply, Rwrite)
                _, count = calls.pop(0)
                done += reply.count
                if not reply.count:
                    raise op.error(errno.EIO, "the server takes nothing more")
                if reply.count < count:
                    for call, _ in calls:
                        await link.finish(op, call)
                    calls.clear()
                    break
            return done
        finally:
            for call, _ in calls:
                link.abandon(call)

    async def fsync(self, datasync: bool = False) -> None:
        """Make durable what was written; commits a gathered body. Never done again after a loss."""

        async def work(op: Op, link: Link) -> None:
            op.effect = True
            await link.words.fsync(op, self._fid, datasync)

        await self._do(Op(self.path, self._files.deadline), work, again=False)
        self._unsure = False

    async def truncate(self, size: int) -> None:
        """Make the file SIZE bytes long. Never done again after a loss."""
        await self.setattr(Changes(size=size))

    async def setattr(self, changes: Changes) -> None:
        """Change attributes, all or none. Never done again after a loss."""

        async def work(op: Op, link: Link) -> None:
            op.effect = True
            await link.words.setattr(op, self._fid, changes)

        await self._do(Op(self.path, self._files.deadline), work, again=False)

    async def stat(self) -> Entry:
        """Attributes of the open file. Done again after a loss."""

        async def work(op: Op, link: Link) -> Entry:
            cls, fields = link.words.stat()
            reply = await link.ask(op, cls, self._fid, *fields)
            return link.words.entry(reply, self.path.rstrip("/").rpartition("/")[2])

        return await self._do(Op(self.path, self._files.deadline), work, again=True)

    # Locks

    def _range(self, kind: int, start: int, length: int, owner: int | None) -> Range:
        return Range(kind, start, length, os.getpid() if owner is None else owner, _here())

    async def lock(
        self,
        start: int = 0,
        length: int = 0,
        *,
        shared: bool = False,
        wait: bool = True,
        owner: int | None = None,
    ) -> bool:
        """Lock a range (length 0: to the end) for OWNER, a process number; False if taken and not WAIT.

        Waits without a deadline. Cancelled means that the lock was not taken.
        """
        want = self._range(SHARED if shared else EXCLUSIVE, start, length, owner)

        async def work(op: Op, link: Link) -> bool:
            op.effect = True
            return await link.words.lock(op, self._fid, want, wait)

        pause, longest = _LOCK_PAUSE
        limit = math.inf if wait else self._files.deadline
        while not await self._do(Op(self.path, limit), work, again=False):
            if not wait:
                return False
            await trio.sleep(pause)
            pause = min(pause * 2, longest)
        self._locked = True
        return True

    async def unlock(self, start: int = 0, length: int = 0, *, owner: int | None = None) -> None:
        """Give a range up; what is not held is no error."""
        want = self._range(UNLOCK, start, length, owner)

        async def work(op: Op, link: Link) -> None:
            op.effect = True
            await link.words.lock(op, self._fid, want, False)

        await self._do(Op(self.path, self._files.deadline), work, again=False)
        if (start, length) == (0, 0):
            self._locked = False

    async def getlock(
        self, start: int = 0, length: int = 0, *, shared: bool = False, owner: int | None = None
    ) -> Range | None:
        """A lock that stands in the way of this one, or None."""
        want = self._range(SHARED if shared else EXCLUSIVE, start, length, owner)

        async def work(op: Op, link: Link) -> Range | None:
            held = await link.words.getlock(op, self._fid, want)
            return None if held.kind == UNLOCK else held

        return await self._do(Op(self.path, self._files.deadline), work, again=True)

    # Life

    async def close(self) -> None:
        """Clunk. An error is the server's last word on what was written.

        A cancelled close closes all the same. After a loss there is nothing to close: silence, or
        ConnectionResetError where bytes may have been discarded.
        """
        if self._closed:
            return
        self._closed = True
        op = Op(self.path, self._files.deadline)
        op.effect = True
        if not self._link.lost:
            try:
                await self._link.clunk(op, self._fid)
                return
            except Lost:
                pass
        if self._unsure:
            raise op.error(errno.ECONNRESET, "the connection was lost before close; the outcome is unknown")

    async def _do(self, op: Op, work: Callable[[Op, Link], Awaitable[T]], *, again: bool) -> T:
        """Run WORK on a live fid, and once more after a loss if that is safe."""
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        while True:
            link = self._link
            if link.lost:
                link = await self._open_again(op)
            try:
                return await work(op, link)
            except Lost as e:
                if op.effect:
                    raise self._files.unknown(op, e) from None
                if not again or not self._files.redials:
                    raise
                again = False

    def _told(self) -> None:
        """The caller knows of the loss: the next use may go on."""
        self._locked = self._unsure = False
        self._told_of = self._link

    _told_of: Link | None = None

    async def _open_again(self, op: Op) -> Link:
        async with self._opening:
            if not self._link.lost:
                return self._link
            lossy = self.stream or self._locked or self._unsure
            if lossy and self._told_of is not self._link:
                what = "records" if self.stream else "locks" if self._locked else "bytes written before"
                self._told()
                raise op.error(errno.ECONNRESET, f"the connection was lost; {what} may be lost with it")
            if self._walked.path != self.qid.path:
                raise op.error(errno.ESTALE, "it lived as long as its connection")
            link = await self._files.live(op)
            again = Op(self.path, self._files.deadline)
            got = await reach(link, again, self.path, link.words.open(self.flags))
            opened = link.words.opened(got.replies[0])
            if got.qid.path != self._walked.path:
                link.forget(got.fid)
                raise op.error(errno.ESTALE, "another file has this name now")
            self.qid, self._iounit = opened.qid, opened.iounit
            self._fid, self._link = got.fid, link
            if self.stream:
                self.position = 0
            return link


def _here() -> str:
    return socket.gethostname()
