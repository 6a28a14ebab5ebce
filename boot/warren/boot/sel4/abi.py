"""The numbers by which a root task talks to its kernel, and the block in root.elf that carries them.

    tables = load_toml()                  kernel-shim/abi.toml
    Abi.standin(tables)                   what our stand-in answers to
    Abi.genuine(tables, mcs=..., ...)     a kernel somebody brought; what is not known stays 0
    from_sdk(sdk, tables)                 the same, as the kernel's own build says
    patch(root_elf, abi)  read(root_elf)

One root task serves every kernel: its numbers are not compiled in. They stand in a block of fixed size that
begins with 16 bytes found nowhere else in the file. A label or an object type that is 0 is not known: the
root task finds labels by asking a capability that can do one thing only, and does without the rest.

System call numbers depend on whether the kernel has the MCS scheduler, labels on still more of its
configuration. None is ever taken from a version.
"""

from __future__ import annotations

import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from warren.tree import Refused

if TYPE_CHECKING:
    from warren.boot.sel4.sdk import Sdk

MAGIC: Final = b"WARREN-ABI-BLOCK"
UNKNOWN, CLASSIC, MCS = 0, 1, 2
LARGEST: Final = 16 << 20  # of a root task's file; more does not fit its CNode anyway
_HEAD: Final = struct.Struct("<16sII")
_TABLES: Final = ("block", "slots", "every", "classic", "mcs", "probe", "standin")

Tables = Mapping[str, Mapping[str, int]]


def shim_folder() -> Path:
    """Where kernel-shim is: in the checkout, or in the installed package."""
    here = Path(__file__)
    for folder in (here.parents[1] / "shim", here.parents[4] / "kernel-shim"):
        if (folder / "abi.toml").is_file():
            return folder
    raise Refused(503, "kernel-shim is not here; install Warren from a wheel or a checkout")


def load_toml(path: Path | None = None) -> Tables:
    """The tables of abi.toml. Refused (422) names what is wrong in it."""
    path = shim_folder() / "abi.toml" if path is None else path
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise Refused(422, f"{path.name} cannot be read: {e}") from None
    for name in _TABLES:
        table = said.get(name)
        if not isinstance(table, dict) or not all(type(value) is int for value in table.values()):
            raise Refused(422, f"{path.name} has no table [{name}] of numbers")
    if unknown := said.keys() - set(_TABLES):
        raise Refused(422, f"{path.name} has a table that nothing reads: {', '.join(sorted(unknown))}")
    return said


@dataclass(frozen=True)
class Abi:
    """The block's numbers, in its order."""

    layout: int = UNKNOWN
    call: int = 0
    yield_: int = 0
    putchar: int = 0  # 0: a release kernel, which would kill the task for it
    cnode: int = 0
    vspace: int = 0
    ioport_control: int = 0
    retype: int = 0
    issue: int = 0
    in8: int = 0
    out8: int = 0
    page_map: int = 0
    page_unmap: int = 0
    frame: int = 0
    untyped_bits_at: int = 0

    @classmethod
    def standin(cls, tables: Tables) -> Abi:
        s = tables["standin"]
        labels = {key: s[key] for key in ("issue", "in8", "out8", "page_map", "page_unmap")}
        return cls.genuine(tables, mcs=False, debug=True, frame=s["frame"], **labels)

    @classmethod
    def genuine(cls, tables: Tables, *, mcs: bool | None = None, debug: bool = False, **known: int) -> Abi:
        """Of a kernel of which this much is KNOWN. Without MCS, the root task tells the layouts apart."""
        numbers = {} if mcs is None else tables["mcs" if mcs else "classic"]
        return cls(
            layout=numbers.get("layout", UNKNOWN),
            call=tables["classic"]["call"],  # the same in both
            yield_=numbers.get("yield", 0),
            putchar=numbers.get("putchar", 0) if debug else 0,
            **tables["slots"],
            retype=tables["every"]["retype"],
            **known,
        )

    def faults(self) -> list[str]:
        """What makes it no block to boot with; a sentence each."""
        found = []
        if self.layout not in (UNKNOWN, CLASSIC, MCS):
            found.append(f"layout {self.layout} is none of 0, 1 and 2")
        if self.call >= 0:
            found.append(f"call is {self.call}; system call numbers are negative")
        found += [
            f"{name} is {value}; system call numbers are negative, 0 is unknown"
            for name, value in (("yield", self.yield_), ("putchar", self.putchar))
            if value > 0
        ]
        for name in ("cnode", "vspace", "ioport_control"):
            if not 0 < getattr(self, name) < 16:
                found.append(f"{name} is {getattr(self, name)}; the kernel's own slots are 1 to 15")
        for name in ("issue", "in8", "out8", "page_map", "page_unmap", "frame"):
            if not 0 <= getattr(self, name) < 1 << 12:
                found.append(f"{name} is {getattr(self, name)}; it is a small number, 0 if unknown")
        if self.retype <= 0:
            found.append(f"retype is {self.retype}; every kernel has that label")
        if self.untyped_bits_at not in (0, 8, 10):
            found.append(f"untyped_bits_at is {self.untyped_bits_at}; a size stands at byte 8, or 10")
        return found


_BODY: Final = struct.Struct(f"<{len(fields(Abi))}i")


def from_sdk(sdk: Sdk, tables: Tables) -> Abi:
    """What the kernel's own build says; what it does not say stays unknown."""
    known = {} if sdk.labels is None else {key: sdk.labels[name] for key, name in LABELS.items()}
    # In the list of object types the 4 KiB frame comes after those of every kernel, the two of MCS and the
    # 1 GiB frame.
    frame = 7 + 2 * sdk.mcs + sdk.huge_pages
    return Abi.genuine(tables, mcs=sdk.mcs, debug=sdk.prints, frame=frame, **known)


# A number of the block, and what an SDK calls it.
LABELS: Final = {
    "issue": "X86IOPortControlIssue",
    "in8": "X86IOPortIn8",
    "out8": "X86IOPortOut8",
    "page_map": "X86PageMap",
    "page_unmap": "X86PageUnmap",
}


def patch(elf: bytes, abi: Abi) -> bytes:
    """The same root task with these numbers. Refused (422) if it has no block, or the numbers are none."""
    at, size = _find(elf)
    if faults := abi.faults():
        raise Refused(422, f"these numbers are for no kernel: {'; '.join(faults)}")
    body = _BODY.pack(*(getattr(abi, f.name) for f in fields(Abi)))
    head = elf[at : at + _HEAD.size]
    return elf[:at] + (head + body).ljust(size, b"\0") + elf[at + size :]


def read(elf: bytes) -> Abi:
    """The numbers in a root task."""
    at, _ = _find(elf)
    return Abi(*_BODY.unpack_from(elf, at + _HEAD.size))


def _find(elf: bytes) -> tuple[int, int]:
    """Where the block is, and its size."""
    if len(elf) > LARGEST:
        raise Refused(413, f"a root task of {len(elf)} bytes; the most is {LARGEST}")
    at = elf.find(MAGIC)
    if at < 0 or elf.find(MAGIC, at + 1) >= 0:
        raise Refused(422, "the root task has no ABI block, or two; build it from kernel-shim")
    if len(elf) - at < _HEAD.size:
        raise Refused(422, "the root task ends within its ABI block")
    block = load_toml()["block"]
    _, version, size = _HEAD.unpack_from(elf, at)
    if (version, size) != (block["version"], block["size"]) or len(elf) - at < size:
        raise Refused(422, f"the root task's ABI block is of version {version}; ours is {block['version']}")
    return at, size
