"""Documents are checked output: what is generated has not drifted, and what is shown works."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["protocol.md", "servers.md", "cli.md"])
def test_generated_pages_have_not_drifted(page: str) -> None:
    written = (ROOT / "docs" / page).read_text()
    assert written == generator().PAGES[page](), "run: .venv/bin/python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_line_of_the_ledger_names_a_test_that_exists() -> None:
    rows = [r for r in (ROOT / "docs" / "ledger.md").read_text().splitlines() if r.startswith("| ")][2:]
    assert rows
    for row in rows:
        proofs = re.findall(r"`(tests/[^`]+)`", row)
        assert proofs, f"no test in: {row}"
        for proof in proofs:
            path, _, name = proof.partition("::")
            assert (ROOT / path).exists(), f"{path} in: {row}"
            if name:
                assert f"def {name}" in (ROOT / path).read_text(), f"{proof} in: {row}"
