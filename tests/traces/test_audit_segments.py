"""The durable audit: one sync for all that wait, segments, restarts, heads, and what fails it."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from warren.traces.audit import AuditFile, Event
from warren.traces.audit.heads import Head
from warren.traces.audit.keys import FileSigner
from warren.traces.audit.verify import verify

from tests.traces.audits import Kept, event, new, work


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return new(tmp_path)


def lines(kept: Kept) -> list[dict[str, Any]]:
    return [json.loads(line) for path in kept.segments for line in path.read_bytes().splitlines()]


def heads(kept: Kept) -> list[dict[str, Any]]:
    files = sorted(kept.heads.glob("*.heads"))
    return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


def fd_of(path: Path) -> int:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                return int(name)
        except FileNotFoundError:
            continue
    raise AssertionError(f"{path} is not open")


async def test_all_that_wait_share_a_sync_and_what_is_recorded_is_on_the_disk(kept: Kept) -> None:
    audit = kept.open()
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600
    acted: list[int] = []

    async def act(n: int) -> None:
        number, wait = audit.intent(event(n))
        assert wait is not None
        await wait.durable()
        acted.append(n)
        audit.outcome(number, event(n), 0)

    async with trio.open_nursery() as nursery:
        for n in range(64):
            nursery.start_soon(act, n)
    audit.close()
    assert sorted(acted) == list(range(64))
    # The intents came before any outcome: they waited together.
    assert [line["kind"] for line in lines(kept)] == ["begin"] + ["intent"] * 64 + ["outcome"] * 64
    assert kept.verify().ok


async def test_who_is_cancelled_while_it_syncs_holds_nobody_up(kept: Kept) -> None:
    audit = kept.open()
    reached: list[str] = []

    async def act(name: str, scope: trio.CancelScope) -> None:
        with scope:
            _, wait = audit.intent(event(1))
            assert wait is not None
            await wait.durable()
            reached.append(name)

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        first.cancel()
        nursery.start_soon(act, "first", first)
        nursery.start_soon(act, "second", second)
    assert reached == ["second"]
    audit.close()


def test_segments_end_by_age_too(kept: Kept) -> None:
    now = [1000.0]
    audit = AuditFile(kept.audit, segment_seconds=60, now=lambda: now[0])
    work(audit, 2)
    now[0] += 61
    work(audit, 2, first=3)
    audit.close()
    assert [path.name for path in kept.segments] == ["00000001.log", "00000002.log"]
    assert verify(kept.audit).ok


async def test_segments_that_end_while_others_wait_are_synced_too(kept: Kept) -> None:
    audit = kept.open(segment_bytes=2000)

    async def act(n: int) -> None:
        number, wait = audit.intent(event(n))
        assert wait is not None
        await wait.durable()
        audit.outcome(number, event(n), 0)

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(act, n)
        await audit.tick()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept.segments) > 10
    ends = {json.loads(path.read_bytes().splitlines()[-1])["seq"] for path in kept.segments[:-1]}
    assert ends <= {head["seq"] for head in heads(kept)}
    audit.close()
    assert kept.verify().ok


async def test_a_head_each_second_while_there_is_news(kept: Kept, autojump_clock: object) -> None:
    taken: list[Head] = []
    arrived = trio.Event()

    def place(head: Head) -> None:
        taken.append(head)
        trio.from_thread.run_sync(arrived.set)

    audit = AuditFile(kept.audit, signer=FileSigner(kept.key), heads=place)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audit.keep)
        for n in range(3):
            work(audit, 2, first=n)
            began = trio.current_time()
            await arrived.wait()
            arrived = trio.Event()
            assert len(taken) == n + 1
            assert trio.current_time() - began >= 0.9
        await trio.sleep(60)
        assert [head.seq for head in taken] == [5, 9, 13]
        nursery.cancel_scope.cancel()
    audit.close()
    assert len(taken) == 3
    assert taken[-1].h == lines(kept)[-1]["h"]


async def test_counts_of_a_flood_come_without_another_denial(kept: Kept) -> None:
    now = [1000.0]
    audit = AuditFile(kept.audit, clock=lambda: now[0])
    for _ in range(100):
        audit.note(Event(1, "any", "Tlopen", "/x", "denied"), 403)
    now[0] += 1
    await audit.tick()
    assert lines(kept)[-1]["detail"] == "n=84 Tlopen=84"
    audit.close()


async def test_a_second_place_that_is_away_is_said_and_gets_the_newest_head_later(kept: Kept) -> None:
    said: list[str] = []
    taken: list[Head] = []
    away = [True]

    def place(head: Head) -> None:
        if away[0]:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        taken.append(head)

    audit = AuditFile(kept.audit, signer=FileSigner(kept.key), heads=place, tell=said.append)
    for n in range(3):
        work(audit, 1, first=n)
        await audit.tick()
    assert said == ["the heads of the audit are away: No route to host"]
    away[0] = False
    await audit.tick()
    assert said[1:] == ["the heads of the audit are taken again"]
    assert taken[-1].seq == lines(kept)[-2]["seq"]
    audit.close()
    assert [line["code"] for line in lines(kept) if line["op"] == "heads" and "code" in line] == [503]
    assert verify(kept.audit).ok


def test_one_directory_has_one_writer(kept: Kept) -> None:
    audit = kept.open()
    with pytest.raises(OSError, match="another server keeps its audit there") as caught:
        kept.open()
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(kept.audit))
    audit.close()
    kept.open().close()


# Restarts


def test_a_restart_goes_on_with_the_chain(kept: Kept) -> None:
    for run in range(4):
        audit = kept.open(segment_bytes=2000)
        work(audit, 5, first=run * 5)
        audit.close()
    assert kept.verify().ok
    assert [line["seq"] for line in lines(kept)] == list(range(1, len(lines(kept)) + 1))
    assert sum(line["kind"] == "intent" for line in lines(kept)) == 20
    assert len({line["chain"] for line in lines(kept) if "chain" in line}) == 1


def abandoned(kept: Kept, *, segment_bytes: int = 1 << 20, after: int = 0) -> list[int]:
    """A process that ends in the middle of three effects; returns their intents."""
    script = f"""
