"""A million messages through a mailbox that is killed every few seconds: none that was answered is lost."""

import os
import shutil
import tempfile
from pathlib import Path

from tests.servers.mailbox.killing import torment

TOTAL = int(os.environ.get("SOAK_MESSAGES", "1000000"))
KILLS = max(TOTAL // 20_000, 1)


async def test_a_million_messages_and_none_is_lost() -> None:
    folder = Path(tempfile.mkdtemp(prefix="warren-"))  # short, as a socket's path must be
    try:
        outcome = await torment(folder, TOTAL, KILLS)
    finally:
        shutil.rmtree(folder)
    twice = sum(outcome.got.values()) - len(outcome.got)
    print(f"{TOTAL} messages, {outcome.kills} kills; {twice} came twice, {outcome.repeated} sends repeated")
    assert outcome.sent == set(outcome.got)
    assert len(outcome.sent) == TOTAL
