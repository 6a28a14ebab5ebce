"""Writes the pages that are made from the code: protocol.md, servers.md, cli.md.

    python docs/generate.py          write them
    tests/test_docs.py               fails when one of them is not what this would write
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

from warren.p9 import messages
from warren.p9.codec import dialect
from warren.p9.fields import MAXWELEM
from warren.p9.server import MAX_MSIZE
from warren.shell.docs import render as cli

HERE = Path(__file__).parent
SERVERS = HERE.parent / "fs" / "warren" / "servers"
_MADE = "<!-- Made by docs/generate.py from the code; change that, and run it again. -->\n"


def protocol() -> str:
    """Every message in the notation of the manual, with the right it needs."""
    out = [
        "# The protocol\n",
        _MADE,
        "Integers are little-endian; `name[s]` is a two-byte length and that much UTF-8; a qid is "
        "`type[1] version[4] path[8]`. `size` counts the whole frame. msize is at most "
        f"{MAX_MSIZE} bytes, and a walk has at most {MAXWELEM} names. `need` is the right a request asks "
        "for (see [namespaces and rights](operating.md)): *walk* is given by any row that leads to the "
        "path, *opened* was decided when the fid was opened, *session* concerns nothing but the caller's "
        "own conversation.\n",
    ]
    kinds: dict[str, Callable[[type[messages.Message]], bool]] = {
        "Common to all dialects": lambda m: len(m.dialects) == 3,
        f"{messages.DOTL} and {messages.WARREN}": lambda m: m.dialects == messages.LINUX,
        f"Plain {messages.PLAIN}": lambda m: m.dialects == (messages.PLAIN,),
    }
    for title, chosen in kinds.items():
        out.append(f"## {title}\n")
        out.append("| type | layout | need | |\n|---|---|---|---|")
        for m in sorted((m for m in messages.MESSAGES.values() if chosen(m)), key=lambda m: m.type):
            out.append(f"| {m.type} | `{m.layout()}` | {m.need or ''} | {m.__doc__} |")
        out.append("")
    counts = ", ".join(f"{len(dialect(d).types)} in {d}" for d in messages.ALL)
    out.append(f"Messages: {counts}.\n")
    return "\n".join(out)


def modules() -> Iterator[tuple[str, str]]:
    """(name, docstring) of each file server: a module of warren.servers, or a package of it."""
    for path in sorted(SERVERS.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if path.stem.startswith("__") or not source.is_file() or source.suffix != ".py":
            continue
        doc = ast.get_docstring(ast.parse(source.read_text()))
        if doc:
            yield path.stem, doc


def servers() -> str:
    """The manual page of each file server: its module's docstring."""
    out = ["# File servers\n", _MADE]
    out.append("Each page is the docstring of the server's module, in which its tree is drawn.\n")
    for name, doc in modules():
        out += [f"## {name}\n", "```text", doc, "```", ""]
    return "\n".join(out)


PAGES: dict[str, Callable[[], str]] = {
    "protocol.md": protocol,
    "servers.md": servers,
    "cli.md": lambda: f"{_MADE}\n{cli()}",
}


def main() -> None:
    for name, make in PAGES.items():
        (HERE / name).write_text(make())


if __name__ == "__main__":
    main()
