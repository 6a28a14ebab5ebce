"""Deny means that nothing of the tree runs: no node of any server is even asked.

Servers are found, not listed: everything in `warren.servers` that makes a tree is walked here, and one that
this module cannot build makes a test fail until it can.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import pytest
import trio
import warren.servers
from warren.auth.ca import CA
from warren.auth.rights import Policy
from warren.boot.harness.bench import Bench
from warren.boot.machines.accel import Accelerators
from warren.p9 import messages as p9
from warren.p9.fields import NOFID, QTDIR
from warren.p9.messages import ALL, PLAIN, Message, Rattach, Rerror, Rlerror
from warren.servers.boot import Boot
from warren.servers.ca import Ca
from warren.servers.cap import Cap
from warren.servers.demo import Demo
from warren.servers.dev import Dev
from warren.servers.disk import Disk
from warren.servers.log import Log
from warren.servers.mailbox import Mailbox
from warren.servers.proc import Lifecycle, Proc
from warren.servers.ram import Ram
from warren.servers.role import RoleFiles
from warren.servers.srv import Srv
from warren.servers.storage import Storage
from warren.servers.store import StoreTree
from warren.servers.task import Tasks
from warren.servers.vm import Vm
from warren.store import MemoryStore
from warren.traces.audit import AuditMemory
from warren.traces.audit.text import audit_text
from warren.tree import Handle, Node

from tests.boot import tiny
from tests.boot.shelf import Shelf, tiny_image
from tests.servers.clock import StillClock
from tests.servers.ports import Crowd, Nobody, TheRole
from tests.servers.vm.place import NoGuests
from tests.wire import EVERYTHING, Wire, served


def a_disk(folder: Path) -> Node:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("x")
    (folder / "link").symlink_to("sub")
    return Disk(folder)


def a_demo(folder: Path) -> Node:
    demo = Demo()
    life = demo.make()
    life.keep()
    return demo


def a_cap(folder: Path) -> Node:
    CA.create(folder / "ca", "hive")
    return Cap(folder / "ca")


def a_ca(folder: Path) -> Node:
    CA.create(folder / "ca", "hive")
    return Ca(folder / "ca", MemoryStore())


def a_dev(folder: Path) -> Node:
    return Dev(StillClock(), "1", lambda: "")


def a_log(folder: Path) -> Node:
    log = Log(folder / "log", StillClock(), audit=audit_text(AuditMemory()), bound=100)
    for _ in range(9):
        log.event("tick")
    return log


def a_mailbox(folder: Path) -> Node:
    mailbox = Mailbox(MemoryStore(), StillClock())
    with ThreadPoolExecutor() as pool:  # a loop of its own, for we are in one
        pool.submit(trio.run, mailbox.make, "orders").result()
    return mailbox


def a_proc(folder: Path) -> Node:
    return Proc(Lifecycle(StillClock()), ns=str, boot=dict, sessions=Crowd())


def a_ram(folder: Path) -> Node:
    ram = Ram(dirs=("a/b",))
    ram.symlink("link", "a", 0)
    ram.create("file", 0, 0o644, 0, Nobody())
    return ram


def a_role(folder: Path) -> Node:
    return RoleFiles(TheRole())


def a_srv(folder: Path) -> Node:
    srv = Srv(StillClock(), lambda *post: None, lambda name: None)
    for name in ("one", "two", "three"):
        srv.create(name, 1, 0o644, 0, Nobody())
    return srv


def a_storage(folder: Path) -> Node:
    return Storage(folder / "blobs", MemoryStore(), StillClock())


def a_task(folder: Path) -> Node:
    tasks = Tasks(MemoryStore(), StillClock())
    with ThreadPoolExecutor() as pool:
        pool.submit(trio.run, tasks.make, "builds").result()
    return tasks


def a_store(folder: Path) -> Node:
    return StoreTree(MemoryStore())


def a_boot(folder: Path) -> Node:
    shelf = Shelf({"one": tiny_image(folder / "one", "one", tiny.HANG), "two": None})
    return Boot(Bench(shelf, no_guest, Accelerators(), folder / "boot"), StillClock())


async def no_guest(channel: trio.abc.Stream, subject: str, own: Node) -> None:
    raise AssertionError("nothing is booted here")


def a_vm(folder: Path) -> Node:
    (folder / "vm").mkdir()
    vm = Vm(folder / "vm", StillClock(), NoGuests(), backends=())
    vm.add(Nobody()).keep()
    return vm


# How to build one of each. The key is the module of warren.servers.
BUILT: dict[str, Callable[[Path], Node]] = {
    "boot": a_boot, "ca": a_ca, "cap": a_cap, "demo": a_demo, "dev": a_dev, "disk": a_disk, "log": a_log,
    "mailbox": a_mailbox, "proc": a_proc, "ram": a_ram, "role": a_role, "srv": a_srv, "storage": a_storage,
    "store": a_store, "task": a_task, "vm": a_vm,
}  # fmt: skip


def server_modules() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(warren.servers.__path__))


def test_every_server_is_walked_here() -> None:
    assert set(server_modules()) == set(BUILT), "say in BUILT how the new server is made"


def codes_of_nodes() -> dict[CodeType, str]:
    """The code of every method of every node and handle class there is."""
    found: dict[CodeType, str] = {}
    todo: list[type] = [Node, Handle]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        for name, value in vars(cls).items():
            function = inspect.unwrap(value) if callable(value) else getattr(value, "fget", None)
            code = getattr(function, "__code__", None)
            # What a tree's owner calls by itself (making nodes, ending them) is no request.
            if code is not None and name not in ("__init__", "__init_subclass__", "__del__", "__repr__"):
                found[code] = f"{cls.__qualname__}.{name}"
    return found


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The names of all node and handle methods that run meanwhile."""
    codes, ran = codes_of_nodes(), []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in codes:
            ran.append(codes[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)


def questions(version: str, fid: int) -> Iterator[Message]:
    """Every request with this fid in every place."""
    for name, cls in p9.MESSAGES.items():
        if (
            name[0] != "T"
            or name in ("Tversion", "Tflush", "Tattach", "Tauth")
            or version not in cls.dialects
        ):
            continue
        for m in cls.examples():
            for field, _ in cls.fields:
                if field.endswith("fid"):
                    setattr(m, field, 4000 if field == "newfid" else fid)
            yield m


async def paths_of(wire: Wire, fid: int = 0, path: str = "", depth: int = 3) -> list[str]:
    """Every path of the tree, found by a client that may see them all."""
    found = [path]
    if depth and (await wire.ask(p9.Twalk(fid, 500 + depth, []))) is not None:
        if isinstance(await wire.ask(p9.Tlopen(500 + depth, 0)), p9.Rlopen):
            reply = await wire.ask(p9.Treaddir(500 + depth, 0, 8000))
            names = list(entries(bytes(reply.data))) if isinstance(reply, p9.Rreaddir) else []
        else:
            names = []
        await wire.clunk(500 + depth)
        for name, is_directory in names:
            below = f"{path}/{name}".lstrip("/")
            if is_directory:
                await wire.walk(below, 600 + depth)
                found += await paths_of(wire, 600 + depth, below, depth - 1)
                await wire.clunk(600 + depth)
            else:
                found.append(below)
    return found


def entries(data: bytes) -> Iterator[tuple[str, bool]]:
    while data:
        size = int.from_bytes(data[22:24], "little")
        name = data[24 : 24 + size].decode()
        if name not in (".", ".."):
            yield name, bool(data[0] & QTDIR)
        data = data[24 + size :]


@pytest.mark.parametrize("server", sorted(BUILT))
async def test_an_empty_policy_asks_no_node(server: str, tmp_path: Path) -> None:
    importlib.import_module(f"warren.servers.{server}")
    tree = BUILT[server](tmp_path)
    async with served(tree) as service:
        paths = await paths_of(await service.dial())
        assert len(paths) > 3
        # Fids made while all was allowed must be as dead as those that never were.
        held = {version: await service.dial(version) for version in ALL}
        for wire in held.values():
            for fid, path in enumerate(paths):
                await wire.walk(path, 100 + fid)
        service.export.replace(Policy())
        with recorded() as ran:
            for version, wire in held.items():
                refusal = Rerror if version == PLAIN else Rlerror
                fresh = service.connect()
                await fresh.version(version)
                for path in paths:
                    reply = await fresh.ask(p9.Tattach(0, NOFID, "root", path, 0))
                    assert isinstance(reply, refusal), (path, reply)
                for m in questions(version, 0):
                    assert isinstance(await fresh.ask(m), refusal), m
                for fid, path in enumerate(paths):
                    for m in questions(version, 100 + fid):
                        if isinstance(m, p9.Tclunk | p9.Tremove):
                            continue  # letting go is always allowed
                        assert isinstance(await wire.ask(m), refusal), (path, m)
            assert ran == []
        assert not [e for e in service.export.trace.errors if e.code == 500]


async def test_the_recorder_sees_what_runs(tmp_path: Path) -> None:
    async with served(a_disk(tmp_path)) as service:
        with recorded() as ran:
            wire = await service.dial()
            await wire.open("sub/file", 1)
            await wire.read(1)
        assert {"Entry.walk", "Entry.open", "OpenFile.read"} <= set(ran)


@pytest.mark.parametrize(
    ("row", "path", "may"),
    [
        ("any ctl /ctl#say", "ctl", {"Ctl.parse", "Ctl.open", "CtlHandle.read"}),
        ("any read /hello", "hello", {"Text.open", "TextHandle.read"}),
        ("any write /send", "send", {"Sink.open", "SinkHandle.write", "Sink.setattr"}),
        ("any create /**", "hello", set()),
    ],
)
async def test_one_row_opens_one_door(row: str, path: str, may: set[str]) -> None:
    """Whatever else is tried, only nodes on the way to what the row names are asked anything."""
    async with served(Demo(), EVERYTHING) as service:
        paths = await paths_of(await service.dial())
        service.export.replace(Policy.parse([row]))
        with recorded() as ran:
            wire = await service.dial()
            for other in paths:
                if other and not path.startswith(other.split("/")[0]) and row.split()[-1] != "/**":
                    reply = await wire.ask(p9.Twalk(0, 9, other.split("/")))
                    assert isinstance(reply, Rlerror), other
            words = {"walk", "qid", "lookup", "get", "attr"}
            await wire.walk(path, 1)
            for flags in (0, 1, 2):
                await wire.ask(p9.Tlopen(1, flags))
            tried: list[Message] = [
                p9.Tread(1, 0, 10),
                p9.Twrite(1, 0, b"say x"),
                p9.Tunlinkat(0, "hello", 0),
                p9.Tsetattr(1, 1, 0o777, 0, 0, 0, 0, 0, 0, 0),
                p9.Txattrcreate(1, "user.a", 1, 0),
            ]
            for m in tried:
                await wire.ask(m)
        effects = {name for name in ran if name.split(".")[1] not in words}
        opened = {name for name in effects if name.endswith((".open", ".read", ".write", ".parse"))}
        assert opened <= may
        changed = {
            n for n in effects if n.endswith((".unlink", ".setattr", ".setxattr", ".rename", ".create"))
        }
        assert changed <= may
        assert isinstance(await wire.attach(50), Rattach)
