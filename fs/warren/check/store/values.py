"""What every store must do with keys and watches."""

from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked
from warren.check.store.place import Call, Place, holds, parked, refused, refused_nowait, same, take
from warren.store.interface import Change, Conflict, Entry, NotFound, Store


async def values(at: Place) -> None:
    """A key has the value put last, and every change a greater revision"""
    async with at.make() as store:
        a, b = at("a"), at("b")
        await refused(NotFound, store.get, a)
        await refused(NotFound, store.delete, a)
        revisions = [await store.put(a, b""), await store.put(b, b"b"), await store.put(a, bytes(range(256)))]
        same(await store.get(a), Entry(a, revisions[2], bytes(range(256))), "the value")
        same(await store.get(b), Entry(b, revisions[1], b"b"), "the other value")
        revisions.append(await store.delete(a))
        await refused(NotFound, store.get, a)
        await refused(NotFound, store.delete, a)
        revisions += [await store.put(a, b""), await store.put(b, b"b")]
        same(await store.get(a), Entry(a, revisions[4], b""), "an empty value")
        holds(revisions[0] > 0, "the first revision is not above 0")
        same(revisions, sorted(set(revisions)), "the order of revisions")
        same(await store.last(a), 0, "last of a topic named like a key")


async def expectation_of_revision(at: Place) -> None:
    """A put or delete whose expect does not hold is refused with the true revision and changes nothing"""
    async with at.make() as store:
        key = at("a")
        await refused(Conflict, store.put, key, b"no", expect=7)
        error = await refused(Conflict, store.delete, key, expect=7)
        same(error.actual, 0, "the revision of nothing")
        await refused(NotFound, store.delete, key, expect=0)
        first = await store.put(key, b"1", expect=0)
        second = await store.put(key, b"2", expect=first)
        for wrong in (0, first, second + 1):
            error = await refused(Conflict, store.put, key, b"no", expect=wrong)
            same((error.expected, error.actual), (wrong, second), "what the conflict carries")
            await refused(Conflict, store.delete, key, expect=wrong)
        same(await store.get(key), Entry(key, second, b"2"), "the value after refusals")
        await store.delete(key, expect=second)
        await refused(Conflict, store.put, key, b"no", expect=second)
        third = await store.put(key, b"3", expect=0)
        await refused(Conflict, store.put, key, b"no", expect=second)
        same(await store.get(key), Entry(key, third, b"3"), "the value in the end")


async def race_of_puts(at: Place) -> None:
    """Of tasks that change a key under the same expectation exactly one succeeds"""
    async with at.make() as store:
        key, made, ended = at("a"), list[int](), list[int]()

        async def count() -> None:
            try:
                made.append(await store.put(key, b"0", expect=0))
            except Conflict:
                pass
            for _ in range(5):
                while True:
                    entry = await store.get(key)
                    try:
                        await store.put(key, b"%d" % (int(entry.value) + 1), expect=entry.revision)
                    except Conflict as conflict:
                        holds(conflict.actual > entry.revision, "a conflict though nobody was faster")
                    else:
                        break

        async def end(revision: int) -> None:
            try:
                ended.append(await store.delete(key, expect=revision))
            except Conflict:
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(count)
        same(len(made), 1, "the number of tasks that made the key")
        entry = await store.get(key)
        same(int(entry.value), 50, "a counter after ten tasks counted to five")
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(end, entry.revision)
        same(len(ended), 1, "the number of tasks that deleted the key")


async def watches(at: Place) -> None:
    """A watch tells the values there are and every later change under its name, in order"""
    async with at.make() as store:
        a, b, c = at("w/a"), at("w/b"), at("w/b/c")
        await store.put(at("wx"), b"beside")
        first = Change(a, await store.put(a, b"1"), b"1")
        await store.put(b, b"gone")
        await store.delete(b)
        second = Change(c, await store.put(c, b"2"), b"2")
        async with await store.watch(at("w"), after=0) as all_, await store.watch(at("w/b")) as new:
            same(await take(all_, 2), [first, second], "the values there are")
            async with trio.open_nursery() as nursery:
                calls = [await parked(nursery, watch.next) for watch in (all_, new)]
                refused_nowait(trio.WouldBlock, all_.next_nowait)
                await store.put(at("wx"), b"beside")
                await wait_all_tasks_blocked()
                holds(not any(call.done.is_set() for call in calls), "a watch told of a key beside its name")
                third = Change(b, await store.put(b, b"3"), b"3")
                same(
                    [await call.answer() for call in calls], [third] * 2, "what both watches were woken with"
                )
            fourth = [Change(b, await store.delete(b), None), Change(a, await store.put(a, b"4"), b"4")]
            same(await take(all_, 2), fourth, "a deletion and a change")
            same(await take(new, 1), fourth[:1], "what the narrower watch was told")
            refused_nowait(trio.WouldBlock, new.next_nowait)
        await refused(ValueError, store.watch, at("w"), after=-1)
        same(store.statistics().watches, 0, "the number of watches after they were closed")


