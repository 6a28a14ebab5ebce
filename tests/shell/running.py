"""Running the installed command, and servers of it to run against."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.sources import ROOT

WARREN = ROOT / ".venv/bin/warren"
EVERYTHING = ("--allow", "any read,write,create,remove,ctl /**")
PATIENCE = 20.0


class Served(NamedTuple):
    """A server that runs: what it said before it was open, and where it is."""

    process: "subprocess.Popen[str]"
    said: list[str]
    at: str


class Done(NamedTuple):
    code: int
    out: str
    err: str


def warren(*words: str, at: str = "", stdin: str = "", **env: str) -> Done:
    """The real command, in a process of its own."""
    done = subprocess.run(
        [WARREN, *words],
        input=stdin,
        env=environment(at, **env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def environment(at: str = "", **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WARREN_", "XDG_"))}
    return {**kept, "WARREN_PORT": os.environ["WARREN_PORT"], **({"WARREN_AT": at} if at else {}), **more}


@contextmanager
def serving(*words: str) -> Iterator[Served]:
    """`warren serve WORDS` until the block ends; it has the first address that it says."""
    with subprocess.Popen(
        [WARREN, "serve", *words], env=environment(), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line.rstrip("\n"))
                if line.startswith("listening on "):
                    break
            assert said, "the server ended without a word"
            assert said[-1].startswith("listening on "), said
            yield Served(process, said, said[-1].removeprefix("listening on "))
        finally:
            process.terminate()


def socket_in(folder: Path) -> Sequence[str]:
    return ("--listen", f"unix!{folder / 'sock'}")
