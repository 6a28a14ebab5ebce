"""SpaceDir: a directory of a Space that has mount points at or below it.

It is made of *sources*: at a mount point its members, elsewhere the one directory that the walk found here.
They are looked up anew for each request, so a Space that was replaced is in force at once. As long as all
of them are of this process and answer without waiting, so does this.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import trio
from warren.namespaces.reached import Path, longer, number, spell
from warren.namespaces.readonly import ReadOnly
from warren.namespaces.space import Member
from warren.namespaces.view import View, now
from warren.tree import Attr, Caller, Changes, Dirent, Handle, Maybe, Node, Refused, Statfs, absent
from warren.tree.node import QTDIR, Qid

T = TypeVar("T")
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_O_EXCL = 0o200
PATIENCE: Final = 1.0  # for what a tree that is elsewhere says of its root
QUIET: Final = 5.0  # seconds for which one that said nothing is not asked again
_DEV, _ERRSTR = ("dev",), ("dev", "errstr")


class Source(NamedTuple):
    """One of the directories that a directory of a Space is made of."""

    address: str
    creates: bool
    node: Maybe[Node]


class SpaceDir(Node):
    """A directory of a Space that has mount points at or below it."""

    qtype = QTDIR
    mode = 0o555

    def __init__(self, view: View, path: Path, found: Node | None = None, address: str = "") -> None:
        self.view = view
        self.path = path
        # Where this is no mount point: the directory that the walk found here, and in which tree.
        self.found, self.address = found, address

    def qid(self) -> Qid:
        return Qid(QTDIR, 0, number("space", *self.path))

    def _members(self) -> tuple[Member, ...] | None:
        return self.view.space.table.get(self.path)

    def _source(self, i: int) -> Source | None:
        """The one at that place, or None behind the last. An awaitable in it is the caller's to await."""
        members = self._members()
        if members is None:
            return None if i or self.found is None else Source(self.address, True, self.found)
        if i == len(members):
            return None
        member = members[i]
        return Source(member.address, member.creates, self.view.of(member))

    async def _sources(self) -> list[tuple[Source, Node]]:
        """All that there are; a member that is not there does not count."""
        found: list[tuple[Source, Node]] = []
        for i in itertools.count():
            try:
                source = self._source(i)
                if source is None:
                    break
                found.append((source, await now(source.node)))
            except OSError as e:
                if e.errno not in _MISSING:
                    raise
        return found

    # Walking

    def walk(self, name: str) -> Maybe[Node]:
        path = longer(self.path, name)
        if path == _ERRSTR:
            return self.view.shared.errstr
        members = self.view.space.table.get(path)
        if members is not None:
            known = self.view.shared.kinds
            plainly = len(members) > 1 or not members[0].path  # a union, or the root of a tree
            if plainly or (path in known and known[path] is None):
                return SpaceDir(self.view, path)
            return self._mounted(path, members[0])
        return self._dev() if path == _DEV else self._first(path, 0)

    def _dev(self) -> Maybe[Node]:
        """/dev, where errors are told: also those of the tree that would have had it."""
        try:
            found = self._first(_DEV, 0)
        except OSError as e:
            return self._dev_instead(e)
        return found if isinstance(found, Node) else self._dev_later(found)

    async def _dev_later(self, coming: Awaitable[Node]) -> Node:
        try:
            return await coming
        except OSError as e:
            return self._dev_instead(e)

    def _dev_instead(self, e: OSError) -> Node:
        if e.errno in _MISSING:
            raise e
        return SpaceDir(self.view, _DEV)

    async def _mounted(self, path: Path, member: Member) -> Node:
        try:
            file = await self.view.kind(member)
        except OSError:
            return SpaceDir(self.view, path)  # whoever goes on from there is told
        self.view.shared.kinds[path] = None if file is None else file.qid()
        return SpaceDir(self.view, path) if file is None else file

    def _first(self, path: Path, i: int) -> Maybe[Node]:
        """What the first member from the Ith on has of the last name of PATH."""
        for at in itertools.count(i):
            try:
                source = self._source(at)
                if source is None:
                    break
                if not isinstance(source.node, Node):
                    return self._first_later(path, at, source, source.node, None)
                found = source.node.walk(path[-1])
            except OSError as e:
                if e.errno not in _MISSING:
                    raise
                continue
            if not isinstance(found, Node):
                return self._first_later(path, at, source, None, found)
            return self._shown(path, found, source)
        return self._shown(path, None, None)

    async def _first_later(
        self, path: Path, i: int, source: Source, node: Awaitable[Node] | None, found: Awaitable[Node] | None
    ) -> Node:
        try:
            if node is not None:
                there = await now((await node).walk(path[-1]))
            else:
                assert found is not None
                there = await found
        except OSError as e:
            if e.errno not in _MISSING:
                raise
            return await now(self._first(path, i + 1))
        return self._shown(path, there, source)

    def _shown(self, path: Path, found: Node | None, source: Source | None) -> Node:
        """What a walk to PATH comes to, which is no mount point."""
        if path[-1] not in self.view.below(self.path):
            if found is None:
                raise absent()
            return found
        if found is None or source is None or not found.qtype & QTDIR:
            return SpaceDir(self.view, path)
        return SpaceDir(self.view, path, found, source.address)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return _Listing(self, caller)

    async def entries(self, caller: Caller) -> Sequence[Dirent]:
        """What the members have, each name once, and what is mounted here."""
        found: dict[str, Dirent] = {}
        for _, node in await self._sources():
            try:
                entries = await _listed(node, caller)
            except OSError as e:
                if e.errno not in _MISSING:
                    raise
                continue  # a file in a union has no names
            for entry in entries:
                found.setdefault(entry.name, entry)
        for name in sorted(self.view.below(self.path)):
            path = (*self.path, name)
            qid = self.view.shared.kinds.get(path) or SpaceDir(self.view, path).qid()
            found[name] = Dirent(name, qid)
        if self.path == _DEV:
            found["errstr"] = Dirent("errstr", self.view.shared.errstr.qid())
        return list(found.values())

    # Attributes are those of the first member

    def attr(self) -> Maybe[Attr]:
        quiet = self.view.shared.quiet.get(self.path)
        if quiet is not None and trio.current_time() < quiet:
            return self._bare()
        try:
            source = self._source(0)
        except OSError:
            source = None
        if source is None:
            return self._bare()
        if isinstance(source.node, Node):
            attr = source.node.attr()
            if isinstance(attr, Attr):
                return attr._replace(qid=self.qid())
            return self._attr_later(None, attr)
        return self._attr_later(source.node, None)

    def _bare(self) -> Attr:
        return Attr(self.qid(), 0o40000 | self.mode)

    async def _attr_later(self, node: Awaitable[Node] | None, attr: Awaitable[Attr] | None) -> Attr:
        found = self._bare()  # that something is mounted here is true all the same
        try:
            # Not for long: who lists the directory above asks for every tree in it, and one may be silent.
            with trio.move_on_after(PATIENCE) as scope:
                found = await attr if attr is not None else await now((await node).attr())  # type: ignore[misc]
            if scope.cancelled_caught:  # `ls -l` asks several times, and giving up takes its time too
                self.view.shared.quiet[self.path] = trio.current_time() + QUIET
        except OSError:
            pass
        return found._replace(qid=self.qid())

    async def _top(self) -> Node:
        sources = await self._sources()
        if not sources:
            said = f"{spell(self.path)} only leads to what is mounted below it"
            raise Refused(405, said, errno=errno.EPERM)
        return sources[0][1]

    async def setattr(self, changes: Changes) -> None:
        await now((await self._top()).setattr(changes))

    async def xattrs(self) -> Sequence[str]:
        sources = await self._sources()
        return await now(sources[0][1].xattrs()) if sources else ()

    async def getxattr(self, name: str) -> bytes:
        sources = await self._sources()
        return await now((sources[0][1] if sources else Node()).getxattr(name))

    async def setxattr(self, name: str, value: bytes, flags: int) -> None:
        await now((await self._top()).setxattr(name, value, flags))

    async def statfs(self) -> Statfs:
        sources = await self._sources()
        return await now(sources[0][1].statfs()) if sources else Statfs()

    # Changing

    def _unmounted(self, name: str) -> None:
        if name in self.view.below(self.path):
            said = f"{spell((*self.path, name))} is a mount point, or leads to one: unmount that first"
            raise Refused(409, said, errno=errno.EBUSY)

    async def _has(self, name: str) -> Source | None:
        """The first member that has the name."""
        self._unmounted(name)
        for source, node in await self._sources():
            try:
                await now(node.walk(name))
            except OSError as e:
                if e.errno not in _MISSING:
                    raise
                continue
            return source._replace(node=node)
        return None

    async def _new(self) -> Node:
        """Where new files go."""
        for source, node in await self._sources():
            if source.creates:
                return node
        said = "no member of this union takes new files; mount or bind the one that is to with -c"
        raise Refused(405, said, errno=errno.EPERM)

    async def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> tuple[Node, Handle]:
        there = await self._has(name)
        if there is not None and flags & _O_EXCL:
            raise _taken(name)
        into = await self._new() if there is None else await now(there.node)
        return await now(into.create(name, flags, mode, gid, caller))

    async def _make(self, name: str, make: Callable[[Node], Maybe[T]]) -> T:
        if await self._has(name) is not None:
            raise _taken(name)
        return await now(make(await self._new()))

    async def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Node:
        return await self._make(name, lambda into: into.mkdir(name, mode, gid, caller))

    async def symlink(self, name: str, target: str, gid: int) -> Node:
        return await self._make(name, lambda into: into.symlink(name, target, gid))

    async def mknod(self, name: str, mode: int, major: int, minor: int, gid: int) -> Node:
        return await self._make(name, lambda into: into.mknod(name, mode, major, minor, gid))

    async def link(self, name: str, node: Node) -> None:
        if isinstance(node, SpaceDir | ReadOnly):
            raise Refused(409, "that is in another member: copy it", errno=errno.EXDEV)
        await self._make(name, lambda into: into.link(name, node))

    async def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        there = await self._has(name)
        if there is None:
            raise absent()
        node = await now(there.node)
        await now(node.unlink(name, directory, _bare_node(expect)))

    async def rename(self, name: str, into: Node, newname: str, expect: Node | None = None) -> None:
        there = await self._has(name)
        if there is None:
            raise absent()
        node = await now(there.node)
        target = into if not isinstance(into, SpaceDir) else await into._landing(newname, there, self.path)
        if isinstance(target, ReadOnly):
            raise Refused(403, "that is mounted read-only", errno=errno.EROFS)
        await now(node.rename(name, target, newname, _bare_node(expect)))

    async def _landing(self, name: str, source: Source, path: Path) -> Node:
        """Where a file out of SOURCE, a member at PATH, may get that name here."""
        self._unmounted(name)
        if path == self.path:
            return await now(source.node)
        for there, node in await self._sources():
            if there.address == source.address and there.creates:
                return node
        raise Refused(409, "that is in another member: copy it, then remove it", errno=errno.EXDEV)


def _bare_node(expect: Node | None) -> Node | None:
    return expect.node if isinstance(expect, ReadOnly) else expect


def _taken(name: str) -> Refused:
    return Refused(409, f"{name} is there already", errno=errno.EEXIST)


async def _listed(node: Node, caller: Caller) -> Sequence[Dirent]:
    handle = await now(node.open(0, caller))
    try:
        return await now(handle.entries())
    finally:
        handle.abandon()


class _Listing(Handle):
    def __init__(self, directory: SpaceDir, caller: Caller) -> None:
        self.directory = directory
        self.caller = caller

    def entries(self) -> Maybe[Sequence[Dirent]]:
        return self.directory.entries(self.caller)
