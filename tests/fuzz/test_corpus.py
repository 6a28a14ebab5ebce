"""The corpus, replayed: what a fuzzer once reached is reached in every run, without a fuzzer."""

from pathlib import Path

import pytest

from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent


def inputs(target: str) -> list[Path]:
    return sorted((HERE / "corpus" / target).iterdir())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_corpus_breaks_nothing(target: str) -> None:
    found = inputs(target)
    assert found
    for path in found:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as e:
            raise AssertionError(f"{path.relative_to(HERE)} breaks {target}") from e


def test_the_seeds_break_nothing() -> None:
    for data in seeds.of_decoder():
        TARGETS["decoder"](data)
    for data in seeds.of_session():
        TARGETS["session"](data)


def test_the_corpus_stays_small() -> None:
    files = [path for target in TARGETS for path in inputs(target)]
    assert len(files) < 300
    assert sum(path.stat().st_size for path in files) < 1 << 20


def test_no_crash_waits_to_be_understood() -> None:
    folder = HERE / "crashes"
    assert not folder.exists() or not [path for path in folder.iterdir() if path.name != ".gitignore"]
