"""ctl: give a verb to a ctl file

    warren ctl [--at ADDR] PATH [VERB [WORD...]]

The verb and its words are quoted as ctl files want it and sent in one write; what the verb answers is
printed. Without a verb, the help: each verb with its words, [optional] ones in brackets. PATH may be
a directory; that means the file `ctl` in it. Words that begin with a dash stand behind --. Everybody on
this machine can see a command line: a verb with a secret in it is for `warren write PATH <FILE`.

--json prints {"path": ..., "verb": ..., "reply": ...} with null for no answer, and of the help
{"path": ..., "verbs": [{"verb": ..., "words": [...], "help": ...}]}.
"""

from __future__ import annotations

import errno
import os
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_tree
from warren.shell.exits import Stopped, Usage
from warren.shell.session import converse, path_in
from warren.shell.stat import keeps_bytes

if TYPE_CHECKING:
    from warren.mount import Files


class Verb(NamedTuple):
    """One line of a ctl file's help."""

    verb: str
    words: list[str]
    help: str


def declare(parser: Parser) -> None:
    add_tree(parser)


def run(args: Namespace) -> int:
    if not args.words or not args.words[0]:
        raise Usage("warren ctl: a PATH is missing; see warren ctl --help")
    path, words = path_in(args, args.words[0]), args.words[1:]
    if any("\n" in word or "\0" in word for word in words):
        raise Usage("warren ctl: a word holds a newline or NUL, which no verb takes; see warren ctl --help")

    async def body(files: Files) -> int:
        place = await file_of(files, path)
        if args.dry_run:
            output.line(_equal(place, words))
        elif not words:
            _show_help(place, await read_help(files, place), args.json)
        else:
            reply = await _command(files, place, _line(words))
            if args.json:
                text = None if reply is None else reply.decode("utf-8", "replace").removesuffix("\n")
                output.document({"path": place, "verb": words[0], "reply": text})
            elif reply:
                output.put(reply)
        return exits.OK

    if args.dry_run and path.endswith("/ctl"):  # nothing needs to be asked
        output.line(_equal(path, words))
        return exits.OK
    return converse(args, body)


async def file_of(files: Files, path: str) -> str:
    """PATH, or the ctl file in it if it is a directory. Refuses what is stored and so obeys nobody."""
    e = await files.stat(path, follow=True)
    if e.is_dir:
        path = path.rstrip("/") + "/ctl"
        e = await files.stat(path, follow=True)
    if e.is_dir or keeps_bytes(e):
        text = "this is no ctl file: what is written to it is only kept"
        raise Stopped(errno.EINVAL, text, path, f"write it: warren write {path}", exits.BAD_INPUT)
    return path


async def read_help(files: Files, path: str) -> bytes:
    """What a ctl file says of itself."""
    async with await files.open(path) as file:
        return await file.pread(file.payload, 0)


def verbs(text: bytes) -> Iterator[Verb]:
    """The verbs of a help text."""
    for line in text.decode("utf-8", "replace").splitlines():
        shape, _, says = line.partition("  # ")
        if words := shape.split():
            yield Verb(words[0], words[1:], says)


async def _command(files: Files, path: str, line: bytes) -> bytes | None:
    async with await files.open(path, os.O_RDWR) as file:
        # A ctl file that has nothing to answer goes on saying what it said before: its help, or the
        # name of what a clone file just made, which nobody could find otherwise.
        before = await file.pread(file.payload, 0)
        await file.write(line)
        after = await file.pread(file.payload, 0)
    return None if after == before and b"  # " in before else after


def _line(words: Sequence[str]) -> bytes:
    from warren.tree.ctl import quote

    # quote() guards `=` too, which needs no guard where key=value is what is meant.
    shown = (word if word and not set(word) & set(" \t'#") else quote(word) for word in words)
    return os.fsencode(" ".join(shown)) + b"\n"


def _show_help(path: str, text: bytes, json: bool) -> None:
    if json:
        output.document({"path": path, "verbs": [v._asdict() for v in verbs(text)]})
    else:
        output.put(text)


def _equal(path: str, words: Sequence[str]) -> str:
    to = shlex.quote(path)
    if not words:
        return f"cat {to}"
    said = os.fsdecode(_line(words)).removesuffix("\n")
    # shlex would write each single quote as five characters; a verb's words are full of them.
    plain = "'" in said and not set(said) & set('"$`\\!')
    return f'echo "{said}" >{to}' if plain else f"echo {shlex.quote(said)} >{to}"
