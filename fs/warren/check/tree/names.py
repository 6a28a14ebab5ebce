"""Names and identity: what is listed, what can be walked to, and what qids say."""

import errno
import os
import secrets
import stat as S
from itertools import islice

from warren.check.tree.place import (
    PAGE,
    WORDS,
    Place,
    Spot,
    Talk,
    below,
    explore,
    holds,
    refused,
    same,
    survey,
)
from warren.p9.fields import QTDIR, QTSYMLINK, Qid
from warren.p9.messages import Twalk
from warren.tree import Dir

SOME = 60


async def names(at: Place) -> None:
    """What is listed can be walked to, what can be walked to is listed, and each name once"""
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            if spot.names is not None:
                await _names_of(talk, spot, spot.names)


async def _names_of(talk: Talk, spot: Spot, listed: list[str]) -> None:
    for name in listed:
        good = name not in ("", ".", "..") and "/" not in name and "\0" not in name
        holds(good, spot.path, f"{name!r} is listed and is no file name")
        holds(listed.count(name) == 1, spot.path, f"{name!r} is listed more than once")
    fid = await talk.walk(spot.path)
    for name in spot.node.entries if isinstance(spot.node, Dir) else ():
        child, _ = await talk.enter(fid, spot.child(name), name)
        await talk.clunk(child, spot.child(name))
        holds(name in listed, spot.child(name), "it can be walked to and is not listed")
    near = {
        n for name in listed[:8] for n in (name.swapcase(), f"{name} ", f" {name}", f"{name}x", name[:-1])
    }
    for name in sorted(near - set(listed) - {"", ".", ".."}):
        if len(os.fsencode(name)) <= 255:
            await refused(
                spot.child(name),
                "a walk to what is nearly a name",
                talk.enter(fid, spot.child(name), name),
                errno.ENOENT,
            )
    await talk.clunk(fid, spot.path)


async def identity(at: Place) -> None:
    """A qid names one node, and every walk to that node finds the same qid"""
    async with at.served() as export, at.talk(export) as talk, at.talk(export) as other:
        spots = await survey(talk)
        again = {spot.path: spot for spot in await explore(other)}
        owner: dict[int, Spot] = {}
        for spot in spots:
            second = again.get(spot.path)
            holds(second is not None, spot.path, "a second session does not find it")
            assert second is not None
            holds(
                spot.qid[::2] == second.qid[::2],
                spot.path,
                f"its qid is not stable: one walk found {spot.qid}, the next {second.qid}",
            )
            first = owner.setdefault(spot.qid.path, spot)
            one = first is spot or first.node is spot.node
            if not isinstance(spot.node, WORDS):
                one = one or at.plain or spot.entry.nlink > 1  # plain does not tell of further names
            holds(one, spot.path, f"its qid.path {spot.qid.path} is also that of {first.path}")


async def kinds(at: Place) -> None:
    """Listing, walking and attributes agree on what a file is; synthetic files have qid.version 0"""
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            said: list[tuple[str, Qid]] = [("walking", spot.qid), ("getattr", spot.entry.qid)]
            said += [("listing", spot.listed)] if spot.listed else []
            for how, qid in said:
                where = f"the qid.path from {how}"
                same(qid.path, spot.qid.path, spot.path, where)
                same(qid.type, spot.qid.type, spot.path, f"the qid.type from {how}")
                if isinstance(spot.node, WORDS):
                    same(qid.version, 0, spot.path, f"the qid.version from {how}, of a synthetic file")
            mode = spot.entry.mode
            same(
                S.S_ISDIR(mode), bool(spot.qid.type & QTDIR), spot.path, f"that mode {mode:o} is a directory"
            )
            if not at.plain:
                link = bool(spot.qid.type & QTSYMLINK)
                same(S.S_ISLNK(mode), link, spot.path, f"that mode {mode:o} is a symbolic link")


async def strangers(at: Place) -> None:
    """A name that is not there is ENOENT in every directory, and a walk through a file ENOTDIR"""
    stranger = f"no-such-name-{secrets.token_hex(4)}"
    async with at.served() as export, at.talk(export) as talk:
        spots = await survey(talk)
        for spot in islice((s for s in spots if s.is_dir), SOME):
            path, fid = spot.child(stranger), await talk.walk(spot.path)
            e = await refused(path, "the walk", talk.enter(fid, path, stranger), errno.ENOENT)
            if at.speaks:
                holds((e.strerror or "").startswith("404 "), path, f"its refusal reads {e.strerror!r}")
            for name in (spot.names or [])[:4]:
                # The walk goes as far as it can, and makes no fid.
                new = talk.link.half.fids.take()
                got = await talk.ask(path, Twalk, fid, new, [name, f"{stranger}-below"])
                same(len(got.qids), 1, spot.child(name), "the number of names walked before the one missing")
                holds(new not in talk.session.fids, spot.child(name), "a walk that fell short made a fid")
            await talk.clunk(fid, spot.path)
        for spot in islice((s for s in spots if not s.is_dir), SOME):
            path, fid = spot.child(stranger), await talk.walk(spot.path)
            numbers = () if at.plain else (errno.ENOTDIR,)
            await refused(path, "a walk through a file", talk.enter(fid, path, stranger), *numbers)
            await talk.clunk(fid, spot.path)


async def upward(at: Place) -> None:
    """`..` leads to the directory one came from, and never above the root"""
    async with at.served() as export, at.talk(export) as talk:
        spots = {spot.path: spot for spot in await explore(talk)}
        for spot in islice((s for s in spots.values() if s.is_dir), SOME):
            fid = await talk.walk(spot.path)
            up, qid = await talk.enter(fid, spot.path, "..")
            above = spots[spot.path.rpartition("/")[0] or "/"]
            same(qid.path, above.qid.path, below(spot.path, ".."), "its qid.path")
            await talk.clunk(up, spot.path)
            await talk.clunk(fid, spot.path)


async def pages(at: Place) -> None:
    """A directory that is read in small pages gives each name exactly once"""
    async with at.served() as export, at.talk(export) as talk:
        spots = await survey(talk)
        for spot in islice((s for s in spots if s.names is not None), SOME):
            fid = await talk.opened(spot.path)
            whole = await talk.pages(fid, spot.path, PAGE)
            listed = [d.name for d, _, _ in whole]
            if whole:
                largest = max(size for _, _, size in whole)
                small = [d.name for d, _, _ in await talk.pages(fid, spot.path, largest)]
                same(small, listed, spot.path, f"what pages of {largest} bytes give")
                least = whole[0][2] - 1
                await refused(
                    spot.path,
                    f"a page of {least} bytes, too small for a name",
                    talk.page(fid, spot.path, 0, least),
                )
                if not at.plain:
                    middle = len(whole) // 2
                    rest = await talk.pages(fid, spot.path, PAGE, whole[middle][1])
                    same(
                        [d.name for d, _, _ in rest],
                        listed[middle + 1 :],
                        spot.path,
                        "what a page from the middle gives",
                    )
            await talk.clunk(fid, spot.path)


CHECKS = (names, identity, kinds, strangers, upward, pages)
