"""From the text of a namespace to a Space.

Fail closed: a line that cannot be done as it is written leaves no Space, since what it was to hide or to
replace would be seen. All that is wrong is said at once, in the order of the lines. Only -i forgives, and
only that what its line names is not there.

A text is stricter than the operations of a Space. A mount or bind without -a or -b that would hide a mount
point which another line made is refused, for of the two lines one is a mistake: unite with -a or -b, or say
`unmount` first.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path as Directory

from warren.namespaces.lines import MAX_TEXT, Bad, BadNamespace, Line, expand, scan, symbol
from warren.namespaces.space import Path, Space, place, spell
from warren.tree import Refused

Include = Callable[[str], str]

MAX_INCLUDES = 16
MAX_LINES = 4096
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def build(
    text: str,
    name: str,
    *,
    values: Mapping[str, str],
    symbols: Container[str],
    include: Include,
    known: Callable[[str], bool] | None = None,
) -> Space:
    """The Space that the text called NAME describes, or BadNamespace with every reason why there is none.

    VALUES are put where a variable stands; the variables in SYMBOLS are addresses, and kept as written.
    KNOWN says whether there is a tree at an address; without it there is one at each.
    """
    work = _Building(values, symbols, include, known)
    work.run(text, name, (name,))
    if work.errors:
        raise BadNamespace(work.errors)
    return work.space


def read(text: str, name: str = "ns") -> Space:
    """The Space that printed lines rebuild: every variable in them is an address."""
    return build(text, name, values={}, symbols=_Every(), include=_nothing_to_include)


def library(*directories: str | os.PathLike[str]) -> Include:
    """The text of a file included by name: in these directories, else among those that come with Warren."""
    places = [Directory(d) for d in directories]

    def text_of(name: str) -> str:
        shipped = files("warren.namespaces") / "lib"
        if _FILE.fullmatch(name):
            for each in [*(d / name for d in places), shipped / name]:
                if each.is_file():
                    with each.open("rb") as f:
                        return f.read(MAX_TEXT + 1).decode()
        folders = [*(d for d in places if d.is_dir()), *([shipped] if shipped.is_dir() else [])]
        there = {f.name for folder in folders for f in folder.iterdir() if f.name.endswith(".ns")}
        raise FileNotFoundError(errno.ENOENT, f"there is no such file; there are {_listed(there)}", name)

    return text_of


class _Every(Container[str]):
    def __contains__(self, name: object) -> bool:
        return True


def _nothing_to_include(name: str) -> str:
    raise FileNotFoundError(errno.ENOENT, "printed lines include nothing", name)


class _Building:
    """A Space while it is built, and what is known of each mount point: the line that made it."""

    def __init__(
        self,
        values: Mapping[str, str],
        symbols: Container[str],
        include: Include,
        known: Callable[[str], bool] | None,
    ) -> None:
        self.values, self.symbols, self.include, self.known = values, symbols, include, known
        self.space = Space()
        self.errors: list[str] = []
        self.made: dict[Path, str] = {}
        # Where a bad line would have put something: what a later line misses there is no mistake of its own.
        self.spoilt: set[Path] = set()
        self.lines = 0

    def run(self, text: str, name: str, chain: tuple[str, ...]) -> None:
        for each in scan(text, name):
            self.lines += 1
            if self.lines > MAX_LINES:
                if self.lines == MAX_LINES + 1:
                    self.errors.append(f"{each.where}: more than {MAX_LINES} lines; include less")
                return
            if isinstance(each, Bad):
                self.errors.append(f"{each.where}: {each.wrong}")
                self.spoil(each.words)
                continue
            try:
                if each.op == "include":
                    self.included(each, chain)
                else:
                    self.do(each)
            except Refused as e:
                self.errors.append(f"{each.where}: {e.detail}")
                self.spoil(("/",) if each.op == "include" else each.words[1:2])

    def included(self, line: Line, chain: tuple[str, ...]) -> None:
        name = self.word(line.words[0])
        if name in chain:
            shown = " includes ".join([*chain[chain.index(name) :], name])
            raise Refused(400, f"{shown}, without end; take one of these lines out")
        if len(chain) > MAX_INCLUDES:
            raise Refused(400, f"files are included {MAX_INCLUDES} deep and no more: {' '.join(chain)}")
        try:
            text = self.include(name)
        except UnicodeDecodeError as e:
            raise Refused(400, f"include {name}: byte {e.start} is not UTF-8") from None
        except OSError as e:
            raise Refused(404, f"include {name}: {e.strerror or e}") from None
        self.run(text, name, (*chain, name))

    def do(self, line: Line) -> None:
        try:
            after = self.changed(line)
        except Refused as e:
            if e.code == 404 and "i" in line.flags:
                return
            if e.code == 404 and line.op in ("bind", "unmount") and self.is_spoilt(line.words):
                self.spoil(line.words[1:])
                return
            raise
        if line.op in ("mount", "bind") and not set("ab") & set(line.flags):
            self.refuse_to_hide(place(self.word(line.words[1])))
        self.space = after
        self.made = {at: self.made.get(at, line.where) for at in after.table}

    def changed(self, line: Line) -> Space:
        space, words = self.space, line.words
        if line.op == "clear":
            return space.clear()
        if line.op == "unmount":
            *new, old = words
            if not new:
                return space.unmount(self.word(old))
            return space.unmount(self.word(old), self.address(new[0]))
        if line.op == "bind":
            return space.bind(self.word(words[0]), self.word(words[1]), line.flags)
        address, old, aname = (*words, "")[:3]
        where = self.address(address)
        after = space.mount(where, self.word(old), self.word(aname), line.flags)
        if self.known is not None and not self.known(where):
            raise Refused(404, f"there is no tree {where}; start it first, or say mount -i to do without it")
        return after

    def refuse_to_hide(self, old: Path) -> None:
        hidden = [at for at in self.space.table if at[: len(old)] == old]
        if hidden:
            at = hidden[0]
            which = spell(at) + (f" and {len(hidden) - 1} more" if len(hidden) > 1 else "")
            first = "say this line before that one, " if at != old else ""
            way_out = f"{first}unite with -a or -b, or say unmount {spell(at)} first"
            raise Refused(409, f"this hides {which}, mounted by {self.made[at]}; {way_out}")

    def address(self, word: str) -> str:
        """A word that may be an address: a symbol stays as it is."""
        name = symbol(word)
        return f"${name}" if name and name in self.symbols else self.word(word)

    def word(self, word: str) -> str:
        return expand(word, self.value)

    def value(self, name: str) -> str:
        if name in self.values:
            return self.values[name]
        if name in self.symbols:
            raise Refused(400, f"${name} is the address of a tree and no part of a word; mount it, then bind")
        there = sorted({*self.values, *(self.symbols if isinstance(self.symbols, Iterable) else ())})
        near = get_close_matches(name, there, 1)
        meant = f"; is it ${near[0]}?" if near else f"; there are {_listed(f'${each}' for each in there)}"
        raise Refused(400, f"there is no variable ${name}{meant}")

    def spoil(self, words: Iterable[str]) -> None:
        for word in words:
            try:
                self.spoilt.add(place(self.word(word)))
            except Refused:
                pass  # no place, so nothing can be missing there

    def is_spoilt(self, words: Iterable[str]) -> bool:
        """Whether one of these paths is at or below, or leads to, what a bad line would have made."""
        for word in words:
            try:
                at = place(self.word(word))
            except Refused:
                continue
            if any(at[: len(s)] == s or s[: len(at)] == at for s in self.spoilt):
                return True
        return False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
