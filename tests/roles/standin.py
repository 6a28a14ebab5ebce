"""A stand-in for a role's process, where a test is about supervision and not about roles.

    python standin.py --state DIR --name NAME       the role
    python standin.py --state DIR --up [NAME=ROLE...]        a hive of such roles, as `warren up --detach`
    python standin.py --state DIR --keep [NAME=ROLE...]      the same in the foreground
    python standin.py --state DIR --join ADDR NAME=ROLE      a hive of one, whose queen is elsewhere
    ... --mount DIR                                          with a mount that cannot be had

    /proc/lifecycle/state     ONLINE
    /log/ctl                  note KIND [key=value...]: kept, and shown in
    /log/events               File
    /n/NAME/proc/lifecycle/state   of the queen: what stands at that role's socket

A file STATE/fail/NAME makes it end: with `exit N` before it serves, with `hang` it never does.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import trio
from warren.auth.refusal import Refusal
from warren.auth.rights import Policy
from warren.mount import dial
from warren.roles.hive import Mount, Status, start_joined, up
from warren.roles.processes import die_with_parent
from warren.roles.state import State
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Ctl, Dir, File, Node, Text, verb


class Notes(Ctl):
    def __init__(self) -> None:
        self.lines: list[str] = []

    @verb
    def note(self, kind: str, *pairs: str) -> None:
        """Keep a line."""
        self.lines.append(f"kind={kind} {' '.join(pairs)}")

    def text(self) -> bytes:
        return "".join(f"{line}\n" for line in self.lines).encode()


class Others(Dir):
    """The other roles of the hive that answer."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.nodes: dict[str, Node] = {}

    def lookup(self, name: str) -> Node | None:
        if not self.state.sock(name).exists():
            return None
        if name not in self.nodes:
            below = Dir({"state": Text(lambda: self.read(name))})
            self.nodes[name] = Dir({"proc": Dir({"lifecycle": below})})
        return self.nodes[name]

    def list(self) -> Iterable[tuple[str, Node]]:
        names = sorted(path.parent.name for path in self.state.directory.glob("run/*/sock"))
        return [(name, node) for name in names if (node := self.lookup(name)) is not None]

    async def read(self, name: str) -> str:
        async with dial(self.state.address(name), deadline=2) as files:
            return (await files.read("/proc/lifecycle/state")).decode()


def tree(state: State, name: str) -> Dir:
    notes = Notes()
    entries: dict[str, Node] = {
        "proc": Dir({"lifecycle": Dir({"state": Text(lambda: "ONLINE")})}),
        "log": Dir({
            "ctl": notes,
            "events": File(lambda at, n: notes.text()[at : at + n], size=lambda: len(notes.text())),
        }),
    }  # fmt: skip
    if name == "queen":
        entries["n"] = Others(state)
    return Dir(entries)


async def serve(state: State, name: str) -> None:
    policy = Policy.parse(["local read,write,ctl /**"])
    export = Export(tree(state, name), policy, AuditMemory(), TraceRing())
    async with listening(export, [state.address(name)]):
        await trio.sleep_forever()


def command(state: State, name: str) -> list[str]:
    return [sys.executable, "-P", __file__, "--state", str(state.directory), "--name", name]


def broken(source: str, point: Path) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit('no mount of {source} here')"]


def bring_up(state: State, roles: dict[str, str], queen: str, at: str | None, *, detach: bool) -> int:
    def say(text: str) -> None:
        print(text, flush=True)

    def done(now: Status, fresh: bool) -> None:
        say("up" if fresh else "already up")

    mount = Mount(Path(at), broken) if at else None
    try:
        if queen:
            [(name, role)] = roles.items()
            return start_joined(
                state, name, role, queen, mount, detach=detach, tell=say, command=command, done=done
            )
        return up(state, roles, mount, detach=detach, tell=say, command=command, done=done)
    except (Refusal, OSError) as e:
        say(f"{type(e).__name__}: {e}")
        return 1


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--state")
    parser.add_argument("--name")
    parser.add_argument("--up", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--join", default="")
    parser.add_argument("--mount")
    parser.add_argument("roles", nargs="*")
    args = parser.parse_args()
    state = State(args.state)
    if args.up or args.keep or args.join:
        roles = dict(word.split("=") for word in args.roles)
        sys.exit(bring_up(state, roles, args.join, args.mount, detach=not args.keep))
    told = Path(state.directory / "fail" / args.name)
    match told.read_text().split() if told.exists() else []:
        case ["exit", code]:
            os.write(2, b"told to fail\n")
            sys.exit(int(code))
        case ["hang"]:
            trio.run(trio.sleep_forever)
    trio.run(serve, state, args.name)


if __name__ == "__main__":
    main()
