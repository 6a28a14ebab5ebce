"""The log that firmware keeps beside a TPM: what it measured, event by event.

    parse(data)                    ->  the records; Refused(422) for what is no log
    replay(records)                ->  what each PCR must hold if the log is true
    check(data, pcrs)              ->  "" or the first PCR that the log does not explain
    started(records, digest)       ->  whether an image with this Authenticode digest was started
    alone(digest)                  ->  PCR 4 if that image was started, and nothing before it

Linux shows the log in /sys/kernel/security/tpm0/binary_bios_measurements. It comes from inside, so it may say
anything; it counts only as far as it leads to what the TPM holds, which cannot be set, only extended. This
reads the format in which an event has a digest of each kind that the TPM knows.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from warren.boot.secure.chain import START, extend
from warren.tree import Refused

SIZE_MAX: Final = 1 << 20
SHA256: Final = 0x000B
STARTED: Final = 0x80000003
"""An application that the firmware started from a disk."""
PCRS: Final = 24
_NO_ACTION: Final = 0x3
_SIGNATURE: Final = b"Spec ID Event03\0"
_FIRST: Final = struct.Struct("<II20sI")
_DIGESTS_MAX: Final = 8


class Record(NamedTuple):
    pcr: int
    kind: int
    sha256: bytes
    event: bytes


def parse(data: bytes) -> list[Record]:
    if len(data) > SIZE_MAX:
        raise Refused(413, f"{len(data)} bytes of log; at most {SIZE_MAX} are read")
    sizes, at = _head(data)
    records = []
    while at < len(data):
        record, at = _record(data, at, sizes)
        records.append(record)
    return records


def _head(data: bytes) -> tuple[dict[int, int], int]:
    """The digests that the log has, each with its size, and where its records begin."""
    if len(data) < _FIRST.size:
        raise _no(0, "it is cut")
    pcr, kind, _, size = _FIRST.unpack_from(data)
    end = _FIRST.size + size
    if (pcr, kind) != (0, _NO_ACTION) or end > len(data) or size < 29:
        raise _no(0, "it does not begin with its specification")
    event = data[_FIRST.size : end]
    if not event.startswith(_SIGNATURE):
        raise _no(0, "it is of another format; this reads the one with several digests an event")
    (count,) = struct.unpack_from("<I", event, 24)
    if not 1 <= count <= _DIGESTS_MAX or 28 + 4 * count > size:
        raise _no(24, f"{count} kinds of digests")
    sizes = dict(struct.unpack_from("<HH", event, 28 + 4 * n) for n in range(count))
    if sizes.get(SHA256) != 32:
        raise _no(28, "it has no digests of SHA-256")
    return sizes, end


def _record(data: bytes, at: int, sizes: Mapping[int, int]) -> tuple[Record, int]:
    begin = at
    if at + 12 > len(data):
        raise _no(begin, "it is cut")
    pcr, kind, count = struct.unpack_from("<III", data, at)
    if pcr >= PCRS or not 1 <= count <= len(sizes):
        raise _no(begin, f"PCR {pcr} with {count} digests")
    at, sha256 = at + 12, None
    for _ in range(count):
        if at + 2 > len(data):
            raise _no(begin, "it is cut")
        (algorithm,) = struct.unpack_from("<H", data, at)
        if (size := sizes.get(algorithm)) is None or at + 2 + size > len(data):
            raise _no(begin, f"the digest {algorithm:#x} is cut, or was not announced")
        if algorithm == SHA256:
            sha256 = data[at + 2 : at + 2 + size]
        at += 2 + size
    if sha256 is None or at + 4 > len(data):
        raise _no(begin, "it is cut, or has no SHA-256")
    (size,) = struct.unpack_from("<I", data, at)
    if size > len(data) - at - 4:
        raise _no(begin, f"an event of {size} bytes does not end in the log")
    return Record(pcr, kind, sha256, data[at + 4 : at + 4 + size]), at + 4 + size


def replay(records: Iterable[Record]) -> dict[int, bytes]:
    """Only the PCRs that the log speaks of. All others are as the TPM started them."""
    pcrs: dict[int, bytes] = {}
    for record in records:
        if record.kind != _NO_ACTION:
            pcrs[record.pcr] = extend(pcrs.get(record.pcr, START), record.sha256)
    return pcrs


def check(data: bytes, pcrs: Mapping[int, bytes]) -> str:
    """Whether the log explains each of these PCRs."""
    try:
        found = replay(parse(data))
    except Refused as e:
        return e.detail
    for n, value in sorted(pcrs.items()):
        if (led := found.get(n, START)) != value:
            return f"PCR {n}: the log leads to {led.hex()}, and the TPM holds {value.hex()}"
    return ""


def started(records: Iterable[Record], digest: bytes) -> bool:
    return any(r.pcr == 4 and r.kind == STARTED and r.sha256 == digest for r in records)


def alone(digest: bytes) -> bytes:
    """That the boot manager calls a boot option, the end of the firmware's own part, and the image."""
    pcr = START
    for measured in (b"Calling EFI Application from Boot Option", bytes(4)):
        pcr = extend(pcr, hashlib.sha256(measured).digest())
    return extend(pcr, digest)


def _no(at: int, why: str) -> Refused:
    return Refused(422, f"the firmware's log at {at:#x}: {why}")
