"""Servers for the tests of a module, and the command run in this process where that is as good."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from warren.shell.main import main

from tests.shell.running import EVERYTHING, Done, Served, serving, socket_in

Command = Callable[..., Done]


@pytest.fixture(scope="session")
def fuse(not_run: Callable[[str], NoReturn]) -> None:
    """For tests that need a mount: asked before a hive is started for them."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        not_run(f"/dev/fuse: {e.strerror}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving("demo", *socket_in(tmp_path_factory.mktemp("demo")), *EVERYTHING) as served:
        yield served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `disk` serves."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module")
def disk(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving("disk", str(folder), *socket_in(tmp_path_factory.mktemp("disk")), *EVERYTHING) as served:
        yield served


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`run("ls", "/", at=...)` in this process: the same code without the start of an interpreter."""
    for name in ("WARREN_AT", "WARREN_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def command(*words: str, at: str = "") -> Done:
        if at:
            monkeypatch.setenv("WARREN_AT", at)
        code = main(words)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    return command


@pytest.fixture
def documents() -> Callable[[str], list[Any]]:
    """JSON output, parsed: one document a line."""
    return lambda out: [json.loads(line) for line in out.splitlines()]
