"""export: let a queen mount a tree of this machine

    warren export DIR|ADDR --to ADDR --id DIR --allow 'WHO RIGHTS PATTERN'... [--expect WHO] [--read-only]

The directory DIR, or the tree at ADDR, is offered to the queen at --to, who has it at /n/NAME; NAME is the
last word of the name in --id, which must be a role's. We dial and she asks: nothing listens here, so this
works from behind any firewall.

Without --allow nobody may do anything. A row lets somebody in, as for `warren serve`:

    warren ca issue STATE/pki/ca spiffe://HIVE/role/FileServer/nas --out ~/nas
    warren export ~/pictures --to tls!queen.example!5640 --id ~/nas --allow 'role/QueenPrimary/* read /**'

The queen asks as herself for the users of her machine. For others she asks on their behalf: then both must be
allowed, she `delegate` and they what they do. Of the tree at ADDR we are the user: whom a row lets in does
there what you may do there, so say no more than is meant.

What the hive has revoked is heard from the queen and ends at once. --audit DIR keeps the record of who did
what. It stays until Ctrl-C or SIGTERM, says when it is in use, and dials again what was lost.

One name is one tree. Do not use the name of a role that runs, nor one name for two exports: a queen would
take both for the same.
"""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from warren.auth.spiffe import parse
from warren.roles.directory import socket_of
from warren.shell import exits, output
from warren.shell.arguments import Parser
from warren.shell.exits import Stopped, Usage
from warren.shell.reaching import identity_at, not_reached, until_ended

if TYPE_CHECKING:
    from warren.auth.identity import Identity
    from warren.auth.rights import Policy
    from warren.serve.export import Export
    from warren.traces.audit import AuditFile, AuditMemory
    from warren.tree import Node

LOOK = 1.0


def declare(parser: Parser) -> None:
    parser.add_argument("--to", metavar="ADDR", help="the queen: tls!HOST!PORT")
    parser.add_argument("--id", metavar="DIR", help="who you are: cert.pem key.pem ca.pem token")
    parser.add_argument("--expect", metavar="WHO", default="role/*/*", help="who must be at --to, or at ADDR")
    parser.add_argument("--allow", metavar="ROW", action="append", default=[],
                        help="'WHO RIGHTS PATTERN': who may do what; repeatable")  # fmt: skip
    parser.add_argument("--read-only", action="store_true", help="nothing can be changed through it")
    parser.add_argument("--audit", metavar="DIR", help="keep the audit there")


def run(args: Namespace) -> int:
    import trio

    if len(args.words) != 1:
        raise Usage("warren export: say what: warren export DIR|ADDR --to ADDR; see warren export --help")
    if not args.to or not args.id:
        raise Usage("warren export: --to ADDR says whom to, and --id DIR who you are")
    if not args.to.startswith("tls!"):
        raise Usage(f"warren export: --to {output.printable(args.to)} is no tls!HOST!PORT, as a queen's is")
    what = args.words[0]
    _check(what, args.to)
    args.is_tree = _is_tree(what)
    identity = identity_at(args.to, args.id)
    assert identity is not None
    policy = _policy(args.allow).in_hive(identity.hive)
    name = parse(identity.uri)
    if name.parts[0] != "role":
        way_out = "have a name issued for it: warren ca issue CADIR spiffe://HIVE/role/ROLE/NAME"
        text = "a queen mounts roles, and this is none"
        raise Stopped(errno.EINVAL, text, identity.uri, way_out, exits.BAD_INPUT)
    _alone(Path(args.id), name.parts[-1])
    return trio.run(until_ended, lambda: _export(args, what, identity, policy))


def _check(what: str, to: str) -> None:
    from warren.mount.address import parse as parse_address

    try:
        for address in [to, *([what] if _is_tree(what) else [])]:
            parse_address(address)
    except ValueError as e:
        raise Usage(f"warren export: {e}") from None


def _is_tree(what: str) -> bool:
    return "!" in what and not os.path.exists(what)