async def watches_resumed(at: Place) -> None:
    """A watch from a revision tells all that changed since, deletions too"""
    async with at.make() as store:
        await store.put(at("gone"), b"1")
        here = await store.put(at("kept"), b"1")
        made = [Change(at("new"), await store.put(at("new"), b"2"), b"2")]
        made.append(Change(at("gone"), await store.delete(at("gone")), None))
        for turn, after in enumerate((here, made[0].revision, made[1].revision)):
            async with await store.watch(at.root, after=after) as watch:
                wanted = [change for change in made if change.revision > after]
                same(await take(watch, len(wanted)), wanted, f"what changed after {after}")
                refused_nowait(trio.WouldBlock, watch.next_nowait)
                key = at(f"new{turn}")
                made.append(Change(key, await store.put(key, b"3"), b"3"))
                same(await watch.next(), made[-1], "the first change after that")


async def cancelled_changes(at: Place) -> None:
    """A cancelled put or delete was done or not, and what follows is well"""
    async with at.make() as store:
        for turn in range(24):
            value = b"%d" % turn
            put, delete = partial(store.put, at("a"), value), partial(store.delete, at("a"))
            for call, after in ((Call(put), value), (Call(delete), None)):
                before = await _value(store, at("a"))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call.go)
                    for _ in range(turn % 4):
                        await trio.lowlevel.checkpoint()
                    call.scope.cancel()
                now = await _value(store, at("a"))
                holds(
                    now == after or (now == before and not call.answers), f"{now!r} is there, not {after!r}"
                )
            await store.put(at("a"), b"well")
            same(await _value(store, at("a")), b"well", "the value put after a cancelled call")


async def _value(store: Store, key: str) -> bytes | None:
    try:
        return (await store.get(key)).value
    except NotFound:
        return None


async def watches_that_lag(at: Place) -> None:
    """A watch that was not read tells the newest change of each key, and all it tells is in order"""
    async with at.make() as store, await store.watch(at("l")) as watch:
        made: list[Change] = []
        for turn in range(50):
            for key in [at("l/a"), at("l/b"), at("l/c")] if turn < 30 else [at("l/a")]:
                value = b"%d" % turn
                made.append(Change(key, await store.put(key, value), value))
        made.append(Change(at("l/d"), await store.put(at("l/d"), b"brief"), b"brief"))
        for key in (at("l/c"), at("l/d")):
            made.append(Change(key, await store.delete(key), None))
        told = [await watch.next()]
        while told[-1].revision < made[-1].revision:
            told.append(await watch.next())
        refused_nowait(trio.WouldBlock, watch.next_nowait)
        holds(set(told) <= set(made), "the watch tells of a change that never was")
        same(told, sorted(set(told), key=lambda change: change.revision), "the order of changes")
        newest = {change.key: change for change in made}
        same({change.key: change for change in told}, newest, "the newest change of each key")


async def cancelled_watches(at: Place) -> None:
    """A cancelled wait of a watch takes nothing, also when the change comes at the same moment"""
    async with at.make() as store, await store.watch(at("c")) as watch:
        told: list[Change] = []
        for turn in range(24):
            key = at(f"c/{turn}")
            async with trio.open_nursery() as nursery:
                call = await parked(nursery, watch.next)
                revision = await store.put(key, b"x")
                for _ in range(turn % 4):
                    await trio.lowlevel.checkpoint()
                call.scope.cancel()
            told += call.answers or [await watch.next()]
            same(told[turn:], [Change(key, revision, b"x")], "the change after a cancelled wait")
        await store.put(at("c/more"), b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await watch.next()
        holds(scope.cancelled_caught, "a cancelled next answered")
        same((await watch.next()).key, at("c/more"), "the change after a cancelled wait")
        same(store.statistics().waiting, 0, "the number of waiting calls")


async def shared_watches(at: Place) -> None:
    """Of the tasks that read one watch exactly one gets a change"""
    async with at.make() as store, await store.watch(at("s")) as watch, trio.open_nursery() as nursery:
        arrived = trio.Semaphore(0)

        async def take_one() -> Change:
            change = await watch.next()
            arrived.release()
            return change

        calls = [await parked(nursery, take_one) for _ in range(4)]
        made: list[Change] = []
        for turn in range(4):
            key = at(f"s/{turn}")
            made.append(Change(key, await store.put(key, b"x"), b"x"))
            await arrived.acquire()
            await wait_all_tasks_blocked()
            same(
                sum(call.done.is_set() for call in calls), turn + 1, "the number of tasks that have a change"
            )
        same(sorted([await call.answer() for call in calls]), made, "what the tasks got")


CHECKS = (
    values,
    expectation_of_revision,
    race_of_puts,
    watches,
    watches_resumed,
    cancelled_changes,
    watches_that_lag,
    cancelled_watches,
    shared_watches,
)
