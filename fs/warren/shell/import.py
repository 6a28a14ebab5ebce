"""import: a tree from elsewhere, on a unix socket

    warren import ADDR [--as NAME | --listen unix!PATH] [--id DIR] [--expect WHO] [--aname NAME]

The tree at ADDR is given here, on a socket, for programs that speak 9P but not TLS: the kernel's v9fs, diod's
tools, plan9port. All of them use one connection to ADDR, which is yours: only processes of your own user are
let in, and there they are you. 9P2000, 9P2000.L and Warren's own dialect are spoken, whatever ADDR speaks.

The socket is at --listen, or in a new directory of its own, and is said with the command that mounts it; the
kernel comes as root, so for a mount root must be the one who imports. With --as NAME it is posted in this
hive: its queen has the tree at /n/NAME, for whoever runs her machine.

It stays until Ctrl-C or SIGTERM. While ADDR is away requests are refused; the socket stays, and what is
mounted from it is back when ADDR is.
"""

from __future__ import annotations

import errno
import re
import shlex
from argparse import Namespace
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage
from warren.shell.ns import hive_of, used
from warren.shell.reaching import identity_at, not_reached, until_ended

if TYPE_CHECKING:
    from warren.auth.identity import Identity
    from warren.roles.state import State

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
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
    from warren.roles.state import State
    from warren.serve.listen import BadAddress

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
    identity = identity_at(at, args.id)
    state = State(args.state)
    listen = _posting(args.name, state) if args.name else args.listen or ""
    try:
        return trio.run(until_ended, lambda: _import(args, at, listen, identity, state))
    except BadAddress as e:
        where, _, text = str(e).rpartition(": ")
        way_out = "another server may run there: end it, or choose another place"
        raise Stopped(errno.EADDRINUSE, text, where, way_out, exits.CONFLICT) from None


def _posting(name: str, state: State) -> str:
    """Where a role finds the socket that is to be at /n/NAME."""
    if name in hive_of(state).roles:
        text = f"/n/{name} is for the role of that name"
        raise Stopped(errno.EEXIST, text, name, "choose another name", exits.CONFLICT)
    if not _NAME.fullmatch(name):
        raise Usage(f"warren import: --as {output.printable(name)}: letters, digits and _ . -, 63 at most")
    folder = state.directory / "srv" / used(state)
    if not folder.is_dir():
        raise Stopped(errno.ENOENT, "this hive was never up", str(folder), "warren up", exits.UNAVAILABLE)
    return f"unix!{folder / f'{name}.sock'}"


async def _import(args: Namespace, at: str, listen: str, identity: Identity | None, state: State) -> None:
    import trio
    from warren.roles.composed import imported

    def tell(said: str) -> None:
        output.say(f"warren: {said}")

    importing = imported(
        at, identity=identity, expect=args.expect, aname=args.aname, read_only=args.read_only,
        listen=listen, tell=tell,
    )  # fmt: skip
    async with AsyncExitStack() as held:
        try:
            here = await held.enter_async_context(importing)
        except OSError as e:
            raise (e if e.filename else not_reached(e, at)) from None
        _announce(args, here)
        if args.name:
            await _posted(args.name, state)
        await trio.sleep_forever()


def _announce(args: Namespace, here: str) -> None:
    path = here.partition("!")[2]
    command = f"mount -t 9p -o trans=unix,version=9p2000.L {shlex.quote(path)} DIR"
    output.say(f"listening on {here}")
    output.say(f"mount it with: {command}")
    if args.json:
        output.document({"tree": args.words[0], "listening": [here], "mount": command})


async def _posted(name: str, state: State) -> None:
    """Say whether the role has found it. It looks once a second, and may be away."""
    import trio
    from warren.mount import dial

    why = "it does not answer"
    with trio.move_on_after(SEEN):
        while True:
            try:
                async with dial(state.address(used(state))) as files:
                    while not await files.walk_exists(f"/srv/{name}"):
                        why = "its log says why"
                        await trio.sleep(LOOK)
                output.say(f"posted: /n/{name}")
                return
            except ConnectionError:
                await trio.sleep(LOOK)
    output.say(f"warren: {used(state)} has not posted it: {why}")
