"""Where the node is, and who we are, by what is said or what the environment says.

    WARREN_NODE_URL    its address: tls!HOST!PORT, unix!/PATH, tcp!HOST!PORT; tls://HOST:PORT and the like
                       mean the same. Without it, the queen of this user's hive: unix!STATE/run/queen/sock
    WARREN_ID          a folder with cert.pem key.pem ca.pem, which tls! asks for. Without it, the identity
                       in STATE/pki if there is one only
    WARREN_CAP         a file with a capability token, in the place of the one in that folder

`RON_NODE_URL` and `RON_CAP` count where the others are not set. STATE is `$WARREN_STATE`, else
`$XDG_STATE_HOME/warren/default`, else `~/.local/state/warren/default`.

**A token never stands in the environment itself.** Whoever may look at a process sees its environment, and so
does every child, every crash report and many a log. The file must be readable by its owner alone. It is read
again for every connection, so a narrower or a newer one takes effect with the next.

A token narrows what its holder may do, so one that could not be shown is refused here and not left out: only
tls! proves to whom it is shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from warren.mount.address import parse

if TYPE_CHECKING:
    from warren.auth.identity import Identity

ADDRESS: Final = ("WARREN_NODE_URL", "RON_NODE_URL")
CAP: Final = ("WARREN_CAP", "RON_CAP")
ID: Final = ("WARREN_ID",)
_TOKEN: Final = "warren-token 1"  # how the text of a token begins, and the name of no file


@dataclass(frozen=True)
class Place:
    """A node, and who we are there. `id` and `cap` are a folder and a file, or nothing."""

    address: str
    id: Path | None = None
    cap: Path | None = None

    def identity(self) -> Identity | None:
        """Who we are; None where nobody asks. ValueError says what is wrong with the folder or the token."""
        if self.id is None:
            return None
        from warren.mount.sdk.bearer import bearer  # certificates take 50 ms to import

        return bearer(self.id, self.cap)


def place(
    address: str | None = None,
    id: str | os.PathLike[str] | None = None,
    cap: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Place:
    """The node that is meant. ValueError says what is missing, and what to set."""
    state = _state(environ)
    at = address or _first(environ, ADDRESS) or f"unix!{state / 'run/queen/sock'}"
    at = plainly(at)
    parse(at)
    token = os.fspath(cap) if cap is not None else _first(environ, CAP)
    if _TOKEN in token or "\n" in token:
        raise ValueError("WARREN_CAP names a file, mode 600, with a token; the token itself is no place")
    if not at.startswith("tls!"):
        if token:
            raise ValueError(f"{at} is shown no token, so WARREN_CAP narrows nothing; use tls!, or unset it")
        return Place(at)
    folder = os.fspath(id) if id is not None else _first(environ, ID)
    return Place(at, Path(folder) if folder else _only(state / "pki", at), Path(token) if token else None)


def plainly(address: str) -> str:
    """An address that may be written as a URL, as `parse` has it."""
    scheme, slashes, rest = address.partition("://")
    if not slashes:
        return address
    if scheme == "unix":
        return f"unix!{rest}"
    host, _, port = rest.rstrip("/").rpartition(":")
    return f"{scheme}!{host.strip('[]')}!{port}"


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := environ.get(name))), "")


def _state(environ: Mapping[str, str]) -> Path:
    # `roles` says this too, and stands above this module.
    if chosen := environ.get("WARREN_STATE"):
        return Path(chosen)
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state") / "warren/default"


def _only(pki: Path, at: str) -> Path:
    """The one identity of this user's hive."""
    found = [cert.parent for cert in sorted(pki.glob("*/cert.pem")) if cert.parent.name != "ca"]
    if len(found) != 1:
        there = f"{pki} has {', '.join(one.name for one in found)}" if found else f"none is in {pki}"
        raise ValueError(f"{at} wants to know who you are, and {there}: name a folder with WARREN_ID")
    return found[0]
