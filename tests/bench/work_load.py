"""The clients of `bench work`: 64 writers in one process, then 64 readers; one line of JSON.

    python -m tests.bench.work_load warren      ADDRESS WRITERS SECONDS [CONNECTIONS]
    python -m tests.bench.work_load sdk         ADDRESS WRITERS SECONDS
    python -m tests.bench.work_load redis       SOCKET  WRITERS SECONDS
    python -m tests.bench.work_load bare        SOCKET  WRITERS SECONDS
    python -m tests.bench.work_load jetstream   URL     WRITERS SECONDS
    python -m tests.bench.work_load blobs       ADDRESS READERS SECONDS PATH...
    python -m tests.bench.work_load sequential  ADDRESS 1       SECONDS PATH

A writer sends one message of SIZE bytes, waits until it is answered, and sends the next. A reader receives
one message, acknowledges it, and waits for the answer to that. What was sent is counted in the server
afterwards, and a number that is not ours is no measurement. Then whatever is left is thrown away.

What each speaks: ours is `warren.mount`, with the writers' open files on one connection or on several, and
`warren.mount.sdk`, on one. Redis has redis-py, and a connection for each writer, as its protocol wants;
`bare` is Redis too, asked by a client that does no more than pack, send, and look at the answer. JetStream
has nats-py, and one connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from statistics import quantiles

import trio
from warren.mount import File, Files, dial
from warren.mount.sdk import node

from .processes import BenchError

SIZE = 100
BODY = b"m" * SIZE
TOPIC = "/mailbox/bench"
FIRST = 4096
NOT_ALWAYS = "redis does not fsync what it answers"
MIB = 1 << 20
Figures = dict[str, float]
Clock = time.perf_counter


class Meter:
    """How long each operation took, and how many there were a second."""

    def __init__(self, seconds: float) -> None:
        self.begun = Clock()
        self.until = self.begun + seconds
        self.taken: list[float] = []
        self.ended = self.begun
        self.cpu = time.process_time()
        self.spent = 0.0

    @property
    def on(self) -> bool:
        return Clock() < self.until

    def note(self, since: float) -> None:
        self.ended = Clock()
        self.taken.append(self.ended - since)

    def stop(self) -> None:
        """What was used from here on is not for these operations."""
        self.spent = time.process_time() - self.cpu

    def figures(self, name: str) -> Figures:
        if len(self.taken) < 2:
            raise BenchError(f"{name}: {len(self.taken)} operations were answered in the time")
        cuts = quantiles(self.taken, n=100)
        return {
            f"{name}_per_s": len(self.taken) / (self.ended - self.begun),
            f"{name}_p50_ms": 1e3 * cuts[49], f"{name}_p95_ms": 1e3 * cuts[94],
            f"{name}_p99_ms": 1e3 * cuts[98], f"{name}_worst_ms": 1e3 * max(self.taken),
            f"{name}_client_us": 1e6 * self.spent / len(self.taken),
        }  # fmt: skip


def same(counted: int, sent: int) -> None:
    if counted != sent:
        raise BenchError(f"{sent} messages were answered, and the server has {counted}")


async def side_by_side(many: int, work: Callable[[int], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(many):
            nursery.start_soon(work, n)


# Ours


@asynccontextmanager
async def dialled(address: str, many: int) -> AsyncIterator[list[Files]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(dial(address)) for _ in range(many)]


async def depth(files: Files) -> int:
    words = (await files.read(f"{TOPIC}/stats")).decode().split()
    return int(dict(word.split("=", 1) for word in words)["depth"])


async def warren(address: str, many: int, seconds: float, connections: int) -> Figures:
    async with dialled(address, connections) as links:
        if not await links[0].walk_exists(TOPIC):
            await links[0].mkdir(TOPIC)
            await links[0].write(f"{TOPIC}/ctl", b"set count=100000 inflight=1000", truncate=False)
        async with AsyncExitStack() as stack:

            async def opened(n: int, name: str) -> File:
                file = await links[n % connections].open(f"{TOPIC}/{name}", os.O_WRONLY)
                return await stack.enter_async_context(file)

            senders = [await opened(n, "send") for n in range(many)]
            ackers = [await opened(n, "ack") for n in range(many)]

            async def send(n: int) -> None:
                file = senders[n]
                while sent.on:
                    since = Clock()
                    await file.pwrite(BODY, 0)
                    sent.note(since)

            async def receive(n: int) -> None:
                files, ack = links[n % connections], ackers[n]
                while got.on:
                    since = Clock()
                    async with await files.open(f"{TOPIC}/recv", os.O_RDWR) as file:
                        await file.pwrite(b"wait=100ms", 0)
                        data = await file.pread(FIRST, 0)
                    if not data:
                        return
                    await ack.pwrite(data[3 : data.index(b" ")], 0)
                    got.note(since)

            sent = Meter(seconds)
            await side_by_side(many, send)
            sent.stop()
            same(await depth(links[0]), len(sent.taken))
            got = Meter(seconds)
            await side_by_side(many, receive)
            got.stop()
        same(await depth(links[0]), len(sent.taken) - len(got.taken))
        await links[0].write(f"{TOPIC}/ctl", b"purge", truncate=False)
    return sent.figures("send") | got.figures("receive")


async def sdk(address: str, many: int, seconds: float) -> Figures:
    """The same through the SDK, which sends together what is sent at once, each with its idempotency key."""
    async with node(address) as n:
        if await n.files.walk_exists(TOPIC):
            await n.files.remove(TOPIC)  # with the keys that it remembers, of which there is a limit
        topic = n.mailbox("bench")
        await topic.make()
        await n.write(f"{TOPIC}/ctl", b"set count=100000 inflight=1000")

        async def send(_: int) -> None:
            while sent.on:
                since = Clock()
                if (await topic.send(BODY)).dup:
                    raise BenchError("a message was taken for another one")
                sent.note(since)

        async def receive(_: int) -> None:
            async with topic.receive() as messages:
                since = Clock()
                async for message in messages:
                    await message.ack()
                    got.note(since)
                    if len(got.taken) == len(sent.taken):
                        rest.cancel()  # there is nothing more to wait for
                    if not got.on:
                        return
                    since = Clock()

        sent = Meter(seconds)
        await side_by_side(many, send)
        sent.stop()
        same(await depth(n.files), len(sent.taken))
        got = Meter(seconds)
        with trio.CancelScope() as rest:
            await side_by_side(many, receive)
        got.stop()
        same(await depth(n.files), len(sent.taken) - len(got.taken))
        await n.write(f"{TOPIC}/ctl", b"purge")
    return sent.figures("send") | got.figures("receive")


# Redis


async def redis(socket: str, many: int, seconds: float) -> Figures:
    try:
        library = import_module("redis.asyncio")  # of the extra `bench`: the only place that needs it
    except ImportError as error:
        raise BenchError("no redis-py to ask Redis with: .ci/setup bench") from error
    made = [library.Redis(unix_socket_path=socket, single_connection_client=True) for _ in range(many)]
    links = [await link.initialize() for link in made]
    try:
        if (await links[0].config_get("appendfsync")).get("appendfsync") != "always":
            raise BenchError(NOT_ALWAYS)
        await links[0].xgroup_create("bench", "g", "0", mkstream=True)

        async def send(n: int) -> None:
            while sent.on:
                since = Clock()
                await links[n].xadd("bench", {"b": BODY})
                sent.note(since)

        async def receive(n: int) -> None:
            while got.on:
                since = Clock()
                found = await links[n].xreadgroup("g", f"c{n}", {"bench": ">"}, count=1)
                if not found:
                    return
                ((_, ((id, _),)),) = found
                if await links[n].xack("bench", "g", id) != 1:
                    raise BenchError(f"redis acknowledged no message {id!r}")
                got.note(since)

        sent = Meter(seconds)
        await asyncio.gather(*(send(n) for n in range(many)))
        sent.stop()
        same(await links[0].xlen("bench"), len(sent.taken))
        got = Meter(seconds)
        await asyncio.gather(*(receive(n) for n in range(many)))
        got.stop()
        await links[0].delete("bench")
    finally:
        for link in links:
            await link.aclose()
    return sent.figures("send") | got.figures("receive")


class Bare:
    """One connection, one command at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def ask(self, *words: bytes) -> bytes:
        packed = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        await self.stream.send_all(b"*%d\r\n%b" % (len(words), packed))
        data = b""
        while not whole(data):
            piece = await self.stream.receive_some(65536)
            if not piece:
                raise BenchError("redis hung up")
            data += piece
        if data.startswith(b"-"):
            raise BenchError(f"redis: {data.decode().strip()}")
        return data


