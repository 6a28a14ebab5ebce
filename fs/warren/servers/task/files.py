"""The files of a queue: who may do what is decided by their paths, so each trade has its own.

    write   enq enq.h        to give work
    read    lease            to take it, with ctl#hb,done,fail to answer
    ctl     ctl              to answer and to operate
    read    drain            to take all of it away
    write   restore          to bring it back
"""

from __future__ import annotations

from collections.abc import Awaitable
from errno import EINTR

from warren.servers.task import moving, working
from warren.servers.task.queue import Reader, Taken, TaskQueue
from warren.servers.task.words import Draft, Options, declared, draft, options
from warren.store import Kept
from warren.tree import (
    Blob,
    Caller,
    Changes,
    Ctl,
    Duration,
    Handle,
    Maybe,
    Node,
    Refused,
    Sink,
    Stream,
    Text,
    verb,
)
from warren.tree.headers import HEAD, word
from warren.tree.node import STREAM
from warren.tree.once import Once
from warren.tree.report import attributes, pairs
from warren.tree.words import BlobHandle, SinkHandle


class QueueDir(Kept):
    """A queue."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = self.ledger = queue
        super().__init__(
            {
                "enq": Enq(queue),
                "enq.h": EnqH(queue),
                "lease": Lease(queue),
                "ctl": QueueCtl(queue),
                "tasks": Text(lambda: tasks(queue)),
                "pressure": Stream(queue.pressure),
                "log": Stream(lambda: moving.Log(queue)),
                "drain": Stream(lambda: moving.Drained(queue)),
                "restore": Restore(queue),
                "settings": Text(lambda: settings(queue)),
                "stats": Text(lambda: stats(queue)),
                "events": Stream(queue.events),
            }
        )


async def tasks(queue: TaskQueue) -> str:
    """A line for each task that is not done."""
    state = await queue.fresh()
    lines = []
    for task in state.tasks.values():
        said: dict[str, object] = {
            "seq": task.number, "state": task.state, "attempt": task.attempt, "tries": task.tries,
        }  # fmt: skip
        if task.state in ("leased", "delayed"):
            said["until"] = task.when
        known = {
            "prio": task.prio, "key": task.key, "effect": task.effect, "worker": task.worker, "why": task.why,
        }  # fmt: skip
        said |= {name: value for name, value in known.items() if value}
        lines.append(f"{pairs(said | {'len': len(task.body)})}\n")
    return "".join(lines)


async def settings(queue: TaskQueue) -> str:
    """As `set` takes them."""
    state = await queue.fresh()
    s = state.settings
    return attributes({name: getattr(s, name) for name in type(s).__struct_fields__})


async def stats(queue: TaskQueue) -> str:
    """How it stands, and what happened ever since the queue was made."""
    state = await queue.fresh()
    said: dict[str, object] = {
        "state": "drained" if state.drained else "open",
        "pressure": "high" if state.pressed else "low",
        "generation": state.generation,
        "next": state.next,
    }
    return attributes(said | queue.measures())


class Enq(Sink):
    """`enq`: one write is one task."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        super().__init__(lambda data: working.enqueue(queue, Draft(data), ""))

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return SinkHandle(Sink(lambda data: working.enqueue(self.queue, Draft(data), caller.subject)))


