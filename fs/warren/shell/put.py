"""put: store files, and print their addresses

    warren put [--encoding NAME] [--at ADDR] DIR FILE...

DIR is a storage tree, as /storage of a hive or a place under its mount; each FILE is a file of this machine,
or - for standard input. A line is printed for each, the address that the storage answered: it is what
`sha256sum FILE` says, and the file is read as DIR/sha256:... from then on. A FILE is stored when its line is
printed, and durably; one that fails is not stored, and the next one is tried.

--encoding gzip says that FILE is compressed and shall be stored inflated; the address is that of what comes
out, and what is no gzip, or swells without measure, is refused.

--json prints {"file": ..., "address": ..., "bytes": ...} for each, the bytes being those that were sent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import stat
from argparse import Namespace
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Stopped, Usage
from warren.shell.session import converse, path_in

if TYPE_CHECKING:
    from warren.mount import Files
    from warren.mount.file import File

PIECE = 1 << 20
STANDARD_INPUT = "-"


def declare(parser: Parser) -> None:
    parser.add_argument("--encoding", metavar="NAME", help="how FILE is compressed: gzip or zlib")
    add_tree(parser)


def run(args: Namespace) -> int:
    if len(args.words) < 2 or "" in args.words:
        raise Usage("warren put: a DIR and a FILE are missing; see warren put --help")
    if args.words.count(STANDARD_INPUT) > 1:
        raise Usage("warren put: standard input has one end; give - once")
    directory, local = path_in(args, args.words[0]).rstrip("/"), args.words[1:]
    if args.dry_run:
        for name in local:
            output.line(_equal(directory, name, args.encoding))
        return exits.OK

    async def body(files: Files) -> int:
        code = exits.OK
        for name in local:
            try:
                address, size = await _put(files, directory, name, args.encoding)
            except OSError as e:
                failed = output.complain(e)
                code = code or failed
                if failed == exits.UNAVAILABLE or exits.barred(e):
                    break
                continue
            if args.json:
                output.document({"file": name, "address": address, "bytes": size})
            else:
                output.line(address)
        return code

    return converse(args, body)


async def _put(files: Files, directory: str, name: str, encoding: str | None) -> tuple[str, int]:
    """The address that was answered, and how many bytes were sent."""
    fd = _open(name)
    try:
        if encoding is None:
            async with await files.open(f"{directory}/put", os.O_RDWR) as file:
                found = hashlib.sha256()
                size = await _send(file, fd, found)
                # A close would commit as well, but has no voice to tell a failure.
                await file.fsync()
                return _same(await _answer(file), found.hexdigest(), name), size
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            way_out = "write it to a file first"
            raise Stopped(errno.EINVAL, "its length is not known", name, way_out, exits.BAD_INPUT)
        async with await files.open(f"{directory}/declared", os.O_RDWR) as file:
            head = f"len={st.st_size} encoding={shlex.quote(encoding)}\n".encode()
            return await _declared(file, fd, head, st.st_size)
    finally:
        if name != STANDARD_INPUT:
            os.close(fd)


def _open(name: str) -> int:
    if name == STANDARD_INPUT:
        return output.STDIN
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise Stopped(errno.EISDIR, "this is a directory", name, "put its files", exits.BAD_INPUT)
    return fd


async def _send(file: File, fd: int, found: hashlib._Hash, at: int = 0) -> int:
    while piece := await _piece(fd):
        found.update(piece)
        await file.pwrite(piece, at)
        at += len(piece)
    return at


async def _declared(file: File, fd: int, head: bytes, size: int) -> tuple[str, int]:
    await file.pwrite(head, 0)
    sent = await _send(file, fd, hashlib.sha256(), len(head)) - len(head)
    if sent != size:
        await file.fsync()  # refused: it tells what is missing
    return await _answer(file), sent


async def _piece(fd: int) -> bytes:
    """What comes next, b"" at the end. Cancelled took nothing."""
    import trio

    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except PermissionError:  # what is always ready cannot be waited for: a file
            await trio.lowlevel.checkpoint()
        try:
            return os.read(fd, PIECE)
        except BlockingIOError:
            continue


async def _answer(file: File) -> str:
    return (await file.pread(file.payload, 0)).decode("utf-8", "replace").strip()


def _same(address: str, hex: str, name: str) -> str:
    if address == f"sha256:{hex}":
        return address
    if not address:  # the connection went with the answer; the same put again is harmless
        text = f"the answer was lost; see whether it is there: warren cat DIR/have/sha256:{hex}"
        raise Stopped(errno.ECONNRESET, text, name, "put it again, which changes nothing if it is")
    text = f"the storage answered {address}, what was sent is sha256:{hex}"
    raise Stopped(errno.EIO, text, name, "see that DIR is a storage: warren ls DIR", exits.OTHER)


def _equal(directory: str, name: str, encoding: str | None) -> str:
    source = "" if name == STANDARD_INPUT else f"if={shlex.quote(name)} "
    if encoding is None:
        return f"dd {source}of={shlex.quote(directory + '/put')} bs=1M conv=fsync,notrunc status=none"
    size = f"$(stat -c %s {shlex.quote(name)})"
    line = f"echo len={size} encoding={shlex.quote(encoding)}; cat {shlex.quote(name)}"
    return f"{{ {line}; }} >{shlex.quote(directory + '/declared')}"
