"""Files that lie on the disk because an emulator opens some of them: a machine's in/ and out/.

    shelf = Shelf(folder, files=256, size=1 << 30)      a directory of flat files, bounded
    shelf.seen                                          the same, for those who may only look

Whoever writes here may be a guest, and cannot be believed: a name is one component and never a link, and what
does not fit is refused before it is written. Nobody else writes to the folder, so the sizes are known.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from warren.tree import Bytes, Caller, Dir, File, Handle, Maybe, Node, Refused, absent
from warren.tree.words import FileHandle

FILES: Final = 256
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Shelf(Dir):
    """One folder."""

    mode = 0o755

    def __init__(self, folder: Path, size: int, files: int = FILES) -> None:
        self.folder, self.size, self.most = folder, size, files
        self.files: dict[str, Kept] = {}
        self.seen = Seen(self)
        super().__init__(self.files)

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(kept.size_now for kept in self.files.values())

    def path(self, name: str) -> Path | None:
        """Where a file of that name lies, if there is one."""
        return self.folder / name if name in self.files else None

    def text(self, name: str, most: int = 64 << 10) -> str:
        """What a file says, as far as that; nothing if it is not there."""
        kept = self.files.get(name)
        return bytes(kept.bytes_at(0, most)).decode("utf-8", "replace") if kept is not None else ""

    def room(self, wanted: int, beside: Kept | None = None) -> None:
        """Refuse a file of that size if it would not fit."""
        if wanted + self.used - (beside.size_now if beside is not None else 0) > self.size:
            raise Refused(507, f"the files here may have {self.size} bytes together; remove some")

    def add(self, name: str) -> Kept:
        """A new, empty file."""
        if name in self.files:
            raise Refused(409, "file already exists", errno=errno.EEXIST)
        if len(self.files) >= self.most:
            raise Refused(507, f"there are {self.most} files here, the limit; remove some")
        os.close(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600))
        kept = self.files[name] = Kept(self, name)
        return kept

    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> Maybe[tuple[Node, Handle]]:
        made = self.add(name)
        return made, FileHandle(made)

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        kept = self.files.get(name)
        if kept is None:
            raise absent()
        if directory:
            raise Refused(400, "this is a file", errno=errno.ENOTDIR)
        if expect is not None and expect is not kept:
            raise Refused(409, "there is another file by that name now", errno=errno.ESTALE)
        os.unlink(self.folder / name)
        del self.files[name]


class Kept(File):
    """One file of a shelf."""

    def __init__(self, shelf: Shelf, name: str) -> None:
        self.shelf, self.name, self.size_now = shelf, name, 0
        self.seen = File(self.bytes_at, None, lambda: self.size_now)
        super().__init__(self.bytes_at, self._write, lambda: self.size_now, self._cut)

    def _open(self, flags: int) -> int:
        # Another file may have the name by now, and what is written to that one is not counted here.
        if self.shelf.files.get(self.name) is not self:
            raise Refused(409, "the file was removed; open it again", errno=errno.ESTALE)
        return os.open(self.shelf.folder / self.name, flags | _FLAGS)

    def bytes_at(self, offset: int, count: int) -> Bytes:
        fd = self._open(os.O_RDONLY)
        try:
            return os.pread(fd, min(count, max(0, self.size_now - offset)), offset)
        finally:
            os.close(fd)

    def _write(self, offset: int, data: Bytes) -> int:
        fd = self._open(os.O_WRONLY)
        try:
            if (end := offset + len(data)) > self.size_now:
                self.shelf.room(end, self)
            n = os.pwrite(fd, data, offset)
        finally:
            os.close(fd)
        self.size_now = max(self.size_now, offset + n)
        return n

    def _cut(self, size: int) -> None:
        fd = self._open(os.O_WRONLY)
        try:
            if size > self.size_now:
                self.shelf.room(size, self)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
        self.size_now = size


class Seen(Dir):
    """A shelf that cannot be changed from here."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf = shelf

    def lookup(self, name: str) -> Maybe[Node | None]:
        kept = self.shelf.files.get(name)
        return None if kept is None else kept.seen

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [(name, kept.seen) for name, kept in self.shelf.files.items()]
