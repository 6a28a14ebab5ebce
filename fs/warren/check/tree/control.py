"""Ctl files, and how a client learns why it was refused."""

import errno
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from warren.auth.rights import Row
from warren.check.tree.place import Place, Spot, Talk, explore, holds, refused, row, same, survey
from warren.p9.fields import Qid, Stat
from warren.p9.messages import Tsetattr, Twstat, Txattrwalk
from warren.serve.export import Export
from warren.tree import Clone, Ctl, Dir

HELP = re.compile(r"(?P<verb>[^\s#=']+)(?: (?P<shape>[^#]*?\S))?  # (?P<help>\S.*)")
UNKNOWN = "no-such-verb-of-any-server"
_SIZE_MTIME_CTIME = 0x68
_KEEP = Stat(
    0xFFFF,
    0xFFFFFFFF,
    Qid(0xFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF),
    0xFFFFFFFF,
    0xFFFFFFFF,
    0xFFFFFFFF,
    0,
    "",
    "",
    "",
    "",
)
OWNER = row("read,write,create,remove,ctl", "/**", who="local")


@dataclass
class Scene:
    """A served tree, a session with every right that keeps what clone files made, and its ctl files."""

    export: Export
    talk: Talk
    spots: list[Spot]

    @property
    def ctls(self) -> list[tuple[Spot, Ctl]]:
        return [(s, s.node) for s in self.spots if isinstance(s.node, Ctl)]


@asynccontextmanager
async def scene(at: Place, *rows: Row) -> AsyncIterator[Scene]:
    async with at.served(OWNER, *rows) as export, at.talk(export, "local") as talk:
        yield Scene(export, talk, await survey(talk))


def ran(export: Export) -> int:
    """How many verbs were begun, by the audit."""
    lines = getattr(export.audit, "lines", ())
    return sum(line.kind == "intent" and line.op == "ctl" for line in lines)


async def helps(at: Place) -> None:
    """Reading a ctl file lists every verb, `verb SHAPE  # help` a line"""
    async with scene(at) as now:
        for spot, ctl in now.ctls:
            fid = await now.talk.opened(spot.path)
            said = (await now.talk.whole(fid, spot.path)).decode()
            await now.talk.clunk(fid, spot.path)
            verbs = []
            for line in said.splitlines():
                found = HELP.fullmatch(line)
                holds(found, spot.path, f"the line {line!r} of its help is not `verb SHAPE  # help`")
                assert found is not None
                verbs.append(found["verb"])
                usage = ctl.verbs[found["verb"]].usage if found["verb"] in ctl.verbs else None
                holds(
                    usage is None or line.startswith(usage), spot.path, f"{line!r} does not begin {usage!r}"
                )
            same(sorted(verbs), sorted(ctl.verbs), spot.path, "the verbs that its help lists")
            holds(said.endswith("\n") or not said, spot.path, "its help does not end in a newline")


async def unknown_verbs(at: Place) -> None:
    """An unknown verb is refused with 400, the verbs there are, and no effect"""
    async with scene(at) as now:
        for spot, ctl in now.ctls:
            before, talk = ran(now.export), now.talk
            fid = await talk.opened(spot.path, os.O_RDWR)
            for text in (UNKNOWN, f"{UNKNOWN} a=b 'c d'\n", f"# nothing\n\n{UNKNOWN}\n"):
                what = f"the write of {text!r}"
                e = await refused(spot.path, what, talk.write(fid, spot.path, text.encode()), errno.EINVAL)
                said = (await talk.read(fid, spot.path)).decode()
                holds(said.startswith("400 "), spot.path, f"after {what} the fid reads {said!r}, not 400 …")
                for verb in ctl.verbs:
                    holds(
                        verb in said,
                        spot.path,
                        f"the refusal of {what} does not name the verb {verb}: {said!r}",
                    )
                if at.speaks:
                    same(said.rstrip("\n"), e.strerror, spot.path, "what the fid reads after the refusal")
            for data in (b"\xff\xfe\n", b"a\0b\n", b"'open quote\n", b"x" * 4097):
                await refused(spot.path, f"the write of {data!r:.30}", talk.write(fid, spot.path, data))
            await talk.clunk(fid, spot.path)
            same(ran(now.export), before, spot.path, "the number of verbs that ran for refused writes")


async def comments(at: Place) -> None:
    """Help that is written back as comments, and lines with nothing on them, do nothing"""
    async with scene(at) as now:
        for spot, _ in now.ctls:
            before = ran(now.export)
            fid = await now.talk.opened(spot.path, os.O_RDWR)
            said = await now.talk.whole(fid, spot.path)
            back = b"".join(b"# " + line + b"\n" for line in said.splitlines())
            for data in (back[:4000], b"\n", b"  \t\n", b"#\n"):
                taken = await now.talk.write(fid, spot.path, data)
                same(taken, len(data), spot.path, f"the count taken of {data!r:.60}")
            await now.talk.clunk(fid, spot.path)
            same(ran(now.export), before, spot.path, "the number of verbs that ran for comments")


async def echo(at: Place) -> None:
    """What `echo` sends to a ctl file is accepted from whoever may use one verb there"""
    async with scene(at) as now:
        for spot, ctl in now.ctls:
            for name in ctl.verbs:
                await _echo(at, now, spot, name, ctl)


