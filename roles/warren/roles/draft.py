"""A role while its file is read: line by line, and then as a whole; see `manifest` for what the lines are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from warren.auth import spiffe
from warren.auth.rights import Row, parse_row, parse_who
from warren.namespaces import BadNamespace, Space, build
from warren.namespaces.lines import symbol
from warren.roles.serves import NEEDED, Options, Serve, count, path_of, seconds
from warren.serve.export import Limits
from warren.tree import Refused, split

SELF: Final = "$self"
SYMBOLS: Final = ("self", "queen")
MAX_LINE, MAX_LINES, MAX_PARTS, MAX_ROWS = 4096, 2048, 16, 4096
_SHAPES: Final = {
    "role": "role NAME",
    "include": "include FILE.role",
    "group": "group NAME WHO...",
    "namespace": "namespace FILE.ns",
    "serve": "serve SERVER /PATH [key=value...]",
    "allow": "allow WHO RIGHTS PATTERN",
    "limit": "limit KEY=VALUE...",
    "store": "store memory, store sqlite or store nats://HOST:PORT",
    "listen": "listen tls",
    "export": "export $queen",
    "strict": "strict",
}
_LIMITS: Final = {f.name: type(f.default) for f in dataclasses.fields(Limits)}
_STORES: Final = re.compile(r"memory|sqlite|(nats|tls)://\S+")


class BadRole(ValueError):
    """A role that cannot be. `errors` has every reason, each `file:line: what is wrong; the way out`."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


Bad = Callable[[str, str], None]


def lines_of(
    text: str,
    name: str,
    include: Callable[[str], str] | None,
    parts: dict[str, str],
    bad: Bad,
    above: tuple[str, ...],
) -> Iterator[tuple[str, list[str]]]:
    """Each line with its place, those of included files where they are included."""
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        bad(f"{name}:{MAX_LINES}", f"more than {MAX_LINES} lines; a role is shorter")
        return
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            if len(line) > MAX_LINE:
                raise ValueError(f"the line is longer than {MAX_LINE} characters")
            if odd := next((c for c in line if not c.isprintable() and c not in "\t\r"), ""):
                raise ValueError(f"{odd!r} is in the line; write it with printable characters alone")
            words = split(line.rstrip("\r"))
            if words[:1] != ["include"]:
                if words:
                    yield where, words
                continue
            if len(words) != 2:
                raise ValueError(f"it is {_SHAPES['include']}")
            part, chain = words[1], (*above, name)
            if part in chain:
                raise ValueError(f"the files include each other: {' -> '.join((*chain, part))}")
            if part in parts:
                raise ValueError(f"{part} is included already; leave one out")
            if include is None or not part.endswith(".role") or len(parts) >= MAX_PARTS:
                what = f"more than {MAX_PARTS} files" if len(parts) >= MAX_PARTS else f"{part!r}"
                raise ValueError(f"{what} cannot be included; it is {_SHAPES['include']}")
            parts[part] = include(part)
        except (OSError, ValueError) as e:
            bad(where, said(e))
            continue
        yield from lines_of(parts[part], part, include, parts, bad, chain)


