"""The yardstick of mounts: loads see wrong bytes, ratios are of the same round, verdicts follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fuse_load import BLOCK, COLD, LOADS, measure
from .fuse_mount import Found, load, main, ratios, verdict
from .processes import BenchError, marked_file


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("loads")
    (top / "many").mkdir()
    for n in range(COLD):
        (top / f"many/{n:05}").write_bytes(bytes(BLOCK))
    marked_file(top / "data", 2 << 20)
    return top


@pytest.mark.parametrize("name", LOADS)
def test_a_right_directory_is_measured(directory: Path, name: str) -> None:
    figures = measure(name, str(directory), 0.05)
    assert figures["per_s"] > 100
    assert (figures["mb_per_s"] > 0) == (name in ("orc", "read", "write"))
    assert load(name, directory, 0.05) > 0


@pytest.mark.parametrize("name", ["cold", "stat", "orc", "read"])
def test_a_wrong_directory_is_no_measurement(directory: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for n in range(COLD):
        (tmp_path / f"many/{n:05}").write_bytes(bytes(BLOCK - (n == 50)))
    (tmp_path / "data").write_bytes(b"\1" * 4096)
    with pytest.raises(BenchError, match=r"wrong|4095 bytes"):
        load(name, tmp_path, 0.05)


def found(warren: list[float], bridged: list[float], here: list[float]) -> Found:
    return {"warren": warren, "bridged": bridged, "here": here}


def test_a_ratio_is_of_the_same_round() -> None:
    rounds = found([10, 20, 60], [10, 10, 20], [20, 20, 60])
    assert ratios(rounds, "bridged") == (2, 1, 3)
    assert ratios(rounds, "here") == (1, 0.5, 1)


@pytest.mark.parametrize(
    ("name", "warren", "verdict_"),
    [("stat", 10, "defect"), ("stat", 11, "between"), ("stat", 20, "aim met"), ("cold", 11, "aim met")],
)
def test_the_floor_is_to_be_ahead_and_the_aim_two_thirds(name: str, warren: float, verdict_: str) -> None:
    assert verdict(name, found([warren], [10], [30])) == verdict_


def test_an_unknown_load_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "sleep"], dict)
    assert "no load sleep; there are cold, stat" in capsys.readouterr().err
