"""Which tree a command means.

    --at ADDR         tcp!HOST!PORT or unix!/PATH
    $WARREN_AT        where that is not given
    otherwise         the demonstration tree that `make up` serves, unix!STATE/run/demo/sock

STATE is $WARREN_STATE, else $XDG_STATE_HOME/warren/default, else ~/.local/state/warren/default.
--aname NAME attaches below the root: to a directory of a Warren server, or to one of several trees of
another kind of server.
"""

import os
from pathlib import Path


def state() -> Path:
    """The folder of this user's hive."""
    if chosen := os.environ.get("WARREN_STATE"):
        return Path(chosen)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state") / "warren/default"


def chosen(at: str | None) -> str:
    """The address for a command that was given AT."""
    return at or os.environ.get("WARREN_AT") or f"unix!{state() / 'run/demo/sock'}"


def from_root(path: str) -> str:
    """A path as the server's tree has it: there is no current directory in a tree one only dials."""
    return path if path.startswith("/") else "/" + path
