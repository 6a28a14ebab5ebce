"""The ABI block: numbers from abi.toml or an SDK, in and out of a root task."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from warren.boot.sel4 import abi
from warren.boot.sel4.abi import MAGIC, Abi, load_toml, patch, read, shim_folder
from warren.tree import Refused

from tests.shim.machine import SHIM, good

TABLES = load_toml()


def test_a_build_carries_the_standins_numbers() -> None:
    root = (good() / "root.elf").read_bytes()
    assert read(root) == Abi.standin(TABLES)
    assert patch(root, read(root)) == root


def test_only_the_block_changes() -> None:
    root = (good() / "root.elf").read_bytes()
    other = Abi.genuine(TABLES, mcs=True, debug=True, issue=50, frame=10)
    changed = patch(root, other)
    assert read(changed) == other
    at = root.index(MAGIC)
    size = TABLES["block"]["size"]
    assert changed[:at] == root[:at]
    assert changed[at + size :] == root[at + size :]


def test_the_block_in_c_and_here_have_the_same_fields() -> None:
    text = (SHIM / "root" / "abi.h").read_text()
    body = re.search(r"i32 layout;(.*?)i32 reserved", text, re.S)
    assert body is not None
    names = re.findall(r"(\w+)[,;]", re.sub(r"/\*.*?\*/", "", body[1], flags=re.S))
    assert ["layout", *names] == [field.name.rstrip("_") for field in fields(Abi)]


def test_what_all_kernels_share() -> None:
    classic, mcs = Abi.genuine(TABLES, mcs=False, debug=True), Abi.genuine(TABLES, mcs=True, debug=True)
    assert (classic.call, classic.yield_, classic.putchar) == (-1, -7, -9)
    assert (mcs.call, mcs.yield_, mcs.putchar) == (-1, -11, -12)
    assert Abi.genuine(TABLES, mcs=True).putchar == 0  # it would kill us on a release kernel
    unknown = Abi.genuine(TABLES)
    assert (unknown.layout, unknown.yield_, unknown.call) == (0, 0, -1)
    for numbers in (classic, mcs, unknown):
        assert numbers.faults() == []
        assert (numbers.issue, numbers.page_map, numbers.frame) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"call": 1}, "call is 1"),
        ({"call": 0}, "call is 0"),
        ({"yield_": 7}, "yield is 7"),
        ({"putchar": 9}, "putchar is 9"),
        ({"layout": 3}, "layout 3"),
        ({"cnode": 0}, "cnode is 0"),
        ({"issue": 5000}, "issue is 5000"),
        ({"frame": -1}, "frame is -1"),
        ({"retype": 0}, "retype is 0"),
        ({"untyped_bits_at": 9}, "untyped_bits_at is 9"),
    ],
)
def test_numbers_that_are_for_no_kernel(change: dict[str, int], words: str) -> None:
    root = (good() / "root.elf").read_bytes()
    with pytest.raises(Refused, match=words):
        patch(root, replace(Abi.standin(TABLES), **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: root.replace(MAGIC, b"x" * 16), "no ABI block, or two"),
        (lambda root: root + MAGIC, "no ABI block, or two"),
        (lambda root: root[: root.index(MAGIC) + 18], "ends within its ABI block"),
        (lambda root: root[: root.index(MAGIC) + 40], "of version 1"),
        (lambda root: root.replace(MAGIC + b"\1", MAGIC + b"\2"), "of version 2"),
        (lambda root: bytes(abi.LARGEST + 1), "the most is"),
    ],
)
def test_a_root_task_without_a_good_block(change: Callable[[bytes], bytes], words: str) -> None:
    root = change((good() / "root.elf").read_bytes())
    for attempt in (lambda: patch(root, Abi.standin(TABLES)), lambda: read(root)):
        with pytest.raises(Refused, match=words):
            attempt()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.replace("[standin]", "[stand-in]"), r"no table \[standin\]"),
        (lambda text: text.replace("issue = 44", 'issue = "44"'), r"no table \[standin\] of numbers"),
        (lambda text: text.replace("issue = 44", "issue = true"), r"no table \[standin\] of numbers"),
        (lambda text: text + "[version16]\nissue = 44\n", "a table that nothing reads: version16"),
        (lambda text: text + "[", "cannot be read"),
    ],
)
def test_a_damaged_abi_toml(edit: Callable[[str], str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "abi.toml"
    path.write_text(edit((SHIM / "abi.toml").read_text()))
    with pytest.raises(Refused, match=words):
        load_toml(path)


def test_where_the_sources_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shim_folder() == SHIM
    installed = tmp_path / "warren" / "boot"
    (installed / "shim").mkdir(parents=True)
    (installed / "shim" / "abi.toml").write_text("")
    monkeypatch.setattr(abi, "__file__", str(installed / "sel4" / "abi.py"))
    assert shim_folder() == installed / "shim"
    (installed / "shim" / "abi.toml").unlink()
    with pytest.raises(Refused, match="kernel-shim is not here"):
        shim_folder()
