"""Verifying: whatever is done to an audit is found, and the place is named."""

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warren.traces.audit.findings import Findings
from warren.traces.audit.verify import verify

from tests.traces.audits import Kept, new, new_key, three_segments, work

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def spoilt(whole: Kept, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A copy in which each example spoils one file and puts it back."""
    return whole.copy(tmp_path_factory.mktemp("spoilt") / "kept")


@contextmanager
def put_back(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    try:
        yield raw
    finally:
        path.write_bytes(raw)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return three_segments(tmp_path_factory.mktemp("whole"))


def kinds(findings: Findings) -> set[str]:
    return {finding.kind for finding in findings.found}


def rechained(lines: list[bytes], previous: str = "0" * 64) -> list[bytes]:
    """The lines with hashes that fit, by the documented rule and none of our code."""
    out = []
    for raw in lines:
        body = raw[: raw.rindex(b',"h":"')] + b"}"
        previous = hashlib.sha256(previous.encode() + body).hexdigest()
        out.append(body[:-1] + b',"h":"' + previous.encode() + b'"}\n')
    return out


def test_a_whole_audit_has_nothing_to_find(whole: Kept) -> None:
    findings = whole.verify()
    assert findings.ok, findings.found
    lines = [json.loads(line) for path in whole.segments for line in path.read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert (findings.segments, findings.lines, findings.last.seq) == (3, len(lines), len(lines))
    assert findings.covered == len(lines)
    assert findings.heads == 3  # the end of each segment
    assert findings.unchecked == 0
    assert verify(whole.audit, whole.heads).unchecked == 3


def test_the_chain_is_the_documented_one(whole: Kept) -> None:
    lines = [line for path in whole.segments for line in path.read_bytes().splitlines(keepends=True)]
    assert rechained(lines) == lines
    begins = [json.loads(path.read_bytes().splitlines()[0]) for path in whole.segments]
    ends = [json.loads(path.read_bytes().splitlines()[-1]) for path in whole.segments]
    assert [b["kind"] for b in begins] == ["begin"] * 3
    for end, begin in zip(ends, begins[1:], strict=False):
        assert (begin["after"], begin["of"]) == (end["h"], end["seq"])


@QUICK
@given(data=st.data())
def test_any_byte_flipped_is_found_and_named(spoilt: Kept, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 2))
    path = spoilt.segments[index]
    with put_back(path) as before:
        raw = bytearray(before)
        at = data.draw(st.integers(0, len(raw) - 1))
        line = raw[:at].count(b"\n") + 1
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        first = verify(spoilt.audit).found[0]
        assert (first.segment, first.line) == (path.name, line)
        good = first.good
        assert (good.segment, good.line) == (index + 1, line - 1) if line > 1 else good.segment == index
        assert not spoilt.verify().ok


@QUICK
@given(data=st.data())
def test_any_truncation_is_found(spoilt: Kept, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 2))
    path = spoilt.segments[index]
    with put_back(path) as before:
        raw = before
        ends = [n + 1 for n, byte in enumerate(raw) if byte == 10]
        size = data.draw(st.one_of(st.integers(0, len(raw) - 1), st.sampled_from([0, *ends[:-1]])))
        os.truncate(path, size)
        found = spoilt.verify().found
        names = {finding.segment for finding in found}
        assert path.name in names or f"{index + 2:08}.log" in names
        # Without heads a cut between lines of the newest segment, and nothing else, goes unseen.
        assert verify(spoilt.audit).ok == (index == 2 and size in ends)
        lost = json.loads(raw[:size].splitlines()[-1])["seq"] if size in ends else None
        if index == 2 and lost:
            assert (found[-1].kind, found[-1].good.seq) == ("cut", lost)


def edit(path: Path, change: Callable[[list[bytes]], None]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


@QUICK
@given(index=st.integers(0, 2), line=st.integers(0, 11))
def test_any_line_removed_is_found_and_named(spoilt: Kept, index: int, line: int) -> None:
    path = spoilt.segments[index]
    with put_back(path) as before:
        count = len(before.splitlines())
        line %= count
        edit(path, lambda lines: lines.__delitem__(line))
        found = spoilt.verify().found
        if line < count - 1:
            assert (found[0].segment, found[0].line) == (path.name, line + 1)
        elif index < 2:
            assert (found[0].segment, found[0].line, found[0].kind) == (f"{index + 2:08}.log", 1, "dropped")
        else:
            assert kinds(spoilt.verify()) == {"cut"}


@QUICK
@given(index=st.integers(0, 2), one=st.integers(0, 11), other=st.integers(0, 11))
def test_any_two_lines_swapped_are_found(spoilt: Kept, index: int, one: int, other: int) -> None:
    path = spoilt.segments[index]
    with put_back(path) as before:
        count = len(before.splitlines())
        one, other = sorted((one % count, other % count))
        if one == other:
            return

        def swap(lines: list[bytes]) -> None:
            lines[one], lines[other] = lines[other], lines[one]

        edit(path, swap)
        found = verify(spoilt.audit).found
        assert (found[0].segment, found[0].line) == (path.name, one + 1)


@QUICK
@given(index=st.integers(0, 2), line=st.integers(0, 11), to=st.integers(0, 12))
def test_a_line_doubled_anywhere_is_found(spoilt: Kept, index: int, line: int, to: int) -> None:
    path = spoilt.segments[index]
    with put_back(path) as before:
        count = len(before.splitlines())
        line, to = line % count, to % (count + 1)
        edit(path, lambda lines: lines.insert(to, lines[line]))
        findings = verify(spoilt.audit)
        place = to + 1 if to != line else line + 2  # a copy right before a line is that line
        assert (findings.found[0].segment, findings.found[0].line) == (path.name, place)
        if to in (line, line + 1):
            assert kinds(findings) == {"repeated"} or line == 0


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_dropped_segment_is_named(whole: Kept, tmp_path: Path, gone: int) -> None:
    kept = whole.copy(tmp_path / "kept")
    path = kept.segments[gone]
    path.unlink()
    found = kept.verify().found
    if gone < 2:
        assert ("dropped", path.name) in [(f.kind, f.segment) for f in verify(kept.audit).found]
    else:
        assert verify(kept.audit).ok
        assert [(f.kind, f.segment) for f in found] == [("cut", path.name)]


def test_segments_that_changed_places_are_named(whole: Kept, tmp_path: Path) -> None:
    kept = whole.copy(tmp_path / "kept")
    one, two, three = kept.segments
    two.rename(tmp_path / "aside")
    three.rename(two)
    (tmp_path / "aside").rename(three)
    found = verify(kept.audit).found
    assert [(f.kind, f.segment, f.line) for f in found[:2]] == [
        ("misplaced", two.name, 1),
        ("misplaced", three.name, 1),
    ]
    assert one.name not in {f.segment for f in found}


def test_a_history_that_was_chained_anew_is_found_by_heads_alone(whole: Kept, tmp_path: Path) -> None:
    kept = whole.copy(tmp_path / "kept")
    edited = [path.read_bytes().splitlines(keepends=True) for path in kept.segments]
    edited[1][3] = edited[1][3].replace(b"role/Drone/d1", b"role/Drone/d2")
    previous, after = "0" * 64, "0" * 64
    for path, lines in zip(kept.segments, edited, strict=True):
        begin = json.loads(lines[0])
        lines[0] = lines[0].replace(begin.get("after", "").encode() or b"\0", after.encode())
        lines = rechained(lines, previous)
        previous = after = json.loads(lines[-1])["h"]
        path.write_bytes(b"".join(lines))
    assert verify(kept.audit).ok
    first = kept.verify().found[0]
    assert (first.kind, first.segment) == ("rewritten", "00000002.log")
    assert first.good.segment == 1  # the last line that a head still vouches for
    assert first.good.seq == json.loads(kept.segments[0].read_bytes().splitlines()[-1])["seq"]


def test_an_audit_that_was_begun_again_is_found_by_heads(whole: Kept, tmp_path: Path) -> None:
    kept = whole.copy(tmp_path / "kept")
    for path in kept.segments:
        path.unlink()
    audit = kept.open()
    work(audit, 30)
    audit.close()
    assert verify(kept.audit).ok
    assert "rewritten" in kinds(kept.verify())


def test_a_tail_that_was_cut_before_a_restart_is_found_by_heads(whole: Kept, tmp_path: Path) -> None:
    kept = whole.copy(tmp_path / "kept")
    edit(kept.segments[2], lambda lines: lines.__delitem__(slice(-2, None)))
    audit = kept.open()
    work(audit, 10)
    audit.close()
    assert verify(kept.audit).ok
    assert kinds(kept.verify()) == {"rewritten"}


def test_heads_of_another_key_and_heads_that_were_altered_are_named(whole: Kept, tmp_path: Path) -> None:
    kept = whole.copy(tmp_path / "kept")
    new_key(kept.folder, "other", "public")
    findings = kept.verify()
    assert {(f.kind, f.line) for f in findings.found} == {("signature", 1)}
    assert [f.segment for f in findings.found] == [f"{n:08}.heads" for n in (1, 2, 3)]
    assert findings.covered == 0

    kept = whole.copy(tmp_path / "kept")
    path = kept.heads / "00000002.heads"
    head = json.loads(path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b'"ts":1', b'"ts":2'))
    assert [(f.kind, f.segment, f.seq) for f in kept.verify().found] == [
        ("signature", path.name, head["seq"])
    ]
    path.write_bytes(b"nonsense\n")
    assert [(f.kind, f.segment, f.line) for f in kept.verify().found] == [("unreadable", path.name, 1)]


@QUICK
@given(data=st.data())
def test_any_byte_of_a_head_that_is_flipped_is_found(spoilt: Kept, data: st.DataObject) -> None:
    path = sorted(spoilt.heads.iterdir())[data.draw(st.integers(0, 2))]
    with put_back(path) as before:
        raw = bytearray(before)
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        found = spoilt.verify().found
        assert (found[0].segment, found[0].line) == (path.name, raw[:at].count(b"\n") + 1)


def test_bytes_of_any_kind_are_found_in_bounded_memory(tmp_path: Path) -> None:
    kept = new(tmp_path)
    audit = kept.open(segment_bytes=1 << 30)
    work(audit, 3)
    audit.close()
    with kept.segments[0].open("r+b") as file:
        file.truncate(64 << 20)  # a hole: one line of 64 MiB of zeros
    with kept.segments[0].open("ab") as file:
        file.write(b"\n" * 20_000)
    tracemalloc.start()
    findings = verify(kept.audit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (findings.found[0].kind, findings.found[0].good.seq) == ("unreadable", 7)
    assert findings.more > 15_000
    assert peak < 8 << 20
