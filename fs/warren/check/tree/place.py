"""The words the checks of a tree are written in.

A `Place` says how to get the tree and in which dialect to speak. `Place.served` puts it behind an
Export, `Place.files` is a client of it, and `Place.talk` is one that says single messages. All bytes
go through a memory stream and a real session. A `Spot` is one file that was found by walking.

Assertions are spelled out, because pytest explains a bare `assert` only in tests.
"""

import errno
import os
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio
from trio.testing import memory_stream_pair
from warren.auth.rights import RIGHTS, Policy, Row
from warren.mount import Entry, Files, dial
from warren.mount.address import StreamChannel
from warren.mount.link import Link, Op
from warren.mount.linux import Linux
from warren.mount.plain import Plain
from warren.mount.words import Opened
from warren.p9.codec import parse_stat, text
from warren.p9.fields import MAXWELEM, QTDIR, Qid
from warren.p9.messages import PLAIN, WARREN, Message, Tclunk, Tread, Treaddir, Twalk, Twrite
from warren.serve.export import Export
from warren.serve.session import Session
from warren.serve.stream import serve_stream
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Blob, Clone, Ctl, Dir, Dirent, File, Handle, Node, Sink, Stream, Text

RootMaker = Callable[[], AbstractAsyncContextManager[Node]]
Feed = Callable[[Files], Awaitable[object]]
T = TypeVar("T")

WORDS = (Dir, Text, File, Ctl, Stream, Sink, Blob, Clone)
MOST = 400  # files that are looked at
DEEPEST = 12
PAGE = 8192
TRACE = re.compile(r" trace=[0-9a-f]{16}$")
_DIRENT = struct.Struct("<BIQQBH")


def holds(truth: object, path: str, says: str) -> None:
    if not truth:
        raise AssertionError(f"{path}: {says}")


def same(found: T, wanted: T, path: str, what: str) -> None:
    holds(found == wanted, path, f"{what} is {found!r:.300}, not {wanted!r:.300}")


