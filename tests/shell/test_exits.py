"""Exit codes and ways out, of every code a tree can answer with and of connections that do not come about."""

import errno
import os
from pathlib import Path

import pytest
from warren.shell import exits, main
from warren.shell.exits import Stopped
from warren.tree.errors import CODES, Refused, describe

from tests.shell.conftest import Command


def test_every_code_of_the_tree_has_one_exit() -> None:
    listed = [code for row in exits.TABLE for code in row.codes]
    assert sorted(listed) == sorted(CODES)
    assert len({row.number for row in exits.TABLE}) == len(exits.TABLE)


@pytest.mark.parametrize("code", CODES)
def test_a_servers_text_decides_before_its_errno(code: int) -> None:
    _, _, line = describe(Refused(code, "so"))
    (row,) = [row for row in exits.TABLE if code in row.codes]
    assert exits.of(OSError(errno.EIO, f"{line} trace=0123456789abcdef")) == row.number
    assert exits.way_out(OSError(errno.EIO, line), "/d/x")


@pytest.mark.parametrize(
    ("number", "exit"),
    [
        (errno.ENOENT, 3), (errno.EACCES, 4), (errno.EPERM, 4), (errno.EROFS, 4), (errno.EEXIST, 5),
        (errno.ENOTEMPTY, 5), (errno.EAGAIN, 6), (errno.ECONNREFUSED, 7), (errno.ECONNRESET, 7),
        (errno.ETIMEDOUT, 8), (errno.EINVAL, 9), (errno.EISDIR, 9), (errno.EOPNOTSUPP, 9), (errno.ENOSPC, 10),
        (errno.EIO, 1),
    ],
)  # fmt: skip
def test_an_errno_alone_has_an_exit(number: int, exit: int) -> None:
    assert exits.of(OSError(number, os.strerror(number), "/x")) == exit


def test_a_retry_is_told_when() -> None:
    _, _, line = describe(Refused(429, "64 records wait", retry_after=1.5))
    assert exits.way_out(OSError(errno.EAGAIN, line), "/send") == "try again in 1.5 s"
    assert exits.way_out(Stopped(1, "text", "/x", "do that"), "/x") == "do that"


def test_the_table_is_what_help_and_the_manual_say(run: Command) -> None:
    shown = run("help", "exit").out
    for row in exits.TABLE:
        assert f"{row.number:5}  {row.name:<12} {row.meaning}\n" in shown
        assert f"{row.number} " in (main.__doc__ or "")


def test_no_server_is_no_missing_file(run: Command, tmp_path: Path) -> None:
    done = run("ls", "/", at=f"unix!{tmp_path}/none")
    assert done.code == 7
    way_out = "start one there with warren up or warren serve"
    assert done.err.startswith(f"warren: unix!{tmp_path}/none: No such file or directory; {way_out}")
    assert run("ls", "--at", "tcp!127.0.0.1!1", "/").code == 7


def test_a_bad_address_is_a_usage_error(run: Command) -> None:
    done = run("ls", "--at", "localhost:5640", "/")
    assert done.code == 2
    assert done.err.startswith("warren: 'localhost:5640' is not an address; write tcp!HOST!PORT")


def test_the_address_is_the_option_then_the_variable_then_the_hives(
    run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    hive = ".local/state/warren/default/run/queen/sock"
    assert f"unix!{tmp_path}/{hive}: " in run("ls").err
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert f"unix!{tmp_path}/xdg/warren/default/run/queen/sock: " in run("ls").err
    monkeypatch.setenv("WARREN_STATE", str(tmp_path / "state"))
    assert f"unix!{tmp_path}/state/run/queen/sock: " in run("ls").err
    assert "unix!/variable: " in run("ls", at="unix!/variable").err
    assert "unix!/option: " in run("ls", "--at", "unix!/option").err
