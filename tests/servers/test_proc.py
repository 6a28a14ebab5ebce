"""/proc: what a role is doing, and the table of its states."""

import itertools
import os
from collections.abc import Iterator
from contextlib import nullcontext
from errno import EBUSY, EDQUOT, EEXIST, EINVAL

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.check.tree import check_tree
from warren.p9.messages import DOTL, Rflush, Rlcreate, Tflush, Tlcreate, Tlopen, Tmkdir, Tread
from warren.serve.export import Limits
from warren.servers.demo import Demo
from warren.servers.proc import Lifecycle, Proc
from warren.servers.proc.lifecycle import FROM, STATES
from warren.servers.ram import Ram
from warren.tree import Dir, Refused
from warren.tree.ports import Lifecycle as LifecyclePort
from warren.tree.ports import Pressure, Sessions

from tests.servers.clock import BEGAN, StillClock, TrioClock
from tests.servers.ports import Crowd
from tests.servers.reach import attributes_of, files_of, reached
from tests.wire import O_RDWR, RefusedBy, export_of, served

VERBS = ("cordon", "drain", "quiesce", "resume", "reset")


def proc(life: Lifecycle | None = None, sessions: Sessions | None = None) -> Proc:
    life = life or up(Lifecycle(StillClock()))
    return Proc(life, ns=lambda: "mount $self /", boot=lambda: {"role": "R", "pid": 7}, sessions=sessions)


def up(life: Lifecycle) -> Lifecycle:
    life.ready()
    return life


def in_state(state: str, **given: object) -> Lifecycle:
    """A lifecycle that came to STATE as one does."""
    life = Lifecycle(StillClock(), **given)  # type: ignore[arg-type]
    if state != "BOOTING":
        life.ready()
    if state == "DEGRADED":
        life.degrade("queen", "is away")
    if state in ("DRAINING", "QUIESCED"):
        life.cordon("t")
    if state == "QUIESCED":
        life.quiesce("t")
    if state == "OFFLINE":
        life.offline()
    assert life.state == state
    return life


async def do(life: Lifecycle, verb: str) -> None:
    done = getattr(life, verb)("ann")
    if done is not None:
        await done


# The tree


async def test_it_is_a_tree(autojump_clock: MockClock) -> None:
    await check_tree(lambda: nullcontext(proc(sessions=Crowd())))
    await check_tree(lambda: nullcontext(proc()))


async def test_it_tells_what_the_role_was_given(autojump_clock: MockClock) -> None:
    async with files_of(proc(sessions=Crowd())) as files:
        assert await files.read("/ns") == b"mount $self /\n"
        assert await files.read("/boot") == b"role=R\npid=7\n"
        assert await files.read("/lifecycle/state") == b"ONLINE\n"
        assert await files.read("/lifecycle/reason") == b"ready\n"
        assert float(await files.read("/lifecycle/since")) == BEGAN
        assert await files.read("/9p/outstanding") == b"2\n"
        assert await files.read("/9p/flushed") == b"9\n"
        assert [d.name for d in await files.readdir("/9p/session")] == ["3", "17"]
        assert await files.read("/9p/session/3/owner") == b"local\n"
        assert await files.read("/9p/session/3/ops") == b"100\n"
        assert await files.read("/9p/session/3/bytes") == b"sent=2000 written=30\n"
        first, second = (await files.read("/9p/sessions")).decode().splitlines()
        assert first.startswith("number=3 subject=local state=attached dialect=9P2000.L fids=4")
        assert "subject='spiffe://hive/user/ann via=x'" in second
        assert [await files.read(f"/pressure/{name}") for name in Pressure._fields] == [
            b"1\n", b"2\n", b"3\n", b"4\n",
        ]  # fmt: skip
        said = (await files.read("/metrics")).decode()
        assert 'warren_pressure_total{kind="cut"} 3\n' in said
        assert 'warren_lifecycle_state{state="ONLINE"} 1\n' in said
        assert "warren_operations_total 101\n" in said
        for name in ("1", "03", "3x", "x", "-3", "\N{SUPERSCRIPT THREE}"):
            assert not await files.walk_exists(f"/9p/session/{name}"), name


