"""What make leaves: the same bytes every time, and images that our own validators accept."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from warren.boot.formats import elf, multiboot

from tests.shim.machine import SHIM, good, make, scratch


def test_the_same_sources_give_the_same_bytes() -> None:
    """In another place, under another name, at another time."""
    elsewhere = scratch() / "a longer name than that"
    shutil.copytree(SHIM, elsewhere)
    out = scratch() / "out"
    done = make(out, shim=elsewhere)
    assert done.returncode == 0, done.stderr
    for name in ("root.elf", "standin.elf"):
        assert (out / name).read_bytes() == (good() / name).read_bytes(), name
        assert str(elsewhere).encode() not in (out / name).read_bytes()
        assert b"GCC:" not in (out / name).read_bytes()


def test_make_check_and_clean() -> None:
    assert "every object has 64 bits" in make(good(), "check").stdout
    out = scratch() / "out"
    shutil.copytree(good(), out)
    assert make(out, "clean").returncode == 0
    assert list(out.iterdir()) == []


def test_nothing_is_built_twice() -> None:
    done = subprocess.run(["make", "-q", "-C", str(SHIM), f"OUT={good()}"], check=False)
    assert done.returncode == 0


def test_our_validators_accept_both() -> None:
    root, standin = (good() / "root.elf").read_bytes(), (good() / "standin.elf").read_bytes()
    assert elf.check(root, elf.ROOT_TASK) == []
    assert elf.check(standin, elf.KERNEL) == []
    assert multiboot.check(standin) == []
    assert multiboot.pvh(standin) is not None


@pytest.mark.parametrize("word", ["__stack_chk", "GLIBC", "/tmp/", "/usr/"])
def test_nothing_of_the_outside_is_in_them(word: str) -> None:
    for name in ("root.elf", "standin.elf"):
        assert word.encode() not in (good() / name).read_bytes()
