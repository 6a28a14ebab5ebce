"""Supervision: restarts, reasons, proofs; then whole hives of stand-in processes, up and down and killed."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.mount import dial
from warren.roles import hive
from warren.roles.keeper import left_behind
from warren.roles.processes import PARENT, Born, Child, finish, hold, rotate, wait_for
from warren.roles.state import State
from warren.roles.supervise import STEADY, STOPPED, UP, WAITING, Backoff, Service, Supervisor
from warren.tree import split

from tests.roles.standin import __file__ as STANDIN
from tests.sources import ROOT

PATIENCE = 30.0


# The pauses


async def test_pauses_grow_to_a_minute_and_a_steady_minute_makes_good(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backoff = Backoff(trio.current_time)

    async def lived(seconds: float) -> float:
        backoff.began()
        await trio.sleep(seconds)
        return backoff.died()

    assert [await lived(1) for _ in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert await lived(STEADY - 1) == 60
    assert await lived(STEADY) == 0
    assert await lived(1) == 1


# A supervisor in pure memory


class Puppet:
    """A process that ends when it is told to. `test_a_puppet_is_like_a_child` holds it to the real one."""

    born: Born | None = None
    pids = iter(range(1000, 1_000_000))

    def __init__(self) -> None:
        self.pid = next(self.pids)
        self.signals: list[int] = []
        self.how = ""
        self.deaf: set[int] = set()
        self._over = trio.Event()

    def die(self, how: str) -> None:
        self.how = self.how or how
        self._over.set()

    async def ended(self) -> str:
        await self._over.wait()
        return self.how

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number not in self.deaf:
            self.die(f"signal {number}")

    def kill(self) -> None:
        self.signal(9)


class Stage:
    """A supervisor whose processes are puppets, each up as soon as it is asked."""

    def __init__(self, state: State, nursery: trio.Nursery) -> None:
        self.puppets: list[Puppet] = []
        self.starts: list[float] = []
        self.notes: list[str] = []
        self.away = False
        self.supervisor = Supervisor(state, nursery, self.launch, self.send)
        nursery.start_soon(self.supervisor.deliver)

    def launch(self, argv: Sequence[str], log: Path) -> Puppet:
        self.starts.append(trio.current_time())
        self.puppets.append(Puppet())
        return self.puppets[-1]

    async def send(self, note: str) -> None:
        if self.away:
            raise ConnectionRefusedError
        self.notes.append(note)

    def service(self, name: str = "drone-1", after: Service | None = None) -> Service:
        async def probe() -> tuple[str, str, str]:
            return UP, "ONLINE", ""

        self.supervisor.state.make_for(name)
        service = Service(name, "DroneWorker", [name], probe, after=after)
        self.supervisor.add(service)
        return service

    async def run(self, name: str = "drone-1", after: Service | None = None) -> Service:
        service = self.service(name, after)
        self.supervisor.start(name)
        await until(service, UP)
        return service


async def until(service: Service, *states: str) -> None:
    with trio.fail_after(PATIENCE):
        while service.state not in states:
            await service.changed()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    state = State(tmp_path / "s")
    state.make()
    async with trio.open_nursery() as nursery:
        yield Stage(state, nursery)
        nursery.cancel_scope.cancel()


async def crash(service: Service, puppet: Puppet, how: str = "exit 1") -> None:
    """End the process; returns once the supervisor has seen it. A pause of 0 is over by then."""
    before = service.restarts
    puppet.die(how)
    with trio.fail_after(PATIENCE):
        while service.restarts == before:
            await service.changed()


async def test_a_crashed_service_comes_back_at_once_then_later_and_later(stage: Stage) -> None:
    service = await stage.run()
    await crash(service, stage.puppets[0], "exit 3")
    await until(service, UP)
    assert (service.restarts, service.reason) == (1, "")
    await crash(service, stage.puppets[1], "signal 9")
    assert (service.state, service.reason, service.child) == (WAITING, "signal_9", None)
    assert len(stage.puppets) == 2
    records = [line(record) for record in stage.supervisor.events.kept]
    assert [(r["kind"], r.get("reason"), r.get("again_in")) for r in records if r["kind"] == "crashed"] == [
        ("crashed", "exit_3", "0"), ("crashed", "signal_9", "1"),
    ]  # fmt: skip


def line(record: bytes) -> dict[str, str]:
    pairs = (word.partition("=") for word in split(record.decode().strip()))
    return {key: value for key, _, value in pairs}


async def test_crashes_are_counted_by_service_and_reason(stage: Stage) -> None:
    service = await stage.run()
    await crash(service, stage.puppets[0], "exit 3")
    await until(service, UP)
    metrics = stage.supervisor.metrics()
    assert 'rejected_total{reason="ServiceCrashed"} 1\n' in metrics
    assert 'service_crashed_total{service="drone-1",reason="exit_3"} 1\n' in metrics


async def test_a_crash_is_noted_even_if_the_log_is_away_just_then(stage: Stage) -> None:
    stage.away = True
    service = await stage.run()
    await crash(service, stage.puppets[0], "signal 9")
    await until(service, UP)
    assert stage.notes == []
    stage.away = False
    with trio.fail_after(PATIENCE):
        while not stage.notes:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert stage.notes == ["note crashed service=drone-1 reason=signal_9"]


async def test_notes_are_bounded(stage: Stage) -> None:
    stage.away = True
    service = await stage.run()
    for n in range(100):
        stage.supervisor._crashed(service, f"exit_{n}", 0)
    assert len(stage.supervisor._notes) == 64
    assert stage.supervisor._notes[-1].endswith("exit_99")


async def test_a_stopped_service_is_no_crash_and_stays_stopped(stage: Stage) -> None:
    service = await stage.run()
    await stage.supervisor.stop("drone-1")
    assert (service.state, service.restarts, service.child) == (STOPPED, 0, None)
    assert stage.puppets[0].signals == [15]
    await stage.supervisor.stop("drone-1")
    stage.supervisor.start("drone-1")
    await until(service, UP)
    assert len(stage.puppets) == 2


async def test_one_that_does_not_heed_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warren.roles.supervise.PATIENCE", 0.01)
    service = await stage.run()
    stage.puppets[0].deaf.add(15)
    await stage.supervisor.stop("drone-1")
    assert service.state == STOPPED
    assert stage.puppets[0].signals == [15, 9]


async def test_a_waiting_service_can_be_stopped_and_restarted(stage: Stage) -> None:
    service = await stage.run()
    await crash(service, stage.puppets[0])
    await until(service, UP)
    await crash(service, stage.puppets[1])
    assert service.child is None
    stage.supervisor.restart("drone-1")
    await until(service, UP)
    await crash(service, stage.puppets[2])
    await until(service, UP)
    await crash(service, stage.puppets[3])
    await stage.supervisor.stop("drone-1")
    assert service.state == STOPPED
    assert len(stage.puppets) == 4


async def test_restart_is_no_crash(stage: Stage) -> None:
    service = await stage.run()
    stage.supervisor.restart("drone-1")
    await until(service, "stopping")
    await until(service, UP)
    assert (service.restarts, len(stage.puppets)) == (0, 2)


async def test_what_comes_after_another_waits_for_it_once(stage: Stage) -> None:
    queen = stage.service("queen")
    mount = stage.service("mount", after=queen)
    stage.supervisor.start("mount")
    await trio.testing.wait_all_tasks_blocked()
    assert stage.puppets == []
    stage.supervisor.start("queen")
    await until(mount, UP)
    await crash(queen, stage.puppets[0])
    await until(queen, UP)
    assert mount.state == UP
    assert len(stage.puppets) == 3


async def test_what_never_came_to_start_can_be_stopped(stage: Stage) -> None:
    queen = stage.service("queen")
    mount = stage.service("mount", after=queen)
    stage.supervisor.start("mount")
    await trio.testing.wait_all_tasks_blocked()
    await stage.supervisor.end()
    assert mount.state == STOPPED
    assert stage.puppets == []


# Real processes


async def test_a_puppet_is_like_a_child(tmp_path: Path) -> None:
    """Each ends with the reason that the other gives, once, and takes signals after its end for nothing."""
    for script, number, how in (
        ("raise SystemExit(3)", 0, "exit 3"),
        ("import time; time.sleep(60)", 15, "signal 15"),
    ):
        child, puppet = Child([sys.executable, "-c", script], tmp_path / "log"), Puppet()
        if number:
            child.signal(number)
            puppet.signal(number)
        else:
            puppet.die(how)
        with trio.fail_after(PATIENCE):
            assert await child.ended() == await puppet.ended() == how
        child.signal(9)
        puppet.signal(9)
        child.kill()
        assert puppet.how == how


async def test_what_a_child_says_is_kept_and_its_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    for word in ("one", "two"):
        with trio.fail_after(PATIENCE):
            child = Child([sys.executable, "-c", f"import sys; print('{word}', file=sys.stderr)"], log)
            await child.ended()
    assert log.read_text() == "one\ntwo\n"
    writer = os.open(log, os.O_WRONLY | os.O_APPEND)
    rotate(log, 4)
    os.write(writer, b"three\n")
    os.close(writer)
    assert log.read_text() == "three\n"
    assert (tmp_path / "stderr.log.1").read_text() == "two\n"
    rotate(tmp_path / "none", 4)


def test_a_child_ends_with_its_parent_however_that_ended(tmp_path: Path) -> None:
    child = (
        "import time; from warren.roles.processes import die_with_parent\n"
        "die_with_parent(); print(flush=True); time.sleep(60)"
    )
    parent = (
        "import sys, time; from pathlib import Path; from warren.roles.processes import Child\n"
        "c = Child([sys.executable, '-c', sys.argv[2]], Path(sys.argv[1]))\n"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", parent, log, child], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        born = Born.of(int(process.stdout.readline()))
        assert born is not None
        pidfd = hold(born)
        assert pidfd is not None
        try:
            grown(log)
            process.kill()
            assert wait_for([pidfd], PATIENCE)
        finally:
            os.close(pidfd)


def grown(path: Path) -> None:
    """Return once there is something in the file."""
    with subprocess.Popen(["tail", "-c", "+1", "-f", path], stdout=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        tail.stdout.read(1)
        tail.kill()


def test_who_was_started_by_hand_has_no_leash() -> None:
    script = "from warren.roles.processes import die_with_parent as d; d(); print('alive')"
    kept = {k: v for k, v in os.environ.items() if k != PARENT}
    done = subprocess.run([sys.executable, "-c", script], env=kept, capture_output=True, text=True)
    assert done.stdout == "alive\n"
    orphan = subprocess.run(
        [sys.executable, "-c", script], env={**kept, PARENT: "1"}, capture_output=True, text=True
    )
    assert orphan.returncode == -signal.SIGTERM, "its parent has ended before it asked"


def test_a_number_that_went_to_another_process_proves_nothing() -> None:
    me = Born.of(os.getpid())
    assert me is not None
    assert me.lives
    assert Born.parse(str(me)) == me
    for other in (me._replace(start=me.start - 1), me._replace(boot="another")):
        assert not other.lives
        assert hold(other) is None
        assert finish([other]) == []
    for text in ("", "1", "x y z", "0 1 b", "1 2 3 4"):
        assert Born.parse(text) is None


# Hives of stand-ins


def standin(state: State, how: str, *roles: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, STANDIN, "--state", state.directory, how, *roles],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def brought_up(state: State, *roles: str) -> list[str]:
    with standin(state, "--up", *roles) as process:
        said, _ = process.communicate(timeout=PATIENCE)
    return [each for each in said.splitlines() if not each.startswith("starting ")]


def taken_down(state: State, *names: str) -> list[str]:
    said: list[str] = []
    hive.down(state, list(names), said.append)
    return said


@contextmanager
def hive_at(folder: Path, *roles: str) -> Iterator[State]:
    state = State(folder)
    try:
        assert brought_up(state, *roles)[-1] == "up"
        yield state
    finally:
        taken_down(state)
        assert left_behind(state) == []


def rows(state: State) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in hive.status(state).services}


def pid(state: State, name: str) -> int:
    return int((state.run(name) / "pid").read_text())


def held(number: int) -> int:
    return os.pidfd_open(number)


@asynccontextmanager
async def following(state: State) -> AsyncIterator[Callable[..., Awaitable[dict[str, str]]]]:
    """The keeper's events from now on: `await event(kind=…, service=…)` is the next that fits."""
    async with dial(state.address("hive")) as files, await files.stream("/events") as stream:

        async def event(**wanted: str) -> dict[str, str]:
            with trio.fail_after(PATIENCE):
                while True:
                    found = line(await stream.record())
                    if wanted.items() <= found.items():
                        return found

        yield event


