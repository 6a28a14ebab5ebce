"""An answer that somebody else gives."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from warren.tree.promise import Promise


async def test_who_awaits_it_gets_what_the_steps_made_of_the_answer() -> None:
    owed = Promise().then(lambda n: n + 1).then(str)
    got: list[str] = []

    async def ask() -> None:
        got.append(await owed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert got == []
        owed.keep(41)
    assert got == ["42"]
    assert await owed == "42"
    assert await owed.then(len) == 2


async def test_an_error_is_worded_once_and_no_step_sees_it() -> None:
    seen: list[object] = []
    owed = Promise().then(seen.append).otherwise(lambda e: OSError(5, f"the disk: {e}"))
    owed.fail(ValueError("gone"))
    for _ in range(2):
        with pytest.raises(OSError, match="the disk: gone"):
            await owed
    assert seen == []


@pytest.mark.parametrize("before", [True, False])
async def test_a_step_that_raises_is_the_answer(before: bool) -> None:
    owed, seen = Promise(), list[object]()
    if not before:
        owed.keep(0)
    owed.then(lambda n: 1 // n).then(seen.append)
    if before:
        owed.keep(0)
    with pytest.raises(ZeroDivisionError):
        await owed
    assert seen == []


async def test_it_cannot_be_cancelled_and_the_cancellation_comes_behind_it() -> None:
    owed, steps = Promise(), list[str]()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await owed == "kept"
                steps.append("told")
                await trio.lowlevel.checkpoint()
                steps.append("never")

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            assert steps == []
            owed.keep("kept")
    assert steps == ["told"]


def test_everybody_who_wants_to_be_told_is_told_once_and_in_order() -> None:
    owed, heard = Promise(), list[str]()
    owed.told(lambda p: heard.append(f"first {p.value}"))
    owed.told(lambda p: heard.append(f"second {p.value}"))
    owed.keep(7)
    owed.told(lambda p: heard.append(f"late {p.value}"))
    assert heard == ["first 7", "second 7", "late 7"]


def test_any_number_may_want_to_be_told() -> None:
    owed, heard = Promise(), list[int]()
    for n in range(5000):
        owed.told(lambda _, n=n: heard.append(n))  # type: ignore[misc]
    owed.keep()
    assert heard == list(range(5000))
