"""The yardstick measured: wrong replies are seen, figures add up, verdicts follow the table."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from . import hive
from .__main__ import SCENARIOS, Figures, Result, Scenario, main, package_version
from .processes import CACHE, BenchError, Room, Running, stunnel
from .profile import Sampler, read_stacks, show_stacks

LOADS = [
    ("serial",),
    ("getattr", "32"),
    ("orc", "8"),
    ("read", "64K", "4"),
    ("write", "1M", "2"),
    ("conns", "5"),
]


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with Room.make() as room:
        yield room


@pytest.fixture(scope="module")
def canned(room: Room) -> Iterator[Running]:
    with Running("canned", room) as server:
        yield server


@pytest.mark.parametrize("version", ["9P2000.L", "9P2000"])
@pytest.mark.parametrize("load", LOADS, ids=" ".join)
def test_a_right_server_has_no_errors(canned: Running, load: tuple[str, ...], version: str) -> None:
    figures = canned.load(load, 0.05, version)
    assert figures["errors"] == 0, figures["first_error"]
    assert figures["ops"] > 0
    assert figures["ops_per_s"] == pytest.approx(figures["ops"] / figures["seconds"], rel=0.05)
    assert 0 < figures["p50_us"] <= figures["p99_us"]
    if load[0] in ("read", "write"):
        assert figures["mb_per_s"] == pytest.approx(figures["ops_per_s"] * figures["size"] / 1e6, rel=0.01)


@pytest.fixture(scope="module")
def secure_room() -> Iterator[Room]:
    with Room.make(secure=True) as room:
        yield room


@pytest.fixture(scope="module")
def canned_tls(secure_room: Room) -> Iterator[Running]:
    with Running("canned-tls", secure_room) as server:
        yield server


@pytest.mark.parametrize("load", [*LOADS, ("shakes", "3"), ("attach",)], ids=" ".join)
def test_a_right_server_has_no_errors_under_tls(canned_tls: Running, load: tuple[str, ...]) -> None:
    figures = canned_tls.load(load, 0.1)
    assert figures["errors"] == 0, figures["first_error"]
    assert figures["ops"] > 0
    assert 0 < figures["p50_us"] <= figures["p99_us"]


def test_a_wrong_reply_is_an_error_under_tls(secure_room: Room) -> None:
    def lying(_: Room, port: int) -> list[str]:
        return [str(CACHE / "canned"), "-x", "data", str(port)]

    with Running("canned", secure_room, lying) as liar:
        with Running("canned-tls", secure_room, partial(stunnel, behind=liar.port)) as server:
            figures = server.load(("read", "64K", "4"), 0.1)
    assert "wrong data" in figures["first_error"]


def test_only_a_token_lets_anybody_in_where_tokens_are_measured(secure_room: Room) -> None:
    with Running("warren-token", secure_room) as server:
        assert server.load(("attach",), 0.1)["ops"] > 0
        server.name = "warren-tls"  # so that no token is shown
        with pytest.raises(BenchError, match="attach"):
            server.load(("attach",), 0.1)


def test_a_stranger_is_not_measured(secure_room: Room, tmp_path: Path) -> None:
    other = Room(secure_room.data, tmp_path)
    hive.make(other.hive)
    with Running("warren-tls", secure_room) as server:
        server.room = other
        with pytest.raises(BenchError, match="handshake"):
            server.load(("serial",), 0.1)


@pytest.mark.parametrize(
    ("lie", "load", "complaint"),
    [
        ("type", "getattr", "type 27"),
        ("tag", "getattr", "asked nothing"),
        ("short", "getattr", "short"),
        ("short", "read", "short"),
        ("short", "write", "short"),
        ("data", "read", "wrong data"),
        ("error", "orc", "Input/output error"),
        ("close", "getattr", "connection lost"),
    ],
)
def test_a_wrong_reply_is_an_error(room: Room, lie: str, load: str, complaint: str) -> None:
    words = {"getattr": ("getattr", "4"), "orc": ("orc", "4")}.get(load, (load, "64K", "4"))
    with Running("canned", room, lambda _, port: [str(CACHE / "canned"), "-x", lie, str(port)]) as liar:
        figures = liar.load(words, 0.05)
    assert figures["errors"] > 0
    assert complaint in figures["first_error"]


def test_a_dead_server_is_no_measurement(room: Room) -> None:
    with Running("canned", room) as server:
        server.process.kill()
        server.process.wait()
        with pytest.raises(BenchError, match="Connection refused"):
            server.load(("serial",), 0.05)


def test_a_server_that_does_not_start_says_why(room: Room) -> None:
    with pytest.raises(BenchError, match="usage: canned"):
        with Running("canned", room, lambda *_: [str(CACHE / "canned")]):
            pass


def rounds(figure: str, *values: float, wrong: int = 0) -> list[Figures]:
    return [{figure: value, "errors": wrong, "first_error": "lied" if wrong else ""} for value in values]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(129, "defect"), (130, "between"), (249, "between"), (250, "aim met")]
)
def test_a_ratio_is_judged_by_the_best_rounds(ours: float, verdict: str) -> None:
    (scenario,) = [scenario for scenario in SCENARIOS if scenario.name == "getattr-32"]
    result = Result(scenario, rounds("ops_per_s", 90, 100), rounds("ops_per_s", 1, ours))
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("cost", "verdict"), [(101, "defect"), (99, "between"), (21, "between"), (20, "aim met")]
)
def test_memory_is_judged_by_itself(cost: float, verdict: str) -> None:
    (scenario,) = [scenario for scenario in SCENARIOS if scenario.idle]
    result = Result(scenario, rounds(scenario.figure, 1), rounds(scenario.figure, cost, 500))
    assert result.verdict == verdict


def named(name: str) -> Scenario:
    (scenario,) = [scenario for scenario in SCENARIOS if scenario.name == name]
    return scenario


@pytest.mark.parametrize(
    ("other", "ours", "verdict"),
    [
        (100, 299, "defect"),
        (100, 300, "between"),
        (300, 300, "defect"),
        (601, 600, "defect"),
        (599, 600, "aim met"),
    ],
)
def test_a_rate_is_judged_by_itself_and_must_be_ahead(other: float, ours: float, verdict: str) -> None:
    result = Result(named("tls-read-1Mx4"), rounds("mb_per_s", other), rounds("mb_per_s", 1, ours))
    assert result.verdict == verdict


@pytest.mark.parametrize(("other", "ours", "verdict"), [(900, 200, "aim met"), (1, 199, "defect")])
def test_a_rate_alone_may_be_behind(other: float, ours: float, verdict: str) -> None:
    result = Result(named("tls-handshakes"), rounds("ops_per_s", other), rounds("ops_per_s", ours))
    assert result.verdict == verdict


def test_one_wrong_round_is_a_defect() -> None:
    scenario = SCENARIOS[0]
    clean, wrong = rounds("ops_per_s", 1000), rounds("ops_per_s", 2000, wrong=1)
    result = Result(scenario, rounds("ops_per_s", 100), clean + wrong)
    assert result.verdict == "defect"
    assert result.value(result.subject) == 1000


def test_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    sides = ["--against", "canned", "--subject", "canned"]
    quick = ["--rounds", "1", "--seconds", "0.05", "--only", "conns-100,idle", "--json", str(out)]
    assert main([*sides, *quick]) in (0, 1)
    assert "conns-100" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert [entry["scenario"]["name"] for entry in figures["scenarios"]] == ["conns-100", "idle"]
    assert {"cpu", "cores", "kernel", "python", "trio"} <= figures["machine"].keys()


def test_an_unknown_package_has_no_version() -> None:
    assert package_version("no-such-package-as-this") == "unknown"


def test_stacks_are_summed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stacks"
    path.write_text("run (a.py:1);stat (b.py:2) 3\nrun (a.py:1);stat (b.py:9) 1\n")
    show_stacks(read_stacks(path), 5)
    printed = capsys.readouterr().out
    assert " 100.0%  100.0%  stat (b.py)" in printed
    assert "  75.0%  stat (b.py:2)" in printed


def test_the_sampler_sees_who_burns_the_time(tmp_path: Path) -> None:
    def burn() -> None:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    before = signal.getsignal(signal.SIGPROF)
    sampler = Sampler(tmp_path / "stacks")
    try:
        sampler.start()
        burn()
        sampler.stop()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    stacks = read_stacks(sampler.out)
    burning = sum(count for stack, count in stacks.items() if any(".burn " in frame for frame in stack))
    assert burning > 0.8 * stacks.total() > 0
