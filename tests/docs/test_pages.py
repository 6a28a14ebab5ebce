"""Pages that show commands: what they show happens. See `transcript` for the notation."""

import inspect
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
from warren.check.tree import check_tree
from warren.tree import Node

from docs.examples.board import Board
from docs.examples.serve_board import SystemClock
from tests.docs.transcript import PATIENCE, Terminals, fits, form, play
from tests.sources import ROOT

DOCS = ROOT / "docs"


@pytest.fixture
def home() -> Iterator[Path]:
    """Short, as a socket's path must be."""
    folder = Path(tempfile.mkdtemp(prefix="warren-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def terminals(home: Path) -> Iterator[Terminals]:
    with Terminals(home) as both:
        try:
            yield both
        finally:
            # The page takes its hives down; one that failed half-way has not come so far.
            for there in home.rglob("hive.toml"):
                words = [f"{ROOT}/.venv/bin/warren", "down", "--state", f"{there.parent}"]
                subprocess.run(words, env=both.env, timeout=PATIENCE, capture_output=True)


def test_the_tutorial(terminals: Terminals) -> None:
    assert play(DOCS / "tutorial.md", terminals) > 40


PAGES = (
    "README.md", "docs/operating.md", "docs/writing-a-server.md", "docs/namespaces.md", "docs/roles.md",
    "docs/task.md", "docs/mailbox.md", "docs/boot.md", "docs/vm.md",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_happens(page: str, terminals: Terminals) -> None:
    assert play(ROOT / page, terminals)


def test_the_python_of_writing_a_server_runs_and_its_tests_pass() -> None:
    page = (DOCS / "writing-a-server.md").read_text()
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "writing-a-server.md", "exec"), names)
    (shown,) = re.findall(r"^```text\n(heat .*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert names["RoomCtl"](names["Room"]()).help() == shown
    tests = {name: it for name, it in names.items() if name.startswith("test_")}
    assert len(tests) == 3
    for test in tests.values():
        assert inspect.iscoroutinefunction(test)
        trio.run(test)


def test_the_page_shows_the_board_as_it_is_and_it_is_short() -> None:
    board = (DOCS / "examples/board.py").read_text()
    assert f"```python file=docs/examples/board.py\n{board}```" in (DOCS / "writing-a-server.md").read_text()
    assert board.count("\n") < 150
    assert f"{board.count(chr(10))} lines" in (DOCS / "writing-a-server.md").read_text()


async def test_the_board_is_a_tree() -> None:
    def made() -> nullcontext[Node]:
        board = Board(SystemClock())
        lunch = board.add("lunch", "Where do we eat?")
        lunch.life.keep()
        lunch.post(b"soup")
        return nullcontext(board)

    await check_tree(made, feeds={"/lunch/news": lambda files: files.write("/lunch/post", b"x")})


def test_the_mount_of_the_tutorial_has_the_options_that_real_kernels_are_tested_with() -> None:
    tested = (ROOT / "tests/vm/mounts.py").read_text()
    for page in ("tutorial.md", "operating.md"):
        shown = re.findall(r"mount -t 9p -o (\S+)", (DOCS / page).read_text())
        assert shown
        for options in shown:
            for option in options.split(","):
                known = option.startswith(("trans=", "port=", "version=")) or option in tested
                assert known, f"{page}: {option} is tested nowhere"


def test_a_transcript_can_fail() -> None:
    assert fits(["a", "...", "z"], ["a", "z"])
    assert fits(["...", "z"], ["a", "b", "z"])
    assert not fits(["a", "...", "z"], ["a", "b"])
    assert fits(["a b ...", "z"], ["a b c", "z"])
    assert not fits(["a b ..."], ["a c"])
    assert not fits(["a"], ["a", "b"])
    assert not fits([], ["a"])
    assert fits(["x trace=0123456789abcdef y"], ["x trace=fedcba9876543210 y"])
    assert not fits(["x trace=0123456789abcdef y"], ["x trace=12 y"])
    assert form("version=0") == "version=0"
