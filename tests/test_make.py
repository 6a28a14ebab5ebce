"""The front door: what `make` promises, and the demonstration tree going up and down as for a newcomer."""

import os
import re
import shlex
import subprocess
from pathlib import Path

from tests.sources import ROOT


def demo(state: Path, word: str) -> str:
    done = subprocess.run(
        [ROOT / ".ci/demo", word],
        env={**os.environ, "WARREN_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    listed = re.findall(r"^  make (\w+) +\S.*$", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())


def test_the_demonstration_goes_up_once_and_down_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    try:
        first = demo(state, "up")
        assert first.startswith("up: ")
        assert demo(state, "up").startswith("already up: ")
        assert state.stat().st_mode & 0o777 == 0o700
        tries = re.findall(r"^    \.venv/bin/(.+)$", first, re.MULTILINE)
        assert len(tries) > 2
        for line in tries:
            words = [str(ROOT / ".venv/bin/warren"), *shlex.split(line)[1:]]
            at_state = {**os.environ, "WARREN_STATE": str(state)}
            tried = subprocess.run(words, env=at_state, capture_output=True, text=True, timeout=30)
            assert tried.returncode == 0, tried.stderr
    finally:
        last = demo(state, "down")
    assert last == "down\n"
    assert demo(state, "down") == "already down\n"
