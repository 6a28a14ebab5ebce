"""/srv: trees that somebody posts here, by name. A post is the address of a unix socket.

    /<name>    Text    address= by= since= found=

    echo 'unix!/run/me/sock' > /srv/me; cat /srv/me; rm /srv/me

Create and one write are the post; what is closed without a write was none. Only `unix!` and an absolute
path are taken. The role decides whether the name is free: no post shadows a role or another tree. What
is posted is reached as nobody, and never receives a token. A post outlives whoever made it.

`discover` posts every socket NAME.sock of a directory by itself, and withdraws it when it goes: a server
that makes its socket there needs nothing else. Such a post is removed with its socket. MOST names are
posted at once.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from warren.tree import Bytes, Caller, Changes, Dir, Handle, Maybe, Node, Refused, absent
from warren.tree.node import TEXT
from warren.tree.ports import Clock
from warren.tree.report import attributes

MOST: Final = 64
LOOK: Final = 1.0  # seconds between two looks at a directory of sockets
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_LONGEST: Final = 107  # bytes of a socket's path
_ACCESS, _EXCL = 0o3, 0o200

Post = Callable[[str, str, str], Maybe[None]]
Withdraw = Callable[[str], Maybe[None]]


class Srv(Dir):
    """The names. POST(name, address, subject) puts a tree into the role's namespace, or refuses."""

    mode = 0o755

    def __init__(
        self,
        clock: Clock,
        post: Post,
        withdraw: Withdraw,
        tell: Callable[..., None] = lambda kind, **values: None,
    ) -> None:
        self.clock, self.post, self.withdraw, self.tell = clock, post, withdraw, tell
        self.posts: dict[str, Posted] = {}
        self.refused: dict[str, str] = {}  # sockets that were found and could not be posted, and why
        super().__init__(self.posts)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return list(self.posts.items())

    # Posting by hand

    def create(self, name: str, flags: int, mode: int, gid: int, caller: Caller) -> tuple[Node, Handle]:
        there = self.posts.get(name)
        if there is not None:
            if flags & _EXCL:
                raise Refused(409, f"{name} is posted already; remove it first")
            return there, there.open(flags, caller)
        post = self._reserve(name, caller.subject)
        return post, PostHandle(self, post)

    def _reserve(self, name: str, subject: str) -> Posted:
        if not _NAME.fullmatch(name):
            raise Refused(400, f"{name!r} is no name for a post: letters, digits and _ . -, 63 at most")
        if len(self.posts) >= MOST:
            raise Refused(429, f"{MOST} names are posted; remove one first")
        post = self.posts[name] = Posted(name, subject)
        return post

    def drop(self, post: Posted) -> None:
        """Forget what was never posted."""
        if not post.address and self.posts.get(post.name) is post:
            del self.posts[post.name]

    def put(self, post: Posted, address: str) -> Maybe[None]:
        """Post it. Cancelled leaves it posted, or nothing."""
        coming = self.post(post.name, address, post.subject)
        if coming is None:
            post.address, post.since = address, self.clock.now()
            return None
        return self._put_later(post, address, coming)

    async def _put_later(self, post: Posted, address: str, coming: Awaitable[None]) -> None:
        await coming
        if self.posts.get(post.name) is not post:  # it was removed while the role decided
            gone = self.withdraw(post.name)
            if gone is not None:
                await gone
            raise absent()
        post.address, post.since = address, self.clock.now()

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> Maybe[None]:
        post = self.posts.get(name)
        if post is None:
            raise absent()
        if expect is not None and expect is not post:
            raise Refused(404, "this name is another post by now", errno=errno.ESTALE)
        if directory:
            raise Refused(400, "not a directory", errno=errno.ENOTDIR)
        if post.found:
            raise Refused(403, f"{name} was found at {post.found}; remove that socket")
        del self.posts[name]
        return self.withdraw(name) if post.address else None

    # Posting what is found

    async def discover(self, directory: str | os.PathLike[str]) -> None:
        """Post the sockets of DIRECTORY as they come and go. Runs until cancelled; withdraws nothing."""
        folder, seen = Path(directory), -1
        while True:
            stamp = _stamp(folder)
            # A directory that changed just now may change again within the same tick of its clock.
            if stamp != seen or stamp > (self.clock.now() - 2 * LOOK) * 1e9:
                await self._compare(_sockets(folder))
                seen = stamp
            await self.clock.sleep_until(self.clock.monotonic() + LOOK)

    async def _compare(self, there: dict[str, Path]) -> None:
        for name in [n for n, post in self.posts.items() if post.found and post.found != str(there.get(n))]:
            del self.posts[name]
            gone = self.withdraw(name)
            if gone is not None:
                await gone
        for name, path in there.items():
            if name not in self.posts:
                await self._find(name, path)
        self.refused = {name: why for name, why in self.refused.items() if name in there}

    async def _find(self, name: str, path: Path) -> None:
        post = None
        try:
            post = self._reserve(name, "local")
            coming = self.put(post, checked(f"unix!{path}"))
            if coming is not None:
                await coming
            post.found = str(path)
            self.refused.pop(name, None)
        except OSError as e:
            why = e.strerror or str(e)
            if self.refused.get(name) != why:
                self.refused[name] = why
                self.tell("srv_refused", name=name, why=why)
        finally:
            if post is not None:
                self.drop(post)