import os, sys
from tests.traces.audits import Kept, event, work
from pathlib import Path
audit = Kept(Path({str(kept.folder)!r})).open(segment_bytes={segment_bytes})
print(*(audit.intent(event(n))[0] for n in range(3)), flush=True)
work(audit, {after})
os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("after", [0, 30])
def test_intents_without_an_outcome_are_unknown_after_a_restart(kept: Kept, after: int) -> None:
    intents = abandoned(kept, segment_bytes=3000, after=after)
    assert (len(kept.segments) > 2) == (after > 0)  # what is open is carried from segment to segment
    kept.open().close()
    recovered = [line for line in lines(kept) if line["kind"] == "recovered"]
    assert [(line["open"], line["detail"]) for line in recovered] == [(intents, "unknown")]
    kept.open().close()
    assert sum(line["kind"] == "recovered" for line in lines(kept)) == 1
    assert kept.verify().ok


@pytest.mark.parametrize("cut", [1, 2, 40, 180])
def test_a_torn_line_stays_and_is_noted_in_the_next(kept: Kept, cut: int) -> None:
    audit = kept.open()
    work(audit, 3)
    path = audit.path
    os.truncate(path, path.stat().st_size - cut)
    os.close(fd_of(kept.audit))  # it died: its lock is gone, and it signs no last head
    rest = path.read_bytes().splitlines(keepends=True)[-1]
    assert [f.kind for f in verify(kept.audit).found] == ["torn"]

    for first in (10, 20):
        again = kept.open()
        work(again, 3, first=first)
        again.close()
    assert rest.rstrip(b"\n") in path.read_bytes()
    findings = kept.verify()
    assert findings.ok, findings.found
    if cut == 1:  # only its end was missing
        assert not findings.tears
    else:
        assert [(tear.kind, tear.segment) for tear in findings.tears] == [("torn", path.name)]
        altered = path.read_bytes().replace(rest, rest[:-1] + b"?", 1)
        path.write_bytes(altered)
        assert not verify(kept.audit).ok


def test_what_no_crash_leaves_is_damage_for_ever(kept: Kept) -> None:
    audit = kept.open()
    work(audit, 3)
    audit.close()
    path = kept.segments[0]
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*raw[:3], raw[3].replace(b"Drone", b"Queen"), *raw[4:]]))
    audit = kept.open()
    work(audit, 3)
    audit.close()
    for _ in range(2):
        found = verify(kept.audit).found
        assert [(f.kind, f.segment, f.good.line) for f in found] == [("damaged", path.name, 3)]
        audit = kept.open()
        work(audit, 1)
        audit.close()
    assert "rewritten" in {f.kind for f in kept.verify().found}  # what was set aside had been signed


