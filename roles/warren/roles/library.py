"""Where role files and namespace files are: directories, then those that came with the program.

    shelf = Shelf([state / "roles"])
    shelf.read("DroneWorker.role")       the first directory that has it, else the package's
    shelf.sources["DroneWorker.role"]    its path, or `package`

A file in a directory takes the place of the package's of the same name, also where another includes it. So an
operator changes one thing about all workers by a `worker.role` of his own, and keeps the rest.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warren.namespaces import library

PACKAGE: Final = "package"
MAX_TEXT: Final = 1 << 18
_LIB: Final = Path(__file__).parent / "lib"
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(role|ns)")


class NoRole(FileNotFoundError):
    """A role that has no file."""

    def __init__(self, role: str, there_are: Sequence[str]) -> None:
        self.role, self.there_are = role, tuple(there_are)
        super().__init__(errno.ENOENT, f"there is no role {role!r}; the roles are {', '.join(there_are)}")


class Shelf:
    """Files by name, and where each that was read came from."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self.directories = tuple(directories)
        self.sources: dict[str, str] = {}
        self._packaged = library()

    def read(self, name: str) -> str:
        """The text of a file; FileNotFoundError if nobody has it, another OSError if it cannot be read."""
        if not _PLAIN.fullmatch(name):
            raise FileNotFoundError(errno.ENOENT, f"{name!r} is no name of a role file or a namespace file")
        for directory in self.directories:
            path = directory / name
            try:
                text = _text(path)
            except FileNotFoundError:
                continue
            self.sources[name] = str(path)
            return text
        text = self._packaged(name) if name.endswith(".ns") else self._ours(name)
        self.sources[name] = PACKAGE
        return text

    def _ours(self, name: str) -> str:
        try:
            return _text(_LIB / name)
        except FileNotFoundError:
            looked = " or ".join([*map(str, self.directories), "the program"])
            raise FileNotFoundError(errno.ENOENT, f"there is no {name} in {looked}") from None

    def list(self, suffix: str) -> list[str]:
        """Every name that ends so, each once."""
        found = set()
        for directory in (*self.directories, _LIB):
            if directory.is_dir():
                found |= {p.name for p in directory.iterdir() if _PLAIN.fullmatch(p.name)}
        return sorted(name for name in found if name.endswith(suffix))


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise OSError(errno.EFBIG, f"{path} is larger than {MAX_TEXT} bytes; a role is shorter")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise OSError(errno.EILSEQ, f"{path}: byte {e.start} is not UTF-8") from None
