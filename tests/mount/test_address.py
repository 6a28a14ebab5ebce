"""Addresses that are none, and hosts where nobody answers."""

import errno
from pathlib import Path

import pytest
from warren.mount import dial
from warren.mount.errors import errno_of, refusal
from warren.p9.messages import Rerror, Rlerror
from warren.tree import Refused, describe, plain_words


@pytest.mark.parametrize(
    "address",
    ["", "localhost:564", "tcp!localhost", "tcp!!564", "tcp!h!1!2", "unix", "unix!", "tls!h", "/srv/sock"],
)
def test_what_is_no_address_is_told_the_forms(address: str) -> None:
    forms = r"is not an address; write tcp!HOST!PORT or unix!/PATH or tls!HOST!PORT"
    with pytest.raises(ValueError, match=forms):
        dial(address)


def test_tls_asks_who_we_are() -> None:
    with pytest.raises(ValueError, match="needs an identity to show: --id DIR"):
        dial("tls!localhost!564")


async def test_a_port_is_a_number() -> None:
    with pytest.raises(ValueError, match="port 'http' is not a number"):
        async with dial("tcp!127.0.0.1!http"):
            raise AssertionError("unreachable")


async def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        async with dial(f"unix!{tmp_path}/none"):
            raise AssertionError("unreachable")
    with pytest.raises(ConnectionRefusedError, match=r"tcp!127\.0\.0\.1!1"):
        async with dial("tcp!127.0.0.1!1"):
            raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("file does not exist", errno.ENOENT),
        ("'/usr/none' file does not exist", errno.ENOENT),
        ("permission denied", errno.EACCES),
        ("file already exists", errno.EEXIST),
        ("No such file or directory", errno.ENOENT),
        ("Directory not empty", errno.ENOTEMPTY),
        ("unknown fid", errno.EBADF),
        ("429 busy: 4 records wait to be read retry_after=1 trace=00000000000000ff", errno.EAGAIN),
        ("the moon is in the wrong phase", errno.EIO),
        ("", errno.EIO),
    ],
)
def test_words_of_the_plain_dialect_have_an_errno(words: str, number: int) -> None:
    assert errno_of(words) == number
    e = refusal(Rerror(words), "/p")
    assert (e.errno, e.strerror, e.filename) == (number, words, "/p")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.ENOSPC])
def test_what_our_server_says_plainly_is_understood(number: int) -> None:
    e = OSError(number, "x")
    assert errno_of(plain_words(e, describe(e)[2])) == number


def test_codes_of_our_server_are_understood() -> None:
    for code in (400, 404, 409, 413, 429, 507):
        e = Refused(code, "so it is")
        assert errno_of(plain_words(e, describe(e)[2])) == e.errno


def test_an_errno_alone_gets_the_systems_words() -> None:
    e = refusal(Rlerror(errno.EACCES, ""), "/p")
    assert isinstance(e, PermissionError)
    assert e.strerror == "Permission denied"
