"""A queen and her worker over real TLS: who reaches what through whom, and on whose authority."""

import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from warren.auth.caveats import Caveats
from warren.auth.identity import Identity
from warren.auth.rights import Policy
from warren.auth.token import Token, mint
from warren.mount import Files, dial
from warren.namespaces import Space
from warren.namespaces.export import Cell, SpaceRoot
from warren.roles.inward import Inward
from warren.roles.outward import keep_offering
from warren.roles.reach import Reach, Way
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.serve.secure import Gate
from warren.serve.tokens import Verifier
from warren.servers.demo import Demo
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, Node, Refused, Text

from tests.redteam.hives import EVERY, Hive, with_token

QUEEN = "spiffe://hive.test/role/QueenPrimary/queen"
BOB, EVE = "spiffe://hive.test/user/bob", "spiffe://hive.test/user/eve"
WORKER_POLICY = (
    "role/QueenPrimary/* read /**",
    "role/QueenPrimary/* delegate /**",
    "user/bob read,write,ctl /**",
    "user/eve read /hello",
)


@dataclass
class Someone:
    """A caller, as a session is one."""

    subject: str
    session: int = 1
    last_error: str = ""


class HandClock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleeping = trio.Event()
        self.moved = trio.Event()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep_until(self, deadline: float) -> None:
        while self.time < deadline:
            self.sleeping.set()
            await self.moved.wait()

    async def move(self, seconds: float) -> None:
        """On by that much; whoever slept has done its turn when this returns."""
        await self.sleeping.wait()
        self.sleeping = trio.Event()
        self.time += seconds
        self.moved.set()
        self.moved = trio.Event()
        await self.sleeping.wait()


def export(root: Node, rows: tuple[str, ...], verifier: Verifier | None = None) -> Export:
    audit = AuditMemory(clock=itertools.count().__next__)
    return Export(root, Policy.parse(rows), audit, TraceRing(), verifier=verifier)


def audited(e: Export) -> list[str]:
    assert isinstance(e.audit, AuditMemory)
    return [f"{line.subject} {line.op} {line.path} {line.detail}" for line in e.audit.lines]


def attached(e: Export) -> set[str]:
    """As whom it is used: an idle connection is nobody yet."""
    return {s.subject for s in e.sessions if s.attached}


@dataclass
class Court:
    """A queen who serves a Space, and the worker that dialled her."""

    hive: Hive
    nursery: trio.Nursery
    queen: Identity
    worker: Identity
    gate: Gate
    inward: Inward
    reach: Reach
    clock: HandClock
    cell: Cell
    export: Export
    offered: Export
    address: str
    here: dict[str, bool]
    news: list[trio.Event] = field(default_factory=list)

    def mint(self, who: str) -> Token:
        now = int(time.time())
        where = "spiffe://hive.test/role/*/*"
        said = Caveats(allow=(EVERY,), aud=where, nbf=now - 10, exp=now + 60, to=QUEEN)
        return mint(self.hive.minting, said)

    async def until(self, name: str, here: bool) -> None:
        """Return when the worker of that name has come, or gone."""
        with trio.fail_after(10):
            while self.here.get(name, False) is not here:
                self.news.append(trio.Event())
                await self.news[-1].wait()

    @asynccontextmanager
    async def asking(self, who: str) -> AsyncIterator[Files]:
        """Files of the queen, as a user of the hive."""
        async with dial(self.address, identity=self.hive.member(who), expect="role/QueenPrimary/*") as files:
            yield files


@asynccontextmanager
async def court(
    tmp_path: Path, worker_root: Callable[[], Node] = Demo, worker_tokens: bool = True
) -> AsyncIterator[Court]:
    hive = Hive(tmp_path)
    queen, worker = hive.server, hive.member("role/DroneWorker/drone-1")
    clock, here = HandClock(), dict[str, bool]()
    gate = Gate(queen)
    made: list[Court] = []

    def changed(name: str, is_here: bool) -> None:
        here[name] = is_here
        if is_here:
            now.reach.ways[f"${name}"] = Way(inward=name)
            now.cell.space = now.cell.space.mount(f"${name}", f"/n/{name}")
        else:
            now.cell.space = now.cell.space.unmount(f"/n/{name}")
        for event in now.news:
            event.set()
        now.news.clear()

    inward = Inward(queen, changed)
    gate.exports = inward.offer
    own = Dir({"motd": Text(lambda: "the queen's own")})
    reach = Reach(own, clock, identity=queen, inward=inward, mint=lambda who: made[0].mint(who))
    cell = Cell(Space().mount("$self", "/"))
    served = export(SpaceRoot(cell, reach), ("user/* read,write,ctl /**", "role/*/* read,write,ctl /**"))
    verifier = hive.verifier()
    verifier.server = worker.uri
    offered = export(worker_root(), WORKER_POLICY, verifier if worker_tokens else None)
    async with listening(served, ["tls!127.0.0.1!0"], gate) as [address], trio.open_nursery() as nursery:
        await nursery.start(inward.run)
        await nursery.start(reach.run)
        now = Court(
            hive, nursery, queen, worker, gate, inward, reach, clock, cell, served, offered, address, here
        )  # fmt: skip
        made.append(now)
        nursery.start_soon(keep_offering, address, worker, "role/QueenPrimary/*", offered)
        await now.until("drone-1", True)
        yield now
        nursery.cancel_scope.cancel()
    for e in (served, offered):
        assert not [entry for entry in e.trace.errors if entry.code == 500], list(e.trace.errors)


