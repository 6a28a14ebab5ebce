"""Archives: the same bytes for the same entries, and every directory before what is in it."""

import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.boot.formats import initramfs
from warren.boot.formats.initramfs import Entry, compressed, cpio, inflated, listed
from warren.tree import Refused

SOME = [
    initramfs.file("usr/bin/tool", b"#!/bin/sh\n", 0o755),
    initramfs.file("etc/odd", b"12345"),
    initramfs.file("usr-local", b""),
    initramfs.link("bin", "usr/bin"),
    initramfs.device("dev/console", 5, 1),
    initramfs.directory("tmp", 0o1777),
]

names = st.lists(
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8)
    .filter(lambda name: name not in (".", "..", initramfs.END)),
    min_size=1, max_size=3, unique=True,
)  # fmt: skip


def test_the_order_of_entries_does_not_matter() -> None:
    archive = cpio(SOME)
    for seed in range(5):
        mixed = list(SOME)
        random.Random(seed).shuffle(mixed)
        assert cpio(mixed) == archive


def test_a_directory_stands_before_what_it_holds_and_none_is_missing() -> None:
    found = [entry.name for entry in listed(cpio(SOME))]
    assert found == [
        "bin", "dev", "dev/console", "etc", "etc/odd", "tmp", "usr", "usr/bin", "usr/bin/tool", "usr-local",
    ]  # fmt: skip


def test_the_tool_that_everybody_has_reads_it(tmp_path: Path) -> None:
    tool = shutil.which("cpio")
    assert tool, "apt-get install cpio"
    archive = cpio(entry for entry in SOME if not stat.S_ISCHR(entry.mode))
    subprocess.run([tool, "-idm", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "etc/odd").read_bytes() == b"12345"
    assert (tmp_path / "etc/odd").stat().st_mtime == 0
    told = subprocess.run([tool, "-itv", "--quiet"], input=cpio(SOME), capture_output=True, check=True).stdout
    assert b"5,   1" in told


@pytest.mark.parametrize("name", ["", "/etc", "a//b", "../up", "a/./b", "a\0b", initramfs.END])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be in an archive"):
        cpio([initramfs.file(name, b"")])


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([initramfs.file("a", b"1"), initramfs.file("a", b"2")], "twice"),
        ([initramfs.file("a", b"1"), initramfs.file("a/b", b"2")], "no directory"),
    ],
)
def test_what_cannot_be_together_is_refused(entries: list[Entry], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        cpio(entries)


@given(names, st.binary(max_size=40), st.binary(max_size=40))
def test_what_goes_in_comes_out(path: list[str], body: bytes, more: bytes) -> None:
    one, two = initramfs.file("/".join(path), body), initramfs.file("zz" * 5 + "/x", more)
    both = list(listed(cpio([one]) + cpio([two])))
    assert [entry for entry in both if not stat.S_ISDIR(entry.mode)] == [one, two]


@given(st.binary(max_size=300))
def test_what_is_no_archive_is_refused_and_never_an_accident(data: bytes) -> None:
    archive = bytearray(cpio(SOME))
    at = len(data) % len(archive)
    archive[at : at + len(data)] = data
    for piece in (bytes(archive), data, bytes(archive[: len(archive) - len(data) - 1])):
        try:
            list(listed(piece))
        except ValueError as e:
            assert "byte" in str(e)  # noqa: PT017


def test_what_is_packed_comes_out_again_and_two_are_one() -> None:
    one, two = cpio(SOME), cpio([initramfs.file("more", bytes(5000))])
    assert inflated(compressed(one) + compressed(two)) == one + two
    assert compressed(one) == compressed(one)
    with pytest.raises(Refused, match="zstd"):
        inflated(b"no zstd")
