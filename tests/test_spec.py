"""What is proved of a design: spin looks at every order of events of the models in docs/spec.

Each model names the mistakes it must see: with one of them compiled in, the checker has to find a violation.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.sources import ROOT

SPEC = ROOT / "docs/spec"
PATIENCE = 120


def checked(model: Path, folder: Path, *defined: str) -> str:
    """What the checker says of a model."""
    env = {**os.environ, "LC_ALL": "C"}
    for command in (
        ["spin", *defined, "-a", str(model)],
        ["cc", "-O2", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"],
        ["./pan", "-m20000"],
    ):
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_no_order_of_events_breaks_a_promise_of_the_mailbox(tmp_path: Path) -> None:
    said = checked(SPEC / "mailbox.pml", tmp_path)
    assert "errors: 0" in said
    assert "max search depth too small" not in said
    states = re.search(r"(\S+) states, stored", said)
    assert states
    assert float(states[1]) > 1e6


@pytest.mark.parametrize("mistake", ["-DEAGER", "-DNOLEASE"])
def test_the_checker_sees_the_mistake(mistake: str, tmp_path: Path) -> None:
    said = checked(SPEC / "mailbox.pml", tmp_path, mistake)
    assert "assertion violated" in said
    assert "errors: 1" in said
