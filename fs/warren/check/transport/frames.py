"""What a transport does with bytes, seen from a bare channel."""

import os

import trio
from warren.check.transport.place import NUMBERS, Place, Raw, noise
from warren.check.tree.place import holds, same
from warren.p9.client import Call, State
from warren.p9.messages import ALL, PLAIN, Rread, Rversion, Tlopen, Topen, Tread, Twalk, Twrite

READS, READ = 64, 256 << 10


def _open(raw: Raw, root: int, path: str, flags: int = os.O_RDONLY) -> tuple[int, list[Call]]:
    fid = raw.half.fids.take()
    walk = raw.ask(Twalk, root, fid, path.strip("/").split("/"))
    return fid, [walk, raw.ask(Topen if raw.half.version == PLAIN else Tlopen, fid, flags)]


async def trickle(at: Place) -> None:
    """Frames that arrive one byte at a time, or many in one segment, are answered alike"""
    assert at.channel is not None
    async with at.yard() as (yard, _):
        for version in ALL:
            for piece in (1, 3, 0):
                async with at.channel(yard.export) as stream:
                    raw = Raw(stream, version)
                    root = await raw.hello(piece)
                    reads, all_ = [], []
                    for n in range(6):
                        fid, calls = _open(raw, root, f"/numbers/{n}")
                        reads.append(raw.ask(Tread, fid, 0, 100))
                        all_ += [*calls, reads[-1]]
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(raw.send, piece)
                        await raw.settle(*all_)
                    for n, call in enumerate(reads):
                        reply = call.reply
                        says = bytes(reply.data) if isinstance(reply, Rread) else repr(reply)
                        same(says, f"{n}\n".encode(), f"/numbers/{n}",
                             f"the answer in {version} to frames of {piece or 'any'} bytes")  # fmt: skip


async def clamped(at: Place) -> None:
    """The msize that was agreed on is the smaller one, and a larger frame ends the connection"""
    assert at.channel is not None
    async with at.yard() as (yard, _):
        for wanted in (256, 8192, 1 << 20, 1 << 31):
            async with at.channel(yard.export) as stream:
                raw = Raw(stream, msize=wanted)
                version = raw.half.begin()
                await raw.send()
                await raw.settle(version)
                reply = version.reply
                assert isinstance(reply, Rversion)
                same(reply.msize, min(wanted, 1 << 20), "/", f"msize in answer to {wanted}")
                await stream.send_all((reply.msize + 1).to_bytes(4, "little") + b"\x6e\0\0" + bytes(64))
                try:
                    rest = await stream.receive_some()
                except trio.BrokenResourceError:
                    rest = b""
                same(bytes(rest), b"", "/", f"the answer to a frame of {reply.msize + 1} bytes")


async def silent(at: Place) -> None:
    """A client that does not read stalls only itself, and loses nothing when it reads at last"""
    assert at.channel is not None
    async with at.yard() as (yard, files):
        yard.bulk.data = bytearray(noise(5))
        async with at.channel(yard.export) as stream:
            raw = Raw(stream)
            root = await raw.hello()
            fid, opening = _open(raw, root, "/bulk")
            await raw.send()
            await raw.settle(*opening)
            reads = [raw.ask(Tread, fid, n * 997, READ) for n in range(READS)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raw.send)
                for n in range(NUMBERS):
                    same(await files.read(f"/numbers/{n}"), f"{n}\n".encode(), f"/numbers/{n}", "its value")
                await raw.settle(*reads)
            for n, call in enumerate(reads):
                reply = call.reply
                good = (
                    isinstance(reply, Rread) and bytes(reply.data) == yard.bulk.data[n * 997 : n * 997 + READ]
                )
                holds(good, "/bulk", f"read {n} of a client that was silent brought something else")


async def torn(at: Place) -> None:
    """Of a frame that is cut off nothing happens, and no other client notices"""
    assert at.channel is not None
    async with at.yard() as (yard, files):
        await files.write("/bulk", b"as it was")
        async with at.channel(yard.export) as stream:
            raw = Raw(stream)
            root = await raw.hello()
            fid, opening = _open(raw, root, "/bulk", os.O_RDWR)
            _, more = _open(raw, root, "/leaving")
            await raw.send()
            await raw.settle(*opening, *more)
            raw.ask(Twrite, fid, 0, noise(6, 100_000))
            await raw.send(keep=1)
        await yard.until(lambda: yard.leaving.left == 1)
        same(await files.read("/bulk"), b"as it was", "/bulk", "what a write without its last byte left")


async def crossed(at: Place) -> None:
    """A read and its flush in one segment are both settled, and no record is taken"""
    assert at.channel is not None
    async with at.yard() as (yard, _), at.channel(yard.export) as stream:
        raw = Raw(stream)
        root = await raw.hello()
        fid, opening = _open(raw, root, "/queue", os.O_RDONLY | 0o4000)
        await raw.send()
        await raw.settle(*opening)
        for n in range(8):
            read = raw.ask(Tread, fid, 0, 100)
            raw.half.flush(read)
            await raw.send()
            await raw.settle(read)
            same(read.state, State.FLUSHED, "/queue", "what became of a read flushed in the same segment")
            yard.queue.put(b"%d" % n)
            read = raw.ask(Tread, fid, 0, 100)
            await raw.send()
            await raw.settle(read)
            assert isinstance(read.reply, Rread)
            same(bytes(read.reply.data), b"%d" % n, "/queue", "the record after a flushed read")


CHECKS = (trickle, clamped, silent, torn, crossed)
