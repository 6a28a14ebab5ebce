"""join: make this machine a member of a hive

    warren join ADDR --role ROLE --token FILE [--name NAME] [--state DIR] [--mount DIR] [--detach]

ADDR is a queen, tls!HOST!PORT, as her run/queen/addr says. The token is what `warren token invite` wrote on
her side; FILE may be - for standard input. It says which ROLE and NAME it is for, and what is said here must
agree.

A key is made here and never leaves. The queen must prove that the hive's root, which is in the token, vouches
for her; only then she is sent the token, and signs a certificate for the key. Then a worker of that role is
started which dials her, and its namespace is mounted at DIR/mnt, or at --mount. It stays in the foreground
until Ctrl-C; with --detach it returns when the worker is up. `warren down`, `up` and `status` work as for any
hive.

A token is good once. If the answer to it is lost, the same command does it again with the same key, until the
token ends.

DIR is --state, else $WARREN_STATE, else $XDG_STATE_HOME/warren/default, else ~/.local/state/warren/default.
It must not be a hive's already.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from warren.auth.certificates import PrivateKey
    from warren.auth.join import Ticket
    from warren.mount.join import Unjoined
    from warren.roles.hive import Status
    from warren.roles.state import State

_LARGEST = 16384


def declare(parser: Parser) -> None:
    parser.add_argument("--role", metavar="ROLE", help="what this machine is to be")
    parser.add_argument("--token", metavar="FILE", help="the join token, or - for standard input")
    parser.add_argument("--name", metavar="NAME", help="the name in the token, to be sure of it")
    parser.add_argument("--state", metavar="DIR", help="the directory of the worker's hive")
    parser.add_argument("--mount", metavar="DIR", help="where to mount it, instead of DIR/mnt")
    parser.add_argument("--detach", action="store_true", help="return when it is up, and leave it running")
    parser.add_argument("--no-up", action="store_true", help="stop once there is an identity")
    add_json(parser)


def run(args: Namespace) -> int:
    if len(args.words or ()) != 1:
        raise Usage("warren join: it takes one ADDR, tls!HOST!PORT; see warren join --help")
    for needed in ("role", "token"):
        if getattr(args, needed) is None:
            raise Usage(f"warren join: --{needed} is missing; see warren join --help")
    from warren.auth.refusal import Refusal
    from warren.mount.join import Unjoined
    from warren.roles.state import State
    from warren.shell.up import stopped

    state = State(args.state)
    try:
        state.make()
        name = _have_identity(args, args.words[0], state)
        if args.no_up:
            return exits.OK
        return _start(args, args.words[0], state, name)
    except Unjoined as e:
        raise _stopped(e, args.words[0]) from None
    except Refusal as e:
        raise stopped(e) from None


def _have_identity(args: Namespace, address: str, state: State) -> str:
    """An identity in pki/NAME; the name."""
    import trio
    from warren.mount.join import join, keep, see_token

    text = _token(args.token)
    ticket = see_token(text, args.role, args.name)
    name = ticket.name.parts[-1]
    _see_place(state, name)
    _see_role(state, args.role)
    pending, key = _pending(state, ticket)
    _say("key", f"this machine's own, in {pending}")

    async def ask() -> None:
        joined = await join(address, text, args.role, name=args.name, key=key, tell=_say)
        keep(joined, pending)

    trio.run(ask)
    _settle(pending, state.pki(name), ticket)
    _prove(state, name, address, ticket, args.json)
    return name


def _token(name: str) -> str:
    from warren.auth.keyfiles import read_secret
    from warren.auth.refusal import Missing, Refusal

    try:
        data = sys.stdin.buffer.read(_LARGEST) if name == "-" else read_secret(Path(name))
        return data.decode("ascii")
    except Missing:
        raise Stopped(errno.ENOENT, os.strerror(errno.ENOENT), name, "see that the name is right") from None
    except Refusal as e:
        raise Stopped(errno.EACCES, e.text.removeprefix(f"{name}: "), name, e.way_out) from None
    except UnicodeDecodeError:
        raise Stopped(errno.EINVAL, "it is no join token", name, "see that it is the right file") from None


def _see_place(state: State, name: str) -> None:
    """Nothing may stand where the identity goes, and no other hive around it."""
    here = state.pki(name)
    if (here / "cert.pem").exists():
        there = shlex.quote(str(state.directory))
        way_out = f"it has joined: warren up --state {there}; or give another --state"
        raise Stopped(errno.EEXIST, "there is an identity already", str(here), way_out)
    if state.file.exists() or (state.ca / "hive").exists():
        text = "it is the state of a hive of its own"
        raise Stopped(errno.EEXIST, text, str(state.directory), "give another --state DIR")


def _see_role(state: State, role: str) -> None:
    """The role must be one that can run here, before a token is spent on it."""
    from warren.roles.manifest import BadRole, NoRole, load_role

    try:
        manifest = load_role(role, [state.roles])
    except NoRole as e:
        way_out = f"put {role}.role into {state.roles}, then join again; the token is still good"
        raise Stopped(errno.ENOENT, e.strerror or "", "", way_out, exits.NOT_FOUND) from None
    except BadRole as e:
        raise Stopped(errno.EINVAL, str(e), "", "mend it, then join again", exits.BAD_INPUT) from None
    if any(serve.server in ("ca", "cap") for serve in manifest.serves):
        text = f"a {role} holds an authority, which is founded and not joined"
        raise Stopped(errno.EINVAL, text, "", "found one: warren up", exits.BAD_INPUT)


def _pending(state: State, ticket: Ticket) -> tuple[Path, PrivateKey]:
    """Where this token's identity is made, and its key: the same again if an answer was lost."""
    from warren.auth import keyfiles
    from warren.auth.certificates import key_pem, load_key, new_key

    above = state.pki(".joining")
    keyfiles.make_directory(above)
    here = above / ticket.id[:16]
    keyfiles.make_directory(here)
    held = here / "key.pem"
    if held.exists():
        return here, load_key(keyfiles.read_secret(held), held)
    key = new_key()
    keyfiles.write_whole(held, key_pem(key))
    return here, key


