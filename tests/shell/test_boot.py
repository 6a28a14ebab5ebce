"""`warren boot`, as people type it, without a hive, and /boot at a hive's mount. Images are really built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from warren.boot.harness.harness import STAGES

from tests.boot.without import without
from tests.shell.conftest import Command
from tests.shell.running import WARREN, Done, environment
from tests.shell.test_hive import down, up
from tests.sources import ROOT

PATIENCE = 120
SHARED = str(ROOT / ".cache/images")
Boot = Callable[..., Done]


@pytest.fixture
def boot(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boot:
    """The command with a state of its own, and the images that all tests share."""
    monkeypatch.setenv("WARREN_IMAGES", SHARED)

    def command(*words: str) -> Done:
        done = run("boot", *words, "--state", str(tmp_path / "s"))
        assert "defect" not in done.err, done.err
        return done

    return command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "it does run, measure, verify, report, not ''"),
        (("fly", "standin"), "it does run, measure, verify, report, not 'fly'"),
        (("run",), "it takes one IMAGE"),
        (("run", "a", "b"), "it takes one IMAGE"),
        (("report", "a"), "it takes no further word"),
        (("run", "standin", "--runs", "3"), "--runs does not go with it"),
        (("measure", "standin", "--secure-boot"), "--secure-boot does not go with it"),
        (("measure", "standin", "--limit", "3s"), "--limit does not go with it"),
        (("verify", "standin", "--budget", "3s"), "--budget does not go with it"),
        (("run", "standin", "--kernel", "/k"), "--kernel does not go with it"),
        (("run", "sel4"), "no kernel is part of Warren; give yours with --kernel PATH"),
        (("measure", "sel4"), "a kernel of yours is booted by run"),
        (("measure", "standin", "--runs", "0"), "--runs is a number from 1 on"),
        (("run", "standin", "--budget", "soon"), "--budget is a time such as 200ms or 10s, not 'soon'"),
        (("run", "standin", "--budget=-1s"), "--budget is a time"),
        (("run", "standin", "--recipe", "bike"), "there is no recipe 'bike'; there are linux-microvm"),
        (("run", "standin", "--accel", "magic"), "there is no accelerator 'magic'"),
    ],
)
def test_a_wrong_command_line_says_what_is_right(
    boot: Boot, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = boot(*words)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "prints"),
    [
        (("run", "standin"), "echo 'run image=standin' > /boot/ctl; cat /boot/last"),
        (
            ("run", "linux", "--secure-boot", "--budget", "30s", "--accel", "tcg"),
            "echo 'run image=linux budget=30s accel=tcg secure=yes' > /boot/ctl; cat /boot/last",
        ),
        (("measure", "standin"), "echo 'measure image=standin runs=20' > /boot/ctl; cat /boot/measure"),
        (("verify", "linux"), "echo 'verify linux' > /boot/ctl; cat /boot/verify.log"),
        (("report",), "cat /boot/report"),
    ],
)
def test_what_does_the_same_in_a_hive(boot: Boot, words: tuple[str, ...], prints: str) -> None:
    assert boot(*words, "-n") == (0, f"{prints}\n", "")


def test_nothing_was_booted_yet(boot: Boot) -> None:
    done = boot("report")
    assert (done.code, done.out) == (3, "")
    assert "nothing was booted yet; boot something: warren boot run standin" in done.err


def test_an_image_that_there_is_not(boot: Boot) -> None:
    done = boot("run", "toaster")
    assert done.code == 3
    assert "there is no image 'toaster'; there are" in done.err


def test_a_run_and_its_report(boot: Boot, tmp_path: Path) -> None:
    env = environment(WARREN_IMAGES=SHARED, WARREN_STATE=str(tmp_path / "s"))
    done = subprocess.run(
        [WARREN, "boot", "run", "standin", "--accel", "tcg"], env=env, capture_output=True, text=True,
        timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done
    first, *rest = done.stdout.splitlines()
    assert first == "standin: booted"
    shown = dict(line.strip().split("=", 1) for line in rest)
    assert [name for name in shown if name in STAGES] == list(STAGES)
    assert (shown["accel"], shown["recipe"], shown["exit"]) == ("tcg", "standin-microvm", "85")

    report = boot("report")
    assert report.code == 0
    assert {"# guest", "# measured", "# log"} <= set(report.out.splitlines())
    document = json.loads(boot("report", "--json").out)
    assert document["verdict"] == "booted"
    assert sorted(os.listdir(tmp_path / "s/boot")) == ["last", "report"], "nothing else is left"


def test_a_gate_that_falls_is_a_failure(boot: Boot) -> None:
    done = boot("run", "standin", "--accel", "tcg", "--budget", "1ms", "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert document["verdict"] == "booted"
    [gate] = document["gates"]
    assert (gate["name"], gate["bound"], gate["ok"]) == ("wall", 1.0, False)


def test_a_time_out_is_an_error_of_its_own_class(boot: Boot) -> None:
    done = boot("run", "standin", "--accel", "tcg", "--limit", "1ms")
    assert done.code == 8
    assert done.out.startswith("standin: error: it was not ready within 0.001 s")


def test_measuring_prints_one_document_alone(boot: Boot) -> None:
    done = boot("measure", "standin", "--runs", "3", "--accel", "tcg", "--json")
    assert done.code == 0, done
    document = json.loads(done.out)
    assert (document["image"], document["runs"], document["booted"]) == ("standin", 3, 3)
    assert 0 < document["min_ms"] <= document["median_ms"] <= document["p95_ms"] <= document["max_ms"]
    assert list(document["stages"]) == list(STAGES)
    assert document["instructions"] > 1000
    assert [(gate["name"], gate["ok"]) for gate in document["gates"]] == [("instructions", True)]


def test_verifying_finds_a_flipped_byte_and_a_run_refuses_it(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARREN_IMAGES", str(tmp_path / "images"))
    assert boot("verify", "standin").code == 3
    assert boot("run", "standin", "--accel", "tcg").code == 0
    assert boot("verify", "standin") == (0, "standin: ok\n", "")

    [root] = (tmp_path / "images/standin").glob("*/root.elf")
    data = bytearray(root.read_bytes())
    data[-1] ^= 1
    root.write_bytes(data)

    done = boot("verify", "standin", "--json")
    assert done.code == 9
    document = json.loads(done.out)
    assert document["ok"] is False
    assert "root.elf" in document["faults"][0]
    refused = boot("run", "standin", "--accel", "tcg")
    assert refused.code == 4
    assert refused.out.startswith("standin: refused: it is not what was signed: root.elf")
    log = (tmp_path / "s/boot/verify.log").read_text().splitlines()
    assert ["verdict=ok" in line for line in log] == [True, False]


def test_without_qemu_it_says_what_is_missing(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("setpriv", "sh", "make", "awk", "gcc", "ld", "objcopy"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = boot("run", "standin", "--accel", "tcg")
    assert done.code == 7
    assert "qemu-system-x86_64 is not installed" in done.out


def test_without_what_speaks_with_qemu_it_says_what_to_install(boot: Boot) -> None:
    with without("qemu"):
        done = boot("run", "standin", "--accel", "tcg")
    assert done.code == 7
    assert "pip install 'warren-9p[vm]'" in done.out


IN_A_HIVE = """
set -eu; cd $M/boot
ls images
exec 3<events
echo 'run image=standin accel=tcg budget=30s' > ctl
until read -r event <&3; case $event in *kind=done*|*kind=failed*) true;; *) false;; esac; do :; done
echo "$event"
cat last
echo 'verify standin' > ctl
cat images/standin/verify images/standin/elf
echo 'run image=toaster' > ctl || cat $M/dev/errstr
"""


@pytest.mark.usefixtures("fuse")
def test_a_hive_boots_images_at_its_mount() -> None:
    folder = Path(tempfile.mkdtemp(prefix="boot-"))
    try:
        done = up(folder / "s", "queen=QueenPrimary").sh(IN_A_HIVE)
    finally:
        down(folder / "s")
        shutil.rmtree(folder)
    lines = done.out.splitlines()
    assert lines[: lines.index("standin") + 1][-1] == "standin", done
    assert {"verdict=booted", "state=done", "gates=held", "exit=85", "verdict=ok"} <= set(lines), done
    assert lines.count("verdict=ok") == 3, "the manifest, the kernel and the root task"
    assert lines[-1].startswith("404 not_found: there is no image 'toaster'")
