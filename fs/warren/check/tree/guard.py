"""Rights: what a tree looks like to those who may see none of it, or a part."""

import errno
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from warren.auth.rights import Policy
from warren.check.tree.control import OWNER
from warren.check.tree.place import Place, Spot, Talk, explore, holds, refused, row, same, survey, words
from warren.p9.messages import Tlcreate, Tmkdir, Tunlinkat
from warren.serve.export import Export
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node

SOME = 8
EVERY = "read,write,create,remove,ctl"
OPERATIONS = frozenset(name for name, it in vars(Node).items() if callable(it) and not name.startswith("_"))


class Watched(Node):
    """A root that notes which of its operations were reached."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.ran: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in OPERATIONS:
            return super().__getattribute__(name)
        self.ran.append(name)
        return getattr(self.root, name)


async def deny_all(at: Place) -> None:
    """Who has no row in the policy gets a refused attach and nothing else, and no node is asked anything"""
    async with at.served() as export, at.talk(export) as talk:
        paths = [spot.path for spot in await explore(talk)][:SOME]
    anames = ["", *paths, f"/no-such-name-{secrets.token_hex(4)}", "/../..", "//"]
    async with at.make() as root:
        watched = Watched(root)
        export = Export(watched, Policy(), AuditMemory(), TraceRing())
        watched.ran.clear()
        said = set()
        for policy in (Policy(), Policy([OWNER])):
            export.replace(policy)
            for aname in anames:
                e = await refused(
                    aname or "/", "the attach of a stranger", _attach(at, export, aname), errno.EACCES
                )
                said.add((e.errno, words(e)))
        same(len(said), 1, "/", f"the number of ways in which an attach is refused, {said},")
        same(watched.ran, [], "/", "what the root was asked for a stranger")
        for what in ("sessions", "fids"):
            same(export.statistics()[what], 0, "/", f"the number of {what} after refused attaches")


async def _attach(at: Place, export: Export, aname: str) -> None:
    async with at.talk(export, "any", aname):
        pass


async def partial(at: Place) -> None:
    """What one may not reach is neither listed nor walked to, and reads like what is not there"""
    async with at.served(OWNER) as export, at.talk(export, "local") as talk:
        spots = await survey(talk)
        by_path = {spot.path: spot for spot in spots}
        top = [s for s in spots if s.path.count("/") == 1 and s.path != "/"]
        deepest = sorted(spots, key=lambda s: s.path.count("/"))[-1:]
        for spot in [*top[:SOME], *deepest]:
            if "*" in spot.path.split("/") or "**" in spot.path.split("/") or spot.path == "/":
                continue
            rows = [OWNER, row(EVERY, spot.path), row(EVERY, f"{spot.path}/**")]
            way = spot.path.split("/")
            rows += [row("read", "/".join(way[:n]) or "/") for n in range(1, len(way))]
            export.replace(Policy(rows))
            async with at.talk(export) as stranger:
                await _only(at, stranger, spot, by_path)


async def _only(at: Place, talk: Talk, spot: Spot, by_path: dict[str, Spot]) -> None:
    """TALK sees the way to SPOT, and at each step nothing beside it."""
    at_path = "/"
    for name in spot.path.strip("/").split("/"):
        here = by_path[at_path]
        if here.names is not None:
            same(
                [d.name for d in await talk.names(at_path)],
                [name],
                at_path,
                f"what it lists for whom only {spot.path} is allowed",
            )
            missing = f"no-such-name-{secrets.token_hex(4)}"
            fid = await talk.walk(at_path)
            for hidden in [n for n in here.names if n != name][:SOME]:
                await _alike(at, talk, fid, here, hidden, missing)
            await talk.clunk(fid, at_path)
        at_path = here.child(name)
    await talk.stat(await talk.walk(spot.path), spot.path)


async def _alike(at: Place, talk: Talk, fid: int, here: Spot, hidden: str, missing: str) -> None:
    """Every question about HIDDEN is answered like the same question about MISSING."""

    def walk(name: str) -> Awaitable[object]:
        return talk.enter(fid, here.child(name), name)

    def ask(cls: Any, *fields: object) -> Callable[[str], Awaitable[object]]:
        return lambda name: talk.ask(here.child(name), cls, fid, name, *fields)

    asked: list[tuple[str, Callable[[str], Awaitable[object]]]] = [("the walk", walk)]
    if not at.plain:
        asked += [
            ("unlink", ask(Tunlinkat, 0)),
            ("mkdir", ask(Tmkdir, 0o755, 0)),
            ("create", ask(Tlcreate, os.O_RDWR, 0o644, 0)),
        ]
    for what, asking in asked:
        path, other = here.child(hidden), here.child(missing)
        one = await refused(path, f"{what} of what is hidden", asking(hidden))
        two = await refused(other, what, asking(missing))
        found, wanted = words(one).replace(path, "PATH"), words(two).replace(other, "PATH")
        same((one.errno, found), (two.errno, wanted), path, f"the refusal of {what}, hidden against missing,")
        if what == "the walk":
            same(one.errno, errno.ENOENT, path, "the errno of the walk to what is hidden")


async def revoked(at: Place) -> None:
    """A right that is taken away is gone from what is open, too"""
    async with at.served(OWNER, row(EVERY, "/**")) as export:
        async with at.talk(export, "local") as owner, at.talk(export) as talk:
            spots = await survey(owner)
            opened = []
            for spot in spots[:SOME]:
                try:
                    opened.append((spot, await talk.opened(spot.path)))
                except OSError:
                    continue  # clone files at their limit, links, FIFOs
            export.replace(Policy([OWNER]))
            for spot, fid in opened:
                path = spot.path
                await refused(
                    path, "getattr after the right was taken away", talk.stat(fid, path), errno.EACCES
                )
                coming = talk.page(fid, path, 0, 4096) if spot.is_dir else talk.read(fid, path)
                await refused(path, "a read after the right was taken away", coming)
            holds(opened, "/", "nothing of it could be opened")


CHECKS = (deny_all, partial, revoked)
