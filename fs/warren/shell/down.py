"""down: take a hive down

    warren down [NAME...] [--state DIR]

Ends the services NAME, or without any the hive, and returns when the processes and the mount are gone. What
is stored stays; `warren up` goes on from there. NAME is as warren status shows it; `mount` is the mount.

What is down already is no error. If the process that keeps the hive was killed, this ends what it left: only
processes that it can be proved to have started, so never one that has its number by chance.
"""

from __future__ import annotations

from argparse import Namespace

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.up import add_state, stopped


def declare(parser: Parser) -> None:
    add_state(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    from warren.auth.refusal import Refusal
    from warren.roles.hive import down
    from warren.roles.state import State

    state = State(args.state)

    def tell(said: str) -> None:
        if args.json:
            output.document({"state": str(state.directory), "said": said})
        else:
            output.line(said)

    try:
        down(state, args.words, tell)
    except Refusal as e:
        raise stopped(e) from None
    return exits.OK