@pytest.mark.parametrize(("left", "ok"), [(b"", True), (b'{"seq":', True), (b"zeros\0\n\0\n", False)])
def test_a_segment_without_a_good_line_is_set_apart(kept: Kept, left: bytes, ok: bool) -> None:
    audit = kept.open()
    work(audit, 3)
    audit.close()
    (kept.audit / "00000002.log").write_bytes(left)
    audit = kept.open(segment_bytes=1000)
    work(audit, 3)
    audit.close()
    apart = kept.audit / "00000002.0.apart"
    assert apart.read_bytes() == left
    findings = verify(kept.audit)
    assert findings.ok == ok
    assert findings.tears or findings.found
    assert kept.segments[1].name == "00000002.log"
    apart.write_bytes(left + b"?")
    assert "altered" in {f.kind for f in verify(kept.audit).found}


# What fails it


FULL = """
import resource, sys, trio
from pathlib import Path
from tests.traces.audits import Kept, event

async def main():
    kept = Kept(Path(sys.argv[1]))
    audit = kept.open(tell=lambda said: print("said", said))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    done = refused = 0
    for n in range(60):
        try:
            number, wait = audit.intent(event(n))
            await wait.durable()
        except OSError as e:
            refused += 1
            text = f"{e.errno} {e.code} {e}"
            audit.outcome(0, event(n), 503)
        else:
            assert not refused, "an effect after a refusal"
            print("effect", event(n).path)
            audit.outcome(number, event(n), 0)
    print("refused", refused, audit.lost > 0, text)
    audit.close()

trio.run(main)
"""


def test_a_disk_that_takes_no_more_refuses_every_later_intent_and_says_so_once(kept: Kept) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(kept.folder)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    out = done.stdout.splitlines()
    effects = [line.split()[1] for line in out if line.startswith("effect")]
    assert 5 < len(effects) < 60
    assert [line for line in out if line.startswith("said")] == [
        "said the audit cannot be written: File too large; from now on every effect is refused"
    ]
    assert out[-1].startswith(f"refused {60 - len(effects)} True {errno.EIO} 503 ")
    assert "the audit cannot be written: File too large" in out[-1]
    assert kept.segments[0].stat().st_size == 8192
    # With room again the restart notes what was cut short, and every effect is there.
    kept.open().close()
    findings = kept.verify()
    assert findings.ok
    assert [tear.kind for tear in findings.tears] == ["torn"]
    raw = kept.segments[0].read_bytes()
    assert all(f'"path":"{path}"'.encode() in raw for path in effects)


async def test_a_sync_that_fails_refuses_all_that_wait_and_all_that_come(kept: Kept) -> None:
    said: list[str] = []
    audit = kept.open(tell=said.append)
    work(audit, 1)
    read, write = os.pipe()  # takes lines, and cannot be synced: the kernel says EINVAL
    os.dup2(write, fd_of(audit.path))
    refused: list[int] = []

    async def act(n: int) -> None:
        _, wait = audit.intent(event(n))
        assert wait is not None
        with pytest.raises(OSError, match="the audit cannot be written"):
            await wait.durable()
        refused.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(act, n)
        await wait_all_tasks_blocked()
    assert sorted(refused) == list(range(8))
    with pytest.raises(OSError, match="the audit cannot be written") as caught:
        audit.intent(event(9))
    assert caught.value.errno == errno.EIO
    assert said == ["the audit cannot be written: Invalid argument; from now on every effect is refused"]
    audit.outcome(1, event(1), 0)  # never raises
    audit.note(event(1), 0)
    assert audit.lost == 3  # with the refused intent
    await audit.tick()
    audit.close()
    os.close(read)
    os.close(write)


def test_after_close_nothing_is_recorded(kept: Kept) -> None:
    audit = kept.open()
    audit.close()
    audit.close()
    with pytest.raises(OSError, match="it was closed"):
        audit.intent(event(1))
    audit.note(event(1), 0)
    assert len(lines(kept)) == 1
