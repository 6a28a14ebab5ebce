"""Commands that stay, and a hive for them.

    with staying("import", ADDR, until="listening on ") as it:    once it has said a line that begins so
    with hive("queen=QueenPrimary") as state:                     `warren up --detach`, and down in the end
"""

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warren.roles.state import State

from tests.shell.running import PATIENCE, WARREN, environment, warren

SILENT = 60.0


class Stays:
    """A command that runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said: list[str] = []

    def hear(self, beginning: str) -> str:
        """The rest of the next line that begins so. One that stays silent is killed, so that a test ends."""
        assert self.process.stderr is not None
        silent = threading.Timer(SILENT, self.process.kill)
        silent.start()
        try:
            for line in self.process.stderr:
                self.said.append(line.rstrip("\n"))
                if line.startswith(beginning):
                    return line.rstrip("\n").removeprefix(beginning)
        finally:
            silent.cancel()
        raise AssertionError(f"it ended without {beginning!r}: {self.said}")

    def end(self, number: int) -> int:
        """Its exit code, once it was sent that signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def staying(*words: str, until: str = "", **env: str) -> Iterator[Stays]:
    with subprocess.Popen(
        [WARREN, *words], env=environment(**env), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            made = Stays(process)
            if until:
                made.hear(until)
            yield made
        finally:
            process.terminate()


@contextmanager
def hive(*roles: str) -> Iterator[State]:
    folder = Path(tempfile.mkdtemp(prefix="hive-"))  # short, as a socket's path must be
    try:
        done = warren("up", "--state", str(folder / "s"), "--detach", *roles)
        assert done.code == 0, done.err
        yield State(folder / "s")
    finally:
        warren("down", "--state", str(folder / "s"))
        shutil.rmtree(folder)