async def _echo(at: Place, now: Scene, spot: Spot, name: str, ctl: Ctl) -> None:
    path, export = spot.path, now.export
    export.replace(type(export.policy)((OWNER, row("ctl", path, name))))
    async with at.talk(export) as talk:
        for flags in (os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT):
            fid = await talk.walk(path)
            await talk.open(fid, path, flags)
            if not at.plain:
                await refused(
                    path,
                    "the look for security.capability",
                    talk.ask(path, Txattrwalk, fid, talk.link.half.fids.take(), "security.capability"),
                    errno.ENODATA,
                )
            await _truncate(talk, fid, path)
            before = ran(export)
            for data in (b"# nothing\n", b"\n"):
                same(await talk.write(fid, path, data), len(data), path, "the count taken of a comment")
            await refused(
                path,
                f"an unknown verb by whoever may {name}",
                talk.write(fid, path, f"{UNKNOWN}\n".encode()),
                errno.EINVAL,
            )
            for other in ctl.verbs.values():
                if other.name != name and not any(p.required for p in other.parameters):
                    await refused(
                        path,
                        f"{other.name} by whoever may only {name}",
                        talk.write(fid, path, f"{other.name}\n".encode()),
                        errno.EACCES,
                    )
            same(ran(export), before, path, "the number of verbs that ran")
            await talk.clunk(fid, path)


async def _truncate(talk: Talk, fid: int, path: str) -> None:
    """As the kernel does it between the open and the write."""
    if talk.plain:
        await talk.ask(path, Twstat, fid, _KEEP)
    else:
        await talk.ask(path, Tsetattr, fid, _SIZE_MTIME_CTIME, 0, 0, 0, 0, 0, 0, 0, 0)


async def nobody(at: Place) -> None:
    """Without the right to a verb of it, a ctl file is neither read, opened nor changed"""
    async with scene(at, row("read,write,create,remove", "/**")) as now, at.talk(now.export) as talk:
        before = len(await explore(now.talk)), ran(now.export)
        for spot in now.spots:
            if not (spot.node.is_ctl or isinstance(spot.node, Ctl | Clone)):
                continue
            for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                await refused(
                    spot.path,
                    f"an open with flags {flags:o} without the right ctl",
                    talk.opened(spot.path, flags),
                    errno.EACCES,
                )
            fid = await talk.walk(spot.path)
            await refused(
                spot.path, "a truncation without the right ctl", _truncate(talk, fid, spot.path), errno.EACCES
            )
            await talk.clunk(fid, spot.path)
        same(
            (len(await explore(now.talk)), ran(now.export)),
            before,
            "/",
            "the number of files, and of verbs run,",
        )


async def told(at: Place) -> None:
    """/dev/errstr is there if and only if the tree has ctl files or other words; it tells the newest error"""
    async with scene(at) as now, at.talk(now.export, "local") as talk, at.talk(now.export, "local") as other:
        wordy = isinstance(now.spots[0].node, Dir) or any(s.node.is_ctl for s in now.spots)
        there = [s for s in now.spots if s.path == "/dev/errstr"]
        same(bool(there), wordy, "/dev/errstr", "its being there")
        if not there:
            return
        path = "/dev/errstr"
        e = await refused("/", "an open of a directory for writing", talk.opened("/", os.O_RDWR))
        await refused("/no-such-name", "the walk", talk.walk("/no-such-name"))
        fid, foreign = await talk.opened(path), await other.opened(path)
        said = (await talk.whole(fid, path)).decode().rstrip("\n")
        holds(
            said.startswith("400 "), path, f"after a refused open, and a look for nothing, it reads {said!r}"
        )
        if at.speaks:
            same(said, e.strerror, path, "what it reads")
        trace = int(said.rpartition("trace=")[2], 16)
        holds(now.export.trace.find(trace), path, f"no error in the trace has the id of {said!r}")
        same(await other.whole(foreign, path), b"", path, "what a session without errors reads there")


async def clones(at: Place) -> None:
    """Opening a clone file makes a directory that lives as long as somebody is inside"""
    async with at.served() as export, at.talk(export) as talk:
        for spot in await survey(talk):
            if not isinstance(spot.node, Clone):
                continue
            above = spot.path.rpartition("/")[0]
            async with at.talk(export) as maker:
                fid = await maker.opened(spot.path, os.O_RDWR)
                name = (await maker.whole(fid, spot.path)).decode().rstrip("\n")
                holds(name and "/" not in name, spot.path, f"the first read gives {name!r}, which is no name")
                listed = [d.name for d in await talk.names(above or "/")]
                holds(name in listed, f"{above}/{name}", "what the clone file made is not listed beside it")
                path = f"{above}/{name}/ctl"
                ctl = await talk.walk(path)
                same(
                    (await talk.stat(ctl, path)).qid,
                    (await maker.stat(fid, path)).qid,
                    path,
                    "its qid, by the fid that opened the clone file,",
                )
                await maker.clunk(fid, spot.path)
                await talk.stat(ctl, path)  # we are still inside
                await talk.clunk(ctl, path)
                await refused(
                    f"{above}/{name}",
                    "the walk after the last fid was clunked",
                    talk.walk(f"{above}/{name}"),
                    errno.ENOENT,
                )
                fid = await maker.opened(spot.path, os.O_RDWR)
                name = (await maker.whole(fid, spot.path)).decode().rstrip("\n")
            await refused(
                f"{above}/{name}", "the walk after a disconnect", talk.walk(f"{above}/{name}"), errno.ENOENT
            )


CHECKS = (helps, unknown_verbs, comments, echo, nobody, told, clones)