def test_a_hive_comes_up_once_and_goes_down_once(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    said = brought_up(state)
    try:
        assert said[-1] == "up"
        assert sorted(each.split()[0] for each in said[:-1]) == ["drone-1", "drone-2", "queen"]
        assert all(" ready after " in each for each in said[:-1])
        assert brought_up(state) == ["already up"]
        now = rows(state)
        assert {name: (row["role"], row["state"], row["lifecycle"]) for name, row in now.items()} == {
            "queen": ("QueenPrimary", "up", "ONLINE"),
            "drone-1": ("DroneWorker", "up", "ONLINE"),
            "drone-2": ("DroneWorker", "up", "ONLINE"),
        }
        pids = [int(row["pid"]) for row in now.values()]
        assert [pid(state, name) for name in now] == pids
        fds = [held(number) for number in pids]
    finally:
        last = taken_down(state)
    assert last == ["down"]
    assert wait_for(fds, 0.1), "down returns when the processes are gone"
    for fd in fds:
        os.close(fd)
    assert [path for path in state.directory.glob("run/*/*") if path.name != "addr"] == []
    assert taken_down(state) == ["already down"]
    with pytest.raises(hive.NotUp, match="is down; warren up --state"):
        hive.status(state)


def test_down_where_nothing_ever_was_is_no_error(tmp_path: Path) -> None:
    assert taken_down(State(tmp_path / "none")) == ["already down"]
    assert not (tmp_path / "none").exists()


def test_a_killed_role_is_back_at_once_and_the_queens_log_says_so(tmp_path: Path) -> None:
    async def kill(state: State) -> None:
        async with following(state) as event:
            os.kill(pid(state, "drone-1"), signal.SIGKILL)
            crashed = await event(kind="crashed", service="drone-1")
            assert (crashed["reason"], crashed["again_in"]) == ("signal_9", "0")
            await event(kind="ready", service="drone-1")
        async with dial(state.address("hive")) as files:
            metrics = (await files.read("/metrics")).decode()
        assert 'service_crashed_total{service="drone-1",reason="signal_9"} 1\n' in metrics
        with trio.fail_after(PATIENCE):
            async with dial(state.address("queen")) as files:
                while b"kind=crashed service=drone-1 reason=signal_9" not in await files.read("/log/events"):
                    await trio.testing.wait_all_tasks_blocked(0.01)

    with hive_at(tmp_path / "s") as state:
        before = pid(state, "drone-1")
        trio.run(kill, state)
        assert pid(state, "drone-1") != before
        row = rows(state)["drone-1"]
        assert (row["restarts"], row["state"]) == ("1", "up")


def test_a_killed_queen_takes_nobody_with_her(tmp_path: Path) -> None:
    async def kill(state: State) -> None:
        async with following(state) as event:
            os.kill(pid(state, "queen"), signal.SIGKILL)
            await event(kind="ready", service="queen")

    with hive_at(tmp_path / "s") as state:
        drone = pid(state, "drone-1")
        trio.run(kill, state)
        assert pid(state, "drone-1") == drone


def test_the_keeper_killed_nothing_is_left_running_and_nothing_lost(tmp_path: Path) -> None:
    with hive_at(tmp_path / "s") as state:
        name = state.hive().hive
        keys = {path: path.read_bytes() for path in state.directory.glob("pki/**/*.key")}
        keeper = Born.parse(state.holder() or "")
        assert keeper is not None
        fds = [held(pid(state, name)) for name in ("queen", "drone-1", "drone-2")]
        os.kill(keeper.pid, signal.SIGKILL)
        assert brought_up(state)[-1] == "up"
        assert wait_for(fds, PATIENCE)
        for fd in fds:
            os.close(fd)
        assert state.hive().hive == name
        assert {path: path.read_bytes() for path in keys} == keys
        assert all(row["state"] == "up" for row in rows(state).values())


def test_everything_killed_at_once_comes_up_again(tmp_path: Path) -> None:
    with hive_at(tmp_path / "s") as state:
        keeper = Born.parse(state.holder() or "")
        assert keeper is not None
        for number in [keeper.pid, *(pid(state, name) for name in rows(state))]:
            os.kill(number, signal.SIGKILL)
        assert state.sock("queen").exists(), "a stale socket stands in the way"
        assert brought_up(state)[-1] == "up"


def test_down_after_the_keeper_was_killed(tmp_path: Path) -> None:
    with hive_at(tmp_path / "s") as state:
        keeper = Born.parse(state.holder() or "")
        assert keeper is not None
        pidfd = hold(keeper)
        assert pidfd is not None
        (state.directory / "fail").mkdir()
        os.kill(keeper.pid, signal.SIGKILL)
        assert wait_for([pidfd], PATIENCE)
        os.close(pidfd)
        assert taken_down(state)[0] in ("down; its keeper was gone before", "already down")
        assert left_behind(state) == []


def test_a_foreign_process_with_a_stale_number_is_never_touched(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    state.make()
    state.make_for("drone-1")
    with subprocess.Popen(["sleep", "60"]) as bystander:
        real = Born.of(bystander.pid)
        assert real is not None
        (state.run("drone-1") / "pid").write_text(f"{bystander.pid}\n")
        (state.run("drone-1") / "born").write_text(f"{real._replace(start=real.start - 1)}\n")
        (state.directory / "lock").write_text(f"{real}\n")
        assert taken_down(state) == ["already down"]
        with hive_at(tmp_path / "s"):
            assert bystander.poll() is None
        assert bystander.poll() is None
        bystander.kill()


def test_two_hives_side_by_side(tmp_path: Path) -> None:
    with hive_at(tmp_path / "a") as a, hive_at(tmp_path / "b", "queen=QueenPrimary") as b:
        assert a.hive().hive != b.hive().hive
        assert set(rows(b)) == {"queen"}
        taken_down(a)
        assert rows(b)["queen"]["state"] == "up"


def test_a_role_is_added_to_a_hive_that_is_up_and_remembered(tmp_path: Path) -> None:
    with hive_at(tmp_path / "s", "queen=QueenPrimary") as state:
        said = brought_up(state, "relay-1=SensorRelay")
        assert [each.split()[0] for each in said] == ["relay-1", "up"]
        assert brought_up(state, "relay-1=SensorRelay") == ["already up"]
        (refused,) = brought_up(state, "relay-1=DroneWorker")
        assert "409 conflict: relay-1 runs as SensorRelay; end it first: warren down relay-1" in refused
        taken_down(state)
        assert brought_up(state)[-1] == "up"
        assert set(rows(state)) == {"queen", "relay-1"}


def test_one_service_goes_down_and_comes_up_again(tmp_path: Path) -> None:
    with hive_at(tmp_path / "s") as state:
        assert taken_down(state, "drone-1") == ["drone-1 is down"]
        assert taken_down(state, "drone-1") == ["drone-1 was down already"]
        assert rows(state)["drone-1"]["state"] == "stopped"
        with pytest.raises(OSError, match="404 not_found: there is no service 'nobody'; there are queen"):
            taken_down(state, "nobody")
        assert brought_up(state)[-1] == "up"
        assert rows(state)["drone-1"]["state"] == "up"


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        (["drone-1=DroneWorker"], "Refusal: a hive needs a queen; say queen=QueenPrimary too"),
        (["queen=QueenPrimary", "x=Nobody"], "Refusal: x=Nobody: "),
        (["queen=QueenPrimary", "hive=DroneWorker"], "Refusal: hive=DroneWorker: hive is a name of the"),
        (["queen=QueenPrimary", "a/b=DroneWorker"], "Refusal: a/b=DroneWorker: "),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_begun(tmp_path: Path, roles: list[str], says: str) -> None:
    state = State(tmp_path / "s")
    (said,) = brought_up(state, *roles)
    assert said.startswith(says)
    assert state.holder() is None
    assert not state.file.exists()


def test_a_role_that_keeps_crashing_is_named_with_its_last_words(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    state.make()
    (state.directory / "fail").mkdir()
    (state.directory / "fail/drone-2").write_text("exit 3")
    try:
        said = brought_up(state)
        assert said[-1].startswith("NotUp: drone-2 crashed 3 times: exit 3: ")
        assert "told to fail; see" in said[-1]
        now = rows(state)
        assert (now["drone-1"]["state"], now["drone-2"]["reason"]) == ("up", "exit_3")
    finally:
        taken_down(state)


def test_a_role_that_hangs_goes_down_with_the_rest(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    state.make()
    (state.directory / "fail").mkdir()
    (state.directory / "fail/drone-2").write_text("hang")
    with standin(state, "--up") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "starting queen, drone-1, drone-2 …\n"
            ready = {process.stdout.readline().split()[0] for _ in range(2)}
            assert ready == {"queen", "drone-1"}
        finally:
            assert taken_down(state) == ["down"]
            process.wait(PATIENCE)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_in_the_foreground_a_signal_takes_it_down(tmp_path: Path, number: int, code: int) -> None:
    state = State(tmp_path / "s")
    with standin(state, "--keep") as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(5)]
        assert said[-1] == "up\n"
        fds = [held(pid(state, name)) for name in ("queen", "drone-1", "drone-2")]
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
    assert wait_for(fds, 0.1)
    for fd in fds:
        os.close(fd)


def test_several_at_once_make_one_hive(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    several = [standin(state, "--up") for _ in range(4)]
    try:
        last = [process.communicate(timeout=PATIENCE)[0].splitlines()[-1] for process in several]
        assert set(last) <= {"up", "already up"}
        assert len(rows(state)) == 3
    finally:
        taken_down(state)


def test_a_worker_whose_queen_is_elsewhere_is_a_hive_of_its_own(tmp_path: Path) -> None:
    state = State(tmp_path / "j")
    state.make()
    with hive_at(tmp_path / "s") as far:
        os.rename(far.pki("drone-2"), state.pki("drone-2"))
        name = far.hive().hive
    try:
        with standin(state, "--join", "tls!hub!5640", "drone-2=SensorRelay") as process:
            said, _ = process.communicate(timeout=PATIENCE)
        assert said.startswith(f"Standing: {state.pki('drone-2')} is spiffe://{name}/role/DroneWorker/drone-2;")
        assert not state.file.exists()
        for last in ("up", "already up"):
            with standin(state, "--join", "tls!hub!5640", "drone-2=DroneWorker") as process:
                said, _ = process.communicate(timeout=PATIENCE)
            assert said.splitlines()[-1] == last
        joined = state.hive()
        assert (joined.hive, joined.queen, dict(joined.roles)) == (
            name, "tls!hub!5640", {"drone-2": "DroneWorker"},
        )  # fmt: skip
        assert not state.ca.exists()
        assert hive.status(state).about["joined"] == "tls!hub!5640"
        with standin(state, "--join", "tls!elsewhere!1", "drone-2=DroneWorker") as process:
            said, _ = process.communicate(timeout=PATIENCE)
        assert said.startswith(f"Standing: {state.directory} is of the hive {name}")
        with standin(state, "--up", "drone-9=DroneWorker") as process:
            said, _ = process.communicate(timeout=PATIENCE)
        assert "drone-9 is nobody in" in said
    finally:
        taken_down(state)


def test_a_mount_that_cannot_be_had_is_said_and_the_hive_is_up(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    try:
        said = brought_up(state, "queen=QueenPrimary", "--mount", str(tmp_path / "m"))
        assert said[-1] == "up"
        assert said[-2].startswith("mount crashed 3 times: exit 1: no mount of unix!")
        assert said[-2].endswith(f"use the hive with --state {state.directory}")
        assert {name: row["state"] for name, row in rows(state).items()}["queen"] == "up"
    finally:
        assert taken_down(state) == ["down"]


async def test_one_that_is_degraded_at_first_is_given_a_moment(stage: Stage) -> None:
    service = stage.service()
    words = iter(["DEGRADED", "DEGRADED", "ONLINE"])

    async def probe() -> tuple[str, str, str]:
        return UP, next(words), ""

    service.probe = probe
    stage.supervisor.start("drone-1")
    await until(service, UP)
    assert service.lifecycle == "ONLINE"
