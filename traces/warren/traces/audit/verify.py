"""Verifying an audit: is it all there, as it was written, and as it was signed?

    findings = verify(DIR, HEADS, {key_id: checker})
    findings.ok        nothing was found
    findings.found     what, in which segment, line and sequence, and the last good line before it

Every byte is read once and memory is bounded. The chain alone finds what was changed by somebody who
could not or did not make a new chain: a byte, a line, a segment that is altered, gone, moved, doubled
or inserted. Behind such a place verifying goes on, so that one finding does not hide the next. A tail
that was cut at the end of a line and a history that was chained anew are found by signed heads alone.

A line that a crash cut short is no finding once the next start noted it, with its size and digest.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from warren.traces.audit.covered import Covered
from warren.traces.audit.findings import MOST, START, Finding, Findings
from warren.traces.audit.heads import Keys
from warren.traces.audit.lines import MAX_LINE, Aside, Line, Place, chained, parse, unseal
from warren.traces.audit.reading import pieces, segment_name, segments


def verify(
    directory: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None, keys: Keys | None = None
) -> Findings:
    """Look at every segment, and hold every head against it. KEYS None: signatures are not checked.

    Heads are listed first, so that a server may write both meanwhile.
    """
    walk = _Walk(Path(directory), Covered(heads, keys) if heads is not None else None)
    walk.run()
    return walk.findings


class _Gap:
    """Behind the last good line: what a good line may follow, to go on from there."""

    def __init__(self, good: Place) -> None:
        self.after: tuple[bytes, ...] = ()  # hashes
        self.seq = good.seq


class _Broken(Aside):
    """From the first break of a segment on: a restart sees no further, and may have noted all of it."""

    def __init__(self, good: Place, findings: Findings) -> None:
        super().__init__(good.h)
        self.good = good
        self.kept, self.more = len(findings.found), findings.more


class _Walk:
    def __init__(self, directory: Path, heads: Covered | None) -> None:
        self.directory = directory
        self.findings = Findings()
        self.heads = heads
        self.good = START
        self.chain = ""
        self.gap: _Gap | None = None
        self.broken: _Broken | None = None
        self.left: _Gap | None = None  # with which the segment before ended
        self.segment, self.number = 0, 0

    def run(self) -> None:
        """Segment by segment; afterwards what only heads can know."""
        found = segments(self.directory)
        expected = 1
        for number, path in found:
            if number != expected:
                last = f" to {segment_name(number - 1)}" if number - 1 > expected else ""
                self._find("dropped", segment_name(expected), 0, self.good.seq + 1,
                           f"{segment_name(expected)}{last} is missing")  # fmt: skip
            self.findings.segments += 1
            self._segment(number, path)
            expected = number + 1
        self.findings.last = self.good
        if self.heads is not None:
            self.heads.end(self)

    def _segment(self, number: int, path: Path) -> None:
        self.segment, self.number = number, 0
        self.left, self.gap, self.broken = self.gap, None, None
        raw = b""
        for raw in pieces(path):
            self.number += 1
            self.findings.lines += 1
            if not raw.endswith(b"\n") and len(raw) < MAX_LINE:
                break  # the end of the file, but not of a line
            self._take(raw)
        if not self.number:
            self._find("cut", path.name, 0, self.good.seq + 1, "the segment is empty")
        elif not raw.endswith(b"\n"):
            says = "the last line has no end: a crash that no start has noted yet, or a cut"
            self._find("torn", path.name, self.number, self.good.seq + 1, says)

    def _take(self, raw: bytes) -> None:
        self._piece(raw)
        if self.broken is not None:
            self.broken.add(raw)

    def _piece(self, raw: bytes) -> None:
        taken = unseal(raw)
        line = parse(raw) if taken is not None else None
        if taken is None or line is None:
            self._bad("unreadable", None, (), "this is no line of an audit")
            return
        body, stated = taken
        if self.number == 1:
            self._first(line, body, stated)
        elif self.broken is not None and self.broken.noted_by(line, body, stated):
            self._heals(self.broken, line, stated)
        elif chained(self.good.h, body) == stated and self.good.segment == self.segment:
            self._follows(line, stated)
        elif self.gap is not None and any(chained(h, body) == stated for h in self.gap.after):
            self._accept(line, stated)  # what was found where it follows stands
        else:
            self._misfit(line, body, stated)

    # A line that is good

    def _accept(self, line: Line, stated: bytes) -> None:
        if line.seq != self.good.seq + 1 and self.gap is None and self.number > 1:
            says = f"sequence {line.seq} follows {self.good.seq}"
            self._find("misnumbered", self._name(), self.number, line.seq, says)
        self.gap = None
        self.good = Place(self.segment, self.number, line.seq, stated)
        if line.kind in ("torn", "damaged") and line.path:
            self._apart(line)
        if self.heads is not None:
            self.heads.at(self)

    def _follows(self, line: Line, stated: bytes) -> None:
        if line.kind in ("torn", "damaged") and not line.path:
            says = f"{line.size} bytes that were {line.kind} lay before this line and are altered or gone"
            self._find("altered", self._name(), self.number, line.seq, says)
        self._accept(line, stated)

    def _heals(self, broken: _Broken, line: Line, stated: bytes) -> None:
        """The restart said what these bytes are, so what was found among them is said again by nobody."""
        del self.findings.found[broken.kept :]
        self.findings.more = broken.more
        self.good, self.gap, self.broken = broken.good, None, None
        self._noted(line)
        if self.heads is not None:
            self.heads.taken_back(self)
        self._accept(line, stated)

    def _first(self, line: Line, body: bytes, stated: bytes) -> None:
        """The first line of a segment names the last line of the one before it."""
        whole = line.kind == "begin" and chained(line.after.encode("utf-8", "replace"), body) == stated
        if not whole:
            self._misfit(line, body, stated)
            return
        if line.path != self._name():
            says = f"this file is the segment {line.path}"
            self._find("misplaced", self._name(), 1, line.seq, says)
        elif line.after.encode() not in (self.good.h, *(self.left.after if self.left is not None else ())):
            if line.of > self.good.seq:
                says = f"it follows sequence {line.of}, but the segment before ends at {self.good.seq}"
                self._find("dropped", self._name(), 1, line.seq, says)
            else:
                says = "the segment before it is not the one that it followed"
                self._find("altered", self._name(), 1, line.seq, says)
        if self.chain and line.chain != self.chain:
            says = "this segment belongs to another history"
            self._find("misplaced", self._name(), 1, line.seq, says)
        self.chain = self.chain or line.chain
        self._accept(line, stated)

    def _noted(self, line: Line) -> None:
        says = f"{line.size} bytes before this line are {line.kind}, noted when the server started again"
        finding = Finding(line.kind, self._name(), self.number, line.seq, says, self.good)
        if line.kind == "damaged":
            self.findings.add(finding)
        elif len(self.findings.tears) < MOST:
            self.findings.tears.append(finding)
        else:
            self.findings.tears_more += 1

    def _apart(self, line: Line) -> None:
        """A segment without a good line was moved aside; it must still be what was noted."""
        total, size = hashlib.sha256(), 0
        kept = self.directory / os.path.basename(line.path)
        try:
            for raw in pieces(kept):
                total.update(raw)
                size += len(raw)
        except OSError:
            size = -1
        if (size, total.hexdigest()) == (line.size, line.sha256):
            self._noted(line)
        else:
            self._find("altered", kept.name, 0, line.seq, "what was set apart is altered or gone")

    # A line that is not

    def _misfit(self, line: Line, body: bytes, stated: bytes) -> None:
        """A line that does not follow: say what it looks like, and from where one could go on."""
        last = self.gap.seq if self.gap is not None else self.good.seq
        previous = self.gap.after if self.gap is not None and self.gap.after else (self.good.h,)
        # If the hash was altered the next line follows what it should have been, else what it says.
        candidates = (stated, *(chained(h, body) for h in previous))
        if stated in previous or stated == self.good.h or line.seq == last:
            kind, says = "repeated", f"sequence {line.seq} stands here again"
        elif line.seq > last + 1:
            span = f"{last + 1} to {line.seq - 1}" if line.seq > last + 2 else f"{last + 1}"
            kind, says = "missing", f"sequence {span} should stand before this line"
        elif line.seq < last:
            kind, says = "misplaced", f"sequence {line.seq} stands behind {last}"
        else:
            kind, says = "altered", "the line or its hash was changed"
        self._bad(kind, line, candidates, says)

    def _bad(self, kind: str, line: Line | None, after: tuple[bytes, ...], says: str) -> None:
        if self.gap is None:
            self.gap = _Gap(self.good)
        if self.broken is None:
            self.broken = _Broken(self.good, self.findings)
        gap = self.gap
        seq = line.seq if line is not None else gap.seq + 1
        self._find(kind, self._name(), self.number, seq, says)
        gap.seq = seq if line is None or kind in ("altered", "missing") else gap.seq
        if after:
            gap.after = after

    def _name(self) -> str:
        return segment_name(self.segment)

    def _find(self, kind: str, segment: str, line: int, seq: int, says: str) -> None:
        self.findings.add(Finding(kind, segment, line, seq, says, self.good))
