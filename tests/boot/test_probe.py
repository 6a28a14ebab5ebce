"""The probe of accelerators, on the QEMU that is here."""

import shutil

from warren.boot.machines.probe import QEMU, accelerator


async def test_the_image_boots_under_the_interpreter() -> None:
    assert shutil.which(QEMU), "make test installs QEMU"
    found = await accelerator("tcg")
    assert found.works, found.why
    assert found.seconds > 0


async def test_what_does_not_boot_the_image_says_why() -> None:
    found = await accelerator("no-such-accelerator")
    assert not found.works
    assert "no-such-accelerator" in found.why


async def test_patience_ends_a_machine_that_does_not() -> None:
    found = await accelerator("tcg", patience=0.001)
    assert not found.works
    assert "did not end" in found.why
