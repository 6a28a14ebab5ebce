"""The front door: what `make` promises, and the demonstration tree going up and down as for a newcomer."""

import os
import re
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
        (address,) = re.findall(r"at='(.+)'", first)
        for words in re.findall(r'\.venv/bin/warren (\w+) --at "\$at" (\S+)', first):
            warren = [ROOT / ".venv/bin/warren", words[0], "--at", address, words[1]]
            tried = subprocess.run(warren, capture_output=True, text=True, timeout=30)
            assert tried.returncode == 0, tried.stderr
            assert tried.stdout
    finally:
        last = demo(state, "down")
    assert last == "down\n"
    assert demo(state, "down") == "already down\n"
