"""Directories that can be written: names, renames, links."""

import errno
import os
import stat as S

from warren.check.tree.place import Place, holds, refused, same
from warren.check.tree.writing import UNSUPPORTED, Yard, yard
from warren.mount import Files
from warren.p9.fields import QTDIR, QTSYMLINK
from warren.p9.messages import Tcreate, Tlcreate, Tmkdir, Twalk

LONGEST = ("n" * 255, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 127 + "n")
TOO_LONG = tuple(name + "n" for name in LONGEST)
BAD = ("", ".", "..", "a/b", "/", "a\0b", "\0")
ODD = (
    "two words",
    "-rf",
    "*",
    "#",
    "'quoted'",
    "tab\tand\nnewline",
    "\udcff\udcfe",
    "a\udc80z",
    "..x",
    "...",
    " a",
    "a ",
)


async def made(at: Place) -> None:
    """A directory is made once, and removed only when it is empty"""
    async with yard(at) as y:
        files, path = y.files, y("dir")
        await files.mkdir(path)
        entry = await files.stat(path)
        holds(
            S.S_ISDIR(entry.mode) and entry.qid.type & QTDIR, path, f"what mkdir made has mode {entry.mode:o}"
        )
        await refused(path, "mkdir of a name that is taken", files.mkdir(path), errno.EEXIST)
        inner = await y.make("dir/file", b"x")
        await refused(
            path,
            "the removal of a directory that is not empty",
            files.remove(path, directory=True),
            errno.ENOTEMPTY,
        )
        await refused(
            path, "the removal of a directory that is not empty", files.remove(path), errno.ENOTEMPTY
        )
        same(await files.read(inner), b"x", inner, "what it holds after its directory was not removed")
        await refused(inner, "rmdir of a file", files.remove(inner, directory=True), errno.ENOTDIR)
        await refused(
            path, "unlink of a directory", files.remove(path, directory=False), errno.EISDIR, errno.EPERM
        )
        await files.remove(inner, directory=False)
        await files.remove(path, directory=True)
        await refused(path, "the walk to a removed directory", files.stat(path), errno.ENOENT)
        await refused(path, "a second removal", files.remove(path), errno.ENOENT)


async def spelling(at: Place) -> None:
    """Names are bytes: 255 of them and no more, any but `/` and NUL, and none is taken for another"""
    async with yard(at) as y, at.talk(y.export) as talk:
        good = (*LONGEST, *ODD, "case", "Case", "CASE")
        for name in good:
            await y.make(name, os.fsencode(name))
        listed = [d.name for d in await y.files.readdir(y.path)]
        same(sorted(listed), sorted(good), y.path, "the names it lists")
        for name in good:
            same(await y.files.read(y(name)), os.fsencode(name), y(name), "what the file of that name holds")
        fid = await talk.walk(y.path)
        for name in (*TOO_LONG, *BAD):
            numbers = (errno.ENAMETOOLONG,) if name in TOO_LONG and not at.plain else ()
            where = f"{y.path}/{name[:20]!r}"
            if at.plain:
                made = talk.ask(y.path, Tcreate, fid, name, 0o644, 1)
            else:
                made = talk.ask(y.path, Tlcreate, fid, name, os.O_RDWR, 0o644, 0)
                await refused(
                    where, "mkdir of a bad name", talk.ask(y.path, Tmkdir, fid, name, 0o755, 0), *numbers
                )
            await refused(where, "the creation of a bad name", made, *numbers)
            if name not in (".", ".."):
                walk = talk.ask(y.path, Twalk, fid, talk.link.half.fids.take(), [name])
                await refused(where, "the walk to a bad name", walk, *numbers)
        same(len(await y.files.readdir(y.path)), len(good), y.path, "the number of names after refused ones")
        await talk.clunk(fid, y.path)


async def renamed(at: Place) -> None:
    """A rename moves a file within its directory, and what is open goes with it"""
    async with yard(at) as y, at.files(y.export) as other, at.talk(y.export) as talk:
        files, old, new = y.files, await y.make("old", b"data"), y("new")
        async with await files.open(old, os.O_RDWR) as file:
            await files.rename(old, new)
            await refused(old, "the walk to the old name", other.stat(old), errno.ENOENT)
            same(await other.read(new), b"data", new, "what the new name holds")
            same([d.name for d in await other.readdir(y.path)], ["new"], y.path, "the names after a rename")
            await file.pwrite(b"DA", 0)
            same(await file.pread(10, 0), b"DAta", new, "what a fid opened before the rename reads")
            same((await file.stat()).size, 4, new, "its size by that fid")
        await refused(old, "a rename of what is not there", files.rename(old, y("else")), errno.ENOENT)
        await files.mkdir(y("dir"))
        await y.make("dir/file", b"inner")
        fid = await talk.walk(y("dir"))
        await files.rename(y("dir"), y("moved"))
        child, _ = await talk.enter(fid, y("moved/file"), "file")
        await talk.open(child, y("moved/file"))
        same(
            await talk.read(child, y("moved/file")),
            b"inner",
            y("moved/file"),
            "what a fid that stood in a renamed directory finds",
        )
        await talk.clunk(child, y("moved/file"))
        await talk.clunk(fid, y("moved"))


