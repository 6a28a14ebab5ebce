"""What every store must do as a whole: names, lists, limits, closing, reopening."""

import secrets
from dataclasses import FrozenInstanceError
from functools import partial

import trio
from trio.testing import assert_checkpoints
from warren.check.store.place import Call, Place, holds, log, parked, refused, refused_nowait, same
from warren.store.interface import (
    NAME_MAX,
    BadName,
    Change,
    Conflict,
    Entry,
    NotFound,
    Record,
    StoreClosed,
    TooLarge,
    Trimmed,
)

BAD_NAMES = (
    "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", ".a", "a/.b", "-a", "a b", "a\n", "a\0b", "a*", "a>",
    "a%b", "a:b", "na\u00efve", "x" * (NAME_MAX + 1),
)  # fmt: skip
GOOD_NAMES = (
    "a", "A", "_", "0", "a.b", "a/b", "a-b", "a_b", "a/b/c", "a/B", "a.b/c", "a..b", "ab", "a.", "a-",
)  # fmt: skip


async def names(at: Place) -> None:
    """Names within the grammar are all different, others are refused everywhere"""
    async with at.make() as store:
        good = [at(name) for name in GOOD_NAMES]
        good.append(at("x" * (NAME_MAX - len(at("")))))
        for name in good:
            await store.append(name, name.encode())
            await store.put(name, name.encode())
        for name in good:
            same((await store.read(name, 1)).data, name.encode(), "the record of a topic")
            same((await store.get(name)).value, name.encode(), "the value of a key")
        for bad in BAD_NAMES:
            await refused(BadName, store.append, bad, b"")
            await refused(BadName, store.append_batch, bad, [b""])
            await refused(BadName, store.read, bad, 1)
            await refused(BadName, store.first_after, bad, 0)
            refused_nowait(BadName, store.first_after_nowait, bad, 0)
            await refused(BadName, store.last, bad)
            await refused(BadName, store.trim, bad, 0)
            await refused(BadName, store.get, bad)
            await refused(BadName, store.put, bad, b"")
            await refused(BadName, store.delete, bad)
            if bad:
                await refused(BadName, store.topics, bad)
                await refused(BadName, store.keys, bad)
                await refused(BadName, store.watch, bad)


async def lists(at: Place) -> None:
    """Topics and keys are listed in the order of their characters, by whole parts, a page at a time"""
    async with at.make() as store:
        names = sorted(at(name) for name in GOOD_NAMES)
        for name in reversed(names):
            await store.append(name, b"")
            await store.put(name, b"")
        await store.delete(names[3])
        keys = names[:3] + names[4:]
        for lists, all_ in ((store.topics, names), (store.keys, keys)):
            same(await lists(at.root), all_, "the whole list")
            same(
                await lists(at("a")),
                [n for n in all_ if (n + "/").startswith(at("a/"))],
                "a part of the list",
            )
            same(await lists(at("zz")), [], "the list of what is not there")
            same(
                [name for name in await lists(limit=100_000) if name in all_], all_, "the list of everything"
            )
            pages, after = list[str](), ""
            while page := await lists(at.root, after=after, limit=4):
                holds(len(page) <= 4, "a page is longer than its limit")
                pages, after = pages + page, page[-1]
            same(pages, all_, "the pages put together")
            await refused(ValueError, lists, at.root, limit=0)


async def limits(at: Place) -> None:
    """What is as large as the limit is kept, what is larger is refused and leaves nothing"""
    async with at.make() as store:
        most = store.limits.record
        large = secrets.token_bytes(most)
        await store.append(at("a"), large)
        await store.put(at("a"), large)
        same((await store.read(at("a"), 1)).data == large, True, "the sameness of a large record")
        same((await store.get(at("a"))).value == large, True, "the sameness of a large value")
        for name in (at("a"), at("b")):
            for call in (store.append, store.put):
                error = await refused(TooLarge, call, name, large + b"x")
                same((error.size, error.limit), (most + 1, most), "what TooLarge carries")
        same(await store.last(at("a")), 1, "last after a refusal")
        same((await store.get(at("a"))).value == large, True, "the sameness of a value after a refusal")
        same((await store.topics(at.root), await store.keys(at.root)), ([at("a")],) * 2, "the names")


