"""Requests that are decided and answered later, without a task: what a client sees of it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.p9 import messages as p9
from warren.p9.fields import NOTAG
from warren.serve.export import Limits
from warren.traces.audit import AuditMemory
from warren.tree import Bytes, Caller, Dir, Handle, Maybe, Node, Refused
from warren.tree.promise import Promise

from tests.serve.test_flush import shown
from tests.wire import O_RDWR, Service, Wire, served


class Ledger(Node):
    """A file whose writes are decided at once, and answered when the test says."""

    mode = 0o600

    def __init__(self) -> None:
        self.owed: list[Promise] = []
        self.wrote: list[bytes] = []

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return LedgerHandle(self)


class LedgerHandle(Handle):
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def write(self, offset: int, data: Bytes) -> Maybe[int]:
        self.ledger.wrote.append(bytes(data))
        self.ledger.owed.append(Promise())
        return self.ledger.owed[-1]

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        self.ledger.owed.append(Promise())
        return self.ledger.owed[-1]


async def opened(service: Service, version: str = p9.DOTL) -> Wire:
    wire = await service.dial(version)
    await wire.open("ledger", 1, O_RDWR)
    return wire


@pytest.mark.parametrize("version", p9.ALL)
async def test_replies_come_as_promises_are_kept_and_other_requests_go_on(version: str) -> None:
    ledger = Ledger()
    async with served(Dir({"ledger": ledger})) as service:
        wire = await opened(service, version)
        await wire.send(*[p9.Twrite(1, 0, b"%d" % n) for n in range(3)], tag=5)
        await wait_all_tasks_blocked()
        assert ledger.wrote == [b"0", b"1", b"2"]  # in the order in which they were written
        ledger.owed[1].keep(1)
        assert shown(await wire.replies(1)) == [("Rwrite", 6)]
        ledger.owed[2].fail(Refused(507, "the disk is full"))
        ledger.owed[0].keep(1)
        kinds = shown(await wire.replies(2))
        assert kinds[0][1] == 7
        assert kinds[0][0] in ("Rlerror", "Rerror")
        assert kinds[1] == ("Rwrite", 5)
        assert any("507 " in text for text in service.errors())
        assert service.export.statistics()["outstanding"] == 0
        await wire.send(p9.Tread(1, 0, 100), tag=9)
        await wait_all_tasks_blocked()
        ledger.owed[3].keep(b"read")
        reply = await wire.reply()
        assert isinstance(reply, p9.Rread)
        assert bytes(reply.data) == b"read"


async def test_a_flush_waits_for_what_was_decided_and_comes_behind_its_reply() -> None:
    ledger = Ledger()
    async with served(Dir({"ledger": ledger})) as service:
        wire = await opened(service)
        await wire.send(p9.Twrite(1, 0, b"x"), p9.Tflush(5), p9.Tflush(5), tag=5)
        await wait_all_tasks_blocked()
        assert service.export.statistics()["outstanding"] == 3
        ledger.owed[0].keep(1)
        assert shown(await wire.replies(3)) == [("Rwrite", 5), ("Rflush", 6), ("Rflush", 7)]
        await wire.send(p9.Twrite(1, 0, b"y"), tag=5)  # the tag is free again
        await wait_all_tasks_blocked()
        ledger.owed[1].keep(1)
        assert isinstance(await wire.reply(), p9.Rwrite)


async def test_a_clunk_does_not_wait_and_does_not_undo() -> None:
    ledger = Ledger()
    async with served(Dir({"ledger": ledger})) as service:
        wire = await opened(service)
        await wire.send(p9.Twrite(1, 0, b"x"), p9.Tclunk(1), tag=5)
        assert isinstance(await wire.reply(), p9.Rclunk)
        ledger.owed[0].keep(1)
        assert isinstance(await wire.reply(), p9.Rwrite)


async def test_what_is_kept_before_anybody_waits_to_send_it_is_sent_at_once() -> None:
    class Quick(LedgerHandle):
        def write(self, offset: int, data: Bytes) -> Maybe[int]:
            owed = super().write(offset, data)
            assert isinstance(owed, Promise)
            if data == b"soon":
                trio.lowlevel.spawn_system_task(keep, owed)
            return owed

    async def keep(owed: Promise) -> None:
        owed.keep(4)

    class Desk(Ledger):
        def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
            return Quick(self)

    desk = Desk()
    async with served(Dir({"ledger": desk})) as service:
        wire = await opened(service)
        for turn in range(20):  # which task has its turn first is chance
            await wire.send(p9.Twrite(1, 0, b"soon"), p9.Twrite(1, 0, b"late"), tag=5)
            await wait_all_tasks_blocked()
            assert not desk.owed[-1].settled
            with trio.move_on_after(1):
                assert shown(await wire.replies(1)) == [("Rwrite", 5)], turn
                desk.owed[-1].keep(4)
                assert shown(await wire.replies(1)) == [("Rwrite", 6)], turn
                continue
            raise AssertionError(f"the reply was kept back in turn {turn}")


@pytest.mark.parametrize("ending", ["clunk", "version", "hangup"])
async def test_what_is_done_after_its_fid_is_gone_is_still_in_the_audit(
    autojump_clock: MockClock, ending: str
) -> None:
    ledger = Ledger()
    async with served(Dir({"ledger": ledger})) as service:
        wire = await opened(service)
        await wire.send(p9.Twrite(1, 0, b"four"), p9.Twrite(1, 0, b"never"), tag=5)
        await wait_all_tasks_blocked()
        if ending == "clunk":
            assert isinstance(await wire.ask(p9.Tclunk(1), tag=9), p9.Rclunk)
        elif ending == "version":
            await wire.send(p9.Tversion(65536, p9.DOTL), tag=NOTAG)
        else:
            await wire.stream.aclose()
        await wait_all_tasks_blocked()
        ledger.owed[1].fail(Refused(507, "full"))
        ledger.owed[0].keep(4)
        audit = service.export.audit
        assert isinstance(audit, AuditMemory)
        wrote = [(line.path, line.detail) for line in audit.lines if line.op == "wrote"]
        assert wrote == [("/ledger", "bytes=4")]


async def test_a_new_version_forgets_what_was_owed_and_the_promise_is_kept_in_vain() -> None:
    ledger = Ledger()
    async with served(Dir({"ledger": ledger})) as service:
        wire = await opened(service)
        await wire.send(p9.Twrite(1, 0, b"x"), tag=5)
        await wire.send(p9.Tversion(65536, p9.DOTL), tag=NOTAG)
        assert isinstance(await wire.reply(), p9.Rversion)
        ledger.owed[0].keep(1)
        await wire.attach()
        await wire.open("ledger", 1, O_RDWR)
        await wire.send(p9.Twrite(1, 0, b"y"), tag=5)
        await wait_all_tasks_blocked()
        ledger.owed[1].fail(Refused(409, "no"))
        assert shown(await wire.replies(1)) == [("Rlerror", 5)]


async def test_what_is_owed_to_one_who_left_harms_nobody(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with served(Dir({"ledger": ledger})) as service:
        for _ in range(2):
            wire = await opened(service)
            await wire.send(p9.Twrite(1, 0, b"x"), tag=5)
            await wait_all_tasks_blocked()
            await wire.stream.aclose()
            await wait_all_tasks_blocked()
        assert service.export.statistics()["sessions"] == 0
        ledger.owed[0].keep(1)
        ledger.owed[1].fail(Refused(507, "full"))
        wire = await service.dial()
        assert await wire.ask(p9.Tgetattr(0, 0x7FF))


async def test_no_more_is_owed_than_may_run_and_wait() -> None:
    ledger = Ledger()
    limits = Limits(running=2, waiting=1)
    async with served(Dir({"ledger": ledger}), limits=limits) as service:
        wire = await opened(service)
        await wire.send(*[p9.Twrite(1, 0, b"%d" % n) for n in range(5)], tag=5)
        assert shown(await wire.replies(2)) == [("Rlerror", 8), ("Rlerror", 9)]
        assert all("429 " in text and "retry_after=1" in text for text in service.errors())
        assert ledger.wrote == [b"0", b"1", b"2"]
        await wire.send(p9.Tflush(5), tag=20)  # which never waits for a place
        await wait_all_tasks_blocked()
        for owed in ledger.owed:
            owed.keep(1)
        written = [("Rwrite", tag) for tag in (5, 6, 7)]
        assert sorted(shown(await wire.replies(4))) == [("Rflush", 20), *written]
        assert isinstance(await wire.ask(p9.Tflush(99)), p9.Rflush)
        await wire.send(p9.Twrite(1, 0, b"again"), tag=5)
        await wait_all_tasks_blocked()
        ledger.owed[-1].keep(5)
        assert isinstance(await wire.reply(), p9.Rwrite)


async def test_what_is_settled_already_is_answered_in_its_turn() -> None:
    class Prompt(LedgerHandle):
        def write(self, offset: int, data: Bytes) -> Maybe[int]:
            owed = super().write(offset, data)
            assert isinstance(owed, Promise)
            owed.fail(Refused(409, "no")) if data == b"bad" else owed.keep(len(data))
            return owed

    class Desk(Ledger):
        def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
            return Prompt(self)

    async with served(Dir({"ledger": Desk()})) as service:
        wire = await opened(service)
        asked = [p9.Twrite(1, 0, b"x"), p9.Twrite(1, 0, b"bad"), p9.Tgetattr(1, 0x7FF), p9.Twrite(1, 0, b"y")]
        await wire.send(*asked, tag=5)
        assert shown(await wire.replies(4)) == [("Rwrite", 5), ("Rlerror", 6), ("Rgetattr", 7), ("Rwrite", 8)]
