"""The front door: what `make` promises, and a hive going up and down as for a newcomer."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import ROOT


@pytest.fixture
def state() -> Iterator[Path]:
    """Short, as a socket's path must be."""
    folder = Path(tempfile.mkdtemp(prefix="make-"))
    yield folder / "state"
    shutil.rmtree(folder)


def make(state: Path, target: str) -> str:
    """What `make TARGET` prints. MAKEFLAGS of an outer make would be taken for this one's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "WARREN_"))}
    done = subprocess.run(
        ["make", "--no-print-directory", target], cwd=ROOT, env={**kept, "WARREN_STATE": str(state)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    listed = re.findall(r"^  make (\w+) +\S.*$", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())


def test_a_hive_goes_up_once_and_down_once(state: Path) -> None:
    try:
        first = make(state, "up")
        assert re.search(r"^up: hive-[0-9a-f]{8}\.warren ", first, re.MULTILINE)
        assert re.search(r"^already up: hive-", make(state, "up"), re.MULTILINE)
        assert state.stat().st_mode & 0o777 == 0o700
        tries = re.findall(r"^    (.+)$", first, re.MULTILINE)
        assert len(tries) == 3
        path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        for line in tries:
            tried = subprocess.run(
                ["bash", "-c", line], env={**os.environ, "PATH": path}, capture_output=True, text=True,
                timeout=30,
            )  # fmt: skip
            assert tried.returncode == 0, tried.stderr
    finally:
        last = make(state, "down")
    assert last == "down\n"
    assert make(state, "down") == "already down\n"
