"""/boot, with machines that are really started, and images that a test put on the shelf."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
import trio
from warren.boot.harness.bench import Bench
from warren.boot.machines.accel import Accelerators
from warren.check.tree import check_tree
from warren.mount import Files
from warren.servers.boot import WAITING, Boot
from warren.tree import Node

from tests.boot import mutants, tiny
from tests.boot.shelf import Shelf, image, tiny_image
from tests.boot.shim import serve
from tests.servers.clock import StillClock
from tests.servers.reach import attributes_of, files_of

PATIENCE = 30


async def served(channel: trio.abc.Stream, subject: str, own: Node) -> None:
    assert subject.startswith("vm/boot-")
    await serve(channel, own)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    failing = tiny.says(b"mmu: bad\n") + tiny.ends(tiny.FAILED)
    return Shelf(
        {
            "fails": tiny_image(tmp_path / "fails", "fails", failing),
            "hangs": tiny_image(tmp_path / "hangs", "hangs", tiny.HANG),
            "later": None,
        }
    )


def tree(folder: Path, shelf: Shelf) -> Boot:
    return Boot(Bench(shelf, served, Accelerators(), folder / "boot"), StillClock())


@asynccontextmanager
async def working(boot: Boot) -> AsyncIterator[Files]:
    """A client of the tree, and its work going on beside."""
    async with files_of(boot) as files, trio.open_nursery() as nursery:
        nursery.start_soon(boot.keep)
        with trio.fail_after(PATIENCE):
            yield files
        nursery.cancel_scope.cancel()


async def until(files: Files, kind: str, *lines: str) -> list[dict[str, str]]:
    """Say LINES to ctl, and the events of the last of them until there is one of that KIND."""
    seen: list[dict[str, str]] = []
    async with await files.stream("/events") as events, await files.open("/ctl", os.O_RDWR) as ctl:
        for line in lines:
            await ctl.write(line.encode())
        number = (await ctl.pread(100, 0)).decode().strip()
        while not seen or seen[-1]["kind"] != kind:
            event = attributes_of(await events.read(4096))
            if event.get("run") == number:
                seen.append(event)
    return seen


async def test_it_is_a_tree(tmp_path: Path, shelf: Shelf) -> None:
    await check_tree(lambda: nullcontext(tree(tmp_path, shelf)))


async def test_a_run_answers_with_its_number_and_becomes_a_report(tmp_path: Path, shelf: Shelf) -> None:
    async with working(tree(tmp_path, shelf)) as files:
        seen = await until(files, "done", "run image=fails accel=tcg budget=200ms")
        assert [one["kind"] for one in seen] == ["queued", "starting", "refused", "done"]
        assert seen[0]["run"] == "1"
        last = attributes_of(await files.read("/last"))
        assert last.items() >= {
            "run": "1", "kind": "run", "state": "done", "image": "fails", "verdict": "refused", "exit": "87",
            "reason": "a self-test failed; the log ends with: mmu: bad", "accel": "tcg", "gates": "fell",
            "recipe": "standin-microvm", "wall_bound": "200.000", "fell": "wall inf is over 200",
        }.items()  # fmt: skip
        report = (await files.read("/report")).decode()
        assert "\n# log\nmmu: bad\n" in report
        assert f"pcr={last['pcr']}\n" in report
        assert (await files.read("/stats")).decode().splitlines()[0] == "boot_runs verdict=refused n=1"


async def test_one_at_a_time_the_others_wait_and_too_many_are_refused(tmp_path: Path, shelf: Shelf) -> None:
    before, boot = tiny.children(), tree(tmp_path, shelf)
    async with working(boot) as files:
        seen = await until(files, "starting", "run image=hangs accel=tcg")
        assert attributes_of(await files.read("/last")) == {
            "run": seen[0]["run"], "kind": "run", "state": "running", "image": "hangs",
        }  # fmt: skip
        for _ in range(WAITING):
            await files.write("/ctl", b"run image=hangs accel=tcg\n")
        with pytest.raises(OSError, match=f"429 busy: {WAITING} runs wait, the limit"):
            await files.write("/ctl", b"measure image=hangs runs=1\n")
        machines = tiny.children() - before
        assert machines
        assert attributes_of(await files.read("/stats"))["boot_waiting"] == str(WAITING)

    assert not tiny.children() & machines


async def test_a_run_that_waits_or_goes_on_can_be_cancelled(tmp_path: Path, shelf: Shelf) -> None:
    before = tiny.children()
    async with working(tree(tmp_path, shelf)) as files, await files.stream("/events") as events:
        await files.write("/ctl", b"run image=hangs accel=tcg\nrun image=hangs accel=tcg\n")
        while attributes_of(await events.read(4096))["kind"] != "starting":
            pass
        await files.write("/ctl", b"cancel 2\n")
        assert attributes_of(await events.read(4096)).items() >= {"kind": "cancelled", "run": "2"}.items()
        await files.write("/ctl", b"cancel 1\n")
        assert attributes_of(await events.read(4096)).items() >= {"kind": "cancelled", "run": "1"}.items()
        assert tiny.children() == before
        assert attributes_of(await files.read("/last"))["state"] == "cancelled"
        with pytest.raises(FileNotFoundError, match="no run 1 waits or is being done"):
            await files.write("/ctl", b"cancel 1\n")


async def test_an_image_that_is_not_built_is_built_first(tmp_path: Path, shelf: Shelf) -> None:
    shelf.make = lambda name: tiny_image(tmp_path / name, name, tiny.ends(tiny.FAILED))
    async with working(tree(tmp_path, shelf)) as files:
        assert await files.read("/images/later/verify") == b"image=later\nverdict=unbuilt\n"
        assert [entry.name for entry in await files.ls("/images/later")] == ["verify"]
        seen = await until(files, "done", "run image=later accel=tcg")
        assert [one.get("says") for one in seen if one["kind"] == "building"] == [None, "compiling"]
        assert {entry.name for entry in await files.ls("/images/later")} == {
            "manifest", "sig", "elf", "chain", "verify",
        }  # fmt: skip
        assert shelf.built == ["later"]


async def test_what_cannot_be_built_is_an_error_with_the_reason(tmp_path: Path, shelf: Shelf) -> None:
    async with working(tree(tmp_path, shelf)) as files:
        seen = await until(files, "failed", "run image=later accel=tcg")
        assert seen[-1]["reason"] == "there is no compiler here"
        assert attributes_of(await files.read("/last")).items() >= {
            "verdict": "error", "reason": "there is no compiler here", "state": "failed",
        }.items()  # fmt: skip


async def test_measuring_is_many_runs(tmp_path: Path, shelf: Shelf) -> None:
    async with working(tree(tmp_path, shelf)) as files:
        await until(files, "done", "measure image=fails runs=3 accel=tcg")
        assert attributes_of(await files.read("/measure")).items() >= {
            "image": "fails", "runs": "3", "booted": "0",
            "reason1": "refused: a self-test failed; the log ends with: mmu: bad",
        }.items()  # fmt: skip


async def test_a_flipped_byte_is_found_before_a_machine_starts(tmp_path: Path, shelf: Shelf) -> None:
    async with working(tree(tmp_path, shelf)) as files:
        await files.write("/ctl", b"verify fails\n")
        good = attributes_of(await files.read("/images/fails/verify"))
        assert good["verdict"] == "ok"
        chain = await files.read("/images/fails/chain")

        held = shelf.held["fails"]
        assert held is not None
        data = bytearray(held.files["root"].read_bytes())
        data[-1] ^= 1
        held.files["root"].write_bytes(data)

        with pytest.raises(OSError, match="422 corrupt: fails: root: it is not what was signed"):
            await files.write("/ctl", b"verify fails\n")
        bad = attributes_of(await files.read("/images/fails/verify"))
        assert bad["fault1"] == "root: it is not what was signed"
        assert await files.read("/images/fails/chain") != chain
        log = [attributes_of(line) for line in (await files.read("/verify.log")).splitlines()]
        assert [one["verdict"] for one in log] == ["ok", "refused"]
        assert log[0]["pcr"] != log[1]["pcr"]

        seen = await until(files, "done", "run image=fails accel=tcg")
        assert seen[-2]["reason"] == "it is not what was signed: root: it is not what was signed"
        assert "exit" not in attributes_of(await files.read("/last")), "no machine was started"


async def test_an_elf_that_the_validator_refuses_is_not_started(tmp_path: Path, shelf: Shelf) -> None:
    spoilt = bytearray(mutants.sound())
    spoilt[18:20] = (40).to_bytes(2, "little")  # another processor's
    shelf.held["odd"] = image(tmp_path / "odd", "odd", kernel=tiny.image(tiny.HANG), root=bytes(spoilt))
    async with working(tree(tmp_path, shelf)) as files:
        assert b"verdict=refused" in await files.read("/images/odd/elf")
        seen = await until(files, "done", "run image=odd accel=tcg")
        assert (seen[-2]["kind"], seen[-2]["reason"].split(":")[:3]) == (
            "refused", ["the validator refuses it", " root", " machine"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run image=toaster", "404 not_found: there is no image 'toaster'; there are fails, hangs, later"),
        ("run image=../fails", "404 not_found: there is no image"),
        ("run image=fails recipe=bike", "400 bad_request: there is no recipe 'bike'"),
        ("run image=fails accel=magic", "400 bad_request: there is no accelerator 'magic'"),
        ("run image=fails budget=-1s", "400 bad_request: a time is from 0 to 3600 s"),
        ("run image=fails budget=soon", "400 bad_request: budget takes duration"),
        ("measure image=fails runs=0", "400 bad_request: runs is a number from 1 to 200"),
        ("measure image=fails runs=201", "400 bad_request: runs is a number"),
        ("verify toaster", "404 not_found"),
        ("verify later", "404 not_found: later is not built; warren image build later"),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_once(
    tmp_path: Path, shelf: Shelf, line: str, says: str
) -> None:
    async with files_of(tree(tmp_path, shelf)) as files:
        async with await files.open("/ctl", os.O_RDWR) as ctl:
            with pytest.raises(OSError):
                await ctl.write(line.encode())
            assert (await ctl.pread(500, 0)).decode().startswith(says)
        assert await files.read("/last") == b""


async def test_the_newest_run_is_known_to_the_next_process(tmp_path: Path, shelf: Shelf) -> None:
    async with working(tree(tmp_path, shelf)) as files:
        await until(files, "done", "run image=fails accel=tcg")
    async with files_of(tree(tmp_path, shelf)) as files:
        assert attributes_of(await files.read("/last"))["verdict"] == "refused"
        assert b"# log" in await files.read("/report")


async def test_the_work_ends_with_the_server_and_so_does_its_machine(tmp_path: Path, shelf: Shelf) -> None:
    before = tiny.children()
    async with working(tree(tmp_path, shelf)) as files:
        await until(files, "starting", "run image=hangs accel=tcg")
    assert tiny.children() == before
    assert sorted(os.listdir(tmp_path / "boot")) == []


@pytest.mark.parametrize("word", ["limit=NAN", "limit=INF", "limit=1e400s", "limit=2h", "budget=NAN"])
async def test_a_time_that_would_never_end_is_refused(word: str, tmp_path: Path, shelf: Shelf) -> None:
    """One run has the bench for as long as its limit says, and no clock knows what is no number."""
    async with working(tree(tmp_path, shelf)) as files:
        with pytest.raises(OSError, match=r"400 .*(takes duration, not|a time is from 0 to 3600 s)"):
            await files.write("/ctl", f"run image=hangs accel=tcg {word}\n".encode())
        assert attributes_of(await files.read("/stats"))["boot_waiting"] == "0"
