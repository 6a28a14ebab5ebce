"""ca: the hive's certificate authority

    warren ca init DIR --hive NAME                    a new one
    warren ca issue DIR URI --out ID [--ttl 7d]       an identity: ID/cert.pem key.pem ca.pem
    warren ca sign DIR CSR --uri URI [--out ID]       a certificate for the key of a signing request
    warren ca revoke DIR SERIAL [--reason REASON]     take one back
    warren ca list DIR                                what was signed
    warren ca rotate DIR [--root]                     a new issuer, or a new root and issuer
    warren ca region DIR NAME [--out REGIONDIR]       a CA for a region, or a new issuer for it
    warren ca crl DIR [FILE...]                       sign the revocation lists again; take in regions' lists
    warren ca backup DIR FILE --passphrase FILE       all of it in one encrypted file
    warren ca restore FILE DIR --passphrase FILE
    warren ca minter DIR PUBFILE --allow 'RIGHTS PATTERN'... [--ttl 30d]   let a key mint tokens

URI is spiffe://HIVE/role/ROLE/NAME or spiffe://HIVE/user/NAME. A certificate lasts 7 days if --ttl does
not say otherwise (30s, 15m, 12h, 90d); issuing again into the same ID replaces it. Of a signing request
only the key is used: CSR is a file, or - for standard input, and the name is the one that --uri says.
Without --out the chain is printed.

DIR/root.key is needed to rotate, to make or revoke a region and to revoke an issuer; keep it offline for
the rest of the time, and say --root-key FILE when it is needed. DIR/crl.pem is what the servers of the
hive are to know; a copy in an identity's directory is used from its start on.

minter certifies the public half of a key of `warren token keygen`: with it tokens can be minted that
allow what --allow says at most. DIR/minters lists such keys; servers that watch the authority learn of them,
others need a copy in their identity's directory. Certifying a key again replaces what it had.

A passphrase is the first line of a file that only you can read, or of standard input if FILE is -.
"""

from __future__ import annotations

import errno
import os
import re
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from cryptography import x509
    from warren.auth.ca import CA

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LARGEST = 1 << 20


def declare(parser: Parser) -> None:
    parser.add_argument("--hive", metavar="NAME", help="init: the hive's name, such as example.org")
    parser.add_argument("--out", metavar="DIR", help="issue, sign, region: where the result goes")
    parser.add_argument("--ttl", metavar="TIME", help="issue, sign, minter: how long it lasts, such as 12h")
    parser.add_argument("--uri", metavar="URI", help="sign: the name that is certified")
    parser.add_argument("--key", metavar="KIND", choices=["ed25519", "p256"], default="ed25519",
                        help="init, issue, region, rotate --root: ed25519 or p256")  # fmt: skip
    parser.add_argument("--reason", metavar="REASON", default="unspecified", help="revoke: why")
    parser.add_argument("--root", action="store_true", help="rotate: the root too")
    parser.add_argument("--root-key", metavar="FILE", help="where root.key is, if not in DIR")
    parser.add_argument(
        "--passphrase", metavar="FILE", help="backup, restore: the file it is in; - is standard input"
    )
    parser.add_argument("--allow", metavar="ROW", action="append", default=[],
                        help="minter: 'RIGHTS PATTERN', what it may mint; repeatable")  # fmt: skip
    add_json(parser)


def run(args: Namespace) -> int:
    verb, *words = args.words or [""]
    if verb not in VERBS:
        what = f"no verb {output.printable(verb)}" if verb else "a verb is missing"
        raise Usage(f"warren ca: {what}; there are {', '.join(VERBS)}; see warren help ca")
    shape, act = VERBS[verb]
    wanted = shape.split()
    more = wanted[-1:] == ["[FILE...]"]
    if len(words) < len(wanted) - more or (len(words) > len(wanted) and not more):
        raise Usage(f"warren ca {verb}: it takes {shape}; see warren help ca")

    from warren.auth.refusal import Missing, Refusal, Standing

    try:
        act(args, *words)
    except Refusal as e:
        code = {Missing: exits.NOT_FOUND, Standing: exits.CONFLICT}.get(type(e), exits.BAD_INPUT)
        raise Stopped(errno.EINVAL, e.text, "", e.way_out, code) from None
    return exits.OK


def _init(args: Namespace, where: str) -> None:
    from warren.auth.ca import CA

    if not args.hive:
        raise Usage("warren ca init: which hive? Say --hive NAME, such as --hive example.org")
    made = CA.create(where, args.hive, args.key)
    _done(args, {"hive": made.hive, "dir": where}, f"{where} names spiffe://{made.hive}/...")


def _issue(args: Namespace, where: str, uri: str) -> None:
    if not args.out:
        raise Usage("warren ca issue: where to? Say --out DIR; it will hold cert.pem, key.pem and ca.pem")
    certificate = _opened(args, where).issue(uri, args.out, _ttl(args), args.key)
    _say_issued(args, uri, certificate)


def _sign(args: Namespace, where: str, request: str) -> None:
    from warren.auth import keyfiles
    from warren.auth.certificates import pem, read_request

    data = _input() if request == "-" else keyfiles.read_open(Path(request))
    _, asked = read_request(data)
    if not args.uri:
        wish = (
            f"the request asks for {', '.join(map(output.printable, asked))}"
            if asked
            else "the request names none"
        )
        raise Usage(f"warren ca sign: which name? {wish}; it is yours to say: --uri URI")
    authority = _opened(args, where)
    chain = authority.sign(data, args.uri, _ttl(args))
    if not args.out:
        output.put(pem(*chain))
        return
    into = Path(args.out)
    keyfiles.make_directory(into)
    with keyfiles.locked(into):
        keyfiles.write_whole(into / "ca.pem", authority.bundle())
        keyfiles.write_whole(into / "cert.pem", pem(*chain))
    _say_issued(args, args.uri, chain[0])


