"""qemu.qmp, the client of QEMU's own project, as `qmp` uses it; it runs in asyncio (see `tree.loop`).

It is the one door to that package, which only some installations have: `qmp` imports this module when the
first machine starts, and says what to install if it cannot.

What is narrower here than there: events go to whoever made the client and are kept nowhere else; an error
without a number, which is QEMU's parser's, ends nothing; a command is not sent while bytes of the one before
still wait for QEMU; and what a command raises is one of two things.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)


class Client(QMPClient):
    """One connection. HAPPENED is told each event; a message has at most LONGEST bytes."""

    def __init__(self, longest: int, happened: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(readbuflen=longest)
        self.happened = happened

    async def meet(self, end: socket.socket) -> Mapping[str, Any]:
        """Be greeted over END, which is the client's from now on, and greet. Returns what QEMU says it is.

        Raises ConnectionError if QEMU ends instead, ValueError if it says something else.
        """
        try:
            await self.connect(end)
        except ConnectError as e:
            if isinstance(e.exc, (EOFError, OSError)):
                raise ConnectionError(str(e)) from None
            raise ValueError(str(e)) from None
        except (EOFError, OSError, AssertionError) as e:
            # Who is cancelled here hears of the end instead, if that has come; and the package takes for
            # granted that nobody ends as soon as all is agreed.
            raise ConnectionError(str(e)) from None
        except QMPError as e:
            raise ValueError(str(e)) from None
        return self.greeting.QMP.version if self.greeting is not None else {}

    async def ask(self, asked: Mapping[str, object], fd: int = -1) -> Mapping[str, Any]:
        """One command, and its answer as it came; FD goes along. One at a time.

        Raises ConnectionError if QEMU ends before it answers, ValueError if what it answers is no answer.
        """
        try:
            if self._writer is not None:
                await self._writer.drain()
            if fd >= 0:
                self.send_fd_scm(fd)
            return {"return": await self.execute_msg(Message(asked))}
        except ExecuteError as e:
            return e.received
        except (ExecInterruptedError, StateError, OSError) as e:
            raise ConnectionError(str(e)) from None
        except QMPError as e:
            raise ValueError(str(e)) from None

    async def lasts(self) -> None:
        """Return when the connection is about to be no more."""
        while self.runstate == Runstate.RUNNING:
            await self.runstate_changed()

    async def part(self) -> bool:
        """End it now, whatever is still on its way. Whether all that QEMU said made sense."""
        if self._writer is not None:
            self._writer.transport.abort()
        try:
            if self.runstate != Runstate.IDLE:
                await self.disconnect()  # raises what the connection ended of
        except (EOFError, OSError):
            pass
        except Exception:  # also whatever a parser makes of bytes that nobody should send
            return False
        return True

    async def _establish_session(self) -> None:
        assert self._writer is not None
        self._writer.transport.set_write_buffer_limits(high=0)  # so `drain` waits until nothing is left
        await super()._establish_session()

    async def _on_message(self, message: Message) -> None:
        if "event" in message:
            self.happened(message)
        elif isinstance(message.get("id"), str):
            await super()._on_message(message)

    # These two would write each message out once more, for a log that nobody reads.

    def _cb_outbound(self, message: Message) -> Message:
        return message

    def _cb_inbound(self, message: Message) -> Message:
        return message
