"""Other people's TLS against our listener: openssl, gnutls and curl are let in and refused as we are.

What `tests/auth/test_tls_stacks.py` shows of the contexts is shown here of the door itself: that 9P is
spoken to those who are let in, and nothing at all to the others.
"""

import struct
import subprocess
from pathlib import Path
from typing import Protocol

import pytest
import trio
from warren.p9.codec import dialect
from warren.p9.messages import PLAIN, Rversion
from warren.servers.demo import Demo

from tests.redteam.hives import VERSION, Door, guarded
from tests.redteam.test_certificates import GUESTS, Quarter

OPENSSL = ("openssl", "s_client", "-quiet", "-verify_return_error")


@pytest.fixture(scope="module")
def quarter(tmp_path_factory: pytest.TempPathFactory) -> Quarter:
    return Quarter(tmp_path_factory.mktemp("quarter"))


async def spoken(command: list[str], say: bytes = VERSION) -> tuple[bytes, bool]:
    """What the command read of us after it said SAY; and whether it hung up because we did.

    Its standard input stays open until it has an answer: openssl hangs up when that ends.
    """
    got = b""
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                check=False, task_status=task_status,
            )  # fmt: skip

        process = await nursery.start(start)
        with trio.fail_after(20):
            try:
                await process.stdin.send_all(say)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it was refused before it could say anything
            while data := await process.stdout.receive_some(65536):
                got += data
                if len(got) >= 4 and len(got) >= struct.unpack_from("<I", got)[0]:
                    process.kill()
                    return got, False
    return got, True


class Stack(Protocol):
    """The command that dials a door, trusting ROOTS and showing what is in a folder."""

    def __call__(
        self, door: Door, roots: Path, shown: Path | None, *, alpn: str | None = ...
    ) -> list[str]: ...


def openssl(
    door: Door, roots: Path, shown: Path | None, *more: str, alpn: str | None = "warren/1"
) -> list[str]:
    cert = [] if shown is None else ["-cert", str(shown / "cert.pem"), "-cert_chain", str(shown / "cert.pem"),
                                     "-key", str(shown / "key.pem")]  # fmt: skip
    protocol = ["-alpn", alpn] if alpn else []
    return [*OPENSSL, "-connect", f"127.0.0.1:{door.port}", "-CAfile", str(roots), *protocol, *cert, *more]


def gnutls(door: Door, roots: Path, shown: Path | None, alpn: str | None = "warren/1") -> list[str]:
    cert = [] if shown is None else ["--x509certfile", str(shown / "cert.pem"), "--x509keyfile",
                                     str(shown / "key.pem")]  # fmt: skip
    protocol = ["--alpn", alpn] if alpn else []
    quiet = ["--logfile=/dev/null", "--no-ca-verification"]
    return ["gnutls-cli", *quiet, "--port", str(door.port), *protocol, *cert, "127.0.0.1"]


def answered(got: bytes) -> None:
    reply = dialect(PLAIN).parse(got)
    assert isinstance(reply, Rversion)
    assert reply.version == "9P2000.L"


@pytest.mark.parametrize("stack", [openssl, gnutls])
async def test_the_welcome_speak_9p(quarter: Quarter, stack: Stack) -> None:
    async with guarded(quarter, Demo()) as door:
        roots = quarter.server.directory / "ca.pem"
        got, _ = await spoken(stack(door, roots, quarter.good.directory))
        answered(got)
        assert door.reasons() == []


@pytest.mark.parametrize("stack", [openssl, gnutls])
@pytest.mark.parametrize("who", GUESTS)
async def test_the_unwelcome_do_not(quarter: Quarter, who: str, stack: Stack) -> None:
    async with guarded(quarter, Demo()) as door:
        roots = quarter.server.directory / "ca.pem"
        got, hung_up = await spoken(stack(door, roots, quarter.guests[who]))
        assert (got, hung_up) == (b"", True)
        assert door.reasons() == [GUESTS[who]]


@pytest.mark.parametrize("stack", [openssl, gnutls])
async def test_without_a_protocol_of_ours(quarter: Quarter, stack: Stack) -> None:
    async with guarded(quarter, Demo()) as door:
        roots = quarter.server.directory / "ca.pem"
        for alpn in (None, "h2", "warren-join/1"):
            assert await spoken(stack(door, roots, quarter.good.directory, alpn=alpn)) == (b"", True)
        assert door.reasons() == ["no_protocol"] * 3


async def test_older_tls(quarter: Quarter) -> None:
    async with guarded(quarter, Demo()) as door:
        roots = quarter.server.directory / "ca.pem"
        for version in ("-tls1_2", "-tls1_1"):
            assert await spoken(openssl(door, roots, quarter.good.directory, version)) == (b"", True)
        assert door.reasons() == ["bad_handshake"] * 2


async def test_curl_has_no_business_here(quarter: Quarter) -> None:
    """curl cannot say warren/1: with a good certificate it is refused for that, without one for that."""
    shown = quarter.good.directory
    async with guarded(quarter, Demo()) as door:
        for cert in ([], ["--cert", str(shown / "cert.pem"), "--key", str(shown / "key.pem")]):
            with trio.fail_after(20):
                done = await trio.run_process(
                    ["curl", "-sSk", "--max-time", "10", *cert, f"https://127.0.0.1:{door.port}/"],
                    capture_stdout=True, capture_stderr=True, check=False,
                )  # fmt: skip
            assert done.returncode != 0
            assert done.stdout == b""
        assert door.reasons() == ["no_certificate", "no_protocol"]
