"""The lines on which a machine and its host speak 9P, which are new each time that it begins.

    lines = Lines(qemu, {"channel": stream, "export": stream})
    lines["channel"]                what to speak on now
    await lines.change()            the guest has other ones; ours have ended
    lines.take_up()                 once the guest stands still: from now on we have the others, too

A guest may be reset while an answer is on its way to it, or while it is in the middle of a message. What
is left of that, in QEMU or in a socket, would be taken for the beginning of the next conversation. So the
ends of the lines are changed under the running guest: QEMU is given one of a new pair of sockets for each. It
can do that with lines of virtio only while the processors run, so the guest may still say something on the
new ones, but nobody answers. When it stands still that is thrown away. What a device holds of a line goes
with the reset itself.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Protocol

import trio


class Told(Protocol):
    """By what QEMU is told things."""

    async def execute(self, command: str, **arguments: Any) -> Any: ...
    async def give(self, name: str, fd: int) -> None: ...


class Lines:
    """The lines of one machine. NAMES are those that QEMU has for them, if they are not ours."""

    def __init__(
        self, told: Told, streams: Mapping[str, trio.SocketStream], names: Mapping[str, str] | None = None
    ) -> None:
        self.told, self.names = told, names or {}
        self.streams = dict(streams)
        self._fresh: dict[str, socket.socket] = {}

    def __getitem__(self, line: str) -> trio.SocketStream:
        return self.streams[line]

    def get(self, line: str) -> trio.SocketStream | None:
        return self.streams.get(line)

    async def change(self) -> None:
        """Whoever still waits on one of ours hears that it has ended. Cancelled, or Refused: some have."""
        for line in self.streams:
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    await self.told.give(line, theirs.fileno())
                address = {"type": "fd", "data": {"str": line}}
                backend = {"type": "socket", "data": {"addr": address, "server": False}}
                await self.told.execute("chardev-change", id=self.names.get(line, line), backend=backend)
            except BaseException:
                ours.close()
                raise
            self.streams[line].socket.close()
            if (before := self._fresh.pop(line, None)) is not None:
                before.close()
            self._fresh[line] = ours

    def take_up(self) -> None:
        """Use what was changed. What was said on it meanwhile is nobody's."""
        for line, end in self._fresh.items():
            end.setblocking(False)
            try:
                while end.recv(65536):
                    pass
            except OSError:
                pass  # nothing is left; if it is broken, its user will see
            self.streams[line] = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._fresh.clear()

    def hang_up(self) -> None:
        """No more of them. Whoever still waits on one hears of it."""
        for stream in self.streams.values():
            stream.socket.close()
        for end in self._fresh.values():
            end.close()
        self._fresh.clear()


__all__ = ["Lines", "Told"]