async def kept(at: Place) -> None:
    """In the plain dialect a rename replaces nothing"""
    if not at.plain:
        return
    async with yard(at) as y:
        one, two = await y.make("one", b"1"), await y.make("two", b"2")
        await refused(two, "a rename to a name that is taken", y.files.rename(one, two), errno.EEXIST)
        same(
            (await y.files.read(one), await y.files.read(two)),
            (b"1", b"2"),
            y.path,
            "what the two files hold",
        )


async def replaced(at: Place) -> None:
    """A rename replaces what rename(2) may replace, within a directory and across"""
    async with yard(at) as y:
        files = y.files
        one, two = await y.make("one", b"1"), await y.make("two", b"2")
        await files.rename(one, two)
        same(await files.read(two), b"1", two, "what it holds after another took its name")
        await refused(one, "the walk to the old name", files.stat(one), errno.ENOENT)
        for name in ("a", "a/b", "full", "empty"):
            await files.mkdir(y(name))
        await y.make("full/file", b"x")
        await files.rename(two, y("a/b/two"))
        same(
            await files.read(y("a/b/two")),
            b"1",
            y("a/b/two"),
            "what it holds after a move across directories",
        )
        await refused(
            y("a"), "a move of a directory into itself", files.rename(y("a"), y("a/b/a")), errno.EINVAL
        )
        await refused(
            y("full"),
            "a rename over a directory that is not empty",
            files.rename(y("a"), y("full")),
            errno.ENOTEMPTY,
            errno.EEXIST,
        )
        await refused(
            y("full"),
            "a rename of a file over a directory",
            files.rename(y("a/b/two"), y("full")),
            errno.EISDIR,
        )
        await refused(
            y("full/file"),
            "a rename of a directory over a file",
            files.rename(y("a"), y("full/file")),
            errno.ENOTDIR,
        )
        await files.rename(y("a"), y("empty"))
        same(await files.read(y("empty/b/two")), b"1", y("empty/b/two"), "what moved with its directory")
        same(await files.read(y("full/file")), b"x", y("full/file"), "what a refused rename left")


async def symbolic(at: Place) -> None:
    """A symbolic link, where there are any, is a text that the server never follows"""
    async with yard(at) as y, at.talk(y.export) as talk:
        files = y.files
        await files.mkdir(y("dir"))
        await y.make("dir/file", b"data")
        targets = {
            "to-dir": "dir",
            "to-file": "dir/file",
            "dangling": "no/such",
            "out": "../../../../..",
            "absolute": "/etc/passwd",
            "odd": "\udcff two\nlines",
        }
        for name, target in targets.items():
            if not await _supported(y, name, files.symlink(target, y(name))):
                return
            same(await files.readlink(y(name)), target, y(name), "its text")
            entry = await files.stat(y(name))
            holds(
                S.S_ISLNK(entry.mode) and entry.qid.type & QTSYMLINK, y(name), f"its mode is {entry.mode:o}"
            )
            fid = await talk.walk(y(name))
            for inner in ("file", "passwd", "dir"):
                await refused(
                    y(name),
                    f"a walk through the link to {inner}",
                    talk.enter(fid, y(name), inner),
                    errno.ENOTDIR,
                    errno.ENOENT,
                    errno.ELOOP,
                )
            await refused(y(name), "an open of the link itself", talk.open(fid, y(name)))
            await talk.clunk(fid, y(name))
        same(
            await files.read(y("to-dir/file")),
            b"data",
            y("to-dir/file"),
            "what a client that follows it reads",
        )
        await refused(
            y("odd"), "a link in place of a name that is taken", files.symlink("x", y("odd")), errno.EEXIST
        )
        await files.remove(y("to-file"))
        same(
            await files.read(y("dir/file")),
            b"data",
            y("dir/file"),
            "what is left when a link to it is removed",
        )


async def linked(at: Place) -> None:
    """A hard link, where there are any, is a further name of the same file"""
    async with yard(at) as y:
        files, one, two = y.files, await y.make("one", b"data"), y("two")
        if not await _supported(y, "two", files.link(one, two)):
            return
        a, b = await files.stat(one), await files.stat(two)
        same(b.qid.path, a.qid.path, two, "its qid.path, against that of its other name,")
        same((a.nlink, b.nlink), (2, 2), two, "nlink of the two names")
        await files.write(two, b"DA", truncate=False)
        same(await files.read(one), b"DAta", one, "what was written by its other name")
        await refused(two, "a link in place of a name that is taken", files.link(one, two), errno.EEXIST)
        await refused(
            y("loop"), "a hard link to a directory", files.link(y.path, y("loop")), errno.EPERM, errno.EISDIR
        )
        await files.remove(one)
        same(await files.read(two), b"DAta", two, "what is left when one name is removed")
        same((await files.stat(two)).nlink, 1, two, "its nlink then")


async def measured(at: Place) -> None:
    """statfs answers with a name length that holds"""
    async with yard(at) as y:
        found = await _statfs(y.files, y.path)
        holds(255 >= found > 0, y.path, f"statfs says that names have {found} bytes")


async def _statfs(files: Files, path: str) -> int:
    return (await files.statfs(path)).namelen


async def _supported(y: Yard, name: str, coming: object) -> bool:
    try:
        await coming  # type: ignore[misc]
    except OSError as e:
        holds(e.errno in UNSUPPORTED, y(name), f"it cannot be made: {e}")
        return False
    return True


CHECKS = (made, spelling, renamed, kept)
LINUX = (replaced, symbolic, linked, measured)