def _policy(rows: list[str]) -> Policy:
    from warren.auth.rights import BadRow, Policy

    try:
        return Policy.parse(rows)
    except BadRow as e:
        lines = "; ".join(str(e).splitlines())
        raise Usage(f"warren export: --allow {lines}; see warren help serve") from None


def _alone(directory: Path, name: str) -> None:
    """Refuse the name of a role of this machine that runs: the queen would take us for that."""
    state = Path(os.path.realpath(directory)).parents[1:2]
    if state and socket_of(state[0], name).exists():
        text = f"the role {name} runs under this name"
        way_out = "have another issued: warren ca issue CADIR spiffe://HIVE/role/ROLE/NAME --out DIR"
        raise Stopped(errno.EEXIST, text, str(directory), way_out, exits.CONFLICT)


async def _export(args: Namespace, what: str, identity: Identity, policy: Policy) -> None:
    import trio
    from warren.mount import dial
    from warren.roles.guard import Guard
    from warren.roles.outward import keep_offering
    from warren.serve.export import Export
    from warren.traces.audit import AuditFile
    from warren.traces.ring import TraceRing

    async with AsyncExitStack() as held:
        root = await _root(args, what, identity, held)
        audit = _audit(args)
        if isinstance(audit, AuditFile):
            held.callback(audit.close)
        try:  # so that what is wrong from the start ends the command, and is not tried for ever
            async with dial(args.to, identity=identity, expect=args.expect):
                pass
        except OSError as e:
            raise not_reached(e, args.to) from None
        guard = Guard(identity, watch=args.to, aname="/cap", expect=args.expect, tell=_tell)
        export = Export(root, policy, audit, TraceRing(), verifier=guard.verifier)
        _announce(args)
        async with guard.kept(export), trio.open_nursery() as nursery:
            if isinstance(audit, AuditFile):
                nursery.start_soon(audit.keep)
            nursery.start_soon(_watch_use, export)
            news = _News(f"offered to {args.to} as {identity.uri}")
            await keep_offering(args.to, identity, args.expect, export, tell=news)


async def _root(args: Namespace, what: str, identity: Identity, held: AsyncExitStack) -> Node:
    """What is exported."""
    if not args.is_tree:
        from warren.servers.disk import Disk

        try:
            return Disk(what, read_only=args.read_only)
        except OSError as e:
            way_out = "give a directory that is there and that you may read, or an address"
            raise Stopped(e.errno or errno.EIO, e.strerror or str(e), what, way_out) from None
    from warren.roles.composed import elsewhere

    there = elsewhere(what, identity=identity, expect=args.expect, read_only=args.read_only)
    try:
        return await held.enter_async_context(there)
    except OSError as e:
        raise not_reached(e, what) from None


def _audit(args: Namespace) -> AuditFile | AuditMemory:
    from warren.traces.audit import AuditFile, AuditMemory

    return AuditFile(args.audit, tell=_tell) if args.audit else AuditMemory()


def _tell(said: str) -> None:
    output.say(f"warren: {said}")


def _announce(args: Namespace) -> None:
    if not args.audit:
        _tell("the audit is kept in memory only; --audit DIR keeps it")
    if not args.allow:
        _tell("everyone is refused; let a queen in with --allow 'role/QueenPrimary/* read /**'")


class _News:
    """What becomes of the connections, told when that changes: for each in use another is offered."""

    def __init__(self, offered: str) -> None:
        self.offered = offered
        self.last = ""

    def __call__(self, said: str) -> None:
        told = self.offered if said.startswith("offered") else said.partition("; again in")[0]
        if told != self.last:
            self.last = told
            output.say(told)


async def _watch_use(export: Export) -> None:
    """Say who uses it, when that changes."""
    import trio

    before: list[str] = []
    while True:
        now = sorted({s.subject for s in export.sessions if s.attached})
        if now != before:
            output.say(f"in use by {', '.join(now)}" if now else "in use by nobody")
        before = now
        await trio.sleep(LOOK)
