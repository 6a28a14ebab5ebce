"""/log: what happened, for people: events, denials and the audit as files that grow."""

import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock
from warren.auth.rights import Policy
from warren.check.tree import check_tree
from warren.servers.demo import Demo
from warren.servers.log import DENIED, EVENTS, Log
from warren.servers.log.lines import DiskLines, MemoryLines
from warren.traces.audit import AuditFile, AuditMemory, Event, Recorded
from warren.traces.audit.reading import lines as audit_lines
from warren.traces.audit.text import SegmentText, audit_text
from warren.traces.denial import Denial, denial
from warren.tree import Dir

from tests.servers.clock import BEGAN, StillClock, TrioClock
from tests.servers.reach import attributes_of, files_of, reached
from tests.wire import O_RDWR, RefusedBy, export_of, served


def refused(n: int = 0, actor: str = "any", reason: str = "denied") -> Denial:
    return Denial(actor, "", "Tlopen", f"/secret/{n}", 403, reason, n + 1)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


# The tree


async def test_it_is_a_tree(autojump_clock: MockClock, tmp_path: Path) -> None:
    log = Log(tmp_path, TrioClock(), audit=audit_text(AuditMemory()), bound=200)
    for n in range(20):
        log.event("tick", n=n)
    feeds = {"/events": lambda files: files.write("/ctl", b"note fed\n")}
    await check_tree(lambda: nullcontext(log), feeds=feeds)
    await check_tree(lambda: nullcontext(Log(None, TrioClock())))
    log.close()


