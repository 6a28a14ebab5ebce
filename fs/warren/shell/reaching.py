"""For commands that stay and keep a tree within reach: who goes there, until when, and how it fails.

    me = identity_at(at, args.id)              who we are, which a `tls!` address asks
    code = trio.run(until_ended, work)         WORK until it ends, or SIGTERM (exit code 0), or Ctrl-C (130)
    raise not_reached(e, at)                   why there is no connection, and the way out
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from warren.shell import exits
from warren.shell.exits import Stopped
from warren.shell.session import identity_of

if TYPE_CHECKING:
    from warren.auth.identity import Identity


def identity_at(at: str, directory: str | None) -> Identity | None:
    """The identity in DIRECTORY; without one, the refusal to go where one is asked for."""
    identity = identity_of(directory)
    if identity is None and at.startswith("tls!"):
        way_out = "say --id DIR, a folder that warren ca issue made"
        raise Stopped(errno.EINVAL, "it wants to know who you are", at, way_out, exits.USAGE)
    return identity


async def until_ended(work: Callable[[], Awaitable[None]]) -> int:
    """WORK, until it ends or a signal ends it; the exit code. What it raises is raised as it is."""
    import trio

    code = exits.OK
    failed: OSError | ValueError | None = None
    # What the parent had ignored stays ignored: nohup, or a shell without job control.
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with trio.open_signal_receiver(*(s for s in ends if signal.getsignal(s) != signal.SIG_IGN)) as signals:
        async with trio.open_nursery() as nursery:

            async def heed() -> None:
                nonlocal code
                code = exits.INTERRUPTED if await anext(signals) == signal.SIGINT else exits.OK
                nursery.cancel_scope.cancel()

            nursery.start_soon(heed)
            try:
                await work()
            except (OSError, ValueError) as e:
                failed = e
            nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return code


def said(e: OSError, at: str) -> str:
    """What went wrong at AT, for a line that names AT already."""
    return (e.strerror or str(e)).partition(" trace=")[0].removeprefix(f"{at}: ")


def not_reached(e: OSError, at: str) -> Stopped:
    """No connection to AT came about."""
    code = {errno.EACCES: exits.DENIED, errno.EPERM: exits.DENIED, errno.ETIMEDOUT: exits.TIMED_OUT}.get(
        e.errno or 0, exits.UNAVAILABLE
    )
    way_out = "see whether the server runs there: warren ls --at ADDR"
    if code == exits.DENIED and at.startswith("tls!"):
        way_out = "see that --id is valid and of this hive, and that --expect names whom you want"
    elif code == exits.DENIED:
        way_out = "the socket belongs to another user; say the address of one of yours"
    return Stopped(e.errno or errno.EIO, said(e, at), at, way_out, code)
