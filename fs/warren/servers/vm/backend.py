"""What /vm asks of whatever runs machines: the contract of a back end.

    verdict = await backend.probe()              does it work here, and if not, what is missing
    async with backend.started(spec, place) as machine:
        machine.console     bytes both ways: the log, and what people type
        machine.channel     bytes both ways: 9P, the guest is the client of a tree that we serve
        machine.export      bytes both ways: 9P, the guest serves and we are the client
        await machine.wait()                     Ended, once it has ended by itself or was killed

A `Spec` was checked by whoever made it: files in it exist, sizes are in bounds. A `Place` is a folder with
mode 0700 that belongs to this one machine; a back end puts its sockets, overlays and whatever else it needs
there and nowhere else. When the block of `started` ends the machine has ended, whatever state it was in, and
nothing of it is left but what lies in that folder, which the caller removes.

Files of a spec are the caller's: a back end reads them and never writes to one. What a guest writes to a disk
goes into an overlay in the place.

**Limits** are the caller's affair where they can be: it counts wall time and the bytes of the place itself.
What has to hold for the emulator's process is in the place: `prefix`, the words to put before the emulator's
command line (they enter a control group, set resource limits, and execute the rest); a back end whose
emulator is started by somebody else gives each process id to `adopt` as soon as it knows it.

**Back ends** raise Refused: 405 for what they cannot do at all, 409 for what cannot be done now, 502 for what
the emulator said no to, in its words, 504 if it did not answer. Each method says what Cancelled leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import trio


class Works(NamedTuple):
    """Whether a back end can be used here; if not, WHY says what is missing."""

    works: bool
    why: str = ""


class Disk(NamedTuple):
    """One disk. With a file it shows what is in it; without one it is empty, SIZE bytes of zeros."""

    file: Path | None
    size: int = 0  # of an empty one
    read_only: bool = False


@dataclass(frozen=True)
class Spec:
    """A machine as it was asked for."""

    name: str  # letters, digits, - and _: for the emulator's process and for what it calls the machine
    mem: int  # bytes
    cpus: int = 1
    recipe: str = ""  # of the kind of machine (see `warren.boot`); the back end's own choice if empty
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    disks: tuple[Disk, ...] = ()
    export: bool = False  # whether the guest has a channel on which it serves a tree of its own


def _nothing(pid: int) -> None:
    """No limits are to be had for a process that is there already."""


@dataclass(frozen=True)
class Place:
    """Where a machine may leave things, and what its processes have to go through."""

    folder: Path  # absolute, 0700, empty at the start; the path is short enough for a socket in it
    prefix: tuple[str, ...] = ()
    adopt: Callable[[int], None] = _nothing


class Ended(NamedTuple):
    """How a machine ended. STATUS is what the emulator's process exited with, -N for signal N, or None if
    the back end does not learn it. SAID is the last that the emulator itself said, often nothing."""

    status: int | None
    said: str = ""


class Usage(NamedTuple):
    """What a machine has used of the host."""

    cpu: float = 0.0  # seconds of processor time
    rss: int = 0  # bytes resident now


class Running(Protocol):
    """A machine that has been started. Its streams end with it."""

    @property
    def console(self) -> trio.abc.Stream:
        """The first serial line. Whoever uses it must go on reading it, for a guest waits until its output
        is taken."""

    @property
    def channel(self) -> trio.abc.Stream:
        """9P from the guest. Another one after a reset."""

    @property
    def export(self) -> trio.abc.Stream | None:
        """9P to the guest; None unless the spec asks for it and the back end has it. As `channel`."""

    async def wait(self) -> Ended:
        """How it ended, once it has. Any number may wait. Cancelled has no effect."""

    async def stop(self) -> None:
        """Ask the guest to power off, as a button would; it may not listen. Refused (405) if the machine has
        no such button. Cancelled: it was asked, or not."""

    async def kill(self) -> None:
        """End it now; ended already is no error. It has ended when this returns. Cancelled: it will, soon."""

    async def pause(self) -> None:
        """The processors stand still. Cancelled: they do, or not."""

    async def resume(self) -> None:
        """They go on. Cancelled: they do, or not."""

    async def reset(self, begins: Callable[[], None]) -> None:
        """As a reset button: the guest begins again. BEGINS is called once it can say nothing any more and
        before it does so again; `channel` and `export` are new then, and there is nothing in them. Raises
        Refused (409) if it is paused. Cancelled: it was reset, or not."""

    async def snapshot(self, name: str) -> None:
        """Keep memory, processors and disks under NAME, a plain file name. The machine goes on as it was.
        Cancelled: it was kept, or not; nothing half."""

    async def restore(self, name: str) -> None:
        """Be as at that snapshot. Refused (404) if there is none. Cancelled: it was restored, or not."""

    async def qmp(self, command: bytes) -> bytes:
        """One command of the emulator's own protocol (JSON), and its answer. Refused (405) where there is no
        such protocol. Cancelled: it was done, or not."""

    def usage(self) -> Usage:
        """What it has used until now; zeros if that cannot be told."""


class Backend(Protocol):
    """A way to run machines."""

    @property
    def name(self) -> str:
        """As in /vm/backends."""

    async def probe(self) -> Works:
        """Try whether it works here. May take seconds; leaves nothing. The caller keeps the answer."""

    def started(self, spec: Spec, place: Place) -> AbstractAsyncContextManager[Running]:
        """The machine, running while the block does. Entering raises Refused if it cannot be started, with
        what the emulator said. Cancelled at any point leaves no process and no file outside the place."""


__all__ = ["Backend", "Disk", "Ended", "Place", "Running", "Spec", "Usage", "Works"]