def _revoke(args: Namespace, where: str, serial: str) -> None:
    digits = serial.replace(":", "").lower().removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{1,40}", digits):
        raise Usage(
            f"warren ca revoke: {serial!r} is no serial; it is hexadecimal, as warren ca list shows it"
        )
    fresh = _opened(args, where).revoke(int(digits, 16), args.reason)
    text = "revoked" if fresh else "was revoked before"
    _done(args, {"serial": digits, "fresh": fresh}, f"{digits} {text}; {Path(where) / 'crl.pem'} says so")


def _list(args: Namespace, where: str) -> None:
    from warren.auth.certificates import utc_now

    now = utc_now()
    for c in _opened(args, where).certificates():
        state = f"revoked:{c.revoked.reason}" if c.revoked else "live" if c.live(now) else "expired"
        ends = f"{c.not_after:%Y-%m-%dT%H:%M:%SZ}"
        if args.json:
            output.document({"serial": f"{c.serial:x}", "kind": c.kind, "name": c.name, "state": state,
                             "not_after": ends, "issuer": c.issuer})  # fmt: skip
        else:
            output.line(f"{c.serial:040x} {c.kind:<8} {ends} {state:<8} {c.name}")


def _rotate(args: Namespace, where: str) -> None:
    authority = _opened(args, where)
    made = authority.rotate_root(args.key) if args.root else authority.rotate()
    what = "root and issuer" if args.root else "issuer"
    serial = f"{made.serial_number:x}"
    _done(
        args,
        {"rotated": what, "serial": serial},
        f"new {what}; hand out {Path(where) / 'crl.pem'}, then issue",
    )


def _region(args: Namespace, where: str, name: str) -> None:
    made = _opened(args, where).region(name, args.out, args.key)
    _done(
        args,
        {"region": made.domain, "dir": str(made.directory)},
        f"{made.directory} names spiffe://{made.domain}/...",
    )


def _crl(args: Namespace, where: str, *files: str) -> None:
    from warren.auth import keyfiles

    authority = _opened(args, where)
    news = sum(authority.gather(keyfiles.read_open(Path(file))) for file in files)
    authority.sign_lists()
    text = f"{Path(where) / 'crl.pem'} is signed again{f', with {news} newer of regions' if files else ''}"
    _done(args, {"crl": str(Path(where) / "crl.pem"), "news": news}, text)


def _backup(args: Namespace, where: str, file: str) -> None:
    from warren.auth.backup import backup

    saved = backup(where, file, _passphrase(args))
    if not saved.root_key:
        output.say(f"warren: root.key is not in {where}, and so not in the backup; see that it is in another")
    _done(args, {"backup": file, "files": saved.files}, f"{file} holds {len(saved.files)} files")


def _restore(args: Namespace, file: str, where: str) -> None:
    from warren.auth.backup import restore

    saved = restore(file, where, _passphrase(args))
    _done(args, {"restored": where, "files": saved.files}, f"{where} holds {len(saved.files)} files")


def _minter(args: Namespace, where: str, file: str) -> None:
    from warren.shell import minter

    minter.add(args, _opened(args, where), file, _ttl(args) if args.ttl else minter.TTL, _done)


VERBS: dict[str, tuple[str, Callable[..., None]]] = {
    "init": ("DIR", _init),
    "issue": ("DIR URI", _issue),
    "sign": ("DIR CSR", _sign),
    "revoke": ("DIR SERIAL", _revoke),
    "list": ("DIR", _list),
    "rotate": ("DIR", _rotate),
    "region": ("DIR NAME", _region),
    "crl": ("DIR [FILE...]", _crl),
    "backup": ("DIR FILE", _backup),
    "restore": ("FILE DIR", _restore),
    "minter": ("DIR PUBFILE", _minter),
}


def _opened(args: Namespace, where: str) -> CA:
    from warren.auth.ca import CA

    return CA(where, args.root_key)


def _ttl(args: Namespace) -> timedelta:
    from warren.auth.ca import TTL

    if args.ttl is None:
        return TTL
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", args.ttl)
    if not found:
        raise Usage(f"warren ca: --ttl {args.ttl!r} is no time; write a number and s, m, h or d, such as 12h")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def _passphrase(args: Namespace) -> bytes:
    from warren.auth import keyfiles

    if not args.passphrase:
        raise Usage("warren ca: a passphrase is needed; say --passphrase FILE, or - for standard input")
    data = _input() if args.passphrase == "-" else keyfiles.read_secret(Path(args.passphrase))
    return data.partition(b"\n")[0]


def _input() -> bytes:
    pieces = []
    left = _LARGEST
    while left > 0 and (piece := os.read(output.STDIN, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _say_issued(args: Namespace, uri: str, certificate: x509.Certificate) -> None:
    ends = f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    serial = f"{certificate.serial_number:x}"
    said = {"uri": uri, "serial": serial, "not_after": ends, "dir": args.out}
    _done(args, said, f"{uri} until {ends}, serial {serial}, in {args.out}")


def _done(args: Namespace, document: dict[str, object], text: str) -> None:
    if args.json:
        output.document(document)
    else:
        output.line(text)
