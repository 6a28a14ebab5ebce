"""From a path to a fid.

All names go in one Twalk (16 at most, more in steps). A walk that stopped is asked again for the
name it stopped at, because only a walk of one name is told why. Symbolic links are followed here,
within the tree: a server never follows them for a client.

Between Warren peers the requests that will use the fid ride in the same segment as the walk. That is
sound because requests are begun in order, a request on a fid that does not exist is refused without
effect, and the number is not reused before all of them were answered. A server that begins them
out of order refuses them as well; they are asked again.
"""

import errno
import os
from typing import NamedTuple

from warren.mount.link import Link, Op
from warren.mount.words import Request
from warren.p9.client import Call
from warren.p9.fields import MAXWELEM, NOFID, QTSYMLINK, Qid
from warren.p9.messages import Message, Rwalk, Twalk

_MAXLINKS = 40
_PATIENCE = 4  # rounds more than there are names, for a tree that changes under a walk


class Reached(NamedTuple):
    """A fid, what it is, and the replies to the requests that were sent behind the walk."""

    fid: int
    qid: Qid
    replies: list[Message]


def split(path: str | os.PathLike[str]) -> list[str]:
    """The names of a path. Empty ones and `.` are nothing; `..` is the server's."""
    return [name for name in os.fspath(path).split("/") if name not in ("", ".")]


def lexical(names: list[str]) -> list[str]:
    """Names without `..`, for a path that holds no symbolic links before them."""
    kept: list[str] = []
    for name in names:
        if name == "..":
            del kept[-1:]
        elif name not in ("", "."):
            kept.append(name)
    return kept


async def reach(link: Link, op: Op, path: str, *then: Request, follow: bool = True) -> Reached:
    """Walk to PATH and send THEN on the fid. The fid is the caller's, unless this raises.

    Cancelled leaves nothing behind, except that requests in THEN may have been done.
    """
    names = split(path)
    for _ in range(_MAXLINKS):
        walk = _Walk(link, op, names, follow)
        try:
            if await walk.run(then):
                return Reached(walk.fid, walk.qid, await walk.use(then))
        except BaseException:
            walk.drop()
            raise
        names = await walk.resolve()
    raise op.error(errno.ELOOP, "too many symbolic links")


async def straight(link: Link, op: Op, names: list[str], *then: Request) -> Reached | None:
    """As `reach`, by exactly these names: nothing is followed. None if a symbolic link is on the way."""
    walk = _Walk(link, op, names, follow=False)
    try:
        if await walk.run(then):
            return Reached(walk.fid, walk.qid, await walk.use(then))
    except BaseException:
        walk.drop()
        raise
    walk.drop()
    return None


class _Walk:
    """One attempt. Until a walk has made the fid, each one begins at the root with a number of its own."""

    def __init__(self, link: Link, op: Op, names: list[str], follow: bool) -> None:
        self.link, self.op, self.names, self.follow = link, op, names, follow
        self.fid = NOFID
        self.made = False
        self.qid = link.root_qid
        self.done = 0
        self.ahead: list[Call] = []

    async def run(self, then: tuple[Request, ...]) -> bool:
        """Walk all names; False if a symbolic link lies at names[done - 1]."""
        link, names = self.link, self.names
        whole = len(names) <= MAXWELEM
        rounds = 0
        while self.done < len(names) or not self.made:
            rounds += 1
            if rounds > len(names) + _PATIENCE:
                raise self.op.error(errno.EPROTO, "the walk comes to no end")
            step = names[self.done : self.done + MAXWELEM]
            call = self._start(step)
            if whole and link.in_order:
                self.ahead = [link.start(self.op, cls, self.fid, *f, after=call) for cls, f in then]
            qids = await self._walked(call)
            if self._stopped_at_link(qids):
                return False
            if len(qids) < len(step):
                self._leave_ahead()
                whole = False
                if not await self._reason(step, len(qids)):
                    return False
            elif qids:
                self.qid = qids[-1]
                self.done += len(qids)
        return True

    def _start(self, step: list[str]) -> Call:
        if not self.made:
            self.fid = self.link.half.fids.take()
        return self.link.start(self.op, Twalk, self.fid if self.made else self.link.root, self.fid, step)

    async def _walked(self, call: Call) -> list[Qid]:
        reply = await self.link.finish(self.op, call)
        assert isinstance(reply, Rwalk)
        if len(reply.qids) == call.count:
            self.made = True
        return reply.qids

    async def _reason(self, step: list[str], n: int) -> bool:
        """Walk the N names that went well, then the next alone, which says why it did not.

        The tree may have changed meanwhile: then this is progress like any other; False as in `run`.
        """
        for part in (step[:n], step[n : n + 1]):
            if part:
                qids = await self._walked(self._start(part))
                if self._stopped_at_link(qids):
                    return False
                if len(qids) < len(part):
                    break
                self.done += len(part)
                self.qid = qids[-1]
        return True

    def _stopped_at_link(self, qids: list[Qid]) -> bool:
        if self.link.words.links:
            for i, qid in enumerate(qids):
                if qid.type & QTSYMLINK and (self.follow or self.done + i + 1 < len(self.names)):
                    self.done += i + 1
                    return True
        return False

    async def resolve(self) -> list[str]:
        """The names that lead past the symbolic link at names[done - 1]."""
        self.drop()
        to_link, behind = self.names[: self.done], self.names[self.done :]
        walk = _Walk(self.link, self.op, to_link, follow=False)
        try:
            if not await walk.run(()):
                return await walk.resolve()  # the tree changed meanwhile
            target = await self.link.words.readlink(self.op, walk.fid)
        finally:
            walk.drop()
        before = [] if target.startswith("/") else to_link[:-1]
        return lexical(before + target.split("/")) + behind

    async def use(self, then: tuple[Request, ...]) -> list[Message]:
        """The replies to THEN, each asked again if the server had begun it before the walk."""
        link, op = self.link, self.op
        calls = self.ahead or [link.start(op, cls, self.fid, *fields) for cls, fields in then]
        early, self.ahead = bool(self.ahead), calls
        replies = []
        for call, (cls, fields) in zip(calls, then, strict=True):
            try:
                replies.append(await link.finish(op, call))
            except OSError as e:
                if not early or e.errno != errno.EBADF:
                    raise
                replies.append(await link.ask(op, cls, self.fid, *fields))
        return replies

    def _leave_ahead(self) -> None:
        for call in self.ahead:
            self.link.ignore(call)
        self.ahead = []

    def drop(self) -> None:
        """Give up what was reached."""
        for call in self.ahead:
            self.link.abandon(call)
        if self.made:
            self.link.forget(self.fid)
            self.made = False
