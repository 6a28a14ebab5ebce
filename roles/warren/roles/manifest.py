"""Role files: what a process is, as a text.

    role NAME                          whose file this is; certificates of the role bear the name
    include FILE.role                  the lines of another file, in this place
    group NAME WHO...                  NAME stands for all of these in the allow lines below
    namespace FILE.ns                  what the role sees and shows
    serve SERVER /PATH [key=value...]  a tree of its own
    allow WHO RIGHTS PATTERN           who may do what; for a group, each of it
    limit KEY=VALUE...                 a bound of its export
    store memory | sqlite | nats://... where it keeps what must last; memory, if nothing is said
    listen tls                         others dial it
    export $queen                      it dials, and may then be used from there
    strict                             it changes nothing while revocations cannot be heard

One thing a line, `#` at a word's start begins a comment, quotes are those of ctl files. What can be said
once may be said once, in whichever file; the order matters for groups alone.

A file counts whole or not at all. `BadRole` has every bad line, those of the namespace too, and besides
what no single line shows: two servers at one place, a server that the namespace hides, a row about a path
where the role has nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from warren.auth.rights import Policy
from warren.namespaces import Space
from warren.roles.draft import BadRole, Draft, lines_of, said
from warren.roles.library import NoRole, Shelf
from warren.roles.serves import SERVERS, Options, Serve
from warren.serve.export import Limits

__all__ = [
    "BadRole", "Manifest", "NoRole", "Part", "Serve", "load_role", "parse_role", "roles", "sum_of",
    "uses_secure9p",
]  # fmt: skip


class Part(NamedTuple):
    """A file that a role was read from; SOURCE is its path, or `package` if it came with the program."""

    name: str
    text: str
    source: str


@dataclass(frozen=True)
class Manifest:
    """A role file that holds."""

    role: str
    text: str
    sha256: str  # of every file that counts: what `sha256sum` prints of them in order, summed again
    source: str
    namespace: str
    space: Space
    serves: tuple[Serve, ...]
    policy: Policy
    limits: Limits
    store: str
    listens: bool
    exports_to: tuple[str, ...]
    strict: bool
    restricted: str = ""  # why it is less than its file says
    parts: tuple[Part, ...] = ()


def uses_secure9p(manifest: Manifest) -> bool:
    """Whether others reach the role, and it them, over TLS that both ends prove themselves in."""
    return manifest.listens or bool(manifest.exports_to)


def load_role(role: str, directories: Sequence[Path] = (), file: str = "") -> Manifest:
    """The role of that name, from the first of DIRECTORIES that has its file, else from the package.

    FILE is another file that says it, such as `DroneWorker-trial.role`. BadRole; or NoRole, which is a
    FileNotFoundError, with the roles that there are.
    """
    file = file or f"{role}.role"
    shelf = Shelf(directories)
    try:
        text = shelf.read(file)
    except FileNotFoundError:
        raise NoRole(file.removesuffix(".role"), roles(directories)) from None
    except OSError as e:
        raise BadRole([f"{file}:1: {said(e)}"]) from None
    made = parse_role(text, file, include=shelf.read, include_roles=shelf.read, role=role)
    parts = tuple(part._replace(source=shelf.sources[part.name]) for part in made.parts)
    return dataclasses.replace(made, source=parts[0].source, parts=parts)


def roles(directories: Sequence[Path] = ()) -> list[str]:
    """Every role that has a file of its name. What is only ever included has no `role` line."""
    shelf = Shelf(directories)
    found = []
    for file in shelf.list(".role"):
        name = file.removesuffix(".role")
        try:
            text = shelf.read(file)
        except OSError:
            continue
        if any(line.split()[:2] == ["role", name] for line in text.split("\n")):
            found.append(name)
    return found


def parse_role(
    text: str,
    name: str,
    *,
    include: Callable[[str], str],
    servers: Mapping[str, Options] = SERVERS,
    include_roles: Callable[[str], str] | None = None,
    role: str = "",
) -> Manifest:
    """The role that TEXT, called NAME in complaints, is; or BadRole.

    INCLUDE gives the text of a namespace file, INCLUDE_ROLES that of a role file. ROLE is whose it must be.
    """
    draft = Draft(servers)
    parts: dict[str, str] = {name: text}
    for where, words in lines_of(text, name, include_roles, parts, draft.bad, ()):
        draft.attempt(where, words)
    space = draft.namespace(name, include, parts)
    draft.whole(name, role, space)
    if draft.errors or space is None:
        raise BadRole(draft.errors)
    return Manifest(
        draft.get("role"),
        text,
        sum_of(parts),
        "",
        draft.get("namespace"),
        space,
        tuple(serve for _, serve in draft.serves),
        Policy(row for _, row in draft.rows),
        Limits(**draft.limits),  # type: ignore[arg-type]
        draft.get("store") or "memory",
        bool(draft.get("listen")),
        tuple(draft.exports),
        bool(draft.get("strict")),
        parts=tuple(Part(part, held, "") for part, held in parts.items()),
    )


def sum_of(parts: Mapping[str, str]) -> str:
    """One sum of several files: that of their `sha256sum` lines."""
    lines = (f"{sha256(text.encode()).hexdigest()}  {name}\n" for name, text in parts.items())
    return sha256("".join(lines).encode()).hexdigest()
