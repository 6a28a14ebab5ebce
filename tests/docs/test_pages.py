"""Pages that show commands: what they show happens. See `transcript` for the notation."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
            # The page says `make down`; a page that failed half-way has not come so far.
            subprocess.run([ROOT / ".ci/demo", "down"], env=both.env, timeout=PATIENCE, capture_output=True)


def test_the_tutorial(terminals: Terminals) -> None:
    assert play(DOCS / "tutorial.md", terminals) > 40


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
    assert not fits(["a"], ["a", "b"])
    assert not fits([], ["a"])
    assert fits(["x trace=0123456789abcdef y"], ["x trace=fedcba9876543210 y"])
    assert not fits(["x trace=0123456789abcdef y"], ["x trace=12 y"])
    assert form("version=0") == "version=0"
