"""The words a tree is written in.

    Dir     names to nodes: `entries`, or override `lookup` and `list` when unbounded
    Text    a value as a line: `get`, optional `set`
    File    bytes at offsets: `read_at`, optional `write_at`
    Ctl     verbs in, help out                                  (module ctl)
    Stream  blocking reads, one record each                     (module stream)
    Sink    one write, one record: `put`
    Blob    a body of many writes: `commit`
    Clone   open it, get a fresh directory's ctl: `make`

What the author leaves out is refused. Functions given to a word may be plain or async.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from warren.p9.fields import QTDIR
from warren.tree.ctl import Ctl, CtlHandle
from warren.tree.errors import Refused
from warren.tree.node import (
    BLOB,
    BYTES,
    CLONE,
    SINK,
    TEXT,
    Attr,
    Bytes,
    Caller,
    Changes,
    Dirent,
    Handle,
    Maybe,
    Node,
    absent,
)

MAX_TEXT = 4096
O_ACCMODE, O_TRUNC, O_EXCL = 0o3, 0o1000, 0o200
Reply = str | bytes | None


class Dir(Node):
    """A directory."""

    qtype = QTDIR
    mode = 0o555
    entries: Mapping[str, Node]

    def __init__(self, entries: Mapping[str, Node] | None = None) -> None:
        self.entries = {} if entries is None else entries

    def lookup(self, name: str) -> Maybe[Node | None]:
        """The node of that name, or None. Return the same node for the same thing: it is its identity."""
        return self.entries.get(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        """Every name with its node."""
        return self.entries.items()

    def walk(self, name: str) -> Maybe[Node]:
        found = self.lookup(name)
        if found is None:
            raise absent()
        if isinstance(found, Node):
            return found
        return _found(found)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return DirHandle(self)


async def _found(coming: Awaitable[Node | None]) -> Node:
    node = await coming
    if node is None:
        raise absent()
    return node


class DirHandle(Handle):
    def __init__(self, directory: Dir) -> None:
        self.directory = directory

    def entries(self) -> Maybe[Sequence[Dirent]]:
        found = self.directory.list()
        if inspect.isawaitable(found):
            return self._later(found)
        return [Dirent(name, node.qid()) for name, node in found]

    async def _later(self, coming: Awaitable[Iterable[tuple[str, Node]]]) -> Sequence[Dirent]:
        return [Dirent(name, node.qid()) for name, node in await coming]


class Text(Node):
    """A value as a line. One write sets it; what is read was true at one moment."""

    swallows_truncate = True
    word = TEXT

    def __init__(
        self, get: Callable[[], Maybe[str]], set: Callable[[str], Maybe[None]] | None = None
    ) -> None:
        self.get, self.set = get, set
        self.mode = 0o600 if set else 0o400

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        if flags & O_ACCMODE and self.set is None:
            raise Refused(403, "this value cannot be set")
        return TextHandle(self)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class TextHandle(Handle):
    record = True
    tells = True

    def __init__(self, text: Text) -> None:
        self.text = text
        self.says: bytes | None = None

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        if offset == 0 or self.says is None:
            value = self.text.get()
            if not isinstance(value, str):
                return self._later(value, offset, count)
            self.says = line(value)
        return self.says[offset : offset + count]

    async def _later(self, coming: Awaitable[str], offset: int, count: int) -> Bytes:
        self.says = line(await coming)
        return self.says[offset : offset + count]

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        assert self.text.set is not None
        if len(data) > MAX_TEXT:
            raise Refused(413, f"a value is at most {MAX_TEXT} bytes")
        try:
            value = bytes(data).decode().removesuffix("\n")
        except UnicodeDecodeError as e:
            raise Refused(400, f"byte {e.start} is not UTF-8") from None
        done = self.text.set(value)
        return len(data) if done is None else after(done, len(data))


def line(value: str) -> bytes:
    """A value as its file shows it: ended by a newline, and nothing at all when empty."""
    return (value if value.endswith("\n") or not value else value + "\n").encode("utf-8", "surrogateescape")


async def after(coming: Awaitable[object], count: int) -> int:
    """COUNT, once the work is done."""
    await coming
    return count


class File(Node):
    """Bytes at offsets."""

    word = BYTES

    def __init__(
        self,
        read_at: Callable[[int, int], Maybe[Bytes]],
        write_at: Callable[[int, Bytes], Maybe[int]] | None = None,
        size: Callable[[], int] | None = None,
        truncate: Callable[[int], Maybe[None]] | None = None,
    ) -> None:
        self.read_at, self.write_at, self.size, self.truncate = read_at, write_at, size, truncate
        self.mode = 0o600 if write_at else 0o400

    def attr(self) -> Maybe[Attr]:
        size = self.size() if self.size else 0
        return Attr(self.qid(), 0o100000 | self.mode, size=size, blocks=-(-size // 512), gen=BYTES)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        if flags & (O_ACCMODE | O_TRUNC) and self.write_at is None:
            raise Refused(403, "this file cannot be written")
        if flags & O_TRUNC and flags & O_ACCMODE:
            if self.truncate is None:
                raise Refused(405, "this file cannot be truncated")
            done = self.truncate(0)
            if done is not None:
                return self._later(done)
        return FileHandle(self)

    async def _later(self, done: Awaitable[None]) -> Handle:
        await done
        return FileHandle(self)

    def setattr(self, changes: Changes) -> Maybe[None]:
        if changes.mode is not None or changes.uid is not None or changes.gid is not None:
            raise Refused(405, "only the size of this file can be changed")
        if changes.size is not None:
            if self.truncate is None:
                raise Refused(405, "this file cannot be truncated")
            return self.truncate(changes.size)
        return None


class FileHandle(Handle):
    def __init__(self, file: File) -> None:
        self.file = file

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.file.read_at(offset, count)

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        assert self.file.write_at is not None
        return self.file.write_at(offset, data)


class Sink(Node):
    """One write, one record. What `put` returns can be read back from the same descriptor."""

    mode = 0o200
    swallows_truncate = True
    word = SINK

    def __init__(self, put: Callable[[bytes], Maybe[Reply]]) -> None:
        self.put = put

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return SinkHandle(self)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class SinkHandle(Handle):
    record = True
    tells = True

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.says = b""

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        n, done = len(data), self.sink.put(bytes(data))
        if done is None or isinstance(done, str | bytes):
            self.says = reply(done)
            return n
        return self._later(done, n)

    async def _later(self, coming: Awaitable[Reply], n: int) -> int:
        self.says = reply(await coming)
        return n

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.says[offset : offset + count]


def reply(said: Reply) -> bytes:
    """What a writer reads back."""
    return said if isinstance(said, bytes) else line(said or "")


class Blob(Node):
    """A body of many writes, one after the other from offset 0, committed whole or not at all.

    `commit(body, declared)` runs on fsync, on the last byte when `measure` found a declared length in
    the first bytes, or on clunk. Only the first two can tell the writer of a failure, since kernels
    throw away the error of a close: on clunk, `declared` is False. A disconnect discards.
    """

    mode = 0o200
    swallows_truncate = True
    word = BLOB

    def __init__(
        self,
        commit: Callable[[bytes, bool], Maybe[Reply]],
        measure: Callable[[bytes], int | None] | None = None,
        limit: int = 16 << 20,
    ) -> None:
        self.commit, self.measure, self.limit = commit, measure, limit

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return BlobHandle(self)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class BlobHandle(Handle):
    tells = True

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.body = bytearray()
        self.length: int | None = None
        self.done = False
        self.says = b""

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        blob, body = self.blob, self.body
        if self.done:
            raise Refused(409, "this body was committed; open the file again for another")
        if offset != len(body):
            raise Refused(416, f"a body is written in order; the next byte is {len(body)}")
        total = len(body) + len(data)
        if total > (blob.limit if self.length is None else min(self.length, blob.limit)):
            raise Refused(413, f"the body is longer than {min(self.length or blob.limit, blob.limit)} bytes")
        body += data
        if self.length is None and blob.measure:
            try:
                self.length = blob.measure(bytes(body))
            except OSError:
                self._discard()  # or the close would commit what was just refused
                raise
            if self.length is not None and (self.length < total or self.length > blob.limit):
                self._discard()
                raise Refused(413, f"a body of {self.length} bytes was declared, the limit is {blob.limit}")
        if self.length == total:
            committed = self._commit(True)
            if committed is not None:
                return after(committed, len(data))
        return len(data)

    def _discard(self) -> None:
        self.body = bytearray()
        self.done = True

    def _commit(self, declared: bool) -> Awaitable[None] | None:
        """At most once: a second fsync, or the clunk after one, must not make a second object."""
        body, self.body, self.done = bytes(self.body), bytearray(), True
        said = self.blob.commit(body, declared)
        if said is None or isinstance(said, str | bytes):
            self.says = reply(said)
            return None
        return self._later(said)

    async def _later(self, coming: Awaitable[Reply]) -> None:
        self.says = reply(await coming)

    def fsync(self) -> Maybe[None]:
        if self.done:
            return None
        if self.length is not None:
            missing = self.length - len(self.body)
            self._discard()
            raise Refused(422, f"{missing} bytes of the declared length are missing")
        return self._commit(True) if self.body else None

    def close(self) -> Maybe[None]:
        if self.done or (not self.body and self.length is None):
            return None
        if self.length is not None:
            return self.fsync()
        return self._commit(False)

    def abandon(self) -> None:
        self._discard()

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.says[offset : offset + count]


class Clone(Node):
    """Open it to get a fresh directory's ctl; the first read of that descriptor is the new name.

    `make()` returns the new `Life`, already listed under its name beside the clone file.
    """

    mode = 0o600
    is_ctl = True
    swallows_truncate = True
    word = CLONE

    def __init__(self, make: Callable[[], Maybe["Life"]]) -> None:
        self.make = make

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        life = self.make()
        return CloneHandle(life) if isinstance(life, Life) else self._later(life)

    async def _later(self, coming: Awaitable["Life"]) -> Handle:
        return CloneHandle(await coming)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class Life(Dir):
    """A directory that came out of a clone file: it lives while a fid is inside, or after `keep`."""

    counted = True

    def __init__(self, name: str, entries: Mapping[str, Node], end: Callable[[], None]) -> None:
        super().__init__(entries)
        ctl = entries.get("ctl")
        if not isinstance(ctl, Ctl):
            raise TypeError(f"{name}: what a clone makes needs a ctl")
        self.name, self.ctl, self.end = name, ctl, end
        self.kept = False
        self.ended = False
        self.holders = 0

    def keep(self) -> None:
        """Live on without a holder, until `finish`."""
        self.kept = True

    def finish(self) -> None:
        """Stop being kept: ends now, or when the last holder leaves."""
        self.kept = False
        self.let_go()

    def hold(self) -> None:
        self.holders += 1

    def release(self) -> None:
        self.holders -= 1
        self.let_go()

    def let_go(self) -> None:
        """End unless somebody is inside or it is kept."""
        if not (self.holders or self.kept or self.ended):
            self.ended = True
            self.end()


class CloneHandle(CtlHandle):
    """What a clone's open returns: the session moves the fid to `life`'s ctl."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.ctl, f"{life.name}\n")
        self.life = life

    def abandon(self) -> None:
        """Nobody entered: the object must not wait for somebody to leave."""
        self.life.let_go()
