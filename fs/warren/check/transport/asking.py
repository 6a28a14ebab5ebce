"""What a client sees through a transport: answers that belong to their questions, and no others."""

import errno
import os
from collections.abc import Awaitable, Callable

import trio
from warren.check.transport.place import BULK, NUMBERS, Place, Yard, digest, noise
from warren.check.tree.place import holds, refused, same
from warren.mount import File, Files
from warren.mount.link import Op
from warren.p9.messages import PLAIN

ASKED = 400
STEPS = 24
MAX_MSIZE = 1 << 20


async def large(at: Place) -> None:
    """Megabytes come back as they were written, in messages of no more than msize"""
    async with at.yard() as (yard, files):
        data = noise(1)
        same(await files.write("/bulk", data), BULK, "/bulk", "the count of a large write")
        same(digest(yard.bulk.data), digest(data), "/bulk", "the digest of what was written")
        same(digest(await files.read("/bulk")), digest(data), "/bulk", "the digest of what is read")
        async with await files.open("/bulk", os.O_RDWR) as file:
            piece = await file.pread(1 << 21, 12345)
            same(digest(piece), digest(data[12345 : 12345 + (1 << 21)]), "/bulk", "the digest of a piece")
            await file.pwrite(noise(2, 1 << 20), 777)
        data = data[:777] + noise(2, 1 << 20) + data[777 + (1 << 20) :]
        same(digest(yard.bulk.data), digest(data), "/bulk", "the digest after a write in the middle")
        msize = files.msize
        holds(256 <= msize <= MAX_MSIZE, "/", f"msize is {msize}")
        holds(
            yard.bulk.largest_read <= msize - 11,
            "/bulk",
            f"a read of {yard.bulk.largest_read}, msize {msize}",
        )
        holds(
            yard.bulk.largest_write <= msize - 23,
            "/bulk",
            f"a write of {yard.bulk.largest_write}, msize {msize}",
        )


async def many(at: Place) -> None:
    """Each of many requests at once gets its own answer"""
    async with at.yard() as (_, files):

        async def ask(n: int) -> None:
            path = f"/numbers/{n}"
            same(await files.read(path), f"{n}\n".encode(), path, "its value")

        async with trio.open_nursery() as nursery:
            for n in range(ASKED):
                nursery.start_soon(ask, n % NUMBERS)