async def closing(at: Place) -> None:
    """Closing wakes all who wait with StoreClosed, and everything after is refused so"""
    async with at.make() as store:
        await store.put(at("k"), b"")
        async with trio.open_nursery() as nursery:
            ended = await store.watch(at("e"))
            call = await parked(nursery, ended.next)
            await ended.aclose()
            await ended.aclose()
            await refused(StoreClosed, call.answer)
            await refused(StoreClosed, ended.next)
            same((await store.get(at("k"))).value, b"", "a value after a watch was closed")

            watch, watched = await store.watch(at("w")), await store.watch(at("k"), after=0)
            waiting: list[Call[object]] = [
                await parked(nursery, watch.next),
                await parked(nursery, partial(store.first_after, at("a"), 0)),
                await parked(nursery, partial(store.first_after, at("a"), 0)),
            ]
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.aclose()
            for one in waiting:
                await refused(StoreClosed, one.answer)
        await store.aclose()
        await refused(StoreClosed, store.append, at("a"), b"")
        await refused(StoreClosed, store.append_batch, at("a"), [b""])
        await refused(StoreClosed, store.read, at("a"), 1)
        await refused(StoreClosed, store.first_after, at("a"), 0)
        refused_nowait(StoreClosed, store.first_after_nowait, at("a"), 0)
        await refused(StoreClosed, store.last, at("a"))
        await refused(StoreClosed, store.trim, at("a"), 0)
        await refused(StoreClosed, store.topics)
        await refused(StoreClosed, store.get, at("k"))
        await refused(StoreClosed, store.put, at("k"), b"")
        await refused(StoreClosed, store.delete, at("k"))
        await refused(StoreClosed, store.keys)
        await refused(StoreClosed, store.watch)
        await refused(StoreClosed, watched.next)
        refused_nowait(StoreClosed, watched.next_nowait)
        same(store.statistics().waiting, 0, "the number of waiting calls")
        await watch.aclose()


async def reopening(at: Place) -> None:
    """What was answered before a durable store was closed is there when it is opened again"""
    if not at.durable:
        return
    async with at.make() as store:
        await store.append_batch(at("a"), [b"1", b"2", b"3"])
        await store.append(at("b"), b"1")
        await store.trim(at("a"), through=2)
        await store.trim(at("b"), 0)
        old = await store.put(at("k"), b"old")
        await store.put(at("gone"), b"")
        gone = Change(at("gone"), await store.delete(at("gone")), None)
    async with at.make() as store:
        same(await log(store, at("a")), [Record(3, b"3")], "the log")
        same((await refused(Trimmed, store.read, at("a"), 2)).through, 2, "Trimmed.through")
        same([await store.append(at(name), b"") for name in "ab"], [4, 2], "the numbers that follow")
        same(await store.get(at("k")), Entry(at("k"), old, b"old"), "the value")
        await refused(NotFound, store.get, at("gone"))
        same(
            (await store.topics(at.root), await store.keys(at.root)), ([at("a"), at("b")], [at("k")]), "names"
        )
        async with await store.watch(at.root, after=old) as watch:
            same(await watch.next(), gone, "the change since")
            new = await store.put(at("k"), b"new", expect=old)
            holds(new > gone.revision, "a revision is not above those before the store was closed")
            same(await watch.next(), Change(at("k"), new, b"new"), "the change after that")


async def checkpoints(at: Place) -> None:
    """Every async method is a checkpoint"""
    async with at.make() as store, await store.watch(at.root) as watch:
        for name, call in (
            ("append", lambda: store.append(at("a"), b"")),
            ("append_batch", lambda: store.append_batch(at("a"), [b""])),
            ("read", lambda: store.read(at("a"), 1)),
            ("first_after", lambda: store.first_after(at("a"), 0)),
            ("last", lambda: store.last(at("a"))),
            ("trim", lambda: store.trim(at("a"), 1)),
            ("topics", store.topics),
            ("put", lambda: store.put(at("k"), b"")),
            ("get", lambda: store.get(at("k"))),
            ("keys", store.keys),
            ("next", watch.next),
            ("delete", lambda: store.delete(at("k"))),
            ("watch.aclose", watch.aclose),
            ("aclose", store.aclose),
        ):
            try:
                with assert_checkpoints():
                    await call()
            except AssertionError:
                raise AssertionError(f"{name} is not a checkpoint") from None


async def statistics(at: Place) -> None:
    """Statistics count what was done and who waits, and never change once taken"""
    async with at.make() as store:
        before = store.statistics()
        async with trio.open_nursery() as nursery, await store.watch(at.root) as watch:
            await parked(nursery, partial(store.first_after, at("a"), 3))
            await parked(nursery, watch.next)
            waiting = store.statistics()
            same(
                (waiting.waiting, waiting.watches),
                (2, before.watches + 1),
                "the waiting calls and the watches",
            )
            await store.append_batch(at("a"), [b"", b""])
            await store.append(at("a"), b"")
            await store.trim(at("a"), 1)
            await refused(Conflict, store.append, at("a"), b"", expect_last=0)
            await store.put(at("k"), b"")
            await refused(Conflict, store.put, at("k"), b"", expect=0)
            await store.delete(at("k"))
            nursery.cancel_scope.cancel()
        after = store.statistics()
        counts = [(s.appended, s.trimmed, s.put, s.deleted, s.conflicts, s.waiting) for s in (before, after)]
        same([new - old for old, new in zip(*counts, strict=True)], [3, 2, 1, 1, 2, 0], "what was counted")
        same(waiting.appended, before.appended, "a count taken before")
        try:
            after.appended = 0  # type: ignore[misc]
        except (FrozenInstanceError, AttributeError):
            return
        raise AssertionError("statistics can be changed")


CHECKS = (
    names,
    lists,
    limits,
    closing,
    reopening,
    checkpoints,
    statistics,
)
