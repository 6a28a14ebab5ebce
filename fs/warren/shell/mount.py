"""mount: a tree as a directory

    warren mount ADDR|ROLE DIR [--id DIR] [--expect WHO] [--aname NAME] [--read-only] [--foreground]
    warren mount --ns FILE [--var NAME=ADDR]... DIR

The tree at ADDR, or that of the role ROLE of this hive (a plain word, without a `!`), appears at DIR, for
every program: files, streams, ctl files and errors alike. It returns once DIR can be used; the mount is then
served by a process of its own, until `warren umount DIR` or SIGTERM. --foreground stays and serves.

The mount outlives its server. While that is away every use of a file fails, soon and with an error; when it
is back so are the files, without mounting again. Ctrl-C ends a `cat` that waits for a record. After an error
`cat DIR/dev/errstr` says why, where the tree has such a file.

Only you may use it. --allow-other lets all users of this machine in, each under their own name as far as the
server believes names; it wants `user_allow_other` in /etc/fuse.conf unless you are root.

--ns mounts a namespace: the trees that the text FILE puts together, or standard input if that is -. What is
a name there (`$queen`) is an address here, by --var. Everything wrong with the text is said, and nothing is
mounted; so it is if one of the trees does not answer, unless its line has -i: then that line is left out.
Each tree is reached as you, and is back when its server is. `warren ns --as-script` prints such a command.

DIR should be empty: what is in it is hidden meanwhile. Without /dev/fuse, use warren ls, cat and write.
"""

from __future__ import annotations

import errno
import os
import signal
from argparse import Namespace
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

from warren.roles.directory import chosen_directory, socket_of
from warren.shell import exits, output
from warren.shell.arguments import Parser
from warren.shell.exits import Stopped, Usage
from warren.shell.session import identity_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from warren.auth.identity import Identity


def declare(parser: Parser) -> None:
    parser.add_argument("--id", metavar="DIR", help="who you are, for tls!: cert.pem key.pem ca.pem token")
    parser.add_argument("--expect", metavar="WHO", default="role/*/*", help="for tls!: who must be there")
    parser.add_argument("--aname", metavar="NAME", default="", help="a directory or a name to attach to")
    parser.add_argument("--state", metavar="DIR", help="the hive whose role is meant")
    parser.add_argument("--ns", metavar="FILE", help="the namespace of that text; - is standard input")
    parser.add_argument("--var", metavar="NAME=ADDR", action="append", default=[],
                        help="for --ns: the address that $NAME stands for; repeatable")  # fmt: skip
    parser.add_argument("--read-only", action="store_true", help="nothing can be changed through it")
    parser.add_argument("--allow-other", action="store_true", help="for all users of this machine")
    parser.add_argument("--foreground", action="store_true", help="serve it here, until it is unmounted")


def run(args: Namespace) -> int:
    args.space = None
    if args.ns is not None:
        return _compose(args)
    if args.var:
        raise Usage("warren mount: --var is for --ns FILE")
    if len(args.words) != 2:
        raise Usage("warren mount: say what and where: warren mount ADDR|ROLE DIR")
    what, where = args.words
    at = what if "!" in what else _role(args.state, what)
    return _mount(args, at, _directory(where))


def _compose(args: Namespace) -> int:
    from warren.namespaces import BadNamespace
    from warren.shell.composition import Unanswered, composition

    if len(args.words) != 1:
        raise Usage("warren mount --ns: say where, and nothing else: warren mount --ns FILE DIR")
    directory = _directory(args.words[0])
    try:
        args.space = composition(args)
    except (BadNamespace, Unanswered) as e:
        for line in e.errors if isinstance(e, BadNamespace) else e.lines:
            output.say(f"warren: {line}")
        return exits.BAD_INPUT if isinstance(e, BadNamespace) else exits.UNAVAILABLE
    return _mount(args, "the namespace", directory)


def _mount(args: Namespace, at: str, directory: str) -> int:
    if args.foreground:
        return _serve(args, at, directory, lambda: output.say(f"mounted {at} at {directory}"))
    return _in_background(args, at, directory)


