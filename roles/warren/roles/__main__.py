"""python -m warren.roles --state DIR --name NAME: one role's process, as the hive's keeper starts it."""

import argparse
import sys

import trio
from warren.auth.refusal import Refusal
from warren.roles.processes import die_with_parent
from warren.roles.run import serve_role
from warren.roles.state import State


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m warren.roles")
    parser.add_argument("--state", required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    die_with_parent()
    try:
        trio.run(serve_role, State(args.state), args.name)
    except (Refusal, OSError) as e:
        print(f"{args.name}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
