"""The judge of ELFs: a sound one passes, each spoiled one is refused by name, and no bytes upset it."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.formats import elf, multiboot
from warren.boot.machines import probe

from .mutants import BASE, CODE, FIFTEEN, LOAD, MUTANTS, PAGE, Mutant, R, W, X, phdr, sized, sound
from .mutants import elf as assemble
from .mutants import sound_kernel as kernel

SHIM = Path(__file__).parents[2] / "kernel-shim"
MIB = 1 << 20


def names(data: bytes, rules: elf.Rules = elf.ROOT_TASK) -> list[str]:
    return [fault.name for fault in elf.check(data, rules)]


def test_a_sound_image_has_no_fault() -> None:
    assert names(sound()) == []
    assert names(kernel(), elf.KERNEL) == []


def test_the_probe_of_accelerators_is_a_kernel() -> None:
    assert names(probe.image(), elf.KERNEL) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_spoiled_image_is_refused_by_name(mutant: Mutant) -> None:
    assert mutant.fault in names(mutant.change(sound()))


def test_fifteen_are_fifteen_kinds() -> None:
    assert len({mutant.fault for mutant in FIFTEEN}) == 15


def test_every_fault_has_a_mutant() -> None:
    assert {mutant.fault for mutant in MUTANTS} | {"more"} == set(elf.SENTENCES)


def test_a_fault_says_where_and_why() -> None:
    [fault] = elf.check(sound()[:18] + b"\xb7\0" + sound()[20:])
    assert fault == ("machine", 18, "machine 183, wanted 62")
    assert str(fault) == "machine at 0x12: machine 183, wanted 62"


def test_all_faults_are_told_at_once() -> None:
    data = sound()
    for mutant in FIFTEEN[1:4]:
        data = mutant.change(data)
    assert names(data) == ["type", "machine", "null_segment"]


@pytest.mark.parametrize(("size", "fits"), [(15 * MIB, True), (16 * MIB, False)])
def test_the_capability_space_bounds_the_size(size: int, fits: bool) -> None:
    assert names(sized(size)) == ([] if fits else ["too_large"])
    assert names(sized(size), replace(elf.ROOT_TASK, cnode_bits=13)) == []


def test_holes_between_segments_take_slots() -> None:
    far = assemble(
        phdr(LOAD, R | X, PAGE, BASE, len(CODE), PAGE),
        phdr(LOAD, R | W, 0, BASE + 32 * MIB, 0, PAGE),
        body=CODE,
    )
    assert names(far) == ["too_large"]


def test_the_window_is_the_callers() -> None:
    narrow = replace(elf.KERNEL, window=(0x100000, 0x100800))
    assert names(kernel(), narrow) == ["outside_window"]


def test_small_segments_in_one_page_are_seen_together() -> None:
    """The two that do not agree are not neighbours."""
    three = assemble(
        phdr(LOAD, R | X, PAGE, BASE, 16, 16),
        phdr(LOAD, R, PAGE + 16, BASE + 16, 16, 16, 1),
        phdr(LOAD, R | W, PAGE + 32, BASE + 32, 16, 16, 1),
        body=CODE,
    )
    assert names(three) == ["shared_page"]


def test_a_long_segment_hides_none_behind_it() -> None:
    """The third lies in the first and touches the second nowhere."""
    data = assemble(
        phdr(LOAD, R | X, PAGE, BASE, len(CODE), 64 * PAGE),
        phdr(LOAD, R | X, 0, BASE + PAGE, 0, PAGE),
        phdr(LOAD, R | X, 0, BASE + 8 * PAGE, 0, PAGE),
        body=CODE,
    )
    assert [f.text for f in elf.check(data)] == [
        "segments 1 and 0 take the same addresses at 0x401000",
        "segments 2 and 0 take the same addresses at 0x408000",
    ]


def test_as_many_headers_as_can_be_said_take_no_longer() -> None:
    header = phdr(LOAD, R | W, 0, BASE, 0, PAGE)
    data = assemble(*[header] * 65535)
    begun = time.perf_counter()
    found = names(data)
    assert time.perf_counter() - begun < 0.5
    assert "too_many_segments" in found
    assert len(found) <= elf.FAULTS_KEPT + 1


def test_faults_without_end_are_cut() -> None:
    bad = phdr(LOAD, 0, 1 << 40, 0, 1 << 50, 0, 3)
    found = names(assemble(*[bad] * 64))
    assert len(found) == elf.FAULTS_KEPT + 1
    assert found[-1] == "more"


def test_the_text_of_a_good_image() -> None:
    lines = elf.describe(sound()).splitlines()
    assert lines[0] == f"size={len(sound())}"
    assert lines[2:6] == ["class=64", "machine=x86-64", "type=executable", "entry=0x400000"]
    assert "segment=0 type=load flags=r-x offset=0x1000 address=0x400000" in lines[7]
    assert lines[-1] == "verdict=ok"


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_text_of_a_bad_image_ends_with_why(mutant: Mutant) -> None:
    lines = elf.describe(mutant.change(sound())).splitlines()
    assert lines[-1] == "verdict=refused"
    assert any(line.startswith(f"fault={mutant.fault} at=") for line in lines)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gcc makes of kernel-shim."""
    out = tmp_path_factory.mktemp("shim")
    subprocess.run(["make", "--silent", "-C", SHIM, f"OUT={out}"], check=True, timeout=120)
    return out


def test_what_is_built_here_is_sound(built: Path) -> None:
    assert elf.check((built / "root.elf").read_bytes()) == []
    kernel = (built / "standin.elf").read_bytes()
    assert elf.check(kernel, elf.KERNEL) == []
    assert multiboot.check(kernel) == []
    assert multiboot.pvh(kernel)


@pytest.mark.parametrize("mutant", FIFTEEN, ids=str)
def test_a_real_root_task_is_refused_when_it_is_spoiled(mutant: Mutant, built: Path) -> None:
    assert mutant.fault in names(mutant.change((built / "root.elf").read_bytes()))


@given(st.binary(max_size=400))
def test_any_bytes_get_a_verdict(data: bytes) -> None:
    assert elf.check(data)
    assert elf.describe(data).endswith("verdict=refused\n")


@given(st.lists(st.tuples(st.integers(0, 64 + 3 * 56), st.binary(min_size=1, max_size=8)), max_size=6))
def test_any_edit_gets_a_verdict(edits: list[tuple[int, bytes]]) -> None:
    data = sound()
    for place, new in edits:
        data = data[:place] + new + data[place + len(new) :]
    for rules in (elf.ROOT_TASK, elf.KERNEL):
        found = elf.check(data, rules)
        assert all(isinstance(fault, elf.Fault) and fault.name in elf.SENTENCES for fault in found)
        assert elf.describe(data, rules).endswith("refused\n" if found else "ok\n")
