"""Bytes and refusals: what reading gives, what is refused, and in which words."""

import errno
import gc
import os
import re
import secrets
import stat as S
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import cycle, islice

from warren.check.tree.place import Place, Spot, Talk, holds, refused, same, survey
from warren.p9.messages import (
    Tcreate,
    Tlcreate,
    Tlink,
    Tmkdir,
    Tmknod,
    Tread,
    Treadlink,
    Tsymlink,
    Tunlinkat,
    Twrite,
)
from warren.serve.export import Export
from warren.tree import CODES, Clone, Dir, File, Handle, Text

ODD = (1, 7, 13, 509, 3, 4093)
KNOWN = frozenset(errno.errorcode)
LINE = re.compile(r"(\d{3}) \w+(: .+)? trace=[0-9a-f]{16}")
FAR = 1 << 40
Asking = Callable[[], Awaitable[object]]


async def offsets(at: Place) -> None:
    """Reading in odd sizes gives the same bytes as reading whole, and past the end there is nothing"""
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            if isinstance(spot.node, Text | File) or _stored(spot):
                try:
                    await _read(talk, spot)
                except PermissionError:
                    continue  # the system below has refusals of its own


def _stored(spot: Spot) -> bool:
    return type(spot.node).__module__ != "warren.serve.errstr" and _regular(spot) and spot.entry.size > 0


def _regular(spot: Spot) -> bool:
    return S.S_ISREG(spot.entry.mode) and not (spot.node.swallows_truncate or spot.node.is_ctl)


async def _read(talk: Talk, spot: Spot) -> None:
    path, most = spot.path, 1 << 16
    fid = await talk.opened(path)
    # A value may change from one read at 0 to the next, so the odd sizes stand between two whole ones.
    first = await talk.whole(fid, path, most)
    pieces, sizes, got = [], cycle(ODD), 0
    while got < most and (piece := await talk.read(fid, path, got, next(sizes))):
        pieces.append(piece)
        got += len(piece)
    last = await talk.whole(fid, path, most)
    if first == last:
        odd = b"".join(pieces)
        n = min(len(odd), len(first))
        same(odd[:n], first[:n], path, "what reading in odd sizes gives")
        holds(len(odd) >= len(first), path, f"odd sizes gave {len(odd)} bytes, reading whole {len(first)}")
        size = (await talk.stat(fid, path)).size
        if size and size <= most:
            same(len(first), size, path, "the number of bytes read, by its size,")
        end = max(size, len(first))
        if len(first) < most:
            for offset in (end, end + 1, end + 4097, FAR):
                same(await talk.read(fid, path, offset), b"", path, f"what lies at {offset}, past the end,")
    same(await talk.read(fid, path, 0, 0), b"", path, "a read of no bytes")
    await talk.clunk(fid, path)


async def unwritable(at: Place) -> None:
    """What cannot be written is refused when it is opened for writing"""
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            path = spot.path
            reads_only = isinstance(spot.node, Text | File) and not spot.node.mode & 0o222
            if not (spot.is_dir or reads_only):
                continue
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC):
                if flags == os.O_RDONLY | os.O_TRUNC and not spot.is_dir and spot.node.swallows_truncate:
                    continue
                await refused(path, f"an open with flags {flags:o}", talk.opened(path, flags))
            fid = await talk.opened(path)
            await refused(path, "a write through a fid opened for reading", talk.write(fid, path, b"x"))
            await talk.clunk(fid, path)


async def absent(at: Place) -> None:
    """What a file does not support is refused with an error of the table"""
    name = f"no-such-name-{secrets.token_hex(4)}"
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            path, fid = spot.path, await talk.walk(spot.path)
            asked: list[tuple[str, Asking]] = [
                ("a read before the open", partial(talk.ask, path, Tread, fid, 0, 1)),
                ("a write before the open", partial(talk.ask, path, Twrite, fid, 0, b"x")),
                ("a readdir before the open", partial(talk.page, fid, path, 0, 4096)),
            ]
            if not at.plain:
                if not S.S_ISLNK(spot.entry.mode):
                    asked.append(("readlink", partial(talk.ask, path, Treadlink, fid)))
                if not spot.is_dir:
                    asked.append(("mkdir below a file", partial(talk.ask, path, Tmkdir, fid, name, 0o755, 0)))
                    asked.append(("unlink below a file", partial(talk.ask, path, Tunlinkat, fid, name, 0)))
            if spot.is_dir and (at.writable is None or isinstance(spot.node, Dir)):
                asked += _making(at, talk, spot, fid, name)
            for what, asking in asked:
                e = await refused(path, what, asking())
                holds(e.errno in KNOWN, path, f"{what} is refused with errno {e.errno}, which is none")
                if at.speaks:
                    found = LINE.fullmatch(e.strerror or "")
                    good = found is not None and int(found[1]) in CODES
                    holds(
                        good, path, f"{what} is refused with {e.strerror!r}, not CODE REASON: DETAIL trace=ID"
                    )
            await talk.clunk(fid, path)


def _making(at: Place, talk: Talk, spot: Spot, fid: int, name: str) -> list[tuple[str, Asking]]:
    """What makes or removes a name. Words have none of it; nor has a tree that is not said to be writable."""
    path, node = spot.child(name), spot.node
    if at.plain:
        return [("create", partial(talk.ask, path, Tcreate, fid, name, 0o644, 1))]
    asked: list[tuple[str, Asking]] = [("unlink", partial(talk.ask, path, Tunlinkat, fid, name, 0))]
    if at.writable is None or type(node).create is Dir.create:
        asked.append(("create", partial(talk.ask, path, Tlcreate, fid, name, 1, 0o644, 0)))
    if at.writable is None or type(node).mkdir is Dir.mkdir:
        asked.append(("mkdir", partial(talk.ask, path, Tmkdir, fid, name, 0o755, 0)))
    if at.writable is None or type(node).symlink is Dir.symlink:
        asked.append(("symlink", partial(talk.ask, path, Tsymlink, fid, name, "target", 0)))
    if at.writable is None or type(node).mknod is Dir.mknod:
        asked.append(("mknod", partial(talk.ask, path, Tmknod, fid, name, S.S_IFIFO | 0o600, 0, 0, 0)))
    if at.writable is None or type(node).link is Dir.link:
        asked.append(("link", partial(talk.ask, path, Tlink, fid, fid, name)))
    return asked


async def leaving(at: Place) -> None:
    """A client that leaves without a word leaves nothing open"""
    async with at.served() as export:
        before = 0
        for _ in range(2):
            handles = await _left_open(at, export)
            if any(handle() for _, handle in handles) or before < _descriptors():
                gc.collect()
            for path, handle in handles:
                holds(handle() is None, path, "its handle is kept after the client has gone")
            says = f"one more client left {_descriptors() - before} descriptors of the process open"
            holds(not before or _descriptors() <= before, "/", says)
            before = _descriptors()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _left_open(at: Place, export: Export) -> list[tuple[str, weakref.ref[Handle]]]:
    """The handles of a client that opened all it could, and has gone."""
    handles = []
    async with at.talk(export) as talk:
        for spot in islice(await survey(talk), 100):
            if isinstance(spot.node, Clone):
                continue
            try:
                fid = await talk.opened(spot.path)
            except OSError:
                continue  # FIFOs, links, and what the system below refuses
            handles.append((spot.path, weakref.ref(talk.handle(fid))))
    return handles


CHECKS = (offsets, unwritable, absent, leaving)
