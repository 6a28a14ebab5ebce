"""The kinds of field a 9P message is made of.

An annotation such as ``count: u32`` is both the Python type of the attribute and its wire
layout. ``Annotated`` carries the second half to `codec`; type checkers see only the first.

    u8 u16 u32 u64     little-endian integers
    Str                n[2] then n bytes of UTF-8 (undecodable bytes survive as surrogates)
    Names              n[2] then n strings; at most 16, the protocol's limit of one walk
    Qid, Qids          type[1] version[4] path[8]; n[2] then n of them
    Data               n[4] then n bytes, the rest of the frame
    StatField          n[2] then a plain 9P2000 stat of n bytes
    u32_dotl           a u32 that only the .L dialects carry
    Str_warren         a string that only 9P2000.L.warren carries
"""

from typing import Annotated, NamedTuple

NOFID = 0xFFFFFFFF
NOTAG = 0xFFFF
NONUNAME = 0xFFFFFFFF
MAXWELEM = 16

QTDIR, QTAPPEND, QTEXCL, QTAUTH, QTTMP, QTSYMLINK, QTFILE = 0x80, 0x40, 0x20, 0x08, 0x04, 0x02, 0x00


class Qid(NamedTuple):
    """A server's name for one file: two qids with the same path are the same file."""

    type: int
    version: int
    path: int


class Stat(NamedTuple):
    """A directory entry of the plain dialect (its own inner size field is implied)."""

    type: int
    dev: int
    qid: Qid
    mode: int
    atime: int
    mtime: int
    length: int
    name: str
    uid: str
    gid: str
    muid: str


class Kind(NamedTuple):
    """How one field lies on the wire."""

    name: str
    fmt: str = ""  # a struct code, for fixed integers
    only: str = ""  # "L": absent in plain 9P2000; "warren": present in .warren alone


u8 = Annotated[int, Kind("int", "B")]
u16 = Annotated[int, Kind("int", "H")]
u32 = Annotated[int, Kind("int", "I")]
u64 = Annotated[int, Kind("int", "Q")]
u32_dotl = Annotated[int, Kind("int", "I", "L")]
Str = Annotated[str, Kind("str")]
Str_warren = Annotated[str, Kind("str", "", "warren")]
Names = Annotated[list[str], Kind("names")]
QidField = Annotated[Qid, Kind("qid")]
Qids = Annotated[list[Qid], Kind("qids")]
Data = Annotated[bytes | memoryview, Kind("data")]
StatField = Annotated[Stat, Kind("stat")]