def whole(data: bytes) -> bool:
    """Whether that is all of an answer."""
    return after(data, 0) is not None


def after(data: bytes, at: int) -> int | None:
    """Where the value that begins AT ends; None before it is there."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    kind, following = data[at : at + 1], end + 2
    if kind == b"$":
        size = int(data[at + 1 : end])
        following += size + 2 if size >= 0 else 0
        return following if following <= len(data) else None
    if kind == b"*":
        for _ in range(int(data[at + 1 : end])):
            reached = after(data, following)
            if reached is None:
                return None
            following = reached
    return following


async def bare(socket: str, many: int, seconds: float) -> Figures:
    async with AsyncExitStack() as stack:
        links = []
        for _ in range(many):
            stream = await stack.enter_async_context(await trio.open_unix_socket(socket))
            links.append(Bare(stream))
        kept = await links[0].ask(b"CONFIG", b"GET", b"appendfsync")
        if b"always" not in kept:
            raise BenchError(NOT_ALWAYS)
        await links[0].ask(b"XGROUP", b"CREATE", b"bench", b"g", b"0", b"MKSTREAM")

        async def send(n: int) -> None:
            link = links[n]
            while sent.on:
                since = Clock()
                await link.ask(b"XADD", b"bench", b"*", b"b", BODY)
                sent.note(since)

        async def receive(n: int) -> None:
            link, name = links[n], b"c%d" % n
            while got.on:
                since = Clock()
                said = await link.ask(
                    b"XREADGROUP", b"GROUP", b"g", name, b"COUNT", b"1", b"STREAMS", b"bench", b">"
                )
                if said.startswith((b"*-1", b"$-1")):
                    return
                # *1 *2 $5 bench *1 *2 $N ID …
                id = said.split(b"\r\n", 8)[7]
                if await link.ask(b"XACK", b"bench", b"g", id) != b":1\r\n":
                    raise BenchError(f"redis acknowledged no message {id!r}")
                got.note(since)

        sent = Meter(seconds)
        await side_by_side(many, send)
        sent.stop()
        same(int((await links[0].ask(b"XLEN", b"bench"))[1:]), len(sent.taken))
        got = Meter(seconds)
        await side_by_side(many, receive)
        got.stop()
        await links[0].ask(b"DEL", b"bench")
    return sent.figures("send") | got.figures("receive")


# JetStream


async def jetstream(url: str, many: int, seconds: float) -> Figures:
    import nats
    from nats.errors import TimeoutError as Empty

    link = await nats.connect(url)
    try:
        js = link.jetstream()
        await js.add_stream(name="bench", subjects=["bench"])

        async def send() -> None:
            while sent.on:
                since = Clock()
                await js.publish("bench", BODY)
                sent.note(since)

        async def receive(n: int) -> None:
            while got.on:
                since = Clock()
                try:
                    (message,) = await pulls[n].fetch(1, timeout=0.2)
                except Empty:
                    return
                await message.ack_sync()
                got.note(since)

        sent = Meter(seconds)
        await asyncio.gather(*(send() for _ in range(many)))
        sent.stop()
        same((await js.stream_info("bench")).state.messages, len(sent.taken))
        pulls = [await js.pull_subscribe("bench", "g") for _ in range(many)]
        got = Meter(seconds)
        await asyncio.gather(*(receive(n) for n in range(many)))
        got.stop()
        await js.delete_stream("bench")
    finally:
        await link.close()
    return sent.figures("send") | got.figures("receive")


# Storage


async def blobs(address: str, many: int, seconds: float, paths: list[str]) -> Figures:
    """Readers that open a blob, wait for its first bytes, and read the rest."""
    async with dial(address) as files:
        first = Meter(seconds)

        async def read(n: int) -> None:
            at = n
            while first.on:
                at += 1
                since = Clock()
                async with await files.open(paths[at % len(paths)]) as file:
                    if not await file.read(FIRST):
                        raise BenchError(f"{paths[at % len(paths)]} is empty")
                    first.note(since)
                    while await file.read(MIB):
                        pass

        await side_by_side(many, read)
    return first.figures("first")


async def sequential(address: str, seconds: float, path: str) -> Figures:
    """One reader, from the beginning to the end and again."""
    async with dial(address) as files, await files.open(path) as file:
        begun, done = Clock(), 0
        while (taken := Clock() - begun) < seconds:
            data = await file.read(MIB)
            done += len(data)
            if not data:
                if not file.position:
                    raise BenchError(f"{path} is empty")
                file.position = 0
    return {"mb_per_s": done / taken / 1e6}


def main(words: list[str]) -> Figures:
    side, address, many, seconds = words[0], words[1], int(words[2]), float(words[3])
    if side == "warren":
        return trio.run(warren, address, many, seconds, int(words[4]))
    if side == "sdk":
        return trio.run(sdk, address, many, seconds)
    if side == "bare":
        return trio.run(bare, address, many, seconds)
    if side == "blobs":
        return trio.run(blobs, address, many, seconds, words[4:])
    if side == "sequential":
        return trio.run(sequential, address, seconds, words[4])
    return asyncio.run({"redis": redis, "jetstream": jetstream}[side](address, many, seconds))


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1:])))
    except (BenchError, OSError) as error:
        sys.exit(str(error))
