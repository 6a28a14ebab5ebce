"""A queue of work: to put tasks in, and to do them.

    await n.task("builds").enqueue(b"...", effect="build-17")      Enqueued(seq, dup, state, result)

    async with n.task("builds").lease() as tasks:
        async for task in tasks:
            task.result = await build(task.body)

**An enqueue whose reply was lost is safe**: each task has an effect id, made here unless one is given, and
a queue takes one task for an effect. It remembers what was done for its `keep=` time, and so many effects
and no more, so a busy queue wants a short `keep=`.

**Done once.** `result` is recorded for the effect once. If it was done before, by whomever, `task.dup` is
true and `task.result` is the first result. `task.fence` tells whoever is called for the task's sake that we
still hold it: of two fences of one task the newer is the greater.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from warren.mount.sdk.leases import Leased, Leases
from warren.mount.sdk.patience import NEVER, Tries, done_before
from warren.mount.sdk.wire import ask, make, number, parted, said, take
from warren.tree import quote
from warren.tree.report import legible, pairs

if TYPE_CHECKING:
    from warren.mount.sdk.node import Node

_WHY: Final = 500


class Enqueued(NamedTuple):
    """What became of a task: its number, and what had become of it already, if it was there before.

    Who may write `enq.h` and not read it is told nothing; the task is taken.
    """

    seq: int
    dup: bool
    state: str
    result: str


class Queue:
    """One queue. Made by `Node.task`."""

    def __init__(self, node: Node, path: str) -> None:
        self.node, self.path = node, path

    async def make(self) -> None:
        """Make the queue, if it is not there. Cancelled: it was made, or not."""
        await make(self.node, self.path)

    async def enqueue(
        self, body: bytes, *, effect: str | None = None, key: str = "", prio: int = 0, delay: float = 0.0,
        max_attempts: int = 0, deadline: float | None = None,
    ) -> Enqueued:  # fmt: skip
        """Give a task, once. The words are those of `enq.h`; EFFECT is made here unless it is given.

        Cancelled: it was taken, or not; the same again with the same EFFECT is safe.
        """
        named = effect or secrets.token_hex(16)
        words: dict[str, object] = {"effect": named, "key": key, "prio": prio, "max_attempts": max_attempts}
        words["delay"] = delay and f"{delay:g}s"
        head = pairs({word: value for word, value in words.items() if value} | {"len": len(body)})
        written = f"{head}\n\n".encode() + body
        path = f"{self.path}/enq.h"

        async def work(tries: Tries) -> Enqueued:
            told = await ask(self.node, path, written)
            seq, dup = number(told, "seq") if told else 0, told.get("dup") == "1"
            return Enqueued(seq, dup, told.get("state", ""), told.get("result", ""))

        try:
            return await self.node.do(path, work, deadline=deadline)
        except OSError as e:
            e.add_note(f"effect={named}")
            raise

    def lease(self, *, term: float = 30.0) -> Leases[Task]:
        """Tasks as they come, each under a lease of so many seconds, made longer while it is worked on."""

        async def next() -> Task:
            while not (data := await take(self.node, f"{self.path}/lease", f"for={term:g}s")):
                pass
            return Task(self.node, f"{self.path}/ctl", data, term)

        return Leases(next)


class Task(Leased):
    """A task that we hold. `head` is all that was said of it."""

    def __init__(self, node: Node, path: str, data: bytes, term: float) -> None:
        super().__init__(node, path, term)
        self.head, self.body = parted(data)
        self.seq, self.attempt = number(self.head, "seq"), number(self.head, "attempt")
        self.fence = said(self.head, "fence")
        self.effect = self.head.get("effect", "")
        self.result = ""  # set it before the task is done
        self.dup = False

    async def _done(self) -> None:
        told = await self._ask(f"done {self.fence} {_word(self.result, 'effect', 'fence')}", self.until)
        self.dup, self.result = told.get("dup") == "1", told.get("result", self.result)

    async def _back(self, why: str, delay: float | None) -> None:
        line = f"fail {self.fence} {_word(why[:_WHY] or 'failed', 'delay', 'retry', 'fence')}"
        line += "" if delay is None else f" delay={delay:g}s"
        await self._ask(line, self.until)

    async def _extend(self, seconds: float, limit: float) -> None:
        await self._ask(f"hb {self.fence} {seconds:g}s", NEVER, limit)

    async def _ask(self, line: str, good: float, limit: float | None = None) -> dict[str, str]:
        async def work(tries: Tries) -> dict[str, str]:
            try:
                return await ask(self.node, self.path, f"{line}\n".encode())
            except OSError as e:
                if not done_before(e, tries, good):
                    raise
                return {}

        return await self.node.do(self.path, work, deadline=limit)


def _word(text: str, *keys: str) -> str:
    """TEXT as one word of a ctl line that is read as no key of the verb."""
    text = legible(text)
    return quote(f" {text}" if text.partition("=")[0] in keys else text)
