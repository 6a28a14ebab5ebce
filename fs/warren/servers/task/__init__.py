"""/task: queues of work, done in order, with leases and fences.

    /ctl              Ctl     verbs: create, remove
    /stats /metrics   Text    every queue's counts
    /<queue>/         mkdir makes one, rmdir removes one that is empty or drained
        enq           Sink    one write is one task, never looked into; read back: seq= dup=
        enq.h         Blob    effect= key= prio= delay= max_attempts= len=, an empty line, the body
        lease         read    waits; one task an open: seq= attempt= lease= fence= until= … len=,
                              an empty line, the body. Write options first: for= wait=
        ctl           Ctl     verbs: hb, done, fail, requeue, resume, set
        tasks         Text    a line for each task that is not done, dead ones too
        pressure      Stream  a crossing of a water mark: seq= ts= state=high|low depth= high= low=
        log           Stream  everything that was decided, from which the queue can be had again; `from SEQ`
        drain         Stream  all that is left, a record a read, and then the end; nothing is taken any more
        restore       Blob    what drain gave, or a log; into an empty queue
        settings      Text    what set has set
        stats         Text    state= pressure= generation= depth= inflight= dead= …
        events        Stream  expired, dead, requeued, drained, resumed, restored, set: one record a read

**Order.** The highest `prio=` first, then strictly as they came. A task that is tried again is in its old
place; while it waits to be tried again, others go past it. Tasks with the same `key=` are done one after the
other.

**Leases and fences.** A task is handed out under a lease, and again when that ends without `done`. The fence
names the lease: of two fences of one task, compared number by number, the newer is the greater. A stale one
is refused (409), and says what came after it. An open that is closed before its last byte was read gives its
task back, which counts as no attempt. After `attempts` failures a task is dead; `requeue` puts it back.

**At least once, with effects exactly once.** A worker may be late and do a task twice. What is recorded under
an effect id is recorded once: the second `done` is told the first result, and so is whoever enqueues for it
again. Effects are remembered for `keep`. A queue that remembers as many as it may refuses further ones (429).

**Moving.** What `drain` gave restores elsewhere to the same order, attempts and effects, under a new
generation, so that no fence from before counts. Workers wait meanwhile. Reading `drain` again gives the same,
until the queue is removed or resumed.

Everything is in the store, leases and attempts too, so another process can go on where this one stopped.
`keep` sees to what comes by time alone; run it beside. Without it that happens at the next use.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Final

import trio
from warren.servers.task.files import QueueDir, directory, named
from warren.servers.task.moving import remove
from warren.servers.task.queue import Limits, TaskQueue, refusal
from warren.servers.task.state import COUNTED
from warren.servers.task.working import lease
from warren.store import Conflict, NotFound, Store, StoreError
from warren.tree import Caller, Ctl, Dir, Maybe, Node, Refused, verb
from warren.tree.ports import Clock
from warren.tree.report import Count, counts

TAKEN: Final = frozenset(("ctl", "stats", "metrics", "dev"))
_AGAIN: Final = 1.0  # seconds until a queue whose store refused is looked at again
GAUGES: Final = {
    "depth": "tasks that wait",
    "inflight": "tasks under a lease",
    "delayed": "tasks that wait for a time",
    "dead": "dead tasks",
    "bytes": "what the tasks are charged",
    "effects": "effects that are remembered",
    "readers": "workers that wait",
    "oldest_age": "seconds since the oldest waiting task came",
    "log": "records since the newest snapshot",
}


class Tasks(Dir):
    """The tree. Queues live in STORE under the name UNDER."""

    mode = 0o755

    def __init__(
        self, store: Store, clock: Clock, *, limits: Limits | None = None, under: str = "task",
        chance: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.store, self.clock, self.under = store, clock, under
        self.limits = limits or Limits()
        self.chance = chance or random.SystemRandom()
        self.queues: dict[str, QueueDir] = {}
        self._until = -inf  # when `keep` looks again; never, while it does not run
        self._nap: trio.CancelScope | None = None
        super().__init__({"ctl": TasksCtl(self), **counts(self._counted)})

    # Queues

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.entries.get(name) or self._known(name) or self._find(name)

    def _known(self, name: str) -> QueueDir | None:
        known = self.queues.get(name)
        return known if known is not None and not known.queue.gone else None

    async def _names(self) -> Sequence[str]:
        try:
            keys = await self.store.keys(self.under, limit=self.limits.queues)
        except StoreError as e:
            raise refusal(e) from e
        return [key.removeprefix(f"{self.under}/") for key in keys]

    async def list(self) -> Iterable[tuple[str, Node]]:
        found: dict[str, Node] = dict(self.entries)
        for name in await self._names():
            if (queue := await self._find(name)) is not None:
                found[name] = queue
        return found.items()

    async def _find(self, name: str) -> QueueDir | None:
        """The queue of that name, its log read. Cancelled: no effect."""
        if (known := self._known(name)) is not None:
            return known
        self.queues = {other: node for other, node in self.queues.items() if not node.queue.gone}
        try:
            named(name)
            await self.store.get(f"{self.under}/{name}")
        except (Refused, NotFound):
            return None
        except StoreError as e:
            raise refusal(e) from e
        if name not in self.queues and len(self.queues) >= self.limits.queues:
            raise Refused(507, f"{self.limits.queues} queues are in use, the limit")
        made = TaskQueue(
            name, self.under, self.store, self.clock, self.limits, self.chance, self._soon, self._used
        )
        made.lease = lambda reader, task: lease(made, reader, task)
        node = self.queues.setdefault(name, QueueDir(made))
        try:
            await node.queue.fresh()
        except Refused as e:
            if e.code != 404:
                raise
            self.queues.pop(name, None)
            return None
        return node

    async def make(self, name: str) -> QueueDir:
        """Make a queue. Cancelled: it was made, or not."""
        if named(name) in TAKEN:
            raise Refused(400, f"{name} is a file of this server; choose another name")
        if len(await self._names()) >= self.limits.queues:
            raise Refused(507, f"{self.limits.queues} queues exist, the limit; remove one")
        key = f"{self.under}/{name}"
        try:
            start = await self.store.last(key)
            await self.store.put(key, b"%d" % start, expect=0)
        except Conflict:
            raise Refused(409, f"there is a queue {name}") from None
        except StoreError as e:
            raise refusal(e) from e
        made = await self._find(name)
        if made is None:
            raise Refused(409, f"the queue {name} was removed at once by another process")
        return made

    async def remove(self, name: str) -> None:
        """Remove a queue that is empty or drained. Cancelled: it is there, or not."""
        found = await self._find(name)
        if found is None:
            raise Refused(404, "file does not exist")
        await remove(found.queue)
        self.queues.pop(name, None)

    async def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Node:
        return await self.make(name)

    async def unlink(self, name: str, wanted: bool | None, expect: Node | None = None) -> None:
        if name in self.entries:
            raise Refused(403, f"{name} belongs to this server")
        directory(wanted)
        await self.remove(name)

    def _used(self) -> int:
        return sum(node.queue.state.bytes for node in self.queues.values())

    # Time

    async def keep(self) -> None:
        """Let happen what time brings: leases that end, delays, workers that waited long enough.

        Runs until cancelled, which leaves all that for the next use of each queue.
        """
        try:
            while True:
                soonest = self._until = inf
                for node in list(self.queues.values()):
                    soonest = min(soonest, await self._tick(node.queue))
                # What became due meanwhile, at a queue that was looked at before, said so to _soon.
                self._until = soonest = min(soonest, self._until)
                with trio.CancelScope() as self._nap:
                    if soonest == inf:
                        await trio.sleep_forever()
                    await self.clock.sleep_until(soonest)
                self._nap = None
        finally:
            self._until, self._nap = -inf, None

    async def _tick(self, queue: TaskQueue) -> float:
        if queue.gone:
            return inf
        due, now = queue.due(), self.clock.monotonic()
        if (due is not None and due <= now) or not queue.journal.idle or queue.stale:
            try:
                await queue.tick()
            except Refused:
                return self.clock.monotonic() + _AGAIN
            due = queue.due()
        return inf if due is None else due

    def _soon(self, due: float) -> None:
        """Look again at that time."""
        if due < self._until:
            self._until = due
            if self._nap is not None:
                self._nap.cancel()

    # Counts

    def _counted(self) -> Iterable[Count]:
        measured: dict[str, Mapping[str, float]] = {
            name: node.queue.measures() for name, node in sorted(self.queues.items()) if not node.queue.gone
        }
        for name in (*GAUGES, *COUNTED):
            values: dict[tuple[str, ...], float] = {(queue,): m[name] for queue, m in measured.items()}
            if name in GAUGES:
                yield Count(f"task_{name}", GAUGES[name], values, ("queue",), "gauge")
            else:
                yield Count(f"task_{name}_total", f"tasks {name}", values, ("queue",))


class TasksCtl(Ctl):
    """Queues, by verb."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks

    @verb
    async def create_(self, queue: str) -> None:
        """Make a QUEUE, as mkdir does."""
        await self.tasks.make(queue)

    @verb
    async def remove(self, queue: str) -> None:
        """Remove a QUEUE that is empty or drained, as rmdir does."""
        await self.tasks.remove(queue)


__all__ = ["Limits", "Tasks"]
