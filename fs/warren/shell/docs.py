"""docs/cli.md, rendered from the commands themselves: their manuals, their parsers, the table of exits.

    .venv/bin/python -c 'from warren.shell.docs import render; print(render(), end="")' >docs/cli.md
"""

from warren.shell import exits
from warren.shell.main import COMMANDS, parser

HEAD = """# The command

`warren help` and `warren COMMAND --help` print the same in a terminal.

`warren` is sugar over files: what it does, any 9P client or a mount can do. A command finds its tree by
`--at ADDR` or `--state DIR`, by a path that lies under a mount of ours, by `$WARREN_AT`; else it is the
queen of your hive, which `warren up` brings up. Paths begin at the root of the tree. Errors are one line on
standard error: the path, what was refused, the way out.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, _contents(), *(_command(name) for name in COMMANDS), _exits()])


def _contents() -> str:
    return "".join(f"- [`warren {name}`](#warren-{name}): {says}\n" for name, says in COMMANDS.items())


def _command(name: str) -> str:
    made = parser(name)
    manual = made.manual.strip().partition("\n")[2].strip("\n")
    rows = "".join(f"| `{written}` | {says} |\n" for written, says in made.options())
    says = COMMANDS[name].capitalize()
    return f"## warren {name}\n\n{says}.\n\n{manual}\n\n| option | |\n|---|---|\n{rows}"


def _exits() -> str:
    rows = "".join(
        f"| {row.number} | {row.name} | {row.meaning} | {', '.join(map(str, row.codes))} |\n"
        for row in exits.TABLE
    )
    return f"## Exit codes\n\n| exit | name | means | codes of errors |\n|---|---|---|---|\n{rows}"
