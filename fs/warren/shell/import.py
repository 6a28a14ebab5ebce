"""import: a tree from elsewhere, on a unix socket

    warren import ADDR [--as NAME | --listen unix!PATH] [--id DIR] [--expect WHO] [--aname NAME]

The tree at ADDR is given here, on a socket, for programs that speak 9P but not TLS: the kernel's v9fs, diod's
tools, plan9port. All of them use one connection to ADDR, which is yours: only processes of your own user are
let in, and there they are you. Plain 9P2000, 9P2000.L and Warren's own dialect are spoken, whatever ADDR speaks.

The socket is at --listen, or in a new directory of its own, and is said with the command that mounts it. With
--as NAME it is posted in this hive: its queen has the tree at /n/NAME, for the users of this machine.

It stays until Ctrl-C or SIGTERM. While ADDR is away requests are refused; the socket stays, and what is mounted
from it is back when ADDR is. A file that is moved from a directory into the root of the tree is copied.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
from argparse import Namespace
from typing import TYPE_CHECKING

from warren.roles.directory import chosen_directory, socket_of
from warren.shell import address, exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage
from warren.shell.session import identity_of

if TYPE_CHECKING:
    from pathlib import Path

    from warren.auth.identity import Identity

SEEN = 5.0  # seconds for a role to find a socket in its directory
LOOK = 0.1


def declare(parser: Parser) -> None:
    parser.add_argument("--as", dest="name", metavar="NAME", help="post it in the hive: it is at /n/NAME")
    parser.add_argument("--listen", metavar="ADDR", help="the socket: unix!PATH")
    parser.add_argument("--id", metavar="DIR", help="who you are, for tls!: cert.pem key.pem ca.pem token")
    parser.add_argument("--expect", metavar="WHO", default="role/*/*", help="for tls!: who must be there")
    parser.add_argument("--aname", metavar="NAME", default="", help="a directory or a name to attach to")
    parser.add_argument("--state", metavar="DIR", help="for --as: the hive")
    parser.add_argument("--read-only", action="store_true", help="nothing can be changed through it")
    add_json(parser)


def run(args: Namespace) -> int:
    import trio
    from warren.mount.address import parse

    if len(args.words) != 1:
        raise Usage("warren import: say what: warren import ADDR; see warren import --help")
    if args.name and args.listen:
        raise Usage("warren import: --as and --listen both say where; leave one out")
    if args.listen and not args.listen.startswith("unix!/"):
        raise Usage(f"warren import: --listen {output.printable(args.listen)} is no unix!/PATH")
    at = args.words[0]
    try:
        parse(at)
    except ValueError as e:
        raise Usage(f"warren import: {e}") from None
    identity = identity_of(args.id)
    if identity is None and at.startswith("tls!"):
        way_out = "say --id DIR, a folder that warren ca issue made"
        raise Stopped(errno.EINVAL, "it wants to know who you are", at, way_out, exits.USAGE)
    return trio.run(_import, args, at, _socket(args.name, args.state) if args.name else args.listen, identity)


def _socket(name: str, state: str | None) -> str:
    """Where the hive finds a socket that is to be posted under NAME."""
    from warren.auth.refusal import Refusal
    from warren.roles.state import State

    held = State(state)
    try:
        roles = held.hive().roles
    except Refusal as e:
        raise Stopped(errno.ENOENT, e.text, "", e.way_out, exits.NOT_FOUND) from None
    if name in roles:
        raise Stopped(errno.EEXIST, f"{name} is a role of the hive", name, "choose another name", exits.CONFLICT)
    if "/" in name or name.startswith("."):
        raise Usage(f"warren import: {output.printable(name)} is no name for a post")
    folder = held.directory / "srv" / _user(held.directory)
    if not folder.is_dir():
        raise Stopped(errno.ENOENT, "the hive was never up", str(folder), "warren up", exits.UNAVAILABLE)
    return f"unix!{folder / f'{name}.sock'}"


def _user(directory: Path) -> str:
    """The role whose namespace the users of this machine have."""
    return os.path.basename(os.path.dirname(address.chosen(None, str(directory)).partition("!")[2]))


async def _import(args: Namespace, at: str, listen: str | None, identity: Identity | None) -> int:
    import trio
    from warren.roles.composed import imported
    from warren.serve.listen import BadAddress

    code, failed = exits.OK, None

    def tell(said: str) -> None:
        output.say(f"warren: {said}")

    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with trio.open_signal_receiver(*(s for s in ends if signal.getsignal(s) != signal.SIG_IGN)) as signals:
        try:
            async with imported(
                at, identity=identity, expect=args.expect, aname=args.aname, read_only=args.read_only,
                listen=listen or "", tell=tell,
            ) as here:  # fmt: skip
                _announce(args, at, here)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:

                        async def heed() -> None:
                            nonlocal code
                            code = exits.INTERRUPTED if await anext(signals) == signal.SIGINT else exits.OK
                            scope.cancel()

                        nursery.start_soon(heed)
                        if args.name:
                            nursery.start_soon(_posted, args)
        except* BadAddress as group:
            failed = group
    if failed is not None:
        raise _cannot_listen(failed)
    return code
