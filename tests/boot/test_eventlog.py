"""The firmware's log: one that OVMF wrote, with the PCRs of the TPM beside it, and others packed here.

vectors/ovmf-measurements.b64 and ovmf-pcrs.txt are of one boot of a signed image; the values were read from
the TPM.
"""

import base64
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.secure import eventlog
from warren.tree import Refused

VECTORS = Path(__file__).parent / "vectors"
KINDS = {4: 20, 11: 32}  # SHA-1 and SHA-256


def recorded() -> tuple[bytes, dict[int, bytes]]:
    lines = [line.split() for line in (VECTORS / "ovmf-pcrs.txt").read_text().splitlines()]
    log = base64.b64decode((VECTORS / "ovmf-measurements.b64").read_text())
    return log, {int(n): bytes.fromhex(value) for n, value in lines}


def head(
    kinds: dict[int, int] = KINDS, signature: bytes = b"Spec ID Event03\0", count: int | None = None
) -> bytes:
    listed = b"".join(struct.pack("<HH", *kind) for kind in kinds.items())
    number = len(kinds) if count is None else count
    event = signature + bytes(8) + struct.pack("<I", number) + listed + b"\0"
    return struct.pack("<II20sI", 0, 3, bytes(20), len(event)) + event


def record(
    pcr: int, kind: int, event: bytes, digests: dict[int, bytes] | None = None, size: int = -1
) -> bytes:
    found = {4: bytes(20), 11: hashlib.sha256(event).digest()} if digests is None else digests
    raw = struct.pack("<III", pcr, kind, len(found))
    raw += b"".join(struct.pack("<H", one) + digest for one, digest in found.items())
    return raw + struct.pack("<I", len(event) if size < 0 else size) + event


def test_the_log_of_a_real_boot_leads_to_what_the_tpm_held() -> None:
    log, pcrs = recorded()
    assert set(pcrs) == {0, 1, 2, 3, 4, 5, 6, 7, 9, 11}
    assert eventlog.check(log, pcrs) == ""


def test_pcr_4_is_known_from_the_image_alone() -> None:
    log, pcrs = recorded()
    [image] = [r.sha256 for r in eventlog.parse(log) if r.kind == eventlog.STARTED]
    assert eventlog.alone(image) == pcrs[4]
    assert eventlog.started(eventlog.parse(log), image)
    assert not eventlog.started(eventlog.parse(log), bytes(32))


def test_a_log_that_was_altered_does_not_lead_there() -> None:
    log, pcrs = recorded()
    records = eventlog.parse(log)
    for n in {r.pcr for r in records}:
        first = next(r.sha256 for r in records if r.pcr == n and r.kind != 3)
        assert f"PCR {n}: the log leads to" in eventlog.check(log.replace(first, bytes(32)), {n: pcrs[n]})
    assert eventlog.check(log[: log.index(records[-1].sha256) - 40], pcrs)


def test_a_log_is_replayed_in_its_order() -> None:
    one, two = record(7, 1, b"one"), record(7, 1, b"two")
    found = eventlog.replay(eventlog.parse(head() + one + two))
    assert found != eventlog.replay(eventlog.parse(head() + two + one))
    inner = hashlib.sha256(bytes(32) + hashlib.sha256(b"one").digest()).digest()
    assert found == {7: hashlib.sha256(inner + hashlib.sha256(b"two").digest()).digest()}


def test_what_is_only_said_is_not_extended() -> None:
    assert eventlog.replay(eventlog.parse(head() + record(0, 3, b"StartupLocality\0\3"))) == {}


def test_a_pcr_that_the_log_does_not_know_is_as_it_began() -> None:
    assert eventlog.check(head(), {8: bytes(32)}) == ""
    assert "PCR 8" in eventlog.check(head(), {8: b"x" * 32})


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (b"", "it is cut"),
        (head()[:50], "does not begin with its specification"),
        (record(0, 1, b""), "does not begin with its specification"),
        (head(signature=b"Spec ID Event02\0"), "another format"),
        (head(count=9), "9 kinds of digests"),
        (head(count=3), "3 kinds of digests"),
        (head({4: 20}), "no digests of SHA-256"),
        (head({11: 20}), "no digests of SHA-256"),
        (head() + bytes(11), "it is cut"),
        (head() + record(24, 1, b""), "PCR 24"),
        (head() + record(0, 1, b"", {}), "with 0 digests"),
        (head() + record(0, 1, b"", {11: bytes(32), 4: bytes(20), 5: b""}), "with 3 digests"),
        (head() + record(0, 1, b"", {12: bytes(48)}), "0xc is cut, or was not announced"),
        (head() + record(0, 1, b"", {4: bytes(20)}), "has no SHA-256"),
        (head() + record(0, 1, b"x", size=1 << 31), "2147483648 bytes does not end"),
        (head() + record(0, 1, b"")[:40], "is cut"),
        (bytes((1 << 20) + 1), "at most 1048576 are read"),
    ],
)
def test_what_is_no_log_is_refused(log: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        eventlog.parse(log)
    assert eventlog.check(log, {})


@given(st.integers(0, 10000), st.binary(min_size=1, max_size=8), st.integers(0, 11000))
def test_any_edit_gets_a_verdict(place: int, new: bytes, end: int) -> None:
    log, pcrs = recorded()
    assert isinstance(eventlog.check((log[:place] + new + log[place + len(new) :])[:end], pcrs), str)
