"""The yardstick of durable work: what is counted was answered, verdicts follow, memory is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .processes import BenchError
from .work import BARS, Bar, Found, main
from .work_load import Meter, after, same, whole
from .work_servers import durable

SENDS, _, _, P99, _ = BARS["sends"]


def found(ours: list[float], theirs: list[float]) -> Found:
    return {
        "sdk": [{"send_per_s": value, "send_p99_ms": value} for value in ours],
        "redis": [{"send_per_s": value} for value in theirs],
    }


def test_a_ratio_is_of_the_same_round() -> None:
    assert SENDS.value(found([10, 40, 90], [10, 20, 30])) == 2


@pytest.mark.parametrize(("ours", "verdict"), [(59, "missed"), (60, "ok"), (149, "ok"), (150, "ok, aim met")])
def test_a_ratio_is_judged_by_its_floor_and_its_aim(ours: float, verdict: str) -> None:
    assert SENDS.verdict(found([ours], [100])) == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(20.5, "missed"), (20, "ok, aim met")])
def test_a_latency_is_to_be_no_more_than_its_bar(ours: float, verdict: str) -> None:
    assert P99.verdict(found([ours], [])) == verdict


def test_what_is_not_a_number_is_missed() -> None:
    assert Bar("x", "sdk", "send_per_s", 0, 0).verdict(found([float("nan")], [])) == "missed"


def test_a_message_that_the_server_does_not_have_is_no_measurement() -> None:
    same(3, 3)
    with pytest.raises(BenchError, match="4 messages were answered, and the server has 3"):
        same(3, 4)


def test_a_time_in_which_nothing_was_answered_is_no_measurement() -> None:
    with pytest.raises(BenchError, match="0 operations were answered"):
        Meter(0).figures("send")


def test_percentiles_are_those_of_what_was_noted() -> None:
    meter = Meter(60)
    for ms in range(1, 101):
        meter.note(meter.begun)
        meter.taken[-1] = ms / 1e3
    figures = meter.figures("send")
    assert figures["send_p50_ms"] == pytest.approx(50.5)
    assert 99 <= figures["send_p99_ms"] <= figures["send_worst_ms"] == 100


@pytest.mark.parametrize(
    "data",
    [b"+OK\r\n", b":12\r\n", b"$3\r\nabc\r\n", b"$-1\r\n", b"*-1\r\n", b"*2\r\n*1\r\n:1\r\n$2\r\n\r\n\r\n"],
)
def test_an_answer_of_redis_is_whole_with_its_last_byte(data: bytes) -> None:
    assert after(data, 0) == len(data)
    assert not any(whole(data[:n]) for n in range(len(data)))


def test_a_place_in_memory_is_refused() -> None:
    with pytest.raises(BenchError, match=r"/proc.* is on proc, where nothing is durable"):
        durable(Path("/proc/self"))


def test_a_run_says_what_it_found_and_what_surrounded_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    quick = ["--only", "blobs", "--rounds", "1", "--seconds", "0.1", "--json", str(out)]
    assert main(quick, dict) in (0, 1)
    assert "sequential read of a blob over servers/disk" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["around"]["before"]["fsync_ms"] > 0
    assert document["parts"]["blobs"]["storage"][0]["mb_per_s"] > 0
    assert len(document["bars"]) == 2


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "sleep"], dict)
    assert "no part sleep; there are sends, blobs" in capsys.readouterr().err
