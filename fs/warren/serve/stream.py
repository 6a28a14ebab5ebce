"""Serving one trio stream: a memory stream in tests, standard input and output, a machine's channel."""

import math

import trio
from warren.p9.codec import BadFrame
from warren.serve.connection import Connection
from warren.serve.export import Export
from warren.serve.pool import Pool


async def serve_stream(
    export: Export, stream: trio.abc.Stream, subject: str, pool: Pool | None = None
) -> None:
    """Serve one connection until the peer closes it. Cancelled lets go of everything it had."""
    async with trio.open_nursery() as nursery:
        news = trio.Event()
        sent = trio.lowlevel.ParkingLot()

        def kick() -> None:
            news.set()

        conn = Connection(export, subject, pool or Pool(export.limits.buffers), nursery.start_soon, kick)

        async def send() -> None:
            nonlocal news
            out = conn.half.out
            while True:
                await news.wait()
                news = trio.Event()
                while out:
                    batch = out[:]
                    out.clear()
                    await stream.send_all(b"".join(batch))
                sent.unpark_all()

        try:
            nursery.start_soon(_quietly, send, nursery.cancel_scope)
            while True:
                patience = export.limits.patience if conn.half.partial else math.inf
                with trio.move_on_after(patience) as late:
                    data = await stream.receive_some(65536)
                if late.cancelled_caught:
                    why = "a frame took too long to arrive"
                elif data:
                    why = ""
                    try:
                        conn.consume(memoryview(data))
                    except (BadFrame, BufferError) as e:
                        why = str(e)
                else:
                    break
                if conn.half.out:
                    kick()
                if why:
                    export.failed(conn.session, "connection", "-", 400, why, export.new_trace())
                    break
                while sum(map(len, conn.half.out)) > export.limits.unread:
                    await sent.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            conn.close()
            nursery.cancel_scope.cancel()


async def _quietly(work: object, scope: trio.CancelScope) -> None:
    """A peer that hangs up while we send ends the connection, and is no error of ours."""
    try:
        await work()  # type: ignore[operator]
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        scope.cancel()
