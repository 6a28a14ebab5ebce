"""Pins: a lock is read strictly, and what was fetched is what was pinned or is refused.

What archives answer is tried in tests/soak/test_images.py; nothing here asks one.
"""

import hashlib
import os
from pathlib import Path

import pytest
import trio
from warren.boot.images import inputs
from warren.boot.images.image import recipes_folder
from warren.boot.images.inputs import Gone, Lock, Pin, fetched
from warren.tree import Refused

A = "a" * 64
TEXT = f"""warren lock 1
suite bookworm
deb libc6 2.36-9+deb12u14 {A} 5 -
wheel trio 0.35.0 {A} 7 trio-0.35.0-py3.whl
"""


def test_a_lock_reads_back_as_it_was_written() -> None:
    lock = Lock.parse(TEXT)
    assert lock.suite == "bookworm"
    assert lock.pins[0] == Pin("deb", "libc6", "2.36-9+deb12u14", A, 5)
    assert lock.pins[1].file == "trio-0.35.0-py3.whl"
    assert Lock.parse(lock.text) == lock
    assert lock.text == TEXT


def test_the_lock_that_comes_with_the_recipe_holds() -> None:
    path = recipes_folder() / "linux.lock"
    lock = Lock.parse(path.read_text())
    assert lock.text == path.read_text()
    assert sum(pin.name.startswith("linux-image-") for pin in lock.pins) == 1
    assert {"trio", "msgspec", "cryptography"} <= {pin.name for pin in lock.pins if pin.kind == "wheel"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "warren lock 2\nsuite bookworm\n",
        "warren lock 1\n",
        TEXT.replace("deb libc6", "rpm libc6"),
        TEXT.replace("libc6", "-oDir=/"),
        TEXT.replace("bookworm", "--setup-hook=reboot"),
        TEXT.replace("bookworm", "bookworm main"),
        TEXT.replace("bookworm", ""),
        TEXT.replace("libc6", "libc6;reboot"),
        TEXT.replace("2.36-9+deb12u14", "$(reboot)"),
        TEXT.replace(A, A[:-1], 1),
        TEXT.replace(f"{A} 5 -", f"{A} 0 -"),
        TEXT.replace(f"{A} 5 -", f"{A} 99999999999999 -"),
        TEXT.replace(f"{A} 5 -", f"{A} -5 -"),
        TEXT.replace("trio-0.35.0-py3.whl", "../trio.whl"),
        TEXT + TEXT.splitlines()[2] + "\n",
        TEXT + "\n".join(f"deb p{n} 1 {A} 5 -" for n in range(2000)),
    ],
)
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        Lock.parse(text)


def kept(store: Path, data: bytes) -> Pin:
    """A package that was fetched before."""
    digest = hashlib.sha256(data).hexdigest()
    (store / "inputs").mkdir(exist_ok=True)
    (store / "inputs" / digest).write_bytes(data)
    return Pin("deb", "kept", "1", digest, len(data))


async def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    pin, said = kept(tmp_path, b"some package"), list[str]()
    folder = await fetched(Lock("bookworm", (pin,)), tmp_path, said.append)
    assert (folder / pin.sha256).read_bytes() == b"some package"
    assert said == []


def test_what_came_with_another_sum_is_refused_and_not_kept(tmp_path: Path) -> None:
    work, folder = tmp_path / "work", tmp_path / "inputs"
    work.mkdir()
    folder.mkdir()
    (work / "libc6_2.36-9%2bdeb12u14_amd64.deb").write_bytes(b"what somebody else made of it")
    with pytest.raises(Gone, match=r"libc6 .* came with another sum .*warren image lock"):
        inputs._take(work, folder, Lock.parse(TEXT).pins[:1])
    with pytest.raises(Gone, match=r"trio 0\.35\.0 is pinned and did not come"):
        inputs._take(work, folder, Lock.parse(TEXT).pins[1:])
    assert list(folder.iterdir()) == []


async def test_a_package_that_was_changed_where_it_lies_is_fetched_again(tmp_path: Path) -> None:
    pin = kept(tmp_path, b"some package")
    assert inputs._there(tmp_path / "inputs", pin)
    (tmp_path / "inputs" / pin.sha256).write_bytes(b"SOME package")
    assert not inputs._there(tmp_path / "inputs", pin)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("E: Version '0.0.7' for 'libffi8' was not found\n", Gone, "libffi8 0.0.7 is not to be had any more"),
        ("x\nERROR: No matching distribution found for trio==0\n", Gone, "trio==0 is not to be had any more"),
        ("W: old\nE: Unable to fetch some archives\n", Refused, "apt: E: Unable to fetch some archives"),
        ("it broke\nhere\n", Refused, "apt: it broke here"),
        ("", Refused, "apt: it failed without a word"),
    ],
)
def test_a_tools_complaint_becomes_a_line_of_ours(said: str, kind: type[Refused], told: str) -> None:
    made = inputs._refusal("/usr/bin/apt", said)
    assert type(made) is kind
    assert made.detail.startswith(told)


async def test_cancelled_it_leaves_nothing(tmp_path: Path) -> None:
    lock = Lock("bookworm", (Pin("deb", "libffi8", "3.4.4-1", A, 5),))
    async with trio.open_nursery() as nursery:
        said: list[str] = []

        def stop(line: str) -> None:
            said.append(line)
            nursery.cancel_scope.cancel()

        nursery.start_soon(fetched, lock, tmp_path, stop)
    assert len(said) == 1
    assert os.listdir(tmp_path) == ["inputs"]
    assert os.listdir(tmp_path / "inputs") == []
