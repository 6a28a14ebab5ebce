"""node: a connection to a hive that is kept, and a bound on what is under way on it.

    async with node() as n: ...                       where the environment says; see `place`
    async with node("tls!hub!5640", id=folder, cap=file, expect="role/QueenPrimary/*", deadline=20) as n: ...

**Deadline.** Each call has one, 60 s from its beginning unless it or the node is given another. A call to
which there is no answer within `request` seconds counts as one that failed. Who waits for a message or a
task waits as long as it takes; there the deadline begins with the first failure in a row.

**A node that is away** is dialled again, also the first time, until the deadline. A refusal to have us (a
revoked or foreign certificate, a token that is over) is raised at once.

**Back-pressure.** At most `in_flight` calls are under way; further ones wait their turn, first come first
served. A call that pauses before its next try holds no place, so a full topic does not keep
acknowledgements out. Who waits for a message holds none either: of these the server counts how many it lets
wait.

A Node is used by the tasks of one trio loop. Leaving the block gives up what is under way.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, TypeVar

import trio
from warren.mount.dial import DEADLINE, dial
from warren.mount.file import Buffer
from warren.mount.files import Files
from warren.mount.sdk.answering import Answers
from warren.mount.sdk.leases import Held
from warren.mount.sdk.mailbox import Topic
from warren.mount.sdk.patience import Patience, Tries, persist
from warren.mount.sdk.place import Place, place
from warren.mount.sdk.receiving import Receiver
from warren.mount.sdk.sending import Sender
from warren.mount.sdk.storage import Storage
from warren.mount.sdk.task import Queue
from warren.mount.sdk.wire import Shelf

T = TypeVar("T")
K = TypeVar("K")


class _Idles(Protocol):
    @property
    def idle(self) -> bool: ...


F = TypeVar("F", bound=_Idles)
IN_FLIGHT = 32
KNOWN = 1024  # files that are remembered, of each kind


class Node:
    """A hive within reach. Made by `node`."""

    def __init__(self, files: Files, patience: Patience, in_flight: int, background: trio.Nursery) -> None:
        self.files = files
        self.patience = patience
        self.background = background  # for what keeps leases alive
        self.mute: set[str] = set()  # files that we may write, and whose answers we may not read
        self.shelf = Shelf(background)
        self.held = Held(background)
        self._senders: dict[str, Sender] = {}
        self._answers: dict[str, Answers] = {}
        self._receivers: dict[tuple[str, float], Receiver] = {}
        self._places = trio.Semaphore(in_flight)

    # What there is

    def mailbox(self, topic: str, *, group: str = "") -> Topic:
        """A topic of /mailbox, or the one at that path; with GROUP, to receive as one of that group."""
        return Topic(self, _under("/mailbox", topic), group)

    @property
    def storage(self) -> Storage:
        """/storage."""
        return self.storage_at("/storage")

    def storage_at(self, path: str) -> Storage:
        """The storage at PATH."""
        return Storage(self, path.rstrip("/"))

    def task(self, queue: str) -> Queue:
        """A queue of /task, or the one at that path."""
        return Queue(self, _under("/task", queue))

    # Plain files

    async def read(self, path: str, *, deadline: float | None = None) -> bytes:
        """All of a file. Cancelled has no effect."""
        return await self.do(path, lambda tries: self.files.read(path), deadline=deadline)

    async def write(self, path: str, data: Buffer, *, deadline: float | None = None) -> None:
        """One write, as a shell's `echo` makes it. **ConnectionResetError: its outcome is unknown.**

        It is tried again only after an answer that says that nothing was done. Where that is not enough,
        write to a file that takes an idempotency key. Cancelled: it was not done, or it was.
        """

        async def work(tries: Tries) -> None:
            async with await self.files.open(path, os.O_WRONLY) as file:
                await file.write(data)

        await self.do(path, work, deadline=deadline, repeats=False)

    # How it is done

    def sender(self, path: str) -> Sender:
        """What is under way to the `send.h` at PATH."""
        if (found := self._senders.get(path)) is None:
            found = _known(self._senders, path, Sender(self, path))
        return found

    def answers(self, path: str) -> Answers:
        """What is under way to the `ack` at PATH."""
        if (found := self._answers.get(path)) is None:
            found = _known(self._answers, path, Answers(self, path))
        return found

    def receiver(self, path: str, lease: float) -> Receiver:
        """Who waits at the `recv` of the topic or group at PATH, for leases of so many seconds."""
        if (found := self._receivers.get((path, lease))) is None:
            found = _known(self._receivers, (path, lease), Receiver(self, path, lease))
        return found

    async def do(
        self,
        path: str,
        work: Callable[[Tries], Awaitable[T]],
        *,
        deadline: float | None = None,
        repeats: bool = True,
        waits: bool = False,
    ) -> T:
        """WORK on the node until it succeeds, as `persist` has it, in its turn."""

        async def one(tries: Tries) -> T:
            if waits:
                return await work(tries)
            try:
                self._places.acquire_nowait()  # so that what is asked is on its way before others have a turn
            except trio.WouldBlock:
                await self._places.acquire()
            try:
                return await work(tries)
            finally:
                self._places.release()

        return await persist(
            one, self.patience, what=path, peer=self.files.peer, deadline=deadline,
            repeats=repeats, waits=waits,
        )  # fmt: skip


class node(AbstractAsyncContextManager[Node]):
    """A session with a node: the one at ADDRESS, or that of the environment.

    Raises ValueError for what is no address or no identity, OSError when the node is not to be had until the
    deadline, or will not have us.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        id: str | os.PathLike[str] | None = None,
        cap: str | os.PathLike[str] | None = None,
        expect: str = "role/*/*",
        aname: str = "",
        deadline: float = 60.0,
        request: float = DEADLINE,
        in_flight: int = IN_FLIGHT,
        patience: Patience | None = None,
    ) -> None:
        self.place: Place = place(address, id, cap)
        self._patience = patience or Patience(deadline)
        self._expect, self._aname = expect, aname
        self._request, self._in_flight = request, in_flight

    async def __aenter__(self) -> Node:
        """Cancelled leaves nothing open."""
        files = await self._reached()
        try:
            self._opening = trio.open_nursery()
            self._background = await self._opening.__aenter__()
        except BaseException:
            await self._session.__aexit__(None, None, None)
            raise
        return Node(files, self._patience, self._in_flight, self._background)

    async def _reached(self) -> Files:
        identity = self.place.identity()
        tries = Tries()
        until = trio.current_time() + self._patience.deadline
        while True:
            left = min(self._request, until - trio.current_time())
            session = dial(
                self.place.address, self._aname, deadline=left, identity=identity, expect=self._expect
            )
            try:
                files = await session.__aenter__()
            except OSError as e:
                pause = tries.again(e, self._patience, until, self.place.address)
            else:
                self._session = session
                files.deadline = self._request
                return files
            await trio.sleep(pause)

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What the block raised is not shown to the nursery, which would wrap it in a group.
        try:
            self._background.cancel_scope.cancel()
            await self._opening.__aexit__(None, None, None)
        finally:
            await self._session.__aexit__(None, None, None)


def _known(those: dict[K, F], key: K, new: F) -> F:
    """Remember one more, and forget those with nothing under way where there are many."""
    if len(those) >= KNOWN:
        for idle in [name for name, each in those.items() if each.idle]:
            del those[idle]
    those[key] = new
    return new


def _under(directory: str, name: str) -> str:
    """A name in the directory where such things are, or a whole path."""
    if not name.strip("/") or name != name.rstrip("/"):
        raise ValueError(f"{name!r} names nothing")
    return name if name.startswith("/") else f"{directory}/{name}"
