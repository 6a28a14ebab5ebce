"""boot: boot images, measure and verify them

    warren boot run IMAGE [--budget TIME] [--limit TIME] [--recipe NAME] [--accel NAME] [--secure-boot]
    warren boot run sel4 --kernel PATH [--sdk DIR]
    warren boot measure IMAGE [--runs N] [--budget TIME]
    warren boot verify IMAGE
    warren boot report

run boots IMAGE in QEMU, which is built first if it is not there, and says what became of it:

    booted     it was ready on the wire
    refused    the validator, the firmware or a self-test would not have it
    error      anything else; a time-out always

with how long each stage took. --budget TIME, as 200ms, makes later than that a failure. --secure-boot boots
the image's signed disk and leaves it to the firmware whether it may run. With sel4, the kernel is one that
you give, and --sdk is the folder that its build installed.

measure does it --runs times (20), prints the median and the 95th percentile of each stage, and the number of
instructions from one further run in which QEMU counts them. A pinned number that rose by more than 5 % is a
failure. verify holds every file of a built image against its signed manifest. report prints all that is known
of the newest run.

No hive has to run. Images and reports are kept in the hive's state all the same; --state says in which. The
same is done for a hive by its /boot. --json prints one document. Exit code 0 means booted and every gate
held, 1 that a gate fell or the run failed, 4 refused, 7 that something is not installed, 8 a time-out; verify
ends with 9 for what does not hold.
"""

from __future__ import annotations

import errno
import math
import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json
from warren.shell.exits import Stopped, Usage

if TYPE_CHECKING:
    from warren.boot.harness.bench import Bench
    from warren.boot.harness.outcome import Asked, Outcome
    from warren.tree import Refused

SEL4 = "sel4"
_WORK = ("run", "measure", "verify", "report")
_OTHERWISE = "see what it takes: warren help boot"


def declare(parser: Parser) -> None:
    parser.add_argument("--runs", metavar="N", type=int, help="of measure: how often; 20")
    parser.add_argument("--budget", metavar="TIME", help="later than this is a failure, as 200ms or 2s")
    parser.add_argument("--limit", metavar="TIME", help="of run: not ready by then is an error")
    parser.add_argument("--recipe", metavar="NAME", default="", help="the kind of machine")
    parser.add_argument("--accel", metavar="NAME", default="", help="tcg or kvm, if it works here")
    parser.add_argument("--secure-boot", action="store_true", help="of run: let the firmware decide")
    parser.add_argument("--kernel", metavar="PATH", help="of run sel4: the kernel")
    parser.add_argument("--sdk", metavar="DIR", help="of run sel4: what the kernel's build installed")
    parser.add_argument("--state", metavar="DIR", help="where images and reports are kept")
    add_json(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="print what does the same in a hive")


def run(args: Namespace) -> int:
    what, image = _words(args)
    asked = _asked(args)
    if args.dry_run:
        output.line(_equal(args, what, image))
        return exits.OK
    if what == "report":
        return _report(args)

    import trio
    from warren.tree import Refused

    try:
        return trio.run(partial(_work, args, what, image, asked))
    except Refused as e:
        raise _stopped(e, image) from None


async def _work(args: Namespace, what: str, image: str, asked: Asked) -> int:
    bench = _bench(args)
    if what == "verify":
        return await _verify(args, bench, image)
    if what == "measure":
        from warren.boot.harness.gate import pins

        outcome = await bench.measure(image, args.runs or 20, asked, _tell, pins().get(image))
    elif image == SEL4:
        outcome = await bench.genuine(_absolute(args.kernel), _absolute(args.sdk), asked, _tell)
    else:
        outcome = await bench.run(image, asked, _tell)
    if args.json:
        output.document(_document(outcome))
    else:
        for line in _lines(outcome):
            output.line(line)
    return _code(outcome)


def _words(args: Namespace) -> tuple[str, str]:
    what, *images = args.words or [""]
    if what not in _WORK:
        raise Usage(f"warren boot: it does {', '.join(_WORK)}, not {what!r}; see warren help boot")
    if what == "report" and not images:
        return what, ""
    if len(images) != 1 or what == "report":
        wants = "no further word" if what == "report" else "one IMAGE"
        raise Usage(f"warren boot {what}: it takes {wants}; warren image ls lists images")
    _only(args, what, images[0] == SEL4)
    return what, images[0]


def _only(args: Namespace, what: str, genuine: bool) -> None:
    """Options that go with something else are a mistake, not a wish."""
    given = {
        "--runs": args.runs is not None and what != "measure",
        "--secure-boot": args.secure_boot and (what != "run" or genuine),
        "--limit": args.limit is not None and what != "run",
        "--budget": args.budget is not None and what not in ("run", "measure"),
        "--kernel": args.kernel is not None and not (genuine and what == "run"),
        "--sdk": args.sdk is not None and not (genuine and what == "run"),
    }
    for option, wrong in given.items():
        if wrong:
            raise Usage(f"warren boot {what}: {option} does not go with it; see warren help boot")
    if genuine and what != "run":
        raise Usage("warren boot: a kernel of yours is booted by run; see warren help boot")
    if genuine and args.kernel is None:
        raise Usage("warren boot run sel4: no kernel is part of Warren; give yours with --kernel PATH")
    if args.runs is not None and args.runs < 1:
        raise Usage("warren boot measure: --runs is a number from 1 on")