async def test_an_event_is_in_the_stream_and_in_the_file(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    async with files_of(log) as files:
        stream = await files.open("/events", os.O_RDONLY | os.O_NONBLOCK)
        log.event("joined", name="drone-1", said="two words")
        record = await stream.record()
        assert record.decode() == f"seq=1 ts={BEGAN:.3f} kind=joined name=drone-1 said='two words'\n"
        assert await files.read(f"/{EVENTS}") == record
        assert (tmp_path / EVENTS).read_bytes() == record
        log.event("left")
        assert await files.read(f"/{EVENTS}") == record + await stream.record()
        assert (tmp_path / EVENTS).stat().st_mode & 0o777 == 0o600
        await stream.close()


async def test_the_files_take_no_write_and_no_truncation(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock(), audit=audit_text(AuditMemory()))
    log.event("first")
    async with files_of(log) as files:
        for name in (EVENTS, DENIED, "audit"):
            for flags in (os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC):
                with pytest.raises(OSError, match="cannot be written"):
                    await files.open(f"/{name}", flags)
            with pytest.raises(OSError, match="cannot be truncated"):
                await files.truncate(f"/{name}", 0)
            with pytest.raises(OSError, match="nothing can be removed here"):
                await files.remove(f"/{name}")
        assert await files.read(f"/{EVENTS}") == (tmp_path / EVENTS).read_bytes() != b""


async def test_a_reader_that_follows_sees_each_line_as_it_comes(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    async with files_of(log) as files, await files.open(f"/{EVENTS}") as file:
        at, seen = 0, b""
        for n in range(5):
            log.event("tick", n=n)
            assert (await file.stat()).size > at
            piece = await file.pread(1000, at)
            at, seen = at + len(piece), seen + piece
        assert seen.count(b"\n") == 5


# Notes


async def test_a_note_says_who_noted_it(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    async with files_of(log, subject="local") as files:
        await files.write("/ctl", b"note crashed service=drone-1 reason=signal_9\nnote odd said='a b'\n")
    first, second = lines_of(tmp_path / EVENTS)
    assert first.endswith("kind=crashed service=drone-1 reason=signal_9 by=local")
    assert second.endswith("kind=odd said='a b' by=local")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("note", "kind is missing"),
        ("note 'two words'", "is no kind"),
        ("note x word", "is not key=value"),
        ("note x Big=1", "is not key=value"),
        ("note x seq=1", "seq is set already"),
        ("note x by=queen", "by is set already"),
        ("note x a=1 a=2", "a is set already"),
        ("note x kind=y", "kind is given twice"),
        ("note x " + " ".join(f"a{n}=1" for n in range(17)), "at most 16 pairs"),
        ("note x a=" + "b" * 1100, "1024 characters"),
        ("forge x", "400 unknown_verb: .*the verbs are note"),
    ],
)
async def test_a_bad_note_is_refused_and_writes_nothing(line: str, says: str, tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    async with files_of(log) as files:
        with pytest.raises(OSError, match=says):
            await files.write("/ctl", line.encode())
    assert (log.ring.seq, (tmp_path / EVENTS).read_bytes()) == (0, b"")


async def test_a_note_cannot_break_its_line(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    log.event("x", said="a\nseq=99 ts=0 kind=forged", more="\udcff\0")
    log.denied(refused()._replace(path="/a\nts=1 actor=local", actor="any"))
    assert len(lines_of(tmp_path / EVENTS)) == len(lines_of(tmp_path / DENIED)) == 1
    assert attributes_of((tmp_path / DENIED).read_bytes())["path"] == r"/a\x0ats=1 actor=local"


# Denials


async def test_every_denial_of_an_export_is_a_line_with_its_trace(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    export = export_of(Dir({"log": log, "demo": Demo()}), ["any read /log/**", "local ctl /demo/ctl#say"])
    export.denied = log.denied
    async with reached(export, "spiffe://hive/user/eve") as files:
        with pytest.raises(OSError, match="you may not") as caught:
            await files.open("/log/ctl", os.O_RDWR)
        [line] = (await files.read(f"/log/{DENIED}")).splitlines()
    assert caught.value.strerror is not None
    trace = caught.value.strerror.rpartition("trace=")[2]
    assert attributes_of(line) == {
        "ts": f"{BEGAN:.3f}", "actor": "spiffe://hive/user/eve", "via": "", "op": "Tlopen",
        "path": "/log/ctl", "code": "403", "reason": "denied", "trace": trace,
    }  # fmt: skip
    assert export.trace.find(int(trace, 16)) is not None


async def test_refused_attaches_verbs_and_handshakes_are_denials(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    async with served(Demo(), ["local ctl /ctl#say"]) as service:
        service.export.denied = log.denied
        stranger = service.connect("any")
        await stranger.version()
        with pytest.raises(RefusedBy):
            await stranger.attach()
        wire = await service.dial(subject="local")
        await wire.open("ctl", 1, O_RDWR)
        with pytest.raises(RefusedBy):
            await wire.write(1, b"reset\n")
        service.export.refused_handshake("192.0.2.7", "expired", "the certificate has expired")
        service.export.replace(Policy())
        with pytest.raises(RefusedBy):
            await wire.read(1)
    said = [attributes_of(line.encode()) for line in lines_of(tmp_path / DENIED)]
    assert [(d["actor"], d["op"], d["path"], d["code"], d["reason"]) for d in said] == [
        ("any", "Tattach", "/", "403", "denied"),
        ("local", "Twrite", "/ctl", "403", "denied"),
        ("-", "handshake", "192.0.2.7", "401", "expired"),
        ("local", "Tread", "/ctl", "403", "denied"),
    ]
    assert len({d["trace"] for d in said}) == 4


async def test_a_session_whose_token_ends_is_a_denial(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    async with served(Demo(), ["local read /**"]) as service:
        service.export.denied = log.denied
        await service.dial(subject="local")
        [session] = service.export.sessions
        session.end("token_expired")
        session.end("token_revoked")
    [line] = lines_of(tmp_path / DENIED)
    told = attributes_of(line.encode())
    said = [told[key] for key in ("actor", "op", "code", "reason")]
    assert said == ["local", "token", "401", "token_expired"]


def test_who_acts_for_another_is_named_beside_them() -> None:
    both = denial("spiffe://h/user/bob via=spiffe://h/role/QueenPrimary/q", "Tread", "/x", 403, "denied", 1)
    assert (both.actor, both.via) == ("spiffe://h/user/bob", "spiffe://h/role/QueenPrimary/q")


async def test_a_flood_of_denials_is_counted_and_never_a_line_each(tmp_path: Path) -> None:
    clock = StillClock()
    log = Log(tmp_path, clock)
    for n in range(5000):
        log.denied(refused(n))
    log.denied(refused(1, "spiffe://hive/user/ann"))
    flood = len(lines_of(tmp_path / DENIED))
    assert flood < 40
    assert "actor=spiffe://hive/user/ann" in lines_of(tmp_path / DENIED)[-1], "others are still heard"
    clock.at += 1.1
    log.denied(refused(2, "spiffe://hive/user/ann"))
    *_, last, following = lines_of(tmp_path / DENIED)
    assert "actor=spiffe://hive/user/ann" in following
    counted = str(5000 - flood + 1)
    assert attributes_of(last.encode()) | {"ts": ""} == {
        "ts": "", "actor": "any", "op": "denials", "n": counted, "Tlopen": counted,
    }  # fmt: skip
    assert log.reasons[("denied",)] == 5002


async def test_counts_of_a_flood_are_written_when_its_second_is_over(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    log = Log(tmp_path, TrioClock())
    nursery.start_soon(log.keep)
    for n in range(100):
        log.denied(refused(n))
    await trio.sleep(2.5)
    assert "op=denials n=84" in lines_of(tmp_path / DENIED)[-1]
    log.close()
    nursery.cancel_scope.cancel()


# Counts


async def test_crashes_and_denials_are_counted_by_reason() -> None:
    log = Log(None, StillClock())
    async with files_of(log) as files:
        await files.write("/ctl", b"note crashed service=drone-1 reason=signal_9\n" * 2)
        await files.write("/ctl", b"note crashed service=fuse reason=exit_1\n")
        log.denied(refused(reason="token_expired"))
        said = (await files.read("/metrics")).decode()
        assert 'rejected_total{reason="ServiceCrashed"} 3\n' in said
        assert 'rejected_total{reason="token_expired"} 1\n' in said
        assert 'service_crashed_total{service="drone-1",reason="signal_9"} 2\n' in said
        assert 'events_total{kind="crashed"} 3\n' in said
        people = (await files.read("/stats")).decode()
        assert "service_crashed_total service=fuse reason=exit_1 n=1\n" in people


def test_names_in_counts_are_bounded() -> None:
    log = Log(None, StillClock())
    for n in range(1000):
        log.event("crashed", service=f"s{n}", reason=f"r{n}")
        log.event(f"kind{n}")
        log.denied(refused(reason=f"reason{n}"))
    assert max(len(log.kinds), len(log.reasons), len(log.crashes)) <= 65
    assert sum(log.crashes.values()) == 1000
    assert log.reasons[("ServiceCrashed",)] == 1000


# Files that are full, and what outlives a restart


async def test_a_full_file_is_rotated_and_the_ones_before_it_are_in_the_tree(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock(), bound=300, kept=2)
    async with files_of(log) as files:
        for n in range(60):
            log.event("tick", n=n)
        names = {d.name for d in await files.readdir("/")}
        assert {EVENTS, f"{EVENTS}.1", f"{EVENTS}.2"} <= names
        assert f"{EVENTS}.3" not in names
        parts = [await files.read(f"/{EVENTS}{end}") for end in (".2", ".1", "")]
        whole = b"".join(parts)
        assert all(0 < len(part) <= 300 for part in parts)
        numbers = [int(n) for n in re.findall(rb"seq=(\d+) ", whole)]
        assert numbers == list(range(numbers[0], 61)), "no line is lost between the files"
        assert sorted(os.listdir(tmp_path)) == [EVENTS, f"{EVENTS}.1", f"{EVENTS}.2", DENIED]
        for name in (f"{EVENTS}.3", f"{EVENTS}.0", f"{EVENTS}.01", f"{DENIED}.1", f"{EVENTS}.x", "audit.1"):
            assert not await files.walk_exists(f"/{name}")


def test_a_restart_goes_on_where_the_file_ended(tmp_path: Path) -> None:
    log = Log(tmp_path, StillClock())
    log.event("one")
    log.event("two")
    log.close()
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b"seq=3 ts=1 ki")  # cut short by a crash
    again = Log(tmp_path, StillClock())
    again.event("three")
    kinds = [line.rpartition("kind=")[2] for line in lines_of(tmp_path / EVENTS)]
    assert kinds == ["one", "two", "seq=3 ts=1 ki", "three"]
    assert lines_of(tmp_path / EVENTS)[-1].startswith("seq=4 ")
    again.close()


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The disk is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_full_disk_loses_lines_counts_them_and_says_so_once(tmp_path: Path) -> None:
    told: list[str] = []
    log = Log(tmp_path, StillClock(), told.append)
    log.event("before")
    cursor = log.ring()
    size = (tmp_path / EVENTS).stat().st_size
    with no_file_beyond(size + 20):
        for _ in range(5):
            log.event("lost")
    assert (tmp_path / EVENTS).stat().st_size == size, "no piece of a line is left behind"
    async with files_of(log) as files:
        assert f"log_lost_total file={EVENTS} n=5" in (await files.read("/stats")).decode()
        assert f"log_failing file={EVENTS} n=1" in (await files.read("/stats")).decode()
        log.event("after")
        assert f"log_failing file={EVENTS} n=0" in (await files.read("/stats")).decode()
    assert [line.rpartition("kind=")[2] for line in lines_of(tmp_path / EVENTS)] == ["before", "after"]
    assert len(told) == 2
    assert told[0].startswith(f"{EVENTS} cannot be written")
    assert told[1] == f"{EVENTS} is written again; 5 lines were lost"
    said = [cursor.next_nowait().split(b"kind=")[1].split()[0] for _ in range(log.ring.seq - 1)]
    assert said.count(b"log") == 2
    assert said.count(b"lost") == 5, "the stream has what the disk has not"
    log.close()


def test_lines_in_memory_are_bounded() -> None:
    lines = MemoryLines(bound=100, kept=1)
    for n in range(1000):
        lines.append(f"line {n}")
    older = lines.older(1)
    assert older is not None
    assert lines.size() <= 100 >= older.size()
    assert lines.newest() == "line 999"
    assert lines.older(2) is None is lines.older(0)
    assert lines.read_at(0, 4) == b"line"


def test_a_file_of_lines_that_is_closed_is_empty_and_harmless(tmp_path: Path) -> None:
    lines = DiskLines(tmp_path / "x")
    lines.append("one")
    lines.close()
    lines.close()
    assert lines.read_at(0, 10) == b""
    lines.append("two")
    assert (lines.lost, lines.failed) == (1, "")
    assert (tmp_path / "x").read_text() == "one\n"


# The audit as a text


async def test_the_audit_is_one_text_over_all_its_segments(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path / "audit", segment_bytes=2000)
    text = audit_text(audit)
    assert isinstance(text, SegmentText)
    log = Log(tmp_path / "log", StillClock(), audit=text)
    async with files_of(log) as files:
        seen = b""
        for n in range(60):
            audit.note(Event(1, "ann", "read", f"/path/{n}"), 0)
            if n % 7 == 0:
                async with await files.open("/audit") as file:
                    while piece := await file.pread(777, len(seen)):
                        seen += piece
                    assert (await file.stat()).size == len(seen)
        whole = await files.read("/audit")
    assert len(list((tmp_path / "audit").glob("*.log"))) > 3
    assert whole == b"".join(raw for _, raw, _ in audit_lines(tmp_path / "audit"))
    assert whole.startswith(seen)
    assert text.read_at(len(whole), 10) == b""
    assert SegmentText(tmp_path / "audit").read_at(0, 10) == whole[:10]
    audit.close()
    log.close()


async def test_the_audit_in_memory_is_a_text_as_well() -> None:
    audit = AuditMemory(depth=10_000)
    text = audit_text(audit)
    assert text is not None
    for n in range(3):
        audit.note(Event(1, "ann", "read", f"/path/\udcff{n}"), 0)
    before = text.read_at(0, 100_000)
    assert before.count(b"\n") == 3
    assert rb"/path/\\udcff2" in before
    for _ in range(9000):
        audit.note(Event(1, "ann", "read", "/path" * 40), 0)
    assert text.size() <= 1 << 20
    assert text.read_at(0, 1) == b"{", "what is forgotten ends with a line"


def test_an_audit_of_another_kind_has_no_text() -> None:
    class Elsewhere:
        """Satisfies the port, and keeps nothing here."""

        def intent(self, event: Event) -> Recorded:
            return Recorded(1, None)

        def outcome(self, intent: int, event: Event, code: int) -> None: ...

        def note(self, event: Event, code: int) -> None: ...

    assert audit_text(Elsewhere()) is None
