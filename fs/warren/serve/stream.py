"""Serving one trio stream: a memory stream in tests, standard input and output, a machine's channel."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from warren.p9.codec import BadFrame
from warren.serve.connection import EMPTY, Connection
from warren.serve.export import Export
from warren.serve.pool import Pool

_PIECE: Final = 64 << 10  # sent with a deadline of its own: a slow line is no peer that does not read


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
                    batch = memoryview(b"".join(out))
                    out.clear()
                    for at in range(0, len(batch), _PIECE):
                        with trio.fail_after(export.limits.patience):
                            await stream.send_all(batch[at : at + _PIECE])
                sent.unpark_all()

        try:
            nursery.start_soon(_sending, send, conn, nursery.cancel_scope)
            half, begun, deadline = conn.half, 0, math.inf
            while True:
                if not half.partial:
                    deadline = math.inf
                elif half.begun != begun:
                    begun, deadline = half.begun, trio.current_time() + export.limits.patience
                lapse = trio.current_time() + max(0.0, conn.session.expires - time.time())
                with trio.move_on_at(min(deadline, lapse)) as late:
                    data = await stream.receive_some(65536)
                if ended := conn.session.lapsed(time.time()):
                    raise BadFrame(ended)
                if late.cancelled_caught:
                    raise BadFrame("a frame took too long to arrive")
                if not data:
                    break
                view = memoryview(data)
                while True:
                    conn.consume(view)
                    if half.out:
                        kick()
                    while sum(map(len, half.out)) > export.limits.unread:
                        await sent.park()
                    if not half.stalled:
                        break
                    view = EMPTY
        except (BadFrame, BufferError) as e:
            _record(conn, str(e))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            conn.close()
            nursery.cancel_scope.cancel()


async def _sending(work: Callable[[], Awaitable[None]], conn: Connection, scope: trio.CancelScope) -> None:
    """A peer that hangs up while we send ends the connection, and is no error of ours."""
    try:
        await work()
    except trio.TooSlowError:
        _record(conn, "replies were not read in time")
        scope.cancel()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        scope.cancel()


def _record(conn: Connection, why: str) -> None:
    conn.export.failed(conn.session, "connection", "-", 400, why, conn.export.new_trace())
