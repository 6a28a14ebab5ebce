"""libvirt, with which other tools of a host manage machines: its calls in threads, its events in trio.

    async with opened(address) as host:
        domain = await host.create(xml, uuid)      a machine, see `libvirt_domain`

Every call of libvirt blocks, some for as long as QEMU does not answer. Each runs in a thread of its own and
is given up after ten seconds (504); the thread ends when libvirt returns, at the latest when the machine
is gone. `create` and `destroy` alone are waited for to the end, since they decide what is left behind.

Events come from one more thread, which turns libvirt's loop as long as this process lives: the library has no
way to end it. A callback does nothing but hand a word over to trio.

A driver inside this process is opened once and stays open until the process ends: libvirt would add it to its
list of drivers at every opening, and the list is short.

libvirt prints what fails, besides raising it. Here it does not: what was raised says the same. Its log is
what `LIBVIRT_LOG_OUTPUTS` asks for, as in every program that uses it.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import Any, Final

import trio
from warren.boot.libvirt.child import adopting
from warren.boot.libvirt.domain import Domain, Happened
from warren.tree import Refused

PATIENCE: Final = 10.0
THREADS: Final = 8  # at a time, for one connection
PASSED_ON: Final = ("RESET", "JOB_STATUS_CHANGE")  # of QEMU's own; a guest can cause few of them
_INSTALL: Final = (
    "libvirt-python is not installed: pip install 'warren-9p[libvirt]', which compiles it "
    "with libvirt-dev, pkg-config and gcc"
)

# By libvirt's numbers.
_CODES: Final = {3: 405, 67: 405, 84: 405, 42: 409, 55: 409, 68: 504, 86: 504}

_kept: dict[str, Any] = {}  # connections to a driver inside this process
_opening = threading.Lock()


def lacking() -> str:
    """Why libvirt cannot be used at all; nothing if its library is there."""
    try:
        _library()
    except Refused as e:
        return str(e.detail)
    return ""


@cache
def _library() -> tuple[Any, Any]:
    """The library and its half for QEMU, the loop turning. That they are missing is not remembered."""
    # libvirt reads this once, as it is loaded; its default would be the standard error of this process.
    mine = "LIBVIRT_LOG_OUTPUTS" not in os.environ
    if mine:
        os.environ["LIBVIRT_LOG_OUTPUTS"] = f"4:file:{os.devnull}"
    try:
        import libvirt  # type: ignore[import-untyped, import-not-found, unused-ignore]
        import libvirt_qemu  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as e:
        raise Refused(503, _INSTALL if e.name == "libvirt" else f"libvirt cannot be loaded: {e}") from None
    except SystemError as e:  # what its C half makes of a bad LIBVIRT_LOG_… in the environment
        raise Refused(503, f"libvirt cannot be loaded: {e}; look at LIBVIRT_* in the environment") from None
    finally:
        if mine:
            del os.environ["LIBVIRT_LOG_OUTPUTS"]
    libvirt.registerErrorHandler(_silence, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn, args=(libvirt,), name="libvirt events", daemon=True).start()
    return libvirt, libvirt_qemu


def _silence(context: object, error: object) -> None:
    """What libvirt does with an error besides raising it."""


def _turn(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            # One callback or descriptor was bad. The next turn goes on without it.
            continue


def refusal(error: Any) -> Refused:
    """What libvirt said, as a refusal."""
    said = " ".join(str(error.get_error_message() or error).split())
    return Refused(_CODES.get(error.get_error_code(), 502), f"libvirt says: {said}")


class Host:
    """A connection. Made by `opened`."""

    def __init__(self, connection: Any, patience: float) -> None:
        self._libvirt, self.qemu = _library()
        self.connection, self.patience = connection, patience
        self._token = trio.lowlevel.current_trio_token()
        self._threads = trio.CapacityLimiter(THREADS)
        self._domains: dict[str, Domain] = {}
        self._watches: list[tuple[Callable[..., Any], int]] = []

    async def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call. Cancelled, or given up after a while (504): it was done, will be, or not."""
        with trio.move_on_after(self.patience):
            return await self.thread(function, *arguments, abandon=True)
        raise Refused(504, f"libvirt did not answer {what!r} within {self.patience:g} s")

    async def thread(self, function: Callable[..., Any], *arguments: Any, abandon: bool) -> Any:
        """One call, waited for to its end unless it may be ABANDONed."""
        # What decides about a machine's life has room, however many calls hang.
        limiter = self._threads if abandon else None
        try:
            return await trio.to_thread.run_sync(
                partial(function, *arguments), abandon_on_cancel=abandon, limiter=limiter
            )
        except self._libvirt.libvirtError as e:
            raise refusal(e) from None

    async def create(self, xml: str, uuid: str) -> Domain:
        """A machine from its XML, which libvirt forgets when it ends; paused, if QEMU runs it. UUID is the
        one in the XML, as str() spells it. Not to be cancelled: it is returned, or there is none."""
        flags = self._libvirt.VIR_DOMAIN_START_PAUSED if self.connection.getType() == "QEMU" else 0
        domain = self._domains[uuid] = Domain(self, uuid)
        try:
            with trio.CancelScope(shield=True):
                made = await self.thread(adopting, self.connection.createXML, xml, flags, abandon=False)
        except BaseException:
            self._domains.pop(uuid, None)
            raise
        domain.known = made
        return domain

    def _watch(self) -> None:
        lib, at = self._libvirt, self.connection
        number = at.domainEventRegisterAny(None, lib.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._changed, None)
        self._watches.append((at.domainEventDeregisterAny, number))
        if at.getType() == "QEMU":
            names, pattern = "|".join(PASSED_ON), 1
            number = self.qemu.qemuMonitorEventRegister(at, None, f"^({names})$", self._said, None, pattern)
            self._watches.append((partial(self.qemu.qemuMonitorEventDeregister, at), number))

    def _changed(self, connection: Any, domain: Any, event: int, detail: int, opaque: object) -> None:
        self._tell(domain.UUIDString(), Happened.by(event, detail))

    def _said(
        self, connection: Any, domain: Any, event: str, seconds: int, micros: int, data: str, opaque: object
    ) -> None:
        told = json.dumps(json.loads(data or "{}"), separators=(",", ":"), sort_keys=True)
        self._tell(domain.UUIDString(), Happened(event, told))

    def _tell(self, uuid: str, what: Happened) -> None:
        try:
            self._token.run_sync_soon(self._take, uuid, what)
        except trio.RunFinishedError:
            pass  # a last event, after those who would have cared

    def _take(self, uuid: str, what: Happened) -> None:
        if domain := self._domains.get(uuid):
            domain.take(what)

    def _leave(self) -> None:
        for domain in self._domains.values():
            domain.known = None  # a reference to it would keep the connection
        for stop, number in self._watches:
            with suppress(self._libvirt.libvirtError):  # the daemon went first
                stop(number)


