"""The variables of UEFI firmware, in the file that QEMU gives it as flash memory.

    read(volume)                ->  the variables that are in force
    append(volume, variables)   ->  the volume with these behind the others

The host writes this file itself, before the machine starts, so keys are enrolled without a signature and no
program has to run inside. What the machine changes later it changes in its own copy.

The format is that of OVMF: a firmware volume, in it a store of authenticated variables, each a header, a name
and its bytes, at every fourth byte. A changed variable is written anew and the old one marked dead, so only
those in the state ADDED count.
"""

from __future__ import annotations

import struct
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from warren.tree import Refused

GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SECURE_BOOT_ENABLE: Final = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
CUSTOM_MODE: Final = UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
OWNER: Final = UUID("6e5c2f7a-94d1-4b0e-8b3f-0f2a7d51c9e4")
"""Ours: it says in the firmware's lists who enrolled a certificate."""
KEPT, BOOT, RUNTIME, TIMED = 1, 2, 4, 0x20

_NV_DATA: Final = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_AUTHENTICATED: Final = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_X509: Final = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_HEADER: Final = struct.Struct("<HBBIQ16sIII16s")
_MARK, _ADDED = 0x55AA, 0x3F
_NEVER: Final = bytes(16)


class Variable(NamedTuple):
    name: str
    vendor: UUID
    data: bytes
    attributes: int
    time: bytes = _NEVER


def certificates(*found: x509.Certificate) -> bytes:
    """A list of trusted certificates, as PK, KEK and db hold it."""
    lists = b""
    for certificate in found:
        der = certificate.public_bytes(Encoding.DER)
        size = 16 + len(der)
        lists += _X509.bytes_le + struct.pack("<III", 28 + size, 0, size) + OWNER.bytes_le + der
    return lists


def time(when: datetime) -> bytes:
    return struct.pack("<HBBBBBBIhBB", *when.timetuple()[:6], 0, 0, 0, 0, 0)


def read(volume: bytes) -> list[Variable]:
    start, end = _store(volume)
    return [variable for variable, _ in _all(volume, start, end) if variable is not None]


def append(volume: bytes, variables: list[Variable]) -> bytes:
    """Refused(409) if one is there already."""
    start, end = _store(volume)
    present, at = set(), start
    for variable, after in _all(volume, start, end):
        at = after
        if variable is not None:
            present.add((variable.name, variable.vendor))
    if twice := [v.name for v in variables if (v.name, v.vendor) in present]:
        raise Refused(409, f"the variable {twice[0]} is there already; begin with a volume without keys")
    new = b"".join(_written(variable) for variable in variables)
    if at + len(new) > end:
        raise Refused(507, f"{len(new)} bytes of variables, and the volume has room for {end - at}")
    return volume[:at] + new + volume[at + len(new) :]


def _store(volume: bytes) -> tuple[int, int]:
    """Where the variables begin, and where their store ends."""
    if len(volume) < 100 or volume[16:32] != _NV_DATA.bytes_le or volume[40:44] != b"_FVH":
        raise _no("it is no volume of variables")
    (head,) = struct.unpack_from("<H", volume, 48)
    if not 72 <= head <= len(volume) - 28 or volume[head : head + 16] != _AUTHENTICATED.bytes_le:
        raise _no("its variables are not of the authenticated kind")
    size, form, state = struct.unpack_from("<IBB", volume, head + 16)
    if (form, state) != (0x5A, 0xFE) or not 28 <= size <= len(volume) - head:
        raise _no("its store is not formatted, or longer than the volume")
    return head + 28, head + size


def _all(volume: bytes, start: int, end: int) -> list[tuple[Variable | None, int]]:
    """Every variable, None for a dead one, and where the next would stand."""
    found: list[tuple[Variable | None, int]] = []
    at = start
    while at + _HEADER.size <= end:
        mark, state, _, attributes, _, when, _, name_size, size, vendor = _HEADER.unpack_from(volume, at)
        if mark != _MARK:
            break
        body = at + _HEADER.size
        if name_size % 2 or body + name_size + size > end:
            raise _no(f"the variable at {at:#x} does not end in the store")
        variable = None
        if state == _ADDED:
            name = volume[body : body + name_size].decode("utf-16-le", "replace").rstrip("\0")
            data = volume[body + name_size : body + name_size + size]
            variable = Variable(name, UUID(bytes_le=vendor), data, attributes, when)
        at = body + name_size + size
        at += -at % 4
        found.append((variable, at))
    return found


def _written(v: Variable) -> bytes:
    name = v.name.encode("utf-16-le") + b"\0\0"
    head = _HEADER.pack(
        _MARK, _ADDED, 0, v.attributes, 0, v.time, 0, len(name), len(v.data), v.vendor.bytes_le
    )  # fmt: skip
    raw = head + name + v.data
    return raw + b"\xff" * (-len(raw) % 4)


def _no(why: str) -> Refused:
    return Refused(422, f"the firmware's variables: {why}")
