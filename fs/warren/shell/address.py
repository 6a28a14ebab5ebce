"""Which tree a command means.

    --at ADDR           tcp!HOST!PORT, tls!HOST!PORT or unix!/PATH
    --state DIR         the queen of the hive in DIR: unix!DIR/run/queen/sock
    a PATH under a mount of ours     that mount's tree, and the PATH from its root
    $WARREN_AT          where none of these is given
    otherwise           the queen of this user's hive

This user's hive is in $WARREN_STATE, else $XDG_STATE_HOME/warren/default, else ~/.local/state/warren/default.
On a machine that has joined a hive elsewhere the worker that runs there stands for the queen. --aname NAME
attaches below the root: to a directory of a Warren server, or to one of several trees of another kind of
server.
"""

import os
from pathlib import Path

from warren.roles.directory import QUEEN, chosen_directory, socket_of
from warren.roles.mounts import WARREN, above


def chosen(at: str | None, state: str | None = None) -> str:
    """The address for a command that was given AT, or STATE."""
    if at:
        return at
    if state is None and (there := os.environ.get("WARREN_AT")):
        return there
    return f"unix!{_used_at(chosen_directory(state))}"


def _used_at(directory: Path) -> Path:
    """The socket where the hive in DIRECTORY is used."""
    queen = socket_of(directory, QUEEN)
    if queen.exists() or not (directory / "hive.toml").exists():
        return queen
    from warren.auth.refusal import Refusal
    from warren.roles.state import State

    try:
        hive = State(directory).hive()
    except Refusal:  # whoever dials will hear that nobody is there
        return queen
    return socket_of(directory, next(iter(hive.roles), QUEEN)) if hive.joined else queen


def from_root(path: str) -> str:
    """A path as the server's tree has it: there is no current directory in a tree one only dials."""
    return path if path.startswith("/") else "/" + path


def place(path: str) -> tuple[str, str]:
    """The tree that PATH lies in if a mount of ours is above it, else nothing; and the path from its root."""
    try:
        where = os.path.normpath(os.path.join(os.getcwd(), path))
    except OSError:  # the current directory was removed
        where = os.path.normpath(path)
    # By name first: to follow links is to ask the mount, which may be slow to answer, or dead.
    return _mounted_at(where) or _mounted_at(os.path.realpath(where)) or ("", from_root(path))


def _mounted_at(where: str) -> tuple[str, str] | None:
    found = above(where)
    if found is None or found.kind != WARREN:
        return None
    return found.source, from_root(where.removeprefix(found.point).lstrip("/"))
