"""The words the checks of a store are written in.

Assertions are spelled out, because pytest explains a bare `assert` only in tests.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, ParamSpec, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked
from warren.store.interface import Change, Record, Store, Watch

StoreMaker = Callable[[], AbstractAsyncContextManager[Store]]
P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)


@dataclass
class Place:
    """How to open the store, and the names one check may use in it."""

    make: StoreMaker
    root: str
    durable: bool

    def __call__(self, name: str) -> str:
        return f"{self.root}/{name}"


def told(error: BaseException, patience: float) -> str:
    """An error as one sentence, out of the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio.TooSlowError):
        return f"still waiting after {patience} s"
    return str(error) if isinstance(error, AssertionError) else f"unexpected {error!r}"


def holds(truth: bool, says: str) -> None:
    if not truth:
        raise AssertionError(says)


def same(found: T, wanted: T, what: str) -> None:
    holds(found == wanted, f"{what} is {found!r:.400}, not {wanted!r:.400}")


async def refused(
    kind: type[E], call: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs
) -> E:
    """The error of a call that must be refused."""
    try:
        answer = await call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{spelled(call, *args, **kwargs)} answered {answer!r} instead of {kind.__name__}")


def refused_nowait(
    kind: type[Exception], call: Callable[P, object], *args: P.args, **kwargs: P.kwargs
) -> None:
    try:
        answer = call(*args, **kwargs)
    except kind:
        return
    raise AssertionError(f"{spelled(call, *args, **kwargs)} answered {answer!r} instead of {kind.__name__}")


def spelled(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    """A call as one would write it, with long values cut."""
    if isinstance(call, partial):
        return spelled(call.func, *call.args, *args, **call.keywords, **kwargs)
    words = [f"{value!r:.60}" for value in args] + [f"{name}={value!r:.60}" for name, value in kwargs.items()]
    return f"{getattr(call, '__name__', call)}({', '.join(words)})"


@dataclass
class Call(Generic[T]):
    """A call that runs in a task of its own: its answer or its error, and the means to cancel it."""

    run: Callable[[], Awaitable[T]]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    answers: list[T] = field(default_factory=list)
    error: Exception | None = None

    async def go(self) -> None:
        with self.scope:
            try:
                self.answers.append(await self.run())
            except Exception as error:
                self.error = error
        self.done.set()

    async def answer(self) -> T:
        await self.done.wait()
        if self.error:
            raise self.error
        holds(len(self.answers) == 1, f"{spelled(self.run)} was cancelled")
        return self.answers[0]


async def parked(nursery: trio.Nursery, run: Callable[[], Awaitable[T]]) -> Call[T]:
    """A call that must wait, once it does."""
    call = Call(run)
    nursery.start_soon(call.go)
    await wait_all_tasks_blocked()
    holds(not call.done.is_set(), f"{spelled(run)} did not wait: {call.answers or call.error!r}")
    return call


async def log(store: Store, topic: str) -> list[Record]:
    """All that is kept of a topic, read as a follower reads it."""
    records: list[Record] = []
    last, seq = await store.last(topic), 0
    while seq < last:
        records.append(await store.first_after(topic, seq))
        seq = records[-1].seq
    return records


async def take(watch: Watch, count: int) -> list[Change]:
    return [await watch.next() for _ in range(count)]