async def test_bob_may_and_eve_may_not_though_both_come_by_the_queen(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        async with now.asking("user/bob") as bob, now.asking("user/eve") as eve:
            assert await bob.read("/n/drone-1/hello") == b"hello, world\n"
            await bob.write("/n/drone-1/hello", b"from bob")
            await bob.write("/n/drone-1/ctl", b"say 'by proxy'\n")
            assert await eve.read("/n/drone-1/hello") == b"from bob\n"
            with pytest.raises(PermissionError):
                await eve.write("/n/drone-1/hello", b"from eve")
            with pytest.raises(FileNotFoundError):
                await eve.read("/n/drone-1/scratch")
            with pytest.raises(FileNotFoundError):
                await eve.write("/n/drone-1/ctl", b"reset\n")
        assert attached(now.offered) == {f"{BOB} via={QUEEN}", f"{EVE} via={QUEEN}"}
        lines = audited(now.offered)
        assert any(line.startswith(f"{BOB} via={QUEEN} ctl /ctl#say") for line in lines)
        assert any(line.startswith(f"{EVE} via={QUEEN} ") and "denied" in line for line in lines)


async def test_as_itself_the_queen_does_what_the_queen_may(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        files = await now.reach.reach("$drone-1", Someone("local"))
        assert await files.read("/hello") == b"hello, world\n"
        with pytest.raises(PermissionError):
            await files.write("/hello", b"x")  # the worker lets queens read
        assert attached(now.offered) == {QUEEN}
        again = await now.reach.reach("$drone-1", Someone(QUEEN))
        assert again is files


async def test_who_has_proved_no_name_is_passed_on_to_nobody(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        with pytest.raises(Refused, match="certificate"):
            await now.reach.reach("$drone-1", Someone("any"))
        with pytest.raises(Refused, match="by a proxy"):
            await now.reach.reach("$drone-1", Someone(f"{BOB} via=spiffe://hive.test/role/Gate/g"))
        assert not attached(now.offered)


async def test_a_way_that_leads_back_to_the_caller_is_refused(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        with pytest.raises(OSError, match="leads back") as e:
            await now.reach.reach("$drone-1", Someone(now.worker.uri))
        assert e.value.errno == 40  # ELOOP
        now.reach.ways["$queen"] = Way(now.address, "role/QueenPrimary/*")
        with pytest.raises(OSError, match="leads back"):
            await now.reach.reach("$queen", Someone("local"))


async def test_a_worker_that_asks_for_no_token_is_used_for_nobody_else(tmp_path: Path) -> None:
    async with court(tmp_path, worker_tokens=False) as now:
        with pytest.raises(Refused, match="asks for no token"):
            await now.reach.reach("$drone-1", Someone(BOB))
        files = await now.reach.reach("$drone-1", Someone("local"))
        assert await files.read("/hello") == b"hello, world\n"


async def test_a_role_without_a_token_acts_for_nobody(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        now.reach.mint = None
        with pytest.raises(Refused, match="no token to act for others"):
            await now.reach.reach("$drone-1", Someone(BOB))
        now.reach.identity = with_token(now.queen, now.mint(""))
        files = await now.reach.reach("$drone-1", Someone(BOB))
        await files.write("/hello", b"by the token in the folder")


async def test_a_tricked_proxy_gains_nothing(tmp_path: Path) -> None:
    """The queen's token is everything she could mint; for eve it is worth what eve may do, and for one
    whom the worker does not know, nothing. Without the worker's leave she acts for nobody."""
    async with court(tmp_path) as now:
        eve = await now.reach.reach("$drone-1", Someone(EVE))
        with pytest.raises(PermissionError):
            await eve.write("/hello", b"x")
        mallory = Someone("spiffe://hive.test/user/mallory")
        with pytest.raises(PermissionError):
            await now.reach.reach("$drone-1", mallory)
        now.offered.replace(Policy.parse([r for r in WORKER_POLICY if "delegate" not in r]))
        with pytest.raises(PermissionError, match="token_delegate"):
            await now.reach.reach("$drone-1", Someone("spiffe://hive.test/user/bob"))


async def test_what_is_delegated_is_the_subtree_that_is_mounted(tmp_path: Path) -> None:
    async with court(tmp_path, lambda: Dir({"pub": Demo(), "own": Demo()})) as now:
        files = await now.reach.reach("$drone-1", Someone(BOB), "/pub")
        assert await files.read("/pub/hello") == b"hello, world\n"
        with pytest.raises(FileNotFoundError):
            await files.read("/own/hello")


async def test_a_local_socket_is_reached_for_local_callers_only(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        path = f"unix!{tmp_path}/sock"
        other = export(Demo(), ("local read,write,ctl /**",))
        async with listening(other, [path]):
            now.reach.ways["$other"] = Way(path)
            for address in ("$other", path):
                files = await now.reach.reach(address, Someone("local"))
                assert await files.read("/hello") == b"hello, world\n"
                with pytest.raises(Refused, match="local callers only"):
                    await now.reach.reach(address, Someone(BOB))
            now.reach.posts = lambda address, subject: True
            await now.reach.reach(path, Someone(BOB))
            assert {s.token for s in other.sessions} == {None}


async def test_connections_are_kept_for_a_minute_after_their_last_use(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        files = await now.reach.reach("$drone-1", Someone(BOB))
        stream = await files.stream("/events")
        await now.clock.move(100)
        assert await now.reach.reach("$drone-1", Someone(BOB)) is files  # something is open
        await stream.close()
        await now.clock.move(50)
        assert await now.reach.reach("$drone-1", Someone(BOB)) is files
        await now.clock.move(61)
        other = await now.reach.reach("$drone-1", Someone(BOB))
        assert other is not files
        await other.read("/hello")


async def test_there_are_so_many_connections_and_no_more(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        now.reach.most = 1
        bob = await now.reach.reach("$drone-1", Someone(BOB))
        async with await bob.stream("/events"):
            with pytest.raises(Refused, match="connections to others"):
                await now.reach.reach("$drone-1", Someone(EVE))
        eve = await now.reach.reach("$drone-1", Someone(EVE))  # the one nobody uses made room
        assert await eve.read("/hello") == b"hello, world\n"


async def test_a_lost_worker_is_an_error_and_comes_back_by_itself(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        async with now.asking("user/bob") as bob:
            events = await bob.stream("/n/drone-1/events")
            for worker in list(now.inward.workers.values()):
                for channel in [*worker.using, *(idle.channel for idle in worker.idle)]:
                    channel.cut()
            with pytest.raises(OSError, match="502"):
                await events.record()
            assert await bob.read("/n/drone-1/hello") == b"hello, world\n"


async def test_two_workers_are_never_one_place(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        usurper = now.hive.member("role/KioskInteractive/drone-1")
        said: list[str] = []
        told = trio.Event()

        def tell(words: str) -> None:
            said.append(words)
            if "not offered" in words:
                told.set()

        async def offer() -> None:
            await keep_offering(
                lambda: now.address, usurper, "role/QueenPrimary/*", now.offered, tell=tell
            )

        now.nursery.start_soon(offer)
        with trio.fail_after(10):
            await told.wait()
        assert now.inward.workers["drone-1"].uri == now.worker.uri
        user = now.hive.member("user/drone-2")
        told = trio.Event()
        now.nursery.start_soon(
            lambda: keep_offering(now.address, user, "role/QueenPrimary/*", now.offered, tell=tell)
        )
        with trio.fail_after(10):
            await told.wait()
        assert list(now.inward.workers) == ["drone-1"]


async def test_a_revoked_worker_is_gone_at_the_next_look(tmp_path: Path) -> None:
    async with court(tmp_path) as now:
        now.hive.ca.revoke(int(now.worker.serial, 16))
        now.queen.with_crl(now.hive.ca.crl())
        now.inward.recheck()
        await now.until("drone-1", False)


async def test_errors_of_the_worker_keep_their_words_and_trace(tmp_path: Path) -> None:
    async with court(tmp_path) as now, now.asking("user/bob") as bob:
        with pytest.raises(OSError) as e:
            await bob.write("/n/drone-1/ctl", b"nonsense\n")
        text = e.value.strerror or ""
        assert text.startswith("400 unknown_verb: no verb 'nonsense'; the verbs are say, reset")
        assert text.count("trace=") == 1
        trace = int(text.rpartition("=")[2], 16)
        assert now.offered.trace.find(trace)
        assert now.export.trace.find(trace)
