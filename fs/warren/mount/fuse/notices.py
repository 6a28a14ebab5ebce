"""What the kernel is told without having asked: that what it remembers is no longer so.

    notices.stale(node)        its attributes and pages
    notices.gone(node)         its name
    notices.ready(handles)     there is something to read, for whoever polls

The first two go out in a thread: in them the kernel may wait for pages that the mount is yet to bring, or for
a directory that it is being asked about. Node numbers are kept in a set until then, so none is ever dropped;
of names there are `NAMES` at most, since a name that was not told lasts for a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
from warren.mount.fuse import messages as m
from warren.mount.fuse.device import Channel
from warren.mount.fuse.nodes import Node

NAMES: Final = 8192


class Notices:
    """Those of one mount."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._stale: set[int] = set()
        self._gone: set[tuple[int, str]] = set()
        self._news = trio.Event()

    def stale(self, *nodes: Node) -> None:
        """The kernel must not go by what it remembers of these."""
        self._stale.update(node.id for node in nodes)
        self._news.set()

    def gone(self, node: Node) -> None:
        """NODE is no longer found at its name. Not of a directory: what is mounted or worked on below it
        would go with the name."""
        if node.parent is not None and not node.is_dir and len(self._gone) < NAMES:
            self._gone.add((node.parent.id, node.name))
            self._news.set()

    def ready(self, device: Channel, handles: set[int]) -> None:
        """Wake those who poll under HANDLES, each once."""
        for kh in handles:
            try:
                _send(device, m.NOTIFY_POLL, m.packed(m.PollReady(kh)))
            except OSError as e:
                self._tell(f"the kernel does not take a notice: {e}")
        handles.clear()

    async def run(self, device: Channel) -> None:
        """Tell what there is to tell. Cancelled drops what was not told."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            stale, self._stale = self._stale, set()
            gone, self._gone = self._gone, set()
            await trio.to_thread.run_sync(_send_all, device, stale, gone, abandon_on_cancel=True)


def _send(device: Channel, kind: int, body: bytes) -> None:
    device.write([m.REPLY.pack(m.REPLY.size + len(body), kind, 0), body])


def _send_all(device: Channel, stale: set[int], gone: set[tuple[int, str]]) -> None:
    bodies = [(m.NOTIFY_INVAL_INODE, m.packed(m.InvalInode(number, 0, 0))) for number in stale]
    for parent, name in gone:
        size = len(name.encode("utf-8", "surrogateescape"))
        bodies.append((m.NOTIFY_INVAL_ENTRY, m.packed(m.InvalEntry(parent, size, 0, name))))
    for kind, body in bodies:
        try:
            _send(device, kind, body)
        except OSError:
            continue  # it was forgotten meanwhile
