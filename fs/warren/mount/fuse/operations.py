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

LETTING_GO: Final[dict[int, Callable[[Session, m.Header, Any], None]]] = {
    m.FLUSH: locking.flush, m.RELEASE: locking.release, m.RELEASEDIR: locking.release,
}  # fmt: skip
