"""kill -9 while it works: what was answered is there when it comes back."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.mailbox.killing import AT_ONCE, RECEIVERS, SENDERS, torment

TOTAL = 320 * SENDERS


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, as a socket's path must be."""
    made = Path(tempfile.mkdtemp(prefix="warren-"))
    yield made
    shutil.rmtree(made)


async def test_no_answered_send_is_lost_when_the_process_is_killed(folder: Path) -> None:
    outcome = await torment(folder, TOTAL, kills=4)
    assert outcome.kills == 4
    assert len(outcome.sent) == TOTAL
    assert outcome.sent == set(outcome.got)
    twice = sum(outcome.got.values()) - len(outcome.got)
    print(f"{twice} of {TOTAL} came twice, {outcome.repeated} sends were repeated and known")
    # Only what was out when the process died may come twice.
    assert twice <= outcome.kills * RECEIVERS * AT_ONCE
