"""explain: why a path is what it is

    warren explain PATH [--as WHO] [--name NAME] [--state DIR]

Answers, in the tree of the mount that PATH lies in, else of the queen or of the role NAME: through which
line of the namespace it is reached, which tree that line means and which server gives it, and which rows
allow what. WHO is `local`, which is you on this machine, or a name as certificates have it, `user/ann` or
`role/DroneWorker/drone-1` of the hive.

    at queen: /n/drone-1/proc/ns as local
        line     mount $drone-1 /n/drone-1
        tree     $drone-1 /proc/ns
        read     allow local read,write,create,remove,ctl /**
        ...
    at drone-1: /proc/ns as role/QueenPrimary/queen

Where a line leads to another role of this machine, what that role says comes next, as it is asked there:
what is `local` here is the role itself there, and anybody else is passed on with the role speaking for him,
which takes a row that gives it `delegate`. The rows decide for who has no token; a token alone counts for
who has one. That a path may be reached does not say that a file is there.

The exit code is 3 if no line of the namespace has the path. --json prints a document a role.
"""

from __future__ import annotations

import errno
import re
from argparse import Namespace
from typing import TYPE_CHECKING, Any, NamedTuple

from warren.shell import address, exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage
from warren.shell.ns import FILE, ask, hive_of, runs, spelt, used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warren.auth.rights import Policy
    from warren.namespaces import Member, Space
    from warren.roles.state import Hive, State

MOST = 8  # roles on the way: a hive has few, and two may have mounted each other
_ROLE_SOCKET = re.compile(r"unix!(/.+)/run/([^/]+)/sock")


class Explained(NamedTuple):
    """Why a path is what it is, in one role."""

    lines: tuple[str, ...]  # of the mount point that decides
    members: tuple[Member, ...]  # where they lead, in the order in which they are tried
    names: tuple[str, ...]  # mount points directly below
    rows: dict[str, tuple[str, ...]]  # for each right, what gives it
    speaking: tuple[str, ...]  # what lets the role in between speak for the subject


def explained(space: Space, policy: Policy, subject: str, path: Sequence[str], via: str = "") -> Explained:
    """Why PATH is what it is for SUBJECT, VIA speaking for him, in a role with this namespace and policy."""
    from warren.auth.rights import DELEGATE, EVERY, RIGHTS, Grants

    where = spelt(path)
    mine = [row for row in policy.rows if row.applies(subject)]
    rows = {
        right: tuple(str(row) for row in mine if Grants([row]).at(where).mask & bit)
        for right, bit in RIGHTS.items() if bit & EVERY
    }  # fmt: skip
    theirs = [row for row in policy.rows if row.rights & DELEGATE and row.applies(via)] if via else []
    speaking = tuple(str(row) for row in theirs if Grants([row]).may_delegate(where))
    point = space.point(tuple(path))
    members, names = space.at(tuple(path))
    lines = tuple(space.lines_of(point)) if point is not None else ()
    return Explained(lines, members, tuple(sorted(names)), rows, speaking)


class Step(NamedTuple):
    """A path, as it is asked of one role."""

    name: str
    path: tuple[str, ...]
    subject: str
    via: str = ""


def declare(parser: Parser) -> None:
    parser.add_argument("--as", dest="who", metavar="WHO", default="local", help="for whom; else for local")
    parser.add_argument("--name", metavar="NAME", help="the role that is asked first; else the queen")
    parser.add_argument("--state", metavar="DIR", help="the hive; else $WARREN_STATE, else your own")
    add_json(parser)


def run(args: Namespace) -> int:
    from warren.namespaces.space import place
    from warren.roles.state import State

    if len(args.words) != 1 or not args.words[0]:
        raise Usage("warren explain: it takes one PATH; see warren explain --help")
    word, state, name = args.words[0], State(args.state), args.name
    at, path = address.place(word) if not (args.state or name) else ("", address.from_root(word))
    if at:
        directory, name = role_of(at)
        state = State(directory)
    hive = hive_of(state)
    step = Step(name or used(state), place(path), _subject(args.who, hive))
    code = exits.OK
    for n in range(MOST):
        why = _asked(step, state, hive)
        server = _server(step.name, why, state, hive)
        (_document if args.json else _show)(step, why, server, hive)
        if not n and not why.members and not why.names:
            code = exits.NOT_FOUND
        further = _further(step, why, state, hive)
        if further is None:
            break
        step = further
    return code


