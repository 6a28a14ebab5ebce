"""What an SDK says, wherever in it that lies and however it is spelt."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from warren.boot.sel4 import sdk
from warren.boot.sel4.abi import from_sdk, load_toml
from warren.tree import Refused

from tests.shim.sdks import CONFIG, labels, write

TABLES = load_toml()


@pytest.mark.parametrize("place", ["kernel", "gen_config", "board/x86_64_generic/debug/include", "a/b/c/d"])
def test_it_is_found_wherever_it_lies(place: str, tmp_path: Path) -> None:
    found = sdk.read(write(tmp_path, numbers=labels(44), place=place))
    numbers = from_sdk(found, TABLES)
    assert (numbers.issue, numbers.in8, numbers.out8) == (44, 45, 48)
    assert (numbers.page_map, numbers.page_unmap, numbers.frame) == (39, 40, 8)
    assert (numbers.layout, numbers.yield_, numbers.putchar) == (1, -7, -9)


@pytest.mark.parametrize(
    ("config", "layout", "putchar", "frame"),
    [
        ({}, 1, -9, 8),
        ({"PRINTING": False, "DEBUG_BUILD": False}, 1, 0, 8),
        ({"KERNEL_MCS": True}, 2, -12, 10),
        ({"KERNEL_MCS": True, "PRINTING": False}, 2, 0, 10),
        ({"HUGE_PAGE": False}, 1, -9, 7),
    ],
)
def test_the_numbers_follow_the_configuration(
    config: dict[str, Any], layout: int, putchar: int, frame: int, tmp_path: Path
) -> None:
    numbers = from_sdk(sdk.read(write(tmp_path, config, labels(50))), TABLES)
    assert (numbers.layout, numbers.putchar, numbers.frame, numbers.issue) == (layout, putchar, frame, 50)
    assert numbers.faults() == []


@pytest.mark.parametrize("yes", [True, 1, "1", "ON", "true"])
@pytest.mark.parametrize("prefix", ["", "CONFIG_"])
def test_every_spelling_of_yes(yes: Any, prefix: str, tmp_path: Path) -> None:
    config = {prefix + key: value for key, value in (CONFIG | {"KERNEL_MCS": yes}).items()}
    where = tmp_path / "kernel"
    where.mkdir()
    (where / "gen_config.json").write_text(json.dumps(config))
    found = sdk.read(tmp_path)
    assert found.mcs
    assert found.labels is None
    assert from_sdk(found, TABLES).issue == 0  # the root task will probe


def test_labels_in_groups_are_labels(tmp_path: Path) -> None:
    grouped = {"invocations": {"UntypedRetype": 1}, "arch": labels(47), "count": 60}
    assert from_sdk(sdk.read(write(tmp_path, numbers=grouped)), TABLES).issue == 47


def test_its_facts(tmp_path: Path) -> None:
    (write(tmp_path, {"MAX_NUM_NODES": "4"}, labels(45)) / "VERSION").write_text("16.0.0\n")
    assert sdk.read(tmp_path).facts() == {
        "version": "16.0.0", "scheduler": "classic", "kind": "debug", "prints": "yes", "cores": "4",
        "iommu": "no", "pcid": "no", "labels": "sdk",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "numbers", "words"),
    [
        ({"SEL4_ARCH": "aarch64"}, None, "aarch64, not for x86_64"),
        ({"SEL4_ARCH": "ia32"}, None, "ia32, not for x86_64"),
        ({"KERNEL_X86_SYSCALL": "sysenter"}, None, "called by sysenter"),
        ({"KERNEL_MCS": "perhaps"}, None, "KERNEL_MCS is 'perhaps'"),
        ({"MAX_NUM_NODES": 0}, None, "MAX_NUM_NODES is 0"),
        ({"ROOT_CNODE_SIZE_BITS": "twelve"}, None, "ROOT_CNODE_SIZE_BITS is 'twelve'"),
        ({}, {"UntypedRetype": 1}, "no number for X86IOPortControlIssue"),
        ({}, {k: str(v) for k, v in labels(44).items()}, "no number for X86IOPortControlIssue"),
        ({}, [1, 2], "not a table of names"),
    ],
)
def test_what_is_refused(config: dict[str, Any], numbers: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path, config, numbers)
    with pytest.raises(Refused, match=words):
        sdk.read(tmp_path)


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"has no kernel/gen_config\.json.*boot without --sdk"):
        sdk.read(tmp_path)
    with pytest.raises(Refused, match="there is no folder"):
        sdk.read(tmp_path / "none")
    where = tmp_path / "kernel"
    where.mkdir()
    (where / "gen_config.json").write_text("{")
    with pytest.raises(Refused, match="is not JSON"):
        sdk.read(tmp_path)
    (where / "gen_config.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(Refused, match="larger than such a file can be"):
        sdk.read(tmp_path)


def test_several_kernels_are_not_guessed_between(tmp_path: Path) -> None:
    write(tmp_path, {"KERNEL_MCS": True}, labels(50), place="debug")
    write(tmp_path, {"KERNEL_MCS": False}, labels(44), place="release")
    with pytest.raises(Refused, match="several kernels; name the folder of one"):
        sdk.read(tmp_path)
    assert sdk.read(tmp_path / "debug").mcs
    (tmp_path / "copy").mkdir()
    write(tmp_path / "copy", {}, labels(44), place="one")
    write(tmp_path / "copy", {}, labels(44), place="two")
    assert not sdk.read(tmp_path / "copy").mcs


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    os.mkfifo(tmp_path / "kernel/gen_config.json")
    with pytest.raises(Refused, match="is no plain file"):
        sdk.read(tmp_path)