def _role(state: str | None, name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise Usage(f"warren mount: {name!r} is neither an address, such as tcp!HOST!PORT, nor a role's name")
    return f"unix!{socket_of(chosen_directory(state), name)}"


def _directory(where: str) -> str:
    directory = os.path.realpath(where)
    _free(where, directory)
    try:
        names = os.listdir(directory)
    except NotADirectoryError:
        raise Stopped(errno.ENOTDIR, "this is no directory", where, "give one", exits.BAD_INPUT) from None
    except FileNotFoundError:
        way_out = f"make it: mkdir {where}"
        raise Stopped(errno.ENOENT, "there is no such directory", where, way_out) from None
    except OSError as e:
        way_out = f"what is mounted there is broken: warren umount {where}"
        raise Stopped(e.errno or errno.EIO, e.strerror or str(e), where, way_out) from None
    if names:
        output.say(f"warren: {where} is not empty; what is in it is hidden while this is mounted")
    return directory


def _free(where: str, directory: str) -> None:
    """See that no tree is mounted there; what is left of a mount whose process died is taken away."""
    from warren.mount.fuse.device import FSTYPE, detach, mounted_at

    already = mounted_at(directory)
    if already is None or already.fstype != FSTYPE:
        return
    try:
        os.stat(directory)
    except OSError as e:
        if e.errno == errno.ENOTCONN:
            output.say(f"warren: the process that served {where} is gone; its mount is taken away")
            detach(directory, already.number)
            return
    way_out = f"warren umount {where}, or choose another directory"
    text = f"{already.source} is mounted there already"
    raise Stopped(errno.EBUSY, text, where, way_out, exits.CONFLICT)


def _serve(args: Namespace, at: str, directory: str, ready: Callable[[], None]) -> int:
    """Mount and serve, until unmounted or told to end."""
    import trio

    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heeded = tuple(s for s in ends if signal.getsignal(s) != signal.SIG_IGN)
    # Once it is unmounted all is done: to be told to end then must not look like a violent end.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return trio.run(_until_ended, args, at, directory, ready, heeded)
    except BaseException:
        signal.signal(signal.SIGTERM, before)
        raise


async def _until_ended(
    args: Namespace, at: str, directory: str, ready: Callable[[], None], heeded: Sequence[signal.Signals]
) -> int:
    import trio
    from warren.mount.fuse.serve import mounted

    code = exits.OK
    identity = identity_of(args.id)
    if identity is None and at.startswith("tls!"):
        way_out = "say --id DIR, a folder that warren ca issue made"
        raise Stopped(errno.EINVAL, "it wants to know who you are", at, way_out, exits.USAGE)

    def tell(said: str) -> None:
        output.say(f"warren: {said}")

    failed: OSError | ValueError | None = None
    with trio.open_signal_receiver(*heeded) as signals:
        async with trio.open_nursery() as nursery:

            async def heed() -> None:
                nonlocal code
                code = exits.INTERRUPTED if await anext(signals) == signal.SIGINT else exits.OK
                nursery.cancel_scope.cancel()

            nursery.start_soon(heed)
            async with _tree(args, at, identity, tell) as address:
                try:
                    await mounted(
                        address, directory, ready=ready, aname=args.aname, identity=identity,
                        expect=args.expect, allow_other=args.allow_other, read_only=args.read_only, tell=tell,
                    )  # fmt: skip
                except (OSError, ValueError) as e:
                    failed = e
            nursery.cancel_scope.cancel()
    if isinstance(failed, ValueError):
        way_out = "for example warren mount 'tcp!127.0.0.1!5640' DIR, or the name of a role"
        raise Stopped(errno.EINVAL, str(failed), "", way_out, exits.USAGE)
    if failed is not None:
        raise _not_mounted(failed, at)
    return code


@asynccontextmanager
async def _tree(
    args: Namespace, at: str, identity: Identity | None, tell: Callable[[str], None]
) -> AsyncIterator[str]:
    """The address of what is mounted: AT, or that of the namespace, which is served while the block runs."""
    if args.space is None:
        yield at
        return
    from warren.roles.composed import composed

    async with composed(args.space, identity=identity, expect=args.expect, tell=tell) as address:
        yield address


def _not_mounted(e: OSError, at: str) -> OSError:
    if isinstance(e, Stopped):
        return e
    text = (e.strerror or str(e)).removeprefix(f"{at}: ")
    if isinstance(e.filename, str) and e.filename.startswith("/") and len(e.filename) > 1:
        text, _, way_out = text.partition("; ")
        code = exits.DENIED if e.errno in (errno.EPERM, errno.EACCES) else None
        return Stopped(e.errno or errno.EIO, text, e.filename, way_out or "see the directory", code)
    code = {errno.EACCES: exits.DENIED, errno.EPERM: exits.DENIED, errno.ETIMEDOUT: exits.TIMED_OUT}.get(
        e.errno or 0, exits.UNAVAILABLE
    )
    way_out = "see whether the server runs there: warren ls --at ADDR"
    return Stopped(e.errno or errno.EIO, text, at, way_out, code)


def _in_background(args: Namespace, at: str, directory: str) -> int:
    """Serve in a process of our own session; return once it can be used, or with its reason."""
    hear, say = os.pipe()
    if not os.fork():
        # What else the caller had open (a pipe that somebody waits for the end of) is not ours to keep.
        os.closerange(output.STDERR + 1, say)
        os.closerange(say + 1, os.sysconf("SC_OPEN_MAX"))
        _child(args, at, directory, say)
    os.close(say)
    with open(hear, encoding="utf-8", errors="replace") as news:
        code, _, text = news.read().partition(" ")
    if not code.isdigit():
        text = "the mount's process ended without a word"
        raise Stopped(errno.EIO, text, directory, "try --foreground")
    if text:
        output.say(text)
    return int(code)


def _child(args: Namespace, at: str, directory: str, say: int) -> NoReturn:
    """The process that stays. It never returns into what the parent was doing."""
    code = exits.OTHER
    told = False

    def tell(code: int, text: str) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(say, f"{code} {text}".encode("utf-8", "replace"))
            os.close(say)

    def ready() -> None:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (output.STDIN, output.STDOUT, output.STDERR):
            os.dup2(nothing, stream)
        os.close(nothing)
        os.chdir("/")
        tell(exits.OK, "")

    try:
        os.setsid()
        code = _serve(args, at, directory, ready)
    except OSError as e:
        code = exits.of(e)
        path = e.filename if isinstance(e.filename, str) else ""
        where = f"{path}: " if path else ""
        tell(code, f"warren: {where}{e.strerror}; {exits.way_out(e, path)}")
    except BaseException as e:
        tell(code, f"warren: this is a defect of warren: {type(e).__name__}: {e}; try --foreground")
    finally:
        os._exit(code)