class Posted(Node):
    """One post."""

    mode = 0o644
    word = TEXT
    swallows_truncate = True

    def __init__(self, name: str, subject: str) -> None:
        self.name, self.subject = name, subject
        self.address = ""  # nothing until it was written
        self.since = 0.0
        self.found = ""  # the socket it was found at

    def says(self) -> bytes:
        if not self.address:
            return b""
        values = {"address": self.address, "by": self.subject, "since": self.since, "found": bool(self.found)}
        return attributes(values).encode()

    def open(self, flags: int, caller: Caller) -> Handle:
        if flags & _ACCESS:
            raise Refused(409, f"{self.name} is posted already; remove it first")
        return ReadHandle(self.says())

    def setattr(self, changes: Changes) -> Maybe[None]:
        """What a shell's redirection sends is harmless."""


class ReadHandle(Handle):
    """A post as it was when it was opened."""

    def __init__(self, says: bytes) -> None:
        self.says = says

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.says[offset : offset + count]


class PostHandle(Handle):
    """A post in the making: one write of its address."""

    record = True
    tells = True

    def __init__(self, srv: Srv, post: Posted) -> None:
        self.srv, self.mine = srv, post
        self.wrote = False

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        if self.wrote:
            raise Refused(409, "a post is one write; remove it and post again")
        address = checked(bytes(data).decode("utf-8", "surrogateescape").strip())
        coming = self.srv.put(self.mine, address)
        self.wrote = True
        return len(data) if coming is None else self._wait(coming, len(data))

    async def _wait(self, coming: Awaitable[None], n: int) -> int:
        try:
            await coming
        except BaseException:
            self.wrote = False
            raise
        return n

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.mine.says()[offset : offset + count]

    def close(self) -> Maybe[None]:
        self.abandon()
        return None

    def abandon(self) -> None:
        self.srv.drop(self.mine)


def checked(address: str) -> str:
    """An address that can be posted, or the refusal."""
    scheme, _, path = address.partition("!")
    plain = path.startswith("/") and path.isprintable() and not {"..", "."} & set(path.split("/"))
    if scheme != "unix" or not plain or "!" in path or path.endswith("/"):
        raise Refused(400, f"{address[:200]!r} cannot be posted; write unix! and a socket's absolute path")
    if len(path.encode()) > _LONGEST:
        raise Refused(413, f"a socket's path is at most {_LONGEST} bytes")
    return address


def _stamp(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _sockets(folder: Path) -> dict[str, Path]:
    """The sockets of a directory by the names they are posted under."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, dot, suffix = entry.name.rpartition(".")
                if dot and suffix == "sock" and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                    found[stem] = folder / entry.name
    except OSError:
        return {}  # gone meanwhile, or not there yet
    return found
