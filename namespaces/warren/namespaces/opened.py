"""What is open in another tree: the handles of `far`.

    FarFile        bytes at offsets
    FarRecords     one write is one record (Text, Sink)
    FarControl     verbs in, help and answers out (Ctl, Clone)
    FarStream      blocking reads, one record each
    FarBlob        a body of many writes
    FarDirectory   names

Each has a fid there and lives as long as the connection that the fid is on: after that every use of it is
502, and the file is to be opened again. So nothing that was lost with the connection, be it a record, a
lock or a body half written, is passed over in silence.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from warren.mount.link import Link, Lost, Op
from warren.p9.fields import Qid
from warren.p9.messages import Rread, Rwrite, Tread, Twrite
from warren.tree import (
    Bytes,
    Caller,
    Command,
    Control,
    Cursor,
    Dirent,
    Ended,
    Handle,
    Maybe,
    Refused,
    StreamHandle,
    WouldBlock,
    describe,
    split,
    trace_of,
)
from warren.tree.ctl import MAX_LINE, MAX_LINES

T = TypeVar("T")
_VERB: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def worded(address: str, e: OSError) -> OSError:
    """An error on the way to ADDRESS as this tree says it; what the server there said stays as it is."""
    if isinstance(e, Refused) or trace_of(e):
        return e
    said, ours, _ = (e.strerror or "").rpartition(" trace=")
    if isinstance(e, TimeoutError):
        return Refused(504, f"{address}: {said or e.strerror or 'no answer in time'}", errno=e.errno)
    if isinstance(e, ConnectionError):
        return Refused(502, f"{address}: {said or e.strerror or 'the connection was lost'}", errno=e.errno)
    # Of the client's own words the errno alone would not tell; a foreign server has none but its errno.
    return Refused(describe(e)[1], f"{address}: {said}", errno=e.errno) if ours else e


@contextmanager
def passed_on(address: str) -> Iterator[None]:
    """Words for whatever goes wrong on the way."""
    try:
        yield
    except OSError as e:
        raise worded(address, e) from None


@dataclass
class Opening:
    """A fid in another tree, open, and what may be said to it."""

    address: str
    path: str
    link: Link
    fid: int
    iounit: int
    deadline: float

    @property
    def payload(self) -> int:
        """The most bytes of one message."""
        return min(self.iounit, self.link.payload) if self.iounit else self.link.payload

    def op(self, effect: bool = False, limit: float | None = None) -> Op:
        op = Op(self.path, self.deadline if limit is None else limit)
        op.effect = effect
        return op

    async def read(self, offset: int, count: int, limit: float | None = None) -> Bytes:
        """One read there, of at most one message."""
        with passed_on(self.address):
            reply = await self.link.ask(self.op(limit=limit), Tread, self.fid, offset, count)
        assert isinstance(reply, Rread)
        return reply.data

    async def write(self, offset: int, data: Bytes) -> int:
        """One write there, of at most one message."""
        with passed_on(self.address):
            try:
                reply = await self.link.ask(self.op(effect=True), Twrite, self.fid, offset, data)
            except Lost as e:
                raise Refused(
                    502, f"{self.address}: {e.strerror}; the outcome is unknown", errno=errno.ECONNRESET
                ) from None
        assert isinstance(reply, Rwrite)
        return reply.count

    def forget(self) -> None:
        self.link.forget(self.fid)


class FarFile(Handle):
    """Bytes at offsets. WAITS is what O_NONBLOCK asked for: a read that may wait, and is one message."""

    def __init__(self, opening: Opening, *, writes: bool, waits: bool = False) -> None:
        self.opening = opening
        self.parks = waits
        self.told = writes  # whether the server may have something to say at the end
        self.written = False
        self.closed = False

    @property
    def alive(self) -> bool:
        """Whether its fid can be used for something else."""
        return not self.closed and not self.opening.link.lost

    async def read(self, offset: int, count: int) -> Bytes:
        opening, pieces, got = self.opening, [], 0
        while got < count:
            want = min(opening.payload, count - got)
            pieces.append(await opening.read(offset + got, want, math.inf if self.parks else None))
            got += len(pieces[-1])
            if len(pieces[-1]) < want or self.parks:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def write(self, offset: int, data: Bytes) -> int:
        """Piece by piece. Cancelled may leave some of them written, if it is more than one message."""
        data, done, size = bytes(data), 0, self.opening.payload
        self.written = True
        while True:
            piece = data[done : done + size]
            try:
                n = await self.opening.write(offset + done, piece)
            except OSError:
                if not done:
                    raise
                return done
            done += n
            if n < len(piece) or done == len(data):
                return done

    async def fsync(self) -> None:
        opening, op = self.opening, self.opening.op(effect=True)
        with passed_on(opening.address):
            await opening.link.words.fsync(op, opening.fid, False)
        self.written = False

    def close(self) -> Maybe[None]:
        self.closed = True
        if self.opening.link.lost:
            if self.written:
                where = f"{self.opening.address}: the connection was lost before the close"
                raise Refused(502, f"{where}; what was written may be lost with it", errno=errno.ECONNRESET)
            return None
        if not self.told:
            self.opening.forget()
            return None
        return self._clunk()

    async def _clunk(self) -> None:
        opening = self.opening
        with passed_on(opening.address):
            await opening.link.clunk(opening.op(effect=True), opening.fid)

    def abandon(self) -> None:
        if not self.closed:
            self.closed = True
            self.opening.forget()


class FarRecords(FarFile):
    """One write is one record, there as here."""

    record = True
    tells = True

    async def write(self, offset: int, data: Bytes) -> int:
        return await self.put(offset, data)

    async def put(self, offset: int, data: Bytes) -> int:
        """DATA in one message, whole or not at all."""
        if len(data) > self.opening.payload:
            most = self.opening.payload
            raise Refused(413, f"a record is at most {most} bytes on the way to {self.opening.address}")
        return await self.opening.write(offset, bytes(data))


@dataclass(frozen=True)
class FarCommand:
    """One write to a ctl file of another tree. The verbs are what is decided here and what the audit shows:
    which of the other words is a secret, only the server knows."""

    names: tuple[str, ...]
    shown: str
    data: bytes
    line: int = 1


class FarControl(FarRecords, Control):
    """A ctl file of another tree: its verbs are decided here, then the whole write goes there as one.

    Its server parses the lines, runs them in order and names the one that fails.
    """

    def commands(self, data: bytes) -> Sequence[Command]:
        if b"\0" in data:
            raise Refused(400, "a NUL byte is in the text")
        try:
            lines = data.decode().split("\n")
        except UnicodeDecodeError as e:
            raise Refused(400, f"byte {e.start} is not UTF-8") from None
        if len(lines) > MAX_LINES:
            raise Refused(413, f"more than {MAX_LINES} lines in one write")
        names: list[str] = []
        for number, line in enumerate(lines, 1):
            if len(line.encode()) > MAX_LINE:
                raise Refused(413, f"line {number} is longer than {MAX_LINE} bytes")
            if words := split(line.rstrip("\r")):
                if not _VERB.fullmatch(words[0]):
                    raise Refused(400, f"line {number}: {words[0][:64]!r} is no verb", reason="unknown_verb")
                names.append(words[0])
        if not names:
            return []
        shown = f"lines={len(names)}" if len(names) > 1 else ""
        return [FarCommand(tuple(dict.fromkeys(names)), shown, data)]

    async def run(self, command: FarCommand, caller: Caller) -> None:
        await self.put(0, command.data)


class _FarCursor(Cursor):
    """A reader's place, which is the fid's own."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.position = 0

    def next_nowait(self) -> bytes:
        raise WouldBlock

    async def next(self) -> bytes:
        record = bytes(await self.opening.read(self.position, self.opening.payload, math.inf))
        if not record:
            raise Ended
        self.position += len(record)
        return record


