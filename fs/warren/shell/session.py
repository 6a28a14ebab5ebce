"""A connection for one command, and how a command ends.

    path_in(args, word)             the path that WORD means, and in ARGS the tree that it lies in
    converse(args, body)            dial, do BODY with the files, hang up; the exit code
    over_paths(args, paths, work)   WORK for every path; a refusal is reported and the next path is done

Ctrl-C and a reader that left end a command where it stands: what is under way is cancelled, the
connection closes, and the server lets go of everything that was open.
"""

from __future__ import annotations

import errno
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from warren.shell import address, exits, output
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from warren.auth.identity import Identity
    from warren.mount import Files

FIRST = 5.0  # seconds in which a server that is there says its first word
DEADLINE = 30.0

Body = Callable[["Files"], Awaitable[int]]


def converse(args: Namespace, body: Body) -> int:
    """Do BODY with the tree that ARGS name; returns its exit code, or that of what ended it."""
    import trio

    return trio.run(_converse, args, body)


async def _converse(args: Namespace, body: Body) -> int:
    import trio

    code = exits.READER_LEFT
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.until_reader_leaves, nursery.cancel_scope)
        try:
            code = await _dialled(args, body)
        except output.ReaderLeft:
            pass
        except OSError as e:
            code = output.complain(e)
        nursery.cancel_scope.cancel()
    return code


def identity_of(directory: str | None) -> Identity | None:
    """The identity in DIRECTORY, or a refusal that says what is wrong with it."""
    if directory is None:
        return None
    from warren.auth.identity import Identity
    from warren.auth.refusal import Missing, Refusal

    try:
        return Identity.load(directory)
    except Refusal as e:
        code = exits.NOT_FOUND if isinstance(e, Missing) else exits.BAD_INPUT
        raise Stopped(errno.EINVAL, e.text, directory, e.way_out, code) from None


async def _dialled(args: Namespace, body: Body) -> int:
    from warren.mount import dial

    at = address.chosen(args.at, args.state)
    identity = identity_of(args.id)
    if identity is None and at.startswith("tls!"):
        way_out = "say --id DIR, a folder that warren ca issue made"
        raise Stopped(errno.EINVAL, "it wants to know who you are", at, way_out, exits.USAGE)
    try:
        session = dial(at, args.aname, identity=identity, expect=args.expect, deadline=FIRST)
    except ValueError as e:
        way_out = "for example --at 'tcp!127.0.0.1!5640'"
        raise Stopped(errno.EINVAL, str(e), "", way_out, exits.USAGE) from None
    try:
        files = await session.__aenter__()
    except OSError as e:
        raise _unreached(e) from None
    files.deadline = DEADLINE
    try:
        return await body(files)
    finally:
        await session.__aexit__(None, None, None)


def _unreached(e: OSError) -> OSError:
    """Why no connection came about. What has a path was said by a server; the rest by the system."""
    if e.filename is not None:
        return e
    at, colon, said = (e.strerror or str(e)).partition(": ")
    code = {
        errno.EACCES: exits.DENIED, errno.EPERM: exits.DENIED, errno.ETIMEDOUT: exits.TIMED_OUT,
    }.get(e.errno or 0, exits.UNAVAILABLE)  # fmt: skip
    way_out = "start one there with warren up or warren serve, or say where one is with --state or --at"
    if code == exits.DENIED and at.startswith("tls!"):
        way_out = "see that --id is valid and of this hive, and that --expect names whom you want"
    elif code == exits.DENIED:
        way_out = "the socket belongs to another user; say --at ADDR for one of yours"
    return Stopped(e.errno or errno.EIO, said if colon else at, at if colon else "", way_out, code)


def paths(args: Namespace, default: str | None = None) -> list[str]:
    """The paths that a command was given, as its tree has them."""
    words = args.words or ([] if default is None else [_here(args, default)])
    if not words or "" in words:
        raise Usage(f"warren {args.command}: a PATH is missing; see warren {args.command} --help")
    return [path_in(args, word) for word in words]


def _here(args: Namespace, default: str) -> str:
    """The current directory if it lies under a mount of ours, as for any other command; else DEFAULT."""
    return "." if args.at is None and args.state is None and address.place(".")[0] else default


def path_in(args: Namespace, word: str) -> str:
    """WORD as its tree has it. Under a mount of ours the tree is that one, and all paths must lie in it."""
    if args.at is not None and args.state is not None:
        raise Usage(f"warren {args.command}: --at and --state both say which tree; give one")
    args.explicit = getattr(args, "explicit", args.at is not None or args.state is not None)
    if args.explicit:
        return address.from_root(word)
    at, path = address.place(word)
    before = getattr(args, "tree", at)
    if before != at:
        shown = " and ".join(output.printable(one or "the hive's own") for one in (before, at))
        raise Usage(f"warren {args.command}: the paths lie in two trees, {shown}; use a command for each")
    args.tree = at
    args.at = at or None
    return path


def over_paths(args: Namespace, wanted: list[str], work: Callable[[Files, str], Awaitable[None]]) -> int:
    """WORK for each path. The exit code is the first error's; a lost connection ends it."""

    async def each(files: Files) -> int:
        code = exits.OK
        for path in wanted:
            try:
                await work(files, path)
            except OSError as e:
                failed = output.complain(e)
                code = code or failed
                if failed == exits.UNAVAILABLE or exits.barred(e):
                    break
        return code

    return converse(args, each)
