"""The servers of a role: which there are, and what each is given of the role.

    made = build(serve, role)        a node, and what must run beside it

One line a server. A server takes ports, never a role: what it gets here is all that it knows of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from warren.p9.client import VERSIONS
from warren.roles.serves import Serve, count, names
from warren.tree import Dir, Node

if TYPE_CHECKING:
    from warren.roles.run import Role

Beside = Callable[[], Coroutine[Any, Any, None]]


class Built(NamedTuple):
    """A server's tree, and its tasks, which run until the role ends."""

    node: Node
    beside: tuple[Beside, ...] = ()


class WallClock:
    """The real time, as `tree.ports.Clock`."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return trio.current_time()

    async def sleep_until(self, deadline: float) -> None:
        await trio.sleep_until(deadline)


def build(serve: Serve, role: Role) -> Built:
    """The server that a line of the role file asks for."""
    return BUILD[serve.server](role, serve.options)


def _dev(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.dev import Dev

    return Built(Dev(role.clock, version("warren-9p"), lambda: caps(role)))


def _proc(role: Role, options: Mapping[str, str]) -> Built:
    return Built(role.proc)


def _log(role: Role, options: Mapping[str, str]) -> Built:
    return Built(role.log, (role.log.keep,))


def _role(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.role import RoleFiles

    return Built(RoleFiles(role.inforce))


def _srv(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.srv import Srv

    srv = Srv(role.clock, role.inforce.post, role.inforce.withdraw, role.log.event)
    return Built(srv, (lambda: srv.discover(role.state.directory / "srv" / role.name),))


def _ca(role: Role, options: Mapping[str, str]) -> Built:
    return Built(role.ca())


def _cap(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.cap import Cap

    cap = Cap(role.state.ca)
    return Built(cap, (cap.watch,))


def _ram(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.ram import Ram

    size, files = count(options.get("size", "16M")), count(options.get("files", "4096"))
    return Built(Ram(size, files, names(options["dirs"]) if "dirs" in options else ()))


def _mailbox(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.mailbox import Mailbox

    mailbox = Mailbox(role.store, role.clock)
    return Built(mailbox, (mailbox.keep,))


def _task(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.task import Tasks

    tasks = Tasks(role.store, role.clock)
    return Built(tasks, (tasks.keep,))


def _store(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.store import StoreTree

    return Built(StoreTree(role.store, role.log.event))


def _storage(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.storage import Storage

    directory = role.state.directory / "store" / f"{role.name}.blobs"
    quota, largest = count(options.get("quota", "16G")), count(options.get("largest", "4G"))
    return Built(Storage(directory, role.store, role.clock, quota=quota, largest=largest))


def _boot(role: Role, options: Mapping[str, str]) -> Built:
    from warren.roles.machines import of
    from warren.servers.boot import Boot

    boot = Boot(of(role), role.clock)
    return Built(boot, (boot.keep,))


def _vm(role: Role, options: Mapping[str, str]) -> Built:
    from warren.boot.images.image import Images
    from warren.roles.builder import Beside
    from warren.roles.guests import Guests
    from warren.servers.vm import Vm
    from warren.servers.vm.backends import usual
    from warren.servers.vm.images import StoredImages

    state = role.state.directory
    post, withdraw = role.inforce.post, role.inforce.withdraw
    guests = Guests(role.export, role.reach.guests, post, withdraw, role.identity.uri)
    memory = count(options["memory"]) if "memory" in options else 0
    vm = Vm(
        state / "vm" / role.name, role.clock, guests, standing=guests.standing, tell=role.tell,
        images=StoredImages(lambda: Beside(Images.at(state), state)),
        backends=usual(state / "boot" / "accelerators.json"), memory=memory,
        machines=count(options.get("machines", "64")),
    )  # fmt: skip
    return Built(vm, (vm.keep,))


def _disk(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.disk import Disk

    return Built(Disk(options["dir"], read_only=options.get("read-only") == "yes"))


def _demo(role: Role, options: Mapping[str, str]) -> Built:
    from warren.servers.demo import Demo

    return Built(Demo())


BUILD: Mapping[str, Callable[[Role, Mapping[str, str]], Built]] = {
    "dev": _dev, "proc": _proc, "role": _role, "srv": _srv, "log": _log, "ca": _ca, "cap": _cap,
    "ram": _ram, "mailbox": _mailbox, "task": _task, "storage": _storage, "store": _store,
    "boot": _boot, "vm": _vm, "disk": _disk, "demo": _demo,
}  # fmt: skip


def caps(role: Role) -> str:
    """What this role can do, a capability a line: what is not here it cannot."""
    manifest = role.inforce.manifest
    found = [
        f"build.version={version('warren-9p')}",
        f"build.python={sys.version_info.major}.{sys.version_info.minor}",
        *(f"9p.{dialect}" for dialect in VERSIONS),
        *(f"serve.{name}" for name in sorted({serve.server for serve in manifest.serves})),
        *(["secure9p.listen"] if manifest.listens else []),
        *(["secure9p.export"] if manifest.exports_to else []),
        f"store.{manifest.store.partition(':')[0]}",
        *(["tokens.delegation"] if role.reach.mint is not None else []),
    ]
    return "\n".join(found)


class Rooted(Dir):
    """One tree of several, each at its path. A path leads through directories made for it."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        super().__init__(self.names)

    def put(self, path: Sequence[str], node: Node) -> None:
        """Give NODE its place. ValueError if a tree stands there, or on the way."""
        name, *rest = path
        if rest:
            below = self.names.setdefault(name, Rooted())
            if not isinstance(below, Rooted):
                raise ValueError(f"/{name}: a tree stands here already, and trees are not nested")
            below.put(rest, node)
        elif name in self.names:
            raise ValueError(f"/{name}: a tree stands here already")
        else:
            self.names[name] = node
