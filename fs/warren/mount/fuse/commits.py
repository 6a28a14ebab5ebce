"""Bodies that their close commits, and whoever comes right behind it.

The kernel does not wait for the end of a file: close(2) has returned before the server hears of it. The next
command of a script would then not find what the one before it has stored. But the kernel tells us of the
close before it asks for that next command. So while a body is being committed, requests wait for it, PATIENCE
seconds at most; a body that was committed by fsync, or never written, holds nobody up.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from warren.mount.fuse.line import Moment
from warren.p9.fields import NOFID
from warren.p9.messages import Tclunk
from warren.tree.node import BLOB

if TYPE_CHECKING:
    from warren.mount.fuse.line import Job
    from warren.mount.fuse.opened import OpenFile
    from warren.mount.fuse.session import Session
    from warren.p9.client import Call

PATIENCE: Final = 2.0


class Commits:
    """The closes of one mount that are being answered, and who waits for them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._coming: set[Call] = set()
        self._held: list[Job] = []

    def close(self, file: OpenFile) -> None:
        """Let go of FILE, which its user has closed."""
        link, fid = file.link, file.fid
        if file.word != BLOB or not file.unsure or link.lost or fid == NOFID:
            file.let_go()
            self.session.queued(link)
            return
        file.fid = NOFID
        file.let_go()
        call = link.half.request(Tclunk, fid)
        self._coming.add(call)
        call.owner = partial(self._done, call)
        self.session.asked(link)
        late = Moment()
        late.owner = partial(self._done, call)
        self.session.later(PATIENCE, late)

    def holds(self, job: Job) -> bool:
        """Whether JOB has to wait. It is begun by itself."""
        if self._coming:
            self._held.append(job)
        return bool(self._coming)

    def _done(self, call: Call) -> None:
        self._coming.discard(call)
        if self._coming:
            return
        held, self._held = self._held, []
        for job in held:
            if self.session.jobs.get(job.header.unique) is job:  # it may have been given up
                job.line.ready(job)
