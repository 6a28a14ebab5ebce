"""The harness: each verdict, on machines that are really started."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from warren.boot.harness.harness import BOOTED, ERROR, REFUSED, STAGES, Job, Report, _Run, run
from warren.boot.machines import recipe
from warren.boot.machines.qemu import Boots
from warren.boot.secure import firmware
from warren.tree import Node

from tests.boot import tiny
from tests.boot.shim import built, serve, standin
from tests.boot.without import without

MICROVM = recipe.load("standin-microvm")
REFUSAL = b'BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0): Access Denied\r\n'


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("shim"))


def job(folder: Path, *code: bytes, limit: float = 20) -> Job:
    return Job("tiny", replace(MICROVM, limit=limit), Boots(tiny.write(folder, *code)))


@pytest.mark.parametrize("name", ["standin-microvm", "standin-pc"])
async def test_the_stand_in_boots_and_every_stage_has_its_time(shim: Path, name: str) -> None:
    heard = bytearray()
    report = await run(standin(shim, name), serve, heard=heard.extend)
    assert (report.verdict, report.reason, report.code) == (BOOTED, "", 0), report.log
    assert report.exit == 85
    assert list(report.stages) == list(STAGES)
    assert all(0 <= ms < 20_000 for ms in report.stages.values())
    assert math.isclose(sum(report.stages.values()), report.total_ms)
    assert (report.said["kernel"], report.said["mmu"]) == ("standin", "ok")
    assert report.log
    assert heard.decode() == report.log
    assert report.values()["total_ms"] == round(report.total_ms, 1)


async def test_instructions_are_counted_alike_in_every_run(shim: Path) -> None:
    reports = [await run(standin(shim), serve, counted=True) for _ in range(5)]
    counts = [report.instructions or 0 for report in reports]
    assert all(list(report.counts) == ["fw", "kernel", "user"] for report in reports)
    early = {report.counts["fw"] + report.counts["kernel"] for report in reports}
    assert len(early) == 1, "nobody waits there"
    assert min(counts) > 10_000
    assert max(counts) <= min(counts) * 1.02, "a tick of the clock, or one more wait, and no more than that"
    assert (await run(standin(shim), serve)).instructions is None, "without -icount it is a number of ticks"


CASES: list[tuple[str, tuple[bytes, ...], str, str, int]] = [
    ("fails a self-test", (tiny.says(b"mmu: bad\r\n"), tiny.ends(tiny.FAILED)), REFUSED,
     "a self-test failed; the log ends with: mmu: bad", 403),
    ("ends in a fault", (tiny.says(b"#GP\n"), tiny.ends(tiny.FAULT)), ERROR,
     "ended before it was ready, status 15; the log ends with: #GP", 500),
    ("says all is well and was never ready", (tiny.ends(tiny.WELL),), ERROR,
     "ended before it was ready, status 85; the log is empty", 500),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "verdict", "says", "number"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_what_is_not_booted(
    tmp_path: Path, code: tuple[bytes, ...], verdict: str, says: str, number: int
) -> None:
    report = await run(job(tmp_path, *code), serve)
    assert (report.verdict, report.reason, report.code) == (verdict, says, number)
    assert math.isnan(report.total_ms)
    assert "total_ms" not in report.values()


@pytest.mark.parametrize(
    ("words", "then", "verdict", "says"),
    [
        ("page=999", "exit 0", REFUSED, "a self-test failed; the log ends with: root: mmu: "),
        ("no-bootinfo", "exit 0", ERROR, "ended before it was ready, status 89; the log ends with: root: "),
        ("nonsense", "exit 0", ERROR, "ended before it was ready, status 103; the log ends with: standin: "),
        ("", "fault null", ERROR, "ready, and then ended, status 99; the log ends with: standin: "),
    ],
    ids=["a self-test", "no BootInfo", "a bad command line", "a fault"],
)
async def test_what_the_stand_in_says_is_the_reason(
    shim: Path, words: str, then: str, verdict: str, says: str
) -> None:
    asked = standin(shim)
    report = await run(replace(asked, boots=replace(asked.boots, cmdline=words), then=then), serve)
    assert (report.verdict, report.reason[: len(says)]) == (verdict, says)


@pytest.mark.parametrize("code", [tiny.HANG, tiny.says(b"nearly\n") + tiny.HANG], ids=["silent", "talking"])
async def test_a_time_out_is_an_error(tmp_path: Path, code: bytes) -> None:
    before = tiny.children()
    report = await run(job(tmp_path, code, limit=0.3), serve)
    assert (report.verdict, report.code) == (ERROR, 504)
    assert report.reason.startswith("it was not ready within 0.3 s")
    assert tiny.children() == before


async def test_a_firmware_that_refuses_is_believed_at_once(tmp_path: Path) -> None:
    asked = job(tmp_path, tiny.says(REFUSAL), tiny.HANG)
    asked = replace(asked, seen=lambda serial: firmware.seen(serial, b"\0"))
    report = await run(asked, serve)
    assert (report.verdict, report.code) == (REFUSED, 403)
    assert report.reason.startswith("the firmware does not have it; the log ends with: BdsDxe: failed")


async def test_what_a_validator_refuses_is_not_started(tmp_path: Path) -> None:
    asked = job(tmp_path, tiny.HANG)
    asked = replace(asked, boots=Boots(tmp_path / "none"), refusal="the validator refuses it")
    report = await run(asked, serve)
    assert (report.verdict, report.reason) == (REFUSED, "the validator refuses it")


async def test_a_machine_that_dies_is_an_error(tmp_path: Path) -> None:
    async def killing(channel: trio.abc.Stream, own: Node) -> None:
        for pid in tiny.children() - before:
            os.kill(pid, signal.SIGKILL)
        await trio.sleep_forever()

    before = tiny.children()
    report = await run(job(tmp_path, tiny.HANG), killing)
    assert (report.verdict, report.code) == (ERROR, 500)
    assert "ended before it was ready, signal 9" in report.reason


async def test_without_qemu_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = job(tmp_path, tiny.HANG)
    monkeypatch.setenv("PATH", str(tmp_path))
    report = await run(asked, serve)
    assert (report.verdict, report.code) == (ERROR, 503)
    assert "is not installed" in report.reason


async def test_without_what_speaks_with_qemu_it_is_an_error(tmp_path: Path) -> None:
    with without("qemu"):
        report = await run(job(tmp_path, tiny.HANG), serve)
    assert (report.verdict, report.code) == (ERROR, 503)
    assert report.reason == "qemu.qmp is not installed: pip install 'warren-9p[vm]'"


async def test_qemus_own_words_are_the_reason(tmp_path: Path) -> None:
    report = await run(replace(job(tmp_path), boots=Boots(tmp_path / "none")), serve)
    assert (report.verdict, report.code) == (ERROR, 502)
    assert "could not open kernel file" in report.reason


@pytest.mark.parametrize("then", ["", "say still here"])
async def test_one_that_is_told_nothing_is_booted_and_one_that_goes_on_is_not(shim: Path, then: str) -> None:
    report = await run(replace(standin(shim), then=then, ending=0.5), serve)
    if then:
        assert (report.verdict, report.code) == (ERROR, 504)
        assert "did not end within" in report.reason
    else:
        assert (report.verdict, report.exit) == (BOOTED, None)


async def test_a_host_that_serves_nothing_shows(shim: Path) -> None:
    async def hangs_up(channel: trio.abc.Stream, own: Node) -> None:
        raise OSError(5, "no tree today")

    report = await run(standin(shim), hangs_up)
    assert (report.verdict, report.reason) == (ERROR, "its channel could not be served: no tree today")


def test_a_report_leaves_out_what_is_not_known() -> None:
    known: Callable[[Report], dict[str, object]] = Report.values
    assert known(Report("x", ERROR, "why")) == {"image": "x", "verdict": ERROR, "reason": "why"}


@pytest.mark.parametrize("word", ["9" * 400, "18446744073709551616"])
def test_a_count_that_no_counter_has_is_none(word: str, tmp_path: Path) -> None:
    going = _Run(Job("x", recipe.load("standin-microvm"), Boots()), serve, lambda data: None)
    going.guest.report.update({"tsc.ready": word, "tsc.waited": "1"})
    assert going.report("tcg", counted=True).instructions is None
