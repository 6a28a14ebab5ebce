"""What each request of the kernel's does, by opcode.

What needs the server is a coroutine of a job; what needs nobody (letting go, above all) is done at once, so
that it works whatever has become of the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from warren.mount.fuse import attributes, directories, locking, naming, opened
from warren.mount.fuse import messages as m

if TYPE_CHECKING:
    from warren.mount.fuse.line import Answer, Job, Moment
    from warren.mount.fuse.session import Session
    from warren.p9.client import Call

    Operation = Callable[[Job, Any], Coroutine[Call | Moment, None, Answer]]

OPERATIONS: Final[dict[int, Operation]] = {
    **naming.OPERATIONS, **attributes.OPERATIONS, **opened.OPERATIONS, **directories.OPERATIONS,
    **locking.OPERATIONS,
}  # fmt: skip

_WANTED: Final = (
    m.ASYNC_READ | m.POSIX_LOCKS | m.ATOMIC_O_TRUNC | m.BIG_WRITES | m.FLOCK_LOCKS | m.AUTO_INVAL_DATA
    | m.DO_READDIRPLUS | m.READDIRPLUS_AUTO | m.ASYNC_DIO | m.PARALLEL_DIROPS | m.MAX_PAGES
    | m.HANDLE_KILLPRIV_V2
)  # fmt: skip
_PAGE: Final = 4096


def _init(s: Session, head: m.Header, body: m.Init) -> None:
    if body.major != m.VERSION[0]:
        # A newer major is answered with ours, and the kernel asks again.
        s.answer_at_once(head, m.packed(m.Agreed(*m.VERSION, *[0] * 13)))
        return
    flags = body.flags & _WANTED
    io = s.max_io if flags & m.MAX_PAGES else min(s.max_io, 128 << 10)
    agreed = m.Agreed(
        m.VERSION[0], min(m.VERSION[1], body.minor), max(body.max_readahead, io), flags, 128, 96,
        max(io, _PAGE), 1, max(1, io // _PAGE), 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    s.max_io = max(io, _PAGE)
    s.answer_at_once(head, m.packed(agreed))


def _forget(s: Session, head: m.Header, body: m.Forget) -> None:
    s.forget(head.nodeid, body.nlookup)


def _batch_forget(s: Session, head: m.Header, body: m.BatchForget) -> None:
    for i in range(min(body.many, len(body.pairs) // 16)):
        s.forget(int.from_bytes(body.pairs[16 * i : 16 * i + 8], "little"),
                 int.from_bytes(body.pairs[16 * i + 8 : 16 * i + 16], "little"))  # fmt: skip


def _interrupt(s: Session, head: m.Header, body: m.Interrupt) -> None:
    s.interrupt(body.unique)


def _destroy(s: Session, head: m.Header, body: m.Bare) -> None:
    s.answer_at_once(head)


AT_ONCE: Final[dict[int, Callable[[Session, m.Header, Any], None]]] = {
    m.INIT: _init, m.DESTROY: _destroy, m.FORGET: _forget, m.BATCH_FORGET: _batch_forget,
    m.INTERRUPT: _interrupt, m.FLUSH: locking.flush, m.RELEASE: locking.release,
    m.RELEASEDIR: locking.release,
}  # fmt: skip
