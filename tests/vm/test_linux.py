"""Linux kernels mount our servers; one boot a kernel serves every case.

A case that fails does not hide the others: all failures are shown together,
each under its name.
"""

import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from warren.servers.demo import Demo
from warren.servers.disk import Disk

from . import cases, words
from .guest import Guest, GuestDied, guest
from .images import KERNELS, Unreachable, v9fs
from .mounts import LINUX, PLAIN, Place, mounted, place
from .servers import Served, diod, served

# Limits of diod 1.0.24, not of the cases: it locks whole files and each descriptor for itself, and asks for
# the attributes of an open file by its name.  It also answers "blocked" instead of parking a lock, which a
# kernel repeats after 30 s, so `waits_for_a_lock` is not put to it.
NOT_DIOD = {"locks_byte_ranges", "locks_one_file_twice", "uses_unlinked_files"}

DEMO_ROWS = (
    "allow any ctl /ctl#say",
    "allow any rw /events",
    "allow any write /send",
    "allow any read /recv",
    "allow any read /dev/errstr",
)


class Report:
    """How each case ended."""

    def __init__(self, booted: Guest) -> None:
        self.failures: dict[str, str] = {}
        print(f"Linux {booted.release}, booted in {booted.boot_seconds:.1f} s")

    async def run(self, name: str, case: Callable[[], Awaitable[None]]) -> None:
        started = time.monotonic()
        try:
            await case()
        except Exception as failure:
            self.failures[name] = traceback.format_exc()
            # What hangs once hangs its mount and all that follows there.
            if isinstance(failure, TimeoutError | GuestDied):
                self.check()
        finally:
            verdict = "FAILED" if name in self.failures else "ok"
            print(f"{verdict:6} {time.monotonic() - started:6.2f} s  {name}", flush=True)

    async def run_cases(self, at: Place, title: str, chosen: Sequence[cases.Case]) -> None:
        for case in chosen:
            name = case.__name__
            own = replace(at, host=at.host / name, mnt=f"{at.mnt}/{name}", other=f"{at.other}/{name}")
            own.host.mkdir()
            await self.run(f"{title}{name}", lambda case=case, own=own: case(own))  # type: ignore[misc]

    async def run_words(self, w: words.Words, title: str, chosen: Sequence[words.Case]) -> None:
        for case in chosen:
            await self.run(f"{title}{case.__name__}", lambda case=case: case(w))  # type: ignore[misc]

    def check(self) -> None:
        if self.failures:
            told = "\n\n".join(f"== {name}\n{text}" for name, text in self.failures.items())
            pytest.fail(told, pytrace=False)


@pytest.fixture(params=KERNELS)
def series(request: pytest.FixtureRequest, not_run: Callable[[str], NoReturn]) -> str:
    """A kernel that is here.  Only the second may be out of reach."""
    name: str = request.param
    try:
        v9fs(name)
    except Unreachable as reason:
        if name == next(iter(KERNELS)):
            raise
        not_run(f"second guest kernel: {reason}")
    return name


async def test_a_kernel_mounts_our_servers(series: str, tmp_path: Path) -> None:
    linux, plain = tmp_path / "linux", tmp_path / "plain"
    linux.mkdir()
    plain.mkdir()
    demo = Demo()
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(served(Disk(tmp_path), ["allow any rw,create,remove /**"]))
        shown = await stack.enter_async_context(served(demo, DEMO_ROWS))
        booted = await stack.enter_async_context(guest(series, ports=[disk.port, shown.port]))
        report = Report(booted)
        async with place(booted, linux, dialect=LINUX, aname="linux") as at:
            await report.run_cases(at, "9P2000.L ", cases.BOTH + cases.LINUX_ONLY)
        async with place(booted, plain, dialect=PLAIN, aname="plain") as at:
            await report.run_cases(at, "9P2000 ", cases.BOTH)
        async with mounted(booted, "/mnt/demo", server=1, dialect=LINUX) as mnt:
            w = _words(booted, mnt, demo, shown)
            await report.run_words(w, "9P2000.L ", words.BOTH + words.LINUX_ONLY)
        async with mounted(booted, "/mnt/demo", server=1, dialect=PLAIN) as mnt:
            await report.run_words(_words(booted, mnt, demo, shown), "9P2000 ", words.BOTH)
    report.check()


def _words(booted: Guest, mnt: str, demo: Demo, shown: Served) -> words.Words:
    return words.Words(
        booted,
        mnt,
        tell=lambda text: demo.tell("told", text=text),
        parked=lambda: shown.export.statistics()["parked"],
    )


async def test_the_cases_hold_against_diod(tmp_path: Path) -> None:
    directory = tmp_path / "served"
    directory.mkdir()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(diod(directory, tmp_path / "diod.log"))
        booted = await stack.enter_async_context(guest(next(iter(KERNELS)), ports=[port]))
        report = Report(booted)
        async with place(booted, directory, dialect=LINUX, aname=str(directory)) as at:
            chosen = [case for case in cases.BOTH + cases.LINUX_ONLY if case is not cases.waits_for_a_lock]
            await report.run_cases(at, "", chosen)
    expected = {name: report.failures.pop(name, "") for name in NOT_DIOD}
    assert all(expected.values()), f"diod can do more than NOT_DIOD says: {expected.keys()}"
    report.check()
