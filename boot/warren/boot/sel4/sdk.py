"""What a seL4 SDK says of its kernel: configuration and labels.

    sdk = read(folder)    ->  Sdk; Refused says which file is missing, and what it is for

An SDK here is any folder in which a kernel's build left its answers: a build folder, an installed kernel, or
one board's folder of a Microkit SDK. Two files matter, wherever below the folder they lie:

    kernel/gen_config.json     the configuration (kernels from 13.0 on)
    invocations_all.json       every label's number (from 14.0 on); without it the root task probes

Old builds wrote switches as ON and 1, new ones as true: all are read. A folder that holds several kernels'
answers is refused, with their places, for the wrong one would boot into nonsense.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from warren.boot.sel4.abi import LABELS
from warren.tree import Refused

CONFIG: Final = "gen_config.json"
INVOCATIONS: Final = "invocations_all.json"
_LARGEST: Final = 1 << 20
_DEEPEST: Final = 9
_ENTRIES: Final = 50_000
_TRUE: Final = {"1", "on", "true", "yes"}
_FALSE: Final = {"0", "off", "false", "no", ""}


@dataclass(frozen=True)
class Sdk:
    """One kernel's configuration. Labels are None where the SDK does not list them."""

    folder: Path
    version: str  # as a file VERSION in the folder has it, or ""
    mcs: bool
    prints: bool  # a kernel that prints has DebugPutChar
    debug: bool
    cores: int
    iommu: bool
    huge_pages: bool
    pcid: bool
    cnode_bits: int
    labels: dict[str, int] | None

    def facts(self) -> dict[str, str]:
        """For a report."""
        yes = {True: "yes", False: "no"}
        return {
            "version": self.version or "unknown",
            "scheduler": "mcs" if self.mcs else "classic",
            "kind": "debug" if self.debug else "release",
            "prints": yes[self.prints],
            "cores": str(self.cores),
            "iommu": yes[self.iommu],
            "pcid": yes[self.pcid],
            "labels": "sdk" if self.labels is not None else "probed",
        }


def read(folder: Path) -> Sdk:
    """The SDK in this folder."""
    if not folder.is_dir():
        raise Refused(404, f"there is no folder {folder}")
    found = _files(folder)
    configs = [path for path in found[CONFIG] if path.parent.name == "kernel"] or found[CONFIG]
    if not configs:
        raise Refused(422, f"{folder} has no kernel/{CONFIG}, as before 13.0; boot without --sdk")
    config = _Config(_only(configs), _object(_only(configs)))
    config.expect_x86()
    lists = found[INVOCATIONS]
    return Sdk(
        folder=folder,
        version=_version(folder / "VERSION"),
        mcs=config.switch("KERNEL_MCS"),
        prints=config.switch("PRINTING"),
        debug=config.switch("DEBUG_BUILD"),
        cores=config.number("MAX_NUM_NODES", 1),
        iommu=config.switch("IOMMU"),
        huge_pages=config.switch("HUGE_PAGE"),
        pcid=config.switch("SUPPORT_PCID"),
        cnode_bits=config.number("ROOT_CNODE_SIZE_BITS", 12),
        labels=_labels(_only(lists)) if lists else None,
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """Both kinds of files below the folder; not through links, and not without end."""
    found: dict[str, list[Path]] = {CONFIG: [], INVOCATIONS: []}
    seen = 0
    for place, folders, names in os.walk(folder):
        seen += len(folders) + len(names)
        if seen > _ENTRIES:
            raise Refused(413, f"{folder} holds too much to look through; name the kernel's own folder in it")
        folders.sort()
        if len(Path(place).relative_to(folder).parts) >= _DEEPEST:
            folders.clear()
        for name in found.keys() & set(names):
            found[name].append(Path(place) / name)
    return found


def _only(paths: list[Path]) -> Path:
    """The one file; copies of it are no others."""
    if len({_bytes(path) for path in paths}) > 1:
        places = ", ".join(str(path) for path in paths[:4])
        raise Refused(409, f"the SDK is of several kernels; name the folder of one: {places}")
    return paths[0]


def _version(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.readline(64).decode("utf-8", "replace").strip()


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise Refused(422, f"{path} is no plain file")
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise Refused(413, f"{path} is larger than such a file can be")
    return data


def _object(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(_bytes(path))
    except (ValueError, RecursionError):
        raise Refused(422, f"{path} is not JSON") from None
    if not isinstance(said, dict):
        raise Refused(422, f"{path} is not a table of names")
    return said


def _labels(path: Path) -> dict[str, int]:
    """Every label, whether the file groups them or not. Those that we need have to be there."""
    found: dict[str, int] = {}
    for name, value in _object(path).items():
        inner = value.items() if isinstance(value, dict) else [(name, value)]
        found |= {key: number for key, number in inner if type(number) is int and 0 <= number < 1 << 12}
    if lacking := [name for name in LABELS.values() if name not in found]:
        raise Refused(422, f"{path} has no number for {', '.join(lacking)}: is it of an x86-64 kernel?")
    return found


class _Config:
    """Names with the prefix of the C header or without, values of any kind that builds have written."""

    def __init__(self, path: Path, said: dict[str, Any]) -> None:
        self.path = path
        self.said = {key.removeprefix("CONFIG_"): value for key, value in said.items()}

    def expect_x86(self) -> None:
        """This machine and this way of calling, or none: the root task is made for nothing else."""
        arch = str(self.said.get("SEL4_ARCH", self.said.get("ARCH", ""))).lower()
        if arch not in ("x86_64", "") or not (arch or self.switch("ARCH_X86_64")):
            raise Refused(422, f"{self.path} is of a kernel for {arch or 'another machine'}, not for x86_64")
        if self.said.get("KERNEL_X86_SYSCALL") in ("sysenter",) or self.switch("SYSENTER"):
            raise Refused(422, f"{self.path}: it is called by sysenter; build with KernelX86Syscall=syscall")

    def switch(self, name: str) -> bool:
        """Absent is off, as in the header this is made from."""
        value = str(self.said.get(name, "")).lower()
        if value not in _TRUE | _FALSE:
            raise Refused(422, f"{self.path}: {name} is {value!r}, which is neither on nor off")
        return value in _TRUE

    def number(self, name: str, absent: int) -> int:
        try:
            value = int(str(self.said.get(name, absent)))
        except ValueError:
            value = -1
        if not 0 < value < 1 << 16:
            raise Refused(422, f"{self.path}: {name} is {self.said.get(name)!r}, which is no such number")
        return value
