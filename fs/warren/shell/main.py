"""warren: file trees over 9P

    warren COMMAND [OPTION...] [WORD...]

The dispatcher: it finds the command's module, reads its command line, runs it, and sees to it that
every end is an exit code and a line, never a traceback. Exit codes (`warren help exit`):

    0 ok            1 other        2 usage         3 not found    4 denied      5 conflict
    6 busy          7 unavailable  8 timed out     9 bad input   10 full
    130 Ctrl-C      141 whoever read standard output went away

The table with its reasons is in `exits`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_help
from warren.shell.exits import Usage

# In the order they are shown. The text is also the first line of the command's manual.
COMMANDS = {
    "up": "bring a hive up",
    "down": "take a hive down",
    "status": "how a hive is",
    "ls": "list directories",
    "cat": "read files",
    "tail": "the last lines of files that grow",
    "stat": "what a tree knows about a file",
    "write": "write a file",
    "put": "store files, and print their addresses",
    "ctl": "give a verb to a ctl file",
    "ns": "print a namespace",
    "explain": "why a path is what it is",
    "serve": "give a tree",
    "mount": "a tree as a directory",
    "umount": "take a mounted tree away",
    "import": "a tree from elsewhere, on a unix socket",
    "export": "let a queen mount a tree of this machine",
    "image": "build images, and see what they are made of",
    "boot": "boot images, measure and verify them",
    "audit": "read and verify an audit",
    "ca": "the hive's certificate authority",
    "token": "make, narrow and check capabilities",
    "join": "make this machine a member of a hive",
    "top": "a hive at work",
    "doctor": "what this host has, and what each lack costs",
    "completion": "completion for a shell",
    "help": "manuals",
}
UNLISTED = ("complete",)  # asked by shells, not by people


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    try:
        output.claim()
        return run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except output.ReaderLeft:
        return exits.READER_LEFT
    except Usage as e:
        output.say(str(e))
        return exits.USAGE
    except OSError as e:
        return output.complain(e)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            return exits.INTERRUPTED
        return _defect(group)
    except Exception as e:
        return _defect(e)


def run(words: list[str]) -> int:
    """Dispatch. Raises what went wrong."""
    if not words:
        raise Usage(f"warren: a COMMAND is missing; there are {', '.join(COMMANDS)}; see warren help")
    name, *rest = words
    if name in ("-h", "--help"):
        name = "help"
    if name == "--version":
        from importlib.metadata import version

        output.line(f"warren {version('warren-9p')}")
        return exits.OK
    if name not in COMMANDS and name not in UNLISTED:
        raise Usage(f"warren: there is no command {output.printable(name)}{_near(name)}; see warren help")
    try:
        args = parser(name).read(rest)
    except SystemExit as e:  # how argparse ends once it has shown the help
        return e.code if isinstance(e.code, int) else exits.OK
    args.command = name
    code: int = import_module(f"warren.shell.{name}").run(args)
    return code


def parser(name: str) -> Parser:
    """The parser of a command."""
    module = import_module(f"warren.shell.{name}")
    made = Parser(name, module.__doc__ or "")
    module.declare(made)
    add_help(made)
    return made


def _near(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1)
    return f", but there is {near[0]}" if near else ""


def _defect(e: BaseException) -> int:
    """A defect of ours: a traceback tells a user nothing, so it is shown to who asks for it."""
    import os
    import traceback

    if os.environ.get("WARREN_TRACEBACK"):
        traceback.print_exception(e)
    else:
        what = traceback.format_exception_only(e)[-1].strip()
        output.say(f"warren: this is a defect of warren: {what}; WARREN_TRACEBACK=1 shows where")
    return exits.OTHER
