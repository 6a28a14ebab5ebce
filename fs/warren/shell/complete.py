"""complete: what could come next on a command line

    warren complete -- WORD...

The words after `warren`, the last of which may be unfinished or empty; prints candidates for it, one
a line, quoted for the shell. Made for `warren completion`. Paths come from the directories of the tree,
verbs from the help of its ctl file: this module knows no verb. Roles are those that have a file, and names
those of the hive that the line means. A tree that does not answer within two seconds offers nothing, and no
error is said: the line is not finished.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from warren.shell import address, exits, output
from warren.shell.arguments import Parser
from warren.shell.ctl import Verb, file_of, read_help, verbs

if TYPE_CHECKING:
    from warren.mount import Files

PATIENCE = 2.0
ON_PATHS = ("ls", "cat", "tail", "stat", "write", "ctl", "explain")
ON_NAMES = {"down": 99, "ns": 1, "mount": 1}  # how many words may be names of a hive's roles


def declare(parser: Parser) -> None:
    """No options: all words are the line's."""


def run(args: Namespace) -> int:
    for candidate in candidates(args.words):
        output.line(candidate)
    return exits.OK


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of WORDS could become."""
    from warren.shell import main

    *before, last = words or [""]
    if not before:
        return _fitting([*main.COMMANDS, "--help", "--version"], last)
    name = before[0]
    if name not in main.COMMANDS:
        return []
    parser = main.parser(name)
    line = _Line(parser, before[1:])
    if line.option:
        return _fitting(_values(name, line), last)
    if last.startswith("-") and not line.literal:
        return _fitting(parser.flags(), last)
    if name in ON_PATHS and not (line.given and name in ("write", "ctl")):
        return _asked(line, last, lambda files, at: _paths(files, last, at))
    if name == "ctl":
        return _asked(line, line.given[0], lambda files, at: _verbs(files, at, line.given[1:], last))
    if name == "up":
        return _assigned(line, last)
    if name in ON_NAMES:
        more = len(line.given) < ON_NAMES[name] and "--ns" not in line.options
        return _fitting((n for n in _names(line) if n not in line.given), last) if more else []
    return [] if line.given else _fitting(_first_words(name), last)


def _values(name: str, line: _Line) -> Iterable[str]:
    """What could stand behind the option that is waiting for it."""
    if line.option == "--role":
        return _roles(line)
    return _names(line) if line.option == "--name" and name in ("ns", "explain") else ()


def _assigned(line: _Line, last: str) -> list[str]:
    """NAME=ROLE: the names that there are already, or the roles for one."""
    name, equals, _ = last.partition("=")
    if equals:
        return _fitting((f"{name}={role}" for role in _roles(line)), last)
    given = {word.partition("=")[0] for word in line.given}
    return _fitting((f"{known}=" for known in _names(line) if known not in given), last)


def _roles(line: _Line) -> list[str]:
    from warren.roles.manifest import roles
    from warren.roles.state import State

    return roles([State(line.options.get("--state")).roles])


def _names(line: _Line) -> list[str]:
    """The roles that the hive has, by their names."""
    from warren.auth.refusal import Refusal
    from warren.roles.state import State

    try:
        return list(State(line.options.get("--state")).hive().roles)
    except Refusal:
        return []


def _first_words(name: str) -> Iterable[str]:
    from warren.shell.ca import VERBS
    from warren.shell.completion import SHELLS
    from warren.shell.main import COMMANDS
    from warren.shell.serve import SERVERS
    from warren.shell.token import VERBS as TOKEN_VERBS

    first: dict[str, Iterable[str]] = {
        "help": [*COMMANDS, "exit"], "completion": SHELLS, "serve": SERVERS, "ca": VERBS,
        "token": TOKEN_VERBS, "audit": ("verify", "show"),
    }  # fmt: skip
    return first.get(name, ())


class _Line:
    """The finished words of a command line, as far as completion cares."""

    def __init__(self, parser: Parser, words: Sequence[str]) -> None:
        self.given: list[str] = []
        self.options: dict[str, str] = {}
        self.literal = False
        self.option = ""  # that waits for its value
        for word in words:
            name, equals, value = word.partition("=")
            if self.option:
                self.options[self.option], self.option = word, ""
            elif self.literal or not word.startswith("-") or word == "-":
                self.given.append(word)
            elif word == "--":
                self.literal = True
            elif equals:
                self.options[name] = value
            elif parser.takes_value(word):
                self.option = word


def _fitting(words: Iterable[str], last: str) -> list[str]:
    return [shlex.quote(word) for word in words if word.startswith(last)]


def _asked(line: _Line, path: str, question: Callable[[Files, str], Awaitable[list[str]]]) -> list[str]:
    """The answer of the tree that LINE and PATH mean, or nothing. It is asked with the path there."""
    import trio
    from warren.mount import dial

    async def ask() -> list[str]:
        with trio.move_on_after(PATIENCE):
            at, state, aname = (line.options.get(option, "") for option in ("--at", "--state", "--aname"))
            there, inside = ("", address.from_root(path)) if at or state else address.place(path or "/")
            at = address.chosen(at or there, state or None)
            async with dial(at, aname, deadline=PATIENCE) as files:
                return await question(files, inside if not path.endswith("/") else f"{inside}/")
        return []

    try:
        return trio.run(ask)
    except (OSError, ValueError):
        return []


async def _paths(files: Files, last: str, path: str) -> list[str]:
    from warren.p9.fields import QTDIR

    above = last[: last.rfind("/") + 1] or "/"
    found = await files.readdir(path[: path.rfind("/") + 1])
    return _fitting(sorted(above + e.name + ("/" if e.qid.type & QTDIR else "") for e in found), last)


async def _verbs(files: Files, path: str, words: Sequence[str], last: str) -> list[str]:
    """Verbs, or what fits behind one: choices and the keys that are not given yet."""
    known = list(verbs(await read_help(files, await file_of(files, path))))
    if not words:
        return _fitting((v.verb for v in known), last)
    keys = {word.partition("=")[0] for word in words[1:] if "=" in word}
    places = sum("=" not in word for word in words[1:])
    return _fitting((c for v in known if v.verb == words[0] for c in _behind(v, places, keys)), last)


def _behind(verb: Verb, places: int, keys: set[str]) -> Iterator[str]:
    """The shape of a word is NAME, a|b, key=NAME or key=a|b; in brackets if it may be left out."""
    at = 0
    for word in verb.words:
        shape = word.removesuffix("...").strip("[]")
        key, keyed, values = shape.rpartition("=")
        choices = values.split("|") if "|" in values else []
        if keyed and key not in keys:
            yield from (f"{key}={c}" for c in choices or [""])
        elif not keyed:
            if at == places or (at < places and word.endswith("...")):
                yield from choices
            at += 1
