"""python -m warren.roles --state DIR --name NAME: one role's process, as the hive's keeper starts it.

Whatever ends it, the last line that it says is the reason: the keeper shows that line and no other.
"""

import argparse
import sys
import traceback

import trio
from warren.auth.refusal import Refusal
from warren.roles.processes import die_with_parent
from warren.roles.run import serve_role
from warren.roles.state import State
from warren.serve.listen import BadAddress
from warren.store import StoreError

EXPECTED = (Refusal, OSError, BadAddress, StoreError)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m warren.roles")
    parser.add_argument("--state", required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    die_with_parent()
    try:
        trio.run(serve_role, State(args.state), args.name)
    except BaseException as e:
        reason = first(e)
        if not isinstance(reason, EXPECTED):
            traceback.print_exception(e)
        kind = "" if isinstance(reason, EXPECTED) else f"{type(reason).__name__}: "
        print(f"{args.name} ended: {kind}{reason}", file=sys.stderr)
        return 1
    return 0


def first(e: BaseException) -> BaseException:
    """What it was about: groups have reasons, and are none."""
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    return e


if __name__ == "__main__":
    sys.exit(main())
