"""The parser of a command, and its help.

Options may stand anywhere; after `--` nothing is an option. The manual is the docstring of the
command's module and the options are a table below it, so help reads the same in every version of
Python and in `docs/cli.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from warren.shell import output
from warren.shell.exits import Usage


class Parser(argparse.ArgumentParser):
    """Of one command. What is no option is in `words`."""

    def __init__(self, name: str, manual: str) -> None:
        super().__init__(prog=f"warren {name}", add_help=False, allow_abbrev=False)
        self.manual = manual
        self.add_argument("words", nargs="*")

    def options(self) -> list[tuple[str, str]]:
        """Each option as it is written, and its help."""
        rows = []
        for action in self._actions:
            if action.option_strings:
                value = f" {action.metavar}" if action.nargs != 0 else ""
                rows.append((", ".join(action.option_strings) + value, action.help or ""))
        return rows

    def flags(self) -> list[str]:
        """Every spelling of every option."""
        return [flag for action in self._actions for flag in action.option_strings]

    def takes_value(self, option: str) -> bool:
        """Whether the word after OPTION belongs to it."""
        return any(option in a.option_strings and a.nargs != 0 for a in self._actions)

    def format_help(self) -> str:
        rows = [f"    {written:<15} {says}\n" for written, says in self.options()]
        return f"{self.manual.strip()}\n\nOptions:\n\n{''.join(rows)}"

    def print_help(self, file: object = None) -> None:
        output.put(self.format_help().encode())

    def error(self, message: str) -> NoReturn:
        hint = " (after -- nothing is an option)" if message.startswith("unrecognized") else ""
        raise Usage(f"{self.prog}: {message}{hint}; see {self.prog} --help")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The command line, or Usage."""
        at = list(words).index("--") if "--" in words else len(words)
        args = self.parse_intermixed_args(words[:at])
        args.words = [*(args.words or ()), *words[at + 1 :]]
        return args


def add_help(parser: Parser) -> None:
    """--help, in every command."""
    parser.add_argument("-h", "--help", action="help", help="show this")


def add_json(parser: Parser) -> None:
    """--json, in every command that prints."""
    parser.add_argument("--json", action="store_true", help="print JSON, one document a line")


def add_tree(parser: Parser, *, n: bool = True) -> None:
    """What every command has that goes to a tree. N is for the one command where -n is a number."""
    parser.add_argument("--at", metavar="ADDR", help="the tree: tcp!HOST!PORT, tls!HOST!PORT or unix!/PATH")
    parser.add_argument("--state", metavar="DIR", help="the tree of the hive in DIR, instead of --at")
    parser.add_argument("--id", metavar="DIR", help="who you are, for tls!: cert.pem key.pem ca.pem token")
    parser.add_argument("--expect", metavar="WHO", default="role/*/*", help="for tls!: who must be there")
    parser.add_argument("--aname", metavar="NAME", default="", help="a directory or a name to attach to")
    add_json(parser)
    parser.add_argument(
        *(["-n"] if n else []), "--dry-run", action="store_true",
        help="do nothing; print what does the same where the tree is mounted",
    )  # fmt: skip
