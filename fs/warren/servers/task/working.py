"""What is done to tasks: enqueue, lease, hb, done, fail, requeue; and who may.

A **fence** is `<generation>.<seq>.<attempt>.<secret>`. The generation is the queue's life: it rises when the
queue is made, restored or resumed. The attempt rises with each lease of the task. So of two fences of one
task the newer is the greater, which whoever is called by a worker can check by himself. The secret makes it
unguessable, and it works for the subject that leased alone. The log has only its hash.

**Exactly once.** A result is recorded for an effect id once. Whoever says `done` for it again is told the
first result, also when it was not he who did it, and a task that is enqueued for it is done already.

Each function decides on the queue as it is now and answers when that is durable. Cancelled: it was not done,
or it was.
"""

from __future__ import annotations

import hmac
import re
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec
import trio
from warren.servers.task.places import DEAD, LEASED, Task
from warren.servers.task.queue import Reader, Taken, TaskQueue
from warren.servers.task.records import ALL, Back, Done, Enq, Hb, Lease, Requeue, Set
from warren.servers.task.settings import changed
from warren.servers.task.state import DRAINED, effect_size
from warren.servers.task.words import Draft, term
from warren.store import Batch
from warren.tree import Refused
from warren.tree.report import legible, pairs

BACKOFF_MOST: Final = 3600.0
RESULT: Final = 2048
ROOM: Final = 1 << 14  # of a record, for what stands beside the body
_FENCE: Final = re.compile(r"(\d{1,15})\.(\d{1,15})\.(\d{1,9})\.([0-9a-f]{24})", re.ASCII)


class Fence(NamedTuple):
    generation: int
    task: int
    attempt: int
    secret: str


def fence_of(word: str) -> Fence:
    found = _FENCE.fullmatch(word)
    if found is None:
        raise Refused(400, f"{word[:60]!r} is no fence; it is what lease gave behind fence=")
    return Fence(int(found[1]), int(found[2]), int(found[3]), found[4])


def marked(secret: str) -> str:
    return blake2b(secret.encode(), digest_size=16).hexdigest()


def longest(queue: TaskQueue) -> int:
    """The longest body that a task can have."""
    return queue.store.limits.record - ROOM


# Coming


async def enqueue(queue: TaskQueue, draft: Draft, by: str) -> str:
    """Take a task; answers its number."""
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    if state.drained:
        raise drained()
    if len(draft.body) > longest(queue):
        raise Refused(413, f"a task is at most {longest(queue)} bytes")
    if draft.effect and (before := _before(queue, draft)):
        await queue.barrier()  # it was decided, and may not be durable yet
        return before
    size = len(draft.body) + 256
    if size > state.settings.bytes:
        raise Refused(413, f"the queue takes {state.settings.bytes} bytes in all")
    if why := queue.full(size):
        raise Refused(429, f"the queue is full: {why}; wait for pressure to say low", retry_after=1)
    t, number = state.t, state.next
    after = t + draft.delay if draft.delay else 0.0
    record = Enq(
        t, number, draft.prio, draft.key, draft.effect, draft.most, after, legible(by), draft.body
    )  # fmt: skip
    await queue.settle(queue.do(record))
    return f"seq={number} dup=0\n"


def _before(queue: TaskQueue, draft: Draft) -> str:
    """What became of this effect, if it is known."""
    state = queue.state
    if (known := state.effects.get(draft.effect)) is not None:
        return pairs({"seq": known.task, "dup": 1, "state": "done", "result": known.result}) + "\n"
    if (number := state.claims.get(draft.effect)) is None:
        return ""
    task = state.tasks[number]
    if not hmac.compare_digest(task.body, draft.body):
        raise Refused(409, f"effect={draft.effect} is that of task {number}, which has another body")
    return f"seq={number} dup=1 state={task.state}\n"


def drained() -> Refused:
    says = "the queue was drained; restore it elsewhere, or resume it by its ctl"
    return Refused(409, says, reason="drained")


# Going out


