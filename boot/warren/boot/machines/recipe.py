"""Machine recipes: what kind of machine boots an image, and how long it may take.

    load("standin-microvm")   -> Recipe       one of lib/*.toml
    chosen("standin")         -> Recipe       the one that says `default = [..., "standin"]`
    parse(name, text)         -> Recipe       BadRecipe names every bad line at once

    about    = "one line for people"
    machine  = "microvm,acpi=off"    what QEMU calls it, with its options
    cpu      = "max"
    mem      = "64M"
    cpus     = 1
    bios     = "qboot.rom"           instead of the machine's own firmware; left out: that
    boots    = "kernel"              a kernel that QEMU loads; or "disk": firmware and a disk say what boots
    channel  = "serial"              where 9P goes: the second serial line; or "virtio": the console hvc0
    bus      = "pci"                 where virtio devices are: "pci", "mmio" or "none"
    export   = true                  whether there is a port for the tree that the guest itself serves
    exits    = true                  whether there is a debug-exit device, by which a guest ends the machine
    accel    = ["kvm", "tcg"]        in order of preference; each is used only once a tiny image has run on it
    cmdline  = "panic=-1"            in front of the image's own
    limit    = "10s"                 from the start of QEMU; not to be ready by then is an error
    default  = ["standin"]           the kinds of images that this is for, if nobody says otherwise
    notes    = ["why it is as it is"]

Every key but `bios`, `cmdline`, `default` and `notes` has to be there, no other is taken, and every value is
looked at: a recipe becomes a command line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Final

from warren.tree import Duration

ACCELERATORS: Final = ("kvm", "tcg")
LEAST, MOST = 8 << 20, 64 << 30  # bytes of memory that a machine may have
_LONGEST: Final = 3600.0
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class BadRecipe(ValueError):
    """A recipe that cannot be used; `errors` has a line for each mistake."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


@dataclass(frozen=True)
class Recipe:
    """A kind of machine."""

    name: str
    about: str
    machine: str
    cpu: str
    mem: int
    cpus: int
    boots: str
    channel: str
    bus: str
    export: bool
    exits: bool
    accel: tuple[str, ...]
    limit: float
    bios: str = ""
    cmdline: str = ""
    default: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def size(word: str) -> int:
    """Bytes, from a number with K, M or G behind it."""
    found = re.fullmatch(r"(\d{1,9})([KMG]?)", word, re.ASCII)
    value = int(found[1]) * _UNITS.get(found[2], 1) if found else 0
    if not LEAST <= value <= MOST:
        raise ValueError(f"{word!r} is no size from 8M to 64G")
    return value


def _text(longest: int = 200) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not value or len(value) > longest or not value.isprintable():
            raise ValueError(f"it is a line of at most {longest} characters, not {value!r}")
        return value

    return check


def _words(pattern: str, shape: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"it is {shape}, not {value!r}")
        return value

    return check


def _one(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"it is one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return check


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"it is true or false, not {value!r}")
    return value


def _cpus(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise ValueError(f"it is a number from 1 to 64, not {value!r}")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError(f"it is a size such as \"64M\", not {value!r}")
    return size(value)


def _seconds(value: Any) -> float:
    try:
        found = float(Duration.parse(value)) if isinstance(value, str) else 0.0
    except (ValueError, KeyError):
        found = 0.0
    if not 0 < found <= _LONGEST:
        raise ValueError(f"it is a time up to {_LONGEST:g} s, such as \"10s\", not {value!r}")
    return found


def _each(check: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    def checked(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or len(value) > 16:
            raise ValueError(f"it is a list of words, not {value!r}")
        found = tuple(check(one) for one in value)
        if len(set(found)) != len(found):
            raise ValueError(f"it names something twice: {value!r}")
        return found

    return checked


_OPTIONS = r"[a-z0-9][a-z0-9.+_-]*(,[a-z0-9._+-]+(=[a-z0-9._-]+)?)*"
_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "about": _text(),
    "machine": _words(_OPTIONS, "a machine with its options, such as \"microvm,acpi=off\""),
    "cpu": _words(_OPTIONS.replace("[a-z0-9._+-]+", "[+a-z0-9._-]+"), "a processor, such as \"max\""),
    "mem": _size,
    "cpus": _cpus,
    "bios": _words(r"[a-z0-9][a-z0-9._-]*", "the name of a file that comes with QEMU, without its folder"),
    "boots": _one("kernel", "disk"),
    "channel": _one("serial", "virtio"),
    "bus": _one("pci", "mmio", "none"),
    "export": _yes,
    "exits": _yes,
    "accel": _each(_one(*ACCELERATORS)),
    "cmdline": _text(1024),
    "limit": _seconds,
    "default": _each(_words(r"[a-z0-9][a-z0-9-]*", "the name of a kind of image")),
    "notes": _each(_text(400)),
}
_NEEDED: Final = _CHECKS.keys() - {"bios", "cmdline", "default", "notes"}


def parse(name: str, text: str) -> Recipe:
    """A recipe from what its file says."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise BadRecipe([f"{name}: {e}"]) from None
    see = "see warren.boot.machines.recipe"
    errors = [f"{name}: there is no key {key!r}; {see}" for key in given.keys() - _CHECKS]
    errors += [f"{name}: {key} is missing" for key in _NEEDED - given.keys()]
    found: dict[str, Any] = {}
    for key in given.keys() & _CHECKS:
        try:
            found[key] = _CHECKS[key](given[key])
        except ValueError as e:
            errors.append(f"{name}: {key}: {e}")
    if found.get("bus") == "none" and (found.get("channel") == "virtio" or found.get("export")):
        errors.append(f"{name}: bus: a virtio channel and an export need a bus: pci or mmio")
    if errors:
        raise BadRecipe(sorted(errors))
    return Recipe(name, **found)


@cache
def names() -> tuple[str, ...]:
    """Every recipe that comes with Warren."""
    return tuple(sorted(f.name[:-5] for f in _library().iterdir() if f.name.endswith(".toml")))


@cache
def load(name: str) -> Recipe:
    """The recipe of that name. BadRecipe if there is none, or it is wrong."""
    if name not in names():
        raise BadRecipe([f"there is no recipe {name!r}; there are {', '.join(names())}"])
    return parse(name, (_library() / f"{name}.toml").read_text())


@cache
def chosen(kind: str) -> Recipe:
    """The recipe for that kind of image."""
    for name in names():
        if kind in (found := load(name)).default:
            return found
    raise BadRecipe([f"no recipe is for {kind!r}; name one of {', '.join(names())}"])


def describe(recipe: Recipe) -> dict[str, object]:
    """Everything a recipe says, for those who show it."""
    found = ((f.name, getattr(recipe, f.name)) for f in fields(recipe))
    return {name: value for name, value in found if value not in ("", ())}


def _library() -> Any:
    return files("warren.boot.machines") / "lib"