class Readers:
    """Tasks that each read one record."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.scopes: list[trio.CancelScope] = []
        self.records: list[bytes] = []
        self.ended = trio.Event()
        self._left = 0

    def start(self, file: File) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._left += 1
        self.ended = trio.Event()
        self.nursery.start_soon(self._read, file, scope)
        return scope

    async def _read(self, file: File, scope: trio.CancelScope) -> None:
        with scope:
            self.records.append(await file.record())
        self._left -= 1
        if not self._left:
            self.ended.set()


async def parked(at: Place) -> None:
    """As many reads as may be parked are, others are answered meanwhile, and one more is refused"""
    async with at.yard() as (yard, files):
        most = yard.export.limits.parked
        opened = [await files.stream("/queue") for _ in range(most)]
        async with trio.open_nursery() as nursery:
            readers = Readers(nursery)
            for file in opened:
                readers.start(file)
            await yard.until(lambda: yard.queue.waiting == most)
            for n in range(NUMBERS):
                same(await files.read(f"/numbers/{n}"), f"{n}\n".encode(), f"/numbers/{n}", "its value")
            async with await files.stream("/queue") as more:
                await refused("/queue", f"parked read number {most + 1}", more.record(), errno.EAGAIN)
            records = [f"{n}\n".encode() for n in range(most)]
            for record in records:
                yard.queue.put(record)
            await readers.ended.wait()
        same(sorted(readers.records), sorted(records), "/queue", "the records that the parked reads got")
        same(yard.export.statistics()["parked"], 0, "/queue", "the number of parked reads after that")


async def shared(at: Place) -> None:
    """Of several parked readers each gets one record of a queue, and all get all of a ring"""
    async with at.yard() as (yard, files), at.attach(yard.export) as other:
        async with trio.open_nursery() as nursery:
            readers = Readers(nursery)
            for n in range(8):
                readers.start(await (files, other)[n % 2].stream("/queue"))
            await yard.until(lambda: yard.queue.waiting == 8)
            for n in range(8):
                await files.write("/put", f"{n}".encode())
            await readers.ended.wait()
        same(sorted(readers.records), [f"{n}".encode() for n in range(8)], "/queue", "the records that came")
        rings = [await one.stream("/ring") for one in (files, other, files)]
        for n in range(20):
            yard.ring.append(f"{n}".encode())
        for ring in rings:
            got = [await ring.record() for _ in range(20)]
            same(got, [f"{n}".encode() for n in range(20)], "/ring", "the records that one reader got")


async def cancelled(at: Place) -> None:
    """A cancelled read is flushed at once and has taken nothing"""
    async with at.yard() as (yard, files), await files.stream("/queue") as file:
        async with trio.open_nursery() as nursery:
            readers = Readers(nursery)
            scope = readers.start(file)
            await yard.until(lambda: yard.queue.waiting == 1)
            scope.cancel()
            await readers.ended.wait()
            same(readers.records, [], "/queue", "what a cancelled read gave")
            same(yard.export.statistics()["parked"], 0, "/queue", "the number of parked reads after a flush")
            fed = 1
            yard.queue.put(b"0")
            same(await file.record(), b"0", "/queue", "the first record after a cancelled read")
            got = [b"0"]
            for step in range(STEPS):
                scope = readers.start(file)
                await yard.until(lambda: yard.queue.waiting == 1)
                yard.queue.put(b"%d" % fed)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                await readers.ended.wait()
                fed += 1
                if not readers.records:
                    readers.records.append(await file.record())
                got.append(readers.records.pop())
        same(
            got,
            [b"%d" % n for n in range(fed)],
            "/queue",
            "the records, each with a cancelled read or the next",
        )


async def overtaken(at: Place) -> None:
    """A quick request is answered before a slow one that was asked earlier"""
    async with at.yard() as (yard, files):
        said: list[bytes] = []

        async def slow() -> None:
            said.append(await files.read("/slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await yard.until(lambda: yard.slow.waiting == 1)
            for n in range(NUMBERS):
                same(await files.read(f"/numbers/{n}"), f"{n}\n".encode(), f"/numbers/{n}", "its value")
            same(said, [], "/slow", "what the slow request said before it could")
            yard.slow.gate.set()
        same(said, [b"at last\n"], "/slow", "what the slow request said")


async def crowded(at: Place) -> None:
    """A connection with all the work that it may have stalls only itself, and can still give up"""
    async with at.yard() as (yard, files), at.attach(yard.export) as other:
        limits = yard.export.limits
        opened = [await files.open("/slow") for _ in range(limits.running + 8)]
        async with trio.open_nursery() as nursery:
            for file in opened:
                nursery.start_soon(file.pread, 100, 0)
            await yard.until(lambda: yard.slow.waiting == limits.running)
            for n in range(NUMBERS):
                same(await other.read(f"/numbers/{n}"), f"{n}\n".encode(), f"/numbers/{n}", "its value")
            nursery.cancel_scope.cancel()
        same(yard.slow.waiting, 0, "/slow", "the number of requests worked on after all were cancelled")
        same(
            await files.read("/numbers/1"), b"1\n", "/numbers/1", "its value on the connection that was full"
        )


async def late(at: Place) -> None:
    """A request past its deadline is a TimeoutError, the server gives it up, and the connection goes on"""
    async with at.yard() as (yard, files):
        usual, files.deadline = files.deadline, 0.05
        try:
            await refused("/slow", "a request without an answer", files.read("/slow"), errno.ETIMEDOUT)
            same(yard.slow.waiting, 0, "/slow", "the number of requests worked on after the deadline")
        finally:
            files.deadline = usual
        same(await files.read("/numbers/1"), b"1\n", "/numbers/1", "its value after a deadline")


async def lost(at: Place) -> None:
    """A connection that is lost frees its locks and its parked reads, and nothing else is lost"""
    async with at.yard() as (yard, files), at.attach(yard.export) as other:
        data = noise(3)
        await other.write("/bulk", data)
        file, watch = await files.open("/bulk", os.O_RDWR), await other.open("/bulk", os.O_RDWR)
        await files.open("/leaving")
        stream = await files.stream("/queue")
        locks = files.version != PLAIN and await file.lock(wait=False)
        ended: list[str] = []

        async def broken(what: str, work: Callable[[], Awaitable[object]]) -> None:
            try:
                await work()
            except ConnectionError:
                ended.append(what)

        async def wait_for_lock() -> None:
            if locks:
                await watch.lock()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken, "read", stream.record)
            nursery.start_soon(wait_for_lock)
            await yard.until(lambda: yard.queue.waiting == 1 and (yard.bulk.waiting == 1 or not locks))
            new = noise(4)
            nursery.start_soon(broken, "write", lambda: file.pwrite(new, 0))
            await yard.until(lambda: yard.bulk.data[:64] == new[:64])
            await drop(files)
            await yard.until(lambda: yard.leaving.left == 1 and yard.queue.waiting == 0)
        holds("read" in ended, "/queue", "a read whose connection was lost did not say so")
        same(len(yard.export.sessions), 1, "/", "the number of sessions that are left")
        for start in range(0, BULK, 4096):
            found = bytes(yard.bulk.data[start : start + 4096])
            holds(_torn(found, new[start : start + 4096], data[start : start + 4096]), "/bulk",
                  f"bytes from {start} are neither the old nor the new")  # fmt: skip
        yard.queue.put(b"kept")
        async with await other.stream("/queue") as again:
            same(await again.record(), b"kept", "/queue", "the record that came after the loss")


def _torn(found: bytes, new: bytes, old: bytes) -> bool:
    """Whether FOUND is new up to some byte and old from there on."""
    same_as_new = next((i for i in range(len(new)) if found[i] != new[i]), len(new))
    return found[same_as_new:] == old[same_as_new:]


async def drop(files: Files) -> None:
    """Lose the connection, as a cable would."""
    (await files.live(Op("/"))).drop("the check cut it")


async def again(at: Place) -> None:
    """After a loss the next call dials again where it can, and says so where it cannot"""
    async with at.yard() as (yard, files):
        await files.write("/bulk", b"stored")
        file, stream = await files.open("/bulk"), await files.stream("/queue")
        await files.open("/leaving")
        await drop(files)
        await yard.until(lambda: yard.leaving.left == 1)
        if not files.redials:
            await refused("/numbers/1", "a call after a loss", files.read("/numbers/1"), errno.ECONNRESET)
            return
        same(await files.read("/numbers/1"), b"1\n", "/numbers/1", "its value after a loss")
        same(await file.pread(100, 0), b"stored", "/bulk", "what an open file reads after a loss")
        await refused("/queue", "the first record after a loss", stream.record(), errno.ECONNRESET)
        await _next(yard, stream)


async def _next(yard: Yard, stream: File) -> None:
    yard.queue.put(b"next")
    same(await stream.record(), b"next", "/queue", "the record after the loss was told")


CHECKS = (large, many, parked, shared, cancelled, overtaken, crowded, late, lost, again)