def _asked(args: Namespace) -> Asked:
    from warren.boot.harness.outcome import Asked
    from warren.tree import Refused

    budget, limit = _time("--budget", args.budget), _time("--limit", args.limit)
    asked = Asked(args.recipe, args.accel, budget, limit, args.secure_boot)
    try:
        asked.check()
    except Refused as e:
        raise Usage(f"warren boot: {e.detail}") from None
    return asked


def _time(option: str, word: str | None) -> float:
    from warren.tree import Duration

    if word is None:
        return 0.0
    try:
        value = float(Duration.parse(word))
    except (ValueError, KeyError):
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise Usage(f"warren boot: {option} is a time such as 200ms or 10s, not {word!r}")
    return value


def _bench(args: Namespace) -> Bench:
    from warren.roles.machines import alone
    from warren.roles.state import State

    return alone(State(args.state).directory)


def _absolute(word: str | None) -> Path | None:
    return Path(os.path.abspath(word)) if word is not None else None


def _stopped(e: Refused, image: str) -> Stopped:
    """What could not even be tried, with the way out of it."""
    way_out = {
        404: "see which there are: warren image ls",
        502: "see what it says; warren doctor looks at this host",
        503: "warren doctor says what this host lacks",
    }.get(e.code, _OTHERWISE)
    way_out = _OTHERWISE if image == SEL4 else way_out
    return Stopped(e.errno or errno.EIO, e.detail, image, way_out, _exit(e.code))


def _tell(kind: str, **said: object) -> None:
    """How it goes, for who waits: on standard error, where it spoils no document."""
    if kind == "building":
        output.say(f"warren: building {said['image']}" + (f": {said['says']}" if "says" in said else ""))


async def _verify(args: Namespace, bench: Bench, image: str) -> int:
    found = await bench.verify(image)
    if args.json:
        output.document({"image": image, "ok": found.ok, "faults": list(found.faults), "pcr": found.value})
    else:
        output.line(f"{image}: {'ok' if found.ok else 'refused'}")
        for fault in found.faults:
            output.line(f"    {fault}")
    return exits.OK if found.ok else exits.BAD_INPUT


def _report(args: Namespace) -> int:
    from warren.roles.state import State
    from warren.tree import split

    folder = State(args.state).directory / "boot"
    try:
        text = (folder / ("last" if args.json else "report")).read_text()
    except FileNotFoundError:
        way_out = "boot something: warren boot run standin"
        raise Stopped(errno.ENOENT, "nothing was booted yet", str(folder), way_out) from None
    if args.json:
        output.document(dict(split(line)[0].partition("=")[::2] for line in text.splitlines()))
    else:
        output.put(text.encode())
    return exits.OK


def _document(outcome: Outcome) -> dict[str, Any]:
    gates = [{"name": g.name, "value": _finite(g.value), "bound": g.bound, "ok": g.ok} for g in outcome.gates]
    if outcome.runs is not None:
        return outcome.runs.document() | {"gates": gates}
    return {**outcome.last(), "guest": dict(outcome.report.said), "gates": gates}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(outcome: Outcome) -> list[str]:
    report = outcome.report
    if outcome.runs is None:
        said = report.values()
        head = f"{report.image}: {report.verdict}" + (f": {report.reason}" if report.reason else "")
        lines = [head, *(f"    {key}={value}" for key, value in said.items() if key not in _HEAD)]
    else:
        document = outcome.runs.document()
        stages, counts, reasons = (document.pop(k) for k in ("stages", "instructions_by_stage", "reasons"))
        assert isinstance(stages, dict)
        assert isinstance(counts, dict)
        assert isinstance(reasons, list)
        lines = [f"{report.image}: {document['booted']} of {document['runs']} booted"]
        known = {key: value for key, value in document.items() if key not in _HEAD and value is not None}
        lines += [f"    {key}={value}" for key, value in known.items()]
        for name, s in stages.items():
            lines.append(f"    {name[:-3]}: median {s['median_ms']} ms, p95 {s['p95_ms']} ms")
        lines += [f"    {name}: {count} instructions" for name, count in counts.items()]
        lines += [f"    {reason}" for reason in reasons]
    return lines + [f"    {gate}{'' if gate.ok else ': the gate fell'}" for gate in outcome.gates]


_HEAD = {"image", "verdict", "reason", "runs", "booted"}


def _code(outcome: Outcome) -> int:
    if outcome.well:
        return exits.OK
    every = outcome.runs.reports if outcome.runs is not None else (outcome.report,)
    return _exit(next((r.code for r in every if r.code), 0))


def _exit(code: int) -> int:
    return next((row.number for row in exits.TABLE if code in row.codes), exits.OTHER)


def _equal(args: Namespace, what: str, image: str) -> str:
    from warren.tree import quote

    if image == SEL4:
        return "# a hive boots no kernel of yours; there is no file for it"
    if what == "report":
        return "cat /boot/report"
    words = [what, quote(image)] if what == "verify" else [what, f"image={quote(image)}"]
    if what == "measure":
        words.append(f"runs={args.runs or 20}")
    for key in ("budget", "limit", "recipe", "accel"):
        if value := getattr(args, key):
            words.append(f"{key}={quote(value)}")
    words += ["secure=yes"] if args.secure_boot else []
    shown = {"run": "last", "measure": "measure", "verify": "verify.log"}[what]
    return f"echo {_shell(' '.join(words))} > /boot/ctl; cat /boot/{shown}"


def _shell(text: str) -> str:
    import shlex

    return shlex.quote(text)
