"""dial: from an address, or a stream, to the files behind it.

    async with dial("tcp!127.0.0.1!5640", aname="/data") as files: ...
    async with dial(stream) as files: ...          # any trio stream, or channel, for its life only
    async with dial("tls!hub!564", identity=me, expect="role/QueenPrimary/*") as files: ...

See `address` for the forms. The session ends with the block; what it raised is raised as it is.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

import trio
from warren.mount.address import Channel, StreamChannel, connect, parse
from warren.mount.files import Files
from warren.p9.client import MSIZE, VERSIONS

if TYPE_CHECKING:
    from warren.auth.identity import Identity

DEADLINE = 30.0


class dial(AbstractAsyncContextManager[Files]):
    """A session with ADDRESS, a string or a trio stream.

    `aname` chooses a tree or a place in one; `uname` is a label that a server never believes; `versions`
    are offered in turn until the server knows one. For `tls!`, `identity` is who we are and `expect` whom
    we want: any role of our hive, unless it says otherwise.
    Raises ValueError for what is no address, OSError when nobody answers or the server refuses.
    """

    def __init__(
        self,
        address: str | trio.abc.Stream | Channel,
        aname: str = "",
        *,
        uname: str | None = None,
        deadline: float = DEADLINE,
        msize: int = MSIZE,
        versions: Sequence[str] = VERSIONS,
        identity: Identity | None = None,
        expect: str = "role/*/*",
    ) -> None:
        self._connect: Callable[[], Awaitable[Channel]]
        if isinstance(address, str):
            parse(address)
            target = address
            secure = address.startswith("tls!")
            if secure and identity is None:
                raise ValueError(f"{address} needs an identity to show: --id DIR")

            async def connect_address() -> Channel:
                try:
                    if not secure or identity is None:
                        return await connect(target)
                    from warren.mount.secure import refreshed, secured  # certificates take 50 ms to import

                    refreshed(identity)
                    channel = await connect(target)
                    return await secured(channel.socket, identity, expect)
                except OSError as e:
                    # A failed look-up of a name has a number of its own, which is no errno.
                    number = errno.EHOSTUNREACH if isinstance(e, socket.gaierror) else e.errno
                    raise OSError(number, f"{target}: {e.strerror or e}") from e

            self._connect, self._peer = connect_address, address
        else:
            stream = address

            async def wrap() -> Channel:
                return StreamChannel(stream) if isinstance(stream, trio.abc.Stream) else stream

            self._connect, self._peer = wrap, type(address).__name__
        self._redials = isinstance(address, str)
        self._labels = (_me() if uname is None else uname, aname)
        self._deadline, self._msize, self._versions = deadline, msize, versions

    async def __aenter__(self) -> Files:
        self._opening = trio.open_nursery()
        self._nursery = await self._opening.__aenter__()
        uname, aname = self._labels
        files = Files(
            self._nursery, self._connect, peer=self._peer, uname=uname, aname=aname,
            deadline=self._deadline, msize=self._msize, versions=self._versions, redials=self._redials,
        )  # fmt: skip
        try:
            await files.begin()
        except BaseException:
            await self._end()
            raise
        return files

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The block's own exception is not shown to the nursery, which would wrap it in a group.
        await self._end()

    async def _end(self) -> None:
        self._nursery.cancel_scope.cancel()
        await self._opening.__aexit__(None, None, None)


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
