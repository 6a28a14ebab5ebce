"""The namespace that `warren mount --ns` mounts: all of its text holds, and every tree in it answers.

    space = composition(args)        or BadNamespace with every line that does not hold; or Stopped

Fail closed: of a tree that does not answer the lines are refused, but for those with -i, which are left out.
Who refuses us is no tree that is not there, and ends it all the same.
"""

from __future__ import annotations

import errno
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.exits import Stopped
from warren.shell.ns import text_of, values_of
from warren.shell.reaching import identity_at, not_reached, said

if TYPE_CHECKING:
    from warren.namespaces import Space


class Unanswered(Exception):
    """Lines whose trees do not answer."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def composition(args: Namespace) -> Space:
    """The Space of the text in ARGS."""
    import trio
    from warren.namespaces import BadNamespace, build, library
    from warren.roles.composed import unanswered
    from warren.roles.state import State

    text, name, beside = text_of(args.ns)
    values = values_of("mount", args.var)
    include = library(beside, State(args.state).roles)
    made = partial(build, text, name, values=values, symbols=(), include=include)
    wanted: dict[str, None] = {}
    space = made(known=lambda address: wanted.setdefault(address) is None)
    if not space.table:
        way_out = "give a text of mount and bind lines"
        raise Stopped(errno.EINVAL, "it mounts nothing", args.ns, way_out, exits.BAD_INPUT)
    identity = None
    for address in wanted:
        identity = identity_at(address, args.id)
    away = trio.run(partial(unanswered, wanted, identity=identity, expect=args.expect))
    for address, e in away.items():
        if e.errno in (errno.EACCES, errno.EPERM):
            raise not_reached(e, address)
        output.say(f"warren: {address}: {said(e, address)}")
    try:
        return made(known=lambda address: address not in away)
    except BadNamespace as e:
        raise Unanswered(e.errors) from None
