"""What the bench is given where no hive runs, and where there are no recipes of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_pair
from warren.boot.harness.outcome import Asked
from warren.mount import dial
from warren.roles import machines
from warren.traces.audit import AuditMemory
from warren.tree import Dir, Refused, Text

from tests.sources import ROOT


async def test_a_bench_alone_builds_and_boots_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARREN_IMAGES", str(ROOT / ".cache/images"))
    outcome = await machines.alone(tmp_path).run("standin", Asked(accel="tcg"))
    assert outcome.well, outcome.text()


async def test_what_a_guest_does_is_audited_as_its_channels() -> None:
    audit = AuditMemory()
    said: list[str] = []
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machines._serve, audit, theirs, "vm/boot-3", Dir({"x": Text(str, said.append)}))
        async with dial(ours, uname="root") as files:
            await files.write("/x", b"mine")
        await trio.aclose_forcefully(ours)
    assert said == ["mine"]
    assert {line.subject for line in audit.lines} == {"vm/boot-3"}


async def test_without_recipes_there_are_no_images_and_the_reason(tmp_path: Path) -> None:
    empty = machines._Empty(Refused(503, "the recipes of images are not here"))
    assert empty.names() == ()
    for asked in (empty.find, empty.latest):
        with pytest.raises(Refused, match="recipes of images are not here"):
            asked("standin")
    with pytest.raises(Refused, match="recipes of images are not here"):
        await empty.build("standin")