def told(error: BaseException, patience: float) -> str:
    """An error as one sentence, out of the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio.TooSlowError):
        return f"still waiting after {patience:g} s"
    return str(error) if isinstance(error, AssertionError) else f"unexpected {type(error).__name__}: {error}"


def words(e: OSError) -> str:
    """What a refusal says, without what differs from one request to the next."""
    return TRACE.sub("", e.strerror or "")


async def refused(path: str, what: str, coming: Awaitable[object], *numbers: int) -> OSError:
    """The error of a request that must be refused, with one of these errnos if any are given."""
    try:
        answer = await coming
    except OSError as e:
        if numbers:
            names = " or ".join(errno.errorcode[n] for n in numbers)
            found = errno.errorcode.get(e.errno or 0, str(e.errno))
            holds(e.errno in numbers, path, f"{what} is refused with {found} ({e.strerror}), not {names}")
        return e
    raise AssertionError(f"{path}: {what} was not refused but answered {answer!r:.100}")


def row(rights: str, path: str, *verbs: str, who: str = "any") -> Row:
    """A policy row for one path, whatever its names hold; `/**` at the end is everything below."""
    mask = sum(RIGHTS[name] for name in rights.split(","))
    pattern = tuple(name for name in path.split("/") if name)
    return Row((who,), mask, pattern, frozenset(verbs) if verbs else None)


ALL = row("read,write,create,remove,ctl", "/**")


@dataclass(frozen=True, eq=False)
class Spot:
    """A file that was found: where, what walking and listing said of it, and the node itself."""

    path: str
    qid: Qid
    listed: Qid | None
    entry: Entry
    node: Node
    entries: list[Dirent] | None = None  # of a directory that can be listed

    @property
    def names(self) -> list[str] | None:
        return None if self.entries is None else [d.name for d in self.entries]

    @property
    def is_dir(self) -> bool:
        return bool(self.qid.type & QTDIR)

    def child(self, name: str) -> str:
        return below(self.path, name)


def below(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"


class Talk:
    """A client that says single messages, and can look at what the server made of them."""

    def __init__(self, link: Link, session: Session) -> None:
        self.link = link
        self.session = session
        self.plain = link.version == PLAIN

    async def ask(self, path: str, cls: type[Message], *fields: Any) -> Any:
        return await self.link.ask(Op(path), cls, *fields)

    async def enter(self, fid: int, path: str, name: str) -> tuple[int, Qid]:
        """Walk one name; PATH is where it leads, for errors."""
        new = self.link.half.fids.take()
        reply = await self.ask(path, Twalk, fid, new, [name])
        return new, reply.qids[0]

    async def walk(self, path: str) -> int:
        """A fid for a path. A walk that falls short goes on name by name, to be told why."""
        names = [name for name in path.split("/") if name]
        fid = self.link.half.fids.take()
        reply = await self.ask(path, Twalk, self.link.root, fid, names[:MAXWELEM])
        if len(reply.qids) == len(names):
            return fid
        start = self.link.root
        for name in names:
            try:
                fid, _ = await self.enter(start, path, name)
            finally:
                if start != self.link.root:
                    self.link.forget(start)
            start = fid
        return fid

    async def stat(self, fid: int, path: str) -> Entry:
        cls, fields = self.link.words.stat()
        return self.link.words.entry(await self.ask(path, cls, fid, *fields), path.rpartition("/")[2])

    async def open(self, fid: int, path: str, flags: int = os.O_RDONLY) -> Opened:
        cls, fields = self.link.words.open(flags)
        return self.link.words.opened(await self.ask(path, cls, fid, *fields))

    async def opened(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Walk and open."""
        fid = await self.walk(path)
        try:
            await self.open(fid, path, flags)
        except BaseException:
            self.link.forget(fid)
            raise
        return fid

    async def read(self, fid: int, path: str, offset: int = 0, count: int = PAGE) -> bytes:
        return bytes((await self.ask(path, Tread, fid, offset, count)).data)

    async def whole(self, fid: int, path: str, most: int = 1 << 18) -> bytes:
        """All that is there, up to MOST bytes."""
        got = b""
        while len(got) < most and (piece := await self.read(fid, path, len(got))):
            got += piece
        return got

    async def write(self, fid: int, path: str, data: bytes, offset: int = 0) -> int:
        return int((await self.ask(path, Twrite, fid, offset, data)).count)

    async def clunk(self, fid: int, path: str) -> None:
        await self.ask(path, Tclunk, fid)

    async def page(self, fid: int, path: str, offset: int, count: int) -> list[tuple[Dirent, int, int]]:
        """One page of a directory: entries, the offset behind each, and how many bytes it took."""
        found: list[tuple[Dirent, int, int]] = []
        at = 0
        data = bytes((await self.ask(path, Tread if self.plain else Treaddir, fid, offset, count)).data)
        while at < len(data):
            if self.plain:
                size = int.from_bytes(data[at : at + 2], "little") + 2
                stat = parse_stat(memoryview(data)[at : at + size])
                found.append((Dirent(stat.name, stat.qid), offset + at + size, size))
            else:
                kind, version, number, behind, _, n = _DIRENT.unpack_from(data, at)
                size = _DIRENT.size + n
                name = text(memoryview(data)[at + _DIRENT.size : at + size])
                found.append((Dirent(name, Qid(kind, version, number)), behind, size))
            at += size
        return found

    async def pages(self, fid: int, path: str, count: int, offset: int = 0) -> list[tuple[Dirent, int, int]]:
        """A directory from OFFSET to its end, `.` and `..` included where they are said."""
        found: list[tuple[Dirent, int, int]] = []
        while page := await self.page(fid, path, offset, count):
            found += page
            offset = page[-1][1]
            holds(len(found) < 100_000, path, "reading the directory comes to no end")
        return found

    async def names(self, path: str) -> list[Dirent]:
        fid = await self.opened(path)
        try:
            return [d for d, _, _ in await self.pages(fid, path, PAGE) if d.name not in (".", "..")]
        finally:
            self.link.forget(fid)

    def node(self, fid: int) -> Node:
        return self.session.fids[fid].node

    def handle(self, fid: int) -> Handle:
        handle = self.session.fids[fid].handle
        assert handle is not None
        return handle


async def explore(talk: Talk, most: int = MOST) -> list[Spot]:
    """Every file that listing leads to, the nearest to the root first."""
    root = await talk.walk("/")
    entry = await talk.stat(root, "/")
    spots = [Spot("/", entry.qid, None, entry, talk.node(root), await _listed(talk, "/"))]
    todo = [(root, spots[0])]
    while todo:
        fid, above = todo.pop(0)
        for some in _portions(above.entries or [] if above.path.count("/") < DEEPEST else []):
            for child, listed, qid, entry in await _entered(talk, fid, above.path, some):
                path = above.child(listed.name)
                entries = await _listed(talk, path) if qid.type & QTDIR else None
                spots.append(Spot(path, qid, listed.qid, entry, talk.node(child), entries))
                if entries and len(spots) < most:
                    todo.append((child, spots[-1]))
                else:
                    talk.link.forget(child)
        talk.link.forget(fid)
    return spots


def _portions(entries: list[Dirent]) -> list[list[Dirent]]:
    return [entries[at : at + 32] for at in range(0, len(entries), 32)]


