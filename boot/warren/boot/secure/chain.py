"""A measured chain: what was loaded, in which order, folded into one value.

    PCR = SHA256(PCR || SHA256(x))

    chain = measure({"kernel": ..., "initrd": ...})   in the order in which they are loaded
    chain.value                                       the PCR, 32 bytes; zeroes when nothing was measured
    chain.text()                                      the lines of /boot/images/NAME/chain
    parse(text)                                       the chain again; Refused(422) for what is none
    check(text, expected, claimed)                    "" or the first event that differs

Every part is extended twice, its name with a zero byte and then its content, so that a name belongs to what
it names. systemd's boot stub extends PCR 11 of a TPM so, and `uki.measured` makes the same chain of an image.
A line holds a part's own SHA-256, which `sha256sum` says too, and the value after it. So of a log that was
altered, cut or put in another order, the first line is known that does not follow from those before.

A log alone proves nothing, for who can write it can write it whole. It is held against the events that an
image must have, or against a value that came another way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from warren.tree import Refused

START: Final = bytes(32)
EVENTS_MAX: Final = 256
_NAME: Final = re.compile(r"[A-Za-z0-9._/-]{1,64}")
_LINE: Final = re.compile(r"event=(\d{1,3}) name=(\S+) sha256=([0-9a-f]{64}) pcr=([0-9a-f]{64})")
_LAST: Final = re.compile(r"pcr=([0-9a-f]{64})")


class Event(NamedTuple):
    name: str
    digest: bytes


@dataclass(frozen=True)
class Chain:
    events: tuple[Event, ...] = ()

    @property
    def value(self) -> bytes:
        return fold(self.events)

    def text(self) -> str:
        pcr, lines = START, []
        for n, event in enumerate(self.events):
            pcr = after(pcr, event)
            lines.append(f"event={n} name={event.name} sha256={event.digest.hex()} pcr={pcr.hex()}\n")
        return "".join(lines) + f"pcr={pcr.hex()}\n"


def extend(pcr: bytes, digest: bytes) -> bytes:
    """One step, as a TPM takes it."""
    return hashlib.sha256(pcr + digest).digest()


def after(pcr: bytes, event: Event) -> bytes:
    return extend(extend(pcr, hashlib.sha256(event.name.encode() + b"\0").digest()), event.digest)


def fold(events: Iterable[Event], pcr: bytes = START) -> bytes:
    for event in events:
        pcr = after(pcr, event)
    return pcr


def measure(parts: Mapping[str, bytes]) -> Chain:
    """The chain of these parts, in the mapping's order."""
    if len(parts) > EVENTS_MAX:
        raise Refused(413, f"{len(parts)} parts; a chain has at most {EVENTS_MAX}")
    if bad := [name for name in parts if not _NAME.fullmatch(name)]:
        raise Refused(400, f"{bad[0]!r} is no name of a part: letters, digits, and . _ / -")
    return Chain(tuple(Event(name, hashlib.sha256(body).digest()) for name, body in parts.items()))


def parse(text: str) -> Chain:
    """Every line must follow from those before; the first that does not is named."""
    lines = text.splitlines()
    if not lines or not (last := _LAST.fullmatch(lines[-1])):
        raise _no(len(lines), "the log has no last line with the value; it was cut")
    if len(lines) - 1 > EVENTS_MAX:
        raise _no(EVENTS_MAX + 1, f"a chain has at most {EVENTS_MAX} events")
    pcr, events = START, []
    for n, line in enumerate(lines[:-1]):
        found = _LINE.fullmatch(line)
        if found is None or not _NAME.fullmatch(found[2]):
            raise _no(n + 1, "this is no event")
        if int(found[1]) != n:
            raise _no(n + 1, f"event {found[1]} stands where event {n} belongs")
        event = Event(found[2], bytes.fromhex(found[3]))
        pcr = after(pcr, event)
        if pcr.hex() != found[4]:
            raise _no(n + 1, f"event {n}, {event.name}, does not lead to the value beside it")
        events.append(event)
    if pcr.hex() != last[1]:
        raise _no(len(lines), "the events do not lead to the value at the end")
    return Chain(tuple(events))


def check(text: str, expected: Chain | None = None, claimed: bytes | None = None) -> str:
    """"" if the log holds, is of the expected events, and leads to the claimed value; else why not."""
    try:
        chain = parse(text)
    except Refused as e:
        return e.detail
    if expected is not None and (other := difference(chain, expected)):
        return other
    if claimed is not None and chain.value != claimed:
        return f"the log leads to {chain.value.hex()}, and claimed is {claimed.hex()}"
    return ""


def difference(chain: Chain, expected: Chain) -> str:
    """The first event in which they differ, in words; "" if there is none."""
    for n, (found, wanted) in enumerate(zip(chain.events, expected.events, strict=False)):
        if found.name != wanted.name:
            return f"event {n} is {found.name}, expected {wanted.name}"
        if found.digest != wanted.digest:
            return f"event {n}, {found.name}, is {found.digest.hex()}, expected {wanted.digest.hex()}"
    found_n, wanted_n = len(chain.events), len(expected.events)
    if found_n < wanted_n:
        return f"event {found_n}, {expected.events[found_n].name}, is missing"
    if found_n > wanted_n:
        return f"event {wanted_n}, {chain.events[wanted_n].name}, was not expected"
    return ""


def _no(line: int, why: str) -> Refused:
    return Refused(422, f"the measured chain, line {line}: {why}")
