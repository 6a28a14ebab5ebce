"""ns: print a namespace

    warren ns [NAME]                        of a role that runs; without NAME, the queen's
    warren ns --role ROLE                   of a role, as its file says
    warren ns FILE [--var NAME=VALUE]...    of a text; it is checked, and - is standard input

Prints the `mount` lines that build it, shortest paths first: what is bound is written as the mount that it
comes to, and what was unmounted is gone. A word is a FILE if it ends in .ns or has a / in it. What a FILE
includes is looked for beside it, in DIR/roles and among what comes with Warren; each line that is wrong is
said, with its number. `$self` in it, and the name of any role of the hive, is that role's tree.

--as-script prints a shell script that mounts the same namespace where its first argument says, as the role
NAME sees it, or one that runs ROLE:

    warren ns --role DroneWorker --as-script | sh -s DIR

--json prints {"name": ..., "role": ..., "mounts": [{"old", "address", "path", "read_only", "creates"}]}.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from warren.roles.directory import QUEEN, default_directory
from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warren.namespaces import Space
    from warren.roles.state import Hive, State

FILE = "/proc/ns"


class Found(NamedTuple):
    """A namespace, and whose it is: the role that runs, or the role file."""

    space: Space
    name: str = ""
    role: str = ""


def declare(parser: Parser) -> None:
    parser.add_argument("--state", metavar="DIR", help="the hive; else $WARREN_STATE, else your own")
    parser.add_argument("--role", metavar="ROLE", help="of this role, whether one runs or not")
    parser.add_argument("--name", metavar="NAME", help="for --as-script: as this one that runs sees it")
    parser.add_argument("--var", metavar="NAME=VALUE", action="append", default=[],
                        help="for FILE: what stands for $NAME; repeatable")  # fmt: skip
    parser.add_argument("--as-script", action="store_true", help="print a script that mounts it")
    add_json(parser)


def run(args: Namespace) -> int:
    from warren.namespaces import BadNamespace
    from warren.roles.manifest import BadRole
    from warren.roles.state import State

    if len(args.words) + bool(args.role) > 1:
        raise Usage("warren ns: one namespace at a time: NAME, FILE or --role ROLE; see warren ns --help")
    if args.json and args.as_script:
        raise Usage("warren ns: --json and --as-script print different things; leave one out")
    word = args.words[0] if args.words else ""
    is_file = bool(word) and (word == "-" or "/" in word or word.endswith(".ns"))
    if args.var and not is_file:
        raise Usage("warren ns: --var is for a FILE; the others have all their values")
    state = State(args.state)
    try:
        if args.role:
            found = _of_role(args.role, state)
        else:
            found = _of_file(word, args.var, state) if is_file else of_running(word or used(state), state)
    except (BadNamespace, BadRole) as e:
        for error in e.errors:
            output.say(f"warren: {error}")
        return exits.BAD_INPUT
    if args.as_script:
        name = args.name or found.name or _one_thatruns(found.role, state)
        output.put(script(found.space, name, state, hive_of(state)).encode())
    elif args.json:
        mounts = [
            {"old": spelt(old), "address": m.address, "path": spelt(m.path), "read_only": m.read_only,
             "creates": m.creates}
            for old, members in found.space.table.items() for m in members
        ]  # fmt: skip
        output.document({"name": found.name, "role": found.role, "mounts": mounts})
    else:
        output.put(found.space.lines().encode())
    return exits.OK


# Whose


def _of_role(role: str, state: State) -> Found:
    from warren.roles.manifest import load_role

    return Found(load_role(role, [state.roles]).space, role=role)


def _of_file(word: str, given: Sequence[str], state: State) -> Found:
    from warren.auth.refusal import Refusal
    from warren.namespaces import build, library

    values = values_of("ns", given)
    try:
        names = set(state.hive().roles)
    except Refusal:  # to check a text no hive is needed
        names = set()
    text, name, beside = text_of(word)
    symbols = {"self", "queen", *names} - values.keys()
    return Found(build(text, name, values=values, symbols=symbols, include=library(beside, state.roles)))


def values_of(command: str, given: Sequence[str]) -> dict[str, str]:
    """What --var says."""
    values = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise Usage(f"warren {command}: --var is NAME=VALUE, not {each!r}")
        values[name] = value
    return values


def text_of(word: str) -> tuple[str, str, Path]:
    """A namespace's text in a file or on standard input, what errors call it, and where it is."""
    try:
        data = sys.stdin.buffer.read() if word == "-" else Path(word).read_bytes()
        text = data.decode()
    except UnicodeDecodeError as e:
        way_out = "see what file it is"
        raise Stopped(errno.EINVAL, f"byte {e.start} is not UTF-8", word, way_out, exits.BAD_INPUT) from None
    except OSError as e:
        number = e.errno or errno.EIO
        raise Stopped(number, os.strerror(number), word, "give a text of mount and bind lines") from None
    if word == "-":
        return text, "standard input", Path.cwd()
    return text, os.path.basename(word), Path(word).parent