@dataclass
class Draft:
    """A role while its lines are read."""

    servers: Mapping[str, Options]
    errors: list[str] = field(default_factory=list)
    said: dict[str, tuple[str, str]] = field(default_factory=dict)  # what may be said once, and where
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    serves: list[tuple[str, Serve]] = field(default_factory=list)
    rows: list[tuple[str, Row]] = field(default_factory=list)
    limits: dict[str, int | float] = field(default_factory=dict)
    exports: list[str] = field(default_factory=list)

    def bad(self, where: str, wrong: str) -> None:
        self.errors.append(f"{where}: {wrong}")

    def get(self, what: str) -> str:
        return self.said.get(what, ("", ""))[1]

    def attempt(self, where: str, words: list[str]) -> None:
        try:
            self.take(where, words)
        except (OSError, ValueError) as e:
            self.bad(where, said(e))

    def take(self, where: str, words: list[str]) -> None:
        """One line."""
        match words:
            case ["role", name]:
                spiffe.parse(f"spiffe://hive/role/{name}/name")
                self.once("role", where, name)
            case ["namespace", file] if file.endswith(".ns"):
                self.once("namespace", where, file)
            case ["store", place] if _STORES.fullmatch(place):
                self.once("store", where, place)
            case ["listen", "tls"]:
                self.once("listen", where, "tls")
            case ["strict"]:
                self.once("strict", where, "strict")
            case ["export", tree] if symbol(tree) and tree != SELF:
                if tree in self.exports:
                    raise ValueError(f"it exports to {tree} already; leave one out")
                self.exports.append(tree)
            case ["group", name, *who] if who:
                self.group(name, who, " ".join(words))
            case ["allow", who, rights, pattern]:
                for one in self.groups.get(who, (who,)):
                    if len(self.rows) >= MAX_ROWS:
                        raise ValueError(f"more than {MAX_ROWS} rows; say more with one pattern")
                    self.rows.append((where, parse_row(f"allow {one} {rights} {pattern}")))
            case ["limit", *pairs] if pairs:
                self.limit(pairs)
            case ["serve", server, path, *options]:
                self.serve(where, server, path, options)
            case [word, *_]:
                if word not in _SHAPES:
                    raise ValueError(f"a role has no {word!r}; there are {', '.join(_SHAPES)}")
                raise ValueError(f"it is {_SHAPES[word]}")

    def once(self, what: str, where: str, value: str) -> None:
        before = self.said.setdefault(what, (where, value))
        if before != (where, value):
            raise ValueError(f"{what} was said at {before[0]}; leave one out")

    def group(self, name: str, who: list[str], line: str) -> None:
        if not re.fullmatch(r"[a-z][a-z-]*", name) or name in ("any", "local", "role", "user"):
            raise ValueError(f"{name!r} cannot name a group; a group is small letters, and no WHO by itself")
        if name in self.groups:
            raise ValueError(f"there is a group {name} already; choose another name")
        for one in who:
            parse_who(one, line)
        self.groups[name] = tuple(who)

    def limit(self, pairs: list[str]) -> None:
        found: dict[str, int | float] = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key not in _LIMITS:
                raise ValueError(f"there is no limit {key!r}; there are {', '.join(_LIMITS)}")
            if key in self.limits or key in found:
                raise ValueError(f"the limit {key} is set already; leave one out")
            found[key] = seconds(value) if _LIMITS[key] is float else count(value)
        self.limits |= found

    def serve(self, where: str, server: str, path: str, pairs: list[str]) -> None:
        if server not in self.servers:
            raise ValueError(f"there is no server {server!r}; there are {', '.join(self.servers)}")
        here = path_of(path)
        for there, other in self.serves:
            n = min(len(here), len(other.names))
            if here[:n] == other.names[:n]:
                what = "at" if here == other.names else "in the way of"
                raise ValueError(f"{path} is {what} {other.path}, which {there} serves; move one of them")
        takes = self.servers[server]
        options: dict[str, str] = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key not in takes:
                what = f"there are {', '.join(takes)}" if takes else "it takes none"
                raise ValueError(f"{server} has no option {key!r}; {what}")
            if key in options:
                raise ValueError(f"{key} is given twice; leave one out")
            takes[key](value)
            options[key] = value
        if missing := [key for key in NEEDED.get(server, ()) if key not in options]:
            raise ValueError(f"{server} needs {missing[0]}=; say it behind the path")
        self.serves.append((where, Serve(server, path, options)))

    def namespace(self, name: str, include: Callable[[str], str], parts: dict[str, str]) -> Space | None:
        """The role's Space; None with a complaint if there is none."""

        def remembered(file: str) -> str:
            parts[file] = include(file)
            return parts[file]

        file = self.get("namespace")
        if not file:
            self.bad(f"{name}:1", f"no line says what the role sees; write {_SHAPES['namespace']}")
            return None
        try:
            text = remembered(file)
        except (OSError, ValueError) as e:
            self.bad(self.said["namespace"][0], said(e))
            return None
        try:
            return build(text, file, values={}, symbols=SYMBOLS, include=remembered)
        except BadNamespace as e:
            self.errors += e.errors
            return None

    def whole(self, name: str, wanted: str, space: Space | None) -> None:
        """What no line shows by itself."""
        role = self.get("role")
        if not role:
            self.bad(f"{name}:1", f"no line says whose file this is; write {_SHAPES['role']}")
        elif wanted and role != wanted:
            self.bad(self.said["role"][0], f"this is a file of {role}, not of {wanted}; write role {wanted}")
        if space is None:
            return
        places = _elsewhere(space)
        for where, serve in self.serves:
            shown = _shown(space, serve.names)
            places |= shown
            if not shown:
                way_out = f"mount {SELF} at / in {self.get('namespace')}, and nothing over {serve.path}"
                self.bad(where, f"the namespace does not show {serve.path}; {way_out}")
        if self.get("listen"):
            places.add(("n",))  # where those who dial in are mounted while they are there
        for where, row in self.rows:
            if not any(_meets(row.pattern, place) for place in places):
                nothing = f"{row.grant}: the role has nothing there"
                self.bad(where, f"{nothing}; correct the path, or serve or mount something at it")


def _elsewhere(space: Space) -> set[tuple[str, ...]]:
    """Where the namespace shows trees of others."""
    return {old for old, members in space.table.items() if any(m.address != SELF for m in members)}


def _shown(space: Space, served: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Where the namespace shows the role's own tree SERVED, or a part of it."""
    found = set()
    for old, members in space.table.items():
        for m in members:
            n = min(len(m.path), len(served))
            rest = served[len(m.path) :]
            place, here = old + rest, (SELF, m.path + rest)
            holds = m.address == SELF and m.path[:n] == served[:n]
            if holds and any(t[:2] == here for t in space.at(place)[0]):  # and nothing is mounted over it
                found.add(place)
    return found


def _meets(pattern: tuple[str, ...], place: tuple[str, ...]) -> bool:
    """Whether a pattern may match something at, below or on the way to a place."""
    for part, name in zip(pattern, place, strict=False):
        if part == "**":
            return True
        if part not in ("*", name):
            return False
    return True


def said(e: Exception) -> str:
    """What went wrong, without the number that an OSError puts in front."""
    if isinstance(e, Refused):
        return e.detail
    if isinstance(e, OSError) and e.strerror:
        return f"{e.filename}: {e.strerror}" if e.filename else e.strerror
    return str(e)
