"""A mount from beginning to end.

    await mounted(address, directory, ready=...)

The first connection is made before anything is mounted, so that a wrong address is an error of the command
and not of every file. What is mounted stays until it is unmounted or this is cancelled; the server may come
and go meanwhile.
"""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from warren.mount.dial import dial
from warren.mount.fuse.device import attach, detach, mounted_at
from warren.mount.fuse.session import Session

if TYPE_CHECKING:
    from warren.auth.identity import Identity


async def mounted(
    address: str,
    directory: str,
    *,
    ready: Callable[[], None],
    aname: str = "",
    identity: Identity | None = None,
    expect: str = "role/*/*",
    allow_other: bool = False,
    read_only: bool = False,
    tell: Callable[[str], None] = lambda said: None,
) -> None:
    """Mount ADDRESS at DIRECTORY, an absolute path without links, call READY, and serve until unmounted.

    Raises ValueError for what is no address, OSError if nothing could be mounted. Cancelled unmounts.
    """

    def introduce(uid: int) -> dial:
        return dial(address, aname, uname=_name(uid), identity=identity, expect=expect)

    async with introduce(os.geteuid()) as files:
        session = Session(_Nothing(), files, introduce=introduce if allow_other else None, tell=tell)
        await session.first()
        device = attach(
            directory, address, allow_other=allow_other, read_only=read_only, max_read=session.max_io
        )
        session.device = device
        at = mounted_at(directory)
        number = at.number if at is not None else None
        try:
            await session.run(ready)
        finally:
            # Closed first: the kernel then ends what is in flight, and no unmount waits for us.
            device.close()
            still = mounted_at(directory)
            if still is not None and still.number == number:
                detach(directory, number)


class _Nothing:
    """In the device's place until it is mounted, which needs to know what the server settles for."""

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "not mounted yet")

    def read(self, into: bytearray) -> int:
        return 0

    def write(self, parts: Sequence[bytes | memoryview]) -> bool:
        return False

    def close(self) -> None:
        pass


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

