"""For all tests: what may be left out, said aloud at the end of every run.

A test that cannot run here fails, with four exceptions that no contributor can help. Such a test takes the
`not_run` fixture and calls it with a reason that begins with one of them:

    not_run("GPU: no NVIDIA device")

Anything else that is missing is a defect of the set-up and is to be seen as one, so `pytest.skip` and its
relatives appear nowhere but here.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.store.nats import Nats, alone

PERMITTED = ("seL4 kernel", "GPU", "second guest kernel", "/dev/fuse")

# Hives of tests that run at once have ports of their own: one whose queen is started again keeps hers.
os.environ["WARREN_PORT"] = str(5700 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))

# The long runs: collected only when the command line names them.
SOAK = Path(__file__).parent / "soak"


@pytest.fixture(scope="session")
def not_run() -> Callable[[str], NoReturn]:
    def leave_out(reason: str) -> NoReturn:
        assert reason.startswith(PERMITTED), f"{reason!r} excuses no test; these do: {PERMITTED}"
        pytest.skip(reason)

    return leave_out


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """A nats-server with JetStream, empty. Tests keep apart by the prefix in the store's address."""
    with alone(tmp_path_factory.mktemp("nats")) as one:
        yield one


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path != SOAK:
        return None
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return not any(path.is_relative_to(SOAK) for path in named)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = []
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.append(text.removeprefix("Skipped: "))
    listed = f" ({'; '.join(sorted(set(reasons)))})" if reasons else ""
    terminalreporter.write_line(f"not run: {len(reasons)}{listed}")
