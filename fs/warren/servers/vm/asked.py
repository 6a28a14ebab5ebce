"""What a machine is asked to be: the words of its ctl, checked one by one as they come.

    asked = Asked()
    asked.image, asked.mem = "standin", size("64M")
    asked.limit(cpu=0.5, wall=60)

Nothing is started here. What can be wrong with a single word is refused when it is written; what can be wrong
with all of them together, when the machine is started.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from warren.servers.vm.backend import Disk
from warren.servers.vm.limits import Bounds
from warren.servers.vm.shelf import Shelf
from warren.tree import Caller, Refused
from warren.tree.ctl import quote
from warren.tree.ports import Share

UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
RIGHTS: Final = ("read", "write", "create", "remove", "ctl")
LEAST_MEM, MOST_MEM = 8 << 20, 64 << 30
MOST_DISKS: Final = 8
MOST_SHARES: Final = 32
MOST_WORDS: Final = 1024  # characters of the kernel's command line that are added here
MOST_CPUS: Final = 64


def size(word: str, what: str, least: int = 1, most: int = 1 << 50) -> int:
    """Bytes, from a number with K, M, G or T behind it."""
    found = re.fullmatch(r"(\d{1,12})([KMGT]?)B?", word, re.ASCII)
    value = int(found[1]) * UNITS[found[2]] if found else 0
    if not least <= value <= most:
        said = f"{what} is a number of bytes such as 64M or 1G, from {least} to {most}, not {word!r}"
        raise Refused(400, said)
    return value


def name_of(word: str) -> str:
    """A name for a machine, which is also one at /n."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", word, re.ASCII):
        raise Refused(400, f"a name is small letters, digits and -, at most 32, not {word!r}")
    return word


def file_of(word: str, shelf: Shelf, caller: Caller) -> Path:
    """A file that an emulator is to open: one of the machine's in/, or any of this user's for the user."""
    name = word.removeprefix("in/")
    if "/" not in name:
        found = shelf.path(name)
        if found is None:
            raise Refused(404, f"there is no {name} in the machine's in/; put it there first")
        return found
    if not is_local(caller):
        raise Refused(403, f"{word} is a file of this host, for local callers only; put yours into in/")
    path = Path(word)
    if not path.is_absolute() or not path.is_file():
        raise Refused(404, f"{word} is no file; name one of in/, or one of this host by its whole path")
    return path


def is_local(caller: Caller) -> bool:
    """Whether it is this role's own user who asks. With a token that alone counts, and none is about files of
    the host."""
    return caller.subject == "local" and getattr(caller, "token", None) is None


def share_of(
    path: str, rights: Iterable[str], owner: Caller, own: Iterable[str], there: list[Share]
) -> Share:
    """A share that can be, beside those that are there."""
    words = tuple(dict.fromkeys(word for given in rights for word in given.split(",") if word)) or ("read",)
    words = tuple(w for word in words for w in (("read", "write") if word == "rw" else (word,)))
    for word in words:
        if word not in RIGHTS:
            raise Refused(400, f"{word!r} is no right; the rights are {', '.join(RIGHTS)}")
    parts = path.split("/")[1:]
    plain = path == "/" or all(p not in ("", ".", "..") for p in parts)
    if not (path.startswith("/") and plain and path.isprintable()):
        raise Refused(400, f"{path!r} is no path to share; it is absolute and spelt plainly")
    if path != "/" and parts[0] in own:
        raise Refused(409, f"/{parts[0]} is the guest's own; share something else")
    for other in there:
        if _inside(path, other.path) or _inside(other.path, path):
            raise Refused(409, f"{path} and {other.path} lie in one another; share one of them")
    if len(there) >= MOST_SHARES:
        raise Refused(507, f"{MOST_SHARES} shares, the limit")
    return Share(path, words, owner)


def _inside(inner: str, outer: str) -> bool:
    return outer == "/" or inner == outer or inner.startswith(outer + "/")


@dataclass
class Asked:
    """All of it."""

    name: str = ""
    image: str = ""
    recipe: str = ""
    backend: str = ""
    kernel: str = ""
    initrd: str = ""
    files: dict[str, Path] = field(default_factory=dict)  # kernel and initrd, as they were found
    words: list[str] = field(default_factory=list)  # for the kernel's command line
    mem: int = 0
    cpus: int = 0
    disks: list[Disk] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    bounds: Bounds = field(default_factory=Bounds)
    role: str = ""  # a name in in/: the manifest that the guest is to run
    stays: bool = False  # it goes on after its image is done

    def add_words(self, words: Iterable[str]) -> None:
        added = [*self.words, *words]
        if any(not word.isprintable() or " " in word for word in added) or len(" ".join(added)) > MOST_WORDS:
            raise Refused(400, f"words for a kernel have no spaces, and {MOST_WORDS} characters together")
        self.words = added

    def add_disk(self, disk: Disk) -> None:
        if len(self.disks) >= MOST_DISKS:
            raise Refused(507, f"{MOST_DISKS} disks, the limit")
        self.disks.append(disk)

    def limit(self, cpu: float, mem: str, disk: str, wall: float) -> None:
        """Set what is given; what is not stays as it was."""
        if not (0 <= cpu <= MOST_CPUS and 0 <= wall < math.inf):
            raise Refused(400, f"cpu is a number of processors up to {MOST_CPUS}, wall a time such as 60s")
        given: dict[str, float | int] = {"cpu": cpu, "wall": float(wall)}
        if mem:
            given["mem"] = size(mem, "mem", LEAST_MEM, MOST_MEM)
        if disk:
            given["disk"] = size(disk, "disk")
        set_now = {key: value for key, value in given.items() if value}
        if not set_now:
            raise Refused(400, "say what is limited: cpu=1 mem=256M disk=1G wall=60s")
        self.bounds = replace(self.bounds, **set_now)  # type: ignore[arg-type]

    def namespace(self) -> str:
        """What the guest finds on its channel, in the words of a namespace file."""
        lines = ["mount $guest /"]
        for share in self.shares:
            flag = "" if {"write", "create", "remove", "ctl"} & set(share.rights) else "-r "
            path, rights = quote(share.path), ",".join(share.rights)
            lines.append(f"bind {flag}$role{path} {path}  # {rights} as {share.owner.subject}")
        return "\n".join(lines) + "\n"
