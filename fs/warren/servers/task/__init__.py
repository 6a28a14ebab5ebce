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
from typing import Final

from warren.servers.task.files import QueueDir
from warren.servers.task.moving import remove
from warren.servers.task.queue import Limits, TaskQueue
from warren.servers.task.state import COUNTED
from warren.servers.task.working import lease
from warren.store import Keeper, Store
from warren.tree import Ctl, verb
from warren.tree.ports import Clock
from warren.tree.report import counts

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


class Tasks(Keeper[QueueDir]):
    """The tree. Queues live in STORE under the name UNDER."""

    noun = "queue"
    counting = ("task", "tasks")
    gauges = GAUGES
    counters = COUNTED

    def __init__(
        self, store: Store, clock: Clock, *, limits: Limits | None = None, under: str = "task",
        chance: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.limits = limits or Limits()
        super().__init__(store, clock, under, self.limits.queues, chance)
        self.entries = {"ctl": TasksCtl(self), **counts(self.counts)}

    def _made(self, name: str) -> QueueDir:
        queue = TaskQueue(
            name, self.under, self.store, self.clock, self.limits, self.chance, self.soon, self._used
        )
        queue.lease = lambda reader, task: lease(queue, reader, task)
        return QueueDir(queue)

    async def _end(self, node: QueueDir) -> None:
        await remove(node.queue)

    def _used(self) -> int:
        return sum(node.queue.state.bytes for node in self.kept.values())


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
