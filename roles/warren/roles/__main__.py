"""python -m warren.roles --state DIR --name NAME: one role's process, as the hive's keeper starts it.

Whatever ends it, the last line that it says is the reason: the keeper shows that line and no other.
"""

import argparse
import sys
import traceback
from collections.abc import Iterator

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
        found = list(reasons(e))
        if not all(isinstance(reason, EXPECTED) for reason in found):
            traceback.print_exception(e)
        said = [str(r) if isinstance(r, EXPECTED) else f"{type(r).__name__}: {r}" for r in found]
        print(f"{args.name} ended: {'; '.join(dict.fromkeys(said))}", file=sys.stderr)
        return 1
    return 0


def reasons(e: BaseException) -> Iterator[BaseException]:
    """What it was about: groups have reasons, and are none."""
    if isinstance(e, BaseExceptionGroup):
        for one in e.exceptions:
            yield from reasons(one)
    else:
        yield e


if __name__ == "__main__":
    sys.exit(main())
