"""Conversations recorded from real Linux kernels, replayed against the servers of today.

What a recording shows cannot be forgotten: if a reply of ours changes, the kernels that were recorded
would see another server, and this says where.
"""

from pathlib import Path

import pytest
import trio
import trio.testing
from warren.auth.rights import Policy
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.traces.audit import AuditMemory
from warren.traces.record import Split, load
from warren.traces.replay import Different, Expect, Replay
from warren.traces.ring import TraceRing

from tests.vm.record import DEMO_ROWS, DISK_ROWS, GOLDEN, furnish

RECORDINGS = sorted(GOLDEN.glob("*.9p"))


def export(recording: Path, tmp_path: Path) -> Export:
    if recording.stem.endswith("demo"):
        return Export(Demo(), Policy.parse(DEMO_ROWS), AuditMemory(), TraceRing())
    furnish(tmp_path / "served")
    return Export(Disk(tmp_path / "served"), Policy.parse(DISK_ROWS), AuditMemory(), TraceRing())


async def replay(recording: Path, to: Export) -> Replay:
    """Speak the client's half of a recording, and compare the server's."""
    ours, theirs = trio.testing.memory_stream_pair()
    running, frames = Replay(load(recording)), Split()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, to, theirs, "any")
        while (step := running.next()) is not None:
            if isinstance(step, bytes):
                await ours.send_all(step)
                continue
            with trio.move_on_after(10) as patience:
                data = await ours.receive_some()
            assert not patience.cancelled_caught, f"no reply for {step} of {recording.name}"
            assert data, f"the connection was closed before {step} of {recording.name}"
            for frame in frames.feed(data):
                running.got(frame)
        await ours.aclose()
    return running


def test_there_are_recordings_of_both_dialects_and_both_trees() -> None:
    names = {p.stem.removeprefix("linux-6.1-") for p in RECORDINGS}
    assert names >= {"dotl-disk", "dotl-demo", "plain-disk", "plain-demo"}


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda p: p.stem)
async def test_a_kernel_hears_what_it_was_recorded_to_hear(recording: Path, tmp_path: Path) -> None:
    done = await replay(recording, export(recording, tmp_path))
    assert done.compared > 50


async def test_a_changed_reply_is_noticed(tmp_path: Path) -> None:
    recording = next(p for p in RECORDINGS if p.stem.endswith("dotl-disk"))
    other = export(recording, tmp_path)
    (tmp_path / "served" / "hello").write_text("hullo, world\n")
    with pytest.RaisesGroup(Different):
        await replay(recording, other)


def test_a_step_that_is_no_frame_is_an_expectation() -> None:
    running = Replay(load(RECORDINGS[0]))
    assert isinstance(running.next(), bytes)
    assert isinstance(running.next(), Expect)


def test_a_damaged_recording_says_where(tmp_path: Path) -> None:
    cut = tmp_path / "cut.9p"
    cut.write_bytes(RECORDINGS[0].read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged at byte"):
        load(cut)
    cut.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a recorded conversation"):
        load(cut)
