"""Which directory is the hive's, where nobody says: found without loading anything else.

    $WARREN_STATE, else $XDG_STATE_HOME/warren/default, else ~/.local/state/warren/default
"""

from __future__ import annotations

import os
from pathlib import Path

QUEEN = "queen"  # the name of the hive's queen; whoever uses the hive uses her namespace


def chosen_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """GIVEN, or the state of this user's hive; absolute, for processes that live elsewhere."""
    return Path(os.path.abspath(default_directory() if given is None else given))


def default_directory() -> Path:
    """The state of this user's hive, where no other is said."""
    if chosen := os.environ.get("WARREN_STATE"):
        return Path(chosen)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state") / "warren/default"


def socket_of(directory: Path, name: str) -> Path:
    """Where the role NAME of the hive in DIRECTORY answers on this machine."""
    return directory / "run" / name / "sock"
