"""Linux kernels mount our servers; one boot a kernel serves every case.

A case that fails does not hide the others: all failures are shown together,
each under its name.
"""

import shutil
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from .cases import BOTH, LINUX_ONLY, Case
from .guest import guest
from .kernel import SUITES, Unreachable
from .mounts import LINUX, Place, place
from .servers import diod

# Limits of diod 1.0.24, not of the cases: it locks whole files.
NOT_DIOD = {"locks_byte_ranges"}


class Report:
    """Runs cases one after the other and remembers how each ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures: dict[str, str] = {}

    async def run(self, name: str, case: Case, at: Place) -> None:
        own = replace(
            at, host=at.host / case.__name__, mnt=f"{at.mnt}/{case.__name__}", other=f"{at.other}/{case.__name__}"
        )
        own.host.mkdir()
        started = time.monotonic()
        try:
            await case(own)
        except Exception:
            self.failures[name] = traceback.format_exc()
        verdict = "FAILED" if name in self.failures else "ok"
        self.lines.append(f"{verdict:6} {time.monotonic() - started:6.2f} s  {name}")

    def check(self) -> None:
        print("\n".join(self.lines))
        if self.failures:
            pytest.fail("\n\n".join(f"== {name}\n{text}" for name, text in self.failures.items()), pytrace=False)


@pytest.mark.parametrize("series", SUITES)
async def test_the_cases_hold_against_diod(series: str, tmp_path: Path) -> None:
    if not shutil.which("diod"):
        pytest.skip("not run: there is no diod here")
    report = Report()
    served = tmp_path / "served"
    served.mkdir()
    try:
        async with diod(served, tmp_path / "diod.log") as port, guest(series, ports=[port]) as booted:
            report.lines.append(f"Linux {booted.release} booted in {booted.boot_seconds:.1f} s")
            async with place(booted, served, dialect=LINUX, aname=str(served)) as at:
                for case in BOTH + LINUX_ONLY:
                    await report.run(case.__name__, case, at)
    except Unreachable as reason:
        pytest.skip(f"not run: {reason}")
    missing = {name: report.failures.pop(name, None) for name in NOT_DIOD}
    assert None not in missing.values(), "diod can do more than NOT_DIOD says"
    report.check()
