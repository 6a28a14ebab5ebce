"""ReadOnly: a file as a namespace shows it that mounted it with -r.

It can be walked, looked at and read, and so can what is below. Every change is refused (403, EROFS), an open
for writing is one, and so is the open of a clone file, which makes something. A ctl file can be read for its
help and takes no verb. It weakens nothing that the tree itself refuses.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Sequence
from typing import NoReturn

from warren.tree import Attr, Caller, Changes, Handle, Lock, Maybe, Node, Refused, Statfs
from warren.tree.node import CLONE, Qid

_WRITES = 0o222
_CHANGES = 0o3 | 0o1000  # of an open's flags: the access mode, O_TRUNC


class ReadOnly(Node):
    """NODE, without whatever changes it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.qtype, self.word, self.is_ctl = node.qtype, node.word, node.is_ctl
        self.mode = node.mode & ~_WRITES
        self.swallows_truncate = node.swallows_truncate
        self.counted = node.counted

    def _refuse(self) -> NoReturn:
        raise Refused(403, "it is mounted read-only here", errno=errno.EROFS)

    # Looking

    def qid(self) -> Qid:
        return self.node.qid()

    def attr(self) -> Maybe[Attr]:
        attr = self.node.attr()
        return _unwritable(attr) if isinstance(attr, Attr) else self._attr_later(attr)

    async def _attr_later(self, coming: Awaitable[Attr]) -> Attr:
        return _unwritable(await coming)

    def walk(self, name: str) -> Maybe[Node]:
        found = self.node.walk(name)
        return ReadOnly(found) if isinstance(found, Node) else self._walk_later(found)

    async def _walk_later(self, coming: Awaitable[Node]) -> Node:
        return ReadOnly(await coming)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        if flags & _CHANGES or self.word == CLONE:
            self._refuse()
        return self.node.open(flags, caller)

    def readlink(self) -> Maybe[str]:
        return self.node.readlink()

    def xattrs(self) -> Maybe[Sequence[str]]:
        return self.node.xattrs()

    def getxattr(self, name: str) -> Maybe[bytes]:
        return self.node.getxattr(name)

    def statfs(self) -> Maybe[Statfs]:
        return self.node.statfs()

    def hold(self) -> None:
        self.node.hold()

    def release(self) -> None:
        self.node.release()

    # Changing

    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> Maybe[tuple[Node, Handle]]:
        self._refuse()

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        self._refuse()

    def symlink(self, name: str, target: str, gid: int) -> Maybe[Node]:
        self._refuse()

    def mknod(self, name: str, mode: int, major: int, minor: int, gid: int) -> Maybe[Node]:
        self._refuse()

    def link(self, name: str, node: Node) -> Maybe[None]:
        self._refuse()

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> Maybe[None]:
        self._refuse()

    def rename(self, name: str, into: Node, newname: str, expect: Node | None = None) -> Maybe[None]:
        self._refuse()

    def setattr(self, changes: Changes) -> Maybe[None]:
        self._refuse()

    def setxattr(self, name: str, value: bytes, flags: int) -> Maybe[None]:
        self._refuse()

    def lock(self, lock: Lock) -> Maybe[bool]:
        self._refuse()

    def wait_lock(self, lock: Lock) -> Maybe[None]:
        self._refuse()


def _unwritable(attr: Attr) -> Attr:
    return attr._replace(mode=attr.mode & ~_WRITES)