async def _entered(
    talk: Talk, fid: int, above: str, some: list[Dirent]
) -> list[tuple[int, Dirent, Qid, Entry]]:
    """Walk to some names of a directory and ask for their attributes, all at once."""
    link, found = talk.link, []
    cls, fields = link.words.stat()
    asked = []
    for listed in some:
        op, new = Op(below(above, listed.name)), link.half.fids.take()
        walk = link.start(op, Twalk, fid, new, [listed.name])
        asked.append((op, listed, new, walk, link.start(op, cls, new, *fields, after=walk)))
    for op, listed, new, walk, stat in asked:
        try:
            walked: Any = await link.finish(op, walk)
        except OSError as e:
            raise AssertionError(f"{op.path}: it is listed and cannot be walked to ({e.strerror})") from e
        try:
            reply = await link.finish(op, stat)
        except OSError as e:
            if e.errno not in (errno.EBADF, errno.EINVAL):  # plain 9P2000 has no number to say it with
                raise
            reply = await link.ask(op, cls, new, *fields)  # the walk had to wait, and this was first
        found.append((new, listed, walked.qids[0], link.words.entry(reply, listed.name)))
    return found


async def _listed(talk: Talk, path: str) -> list[Dirent] | None:
    try:
        return await talk.names(path)
    except OSError as e:
        # A directory without bounds may have no list; every other one has.
        holds(e.errno == errno.EOPNOTSUPP, path, f"the directory cannot be listed ({e.strerror})")
        return None


async def survey(talk: Talk) -> list[Spot]:
    """As `explore`, with an object out of every clone file, which live as long as TALK."""
    spots = await explore(talk)
    clones = [s.path for s in spots if isinstance(s.node, Clone)]
    for path in clones:
        await talk.opened(path, os.O_RDWR)
    return await explore(talk) if clones else spots


@asynccontextmanager
async def serving(export: Export, subject: str) -> AsyncIterator[trio.abc.Stream]:
    """The client's end of a memory stream to EXPORT. Closing it is what ends the server's task."""
    ours, theirs = memory_stream_pair()
    failed: Exception | None = None

    async def serve() -> None:
        async with theirs:
            await serve_stream(export, theirs, subject)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            yield ours
        except Exception as e:  # raised below, outside the nursery, which would wrap it in a group
            failed = e
        finally:
            await trio.aclose_forcefully(ours)
    if failed is not None:
        raise failed


@dataclass
class Place:
    """How to make the tree, what may be done to it, and how to speak with it."""

    make: RootMaker
    dialect: str = WARREN
    writable: str | None = None
    feeds: Mapping[str, Feed] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        return self.dialect == PLAIN

    @property
    def speaks(self) -> bool:
        """Whether refusals carry their whole text."""
        return self.dialect == WARREN

    @asynccontextmanager
    async def served(self, *rows: Row) -> AsyncIterator[Export]:
        """The tree behind an export. Whatever a check does, it provokes no exception of a server and
        leaves nothing behind once its clients are gone."""
        async with self.make() as root:
            export = Export(root, Policy(rows or (ALL,)), AuditMemory(), TraceRing())
            try:
                yield export
            except Exception as e:
                self.no_crash(export, e)
                raise
            self.no_crash(export, None)
            left = export.statistics()
            for what in ("sessions", "fids", "parked"):
                same(left[what], 0, "/", f"the number of {what} after every client has left")

    @staticmethod
    def no_crash(export: Export, cause: Exception | None) -> None:
        for entry in export.trace.errors:
            if entry.code == 500:
                last = entry.text.rsplit("\n", 1)[-1]
                raise AssertionError(f"{entry.path}: {entry.op} ended in 500: {last}") from cause

    @asynccontextmanager
    async def files(self, export: Export, subject: str = "any", aname: str = "") -> AsyncIterator[Files]:
        async with serving(export, subject) as stream:
            async with dial(stream, aname, versions=[self.dialect], uname="check") as files:
                yield files

    @asynccontextmanager
    async def talk(self, export: Export, subject: str = "any", aname: str = "") -> AsyncIterator[Talk]:
        failed: Exception | None = None
        async with serving(export, subject) as stream:
            before = set(export.sessions)
            link = Link(StreamChannel(stream), "the tree", versions=[self.dialect])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                try:
                    await link.hello(Op(aname or "/"), "check", aname)
                    link.words = Plain(link) if link.version == PLAIN else Linux(link)
                    yield Talk(link, (set(export.sessions) - before).pop())
                except Exception as e:  # as in `serving`
                    failed = e
                finally:
                    link.drop("the check is over")
            if failed is not None:
                raise failed


Check = Callable[[Place], Awaitable[None]]
