"""The power may go at any moment: many more of the states that may be left than `make test` has time for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.store.test_sqlite_power import RESTORES, WRITES, holds, replayed, restored_or_not

SEEDS = range(2, 2 + int(os.environ.get("SOAK_SEEDS", "10")))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_answered_is_lost(tmp_path: Path, seed: int) -> None:
    count = replayed(tmp_path, WRITES, holds, all_to=12, samples=100, seed=seed)
    print(f"{count} states of the disk, each with all that was answered")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restore_is_done_or_to_be_done_and_never_half(tmp_path: Path, seed: int) -> None:
    count = replayed(tmp_path, RESTORES, restored_or_not, all_to=10, samples=100, seed=seed)
    print(f"{count} states of the disk, each one store or the other")
