"""Gates: what they hold, what falls, and what is pinned."""

from __future__ import annotations

import math
import random

import pytest
from warren.boot.harness import gate
from warren.boot.harness.gate import Measured, Pin, Spread, instructions, percentile, pins, wall
from warren.boot.harness.harness import BOOTED, ERROR, Report

PIN = Pin("standin-microvm", 100_000, "ab" * 32)


def booted(ms: float, **stages: float) -> Report:
    return Report("x", BOOTED, "", "standin-microvm", "tcg", ms, stages)


@pytest.mark.parametrize(("ms", "ok"), [(199.9, True), (200.0, True), (200.1, False), (math.nan, False)])
def test_the_wall_time_gate(ms: float, ok: bool) -> None:
    assert wall(ms, 200).ok is ok
    assert str(wall(ms, 200)).startswith("wall ")


@pytest.mark.parametrize(
    ("count", "ok"), [(1, True), (100_000, True), (105_000, True), (105_001, False), (None, False)]
)
def test_the_count_may_rise_by_a_twentieth(count: int | None, ok: bool) -> None:
    found = instructions(count, PIN)
    assert found.ok is ok
    assert (found.name, found.bound) == ("instructions", 105_000)


def test_percentiles_are_of_the_values_themselves() -> None:
    values = [float(n) for n in range(1, 21)]
    random.Random(1).shuffle(values)
    assert percentile(values, 0.95) == 19
    assert percentile([5.0], 0.95) == 5
    assert math.isnan(percentile([], 0.95))
    assert Spread.of(values) == (10.5, 19, 1, 20)


def test_one_run_in_twenty_may_be_late_and_two_may_not() -> None:
    quick = [booted(60.0)] * 19
    assert wall(Measured([*quick, booted(900.0)]).total.p95, 200).ok
    assert not wall(Measured([*quick[1:], booted(900.0), booted(900.0)]).total.p95, 200).ok


def test_a_measurement_as_a_document() -> None:
    counted = Report("x", BOOTED, "", instructions=123, counts={"fw": 100, "user": 23})
    runs = [booted(50.0, qemu_ms=20.0, user_ms=1.0), booted(70.0, qemu_ms=30.0), Report("x", ERROR, "late")]
    found = Measured(runs, counted)
    assert found.document() == {
        "image": "x", "recipe": "standin-microvm", "accel": "tcg", "runs": 3, "booted": 2,
        "median_ms": 60.0, "p95_ms": 70.0, "min_ms": 50.0, "max_ms": 70.0,
        "stages": {
            "qemu_ms": {"median_ms": 25.0, "p95_ms": 30.0}, "fw_ms": {"median_ms": None, "p95_ms": None},
            "kernel_ms": {"median_ms": None, "p95_ms": None}, "user_ms": {"median_ms": 1.0, "p95_ms": 1.0},
        },
        "instructions": 123, "instructions_by_stage": {"fw": 100, "user": 23}, "reasons": ["error: late"],
    }  # fmt: skip
    assert found.values() == {
        "image": "x", "recipe": "standin-microvm", "accel": "tcg", "runs": 3, "booted": 2,
        "median_ms": 60.0, "p95_ms": 70.0, "min_ms": 50.0, "max_ms": 70.0, "instructions": 123,
        "qemu_median_ms": 25.0, "qemu_p95_ms": 30.0, "user_median_ms": 1.0, "user_p95_ms": 1.0,
        "fw_instructions": 100, "user_instructions": 23, "reason1": "error: late",
    }  # fmt: skip


def test_nothing_that_booted_has_no_times() -> None:
    document = Measured([Report("x", ERROR, "late")]).document()
    assert document["median_ms"] is None
    assert not wall(Measured([Report("x", ERROR, "late")]).total.p95, 1e9).ok


def test_the_pins_that_come_with_warren_are_whole() -> None:
    found = pins()
    assert found["standin"].recipe == "standin-microvm"
    assert len(found["standin"].inputs) == 64


@pytest.mark.parametrize(
    "text",
    [
        "[x]\nrecipe = 'a'", "[x]\nrecipe='a'\ninstructions=0\ninputs='b'",
        "[x]\nrecipe='a'\ninstructions=true\ninputs='b'", "[x]\ncolour='red'", "[",
    ],
)  # fmt: skip
def test_a_bad_pin_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        pins(text)


def test_the_rise_that_is_let_through_is_a_twentieth() -> None:
    assert gate.RISE == 0.05
