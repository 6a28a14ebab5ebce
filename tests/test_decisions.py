"""Decision records: short, of one form, numbered without gaps, complete about what is installed."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from tests.sources import ROOT

RECORDS = sorted((ROOT / "docs/decisions").glob("*.md"))
SECTIONS = ["Context", "Decision", "Consequences"]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_is_one_short_page(record: Path) -> None:
    lines = record.read_text().splitlines()
    number = int(record.name.partition("-")[0])
    assert re.fullmatch(rf"# {number}\. .+", lines[0])
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == SECTIONS
    assert len(lines) < 40, "a record that needs more is two records"


def test_records_are_numbered_without_gaps() -> None:
    numbers = [int(record.name[:4]) for record in RECORDS]
    assert numbers == list(range(1, len(RECORDS) + 1))
    assert numbers


def test_every_dependency_has_a_row() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    (table,) = (ROOT / "docs/decisions").glob("*-packages.md")
    rows = [line.split("|")[1:3] for line in table.read_text().splitlines() if line.startswith("| ")]
    verdicts = {name.strip(): verdict for names, verdict in rows for name in names.split(",")}
    for requirement in required:
        name = re.split(r"[<>=~! \[;]", requirement)[0]
        assert verdicts.get(name, "no row").strip().startswith("used"), f"{name} in {table.name}"
