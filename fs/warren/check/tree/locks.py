"""Byte-range locks, where a tree has them. They belong to a session, a client and a process."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked
from warren.check.tree.place import Place, holds, same
from warren.check.tree.writing import Yard, yard
from warren.mount import File


@asynccontextmanager
async def lockable(at: Place) -> AsyncIterator[tuple[Yard, str] | None]:
    """A file that can be locked, or None."""
    async with yard(at) as y:
        path = await y.make("file", b"data")
        async with await y.files.open(path, os.O_RDWR) as file:
            try:
                await file.lock(0, 1, wait=False)
            except OSError as e:
                holds(e.errno in (errno.EOPNOTSUPP, errno.ENOSYS), path, f"a lock is refused with {e}")
                supported = False
            else:
                supported = True
        yield (y, path) if supported else None


@asynccontextmanager
async def opened(at: Place, y: Yard, path: str) -> AsyncIterator[File]:
    """The file, in a session of its own."""
    async with at.files(y.export) as files, await files.open(path, os.O_RDWR) as file:
        yield file


async def between(at: Place) -> None:
    """A lock keeps other sessions out of its range until it is given up, and they can see it"""
    async with lockable(at) as found:
        if found is None:
            return
        y, path = found
        async with opened(at, y, path) as one, opened(at, y, path) as two:
            holds(await one.lock(100, 100, wait=False, owner=1), path, "a free range could not be locked")
            for start, length in ((100, 100), (0, 0), (150, 1), (50, 51), (199, 0)):
                got = await two.lock(start, length, wait=False, owner=1)
                holds(not got, path, f"two sessions hold locks on bytes of {start}+{length}")
                got = await two.lock(start, length, shared=True, wait=False, owner=1)
                holds(not got, path, f"{start}+{length} is shared while another holds it exclusively")
            for start, length in ((0, 100), (200, 0)):
                got = await two.lock(start, length, wait=False, owner=1)
                holds(got, path, f"the free range {start}+{length} could not be locked")
                await two.unlock(start, length, owner=1)
            seen = await two.getlock(0, 0, owner=1)
            holds(seen is not None, path, "getlock does not see the lock in the way")
            assert seen is not None
            same(
                (seen.kind, seen.start, seen.length, seen.proc_id),
                (1, 100, 100, 1),
                path,
                "what getlock sees",
            )
            same(await one.getlock(0, 0, owner=1), None, path, "what its holder finds in the way")
            await one.unlock(100, 50, owner=1)
            holds(await two.lock(100, 50, wait=False, owner=1), path, "a part that was unlocked is not free")
            holds(not await two.lock(150, 1, wait=False, owner=1), path, "the other part is free, too")
            await two.unlock(owner=1)
            await one.unlock(owner=1)
            same(await two.getlock(owner=1), None, path, "what is in the way when all was unlocked")


async def within(at: Place) -> None:
    """In one session two processes exclude each other, and one does not exclude itself"""
    async with lockable(at) as found:
        if found is None:
            return
        y, path = found
        async with opened(at, y, path) as file, await y.files.open(path, os.O_RDWR) as first:
            async with await y.files.open(path, os.O_RDWR) as second:
                holds(await first.lock(owner=1, wait=False), path, "a free file could not be locked")
                holds(await second.lock(owner=1, wait=False), path, "a process is kept out by its own lock")
                holds(
                    not await second.lock(owner=2, wait=False),
                    path,
                    "two processes of a session hold one lock",
                )
                holds(
                    await first.lock(owner=1, shared=True, wait=False),
                    path,
                    "a lock cannot be made a shared one",
                )
                holds(
                    await file.lock(owner=1, shared=True, wait=False), path, "a shared lock cannot be shared"
                )
                holds(not await first.lock(owner=1, wait=False), path, "a shared lock was made exclusive")


async def waiting(at: Place) -> None:
    """Who waits for a lock gets it when it is free, and nothing when he gives up waiting"""
    async with lockable(at) as found:
        if found is None:
            return
        y, path = found
        async with opened(at, y, path) as one, opened(at, y, path) as two, opened(at, y, path) as three:
            await one.lock(owner=1)
            got: list[bool] = []

            async def wait(file: File) -> None:
                got.append(await file.lock(owner=1))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, two)
                await wait_all_tasks_blocked()
                same(got, [], path, "what came of waiting for a lock that is held")
                nursery.cancel_scope.cancel()
            same(y.export.statistics()["parked"], 0, path, "the number of parked requests after giving up")
            await one.unlock(owner=1)
            same(got, [], path, "what came of waiting that was given up")
            holds(await three.lock(owner=1, wait=False), path, "who gave up waiting holds the lock")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, two)
                await wait_all_tasks_blocked()
                await three.unlock(owner=1)
            same(got, [True], path, "what came of waiting when the lock was given up")


async def released(at: Place) -> None:
    """A clunk and a disconnect give locks up"""
    async with lockable(at) as found:
        if found is None:
            return
        y, path = found
        async with opened(at, y, path) as watcher:
            async with opened(at, y, path) as one:
                await one.lock(owner=1)
                await one.close()
                holds(await watcher.lock(owner=9, wait=False), path, "a lock outlives the clunk of its fid")
                await watcher.unlock(owner=9)
            got: list[bool] = []

            async def wait() -> None:
                got.append(await watcher.lock(owner=9))

            async with trio.open_nursery() as nursery:
                async with at.files(y.export) as files:
                    leaver = await files.open(path, os.O_RDWR)
                    await leaver.lock(owner=1)
                    nursery.start_soon(wait)
                    await wait_all_tasks_blocked()
                    same(got, [], path, "what came of waiting while the other session lived")
                # That session ended without a clunk.
            same(got, [True], path, "what came of waiting when the holder's session ended")


CHECKS = (between, within, waiting, released)
