"""What a machine's guest finds on its channel: its own tree.

    /role        Text    the role manifest that it is to run; empty: none
    /role.sig    Text    the manifest's signature; empty: unsigned
    /proc/boot   Text    write a report, `key=value` lines; read back, all that was reported
    /ctl         Stream  what the host wants: one verb a record, `say TEXT`, `test NAME`, `exit N`
    /in/         Dir     files for the guest
    /out/        Dir     files that it leaves

    guest = Guest(role=..., inputs={"job": b"..."})
    guest.tell("exit 0")                     429 if the guest has not read the last `VERBS`
    await guest.ready.wait()                 it wrote `state=ready`: ready on the wire
    guest.report                             what it said, and `guest.output` what it left

The guest has all rights in here and cannot be believed. A report has at most `KEYS` keys of `VALUE`
characters; what more comes is refused. So is a file in /out beyond its bounds. A value that is reported
again replaces the first.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import Final

import trio
from warren.tree import Bytes, Caller, Dir, File, Handle, Maybe, Node, Queue, Refused, Stream, Text, absent
from warren.tree.report import attributes, legible
from warren.tree.words import FileHandle

KEYS: Final = 64
VALUE: Final = 512
VERBS: Final = 64
FILES: Final = 256
BYTES: Final = 64 << 20  # of all files that the guest leaves
LONGEST_VERB: Final = 1024
READY: Final = ("state", "ready")

Report = Callable[[Mapping[str, str]], None]


class Guest(Dir):
    """The tree of one guest. ON_REPORT is called with what each write said, after it was taken.

    INPUTS and OUTPUT may be nodes that the caller has already; otherwise files come from a mapping, and what
    is left is kept in memory.
    """

    mode = 0o755

    def __init__(
        self, *, role: str = "", signature: str = "", inputs: Mapping[str, bytes] | Node | None = None,
        output: Node | None = None, on_report: Report = lambda said: None,
    ) -> None:  # fmt: skip
        self.role, self.signature = role, signature
        self.report: dict[str, str] = {}
        self.ready = trio.Event()
        self.on_report = on_report
        self.verbs = Queue(VERBS)
        self.output = Basket() if output is None else output
        given = inputs if isinstance(inputs, Node) else _given(inputs or {})
        super().__init__(
            {
                "role": _file(self.role.encode()),
                "role.sig": _file(self.signature.encode()),
                "proc": Dir({"boot": Text(lambda: attributes(self.report), self._reported)}),
                "ctl": Stream(self.verbs),
                "in": given,
                "out": self.output,
            }
        )

    def tell(self, line: str) -> None:
        """Have the guest do something, once it reads its ctl."""
        raw = line.encode()
        if not raw or len(raw) > LONGEST_VERB or not line.isprintable():
            raise Refused(400, f"what a guest is told is a line of at most {LONGEST_VERB} bytes")
        self.verbs.put(raw + b"\n")

    def _reported(self, text: str) -> None:
        said = parse(text)
        if len(self.report.keys() | said.keys()) > KEYS:
            raise Refused(507, f"a report has at most {KEYS} keys")
        self.report.update(said)
        if said.get(READY[0]) == READY[1]:
            self.ready.set()
        self.on_report(said)


def parse(text: str) -> dict[str, str]:
    """The `key=value` pairs of a report, or a refusal that names the bad line."""
    said: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        key, eq, value = line.partition("=")
        if not eq or not re.fullmatch(r"[a-z][a-z0-9_.-]{0,31}", key):
            raise Refused(400, f"line {number}: a report is lines of key=value, not {legible(line[:40])!r}")
        if len(value) > VALUE:
            raise Refused(413, f"line {number}: a value has at most {VALUE} characters")
        said[key] = legible(value)
    return said


def _file(data: bytes) -> File:
    return File(lambda offset, count: data[offset : offset + count], size=lambda: len(data))


def _given(inputs: Mapping[str, bytes]) -> Dir:
    return Dir({name: _file(data) for name, data in inputs.items()})


class Basket(Dir):
    """Files that somebody who cannot be believed leaves here, in memory and bounded: `files` by name."""

    mode = 0o755

    def __init__(self, files: int = FILES, size: int = BYTES) -> None:
        self.limit, self.size = files, size
        self.files: dict[str, _Kept] = {}
        super().__init__(self.files)

    def __getitem__(self, name: str) -> bytes:
        return bytes(self.files[name].data)

    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> Maybe[tuple[Node, Handle]]:
        if name in self.files:
            raise Refused(409, "file already exists", errno=errno.EEXIST)
        if len(self.files) >= self.limit:
            raise Refused(507, f"there are {self.limit} files here, the limit")
        made = self.files[name] = _Kept(self)
        return made, FileHandle(made)

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        if name not in self.files:
            raise absent()
        if directory:
            raise Refused(400, "this is a file", errno=errno.ENOTDIR)
        # Whoever has it open keeps nothing: it is counted no more.
        gone = self.files.pop(name)
        gone.removed = True
        gone.data.clear()

    def room(self, wanted: int, beside: _Kept) -> None:
        """Refuse a file that would not fit."""
        if wanted + sum(len(kept.data) for kept in self.files.values() if kept is not beside) > self.size:
            raise Refused(507, f"the files here may have {self.size} bytes together")


class _Kept(File):
    """One file of a basket."""

    removed = False

    def __init__(self, basket: Basket) -> None:
        self.basket, self.data = basket, bytearray()
        super().__init__(self._read, self._write, lambda: len(self.data), self._cut)

    def _read(self, offset: int, count: int) -> Bytes:
        self._must_be_there()
        return bytes(self.data[offset : offset + count])

    def _write(self, offset: int, data: Bytes) -> int:
        self._room(offset + len(data))
        if (gap := offset - len(self.data)) > 0:
            self.data += bytes(gap)
        self.data[offset : offset + len(data)] = data
        return len(data)

    def _cut(self, size: int) -> None:
        self._room(size)
        if size > len(self.data):
            self.data += bytes(size - len(self.data))
        del self.data[size:]

    def _must_be_there(self) -> None:
        if self.removed:
            raise Refused(409, "the file was removed; open it again", errno=errno.ESTALE)

    def _room(self, size: int) -> None:
        self._must_be_there()
        if size > len(self.data):
            self.basket.room(size, self)
