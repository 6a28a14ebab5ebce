"""asyncio inside trio: what is done in a loop, given up in it, and left when it ends."""

import asyncio
from contextvars import ContextVar

import pytest
import trio
from trio.testing import MockClock
from warren.tree.loop import Loop, LoopEnded, open_loop


async def sum_of(one: int, other: int, wait: float = 3) -> int:
    await asyncio.sleep(wait)
    return one + other


async def failing() -> None:
    raise KeyError("no")


async def test_work_is_done_for_whoever_asks(autojump_clock: MockClock) -> None:
    async with open_loop() as loop, trio.open_nursery() as nursery:
        found: list[int] = []

        async def ask(one: int) -> None:
            found.append(await loop.do(sum_of, one, 10))

        for one in range(3):
            nursery.start_soon(ask, one)
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(found) == [10, 11, 12]
    assert autojump_clock.current_time() == 3


async def test_what_it_raises_is_raised() -> None:
    async with open_loop() as loop:
        with pytest.raises(KeyError):
            await loop.do(failing)


async def test_who_is_cancelled_has_given_up_the_work() -> None:
    gone = []

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            gone.append(True)

    async with open_loop() as loop:
        with trio.CancelScope() as scope:
            scope.cancel()
            await loop.do(waiting)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.do, waiting)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert gone == [True]
        assert await loop.do(sum_of, 1, 2, 0) == 3


async def test_work_ends_with_its_loop() -> None:
    made: list[Loop] = []
    up = trio.Event()

    async def held() -> None:
        async with open_loop() as loop:
            made.append(loop)
            up.set()
            await trio.sleep_forever()

    async def left() -> None:
        with pytest.raises(LoopEnded):
            await made[0].do(asyncio.sleep, 3600)

    async with trio.open_nursery() as asking:
        async with trio.open_nursery() as holding:
            holding.start_soon(held)
            await up.wait()
            asking.start_soon(left)
            await trio.testing.wait_all_tasks_blocked()
            holding.cancel_scope.cancel()
    with pytest.raises(LoopEnded):
        await made[0].do(asyncio.sleep, 0)


async def test_loops_do_not_disturb_each_other() -> None:
    where: ContextVar[str] = ContextVar("where")

    async def told() -> str:
        return where.get()

    where.set("first")
    async with open_loop() as first:
        where.set("second")
        async with open_loop() as second:
            assert (await first.do(told), await second.do(told)) == ("first", "second")
            one, other = await first.do(running), await second.do(running)
            assert one is not other


async def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
