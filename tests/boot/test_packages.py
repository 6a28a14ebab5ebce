"""What is in packages, of packages that are made here: links, hard links, wheels, modules, kernels."""

import lzma
import os
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from warren.boot.formats import initramfs
from warren.boot.images import linux, packages
from warren.boot.images.inputs import Pin
from warren.boot.images.linux import Linux, entered
from warren.tree import Refused


def debian(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A Debian package of these files."""
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    said = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@o>\n"
    (root / "DEBIAN/control").write_text(f"{said}Description: a test\n")
    for path, body in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(body)
    if "usr/bin/one" in files:
        os.link(root / "usr/bin/one", root / "usr/bin/two")
        (root / "usr/bin/three").symlink_to("one")
        (root / "usr/bin/one").chmod(0o4755)
    made = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-b", root, made], check=True, capture_output=True)
    return made


def module(depends: str, before: str = "") -> bytes:
    info = f"\0license=GPL\0depends={depends}\0"
    return b"\x7fELF" + (info + (f"softdep=pre: {before}\0" if before else "")).encode()


def test_a_debian_package_is_read_and_nothing_of_it_runs(tmp_path: Path) -> None:
    path = debian(tmp_path, "tool", {"usr/bin/one": b"#!/bin/sh\n", "usr/share/doc/tool/copyright": b"x"})
    found = {entry.name: entry for entry in packages.debian(path)}
    assert found["usr/bin/one"].mode == 0o100755, "setuid does not stay"
    assert found["usr/bin/two"].body == b"#!/bin/sh\n"
    assert found["usr/bin/three"] == initramfs.link("usr/bin/three", "one")
    assert found.keys() == {
        "usr/bin/one", "usr/bin/two", "usr/bin/three", "usr/share/doc/tool/copyright",
    }  # fmt: skip


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"no archive")
    with pytest.raises(Refused, match="dpkg-deb"):
        list(packages.debian(tmp_path / "x.deb"))


def test_a_wheel_gives_what_it_installs(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        for name in ("__init__.py", "-1.data/platlib/b.so", "-1.data/scripts/run", "-1.dist-info/METADATA"):
            archive.writestr(f"a/{name}" if name.startswith("_") else f"a{name}", name)
    assert [name for name, _ in packages.wheel(tmp_path / "w")] == [
        "b.so", "a-1.dist-info/METADATA", "a/__init__.py",
    ]  # fmt: skip


def test_modules_come_after_what_they_need_and_each_once(tmp_path: Path) -> None:
    drivers = "lib/modules/6.1.0/kernel/drivers"
    path = debian(tmp_path, "linux-image-test", {
        f"{drivers}/top.ko": module("mid-one,mid_two"),
        f"{drivers}/mid_one.ko": module("low"),
        f"{drivers}/mid-two.ko.xz": lzma.compress(module("low", before="soft")),
        f"{drivers}/low.ko": module(""),
        f"{drivers}/soft.ko": module(""),
        f"{drivers}/other.ko": module(""),
    })  # fmt: skip
    found = list(packages.modules(path, ["top", "built_in", "low"]))
    assert [name for name, _ in found] == ["low", "mid_one", "soft", "mid_two", "top"]
    assert dict(found)["mid_two"] == module("low", before="soft")
    with pytest.raises(Refused, match="none of the modules"):
        list(packages.modules(path, ["gone"]))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("License-Expression: MIT OR Apache-2.0\n\nbody", ("MIT OR Apache-2.0",)),
        ("License: MIT\n\nLicense: of the body", ("MIT",)),
        ("Name: x\n\n", ()),
    ],
)
def test_a_wheel_names_its_licence(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", text)
    assert packages.licences(Pin("wheel", "a", "1", "", 0), tmp_path / "w") == named


def test_a_debian_package_names_its_licences(tmp_path: Path) -> None:
    text = b"Files: *\nLicense: GPL-2+\n\nLicense: BSD-3-clause\n Redistribution\n\nLicense: GPL-2+\n"
    path = debian(tmp_path, "tool", {"usr/share/doc/tool/copyright": text})
    assert packages.licences(Pin("deb", "tool", "1", "", 0), path) == ("BSD-3-clause", "GPL-2+")


def bzimage(payload: bytes) -> bytes:
    head = bytearray(4096)
    head[0x1F1] = 7
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


@pytest.mark.parametrize(
    "packed",
    [
        lzma.compress(b"\x7fELF kernel") + b"size",
        initramfs.compressed(b"\x7fELF kernel") + b"size",
    ],
)
def test_a_kernel_is_unpacked_where_that_is_known(packed: bytes) -> None:
    assert entered(bzimage(packed)) == b"\x7fELF kernel"


@pytest.mark.parametrize("payload", [b"BZh9 something", lzma.compress(b"no ELF") + b"size", b""])
def test_a_kernel_that_is_not_stays_as_it_is(payload: bytes) -> None:
    assert entered(bzimage(payload)) == bzimage(payload)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("lib/libc.so*", ["lib/libc.so.6"], ["lib/libc.so/x", "usr/lib/libc.so.6"]),
        ("usr/**", ["usr/a", "usr/a/b"], ["usr", "usrx/a"]),
        ("**/tests/**", ["tests/a", "a/tests/b/c"], ["tests", "a/xtests/b"]),
        ("**/*.pyi", ["a.pyi", "b/c/a.pyi"], ["a.py", "a.pyi/b"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_patterns_say_what_is_kept(pattern: str, yes: list[str], no: list[str]) -> None:
    match = linux._matcher([pattern])
    assert [path for path in yes + no if match(path)] == yes


def test_no_pattern_keeps_nothing() -> None:
    assert not linux._matcher([])("")


def test_warren_in_a_machine_has_no_command_and_no_debris(tmp_path: Path) -> None:
    for name in ("p9/codec.py", "p9/__pycache__/codec.cpython-311.pyc", "shell/main.py",
                 "boot/formats/elf.py", "check/tree.py", "roles/lib/base.role", "p9/py.typed",
                 "p9/notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert linux.sources([tmp_path]) == {
        "warren/p9/codec.py": b"p9/codec.py", "warren/roles/lib/base.role": b"roles/lib/base.role",
    }  # fmt: skip


def test_a_linux_recipe_is_complete_or_refused() -> None:
    lists = {name: ["x"] for name in ("packages", "wheels", "keep", "drop", "modules")}
    said: dict[str, object] = {"suite": "bookworm", "kernel": "k", "cmdline": "quiet", **lists}
    assert Linux.read(said).keep == ("x",)
    for wrong in ({"more": 1}, {"suite": 7}, {"cmdline": "a\nb"}, {"keep": "x"}, {"keep": [1]}):
        with pytest.raises(Refused):
            Linux.read({**said, **wrong})
    del said["suite"]
    with pytest.raises(Refused, match="suite"):
        Linux.read(said)


def test_the_interpreter_of_the_image_is_asked_and_believed(tmp_path: Path) -> None:
    """Where it cannot run, the build stops and says so."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    loader = tmp_path / linux.LOADER
    loader.parent.mkdir(parents=True)
    loader.write_bytes(b"#!/bin/sh\necho 'ImportError: no module' >&2; exit 1\n")
    loader.chmod(0o755)
    with pytest.raises(Refused, match="the image's own Python: ImportError: no module"):
        linux._python(tmp_path, "import warren", "")


def test_an_archive_is_laid_out_within_its_folder(tmp_path: Path) -> None:
    link = initramfs.link
    for entry in (initramfs.file("a/b", b"x", 0o755), link("c", "/a/b"), link("d/e", "../a/b")):
        linux._lay(tmp_path, entry)
    with pytest.raises(ValueError, match="cannot be in an archive"):
        linux._lay(tmp_path, initramfs.file("../out", b"x"))
    assert (tmp_path / "c").read_bytes() == b"x"
    assert (tmp_path / "d/e").read_bytes() == b"x"
    assert (tmp_path / "c").resolve() == tmp_path / "a/b"


@pytest.mark.parametrize("to", ["../out", "sub/../../out", "sub/up"])
@pytest.mark.parametrize("name", ["a/file", "a"])
def test_a_link_that_leads_out_is_not_followed(to: str, name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub/up").symlink_to("../../out")
    (tmp_path / "out").mkdir()
    linux._lay(root, initramfs.link("a", to))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused, match=f"{name} leads out of the image"):
        linux._lay(root, initramfs.file(name, b"x"))
    assert sorted(tmp_path.rglob("*")) == before
