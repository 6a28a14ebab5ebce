"""up: bring a hive up

    warren up [NAME=ROLE...] [--state DIR] [--mount DIR] [--detach]

A hive is processes on this machine, one a role, that trust each other and nobody else: a queen, and workers
that dial her. The first time, its authority and identities are made in DIR, and it has

    queen=QueenPrimary drone-1=DroneWorker drone-2=DroneWorker

if nothing else is said. What is said is remembered, so that later `warren up` is enough. Saying NAME=ROLE
for a hive that is up adds it.

The queen's namespace is mounted at DIR/mnt, or at --mount. Without /dev/fuse the hive comes up all the same,
and is used with warren ls|cat|write --state DIR PATH.

It stays in the foreground until Ctrl-C, which takes it down. With --detach it returns when every role is up
and the queen shows each worker at /n/NAME. A role that ends unasked is started again at once, then after 1,
2, 4 seconds and so on; warren status tells how often and why, and DIR/log/NAME/stderr.log has its last words.

DIR is --state, else $WARREN_STATE, else $XDG_STATE_HOME/warren/default, else ~/.local/state/warren/default.
Hives in two directories run side by side, and know nothing of each other. The queen of a new one listens on
$WARREN_PORT, else 5640, if that is free, and else on any port. Say one for each hive of a machine where
workers join from afar: while a queen is started again, another hive could take the port that she had.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from warren.auth.refusal import Refusal
    from warren.roles.hive import Status
    from warren.roles.keeper import Mount
    from warren.roles.state import State


def declare(parser: Parser) -> None:
    add_state(parser)
    parser.add_argument("--mount", metavar="DIR", help="where to mount it, instead of DIR/mnt")
    parser.add_argument("--detach", action="store_true", help="return when it is up, and leave it running")
    add_json(parser)


def add_state(parser: Parser) -> None:
    """--state, for the commands that are about a hive as a whole."""
    parser.add_argument("--state", metavar="DIR", help="the hive's directory")


def run(args: Namespace) -> int:
    from warren.auth.refusal import Refusal
    from warren.roles.hive import up
    from warren.roles.state import State

    roles = _roles(args.words)
    state = State(args.state)

    def done(now: Status, fresh: bool) -> None:
        if args.json:
            output.document({**now.about, "state": str(state.directory), "services": now.services})
        else:
            announce(state, now, fresh)

    try:
        state.make()
        return up(state, roles, mount_of(args, state), detach=args.detach, tell=output.say, done=done)
    except Refusal as e:
        raise stopped(e) from None


def _roles(words: Sequence[str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for word in words:
        name, equals, role = word.partition("=")
        if not (name and equals and role):
            raise Usage(f"warren up: {output.printable(word)} is no NAME=ROLE, such as drone-3=DroneWorker")
        if roles.setdefault(name, role) != role:
            raise Usage(f"warren up: {output.printable(name)} is given two roles; say one")
    return roles


def mount_of(args: Namespace, state: State) -> Mount | None:
    """Where to mount, or None if this machine cannot."""
    from warren.roles.keeper import Mount
    from warren.roles.mounts import above

    why = _cannot_mount()
    if why and args.mount:
        raise Stopped(errno.ENODEV, why, args.mount, f"leave --mount out; {_use(state)}", exits.UNAVAILABLE)
    if why:
        output.say(f"warren: {why}, so nothing is mounted; {_use(state)}")
        return None
    point = Path(os.path.realpath(args.mount or state.mnt))
    on = above(point)
    if on is None or on.point != str(point):  # else it may be last time's mount: dead, and not to be touched
        try:
            point.mkdir(mode=0o700, exist_ok=True)
        except OSError as e:
            text = e.strerror or str(e)
            raise Stopped(e.errno or errno.EIO, text, str(point), "give a directory for it") from None
    return Mount(point, _mounting)


def _mounting(source: str, point: Path) -> Sequence[str]:
    """A process that mounts, and ends with whoever started it."""
    return (sys.executable, "-P", "-m", "warren.shell", "mount", source, str(point), "--foreground")


def _cannot_mount() -> str:
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() == 0:
        return ""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "you may not open /dev/fuse (its mode is usually 666: ask whoever runs this machine)"
    return "" if shutil.which("fusermount3") else "there is no fusermount3, which mounts for users"


def _use(state: State) -> str:
    return f"use it with warren ls|cat|write --state {shlex.quote(str(state.directory))} PATH"


def announce(state: State, now: Status, fresh: bool) -> None:
    point = now.about.get("mount", "-")
    if not fresh:
        output.line(f"already up: {now.about['hive']}{f' at {point}' if point != '-' else ''}")
        return
    joined = now.about.get("joined", "-") != "-"
    workers = [row["name"] for row in now.services if row["name"] not in ("queen", "mount")]
    below = f"/n/{workers[0]}" if workers and not joined else ""
    first = ("ls", "/" if joined else "/n")
    tries = [first, ("cat", f"{below}/proc/lifecycle/state"), ("cat", "/log/events.log")]
    at = shlex.quote(str(state.directory))
    output.line(f"up: {now.about['hive']} {f'at {point}' if point != '-' else f'in {state.directory}'}")
    output.put(b"try:\n")
    for word, path in tries:
        same = f"{word} {shlex.quote(point + path)}" if point != "-" else f"warren {word} --state {at} {path}"
        output.line(f"    {same}")
    chosen = "" if state.directory == _default() else f" --state {at}"
    output.line(f"warren status{chosen} tells how it is, warren down{chosen} ends it")


def _default() -> Path:
    from warren.roles.directory import chosen_directory

    return chosen_directory()


def stopped(e: Refusal) -> Stopped:
    """A refusal as this command ends with it."""
    from warren.auth.refusal import Missing, Standing
    from warren.roles.hive import NotUp

    code = {
        Missing: exits.NOT_FOUND, Standing: exits.CONFLICT, NotUp: exits.UNAVAILABLE,
    }.get(type(e), exits.BAD_INPUT)  # fmt: skip
    return Stopped(errno.EINVAL, e.text, "", e.way_out, code)