class EnqH(Blob):
    """`enq.h`: headers, an empty line, the body."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        most = working.longest(queue)
        super().__init__(lambda body, whole: None, lambda data: declared(data, most), most + HEAD)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        def commit(body: bytes, whole: bool) -> Maybe[str]:
            return working.enqueue(self.queue, draft(body), caller.subject)

        return BlobHandle(Blob(commit, self.measure, self.limit))


class Restore(Blob):
    """`restore`: what drain gave."""

    def __init__(self, queue: TaskQueue) -> None:
        super().__init__(lambda body, whole: moving.restore(queue, body), moving.measure, moving.RESTORE)


class Lease(Node):
    """`lease`: a task for each open."""

    mode = 0o600
    swallows_truncate = True
    word = STREAM

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return LeaseHandle(self.queue, caller)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class LeaseHandle(Once):
    """One task."""

    def __init__(self, queue: TaskQueue, caller: Caller) -> None:
        super().__init__()
        self.queue, self.caller = queue, caller
        self.options = Options()
        self.taken: Taken | None = None
        self.gone = False

    def _told(self, data: bytes) -> None:
        self.options = options(data)

    def _again(self) -> bool:
        """Who read all of it goes on by options."""
        if not self.read_whole:
            return False
        self.taken = None
        return True

    async def _wanted(self) -> bytes:
        """Wait for one. Cancelled: nothing was taken. What came too late for a closed file goes back."""
        wanted = Reader(self.caller.subject, self.options.term, self.options.wait)
        taken = await working.take(self.queue, wanted)
        if taken is None:
            return b""
        if self.gone:
            if (batch := working.release(self.queue, taken)) is not None:
                await self.queue.settle(batch)
            raise Refused(408, "the file was closed", errno=EINTR)
        self.taken = taken
        return f"{pairs(taken.head)}\n\n".encode() + taken.body

    def _finish(self) -> Awaitable[None] | None:
        """Give back what was not read to its end."""
        self.gone = True
        taken, self.taken = self.taken, None
        if taken is None or self.data is None or self.read_whole:
            return None
        batch = working.release(self.queue, taken)
        if batch is None:
            return None
        self.queue.hurry()
        return self.queue.settle(batch)

    def close(self) -> Maybe[None]:
        return self._finish()

    def abandon(self) -> None:
        if (settling := self._finish()) is not None:
            settling.close()  # type: ignore[attr-defined]


class QueueCtl(Ctl):
    """What workers answer, and how a queue is operated."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue

    @verb
    async def hb(self, fence: str, length: Duration | None = None, *, caller: Caller) -> str:
        """Let the lease of that FENCE last that long from now, or as long as a new one."""
        return await working.hb(self.queue, fence, caller.subject, length)

    @verb
    async def done(self, fence: str, *result: str, effect: str = "", caller: Caller) -> str:
        """The task is done; for the same effect a second time, the first result is the answer."""
        if effect:
            word("effect", effect)
        return await working.done(self.queue, fence, caller.subject, effect, " ".join(result))

    @verb
    async def fail(
        self, fence: str, *reason: str, delay: Duration | None = None, retry: bool = True, caller: Caller
    ) -> str:
        """The task could not be done: again later, or dead after its attempts, or at once with retry=no."""
        if delay is not None and not 0 <= delay <= 86400:
            raise Refused(400, "delay is from 0 to a day")
        return await working.fail(self.queue, fence, caller.subject, " ".join(reason), delay, retry)

    @verb
    async def requeue(self, seq: str) -> str:
        """Put the dead task SEQ back in its place, or `all` of them."""
        return await working.requeue(self.queue, seq)

    @verb
    async def resume(self) -> str:
        """Go on with a drained queue; do not restore elsewhere what was drained."""
        return await moving.resume(self.queue)

    @verb
    async def set(
        self, *, lease: Duration | None = None, attempts: int | None = None, backoff: Duration | None = None,
        high: int | None = None, low: int | None = None, count: int | None = None, bytes: int | None = None,
        keep: Duration | None = None,
    ) -> None:  # fmt: skip
        """Change settings; the file settings shows them all."""
        asked: dict[str, float | None] = {
            "lease": lease, "attempts": attempts, "backoff": backoff, "high": high, "low": low,
            "count": count, "bytes": bytes, "keep": keep,
        }  # fmt: skip
        wanted = {
            name: float(value) if isinstance(value, Duration) else value
            for name, value in asked.items() if value is not None
        }  # fmt: skip
        if not wanted:
            raise Refused(400, "say what to set, such as lease=1m; the file settings shows how it stands")
        await working.change(self.queue, wanted)
