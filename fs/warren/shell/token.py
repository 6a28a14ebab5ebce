"""token: make, narrow and check capabilities

    warren token keygen --out FILE
    warren token mint --key FILE --allow 'RIGHTS PATTERN'... --aud WHO [--to WHO] [--ttl 1h] [--out FILE]
    warren token narrow FILE [--allow 'RIGHTS PATTERN']... [--aud WHO] [--to WHO] [--ttl TIME]
                             [--for WHO --path PATH] [--out FILE]
    warren token show FILE
    warren token verify FILE --issuer FILE --as SERVER [--from WHO] [--path PATH] [--list FILE]
    warren token revoke FILE|ID [--block N] [--list FILE]
    warren token invite --role ROLE --name NAME [--ttl 10m] [--out FILE] [--state DIR | --at ADDR --id DIR]

A token lets whoever holds its file do what --allow says, at the servers --aud means, until --ttl is over.
RIGHTS are those of `warren serve`; WHO is a whole name, spiffe://HIVE/role/ROLE/NAME or
spiffe://HIVE/user/NAME, in which ROLE or NAME may be *, or `local`. With --to only who is named there may
present it. --rate OPS,BURST and --bytes N limit what is done with it and everything made from it.

keygen makes a key that can mint, in FILE, and its public half in FILE.pub, which the hive's authority
certifies. mint makes a token with such a key. narrow makes a lesser one from a token, without asking
anybody: what it states is taken away and cannot come back; FILE itself stays as it is. Both write the
file `token` unless --out says where else. --for and --path are for proxies that pass on what a caller
asks.

show prints what a token says and believes nothing. verify judges it as SERVER would, shown by --from;
--issuer is a public key, which is then believed whatever it mints, or a file of certified issuers; with
--path it prints what is allowed there; --allow gives rows of the server's policy, for a token with --for.

revoke prints the line that makes a block of a token count no more, nor anything made from it: the last
block, or that of --block; with --list it adds the line to that revocation list.

invite asks the hive's authority for a join token, with which `warren join` makes another machine a member:
NAME in ROLE. It is a secret, good once, for 10 minutes unless --ttl says otherwise, and written to the file
`join-token`, or to --out, where - is standard output. It is no capability; the other verbs do not read it.

FILE may be - for standard input. A token file is a secret, is written for its owner alone, and is not
accepted where others can read it, but for show, verify and revoke of one without its key.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from warren.auth.blocks import Block, Invalid
    from warren.auth.caveats import Caveats
    from warren.auth.token import Issuer, Token
    from warren.mount import Files

_STATED = ("allow", "aud", "to", "ttl", "rate", "bytes")
# What each verb takes: whether a FILE follows it, the options it needs, and those it may have.
VERBS: dict[str, tuple[bool, tuple[str, ...], tuple[str, ...]]] = {
    "keygen": (False, ("out",), ()),
    "mint": (False, ("key", "allow", "aud"), ("to", "ttl", "rate", "bytes", "out")),
    "narrow": (True, (), (*_STATED, "for", "path", "out")),
    "show": (True, (), ()),
    "verify": (True, ("issuer", "as"), ("from", "path", "list", "allow")),
    "revoke": (True, (), ("block", "list")),
    "invite": (False, ("role", "name"), ("ttl", "out")),
}
_OPTIONS = {
    "key": ("FILE", "the issuer's private key, in PEM"),
    "aud": ("WHO", "the servers it is for"),
    "to": ("WHO", "who alone may present it"),
    "ttl": ("TIME", "how long, such as 90s, 10m, 1h; 1h unless given"),
    "rate": ("OPS,BURST", "operations a second, and at once"),
    "bytes": ("N", "how many bytes of file data"),
    "for": ("WHO", "on whose behalf"),
    "path": ("PATH", "for --for, where; for verify, what to answer for"),
    "out": ("FILE", "where to write it"),
    "issuer": ("FILE", "a public key, or certified issuers"),
    "as": ("SERVER", "the server that judges"),
    "from": ("WHO", "who presents it"),
    "block": ("N", "which block, 0 the first"),
    "list": ("FILE", "a revocation list"),
    "role": ("ROLE", "for invite: what the joiner is to be"),
    "name": ("NAME", "for invite: and its name"),
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LARGEST = 1 << 16
_AUTHORITY = "/mesh/ca/ctl"


def declare(parser: Parser) -> None:
    parser.add_argument("--allow", metavar="ROW", action="append", default=[],
                        help="'RIGHTS PATTERN': what it allows; repeatable")  # fmt: skip
    for name, (value, says) in _OPTIONS.items():
        parser.add_argument(f"--{name}", dest=f"{name}_", metavar=value, help=says)
    add_tree(parser)


def run(args: Namespace) -> int:
    verb, *rest = args.words or [""]
    if verb not in VERBS:
        given = f"no verb {output.printable(verb)!r}" if verb else "a verb is missing"
        raise Usage(f"warren token: {given}; there are {', '.join(VERBS)}; see warren help token")
    takes, needs, may = VERBS[verb]
    if len(rest) != takes:
        raise Usage(
            f"warren token {verb}: it takes {'one FILE' if takes else 'options only'}; see warren help token"
        )
    options = {name: getattr(args, f"{name}_") for name in _OPTIONS} | {"allow": args.allow or None}
    for name, value in options.items():
        if value is None and name in needs:
            raise Usage(f"warren token {verb}: --{name} is missing; see warren help token")
        if value is not None and name not in (*needs, *may):
            raise Usage(f"warren token {verb}: --{name} is not for it; see warren help token")
    made = Namespace(**{f"{name}_": value for name, value in options.items()}, json=args.json)
    if verb == "invite":
        return _invite(args, made)
    if args.at or args.state or args.id or args.dry_run:
        raise Usage(f"warren token {verb}: it asks no tree, so it takes no --at, --state, --id or -n")
    from warren.auth.blocks import Invalid

    try:
        code = _RUN[verb](made, *rest)
    except Invalid as e:
        raise _refused(e, rest[0] if rest else "token") from None
    return code


def _refused(e: Invalid, path: str) -> Stopped:
    from warren.auth.blocks import REASONS

    if e.reason in ("value", "size", "blocks", "missing"):
        return Stopped(errno.EINVAL, str(e), path, REASONS[e.reason])
    return Stopped(errno.EACCES, str(e), path, REASONS[e.reason])


def _keygen(args: Namespace) -> int:
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path, beside = Path(args.out_), Path(f"{args.out_}.pub")
    for taken in (path, beside):
        if taken.exists():
            raise Stopped(
                errno.EEXIST, "a key is never written over", str(taken), "move it away, or give another --out"
            )
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    _save(path, secret)
    _save(
        beside, key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo), 0o644
    )
    from warren.auth.blocks import issuer_id

    _print(args.json, {"key": str(path), "public": str(beside),
                       "issuer": issuer_id(key.public_key().public_bytes_raw()).hex()})  # fmt: skip
    return exits.OK


def _mint(args: Namespace) -> int:
    from warren.auth.token import mint

    now = int(time.time())
    caveats = _caveats(args, exp=now + _seconds(args.ttl_ or "1h"), nbf=now)
    return _write(args, mint(_private(args.key_), caveats))


def _narrow(args: Namespace, name: str) -> int:
    from warren.auth.token import narrow

    if (args.for_ is None) != (args.path_ is None):
        raise Usage("warren token narrow: --for and --path go together; see warren help token")
    chain_and_token = _token(name)
    token = chain_and_token[1]
    if token is None:
        raise Stopped(
            errno.EACCES, "the key of this token is not in the file", name, "ask its holder to narrow it"
        )
    out = Path(args.out_ or "token")
    if name != "-" and out.exists() and os.path.samefile(out, name):
        raise Stopped(
            errno.EEXIST, "it would be written over itself", name, "say with --out where the lesser one goes"
        )
    exp = int(time.time()) + _seconds(args.ttl_) if args.ttl_ else None
    return _write(args, narrow(token, _caveats(args, exp=exp, for_=args.for_, path=args.path_)))


def _show(args: Namespace, name: str) -> int:
    from warren.auth import blocks

    chain, token = _token(name)
    held = blocks.parse(chain)
    for number, block in enumerate(held):
        if number and not args.json:
            output.line("")
        _print(args.json, _described(number, block))
    if not args.json:
        output.line("")
    _print(args.json, {"blocks": len(held), "bytes": len(chain), "key": "yes" if token else "no"})
    return exits.OK


def _described(number: int, block: Block) -> dict[str, Any]:
    values: dict[str, Any] = {"block": number, "id": block.id.hex()}
    values["before" if number else "issuer"] = block.before.hex()
    for name, value in block.caveats.items():
        when = name in ("exp", "nbf") and isinstance(value, int) and 0 <= value < 1 << 36
        values[name] = _utc(value) if when and isinstance(value, int) else value
    return values


def _verify(args: Namespace, name: str) -> int:
    from secrets import token_bytes

    from warren.auth.blocks import read_revoked
    from warren.auth.rights import BadRow, Policy
    from warren.auth.token import by_id, recheck, verify

    chain, token = _token(name)
    try:
        policy = Policy.parse(args.allow_ or ())
    except BadRow as e:
        raise Usage(f"warren token verify: --allow {'; '.join(str(e).splitlines())}") from None
    context: dict[str, Any] = {
        "issuers": by_id(_issuers(args.issuer_)), "now": time.time(), "server": args.as_,
        "presenter": args.from_ or "any", "policy": policy,
        "revoked": read_revoked(_text(args.list_)) if args.list_ else (),
    }  # fmt: skip
    if token is None:
        found = recheck(chain, **context)
    else:
        nonce = token_bytes(32)
        found = verify(chain, token.prove(nonce, args.as_), nonce=nonce, **context)
    values: dict[str, Any] = {"actor": found.actor, "via": found.via, "expires": _utc(found.expires)}
    values["proof"] = "given" if token else "not asked for: the key is not in the file"
    if args.path_ is not None:
        from warren.auth.rights import RIGHTS, WALK

        allowed = found.grants.at(args.path_)
        values["path"] = args.path_
        values["rights"] = ["walk"] * bool(allowed.mask & WALK) + [
            r for r, bit in RIGHTS.items() if allowed.mask & bit
        ]
        values["verbs"] = None if allowed.verbs is None else sorted(allowed.verbs)
    _print(args.json, values)
    return exits.OK


def _revoke(args: Namespace, name: str) -> int:
    from warren.auth import blocks

    expires: int | None = None
    if re.fullmatch("[0-9a-f]{64}", name):
        if args.block_ is not None:
            raise Usage("warren token revoke: --block is for a FILE; an ID is one block already")
        dead = bytes.fromhex(name)
    else:
        held = blocks.parse(_token(name)[0])
        number = _number(args.block_, "--block") if args.block_ is not None else len(held) - 1
        if number >= len(held):
            raise Usage(f"warren token revoke: --block {number}: the last of this token is {len(held) - 1}")
        dead = held[number].id
        ends = [e for b in held[: number + 1] if type(e := b.caveats.get("exp")) is int]
        expires = min(ends, default=None)
    line = blocks.write_revoked(dead, expires)
    known: dict[bytes, int | None] = {}
    if args.list_:
        known = blocks.read_revoked(_text(args.list_)) if os.path.exists(args.list_) else {}
        if dead not in known:
            from warren.auth.keyfiles import append

            append(Path(args.list_), line.encode())
    _print(args.json, {"revoked": dead.hex(), "exp": expires, "already": True if dead in known else None})
    return exits.OK


def _invite(args: Namespace, given: Namespace) -> int:
    """Ask the authority of a hive for a join token."""
    from warren.shell.session import converse
    from warren.tree.ctl import quote

    if args.at and args.state:
        raise Usage("warren token invite: --at and --state both say which tree; give one")
    seconds = _seconds(given.ttl_ or "10m")
    asked = f"invite role={quote(given.role_)} name={quote(given.name_)} ttl={seconds}s"
    if args.dry_run:
        output.line(f"echo {shlex.quote(asked)} >{_AUTHORITY}")
        return exits.OK

    async def body(files: Files) -> int:
        async with await files.open(_AUTHORITY, os.O_RDWR) as ctl:
            await ctl.write(f"{asked}\n".encode())
            token = await ctl.pread(ctl.payload, 0)
        if given.out_ == "-":
            output.put(token)
            return exits.OK
        out = Path(given.out_ or "join-token")
        _save(out, token)
        _print(args.json, {"token": str(out), "role": given.role_, "name": given.name_, "ttl": f"{seconds}s"})
        return exits.OK

    return converse(args, body)


def _caveats(args: Namespace, **stated: Any) -> Caveats:
    from warren.auth.caveats import Caveats
    from warren.auth.rights import BadRow, parse_grant

    try:
        allow = tuple(parse_grant(row).grant for row in args.allow_ or ()) or None
    except BadRow as e:
        raise Usage(f"warren token: --allow {e}; see warren help token") from None
    rate = None
    if args.rate_ is not None:
        ops, comma, burst = args.rate_.partition(",")
        rate = (_number(ops, "--rate"), _number(burst if comma else ops, "--rate"))
    size = None if args.bytes_ is None else _number(args.bytes_, "--bytes")
    return Caveats(allow=allow, aud=args.aud_, to=args.to_, rate=rate, bytes_=size, **stated)


def _number(text: str, option: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise Usage(f"warren token: {option} {output.printable(text)}: it wants a number")
    return int(text)


def _seconds(text: str) -> int:
    found = re.fullmatch("([1-9][0-9]{0,8})([smhd])", text)
    if not found:
        raise Usage(
            f"warren token: --ttl {output.printable(text)}: it wants a time such as 90s, 10m, 1h or 1d"
        )
    return int(found[1]) * _SECONDS[found[2]]


def _read(name: str, *, secret: bool = False) -> bytes:
    """A file, or standard input; a secret one only if nobody else could have read it."""
    from warren.auth.keyfiles import read_open, read_secret
    from warren.auth.refusal import Missing, Refusal

    if name == "-":
        return sys.stdin.buffer.read(_LARGEST)
    try:
        return read_secret(Path(name)) if secret else read_open(Path(name))
    except Missing:
        raise Stopped(errno.ENOENT, os.strerror(errno.ENOENT), name, "see that the name is right") from None
    except Refusal as e:
        raise Stopped(errno.EACCES, e.text.removeprefix(f"{name}: "), name, e.way_out) from None


def _text(name: str, *, secret: bool = False) -> str:
    try:
        return _read(name, secret=secret).decode("ascii")
    except UnicodeDecodeError:
        raise Stopped(errno.EINVAL, "it is no text of ours", name, "see that it is the right file") from None


def _token(name: str) -> tuple[bytes, Token | None]:
    from warren.auth.blocks import BadText
    from warren.auth.token import read_token

    try:
        chain, token = read_token(_text(name))
        if token is not None and name != "-":
            chain, token = read_token(_text(name, secret=True))
    except BadText as e:
        raise Stopped(errno.EINVAL, str(e), name, "see that it is a token file") from None
    return chain, token


def _private(name: str) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = None
    try:
        key = load_pem_private_key(_read(name, secret=True), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    if not isinstance(key, Ed25519PrivateKey):
        raise Stopped(
            errno.EINVAL, "it holds no Ed25519 key in PEM", name, "make one with warren token keygen"
        )
    return key


def _issuers(name: str) -> list[Issuer]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from warren.auth.blocks import BadText, read_parts
    from warren.auth.minters import statement
    from warren.auth.rights import parse_grant
    from warren.auth.token import Issuer, read_issuer

    data = _read(name)
    if data.startswith(b"-----BEGIN"):
        key: object = None
        try:
            key = load_pem_public_key(data)
        except ValueError:
            pass
        if not isinstance(key, Ed25519PublicKey):
            raise Stopped(errno.EINVAL, "it holds no public Ed25519 key", name, "keygen wrote it as FILE.pub")
        everything = parse_grant("read,write,create,remove,ctl /**")
        return [Issuer(key.public_bytes_raw(), (everything,), 0, 1 << 53)]
    try:
        parts = read_parts(_text(name))
        # Whoever names the file vouches for it: the authority's signature is for those who fetch it.
        return [read_issuer(part, lambda *_: True) for part in map(statement, parts) if part]
    except BadText as e:
        raise Stopped(errno.EINVAL, str(e), name, "give a public key in PEM, or certified issuers") from None


def _write(args: Namespace, token: Token) -> int:
    from warren.auth.blocks import parse

    out = Path(args.out_ or "token")
    _save(out, token.write().encode())
    held = parse(token.chain)
    _print(args.json, {"token": str(out), "id": held[-1].id.hex(), "blocks": len(held)})
    return exits.OK


def _save(path: Path, data: bytes, mode: int = 0o600) -> None:
    from warren.auth.keyfiles import write_whole

    try:
        write_whole(path, data)
        if mode != 0o600:
            path.chmod(mode)
    except OSError as e:
        text, way_out = e.strerror or str(e), "give a place where you may write"
        raise Stopped(e.errno or errno.EIO, text, str(path), way_out) from None


def _print(json: bool, values: dict[str, Any]) -> None:
    from warren.tree.ctl import quote

    if json:
        output.document(values)
        return
    for name, value in values.items():
        if isinstance(value, list):
            repeated = value if name == "allow" else [",".join(map(str, value))]
        else:
            repeated = [] if value is None else [value]
        for one in repeated:
            output.line(f"{name}={quote(one) if isinstance(one, str) else one}")


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


_RUN: dict[str, Callable[..., int]] = {
    "keygen": _keygen, "mint": _mint, "narrow": _narrow, "show": _show, "verify": _verify, "revoke": _revoke,
}  # fmt: skip
