"""The Linux role image, booted once: what it says, what it may do, what it serves, and whom it believes.

`visit` does everything to one machine and writes down what it saw; each test looks at one thing of it. First
the image's own role; then the host gives other roles, one after the other, signed, altered and unsigned, and
the machine starts its worker anew for each.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing
from warren.auth.rights import Policy
from warren.boot.images.image import Image, Images
from warren.boot.machines import recipe
from warren.boot.machines.guest import Guest
from warren.boot.machines.qemu import Boots, Qemu
from warren.mount import dial
from warren.roles.built import WallClock
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.mailbox import Mailbox
from warren.servers.ram import Ram
from warren.servers.vm.lent import Lent
from warren.store.memory import MemoryStore
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, File, Text

from .images import built, images

LIMIT = 120.0  # seconds for each step: other tests make a machine slow
MUCH = 4 << 20
DRONE = """role DroneWorker
include worker.role
serve ram /sim dirs=todo
allow queens read,write,create,remove /sim/**
"""
BROKEN = "role DroneWorker\ninclude worker.role\nserve gpu /gpu\n"


@dataclass
class Seen:
    """What became of the machine."""

    seconds: float = 0.0
    reports: dict[str, Mapping[str, str]] = field(default_factory=dict)
    attempts: dict[str, str] = field(default_factory=dict)
    message: bytes = b""
    served: dict[str, list[str]] = field(default_factory=dict)
    work: bytes = b""
    refusals: dict[str, str] = field(default_factory=dict)
    log: str = ""
    status: int | None = None


class Host:
    """The host's half: a guest's tree with two shares in it, and roles that can be exchanged."""

    def __init__(self, store: MemoryStore) -> None:
        self.nursery: trio.Nursery
        self.role, self.signature = "", b""
        self.reports: list[Mapping[str, str]] = []
        self.news = trio.Event()
        self.reading = trio.Event()
        inputs = Dir({"job": Text(lambda: "what to do\n"), "much": File(self.much, size=lambda: MUCH)})
        self.guest = Guest(inputs=inputs, on_report=self.told)
        exchanged = {"role": Text(lambda: self.role), "role.sig": Text(lambda: self.signature.decode())}
        shares = {"mailbox": Mailbox(store, WallClock()), "shared": Ram(1 << 20, 16)}
        policy = Policy.parse(["allow any read,write,create,remove,ctl /**"])
        root = Dir({**self.guest.entries, **exchanged, **shares})
        self.export = Export(root, policy, AuditMemory(), TraceRing())
        self.export.shown_to_all = True

    def much(self, offset: int, count: int) -> bytes:
        if offset > MUCH // 8:
            self.reading.set()
        return bytes(min(count, MUCH - offset))

    def serve(self, machine: Qemu) -> None:
        self.nursery.start_soon(serve_stream, self.export, machine.channel, "any")

    def told(self, said: Mapping[str, str]) -> None:
        self.reports.append(said)
        self.news.set()

    async def until(self, key: str, value: str = "") -> Mapping[str, str]:
        """The next report that has this."""
        while True:
            while self.reports:
                said = self.reports.pop(0)
                if key in said and value in ("", said[key]):
                    return said
            self.news = trio.Event()
            await self.news.wait()

    async def asked(self, line: str, key: str) -> Mapping[str, str]:
        self.guest.tell(line)
        return await self.until(key)


async def visit(image: Image, place: Images) -> Seen:
    seen = Seen()
    line = f"{image.files['cmdline'].read_text().strip()} warren.name=one"
    boots = Boots(image.files["kernel"], image.files["initrd"], line)
    begun = time.monotonic()
    async with MemoryStore() as store, Qemu.started(recipe.chosen(image.kind), boots) as machine:
        host = Host(store)
        async with trio.open_nursery() as nursery:
            host.nursery = nursery
            host.serve(machine)
            nursery.start_soon(_log, machine, seen)
            others = partial(_others, place=place)
            for step in (partial(_own, begun=begun), _inside, _served, _reset, others, _end):
                with trio.move_on_after(LIMIT) as limit:
                    await step(host, machine, seen)
                if limit.cancelled_caught:
                    raise AssertionError(f"the machine did not go on; its log ends:\n{seen.log[-3000:]}")
            nursery.cancel_scope.cancel()
    return seen


async def _log(machine: Qemu, seen: Seen) -> None:
    try:
        while data := await machine.console.receive_some(4096):
            seen.log += data.decode(errors="replace")
    except trio.BrokenResourceError:
        pass


async def _own(host: Host, machine: Qemu, seen: Seen, begun: float) -> None:
    seen.reports["own"] = await host.until("state", "ready")
    seen.seconds = time.monotonic() - begun


async def _inside(host: Host, machine: Qemu, seen: Seen) -> None:
    """What the worker can do, by its own attempts; and what comes of that here."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, host.export, theirs, "any")
        async with dial(ours) as files:
            await files.mkdir("/mailbox/jobs")
            for line, key in (
                ("test rights", "rights.uid"), ("test root", "root.write"), ("test mount", "mount.made"),
                ("test orphan", "orphan"), ("test read /in/job", "read.text"),
                ("test read /not/here", "error"),
                ("test write /mailbox/jobs/send 'from inside'", "write.bytes"), ("fly", "error"),
            ):  # fmt: skip
                said = await host.asked(line, key)
                seen.attempts |= {f"{line}: {name}": value for name, value in said.items()}
            seen.message = await files.read("/mailbox/jobs/recv")
        nursery.cancel_scope.cancel()


async def _served(host: Host, machine: Qemu, seen: Seen) -> None:
    """What its host may do in the tree that it serves."""
    assert machine.export is not None
    async with dial(Lent(machine.export), uname="host", deadline=LIMIT) as files:
        seen.served["own"] = [entry.name for entry in await files.ls("/")]
        await files.write("/scratch/note", b"for later", create=True)
        seen.work = await files.read("/scratch/note")
        for path, data in (("/proc/lifecycle/ctl", b"offline\n"), ("/srv/mine", b"unix!/tmp/x\n")):
            try:
                await files.write(path, data, create=path.startswith("/srv"))
            except OSError as e:
                seen.refusals[path] = e.strerror or ""


async def _reset(host: Host, machine: Qemu, seen: Seen) -> None:
    """In the middle of much that is on its way to the guest, on both lines."""
    await machine.qmp.execute("set-action", reboot="reset")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_asking, machine)
        host.reading = trio.Event()
        host.guest.tell("test read /in/much")
        await host.reading.wait()
        host.reports.clear()
        await machine.reset(partial(host.serve, machine))
        nursery.cancel_scope.cancel()
    seen.reports["again"] = await host.until("state", "ready")
    seen.attempts |= await host.asked("test read /in/job", "read.text")
    assert machine.export is not None
    async with dial(Lent(machine.export), uname="host", deadline=LIMIT) as files:
        seen.served["again"] = [entry.name for entry in await files.ls("/")]


async def _asking(machine: Qemu) -> None:
    assert machine.export is not None
    with suppress(OSError):
        async with dial(Lent(machine.export), uname="host", deadline=LIMIT) as files:
            while True:
                await files.ls("/")


async def _others(host: Host, machine: Qemu, seen: Seen, place: Images) -> None:
    signed = place.signer.sign_role("DroneWorker", DRONE)
    for name, role, signature in (
        ("unsigned", DRONE, b""),
        ("altered", DRONE.replace("/sim/**", "/**"), signed),
        ("renamed", DRONE.replace("role DroneWorker", "role SensorRelay"), signed),
        ("broken", BROKEN, place.signer.sign_role("DroneWorker", BROKEN)),
        ("signed", DRONE, signed),
    ):
        host.role, host.signature = role, signature
        host.guest.tell("again")
        seen.reports[name] = await host.until("state", "ready")
    assert machine.export is not None
    async with dial(Lent(machine.export), uname="host", deadline=LIMIT) as files:
        seen.served["signed"] = [entry.name for entry in await files.ls("/sim")]


async def _end(host: Host, machine: Qemu, seen: Seen) -> None:
    host.guest.tell("exit 3")
    seen.reports["end"] = await host.until("state", "ended")
    seen.status = await machine.wait()


@pytest.fixture(scope="module")
def seen() -> Seen:
    image = built("linux")
    made = trio.run(visit, image, images())
    size = image.files["initrd"].stat().st_size / (1 << 20)
    print(f"ready after {made.seconds:.1f} s, initrd {size:.1f} MiB, image built in {image.seconds} s")
    return made


def test_it_joins_over_its_channel_and_says_who_it_is(seen: Seen) -> None:
    own = seen.reports["own"]
    assert {key: own[key] for key in ("role", "name", "host", "verified", "restricted")} == {
        "role": "Guest", "name": "one", "host": "one", "verified": "package", "restricted": "no",
    }  # fmt: skip
    assert own["kernel"].startswith("6.")
    assert own["dialect"] == "9p2000.L"
    assert int(own["uptime_ms"]) > int(own["worker_ms"]) > 0


def test_its_worker_is_no_root_and_has_no_capability(seen: Seen) -> None:
    said = {key.removeprefix("test rights: rights."): value for key, value in seen.attempts.items()}
    assert said["uid"] == f"{1000:x}"
    assert {said[name] for name in ("permitted", "effective", "bounding", "ambient", "inheritable")} == {"0"}
    assert (said["no_new_privs"], said["groups"]) == ("1", "0")
    assert seen.attempts["test mount: mount.made"] == "EPERM"


def test_its_root_is_read_only(seen: Seen) -> None:
    assert seen.reports["own"]["root"] == "ro"
    assert seen.attempts["test root: root.write"] == "EROFS"


def test_it_reads_and_writes_what_the_host_shares(seen: Seen) -> None:
    assert seen.attempts["test read /in/job: read.text"] == "what to do\\x0a"
    assert seen.attempts["test write /mailbox/jobs/send 'from inside': write.bytes"] == "11"
    assert seen.message.partition(b"\n\n")[2] == b"from inside"


def test_its_first_process_reaps_whoever_is_left(seen: Seen) -> None:
    assert seen.attempts["test orphan: orphan"] == "reaped"


def test_what_it_cannot_do_it_says(seen: Seen) -> None:
    assert "No such file" in seen.attempts["test read /not/here: error"]
    assert "there are say, test" in seen.attempts["fly: error"]


def test_its_own_tree_is_served_to_its_host(seen: Seen) -> None:
    assert {"dev", "proc", "role", "log", "scratch"} <= set(seen.served["own"])
    assert seen.work == b"for later"
    assert seen.refusals["/srv/mine"].startswith("403 denied")
    assert seen.refusals["/proc/lifecycle/ctl"].startswith("400 unknown_verb")


def test_reset_in_the_middle_of_it_all_it_begins_again_on_both_lines(seen: Seen) -> None:
    again, own = seen.reports["again"], seen.reports["own"]
    assert int(again["uptime_ms"]) > int(again["worker_ms"]) > 0
    assert again["uptime_ms"] != own["uptime_ms"]
    assert seen.attempts["read.text"] == "what to do\\x0a"
    assert set(seen.served["again"]) == set(seen.served["own"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unsigned", "DroneWorker.role is not signed"),
        ("altered", "DroneWorker.role is not what was signed"),
        ("renamed", "SensorRelay.role is not what was signed"),
        ("broken", "there is no server 'gpu'"),
    ],
)
def test_a_role_that_does_not_hold_leaves_the_restricted_one(seen: Seen, name: str, why: str) -> None:
    said = seen.reports[name]
    assert (said["verified"], said["exports"]) == ("no", "no")
    assert why in said["restricted"]
    assert said["uid"] == "1000"


def test_a_signed_role_runs(seen: Seen) -> None:
    said = seen.reports["signed"]
    assert (said["role"], said["verified"], said["restricted"]) == ("DroneWorker", "yes", "no")
    assert seen.served["signed"] == ["todo"]


def test_it_ends_when_it_is_told_and_switches_the_machine_off(seen: Seen) -> None:
    assert seen.reports["end"]["code"] == "3"
    assert "warren: ended code=3" in seen.log
    assert seen.status == 0
