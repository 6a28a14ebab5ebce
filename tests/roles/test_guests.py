"""What a machine's guest may reach of a role, and who may reach what a guest serves."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from warren.auth.rights import Policy
from warren.mount import Files, dial
from warren.namespaces import Space
from warren.namespaces.export import Cell, SpaceRoot
from warren.p9.client import VERSIONS
from warren.p9.fields import NOFID
from warren.p9.messages import Rattach, Rauth, Rwalk, Tattach, Tauth, Tread, Twalk
from warren.roles.guests import Guests
from warren.roles.shares import LIMITS
from warren.serve.export import Export
from warren.serve.session import Session
from warren.serve.stream import serve_stream
from warren.servers.demo import Demo
from warren.servers.ram import Ram
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Caller, Dir, Node, Refused, Ring, Stream, Text
from warren.tree.ports import Share

from tests.wire import RefusedBy, Wire

BOB, EVE = "spiffe://hive/user/bob", "spiffe://hive/user/eve"
EVERY = ("read", "write", "create", "remove", "ctl")


@dataclass
class Elsewhere:
    """The trees of a role: those of this process, and one that is elsewhere and tells who comes."""

    root: Node
    guests: dict[str, Node] = field(default_factory=dict)
    came: list[str] = field(default_factory=list)
    far: Files | None = None

    def local(self, address: str) -> Node | None:
        return self.root if address == "$self" else self.guests.get(address)

    async def reach(self, address: str, caller: Caller, path: str = "/") -> Files:
        self.came.append(caller.subject)
        if self.far is None:
            raise Refused(502, f"{address} is not there")
        return self.far


class OwnTree(Dir):
    """As a machine gives it to its guest."""

    def __init__(self) -> None:
        self.said = ""
        boot = Text(self.get, self.set)
        super().__init__({"role": Text(lambda: "role Guest"), "out": Ram(), "proc": Dir({"boot": boot})})

    def get(self) -> str:
        return self.said

    def set(self, value: str) -> None:
        self.said = value


@dataclass
class House:
    """A role with members attached and guests served."""

    nursery: trio.Nursery
    trees: Elsewhere
    cell: Cell
    export: Export
    guests: Guests

    async def member(self, subject: str) -> tuple[Files, Session, trio.abc.Stream]:
        """Somebody attaches; their session, and the end they hang up."""
        near, far = memory_stream_pair()
        self.nursery.start_soon(serve_stream, self.export, far, subject)
        files = await self.dialled(near)
        [session] = [s for s in self.export.sessions if s.subject == subject]
        return files, session, near

    async def dialled(self, stream: trio.abc.Stream, versions: Sequence[str] = VERSIONS) -> Files:
        held: list[Files] = []

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with dial(stream, uname="local", deadline=5, versions=versions) as files:
                held.append(files)
                task_status.started()
                await trio.sleep_forever()

        await self.nursery.start(hold)
        return held[0]

    async def guest(
        self, *shares: Share, name: str = "vm/3", own: Dir | None = None, versions: Sequence[str] = VERSIONS
    ) -> Files:
        near, far = memory_stream_pair()
        self.nursery.start_soon(self.guests.serve, far, name, own or OwnTree(), shares)
        return await self.dialled(near, versions)

    def audited(self) -> list[str]:
        assert isinstance(self.export.audit, AuditMemory)
        return [f"{line.kind} {line.subject} {line.op} {line.path}" for line in self.export.audit.lines]


def post(cell: Cell, name: str, address: str) -> None:
    cell.space = cell.space.mount(address, f"/n/{name}", flags="c")


@asynccontextmanager
async def house(*rows: str, root: Node | None = None) -> AsyncIterator[House]:
    usual = {"demo": Demo(), "ram": Ram(dirs=("a/b",)), "secret": Text(lambda: "s3cret")}
    trees = Elsewhere(root or Dir(usual))
    cell = Cell(Space().mount("$self", "/"))
    export = Export(SpaceRoot(cell, trees), Policy.parse(rows), AuditMemory(), TraceRing())
    def withdraw(name: str) -> None:
        cell.space = cell.space.unmount(f"/n/{name}")

    guests = Guests(export, trees.guests, lambda name, address, by: post(cell, name, address), withdraw)
    async with trio.open_nursery() as nursery:
        yield House(nursery, trees, cell, export, guests)
        nursery.cancel_scope.cancel()


async def test_a_guest_has_its_own_tree_and_the_share_beside_it_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    async with house("local read,write,create,remove,ctl /**") as h:
        _, owner, _ = await h.member("local")
        own = OwnTree()
        files = await h.guest(Share("/ram/a", ("read",), owner), own=own)
        assert sorted(e.name for e in await files.ls("/")) == ["dev", "out", "proc", "ram", "role"]
        assert [e.name for e in await files.ls("/ram")] == ["a"]
        assert [e.name for e in await files.ls("/ram/a")] == ["b"]
        await files.write("/proc/boot", b"state=ready\n")
        assert own.said == "state=ready"
        async with await files.create("/out/log") as log:
            await log.write(b"done")
        assert await files.read("/out/log") == b"done"
        for path in ("/secret", "/demo/hello", "/ram/..", "/ram/x", "/n"):
            with pytest.raises(FileNotFoundError):
                await files.stat("/ram/a/../../secret" if path == "/ram/.." else path)


@pytest.mark.parametrize("versions", [[v] for v in VERSIONS])
async def test_every_dialect_is_spoken_to_a_guest(versions: list[str], autojump_clock: MockClock) -> None:
    async with house("local read /**") as h:
        _, owner, _ = await h.member("local")
        files = await h.guest(Share("/demo", ("read",), owner), versions=versions)
        assert files.version == versions[0]
        assert await files.read("/demo/hello") == b"hello, world\n"
        assert await files.read("/role") == b"role Guest\n"


@pytest.mark.parametrize(
    "shared", [(), ("read",), ("write",), ("read", "write"), ("ctl",), EVERY], ids=",".join
)
@pytest.mark.parametrize("owned", ["read", "write", "read,write", "ctl", "read,write,create,remove,ctl"])
async def test_it_may_do_what_the_share_names_and_the_owner_may(
    shared: tuple[str, ...], owned: str, autojump_clock: MockClock
) -> None:
    async with house(f"user/bob {owned} /**") as h:
        _, owner, _ = await h.member(BOB)
        files = await h.guest(Share("/demo", shared, owner), Share("/ram", shared, owner))
        both = {*shared} & {*owned.split(",")}
        tries = {
            "read": files.read("/demo/hello"), "write": files.write("/demo/hello", b"x"),
            "ctl": files.write("/demo/ctl", b"# nothing\n"), "create": files.mkdir("/ram/new"),
            "remove": files.remove("/ram/a/b"),
        }  # fmt: skip
        done = set()
        for right, attempt in tries.items():
            try:
                await attempt
            except PermissionError:
                continue
            done.add(right)
        assert done == both


async def test_verbs_stay_those_of_the_owner(autojump_clock: MockClock) -> None:
    async with house("user/bob ctl /demo/ctl#say", "user/bob read /demo/**") as h:
        _, owner, _ = await h.member(BOB)
        files = await h.guest(Share("/demo", EVERY, owner))
        verbs = (await files.read("/demo/ctl")).decode()
        other = next(line.split()[0] for line in verbs.splitlines() if not line.startswith("say"))
        with pytest.raises(PermissionError):
            await files.write("/demo/ctl", other.encode() + b"\n")


async def test_a_new_policy_holds_for_what_is_open_and_what_is_parked(autojump_clock: MockClock) -> None:
    async with house("user/bob read,write /**") as h:
        _, owner, _ = await h.member(BOB)
        files = await h.guest(Share("/demo", ("read", "write"), owner))
        file = await files.open("/demo/scratch", os.O_RDWR)
        async with trio.open_nursery() as nursery:
            ended = trio.Event()

            async def listen() -> None:
                with pytest.raises(PermissionError):
                    await files.read("/demo/recv")
                ended.set()

            nursery.start_soon(listen)
            await file.pwrite(b"x", 0)
            await wait_all_tasks_blocked()
            h.export.replace(Policy.parse(["user/bob read /secret"]))
            with pytest.raises(PermissionError):
                await file.pwrite(b"y", 1)
            await ended.wait()
        with pytest.raises(OSError):
            await files.read("/demo/hello")
        assert await files.read("/role") == b"role Guest\n"


async def test_when_the_owner_hangs_up_the_share_is_gone(autojump_clock: MockClock) -> None:
    async with house("user/bob read,write /**") as h:
        _, owner, line = await h.member(BOB)
        files = await h.guest(Share("/demo", ("read", "write"), owner))
        assert await files.read("/demo/hello")
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                with pytest.raises(PermissionError):
                    await files.read("/demo/recv")

            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            await line.aclose()
        with pytest.raises(FileNotFoundError):
            await files.read("/demo/hello")
        assert sorted(e.name for e in await files.ls("/")) == ["dev", "out", "proc", "role"]


async def test_a_token_that_ran_out_gives_nothing(autojump_clock: MockClock) -> None:
    async with house("user/bob read /**") as h:
        _, owner, _ = await h.member(BOB)
        files = await h.guest(Share("/demo", ("read",), owner))
        assert await files.read("/demo/hello")
        owner.expires = 1.0  # as of a token that was good until then; nobody looked since
        with pytest.raises(FileNotFoundError):
            await files.read("/demo/hello")
        assert owner.ended == "token_expired"


async def test_what_a_local_owner_shares_stays_when_they_leave(autojump_clock: MockClock) -> None:
    async with house("local read /**") as h:
        _, owner, line = await h.member("local")
        share = Share("/demo", ("read",), h.guests.standing(owner))
        await line.aclose()
        await wait_all_tasks_blocked()
        files = await h.guest(share)
        assert await files.read("/demo/hello")
        h.export.replace(Policy.parse(["local read /secret"]))
        with pytest.raises(FileNotFoundError):
            await files.read("/demo/hello")


async def test_one_who_left_before_the_start_shares_nothing(autojump_clock: MockClock) -> None:
    async with house("user/bob read /**") as h:
        _, owner, line = await h.member(BOB)
        share = Share("/demo", ("read",), h.guests.standing(owner))
        await line.aclose()
        await wait_all_tasks_blocked()
        files = await h.guest(share)
        with pytest.raises(FileNotFoundError):
            await files.read("/demo/hello")


async def test_the_audit_says_for_whom(autojump_clock: MockClock) -> None:
    async with house("user/bob read,write /**") as h:
        _, owner, _ = await h.member(BOB)
        files = await h.guest(Share("/demo", ("read", "write"), owner))
        await files.write("/demo/hello", b"hi")
        await files.write("/proc/boot", b"state=ready")
        with pytest.raises(PermissionError):
            await files.write("/demo/ctl", b"say x")
        lines = h.audited()
        assert f"intent vm/3 for={BOB} open /demo/hello" in lines
        assert "intent vm/3 open /proc/boot" in lines
        assert any(line.startswith(f"note vm/3 for={BOB} Tlopen /demo/ctl") for line in lines), lines


async def test_what_goes_elsewhere_goes_for_the_owner(autojump_clock: MockClock) -> None:
    async with house("user/bob read /**") as h:
        h.cell.space = h.cell.space.mount("$far", "/n/far")
        _, owner, _ = await h.member(BOB)
        files = await h.guest(Share("/n/far", ("read",), owner))
        with pytest.raises(OSError):
            await files.read("/n/far/x")
        assert {*h.trees.came} == {BOB}


async def test_a_guest_of_a_guest_has_no_more_than_the_first(autojump_clock: MockClock) -> None:
    async with house("local read,write /**") as h:
        _, owner, _ = await h.member("local")
        await h.guest(Share("/demo", ("read",), owner))
        [inner] = [s for s in h.export.sessions if s.subject == "vm/3"]
        second = await h.guest(Share("/demo", EVERY, inner), name="vm/4")
        assert await second.read("/demo/hello")
        with pytest.raises(PermissionError):
            await second.write("/demo/hello", b"x")
        inner.close()  # as when its machine is gone
        with pytest.raises(FileNotFoundError):
            await second.read("/demo/hello")


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["/role"], "own"), (["/proc/lifecycle"], "own"), (["/dev/random"], "own"),
        (["/demo", "/demo/hello"], "lie in one another"), (["/ram", "/ram"], "lie in one another"),
        (["/", "/demo"], "lie in one another"), (["/ram/../secret"], "spelt plainly"),
        (["demo"], "spelt plainly"),
    ],
)  # fmt: skip
async def test_a_share_that_cannot_be_is_refused(
    paths: list[str], says: str, autojump_clock: MockClock
) -> None:
    async with house("local read /**") as h:
        _, owner, _ = await h.member("local")
        _, far = memory_stream_pair()
        with pytest.raises(Refused, match=says):
            await h.guests.serve(far, "vm/3", OwnTree(), [Share(p, ("read",), owner) for p in paths])


async def test_a_stranger_owns_no_share(autojump_clock: MockClock) -> None:
    class Stranger:
        subject, session, last_error = "local", 1, ""

    async with house("local read /**") as h:
        with pytest.raises(Refused, match="no session here"):
            h.guests.standing(Stranger())


async def test_all_may_be_shared_with_the_guests_own_names_in_front(autojump_clock: MockClock) -> None:
    root = Dir({"role": Text(lambda: "of the host"), "demo": Demo()})
    async with house("local read /**", root=root) as h:
        _, owner, _ = await h.member("local")
        files = await h.guest(Share("/", ("read",), owner))
        assert sorted(e.name for e in await files.ls("/")) == ["demo", "dev", "out", "proc", "role"]
        assert await files.read("/role") == b"role Guest\n"
        assert await files.read("/demo/hello") == b"hello, world\n"


async def test_a_guest_parks_only_so_many_reads(autojump_clock: MockClock) -> None:
    ring = Ring()
    async with house("local read /**", root=Dir({"news": Stream(ring)})) as h:
        _, owner, _ = await h.member("local")
        files = await h.guest(Share("/news", ("read",), owner))
        busy = 0

        async def listen() -> None:
            nonlocal busy
            try:
                await files.read("/news")
            except BlockingIOError:
                busy += 1

        async with trio.open_nursery() as nursery:
            for _ in range(LIMITS.parked + 5):
                nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            assert busy == 5
            nursery.cancel_scope.cancel()


async def test_a_guest_that_reads_nothing_stalls_itself_at_a_bound(autojump_clock: MockClock) -> None:
    async with house("local read /**", root=Dir({"big": Text(lambda: "x" * 60000)})) as h:
        near, far = memory_stream_pair()
        _, owner, _ = await h.member("local")
        h.nursery.start_soon(h.guests.serve, far, "vm/3", OwnTree(), [Share("/big", ("read",), owner)])
        wire = Wire(near)
        await wire.version()
        await wire.attach()
        await wire.open("big", 1)
        far.send_stream.send_all_hook = trio.sleep_forever  # the guest is paused: nothing is taken any more
        sent = 0
        with trio.move_on_after(9):
            while sent < 4096:
                await wire.send(*[Tread(1, 0, 60000)] * 16)
                sent += 16
                await wait_all_tasks_blocked()
        [session] = [s for s in h.export.sessions if s.subject == "vm/3"]
        waiting = sum(map(len, session.half.out))
        assert LIMITS.unread < waiting < LIMITS.unread + 16 * 65536
        assert session in h.export.sessions


async def test_what_it_says_of_itself_counts_for_nothing(autojump_clock: MockClock) -> None:
    async with house("local read /**", "user/root read,write /**") as h:
        near, far = memory_stream_pair()
        _, owner, _ = await h.member("local")
        h.nursery.start_soon(h.guests.serve, far, "vm/3", OwnTree(), [Share("/demo", ("read",), owner)])
        wire = Wire(near)
        await wire.version()
        for aname in ("secret", "/ram/a", "demo/../secret"):
            with pytest.raises(RefusedBy):
                await wire.want(Rattach, Tattach(0, NOFID, "local", aname, 0))
        with pytest.raises(RefusedBy):  # no token counts here
            await wire.want(Rauth, Tauth(9, "spiffe://hive/user/root", "", 0))
        await wire.want(Rattach, Tattach(0, NOFID, "spiffe://hive/user/root", "demo", 0))
        reply = await wire.want(Rwalk, Twalk(0, 1, ["..", "..", "hello"]))
        assert len(reply.qids) == 3, "above what it attached to there is nothing"
        reply = await wire.want(Rwalk, Twalk(0, 2, ["..", "secret"]))
        assert len(reply.qids) == 1


async def test_a_role_that_drains_takes_no_effects_from_guests(autojump_clock: MockClock) -> None:
    def draining(op: str, path: str) -> None:
        raise Refused(503, "this role is going down")

    async with house("local read,write /**") as h:
        _, owner, _ = await h.member("local")
        files = await h.guest(Share("/demo", ("read", "write"), owner))
        h.export.admit = draining
        with pytest.raises(OSError, match="going down"):
            await files.write("/demo/hello", b"x")
        await files.write("/proc/boot", b"state=ended")


async def test_a_rename_by_the_role_moves_what_a_guest_has_there(autojump_clock: MockClock) -> None:
    async with house("local read,write,create,remove /**") as h:
        mine, owner, _ = await h.member("local")
        async with await mine.create("/ram/a/file") as made:
            await made.write(b"one")
        files = await h.guest(Share("/ram/a", ("read",), owner))
        async with await files.open("/ram/a/file", os.O_RDONLY) as file:
            await mine.rename("/ram/a/file", "/ram/away")
            with pytest.raises(PermissionError):
                await file.pread(3, 0)


# What a guest serves


class Serving:
    """A guest's end of its export channel: it serves a Demo until it hangs up."""

    def __init__(self, h: House) -> None:
        self.near, self.far = memory_stream_pair()
        export = Export(Demo(), Policy.parse(["any read,write,ctl /**"]), AuditMemory(), TraceRing())
        h.nursery.start_soon(serve_stream, export, self.far, "any")


