"""serve: give a tree

    warren serve                           list the servers
    warren serve disk DIR --listen ADDR... [--allow 'WHO RIGHTS PATTERN']... [--audit DIR] [--read-only]
    warren serve demo --listen ADDR... [--allow 'WHO RIGHTS PATTERN']... [--audit DIR]
    warren serve cap CADIR --listen ADDR...   the authority's own tree, which other servers watch

--listen may be repeated:

    unix!PATH         the peer is `local` if it runs as the same user
    tcp!HOST!PORT     loopback only, since TCP proves nothing: every peer is `any`; port 0 chooses one
    tls!HOST!PORT     mutual TLS with --id DIR: the peer is the name in its certificate
    stdio             one conversation on standard input and output, as `any`; its end ends the server

--allow may be repeated. A row only ever adds, and without any the server refuses everyone:

    WHO       local, any, role/ROLE/NAME, user/NAME, spiffe://HIVE/...; * is one component
    RIGHTS    a comma list of read write create remove ctl; rw is read,write
    PATTERN   /** is everything, * one name; verbs behind #, as in: local ctl /gpu/*/ctl#lease,release

--audit DIR keeps the record of who did what in DIR, and nothing is done that could not be recorded.
Without it the newest records are kept in memory only. --heads DIR, best on another disk, gets a signed
head of it each second, so that nobody can cut its end or write it anew; --heads-key is the private key,
Ed25519 or P-256 in PEM. `warren help audit` is about reading and verifying.

--id DIR is who the server is: cert.pem key.pem ca.pem of `warren ca issue`, perhaps crl.pem, and minters,
the keys whose tokens it takes. When the files change they are read again. --watch ADDR follows the
authority's tree there, so that what it revokes ends at once; a server that has not heard of it for five
seconds says so, and with --strict it then changes nothing.

Each address is said on standard error once it is open; --json prints {"server": ..., "listening":
[...]} on standard output too. SIGTERM ends the server with exit code 0, Ctrl-C with 130.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage
from warren.shell.session import identity_of

if TYPE_CHECKING:
    from trio import TaskStatus
    from warren.auth.rights import Policy
    from warren.roles.guard import Guard
    from warren.serve.export import Export
    from warren.serve.listen import BadAddress
    from warren.traces.audit import AuditFile, AuditMemory
    from warren.tree import Node

SERVERS = {
    "disk": "DIR: a directory of this machine",
    "demo": "a tree that shows each kind of file once",
    "cap": "CADIR: revocations and minters, for servers to watch",
}


def declare(parser: Parser) -> None:
    parser.add_argument("--listen", metavar="ADDR", action="append", default=[], help="where; repeatable")
    parser.add_argument("--allow", metavar="ROW", action="append", default=[],
                        help="'WHO RIGHTS PATTERN': who may do what; repeatable")  # fmt: skip
    parser.add_argument("--audit", metavar="DIR", help="keep the audit there")
    parser.add_argument("--heads", metavar="DIR", help="a second place for signed heads of the audit")
    parser.add_argument("--heads-key", metavar="FILE", help="the private key that signs them")
    parser.add_argument("--id", metavar="DIR", help="who the server is: cert.pem key.pem ca.pem")
    parser.add_argument("--watch", metavar="ADDR", help="the authority's tree, served by warren serve cap")
    parser.add_argument("--strict", action="store_true", help="change nothing while the watch is stale")
    parser.add_argument("--read-only", action="store_true", help="of disk: nothing can be changed")
    add_json(parser)


def run(args: Namespace) -> int:
    if not args.words:
        _list(args.json)
        return exits.OK
    if args.json and "stdio" in args.listen:
        raise Usage("warren serve: --json prints where stdio talks; leave one out")
    root = _root(args)
    if not args.listen:
        way_out = "such as --listen 'tcp!127.0.0.1!5640' or --listen \"unix!$PWD/sock\""
        raise Usage(f"warren serve: nowhere to listen; say where, {way_out}")
    if bool(args.heads) != bool(args.heads_key) or (args.heads and not args.audit):
        raise Usage("warren serve: --heads and --heads-key go together, with --audit; see warren help serve")
    policy = _policy(args.allow)

    import trio

    return trio.run(_serve, args, root, policy)


def _list(json: bool) -> None:
    for name, says in SERVERS.items():
        if json:
            output.document({"server": name, "help": says})
        else:
            output.line(f"{name:<6} {says}")


def _root(args: Namespace) -> Node:
    name, *rest = args.words
    if name not in SERVERS:
        raise Usage(f"warren serve: no server {name!r}; there are {' and '.join(SERVERS)}")
    if len(rest) != (name != "demo"):
        wants = "one DIR" if name != "demo" else "no further word"
        given = " ".join(rest) or "none"
        raise Usage(f"warren serve {name}: it takes {wants}, not {given}; see warren help serve")
    if name == "disk":
        from warren.servers.disk import Disk

        try:
            return Disk(rest[0], read_only=args.read_only)
        except OSError as e:
            text = e.strerror or str(e)
            way_out = "give a directory that is there and that you may read"
            raise Stopped(e.errno or errno.EIO, text, rest[0], way_out) from None
    if args.read_only:
        way_out = "leave ctl and write out of --allow instead"
        raise Usage(f"warren serve {name}: --read-only is for disk; {way_out}")
    if name == "cap":
        return _cap(rest[0])
    from warren.servers.demo import Demo

    return Demo()


def _cap(directory: str) -> Node:
    from warren.auth.refusal import Refusal
    from warren.servers.cap import Cap

    try:
        return Cap(directory)
    except Refusal as e:
        raise Stopped(errno.ENOENT, e.text, directory, e.way_out, exits.NOT_FOUND) from None


def _policy(rows: list[str]) -> Policy:
    from warren.auth.rights import BadRow, Policy

    try:
        return Policy.parse(rows)
    except BadRow as e:
        lines = "; ".join(str(e).splitlines())
        raise Usage(f"warren serve: --allow {lines}; see warren help serve") from None


async def _serve(args: Namespace, root: Node, policy: Policy) -> int:
    import trio
    from warren.serve.export import Export
    from warren.servers.cap import Cap
    from warren.traces.audit import AuditFile
    from warren.traces.ring import TraceRing

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What the parent had ignored stays ignored: nohup, or a shell without job control.
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with trio.open_signal_receiver(*(s for s in ends if signal.getsignal(s) != signal.SIG_IGN)) as signals:
        audit = _audit(args)
        try:
            guard = _guard(args)
            if guard is not None:
                policy = policy.in_hive(guard.identity.hive)
            verifier = guard.verifier if guard is not None else None
            export = Export(root, policy, audit, TraceRing(), verifier=verifier)
            beside = [root.watch] if isinstance(root, Cap) else []
            return await _until_ended(export, guard, beside, args, signals)
        finally:
            if isinstance(audit, AuditFile):
                audit.close()


def _audit(args: Namespace) -> AuditFile | AuditMemory:
    from warren.traces.audit import AuditFile, AuditMemory

    if not args.audit:
        return AuditMemory()

    def tell(said: str) -> None:
        output.say(f"warren: {said}")

    if not args.heads:
        return AuditFile(args.audit, tell=tell)
    from warren.traces.audit.heads import HeadFiles
    from warren.traces.audit.keys import FileSigner

    return AuditFile(args.audit, signer=FileSigner(args.heads_key), heads=HeadFiles(args.heads), tell=tell)


def _guard(args: Namespace) -> Guard | None:
    """Who we are and how that is kept current, with --id."""
    identity = identity_of(args.id)
    if identity is None:
        if args.watch or args.strict:
            raise Usage("warren serve: --watch and --strict need --id DIR, to be let in by the authority")
        return None
    from warren.auth.blocks import BadText
    from warren.roles.guard import Guard

    def tell(said: str) -> None:
        output.say(f"warren: {said}")

    try:
        return Guard(identity, watch=args.watch, strict=args.strict, tell=tell)
    except BadText as e:
        way_out = "certify them again: warren ca minter"
        raise Stopped(errno.EINVAL, str(e), f"{args.id}/minters", way_out, exits.BAD_INPUT) from None


async def _until_ended(
    export: Export,
    guard: Guard | None,
    beside: Sequence[Callable[[], Awaitable[None]]],
    args: Namespace,
    signals: AsyncIterator[int],
) -> int:
    """Listen, until a signal or the end of the one conversation on stdio; returns the exit code."""
    import trio
    from warren.serve.listen import BadAddress, listening
    from warren.traces.audit import AuditFile

    code = exits.OK
    refused: BaseExceptionGroup[BadAddress] | None = None
    elsewhere = [address for address in args.listen if address != "stdio"]
    try:
        gate = guard.gate if guard is not None else None
        async with listening(export, elsewhere, gate) as names, trio.open_nursery() as nursery:

            async def heed() -> None:
                nonlocal code
                code = exits.INTERRUPTED if await anext(signals) == signal.SIGINT else exits.OK
                nursery.cancel_scope.cancel()

            nursery.start_soon(heed)
            if isinstance(export.audit, AuditFile):
                nursery.start_soon(export.audit.keep)
            if guard is not None:
                await nursery.start(_keep, guard, export)
            for work in beside:
                nursery.start_soon(work)
            _announce(args, names)
            if "stdio" in args.listen:
                await _converse_here(export)
                if not elsewhere:
                    nursery.cancel_scope.cancel()
    except* BadAddress as group:
        refused = group
    if refused is not None:
        raise _cannot_listen(refused)
    return code


async def _keep(guard: Guard, export: Export, task_status: TaskStatus[None]) -> None:
    import trio

    async with guard.kept(export):
        task_status.started()
        await trio.sleep_forever()


def _announce(args: Namespace, names: list[str]) -> None:
    if not args.audit:
        output.say("warren: the audit is kept in memory only; --audit DIR keeps it")
    if not args.allow:
        output.say("warren: everyone is refused; let yourself in with --allow 'local rw,ctl /**'")
    open_ones = [*names, *(["stdio"] if "stdio" in args.listen else [])]
    for name in open_ones:
        output.say(f"listening on {name}")
    if args.json:
        output.document({"server": args.words[0], "listening": open_ones})


async def _converse_here(export: Export) -> None:
    """One conversation on standard input and output, of which nobody else may have a piece."""
    import trio
    from warren.serve.stream import serve_stream

    receive, send = os.dup(output.STDIN), os.dup(output.STDOUT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, output.STDIN)
    os.dup2(output.STDERR, output.STDOUT)
    os.close(nothing)
    async with trio.lowlevel.FdStream(receive) as incoming, trio.lowlevel.FdStream(send) as outgoing:
        await serve_stream(export, trio.StapledStream(outgoing, incoming), "any")


def _cannot_listen(group: BaseExceptionGroup[BadAddress]) -> Exception:
    e: BaseException = group
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    if os.strerror(errno.EADDRINUSE) in str(e):
        where, _, text = str(e).rpartition(": ")
        way_out = "another server may run there; end it, or choose another address"
        return Stopped(errno.EADDRINUSE, text, where, way_out, exits.CONFLICT)
    return Usage(f"warren serve: {e}; see warren help serve")
