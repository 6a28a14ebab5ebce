"""The bench: images from a shelf, booted by name, and what is kept of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from warren.boot.harness.bench import LINES, Bench
from warren.boot.harness.gate import Pin
from warren.boot.harness.harness import Job
from warren.boot.harness.outcome import Asked
from warren.boot.harness.prepare import prepare
from warren.boot.images.shelf import Image as AnImage
from warren.boot.machines import recipe
from warren.boot.machines.accel import Accelerators
from warren.boot.machines.probe import Verdict
from warren.boot.machines.qemu import Boots
from warren.boot.machines.recipe import Recipe
from warren.boot.secure import chain
from warren.tree import Node, Refused

from tests.boot import tiny
from tests.boot.shelf import Image, Shelf, image, tiny_image
from tests.boot.shim import built, serve

TCG = Asked(accel="tcg")


async def served(channel: trio.abc.Stream, subject: str, own: Node) -> None:
    await serve(channel, own)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def standin(shim: Path, tmp_path: Path) -> Image:
    kernel, root = (shim / "standin.elf").read_bytes(), (shim / "root.elf").read_bytes()
    return image(tmp_path / "standin", "standin", kernel=kernel, root=root)


def bench_of(folder: Path, *images: Image) -> Bench:
    return Bench(Shelf({one.name: one for one in images}), served, Accelerators(), folder / "boot")


async def test_a_run_of_the_stand_in_passes_every_check(tmp_path: Path, standin: Image) -> None:
    bench = bench_of(tmp_path, standin)
    outcome = await bench.run("standin", replace(TCG, budget=20.0))
    assert outcome.well, outcome.text()
    assert [gate.name for gate in outcome.gates] == ["wall"]
    assert sorted(os.listdir(tmp_path / "boot")) == ["last", "report"]
    assert "verdict=booted\n" in bench.read("last")
    assert "\n# guest\n" in bench.read("report")
    [measured] = [part for part in bench.read("report").split("\n# ") if part.startswith("measured\n")]
    assert chain.check(measured.removeprefix("measured\n").rstrip("\n") + "\n", outcome.chain) == ""


async def test_a_measurement_counts_instructions_in_a_run_of_its_own(tmp_path: Path, standin: Image) -> None:
    told: list[tuple[str, object]] = []

    def tell(kind: str, **said: object) -> None:
        told.append((kind, said.get("counted")))

    bench = bench_of(tmp_path, standin)
    outcome = await bench.measure("standin", 3, TCG, tell, Pin("standin-microvm", 1, "-"))
    assert outcome.runs is not None
    assert [one for one in told if one[0] == "starting"] == [("starting", False)] * 3 + [("starting", True)]
    document = outcome.runs.document()
    assert (document["runs"], document["booted"]) == (3, 3)
    json.dumps(document, allow_nan=False)
    [held] = outcome.gates
    assert (held.name, held.value, held.ok) == ("instructions", document["instructions"], False)
    assert not outcome.well, "one instruction is pinned"
    assert f"instructions={document['instructions']}\n" in bench.read("measure")


async def test_a_pin_is_of_one_recipe(tmp_path: Path, standin: Image) -> None:
    pin = Pin("standin-microvm", 1, "-")
    outcome = await bench_of(tmp_path, standin).measure(
        "standin", 1, replace(TCG, recipe="standin-qboot"), pin=pin
    )
    assert outcome.well
    assert outcome.gates == ()
    assert outcome.runs is not None
    assert outcome.runs.instructions


async def test_a_kernel_that_somebody_brought_gets_our_root_task(
    tmp_path: Path, shim: Path, standin: Image
) -> None:
    """The stand-in poses as one here. It is none, and says so."""
    outcome = await bench_of(tmp_path, standin).genuine(shim / "standin64.elf", None, TCG)
    report = outcome.report
    assert report.recipe == "sel4-pc"
    assert "a stand-in kernel, not seL4" in report.log
    assert (report.said["kernel"], report.said["labels"]) == ("standin", "probed")
    assert report.facts["scheduler"] == "classic"
    assert sorted(os.listdir(tmp_path / "boot")) == ["last", "report"]


@pytest.mark.parametrize("runs", [0, -1, 1001])
async def test_runs_are_bounded(tmp_path: Path, runs: int) -> None:
    with pytest.raises(Refused, match="1 to 1000 runs"):
        await bench_of(tmp_path).measure("standin", runs)


async def test_a_folder_of_a_run_goes_with_it(tmp_path: Path) -> None:
    hanging = tiny_image(tmp_path / "i", "hangs", tiny.HANG)
    bench = bench_of(tmp_path, hanging)
    before = tiny.children()
    left = tmp_path / "boot" / f"run-{1 << 30}-x"  # of a process that was killed: no number is so large
    left.mkdir(parents=True)
    (left / "vars.fd").write_bytes(b"x")
    with trio.move_on_after(0.2):
        await bench.run("hangs", TCG)
    assert tiny.children() == before
    assert os.listdir(tmp_path / "boot") == []


async def test_the_log_of_verifications_is_bounded(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, tiny_image(tmp_path / "i", "x", tiny.HANG))
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/verify.log").write_text("old\n" * (LINES + 10))
    assert (await bench.verify("x")).ok
    lines = bench.read("verify.log").splitlines()
    assert len(lines) == LINES
    assert "image=x verdict=ok pcr=" in lines[-1]


async def test_secure_boot_leaves_everything_to_the_firmware(tmp_path: Path) -> None:
    """Even what was altered is started: who refuses it is what this is about."""
    spoilt = tiny_image(tmp_path / "i", "x", tiny.HANG)
    spoilt.files["kernel"].write_bytes(tiny.image(tiny.ends(tiny.FAILED)))
    asked: list[tuple[str, str]] = []

    def secure(one: AnImage, kind: Recipe, folder: Path) -> Job:
        asked.append((one.name, kind.name))
        assert folder.is_dir()
        return Job(one.name, recipe.load("standin-microvm"), Boots(one.files["kernel"]), folder=folder)

    bench = Bench(Shelf({"x": spoilt}), served, Accelerators(), tmp_path / "boot", secure)
    outcome = await bench.run("x", replace(TCG, secure=True))
    assert asked == [("x", "linux-q35-secboot")]
    assert outcome.report.exit == 87, "it was started"
    refused = await bench.run("x", TCG)
    assert refused.report.exit is None
    with pytest.raises(Refused, match="no keys for Secure Boot"):
        await bench_of(tmp_path, spoilt).run("x", replace(TCG, secure=True))


def test_a_linux_is_its_kernel_its_system_and_its_command_line(tmp_path: Path) -> None:
    one = image(tmp_path, "linux", kernel=b"k", initrd=b"i", cmdline=b"quiet\n")
    made = prepare(one, recipe.load("linux-pc"), tmp_path)
    assert made.boots == Boots(one.files["kernel"], one.files["initrd"], "quiet warren.name=linux")
    assert not made.refusal
    with pytest.raises(Refused, match="boots a disk"):
        prepare(one, recipe.load("linux-q35-secboot"), tmp_path)
    with pytest.raises(Refused, match="has no initrd"):
        prepare(image(tmp_path / "n", "linux", kernel=b"k"), recipe.load("linux-pc"), tmp_path)


# Accelerators


async def test_the_interpreter_needs_no_trial() -> None:
    found = Accelerators()
    assert await found.choose(recipe.load("sel4-pc")) == "tcg"
    assert await found.choose(recipe.load("standin-pc"), "tcg") == "tcg"
    assert found.found == {}


@pytest.mark.parametrize("works", [True, False])
async def test_an_accelerator_is_used_once_it_was_seen_to_work(works: bool) -> None:
    found = Accelerators()
    found.found["kvm"] = Verdict(works, "" if works else "it is slower than none")
    assert await found.choose(recipe.load("standin-pc")) == ("kvm" if works else "tcg")
    if works:
        assert await found.choose(recipe.load("standin-pc"), "kvm") == "kvm"
    else:
        with pytest.raises(Refused, match="kvm does not work here: it is slower than none; use accel=tcg"):
            await found.choose(recipe.load("standin-pc"), "kvm")


async def test_a_trial_is_remembered_until_something_changes(tmp_path: Path) -> None:
    file = tmp_path / "accelerators.json"
    first = await Accelerators(file).tried("tcg")
    said = json.loads(file.read_text())
    said["found"]["tcg"][1] = "as it was written"
    file.write_text(json.dumps(said))
    assert (await Accelerators(file).tried("tcg")).why == "as it was written"
    said["here"] = "another boot of this machine"
    file.write_text(json.dumps(said))
    assert (await Accelerators(file).tried("tcg")).works == first.works
    assert (await Accelerators(file).tried("tcg")).why != "as it was written"
    file.write_text("rubbish")
    assert (await Accelerators(file).tried("tcg")).works == first.works