class FarStream(StreamHandle):
    """A stream of another tree. A record longer than a message goes on in the next read, as there."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(_FarCursor(opening))
        self.opening = opening

    def _give(self, record: bytes, offset: int, count: int) -> bytes:
        piece = super()._give(record, offset, count)
        if not self.rest and len(record) >= self.opening.payload:
            self.follows = None  # the record goes on there, so what follows is no mere continuation
        return piece

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        return self.opening.write(offset, bytes(data))

    def close(self) -> None:
        self.opening.forget()

    def abandon(self) -> None:
        self.opening.forget()


class FarBlob(FarFile):
    """A body of many writes. A clunk commits it, so there is one way to give it up half done: to hang up."""

    tells = True

    def abandon(self) -> None:
        if self.written and self.alive:
            self.opening.link.drop("a body was given up half written")
            self.closed = True
        super().abandon()


class FarDirectory(Handle):
    """An open directory of another tree; OURS makes a qid of this tree of one of that."""

    def __init__(self, opening: Opening, ours: Callable[[Qid], Qid]) -> None:
        self.opening = opening
        self.ours = ours

    async def entries(self) -> Sequence[Dirent]:
        opening, ours = self.opening, self.ours
        with passed_on(opening.address):
            found = await opening.link.words.names(opening.op(), opening.fid)
        return [Dirent(name, ours(qid)) for name, qid in found]

    def close(self) -> None:
        self.opening.forget()

    def abandon(self) -> None:
        self.opening.forget()