def role_of(at: str) -> tuple[str, str]:
    """The state directory and the name of the role of this machine that answers at an address."""
    found = _ROLE_SOCKET.fullmatch(at)
    if not found:
        way_out = "ask on the machine where it runs"
        raise Stopped(errno.EINVAL, "no role of this machine answers there", at, way_out, exits.USAGE)
    return found[1], found[2]


def _subject(who: str, hive: Hive) -> str:
    if who in ("local", "any") or who.startswith("spiffe://"):
        return who
    words = who.split("/")
    if "" in words or (words[0], len(words)) not in (("user", 2), ("role", 3)):
        forms = "local, any, user/NAME, role/ROLE/NAME or spiffe://..."
        raise Usage(f"warren explain: --as is {forms}, not {who!r}")
    return f"spiffe://{hive.hive}/{who}"


def _asked(step: Step, state: State, hive: Hive) -> Explained:
    from warren.auth.rights import Policy
    from warren.namespaces import read

    lines, rows = ask(step.name, state, FILE, "/role/policy")
    try:
        space = read(lines, f"{step.name}{FILE}")
        policy = Policy.parse(rows.splitlines()).in_hive(hive.hive)
    except ValueError as e:
        text, way_out = f"{step.name} does not say how it is: {e}", "see that it is of the same version"
        raise Stopped(errno.EBADMSG, text, "", way_out, exits.BAD_INPUT) from None
    return explained(space, policy, step.subject, step.path, step.via)


def _further(step: Step, why: Explained, state: State, hive: Hive) -> Step | None:
    """What the next role is asked, where the path leads to one that can be asked here."""
    names = {m.address.removeprefix("$") for m in why.members}
    if len(names) != 1 or "$self" in {m.address for m in why.members}:
        return None
    (name,) = names
    if name == step.name or name not in hive.roles or not runs(name, state):
        return None
    me = hive.uri(step.name)
    if step.subject == "local":
        return Step(name, why.members[0].path, me)
    return Step(name, why.members[0].path, step.subject, me)


def _server(name: str, why: Explained, state: State, hive: Hive) -> str:
    """The server of the role's own that gives the path, by the role's file."""
    from warren.roles.manifest import BadRole, NoRole, load_role

    own = [m.path for m in why.members if m.address == "$self"]
    if not own or name not in hive.roles:
        return ""
    try:
        serves = load_role(hive.roles[name], [state.roles]).serves
    except (BadRole, NoRole) as e:
        return f"unknown: {str(e).splitlines()[0]}"
    above = [s for s in serves if own[0][: len(s.names)] == s.names]
    best = max(above, key=lambda s: len(s.names), default=None)
    return f"{best.server} at {best.path}" if best else "the role itself, on the way to its servers"


def _show(step: Step, why: Explained, server: str, hive: Hive) -> None:
    via = f", {step.via} speaking" if step.via else ""
    rows = [f"at {step.name}: {spelt(step.path)} as {step.subject}{via}"]

    def row(label: str, text: str) -> None:
        rows.append(f"    {label:<9}{text}")

    for line in why.lines:
        row("line", line)
    for i, m in enumerate(why.members):
        row("tree" if not i else "or", f"{m.address} {spelt(m.path)}{' read-only' if m.read_only else ''}")
    if not why.lines:
        row("line", "no line has it" if not why.names else f"leads only to {', '.join(why.names)}")
    if server:
        row("server", server)
    if step.via:
        row("delegate", ", ".join(why.speaking) or "no row, so nothing below counts")
    locked = bool(why.members) and all(m.read_only for m in why.members)
    for right, given in why.rows.items():
        shut = locked and right != "read"
        row(right, "nobody, as the line says -r" if shut else ", ".join(given) or "no row")
    for text in rows:
        output.line(text.replace(f"spiffe://{hive.hive}/", ""))


def _document(step: Step, why: Explained, server: str, hive: Hive) -> None:
    found: dict[str, Any] = {
        "role": step.name, "path": spelt(step.path), "as": step.subject, "via": step.via,
        "lines": why.lines, "below": why.names, "server": server,
        "trees": [
            {"address": m.address, "path": spelt(m.path), "read_only": m.read_only} for m in why.members
        ],
        "rows": why.rows,
    }  # fmt: skip
    output.document({**found, **({"delegate": why.speaking} if step.via else {})})