async def test_the_tree_of_a_guest_stands_at_n_for_as_long_as_its_channel(autojump_clock: MockClock) -> None:
    async with house("local read,write,ctl /**", f"{BOB} read /**") as h:
        mine, _, _ = await h.member("local")
        bobs, _, _ = await h.member(BOB)
        serving = Serving(h)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.guests.take, serving.near, "vm-3")
            await wait_all_tasks_blocked()
            assert await mine.read("/n/vm-3/hello") == b"hello, world\n"
            await mine.write("/n/vm-3/ctl", b"say hi\n")
            with pytest.raises(PermissionError, match="local callers"):
                await bobs.read("/n/vm-3/hello")
            await serving.far.aclose()
        with pytest.raises(FileNotFoundError):
            await mine.read("/n/vm-3/hello")
        assert not h.trees.guests


async def test_a_name_that_is_taken_is_refused(autojump_clock: MockClock) -> None:
    async with house("local read /**") as h:
        first, second = Serving(h), Serving(h)
        h.nursery.start_soon(h.guests.take, first.near, "vm-3")
        await wait_all_tasks_blocked()
        with pytest.raises(Refused, match="taken"):
            await h.guests.take(second.near, "vm-3")
        mine, _, _ = await h.member("local")
        assert await mine.read("/n/vm-3/hello")


async def test_a_guest_that_serves_nothing_is_given_up(autojump_clock: MockClock) -> None:
    async with house("local read /**") as h:
        near, _ = memory_stream_pair()
        with pytest.raises(TimeoutError):
            await h.guests.take(near, "vm-3")
        assert not h.trees.guests


async def test_a_worker_that_has_the_name_is_reached_and_not_the_guest(autojump_clock: MockClock) -> None:
    """It may dial in when the guest is there already; the address of a worker is its own."""
    async with house("local read /**") as h:
        serving = Serving(h)
        h.nursery.start_soon(h.guests.take, serving.near, "drone-1")
        await wait_all_tasks_blocked()
        mine, _, _ = await h.member("local")
        assert await mine.read("/n/drone-1/hello") == b"hello, world\n"
        h.cell.space = h.cell.space.unmount("/n/drone-1")
        post(h.cell, "drone-1", "$drone-1")
        with pytest.raises(OSError, match="is not there"):  # the worker's own tree is asked for
            await mine.read("/n/drone-1/hello")
        assert set(h.trees.came) == {"local"}
