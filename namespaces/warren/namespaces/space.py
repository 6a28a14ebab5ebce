"""Space: a namespace as a value.

Theory. A namespace is a table: at some places, the *mount points*, it has *members*. A member is a
directory of some tree: an address, and a path below that tree's root. A mount point with several
members is a *union*.

A path means what the longest mount point at or above it says: each of its members with the rest of the
path appended, in order. These are *candidates*; which of them exist, only their trees know. Whoever walks
asks them in order and takes the first that has the name. So the table knows the whole namespace without
a single tree being reached, and it cannot be wrong about what changes in one. Where no mount point is at
or above a path, but some are below it, there is a directory that shows only the way to them. A mount
point is seen whatever the trees around it have by that name.

    mount ADDR OLD   the members at OLD are the one directory of ADDR
    bind NEW OLD     the members at OLD are the candidates for NEW, and the mount points below NEW are
                     below OLD too: a bind shows what one would see, and holds it, whatever NEW becomes
    unmount OLD      OLD is no mount point any more, nor is anything below it

Both of the first replace: what was mounted at OLD and below it is gone. With -a or -b they unite: what
OLD meant until now, be it by a mount point above, and the new, which comes after or before. A directory
is in a union once; uniting it again moves it. Of mount points that both sides have below, the side that
comes first keeps its own.

-r makes members read-only, and read-only they stay wherever they are bound. -c makes them take new files:
one made at a mount point goes to the first such member, and there is none without -c. Below a mount
point the trees decide alone. Neither weakens what the server of the tree checks.

Since every member says by itself where it is, nothing refers to anything else in the table. Therefore
`mount` lines are enough to write a Space down, a Space is hashable, and to fork one is to keep it:
every change makes another Space.

Bad input raises Refused: 400 for what cannot be said, 404 for what is not there, 409 for what cannot be
together, 507 past the bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from warren.mount.address import parse as parse_address
from warren.namespaces.lines import check_flags, symbol, write
from warren.tree import Refused

Path = tuple[str, ...]

MAX_MEMBERS = 256
MAX_NAMES = 64
MAX_PATH = 1024


class Member(NamedTuple):
    """A directory of a tree, as one place of a namespace has it."""

    address: str
    path: Path
    read_only: bool
    creates: bool


class Space:
    """A namespace. Immutable; equal to any other with the same table."""

    __slots__ = ("_below", "table")

    table: Mapping[Path, tuple[Member, ...]]

    def __init__(self, table: Mapping[Path, tuple[Member, ...]] | None = None) -> None:
        ordered = {old: tuple(table[old]) for old in sorted(table or ()) if table and table[old]}
        _bounded(ordered)
        below: dict[Path, set[str]] = {}
        for old in ordered:
            for i, name in enumerate(old):
                below.setdefault(old[:i], set()).add(name)
        self.table = MappingProxyType(ordered)
        self._below = {at: frozenset(names) for at, names in below.items()}

    def __eq__(self, other: object) -> bool:
        return self.table == other.table if isinstance(other, Space) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.table.items()))

    def __repr__(self) -> str:
        return f"<Space of {len(self.table)} mount points>"

    # Looking

    def at(self, path: Path) -> tuple[tuple[Member, ...], frozenset[str]]:
        """The candidates for PATH in order, and the names of the mount points directly below it.

        No candidates but names: a directory that only leads on. Neither: there is no such path.
        """
        point = self.point(path)
        found: tuple[Member, ...] = ()
        if point is not None:
            found, rest = self.table[point], path[len(point) :]
            if rest:
                found = tuple(m._replace(path=m.path + rest) for m in found)
        return found, self._below.get(path, frozenset())

    def point(self, path: Path) -> Path | None:
        """The mount point that decides about PATH: the longest at or above it."""
        for n in range(len(path), -1, -1):
            if path[:n] in self.table:
                return path[:n]
        return None

    def addresses(self) -> frozenset[str]:
        """Every tree that has a member."""
        return frozenset(m.address for members in self.table.values() for m in members)

    def lines(self) -> str:
        """The `mount` lines that build this Space."""
        return "".join(f"{line}\n" for old in self.table for line in self.lines_of(old))

    def lines_of(self, old: Path) -> list[str]:
        """Those of one mount point, a line a member."""
        rows = []
        for i, m in enumerate(self.table[old]):
            flags = "a" * bool(i) + "c" * m.creates + "r" * m.read_only
            rows.append(write("mount", flags, m.address, spell(old), *([spell(m.path)] if m.path else [])))
        return rows

    # Changing

    def mount(self, address: str, old: str, aname: str = "", flags: str = "") -> Space:
        """With the directory ANAME of the tree at ADDRESS at OLD."""
        _address(address)
        new = Member(address, place(aname if aname.startswith("/") else "/" + aname), False, False)
        return self._with(place(old), {(): (new,)}, flags)

    def bind(self, new: str, old: str, flags: str = "") -> Space:
        """With what is at NEW at OLD too."""
        source, target = place(new), place(old)
        if target[: len(source)] == source:
            what = "itself" if source == target else f"itself, at {spell(target)}"
            raise Refused(409, f"{spell(source)} cannot be bound into {what}; bind what is in it, one by one")
        members, names = self.at(source)
        if not members:
            where = f"only leads to what is mounted below it: {', '.join(sorted(names))}; bind that"
            missing = "is not there: mount what has it first, or correct the path"
            raise Refused(404, f"{spell(source)} {where if names else missing}")
        if source not in self.table:  # -c was said of the mount point above, not of this directory
            members = tuple(m._replace(creates=False) for m in members)
        if "c" in flags and all(m.read_only for m in members):
            raise Refused(409, f"{spell(source)} is read-only, so it takes no new files; leave -c out")
        inner = {at[len(source) :]: found for at, found in self.table.items() if at[: len(source)] == source}
        return self._with(target, {**inner, (): members}, flags)

    def unmount(self, old: str, new: str | None = None) -> Space:
        """Without the mount point OLD and those below it; or only NEW, a path or an address, out of OLD."""
        at = place(old)
        if at not in self.table:
            below = ", ".join(spell((*at, name)) for name in sorted(self._below.get(at, ())))
            way_out = f"below it there is {below}" if below else "warren ns shows what is"
            raise Refused(404, f"nothing is mounted at {spell(at)}; {way_out}")
        left: tuple[Member, ...] = ()
        if new is not None:
            if new.startswith("/"):
                gone = {m[:2] for m in self.at(place(new))[0]}
                left = tuple(m for m in self.table[at] if m[:2] not in gone)
            else:
                left = tuple(m for m in self.table[at] if m.address != new)
            if left == self.table[at]:
                has = " ".join(sorted({m.address for m in left}))
                raise Refused(404, f"{new} is not in the union at {spell(at)}, which has {has}")
        if left:
            return Space({**self.table, at: left})
        return Space(_outside(self.table, at))

    def clear(self) -> Space:
        """Nothing at all."""
        return Space()

    def _with(self, old: Path, brought: Mapping[Path, tuple[Member, ...]], flags: str) -> Space:
        """BROUGHT, by its places below OLD, put there."""
        check_flags(flags)
        found = {old + at: tuple(_flagged(m, flags, not at) for m in it) for at, it in brought.items()}
        if "a" not in flags and "b" not in flags:
            return Space({**_outside(self.table, old), **found})
        was, is_ = self.at(old)[0], found[old]
        if old not in self.table:
            was = tuple(m._replace(creates=False) for m in was)
        was = tuple(m for m in was if m[:2] not in {new[:2] for new in is_})
        table = {**self.table, **found} if "b" in flags else {**found, **self.table}
        return Space({**table, old: is_ + was if "b" in flags else was + is_})


def place(text: str) -> Path:
    """The names of an absolute path. `..` is lexical: what it leads back over need not exist."""
    if not text.startswith("/"):
        raise Refused(400, f"{text!r} is no absolute path; write it from /")
    names: list[str] = []
    for name in text.split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    _short(names)
    return tuple(names)


def spell(path: Path) -> str:
    """The path with those names."""
    return "/" + "/".join(path)


def _flagged(m: Member, flags: str, top: bool) -> Member:
    read_only = m.read_only or "r" in flags
    return m._replace(read_only=read_only, creates=not read_only and (m.creates or (top and "c" in flags)))


def _outside(table: Mapping[Path, tuple[Member, ...]], old: Path) -> dict[Path, tuple[Member, ...]]:
    """What is neither at OLD nor below it."""
    return {at: found for at, found in table.items() if at[: len(old)] != old}


def _address(address: str) -> None:
    if symbol(address):
        return
    if "$" in address or not address.isprintable() or len(address) > 255:
        raise Refused(400, f"{address!r} is no address: a tree of the hive is $name and nothing else")
    try:
        parse_address(address)
    except ValueError as e:
        raise Refused(400, f"{e}, or $name for a tree of the hive") from None


def _bounded(table: Mapping[Path, tuple[Member, ...]]) -> None:
    """A Space is asked about every walk, so it must stay small."""
    n = sum(map(len, table.values()))
    if n > MAX_MEMBERS:
        raise Refused(507, f"{n} mounts are too many, there may be {MAX_MEMBERS}; bind a directory above")
    for old, members in table.items():
        if len({m[:2] for m in members}) < len(members):
            raise Refused(409, f"a directory is twice in the union at {spell(old)}; once is enough")
        for path in (old, *(m.path for m in members)):
            _short(path)


def _short(path: Iterable[str]) -> None:
    names = tuple(path)
    if len(names) > MAX_NAMES or sum(len(name) + 1 for name in names) > MAX_PATH:
        most = f"{MAX_NAMES} names and {MAX_PATH} characters are the most"
        raise Refused(413, f"{spell(names)[:40]}... is too deep: {most}")
    for name in names:
        if not name.isprintable() or "/" in name or name in ("", ".", ".."):
            raise Refused(400, f"{name!r} is no name in a path; names are printable characters")
