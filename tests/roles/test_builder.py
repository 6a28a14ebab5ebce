"""Images that a role has built beside itself: what the other process says, and that it ends."""

from pathlib import Path

import pytest
import trio
from warren.boot.images.image import Images
from warren.roles.builder import Beside
from warren.tree import Refused

from tests.servers.vm.suite import children


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    monkeypatch.setenv("WARREN_IMAGES", str(tmp_path / "images"))
    return Beside(Images.at(tmp_path), tmp_path)


async def test_an_image_is_built_by_another_process_and_found_by_this_one(beside: Beside) -> None:
    told: list[str] = []
    assert beside.find("standin") is None
    made = await beside.build("standin", told.append)
    assert beside.find("standin") == made
    assert any("built standin" in line for line in told), told
    assert children() == set()


async def test_what_cannot_be_built_says_why_as_if_it_had_been_tried_here(beside: Beside) -> None:
    with pytest.raises(Refused) as refused:
        await beside.build("nosuch")
    assert refused.value.code == 404
    assert "nosuch" in refused.value.detail


async def test_giving_up_ends_it(beside: Beside) -> None:
    with trio.CancelScope() as scope:
        await beside.build("standin", lambda said: scope.cancel())
    assert scope.cancelled_caught
    assert children() == set()
    assert beside.find("standin") is None


async def test_a_process_that_just_ends_is_no_image(
    beside: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WARREN_IMAGES", str(tmp_path / "file"))  # where the other process cannot write
    with pytest.raises(Refused):
        await beside.build("standin")
    assert children() == set()
