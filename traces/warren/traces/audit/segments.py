"""The durable audit: DIR/NNNNNNNN.log, hash-chained JSON lines (0600), and heads of them.

    audit = AuditFile(DIR, signer=..., heads=...)
    nursery.start_soon(audit.keep)          a head each second while there is news
    audit.close()                           the last head

A line is in the kernel before `intent` returns and on the disk before the effect runs: intents that
wait together share one fdatasync. A segment ends by size or age; the next one's first line names its last.

A write or a sync that fails fails the audit for good: what is on the disk is unknown from there on, so
every later intent is refused, and `tell` says it once. A second place that takes no heads fails nothing:
it is said, it is written down, and the newest head is offered again each second.

A restart continues the chain (see `resume`). One process at a time has a directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import trio
from warren.traces.audit.heads import Heads, Signer, signed
from warren.traces.audit.lines import OPEN_AT_ONCE, Event, Line, Place, Recorded, seal
from warren.traces.audit.memory import Sequence
from warren.traces.audit.reading import segment_name
from warren.traces.audit.resume import find
from warren.tree.errors import Refused

SEGMENT_BYTES = 16 << 20  # a restart reads one segment: a second at most
SEGMENT_SECONDS = 86400.0
EVERY = 1.0
_ENDS_KEPT = 64  # heads of ended segments that wait for the second place
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Commit:
    """Lines up to a number are on the disk once this was waited for."""

    __slots__ = ("file", "number")

    def __init__(self, file: AuditFile, number: int) -> None:
        self.file = file
        self.number = number

    async def durable(self) -> None:
        """Cancelled leaves the line recorded and the effect undone."""
        await self.file.commit(self.number)


class AuditFile(Sequence):
    """The audit in a directory."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        signer: Signer | None = None,
        heads: Heads | None = None,
        tell: Callable[[str], None] = lambda said: None,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock, now)
        self.directory = Path(directory)
        self.failed: OSError | None = None
        self.lost = 0  # lines that could not be written since
        self._tell = tell
        self._signer, self._heads = signer, heads
        self._bytes, self._seconds = segment_bytes, segment_seconds
        self._fd = self._folder = -1
        self._lead = b""  # goes in one write with the next line, or a crash between would look like damage
        self._retired: list[int] = []  # segments that ended and are not synced yet
        self._listed = 0  # the newest segment whose name is on the disk
        self._syncing = False
        self._turn = trio.lowlevel.ParkingLot()
        self._ends: list[Place] = []
        self._headed = 0
        self._heads_away = False
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._resume()
        except BaseException:
            self._release()
            raise
        self._synced = self._at

    @property
    def path(self) -> Path:
        """The segment that is written."""
        return self.directory / segment_name(self._at.segment)

    # Beginning and rotating

    def _resume(self) -> None:
        self._folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                errno.EBUSY, "another server keeps its audit there", os.fspath(self.directory)
            ) from None
        found = find(self.directory)
        self._at, self._chain, self._began = found.at, found.chain, found.began
        self._size, self._open, self.seq = found.size, set(found.open), found.at.seq
        if found.at.segment:
            self._fd = os.open(self.path, _FLAGS, 0o600)
            if found.unended or (found.tails and not found.tails[0].ended):
                self._lead = b"\n"
        else:
            self._chain = secrets.token_hex(16)
            self._begin()
        for tail in found.tails:
            self._append("torn" if tail.kind == "torn" else "damaged", tail.apart,
                         size=tail.size, sha256=tail.sha256)  # fmt: skip
        self._append_open("recovered", "unknown")
        self._open.clear()
        os.fdatasync(self._fd)
        os.fsync(self._folder)
        self._listed = self._at.segment

    def _begin(self) -> None:
        """Begin the next segment; the last line of the one before is named in its first."""
        before = self._at
        self._at = Place(before.segment + 1, 0, before.seq, before.h)
        fd = os.open(self.path, _FLAGS | os.O_EXCL, 0o600)
        if self._fd >= 0:
            self._retired.append(self._fd)
            self._ends = [*self._ends, before][-_ENDS_KEPT:]
        self._fd, self._size, self._began = fd, 0, self._now()
        self._append("begin", self.path.name, of=before.seq, after=before.h.decode(), chain=self._chain)
        self._append_open("carried", "")

    def _append(
        self, kind: str, path: str = "", detail: str = "", *, of: int = 0, open: tuple[int, ...] = (),
        after: str = "", chain: str = "", size: int = 0, sha256: str = "",
    ) -> None:  # fmt: skip
        """A line about the audit itself. Raises what goes wrong."""
        self.seq += 1
        self._chain_on(
            Line(self.seq, self._now(), kind, 0, "", "audit", path, detail, of=of, open=open,
                 after=after, chain=chain, size=size, sha256=sha256)
        )  # fmt: skip

    def _append_open(self, kind: str, detail: str) -> None:
        numbers = sorted(self._open)
        for i in range(0, len(numbers), OPEN_AT_ONCE):
            self._append(kind, detail=detail, open=tuple(numbers[i : i + OPEN_AT_ONCE]))

    # Writing

    def _line(self, kind: str, event: Event, of: int = 0, code: int = 0) -> Line:
        if self.failed is None and (self._size >= self._bytes or self._now() - self._began >= self._seconds):
            try:
                self._begin()
            except OSError as e:
                self._fail(e)
        return super()._line(kind, event, of, code)

    def _write(self, line: Line) -> None:
        if self.failed is not None:
            self.lost += 1
            return
        try:
            self._chain_on(line)
        except OSError as e:
            self._fail(e)

    def _chain_on(self, line: Line) -> None:
        raw, h = seal(self._at.h, line)
        self._put(self._lead + raw)
        self._lead = b""
        self._at = Place(self._at.segment, self._at.line + 1, line.seq, h)

    def _put(self, raw: bytes) -> None:
        self._size += len(raw)
        written = os.write(self._fd, raw)
        while written < len(raw):  # the second try has the reason for the first
            written += os.write(self._fd, raw[written:])

    def _fail(self, e: OSError) -> None:
        if self.failed is None:
            self.failed = e
            self._tell(f"the audit cannot be written: {e.strerror or e}; from now on every effect is refused")

    def _refusal(self) -> OSError:
        assert self.failed is not None
        text = self.failed.strerror or str(self.failed)
        return Refused(503, f"the audit cannot be written: {text}", errno=errno.EIO)

    def intent(self, event: Event) -> Recorded:
        """Recorded; wait for `wait.durable()` before the effect."""
        self._write(self._line("intent", event))
        if self.failed is not None:
            raise self._refusal()
        self._open.add(self.seq)
        return Recorded(self.seq, Commit(self, self.seq))

    def outcome(self, intent: int, event: Event, code: int) -> None:
        """Record how it ended."""
        # Written before it is forgotten: a segment that begins with this line still carries the intent.
        super().outcome(intent, event, code)
        self._open.discard(intent)

    async def commit(self, number: int) -> None:
        """Return once line NUMBER is on the disk. Whoever comes first syncs for all that wait."""
        while self.failed is None and self._synced.seq < number:
            if self._syncing:
                await self._turn.park()
                continue
            self._syncing, upto, ended = True, self._at, list(self._retired)
            folder = self._folder if self._listed < upto.segment else -1
            try:
                await trio.to_thread.run_sync(_sync, [*ended, self._fd], folder)
                self._synced, self._listed = upto, upto.segment
                for fd in ended:
                    self._retired.remove(fd)
                    os.close(fd)
            except OSError as e:
                self._fail(e)
            finally:
                self._syncing = False
                self._turn.unpark_all()
        if self.failed is not None:
            raise self._refusal()

    # Heads

    async def keep(self) -> None:
        """Each second: counts of denials, and a head if there is news. Ends only if the audit failed.

        Cancelled leaves the newest head to the next call, or to `close`.
        """
        while self.failed is None:
            await trio.sleep(EVERY)
            await self.tick()

    async def tick(self) -> None:
        """What `keep` does each second."""
        self._write_counts()
        if self.failed is not None or self._at.seq == self._headed:
            return
        try:
            await self.commit(self._at.seq)
        except OSError:
            return  # said when it failed
        wanted, upto = self._wanted(), self._synced.seq
        self._handed(upto, await trio.to_thread.run_sync(self._hand_over, wanted))

    def _wanted(self) -> list[Place]:
        """The ends of segments first: their heads lie in their own files."""
        ends = [end for end in self._ends if end.seq < self._synced.seq]
        return [*ends, self._synced] if self._signer and self._heads else []

    def _hand_over(self, places: list[Place]) -> OSError | None:
        assert self._signer is not None or not places
        try:
            for place in places:
                if self._signer and self._heads:
                    self._heads(
                        signed(
                            self._chain, place.segment, place.seq, place.h.decode(), self._now(), self._signer
                        )
                    )
        except OSError as e:
            return e
        return None

    def _handed(self, upto: int, refused: OSError | None) -> None:
        if refused is None:
            self._headed = upto
            self._ends = [end for end in self._ends if end.seq >= upto]
        if (refused is not None) != self._heads_away:
            self._heads_away = refused is not None
            text = f"are away: {refused.strerror or refused}" if refused is not None else "are taken again"
            self._tell(f"the heads of the audit {text}")
            self.note(Event(0, "", "heads", "", text), 503 if refused is not None else 0)

    # Ending

    def close(self) -> None:
        """Write and sign what is left. Nothing can be recorded any more."""
        if self._fd < 0:
            return
        try:
            self._write_counts(now=True)
            if self.failed is None and self._at.seq != self._headed:
                _sync([*self._retired, self._fd], self._folder)
                self._synced = self._at
                refused = self._hand_over(self._wanted())
                if refused is not None:
                    self._handed(self._synced.seq, refused)
        except OSError as e:
            self._fail(e)
        finally:
            self._release()
            self.failed = self.failed or OSError(errno.EBADF, "it was closed")

    def _release(self) -> None:
        for fd in (*self._retired, self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._retired, self._fd, self._folder = [], -1, -1


def _sync(files: list[int], folder: int) -> None:
    for fd in files:
        os.fdatasync(fd)
    if folder >= 0:
        os.fsync(folder)
