"""What a user installs: a wheel built from the sdist, with every module and data file and nothing beside."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.sources import ROOT, SOURCE_ROOTS

# Sources that images are built from, and where the program has them.
CARRIED = {"kernel-shim": "warren/boot/shim", "images": "warren/boot/images/recipes"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    name = built("build_sdist", ROOT, folder)
    subprocess.run(["tar", "-xzf", folder / name, "-C", folder], check=True)
    return folder / name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from that sdist, unpacked: what the sdist forgets is missing here."""
    folder = tmp_path_factory.mktemp("wheel")
    archive = folder / built("build_wheel", sdist, folder)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder / "unpacked")
    return folder / "unpacked"


def built(hook: str, project: Path, folder: Path) -> str:
    """Run one PEP 517 hook of hatchling as a frontend does, in a process of its own; the new file's name."""
    code = f"import sys; from hatchling.build import {hook}; print({hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=project, check=True, capture_output=True, text=True
    )
    return done.stdout.split()[-1]


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def shipped() -> set[str]:
    """Every file of the packages as it lies in the checkout, named as it is to be installed."""
    carried = {
        f"{there}/{path.relative_to(ROOT / top)}"
        for top, there in CARRIED.items()
        for path in (ROOT / top).rglob("*")
        if path.is_file() and not {"out", ".gitignore"}.intersection(path.relative_to(ROOT / top).parts)
    }
    return carried | {
        str(path.relative_to(ROOT / top))
        for top in SOURCE_ROOTS
        for path in (ROOT / top / "warren").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def metadata(wheel: Path) -> Message:
    (record,) = wheel.glob("warren_9p-*.dist-info/METADATA")
    return email.message_from_string(record.read_text())


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    installed = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert installed == shipped()


def test_the_wheel_adds_one_name_to_site_packages(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"warren"}
    assert not (wheel / "warren/__init__.py").exists()


def test_every_package_in_the_wheel_is_marked_as_typed(wheel: Path) -> None:
    portions = list((wheel / "warren").iterdir())
    assert portions
    assert [portion.name for portion in portions if not (portion / "py.typed").exists()] == []


def test_the_wheel_works_where_only_it_is_unpacked(wheel: Path) -> None:
    found = sorted(p.parent.name for p in (wheel / "warren").glob("*/__init__.py"))
    assert found
    code = (
        "import importlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]: print(importlib.import_module('warren.' + name).__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(wheel), *found], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(wheel / "warren" / name / "__init__.py") for name in found]


def test_the_metadata_is_what_the_project_says(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = metadata(wheel)
    assert (stated["Name"], stated["Version"]) == ("warren-9p", project["version"])
    assert stated["License-Expression"] == "Apache-2.0"
    required = stated.get_all("Requires-Dist", [])
    core = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    assert core == {"cryptography", "msgspec", "trio"}, "the core stays three packages, all of them wheels"
    (scripts,) = wheel.glob("warren_9p-*.dist-info/entry_points.txt")
    assert "warren = warren.shell.main:main" in scripts.read_text()
    (licence,) = wheel.glob("warren_9p-*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()


def test_the_sdist_carries_what_a_contributor_needs_and_no_debris(sdist: Path) -> None:
    held = contents(sdist)
    needed = {"Makefile", "LICENSE", "README.md", "CONTRIBUTING.md", "pyproject.toml", ".ci/setup", ".ci/run"}
    assert needed <= held
    assert str(Path(__file__).relative_to(ROOT)) in held
    debris = (".venv/", ".cache/", ".git/", "dist/", "build/")
    assert not [name for name in held if name.startswith(debris) or name.endswith(".pyc")]
    assert os.access(sdist / ".ci/setup", os.X_OK)