def of_running(name: str, state: State) -> Found:
    """The namespace that the role NAME has now."""
    from warren.namespaces import read

    hive = hive_of(state)
    space = read(ask(name, state, FILE)[0], f"{name}{FILE}")
    return Found(space, name, hive.roles.get(name, ""))


def ask(name: str, state: State, *paths: str) -> list[str]:
    """What these files of the role NAME say, asked at its socket."""
    if not runs(name, state):
        running = [each for each in hive_of(state).roles if runs(each, state)]
        way_out = f"there are {' '.join(running)}" if running else f"start it: {_up(state)}"
        raise Stopped(errno.ENOENT, f"no role {name} runs here", os.fspath(state.directory), way_out)
    import trio
    from warren.mount import dial

    async def told() -> list[str]:
        async with dial(state.address(name)) as files:
            return [(await files.read(path)).decode("utf-8", "replace") for path in paths]

    try:
        return trio.run(told)
    except ConnectionError as e:
        text, way_out = f"{name} does not answer: {e.strerror or e}", "see what is up: warren status"
        raise Stopped(e.errno or errno.EIO, text, "", way_out, exits.UNAVAILABLE) from None


def hive_of(state: State) -> Hive:
    """The hive, or the refusal that there is none, as a command says it."""
    from warren.auth.refusal import Missing, Refusal

    try:
        return state.hive()
    except Refusal as e:
        code = exits.NOT_FOUND if isinstance(e, Missing) else exits.BAD_INPUT
        raise Stopped(errno.ENOENT, e.text, "", e.way_out, code) from None


def used(state: State) -> str:
    """The role whose namespace the user of this machine has: the queen, or what joined a hive elsewhere."""
    hive = hive_of(state)
    return next(iter(hive.roles), QUEEN) if hive.joined else QUEEN


def runs(name: str, state: State) -> bool:
    """Whether there is a socket of the role NAME."""
    return "/" not in name and state.sock(name).exists()


def _up(state: State, *words: str) -> str:
    chosen = [] if state.directory == default_directory() else ["--state", os.fspath(state.directory)]
    return shlex.join(["warren", "up", *words, *chosen])


def _one_thatruns(role: str, state: State) -> str:
    """A role that runs whose file ROLE is; of a bare text, the queen."""
    if not role:
        return used(state)
    able = [name for name, its in hive_of(state).roles.items() if its == role]
    for name in able:
        if runs(name, state):
            return name
    way_out = _up(state, *([] if able else [f"NAME={role}"]))
    raise Stopped(errno.ENOENT, f"no {role} runs here", os.fspath(state.directory), f"start one: {way_out}")


# As a script


def script(space: Space, name: str, state: State, hive: Hive) -> str:
    """A script that mounts SPACE at its first argument, its symbols being what they are for the role NAME."""
    ways = {each[1:]: _way(each[1:], name, state, hive) for each in space.addresses() if each.startswith("$")}
    options = [f"--var {shlex.quote(f'{each}={way}')}" for each, way in sorted(ways.items())]
    if any(way.startswith("tls!") for way in (*ways.values(), *space.addresses())):
        options.insert(0, f"--id {shlex.quote(os.fspath(state.pki(name)))}")
    command = " ".join([_command(), "mount --ns -", *options])
    return f"""#!/bin/sh
# The namespace of {name} in the hive {hive.hive}. Mount it at DIR: sh -s DIR, and this as standard input.
set -eu
dir=${{1:?is the directory to mount it at: sh -s DIR}}
exec {command} -- "$dir" <<'END'
{space.lines()}END
"""


def _way(symbol: str, name: str, state: State, hive: Hive) -> str:
    """The address of a symbol, as the role NAME uses it. A worker reaches its queen as itself, not as us."""
    wanted = name if symbol == "self" else symbol
    if wanted == QUEEN and wanted != name:
        if hive.joined:
            return hive.queen
        at = state.run(QUEEN) / "addr"
        for line in at.read_text().split() if at.exists() else ():
            if line.startswith("tls!"):
                return line
    if not runs(wanted, state):
        way_out = f"start it: {_up(state)}"
        if wanted not in hive.roles:
            way_out = f"the queen of the hive has it at /n/{wanted}: warren ns queen --as-script"
        raise Stopped(errno.ENOENT, f"${symbol} cannot be reached from here", "", way_out, exits.UNAVAILABLE)
    return state.address(wanted)


def _command() -> str:
    """What runs this command, for a shell that may not have it in its PATH."""
    here = os.path.abspath(sys.argv[0])
    named = os.path.basename(here) == "warren" and not shutil.which("warren")
    return shlex.quote(here) if named else "warren"


def spelt(path: Sequence[str]) -> str:
    return "/" + "/".join(path)
