"""What verifying finds: kinds, places, and what was looked at.

unreadable    no line of an audit
altered       the line or its hash was changed, or what a restart set apart was
missing       lines should stand before this one
repeated      a line that stands before already
misplaced     a line or a segment that belongs elsewhere
misnumbered   chained, but not numbered in turn
dropped       a segment, or the end of one, is gone
cut           the end is gone: an empty segment, or heads were signed for lines that are not there
torn          the last line has no end
damaged       a restart found bytes there that no crash of this program leaves
rewritten     the chain is whole, and not the one that was signed
signature     a head is not signed by a key that is known
"""

from typing import NamedTuple

from warren.traces.audit.lines import GENESIS, Place

MOST = 1000  # findings that are kept; the rest are counted
START = Place(0, 0, 0, GENESIS)


class Finding(NamedTuple):
    """Something that is not as it was written."""

    kind: str
    segment: str
    line: int  # 0: the segment as a whole
    seq: int  # 0: unknown
    says: str
    good: Place  # the last good line before it


class Findings:
    """All of them, and what was looked at."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.more = 0
        self.segments = 0
        self.lines = 0
        self.tears: list[Finding] = []  # noted by the restart that found them: no findings
        self.tears_more = 0
        self.last = START
        self.heads = 0  # that match a line
        self.unchecked = 0  # of these, without a key to check them
        self.covered = 0  # the newest sequence that a head vouches for

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.found

    def add(self, finding: Finding) -> None:
        """Keep it, or count it."""
        if len(self.found) < MOST:
            self.found.append(finding)
        else:
            self.more += 1