async def test_sessions_are_those_of_the_export_that_serves_it() -> None:
    tree = proc()
    export = export_of(tree)
    tree.sessions = export
    async with reached(export, "ann") as one:
        async with reached(export, "bob") as two:
            mine, others = [d.name for d in await one.readdir("/9p/session")]
            assert await one.read(f"/9p/session/{mine}/owner") == b"ann\n"
            assert await two.read(f"/9p/session/{others}/owner") == b"bob\n"
            assert await one.read(f"/9p/session/{others}/state") == b"attached\n"
            held = await one.open(f"/9p/session/{others}/state")
            ops, sent = f"/9p/session/{others}/ops", f"/9p/session/{others}/bytes"
            before = int(await one.read(ops)), int(attributes_of(await one.read(sent))["sent"])
            await two.read("/ns")
            after = int(await one.read(ops)), int(attributes_of(await one.read(sent))["sent"])
            assert after[0] > before[0]
            assert after[1] > before[1]
            served_so_far = export.statistics()["operations"]
        with trio.fail_after(5):
            while await one.walk_exists(f"/9p/session/{others}"):
                await trio.lowlevel.checkpoint()
        assert await held.pread(10, 0) == b"gone\n"
        await held.close()
        assert export.statistics()["operations"] > served_so_far, "operations of the gone count on"


async def test_bytes_that_were_written_count_while_the_file_is_open_and_after() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("scratch", 1, O_RDWR)
        await wire.write(1, b"x" * 100)
        [now] = service.export.conversations()
        assert now.written == 100
        await wire.clunk(1)
        [now] = service.export.conversations()
        assert (now.written, now.fids, now.dialect) == (100, 1, DOTL)
        assert service.export.conversation(now.number) == now
        assert service.export.conversation(now.number + 1) is None


async def test_pressure_is_counted_by_its_class() -> None:
    async with served(Demo(), ["any read /**"]) as service:
        wire = await service.dial()
        with pytest.raises(RefusedBy):
            await wire.open("scratch", 1, O_RDWR)
        assert service.export.pressure() == Pressure(policy=1)
        await wire.open("events", 2)
        await wire.send(Tread(2, 0, 100), tag=5)
        await wait_all_tasks_blocked()
        assert service.export.statistics()["outstanding"] == 1
        await wire.send(Tflush(5), tag=6)
        assert isinstance(await wire.reply(), Rflush)
        assert service.export.statistics()["flushed"] == 1
        await wire.send_raw(b"\xff" * 64)  # no frame is that large
        await wait_all_tasks_blocked()
        assert service.export.pressure() == Pressure(policy=1, cut=1)
        assert service.export.statistics()["sessions"] == 0


async def test_too_much_at_once_is_busy_and_no_room_is_quota() -> None:
    root = Dir({"demo": Demo(), "ram": Ram(size=4096)})
    async with served(root, limits=Limits(parked=1)) as service:
        wire = await service.dial()
        await wire.open("demo/events", 1)
        await wire.send(Tread(1, 0, 100), tag=5)
        with pytest.raises(RefusedBy):
            await wire.read(1)
        assert service.export.pressure() == Pressure(busy=1)
        await wire.walk("ram", 2)
        await wire.want(Rlcreate, Tlcreate(2, "file", 1, 0o644, 0))
        with pytest.raises(RefusedBy):
            await wire.write(2, bytes(5000))
        assert service.export.pressure() == Pressure(busy=1, quota=1)
        [session] = service.export.sessions
        session.refusal(Tread(1, 0, 1), Refused(429, "the token's bytes are used up", errno=EDQUOT), "/x")
        service.export.refused_connection("4096 connections are open, the limit")
        assert service.export.pressure() == Pressure(busy=2, quota=2)


# The table


@pytest.mark.parametrize(("state", "verb"), list(itertools.product(STATES, VERBS)))
async def test_an_edge_is_taken_or_refused_as_the_table_says(state: str, verb: str) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    life = in_state(state, tell=lambda kind, **values: told.append((kind, values)))
    told.clear()
    leads = {"cordon": "DRAINING", "drain": "QUIESCED", "quiesce": "QUIESCED"}
    back = "DEGRADED" if state == "DEGRADED" else "ONLINE"
    if state in FROM[verb]:
        await do(life, verb)
        assert life.state == leads.get(verb, back)
        assert told[0][0] == "lifecycle_state"
        return
    with pytest.raises(Refused) as caught:
        await do(life, verb)
    assert (caught.value.code, caught.value.errno) == (409, EEXIST)
    assert state in caught.value.detail
    for other in VERBS:
        assert (other in caught.value.detail) == (state in FROM[other] or other == verb)
    assert life.state == state
    assert told == [
        ("lifecycle_transition_refused",
         {"verb": verb, "state": state, "by": "ann", "why": f"the role is {state}"}),
    ]  # fmt: skip


