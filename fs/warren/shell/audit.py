"""audit: read and verify an audit

    warren audit verify DIR [--heads DIR [--key FILE]...]
    warren audit show DIR [--since TIME] [--subject WHO] [--path PATH] [--trace ID]

DIR is what `warren serve --audit` was given, also while the server runs.

verify reads all of it and says what is altered, cut, dropped, moved or torn: the segment, the line, the
sequence, and the last good one before. Only --heads finds a tail that was cut and a history that was
written anew; it is the second place, to which the server handed signed heads. --key is the public key
or the certificate they are signed with, in PEM; without it, signatures are not checked.

show prints the lines, unverified. --since is a duration (90s, 10m, 2h, 7d), or a time as the lines have
it; --path is that path and what is below it; --trace is the id that an error ended with.

Exit code 0 says that nothing was found, 9 that something was. --json prints each finding and then what was
looked at, or each line as it lies in the file.
"""

from __future__ import annotations

import datetime
import errno
import os
import re
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from warren.traces.audit.findings import Finding, Findings
    from warren.traces.audit.heads import Keys
    from warren.traces.audit.lines import Line, Place

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OPTIONS = {"verify": ("heads", "key"), "show": ("since", "subject", "path", "trace")}


def declare(parser: Parser) -> None:
    parser.add_argument("--heads", metavar="DIR", help="verify: the second place of signed heads")
    parser.add_argument("--key", metavar="FILE", action="append", default=[],
                        help="verify: a public key or certificate; repeatable")  # fmt: skip
    parser.add_argument("--since", metavar="TIME", help="show: nothing before that")
    parser.add_argument("--subject", metavar="WHO", help="show: only what WHO did")
    parser.add_argument("--path", metavar="PATH", help="show: only PATH and what is below it")
    parser.add_argument("--trace", metavar="ID", help="show: only what has that trace id")
    add_json(parser)


def run(args: Namespace) -> int:
    if len(args.words) != 2 or args.words[0] not in _OPTIONS:
        raise Usage("warren audit: it is verify DIR or show DIR; see warren help audit")
    what, directory = args.words
    for other, names in _OPTIONS.items():
        for name in names:
            if other != what and getattr(args, name):
                raise Usage(f"warren audit {what}: --{name} is for {other}; see warren help audit")
    if args.key and not args.heads:
        raise Usage("warren audit verify: --key is for the heads; say where they are with --heads DIR")
    _holding(directory, "*.log", "give the directory that --audit had")
    return _verify(directory, args) if what == "verify" else _show(directory, args)


def _holding(directory: str, pattern: str, way_out: str) -> None:
    """Refuse a directory that has none of such files: finding nothing there would prove nothing."""
    from pathlib import Path

    with os.scandir(directory):
        pass
    if next(Path(directory).glob(pattern), None) is None:
        raise Stopped(errno.ENOENT, f"there is no {pattern} in it", directory, way_out)


# verify


def _verify(directory: str, args: Namespace) -> int:
    from warren.traces.audit.verify import verify

    keys = _keys(args.key) if args.key else None
    if args.heads:
        _holding(args.heads, "*.heads", "give the directory that --heads had when it was served")
    findings = verify(directory, args.heads, keys)
    if args.json:
        for finding in findings.found:
            output.document(_finding(finding))
        output.document(_summary(findings))
    else:
        for finding in findings.tears:
            output.line(f"{finding.segment}:{finding.line}: {finding.says}")
        for finding in findings.found:
            output.line(_said(finding))
        if findings.more:
            output.line(f"and {findings.more} more")
        output.line(_totals(findings, args.heads is not None))
    if findings.unchecked:
        output.say("warren: the signatures of the heads were not checked; --key FILE checks them")
    return exits.OK if findings.ok else exits.BAD_INPUT


def _keys(files: list[str]) -> Keys:
    from warren.traces.audit.keys import FileChecker

    checkers = [FileChecker(file) for file in files]
    return {checker.key_id: checker for checker in checkers}


def _said(finding: Finding) -> str:
    where = f"{finding.segment}:{finding.line}" if finding.line else finding.segment
    seq = f" sequence {finding.seq}:" if finding.seq else ""
    return f"{where}: {finding.kind}:{seq} {finding.says}; {_good(finding.good)}"


def _good(place: Place) -> str:
    if not place.seq:
        return "no line before it is good"
    return f"the last good line is {place.segment:08}.log:{place.line}, sequence {place.seq}"


def _totals(findings: Findings, heads: bool) -> str:
    count = len(findings.found) + findings.more
    said = "nothing was found" if findings.ok else f"{count} finding{'s' * (count != 1)}"
    signed = f", signed up to sequence {findings.covered}" if heads else ""
    return (
        f"{findings.segments} segments, {findings.lines} lines, sequence {findings.last.seq}{signed}: {said}"
    )


def _finding(finding: Finding) -> dict[str, Any]:
    return {**finding._asdict(), "good": _place(finding.good)}


def _place(place: Place) -> dict[str, Any]:
    return {**place._asdict(), "h": place.h.decode()}


def _summary(findings: Findings) -> dict[str, Any]:
    return {
        "ok": findings.ok,
        "findings": len(findings.found) + findings.more,
        "segments": findings.segments,
        "lines": findings.lines,
        "last": _place(findings.last),
        "tears": len(findings.tears) + findings.tears_more,
        "heads": findings.heads,
        "unchecked": findings.unchecked,
        "covered": findings.covered,
    }


# show


def _show(directory: str, args: Namespace) -> int:
    from warren.traces.audit.reading import lines

    since = _since(args.since) if args.since else 0.0
    trace = _trace(args.trace) if args.trace else ""
    below = (args.path or "").rstrip("/") + "/"
    for _, raw, line in lines(directory):
        if line.ts < since or (args.subject is not None and line.subject != args.subject):
            continue
        if args.path is not None and not _at_or_below(line.path, below):
            continue
        if trace and line.trace != trace:
            continue
        if args.json:
            output.put(raw)
        else:
            output.line(_shown(line))
    return exits.OK


def _at_or_below(path: str, below: str) -> bool:
    """A verb stands behind `#`, and belongs to its ctl file."""
    return path.startswith(below) or path.split("#", 1)[0] == below[:-1]


def _since(text: str) -> float:
    duration = re.fullmatch(r"(\d+)([smhd])", text)
    if duration:
        return time.time() - int(duration[1]) * _UNITS[duration[2]]
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise Usage(
            f"warren audit show: --since {text!r} is no time; such as 10m or 2027-01-31T12:00:00Z"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()


def _trace(text: str) -> str:
    text = text.removeprefix("trace=").lower()
    if not re.fullmatch(r"[0-9a-f]{1,32}", text):
        raise Usage(f"warren audit show: --trace {text!r} is no trace id; it is 16 hex digits")
    return text.lstrip("0").rjust(16, "0")


def _shown(line: Line) -> str:
    when = datetime.datetime.fromtimestamp(line.ts, datetime.UTC)
    words = [when.isoformat(timespec="milliseconds").replace("+00:00", "Z"), str(line.seq), line.kind]
    if line.session:
        words.append(f"session={line.session}")
    words += [line.subject or "-", line.op, line.path or "-"]
    if line.kind in ("outcome", "note"):
        words.append(str(line.code) if line.code else "ok")
    if line.of:
        words.append(f"of={line.of}")
    if line.open:
        words.append(f"open={','.join(map(str, line.open))}")
    if line.size:
        words.append(f"size={line.size}")
    if line.detail:
        words.append(line.detail)
    if line.trace:
        words.append(f"trace={line.trace}")
    return " ".join(words)
