"""A tree that is somewhere else, as nodes of this one.

    tree = FarTree("$drone-1", ways, caller)      one tree, for one caller
    FarNode.at(tree, ("scratch", "ctl"))          a place in it; nothing is asked until it is used

Every operation is passed on, as it is: one read is one read there, one write one write, and a flush one
flush. What word a file is (see `tree.node`) is known from the server if that is one of ours; so a ctl file
is controlled by verbs here too, a stream waits without a deadline and loses no record, a sink's record is
never cut. To a server of another make everything is bytes.

**Errors** come back with the errno and the line that the server gave, under its trace id. What is wrong on
the way there is 502, or 504 where nobody answers in time.

**Places, not fids.** A node keeps a path, and walks it with each request; in the other tree only what is
open or locked has a fid. So a tree that was lost is back as soon as it can be reached again. A rename that
goes through here moves the nodes below it; after another's a stored file is known by its qid, and one that
took its place is not mistaken for it (ESTALE). Symbolic links are never followed: a walk through one is
refused by the server, and by us.

**Locks** belong to (session, client, process) here, and under a name made of these there, since several
sessions of a caller share one connection. They are held by a fid of their own.

**Cancelled** means what it means to `mount`: the request was flushed and had no effect, or its reply came
first and stands. A change that was under way when the connection was lost says that its outcome is unknown.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from weakref import WeakSet

from warren.mount import Entry, Files
from warren.mount.link import Link, Op
from warren.mount.walk import Reached
from warren.mount.words import Range
from warren.namespaces.locking import FarLocks, Held, found, wanted
from warren.namespaces.opened import (
    FarBlob,
    FarControl,
    FarDirectory,
    FarFile,
    FarRecords,
    FarStream,
    Opening,
    worded,
)
from warren.namespaces.reached import FarTree, Path, longer, number, straight
from warren.p9.fields import QTDIR, Qid
from warren.p9.messages import PLAIN, Tremove
from warren.tree import Attr, Caller, Changes, Handle, Lock, Maybe, Node, Refused, Statfs
from warren.tree.node import BLOB, BYTES, CLONE, CTL, SINK, STORED, STREAM, TEXT

T = TypeVar("T")

_SECOND: Final = 10**9
# The wire has the numbers of the generic Linux ABI, which are not everybody's.
_FLAGS: Final = ((0o1000, os.O_TRUNC), (0o2000, os.O_APPEND), (0o4000, os.O_NONBLOCK), (0o10000, os.O_DSYNC))
_O_TRUNC, _O_NONBLOCK, _O_CREAT, _O_EXCL = 0o1000, 0o4000, 0o100, 0o200


class FarNode(Node):
    """A file of another tree."""

    def __init__(self, tree: FarTree, names: Path, entry: Entry | None) -> None:
        self.tree = tree
        self.names = names
        self.theirs: int | None = None  # the qid.path there of what is told apart by it
        self._handles: WeakSet[FarFile] = WeakSet()
        self._locks = FarLocks(tree.address, self._to_lock)
        if entry is None:
            self.qtype = QTDIR
            self._qid = Qid(QTDIR, 0, number(tree.address, "at", *names))
        else:
            self.qtype = entry.qid.type
            self.mode = entry.mode & 0o7777
            self.word = entry.word
            self._is(entry.qid)
        self.is_ctl = self.word in (CTL, CLONE)
        self.swallows_truncate = self.word not in (STORED, BYTES)

    @classmethod
    def at(cls, tree: FarTree, names: Path, entry: Entry | None = None) -> FarNode:
        """The file of that path: a directory, as long as no ENTRY says otherwise."""
        made = cls(tree, names, entry)
        tree.nodes.add(made)
        return made

    def _is(self, theirs: Qid) -> None:
        self._qid = self.tree.qid(theirs)
        if self.word == STORED and not theirs.type & QTDIR:
            self.theirs = theirs.path

    def qid(self) -> Qid:
        return self._qid

    # Asking

    def _same(self, got: Reached) -> None:
        if self.theirs is not None and got.qid.path != self.theirs:
            raise Refused(404, "another file has this name now", errno=errno.ESTALE)

    async def _on(
        self, effect: bool, work: Callable[[Link, Op, int], Awaitable[T]], *, uses_up: bool = False
    ) -> T:
        """WORK on a fid that stands here. It is ours again after it, unless the work uses it up."""

        async def walked(files: Files, link: Link, op: Op) -> T:
            got = await straight(link, op, self.names)
            kept = True
            try:
                self._same(got)
                op.effect, kept = effect, not uses_up
                return await work(link, op, got.fid)
            finally:
                if kept:
                    link.forget(got.fid)

        for handle in self._handles:
            if handle.alive and not uses_up:
                opening = handle.opening
                try:
                    return await work(opening.link, opening.op(effect), opening.fid)
                except OSError as e:
                    raise worded(self.tree.address, e) from None
        return await self.tree.do(self.names, walked)

    async def attr(self) -> Attr:
        async def work(link: Link, op: Op, fid: int) -> Entry:
            cls, fields = link.words.stat()
            return link.words.entry(await link.ask(op, cls, fid, *fields), "")

        entry = await self._on(False, work)
        if self.theirs is None or entry.qid.path == self.theirs:
            self._qid = self.tree.qid(entry.qid)
        return _attr(entry, self._qid)

    # A directory

    def _child(self, name: str) -> Path:
        return longer(self.names, name)

    def walk(self, name: str) -> Maybe[Node]:
        if not self.qtype & QTDIR:
            raise Refused(400, "not a directory", errno=errno.ENOTDIR)
        return self._walk(self._child(name))

    async def _walk(self, names: Path) -> Node:
        async def work(files: Files, link: Link, op: Op) -> Entry:
            got = await straight(link, op, names, link.words.stat())
            link.forget(got.fid)
            return link.words.entry(got.replies[0], names[-1])

        return FarNode.at(self.tree, names, await self.tree.do(names, work))

    async def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Node:
        names = self._child(name)

        async def work(link: Link, op: Op, fid: int) -> None:
            await link.words.mkdir(op, fid, name, mode)

        await self._on(True, work)
        return await self._walk(names)

    async def symlink(self, name: str, target: str, gid: int) -> Node:
        names = self._child(name)

        async def work(link: Link, op: Op, fid: int) -> None:
            await link.words.symlink(op, fid, name, target)

        await self._on(True, work)
        return await self._walk(names)

    async def mknod(self, name: str, mode: int, major: int, minor: int, gid: int) -> Node:
        names = self._child(name)

        async def work(link: Link, op: Op, fid: int) -> None:
            await link.words.mknod(op, fid, name, mode, major, minor)

        await self._on(True, work)
        return await self._walk(names)

    async def link(self, name: str, node: Node) -> None:
        source = self._neighbour(node)

        async def work(link: Link, op: Op, fid: int) -> None:
            op.effect = False
            old = await straight(link, op, source.names)
            try:
                source._same(old)
                op.effect = True
                await link.words.link_to(op, fid, name, old.fid)
            finally:
                link.forget(old.fid)

        await self._on(True, work)

    def _neighbour(self, node: Node) -> FarNode:
        if not isinstance(node, FarNode) or node.tree.address != self.tree.address:
            raise Refused(409, "that is in another tree: copy it, then remove it", errno=errno.EXDEV)
        return node

    async def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        names = self._child(name)
        wanted = expect.theirs if isinstance(expect, FarNode) else None

        async def whole(files: Files, link: Link, op: Op) -> None:
            got = await straight(link, op, names)
            is_directory = bool(got.qid.type & QTDIR)
            wrong = 0
            if wanted is not None and got.qid.path != wanted:
                wrong = errno.ESTALE
            elif directory is not None and directory is not is_directory:
                wrong = errno.ENOTDIR if directory else errno.EISDIR
            if wrong:
                link.forget(got.fid)
                raise op.error(wrong, os.strerror(wrong))
            op.effect = True
            await link.ask(op, Tremove, got.fid)

        async def part(files: Files, link: Link, op: Op) -> None:
            if link.version == PLAIN:
                await whole(files, link, op)
                return
            got = await straight(link, op, self.names)
            try:
                op.effect = True
                await link.words.unlink(op, got.fid, name, bool(directory))
            finally:
                link.forget(got.fid)

        await self.tree.do(names, part if directory is not None and wanted is None else whole)

    async def rename(self, name: str, into: Node, newname: str, expect: Node | None = None) -> None:
        there = self._neighbour(into)
        old, new = self._child(name), there._child(newname)
        wanted = expect.theirs if isinstance(expect, FarNode) else None

        async def work(files: Files, link: Link, op: Op) -> None:
            across = link.words.renames_across
            if not across and self.names != there.names:
                raise op.error(errno.EXDEV, f"{link.version} renames only within a directory")
            fids = []
            try:
                if wanted is not None or not across:
                    got = await straight(link, op, old)
                    fids.append(got.fid)
                    if wanted not in (None, got.qid.path):
                        raise op.error(errno.ESTALE, os.strerror(errno.ESTALE))
                if across:
                    fids += [(await straight(link, op, node.names)).fid for node in (self, there)]
                    op.effect = True
                    await link.words.renameat(op, fids[-2], name, fids[-1], newname)
                else:
                    op.effect = True
                    await link.words.rename_here(op, fids[0], newname)
            finally:
                for fid in fids:
                    link.forget(fid)

        await self.tree.do(old, work)
        self.tree.moved(old, new)

    # Opening

    async def open(self, flags: int, caller: Caller) -> Handle:
        wanted = flags & 3 | sum(ours for wire, ours in _FLAGS if flags & wire)
        if self.word == STREAM:
            wanted |= os.O_NONBLOCK

        async def work(files: Files, link: Link, op: Op) -> Handle:
            ask = link.words.open(wanted)
            if flags & _O_TRUNC or self.word == CLONE:
                got = await straight(link, op, self.names)
                try:
                    self._same(got)
                    op.effect = True
                    reply = await link.ask(op, ask[0], got.fid, *ask[1])
                except BaseException:
                    link.forget(got.fid)
                    raise
            else:
                got = await straight(link, op, self.names, ask)
                reply = got.replies[0]
            try:
                self._same(got)
            except OSError:
                link.forget(got.fid)
                raise
            opened = link.words.opened(reply)
            if self.word == STORED:
                self._is(opened.qid)
            return self._handle(flags, link, op, got.fid, opened.iounit)

        return await self.tree.do(self.names, work)

    def _handle(self, flags: int, link: Link, op: Op, fid: int, iounit: int) -> Handle:
        tree = self.tree
        opening = Opening(tree.address, op.path, link, fid, iounit, op.limit)
        if self.qtype & QTDIR:
            return FarDirectory(opening, tree.qid)
        if self.word == STREAM:
            return FarStream(opening)
        writes, waits = bool(flags & 3), bool(flags & _O_NONBLOCK)
        if self.word in (CTL, CLONE):
            return FarControl(opening, writes=writes or self.word == CLONE)
        if self.word in (SINK, TEXT):
            return FarRecords(opening, writes=writes)
        if self.word == BLOB:
            return FarBlob(opening, writes=writes)
        handle = FarFile(opening, writes=writes, waits=waits and not self.theirs)
        if self.word == STORED:
            self._handles.add(handle)
        return handle

    async def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> tuple[Node, Handle]:
        names = self._child(name)
        wanted = flags & 3 | sum(ours for wire, ours in _FLAGS if flags & wire)
        wanted |= os.O_EXCL if flags & _O_EXCL else 0

        async def work(files: Files, link: Link, op: Op) -> tuple[Node, Handle]:
            got = await straight(link, op, self.names)
            try:
                op.effect = True
                opened = await link.words.create(op, got.fid, name, wanted | os.O_CREAT, mode)
                cls, fields = link.words.stat()
                entry = link.words.entry(await link.ask(op, cls, got.fid, *fields), name)
            except BaseException:
                link.forget(got.fid)
                raise
            node = FarNode.at(self.tree, names, entry)
            return node, node._handle(flags, link, op, got.fid, opened.iounit)

        try:
            return await self.tree.do(names, work)
        except OSError as e:
            # The plain dialect creates nothing that is there already, and has no O_EXCL to ask for it.
            if e.errno != errno.EEXIST or flags & _O_EXCL:
                raise
        node = await self._walk(names)
        handle = await node.open(flags & ~_O_CREAT, caller)  # type: ignore[misc]
        return node, handle

    # Attributes

    async def readlink(self) -> str:
        async def work(link: Link, op: Op, fid: int) -> str:
            return await link.words.readlink(op, fid)

        return await self._on(False, work)

    async def setattr(self, changes: Changes) -> None:
        async def work(link: Link, op: Op, fid: int) -> None:
            await link.words.setattr(op, fid, changes)

        await self._on(True, work)

    async def xattrs(self) -> Sequence[str]:
        raw = await self.getxattr("")
        return [name.decode("utf-8", "surrogateescape") for name in raw.split(b"\0") if name]

    async def getxattr(self, name: str) -> bytes:
        async def work(link: Link, op: Op, fid: int) -> bytes:
            return await link.words.getxattr(op, fid, name)

        return await self._on(False, work)

    async def setxattr(self, name: str, value: bytes, flags: int) -> None:
        async def work(link: Link, op: Op, fid: int) -> None:
            await link.words.setxattr(op, fid, name, value, flags)

        await self._on(True, work, uses_up=True)

    async def statfs(self) -> Statfs:
        async def work(link: Link, op: Op, fid: int) -> Statfs:
            return await link.words.statfs(op, fid)

        return await self._on(False, work)

    # Locks

    async def lock(self, lock: Lock) -> bool:
        return await self._locks.take(lock, False)

    async def wait_lock(self, lock: Lock) -> None:
        await self._locks.wait(lock)

    def unlock(self, lock: Lock) -> Maybe[None]:
        return self._locks.give(lock)

    async def test_lock(self, lock: Lock) -> Lock | None:
        want = wanted(lock, int(lock.exclusive))

        async def work(link: Link, op: Op, fid: int) -> Range:
            return await link.words.getlock(op, fid, want)

        return found(await self._on(False, work))

    async def _to_lock(self) -> Held:
        """A fid for locks. A server of another make locks only what is open."""

        async def work(files: Files, link: Link, op: Op) -> Held:
            then = () if link.in_order else (link.words.open(os.O_RDWR),)
            got = await straight(link, op, self.names, *then)
            try:
                self._same(got)
            except OSError:
                link.forget(got.fid)
                raise
            return Held(link, got.fid, op)

        return await self.tree.do(self.names, work)


def _attr(e: Entry, qid: Qid) -> Attr:
    return Attr(
        qid, e.mode, e.uid, e.gid, e.nlink, e.rdev, e.size, e.blksize, e.blocks,
        *divmod(e.atime_ns, _SECOND), *divmod(e.mtime_ns, _SECOND), *divmod(e.ctime_ns, _SECOND),
        *divmod(e.btime_ns, _SECOND), e.word,
    )  # fmt: skip


__all__ = ["FarNode"]
