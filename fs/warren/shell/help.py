"""help: manuals

    warren help [COMMAND]
    warren help exit

All commands, or the manual of one; `exit` is about exit codes. `warren COMMAND --help` is the same.
"""

from argparse import Namespace

from warren.shell import exits, output
from warren.shell.arguments import Parser
from warren.shell.exits import Usage


def declare(parser: Parser) -> None:
    """No options."""


def run(args: Namespace) -> int:
    from warren.shell import main

    if len(args.words) > 1:
        raise Usage("warren help: one COMMAND at a time; see warren help")
    if not args.words:
        output.put(overview().encode())
    elif args.words == ["exit"]:
        output.put(f"Exit codes\n\n{exits.render()}".encode())
    elif args.words[0] in main.COMMANDS:
        output.put(main.parser(args.words[0]).format_help().encode())
    else:
        raise Usage(f"warren help: there is no command {output.printable(args.words[0])}; see warren help")
    return exits.OK


def overview() -> str:
    """What `warren help` prints."""
    from warren.shell.main import COMMANDS

    rows = "".join(f"    {name:<12} {says}\n" for name, says in COMMANDS.items())
    return f"""warren: file trees over 9P

    warren COMMAND [OPTION...] [WORD...]

{rows}
warren COMMAND --help is its manual, warren help exit the exit codes, warren --version the version.
A command finds its tree by --at ADDR or --state DIR, by a PATH that lies under a mount of ours, by
$WARREN_AT; else it is the queen of your hive, which `warren up` brings up.
"""