def _settle(pending: Path, here: Path, ticket: Ticket) -> None:
    """The identity is whole: it takes its place in one step."""
    from warren.auth import keyfiles
    from warren.auth.identity import Identity

    made = Identity.load(pending)
    if made.uri != ticket.uri:
        raise Stopped(errno.EBADMSG, f"it is {made.uri}", str(pending), "tell whoever runs the hive")
    os.rename(pending, here)
    keyfiles.sync_directory(here.parent)
    try:
        pending.parent.rmdir()
    except OSError:  # other tokens were tried here, and their keys are still good for them
        pass


def _prove(state: State, name: str, address: str, ticket: Ticket, json: bool) -> None:
    """Show the new certificate, and fetch the lists of those that are revoked."""
    import trio
    from warren.auth.identity import Identity
    from warren.auth.keyfiles import write_whole
    from warren.mount import dial

    here = state.pki(name)
    me = Identity.load(here)

    async def show() -> None:
        async with dial(address, identity=me, expect=ticket.queen) as files:
            try:
                write_whole(here / "crl.pem", await files.read("/mesh/ca/crl"))
                _say("proved", f"the queen knows us as {me.uri}")
            except (FileNotFoundError, PermissionError):
                _say("proved", "the queen knows us, and shows no revocation list")

    try:
        trio.run(show)
    except OSError as e:
        text = f"proved: the queen did not take the new certificate: {e.strerror or e}"
        way_out = f"it is in {here}; her audit names the reason"
        raise Stopped(e.errno or errno.EIO, text, "", way_out, exits.UNAVAILABLE) from None
    if json:
        until = f"{me.not_after:%Y-%m-%dT%H:%M:%SZ}"
        output.document({"name": me.uri, "identity": str(here), "serial": me.serial, "not_after": until})


def _start(args: Namespace, address: str, state: State, name: str) -> int:
    from warren.roles.hive import start_joined
    from warren.shell.up import announce, mount_of

    def done(now: Status, fresh: bool) -> None:
        if args.json:
            output.document({**now.about, "state": str(state.directory), "services": now.services})
        else:
            announce(state, now, fresh)

    return start_joined(
        state, name, args.role, address, mount_of(args, state), detach=args.detach, tell=output.say, done=done
    )


def _say(step: str, said: str) -> None:
    output.say(f"{step:<12}{said}")


def _stopped(e: Unjoined, address: str) -> Stopped:
    code = {
        errno.EINVAL: exits.BAD_INPUT, errno.EACCES: exits.DENIED, errno.EEXIST: exits.CONFLICT,
        errno.EBADMSG: exits.BAD_INPUT,
    }.get(e.errno or 0, exits.DENIED if e.step == "token" else exits.UNAVAILABLE)  # fmt: skip
    where = "" if e.step == "token" else address
    return Stopped(e.errno or errno.EIO, f"{e.step}: {e.text}", where, e.way_out, code)