@asynccontextmanager
async def opened(address: str, patience: float = PATIENCE) -> AsyncIterator[Host]:
    """A connection to the driver at ADDRESS (libvirt calls it a URI), while the block runs. Raises Refused:
    503 if libvirt is not here, else with its words. Cancelled leaves none."""
    libvirt, _ = _library()
    connection: Any = None
    inside = "/embed?" in address
    try:
        with trio.CancelScope(shield=True):
            connection = await trio.to_thread.run_sync(_inside if inside else libvirt.open, address)
            host = Host(connection, patience)
            await trio.to_thread.run_sync(host._watch)
    except libvirt.libvirtError as e:
        if connection is not None and not inside:
            connection.close()
        raise refusal(e) from None
    try:
        yield host
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(host._leave)
            if not inside:
                with suppress(libvirt.libvirtError):  # the daemon went first, and the connection with it
                    await trio.to_thread.run_sync(connection.close)


def _inside(address: str) -> Any:
    with _opening:
        if address not in _kept:
            connection = _library()[0].open(address)
            if not _kept:
                atexit.register(_close, os.getpid())
            _kept[address] = connection
        return _kept[address]


def _close(pid: int) -> None:
    """As the process ends, while libvirt is whole: later the interpreter takes its modules apart, and a
    connection that is still open complains. A fork has not got its parent's driver."""
    if pid == os.getpid():
        for connection in _kept.values():
            with suppress(_library()[0].libvirtError):
                connection.close()
        _kept.clear()


__all__ = ["Host", "lacking", "opened", "refusal"]
