"""Heads held against the lines as these go by, in constant memory: both are in the order of their making."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from warren.traces.audit.findings import MOST, START, Finding, Findings
from warren.traces.audit.heads import Head, Keys, read_heads
from warren.traces.audit.lines import Place
from warren.traces.audit.reading import segment_name


class Walked(Protocol):
    """Who goes over the lines: the last good one, the history it belongs to, and where findings go."""

    good: Place
    chain: str
    findings: Findings


class Covered:
    """Heads in the order they were signed, held against the lines as these go by."""

    def __init__(self, directory: str | os.PathLike[str], keys: Keys | None) -> None:
        self.keys = keys
        self.matched = START
        self.told = False
        self._seen: tuple[str, int, str] = ("", 0, "")
        self._coming = self._read(read_heads(directory))
        self._problems: list[tuple[str, str, int, int, str]] = []
        self.next: Head | None = None
        self._where = ("", 0)
        self._advance()

    def _read(self, found: Iterator[tuple[str, int, tuple[Head, bytes] | None]]) -> Iterator[Head]:
        for name, number, parsed in found:
            self._where = (name, number)
            if parsed is None:
                self._problem("unreadable", 0, "this is no head")
                continue
            head, body = parsed
            if self.keys is not None:
                checker = self.keys.get(head.key)
                if checker is None:
                    self._problem("signature", head.seq, f"the head is signed by the unknown key {head.key}")
                    continue
                if not checker.check(bytes.fromhex(head.sig), body):
                    self._problem("signature", head.seq, "the signature of the head is wrong")
                    continue
            chain, seq, _ = self._seen
            if (head.chain, head.seq, head.h) == self._seen:
                continue
            if head.chain == chain and head.seq <= seq:
                says = f"sequence {head.seq} was signed after {seq}: the history was taken back"
                self._problem("rewritten", head.seq, says)
                continue
            self._seen = (head.chain, head.seq, head.h)
            yield head

    def _problem(self, kind: str, seq: int, says: str) -> None:
        if len(self._problems) < MOST:
            self._problems.append((kind, *self._where, seq, says))

    def _advance(self) -> None:
        self.next = next(self._coming, None)

    def _settle(self, walk: Walked) -> None:
        for kind, name, number, seq, says in self._problems:
            walk.findings.add(Finding(kind, name, number, seq, says, self.matched))
        self._problems.clear()

    def at(self, walk: Walked) -> None:
        """The walk is at a good line: compare every head up to it."""
        line = walk.good
        self._settle(walk)
        while self.next is not None and (self.next.chain != walk.chain or self.next.seq <= line.seq):
            head = self.next
            signed_here = (head.chain, head.seq, head.h.encode("utf-8", "replace"))
            if signed_here == (walk.chain, line.seq, line.h):
                self.matched = line
                walk.findings.heads += 1
                walk.findings.unchecked += self.keys is None
                walk.findings.covered = line.seq
            elif not self.told:
                self.told = True  # every later head tells the same
                if head.chain != walk.chain:
                    says = f"a head was signed for another history, {head.chain}: this one replaces it"
                else:
                    since = f"those after {self.matched.seq} are not the ones that were signed"
                    says = f"no line {head.seq} has the hash that was signed: {since}"
                segment = segment_name(head.segment)
                walk.findings.add(Finding("rewritten", segment, line.line, head.seq, says, self.matched))
            self._advance()
            self._settle(walk)

    def taken_back(self, walk: Walked) -> None:
        """The walk is at an earlier good line again: a restart set aside what came after it."""
        if self.matched.seq > walk.good.seq:
            segment = segment_name(self.matched.segment)
            says = f"what was set aside had been signed, up to sequence {self.matched.seq}"
            walk.findings.add(
                Finding("rewritten", segment, self.matched.line, self.matched.seq, says, walk.good)
            )
            self.matched = walk.good
            walk.findings.covered = walk.good.seq

    def end(self, walk: Walked) -> None:
        """No line is left; heads that are left speak of lines that are gone."""
        newest = None
        while self.next is not None:
            newest = self.next
            self._advance()
        self._settle(walk)
        if newest is None:
            return
        good = walk.good
        if newest.chain != walk.chain and walk.chain:
            says = f"a head was signed for another history, {newest.chain}: this one replaces it"
            kind = "rewritten"
        else:
            says = f"the audit ends at sequence {good.seq}, but {newest.seq} was signed at {newest.ts:.3f}"
            kind = "cut"
        walk.findings.add(Finding(kind, segment_name(newest.segment), 0, newest.seq, says, good))