async def test_quiesce_is_refused_while_something_is_held_and_drain_waits(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    held = 2
    life = up(Lifecycle(TrioClock(), held=lambda: held))
    nursery.start_soon(life.keep)
    life.cordon("ann")
    with pytest.raises(Refused, match="2 things are held"):
        life.quiesce("ann")
    await trio.sleep(10)
    assert life.state == "DRAINING", "a cordon alone never quiesces"
    life.drain("ann")
    await trio.sleep(10)
    assert life.state == "DRAINING"
    held = 0
    with trio.fail_after(1.1):
        assert await life.changed() == "QUIESCED"
    life.resume("ann")
    life.drain("ann")
    assert life.state == "QUIESCED", "with nothing held there is nothing to wait for"


async def test_a_resumed_drain_is_forgotten(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    held = 1
    life = up(Lifecycle(TrioClock(), held=lambda: held))
    nursery.start_soon(life.keep)
    life.drain("ann")
    life.resume("ann")
    life.cordon("ann")
    held = 0
    life.let_go()
    await trio.sleep(10)
    assert life.state == "DRAINING"


def test_several_reasons_stand_at_once_and_each_is_recovered_alone() -> None:
    life = Lifecycle(StillClock())
    life.degrade("queen", "is away")
    assert life.state == "BOOTING"
    life.ready()
    assert life.state == "DEGRADED"
    life.degrade("disk", "is full")
    assert life.reason == "queen: is away\ndisk: is full"
    life.recover("queen")
    life.recover("nothing")
    assert (life.state, life.reason) == ("DEGRADED", "disk: is full")
    life.cordon("ann")
    life.resume("ann")
    assert life.state == "DEGRADED", "a reason is kept while the role drains"
    life.cordon("ann")
    life.recover("disk")
    assert life.state == "DRAINING"
    life.resume("ann")
    assert life.state == "ONLINE"
    for n in range(100):
        life.degrade(str(n))
    told = life.events.seq
    life.degrade("100")
    assert (len(life.reasons), life.events.seq) == (33, told)


async def test_a_reset_reads_the_role_again_and_a_bad_one_leaves_it_degraded() -> None:
    states: list[str] = []
    bad: Exception | None = None

    async def reread() -> None:
        states.append(life.state)
        if bad is not None:
            raise bad

    life = up(Lifecycle(StillClock(), reread=reread))
    await life.reset("ann")
    assert (states, life.state) == (["BOOTING"], "ONLINE")
    bad = ValueError("r.role:3: no such right\nr.role:9: no such server")
    with pytest.raises(Refused, match=r"r\.role:3: no such right; r\.role:9") as caught:
        await life.reset("ann")
    assert caught.value.code == 422
    assert life.state == "DEGRADED"
    assert life.reason == "reset: r.role:3: no such right; r.role:9: no such server"
    bad = None
    await life.reset("ann")
    assert life.state == "ONLINE"


async def test_a_cancelled_reset_leaves_the_role_degraded_and_not_booting(autojump_clock: MockClock) -> None:
    life = up(Lifecycle(TrioClock(), reread=trio.sleep_forever))
    with trio.move_on_after(1):
        await life.reset("ann")
    assert (life.state, life.reason) == ("DEGRADED", "reset: interrupted")


async def test_a_role_that_ends_during_its_reset_stays_offline(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    go = trio.Event()
    life = up(Lifecycle(TrioClock(), reread=go.wait))
    nursery.start_soon(life.reset, "ann")
    await wait_all_tasks_blocked()
    life.offline()
    go.set()
    await wait_all_tasks_blocked()
    assert life.state == "OFFLINE"


async def test_it_is_the_port_that_servers_know(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    life = Lifecycle(TrioClock())
    port: LifecyclePort = life
    seen: list[str] = []

    async def follow() -> None:
        while True:
            seen.append(await port.changed())

    nursery.start_soon(follow)
    for step in (life.ready, lambda: life.cordon("x"), lambda: life.quiesce("x"), life.offline):
        await wait_all_tasks_blocked()
        step()
    await wait_all_tasks_blocked()
    assert seen == ["ONLINE", "DRAINING", "QUIESCED", "OFFLINE"]
    nursery.cancel_scope.cancel()


# By way of the files


def role() -> tuple[Dir, Lifecycle]:
    life = up(Lifecycle(StillClock()))
    return Dir({"proc": proc(life), "demo": Demo()}), life


async def test_a_draining_role_takes_no_new_work_and_goes_on_with_the_old() -> None:
    root, life = role()
    export = export_of(root)
    export.admit = life.admit
    async with reached(export) as files:
        old = await files.open("/demo/clone", os.O_RDWR)
        await files.write("/proc/lifecycle/ctl", b"cordon\n")
        with pytest.raises(OSError, match=r"503 unavailable: .*DRAINING.*resume") as caught:
            await files.open("/demo/clone", os.O_RDWR)
        assert caught.value.errno == EBUSY
        for refused in (files.mkdir("/demo/x"), files.write("/demo/x", b"", create=True)):
            with pytest.raises(OSError, match="DRAINING"):
                await refused
        await old.pwrite(b"add 2\n", 0)
        await files.write("/demo/hello", b"still here")
        assert await files.read("/demo/hello") == b"still here\n"
        await files.write("/proc/lifecycle/ctl", b"resume\n")
        async with await files.open("/demo/clone", os.O_RDWR) as new:
            assert (await new.pread(10, 0)).strip() == b"2"
        await old.close()


def quiet() -> Iterator[tuple[str, str, bool]]:
    for path in ("/proc/lifecycle/ctl", "/proc/lifecycle/ctl#resume", "/role/ctl#reload", "/role"):
        yield "ctl", path, True
        yield "open", path, True
    for path in ("/", "/proc/ns", "/proc/lifecycle2", "/roles/ctl", "/demo/ctl#say", "/role2"):
        yield "ctl", path, False
        yield "open", path, False
        yield "remove", path, False


@pytest.mark.parametrize("state", ["QUIESCED", "OFFLINE"])
@pytest.mark.parametrize(("op", "path", "passes"), list(quiet()))
def test_a_quiet_role_lets_through_the_way_back_alone(state: str, op: str, path: str, passes: bool) -> None:
    life = in_state(state)
    if passes:
        life.admit(op, path)
        return
    with pytest.raises(Refused, match=f"{state} and does nothing") as caught:
        life.admit(op, path)
    assert caught.value.code == 503


@pytest.mark.parametrize("state", ["ONLINE", "DEGRADED", "BOOTING", "DRAINING"])
@pytest.mark.parametrize("op", ["open", "ctl", "setattr", "remove", "rename", "create", "mkdir", "link"])
def test_what_is_new_is_refused_while_a_role_boots_or_drains(state: str, op: str) -> None:
    life = in_state(state)
    if state in ("BOOTING", "DRAINING") and op in ("create", "mkdir", "link"):
        with pytest.raises(Refused, match=state):
            life.admit(op, "/a/b")
    else:
        life.admit(op, "/a/b")


async def test_a_quiet_role_can_be_read_and_woken_by_its_files() -> None:
    root, life = role()
    export = export_of(root)
    export.admit = life.admit
    async with reached(export, "local") as files:
        kept = await files.open("/demo/hello", os.O_RDWR)
        await files.write("/proc/lifecycle/ctl", b"drain\n")
        assert await files.read("/proc/lifecycle/state") == b"QUIESCED\n"
        assert await files.read("/proc/lifecycle/reason") == b"drained\n"
        for path, text in (("/demo/ctl", b"say x"), ("/demo/hello", b"x")):
            with pytest.raises(OSError, match="503 unavailable: the role is QUIESCED"):
                await files.write(path, text)
        assert await files.read("/demo/hello") == b"hello, world\n"
        await kept.close()
        await files.write("/proc/lifecycle/ctl", b"resume\n")
        await files.write("/demo/hello", b"awake")


async def test_refusals_and_transitions_are_read_from_the_events() -> None:
    root, _ = role()
    async with files_of(root, subject="spiffe://hive/user/ann") as files:
        events = await files.open("/proc/lifecycle/events", os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(OSError, match=r"409 bad_transition: resume is refused: the role is ONLINE; "):
            await files.write("/proc/lifecycle/ctl", b"resume\n")
        await files.write("/proc/lifecycle/ctl", b"cordon\n")
        refused, moved = await events.record(), await events.record()
        assert attributes_of(refused)["verb"] == "resume"
        assert b"kind=transition_refused" in refused
        assert b"state=DRAINING before=ONLINE cause='cordon by spiffe://hive/user/ann'" in moved
        with pytest.raises(OSError, match=r"400 unknown_verb: .*cordon, drain, quiesce, resume, reset") as e:
            await files.write("/proc/lifecycle/ctl", b"explode\n")
        assert e.value.errno == EINVAL
        await events.close()


async def test_whoever_may_only_drain_may_not_reset() -> None:
    root, _ = role()
    async with served(root, ["any read /**", "any ctl /proc/lifecycle/ctl#drain"]) as service:
        wire = await service.dial()
        await wire.open("proc/lifecycle/ctl", 1, O_RDWR)
        with pytest.raises(RefusedBy):
            await wire.write(1, b"reset\n")
        await wire.write(1, b"drain\n")
        with pytest.raises(RefusedBy):
            await wire.want(type(await wire.walk("demo", 3)), Tmkdir(3, "x", 0o755, 0))
        assert service.export.pressure().policy == 2
        with pytest.raises(RefusedBy):
            await wire.want(type(await wire.walk("demo/hello", 4)), Tlopen(4, 1))