async def take(queue: TaskQueue, reader: Reader) -> Taken | None:
    """A task for a reader, leased and durable; None when it waited as long as it wanted.

    Cancelled: nothing was taken.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    task = None if queue.readers or state.drained else state.first()
    if task is not None:
        lease(queue, reader, task)
    elif reader.wait == 0:
        return None
    else:
        await queue.wait(reader)
    if reader.error is not None:
        raise reader.error
    if reader.taken is not None:
        await queue.settle(reader.taken.batch)
    return reader.taken


def lease(queue: TaskQueue, reader: Reader, task: Task) -> None:
    """Note that the reader has the task."""
    state = queue.state
    secret = f"{queue.chance.getrandbits(96):024x}"
    attempt = task.attempt + 1
    until = state.t + (state.settings.lease if reader.term is None else reader.term)
    head: dict[str, object] = {
        "seq": task.number,
        "attempt": attempt,
        "lease": secret,
        "fence": f"{queue.generation}.{task.number}.{attempt}.{secret}",
        "until": until,
    }
    said = {"prio": task.prio, "key": task.key, "effect": task.effect, "last": task.why}
    head |= {name: value for name, value in said.items() if value}
    head |= {"from": task.by, "ts": task.sent, "len": len(task.body)}
    number, body = task.number, task.body
    batch = queue.do(Lease(state.t, number, attempt, marked(secret), legible(reader.subject), until))
    reader.taken = Taken(number, attempt, head, body, batch)


def release(queue: TaskQueue, taken: Taken) -> Batch | None:
    """Give back what nobody could read. It does not count against the attempts."""
    if queue.stale or queue.gone:
        return None
    queue.advance()
    task = queue.state.tasks.get(taken.number)
    if task is None or task.state != LEASED or task.attempt != taken.attempt:
        return None
    t = queue.state.t
    return queue.do(Back(t, task.number, t, False, False, "closed before it was read"))


# Coming back


def _held(queue: TaskQueue, fence: Fence, subject: str) -> Task | None:
    """The task, if this fence is the one that counts."""
    state = queue.state
    task = state.tasks.get(fence.task)
    if task is None or task.state != LEASED or (fence.generation, fence.attempt) != (
        queue.generation, task.attempt,
    ):  # fmt: skip
        return None
    ours = hmac.compare_digest(task.mark, marked(fence.secret)) and task.worker == legible(subject)
    return task if ours else None


def _superseded(queue: TaskQueue, fence: Fence) -> Refused:
    """What came after a fence that does not count any more. Whoever guesses learns no secret."""
    state = queue.state
    task, finish = state.tasks.get(fence.task), state.finished.get(fence.task)
    if state.drained:
        why = DRAINED
    elif fence.generation != queue.generation:
        why = f"the queue is in generation {queue.generation}, the fence is of {fence.generation}"
    elif finish is not None:
        why = f"task {fence.task} was done in attempt {finish.attempt}, at {finish.at:.3f}"
    elif task is None:
        why = f"task {fence.task} is not known" + (" any more" if fence.task < state.next else "")
    elif task.state == DEAD:
        why = f"task {fence.task} is dead since attempt {task.attempt}: {task.why}"
    elif task.state != LEASED:
        why = f"task {fence.task} waits for attempt {task.attempt + 1}: {task.why or 'it was requeued'}"
    elif task.attempt != fence.attempt:
        why = f"task {fence.task} is leased in attempt {task.attempt}, until {task.when:.3f}"
    else:
        why = f"attempt {task.attempt} of task {fence.task} has another fence, or is another subject's"
    return Refused(409, f"the fence is stale: {why}", reason="stale_fence")


async def _fenced(queue: TaskQueue, word: str, subject: str) -> tuple[Fence, Task]:
    fence = fence_of(word)
    await trio.lowlevel.checkpoint_if_cancelled()
    await queue.fresh()
    task = _held(queue, fence, subject)
    if task is None:
        raise _superseded(queue, fence)
    return fence, task


async def hb(queue: TaskQueue, word: str, subject: str, seconds: float | None) -> str:
    """Extend a lease."""
    _, task = await _fenced(queue, word, subject)
    state = queue.state
    until = state.t + (state.settings.lease if seconds is None else term("for", seconds))
    await queue.settle(queue.do(Hb(state.t, task.number, until)))
    return pairs({"until": until})


async def done(queue: TaskQueue, word: str, subject: str, effect: str, result: str) -> str:
    """Record a result once; answers the first one there is."""
    fence = fence_of(word)
    result = legible(result)
    if len(result) > RESULT:
        raise Refused(413, f"a result is at most {RESULT} characters; store it and say where")
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    task = _held(queue, fence, subject)
    if task is None:
        return await _done_before(queue, fence, subject, effect)
    if effect and task.effect and effect != task.effect:
        raise Refused(400, f"the effect of task {task.number} is {task.effect}, not {effect}")
    name = effect or task.effect
    known, number = state.effects.get(name) if name else None, task.number
    if known is not None:
        await queue.settle(queue.do(Done(state.t, number, name, known.result)))
        return pairs({"seq": known.task, "dup": 1, "result": known.result})
    if name and state.claims.get(name, number) != number:
        raise Refused(409, f"effect={name} is that of task {state.claims[name]}, which is not done yet")
    if name:
        _admit(queue, name, result)
    await queue.settle(queue.do(Done(state.t, number, name, result)))
    return pairs({"seq": number, "dup": 0, "result": result})


async def _done_before(queue: TaskQueue, fence: Fence, subject: str, effect: str) -> str:
    """The answer of the first time, for him who did it and for him who says the effect of that task."""
    state = queue.state
    finish = state.finished.get(fence.task)
    if fence.generation == state.generation and not state.drained:
        known = state.effects.get(effect) if effect else None
        mine = (
            finish is not None
            and hmac.compare_digest(finish.mark, marked(fence.secret))
            and (finish.attempt, finish.by) == (fence.attempt, legible(subject))
        )
        if mine and finish is not None and effect in ("", finish.effect):
            first = state.effects.get(finish.effect) if finish.effect else None
            await queue.barrier()
            return pairs({"seq": first.task if first else fence.task, "dup": 1, "result": finish.result})
        if known is not None and known.task == fence.task:
            await queue.barrier()
            return pairs({"seq": known.task, "dup": 1, "result": known.result})
    raise _superseded(queue, fence)


def _admit(queue: TaskQueue, name: str, result: str) -> None:
    state, limits = queue.state, queue.limits
    size = state.effect_bytes + effect_size(name, result)
    if len(state.effects) >= limits.effects or size > limits.effect_bytes:
        says = f"{len(state.effects)} effects are remembered, the limit; set keep= to a shorter time"
        raise Refused(429, says, retry_after=60)


async def fail(
    queue: TaskQueue, word: str, subject: str, reason: str, delay: float | None, retry: bool
) -> str:
    """Let a task be tried again, later each time, until it was tried as often as it may be."""
    _, task = await _fenced(queue, word, subject)
    state = queue.state
    wait = _backoff(queue, task) if delay is None else delay
    number = task.number
    why = legible(reason)[:RESULT] or "failed"
    await queue.settle(queue.do(Back(state.t, number, state.t + wait, True, not retry, why)))
    return pairs({"seq": number, "state": _now(queue, number)})


def _now(queue: TaskQueue, number: int) -> str:
    task = queue.state.tasks.get(number)
    return task.state if task is not None else "done"


def _backoff(queue: TaskQueue, task: Task) -> float:
    """Twice as long with every attempt, and half of it by chance, so that not all come at once."""
    most = min(queue.state.settings.backoff * 2.0 ** min(task.tries, 30), BACKOFF_MOST)
    return queue.chance.uniform(most / 2, most)


async def requeue(queue: TaskQueue, word: str) -> str:
    """Put a dead task back in its place with no attempts counted, or `all` of them."""
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    if state.drained:
        raise drained()
    if word == "all":
        numbers = state.number_of(DEAD)
        if numbers:
            await queue.settle(queue.do(Requeue(state.t, ALL)))
        return f"tasks={numbers}"
    if not (word.isascii() and word.isdigit() and len(word) < 16):
        raise Refused(400, f"{word[:40]!r} is no task; say its seq, or all")
    task = state.tasks.get(int(word))
    if task is None or task.state != DEAD:
        now = task.state if task is not None else "not here"
        raise Refused(404 if task is None else 409, f"task {word} is {now}, not dead")
    await queue.settle(queue.do(Requeue(state.t, task.number)))
    return "tasks=1"


async def change(queue: TaskQueue, wanted: dict[str, float]) -> None:
    """Put other settings in force."""
    await trio.lowlevel.checkpoint_if_cancelled()
    state = await queue.fresh()
    settings = changed(state.settings, wanted)
    await queue.settle(queue.do(Set(t=state.t, **msgspec.structs.asdict(settings))))

