"""Other people's TLS against ours: the openssl command and curl let in and refuse whom we do."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import trio
from warren.auth import tls
from warren.auth.ca import CA
from warren.auth.certificates import key_pem, pem
from warren.auth.identity import Identity

from tests.auth.hive import DAY, DRONE, HIVE, NOW, QUEEN, by_hand, identity

ANSWER = b"HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\nwelcome"


class Hall:
    """A hive with everybody in it who knocks in these tests, each in a directory of its own."""

    def __init__(self, top: Path, kind: str) -> None:
        self.top = top
        self.ca = CA.create(top / "ca", HIVE, kind, now=NOW - 40 * DAY)
        self.queen = identity(self.ca, QUEEN, top / "queen", kind=kind)
        self.ca.issue(DRONE, top / "drone", kind=kind)
        self.ca.issue(DRONE, top / "late", kind=kind, now=NOW - 20 * DAY)
        self.ca.issue(DRONE, top / "early", kind=kind, now=NOW + DAY)
        west = self.ca.region("west", top / "west-ca", kind)
        west.issue("spiffe://west.hive.test/role/A/b", top / "west", kind=kind)
        signer = west.shelf.issuer()
        leaf, key = by_hand(signer, [QUEEN])
        self._put("impostor", pem(leaf, signer.certificate), key_pem(key))
        CA.create(top / "other-ca", HIVE, kind).issue(DRONE, top / "other", kind=kind)
        gone = self.ca.issue(DRONE, top / "gone", kind=kind)
        self.ca.revoke(gone.serial_number, "keyCompromise")
        self.queen.with_crl(self.ca.crl())
        self.crl = top / "ca/crl.pem"

    def _put(self, who: str, chain: bytes, key: bytes) -> None:
        (self.top / who).mkdir()
        for name, data in (("cert.pem", chain), ("key.pem", key), ("ca.pem", self.ca.bundle())):
            (self.top / who / name).write_bytes(data)

    def file(self, who: str, name: str) -> str:
        return str(self.top / who / name)

    def shows(self, who: str) -> list[str]:
        return ["-cert", self.file(who, "cert.pem"), "-cert_chain", self.file(who, "cert.pem"),
                "-key", self.file(who, "key.pem")]  # fmt: skip

    async def s_client(
        self, port: int, *how: str, alpn: str = "warren/1"
    ) -> subprocess.CompletedProcess[bytes]:
        """The openssl command as a client of the queen, whom it verifies."""
        roots = ("-verify_return_error", "-CAfile", self.file("queen", "ca.pem"))
        return await ran("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-alpn", alpn, *roots, *how)


# Who knocks, and the word for it; the empty word lets in.
GUESTS = {
    "drone": "", "west": "", "gone": "revoked", "late": "expired", "early": "not_yet_valid",
    "impostor": "name_constraint", "other": "unknown_ca",
}  # fmt: skip


@pytest.fixture(scope="module", params=["ed25519", "p256"])
def hall(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hall:
    return Hall(tmp_path_factory.mktemp("hall"), request.param)


@asynccontextmanager
async def listening(me: Identity) -> AsyncIterator[tuple[int, list[str]]]:
    """Our end on a real socket: the port, and what was thought of each that came."""
    words: list[str] = []

    async def welcome(connection: trio.SocketStream) -> None:
        stream = trio.SSLStream(connection, me.server_context(), server_side=True)
        try:
            await stream.do_handshake()
            who = tls.peer(stream, HIVE)
        except (trio.BrokenResourceError, tls.Unwelcome) as e:
            words.append(tls.reason(e))
            if words[-1] == "no_protocol":  # as curl, which has no way to say warren/1
                await stream.send_all(ANSWER)
            await trio.aclose_forcefully(stream)
            return
        words.append(f"welcome {who.uri}")
        await stream.send_all(ANSWER)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, welcome, [listener])
        yield listener.socket.getsockname()[1], words
        nursery.cancel_scope.cancel()


async def ran(*command: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(20):
        return await trio.run_process(
            list(command), capture_stdout=True, capture_stderr=True, check=False, stdin=b""
        )


@pytest.mark.parametrize("who", GUESTS)
async def test_openssl_and_we_verify_alike(hall: Hall, who: str) -> None:
    done = await ran("openssl", "verify", "-x509_strict", "-crl_check_all", "-CRLfile", str(hall.crl),
                     "-purpose", "sslclient", "-CAfile", hall.file("queen", "ca.pem"),
                     "-untrusted", hall.file(who, "cert.pem"), hall.file(who, "cert.pem"))  # fmt: skip
    assert (done.returncode == 0) == (not GUESTS[who]), done.stderr
    says = {
        "revoked": b"certificate revoked", "expired": b"certificate has expired", "": b"",
        "not_yet_valid": b"certificate is not yet valid", "name_constraint": b"permitted subtree violation",
        "unknown_ca": b"unable to get local issuer certificate",
    }  # fmt: skip
    assert says[GUESTS[who]] in done.stderr


@pytest.mark.parametrize("who", GUESTS)
async def test_openssl_dials_us(hall: Hall, who: str) -> None:
    async with listening(hall.queen) as (port, words):
        done = await hall.s_client(port, "-quiet", *hall.shows(who))
    assert (b"welcome" in done.stdout) == (not GUESTS[who])
    assert words[0].startswith("welcome spiffe://") if not GUESTS[who] else words == [GUESTS[who]]


async def test_openssl_without_a_certificate_gets_nowhere(hall: Hall) -> None:
    async with listening(hall.queen) as (port, words):
        for protocol in ("warren/1", "warren-join/1"):
            done = await hall.s_client(port, "-quiet", alpn=protocol)
            assert (b"welcome" in done.stdout) == (protocol == "warren-join/1")
        await hall.s_client(port, "-quiet", "-tls1_2")
    assert words == ["no_certificate", "welcome None", "bad_handshake"]


async def test_openssl_gets_no_ticket(hall: Hall) -> None:
    async with listening(hall.queen) as (port, _):
        done = await hall.s_client(port, "-ign_eof", *hall.shows("drone"))
    assert b"welcome" in done.stdout
    assert b"TLSv1.3" in done.stdout
    assert b"New Session Ticket" not in done.stdout


@pytest.mark.parametrize("who", GUESTS)
async def test_we_dial_openssl(hall: Hall, who: str) -> None:
    """openssl is the server and shows what it has; we decide. What it sends is only read once we have."""
    word = GUESTS[who]
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-alpn", "warren/1", "-rev",
               "-Verify", "3", "-verify_return_error", "-CAfile", hall.file("queen", "ca.pem"),
               *hall.shows(who)]  # fmt: skip
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio.run_process, command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, check=False)
        )
        with trio.fail_after(20):
            said = b""
            while b"ACCEPT" not in said or not said.endswith(b"\n"):
                said += await server.stdout.receive_some()
            port = int(said.partition(b"ACCEPT ")[2].split(b"\n")[0].rpartition(b":")[2])
            stream = trio.SSLStream(
                await trio.open_tcp_stream("127.0.0.1", port), hall.queen.client_context()
            )
            if word:
                with pytest.raises(trio.BrokenResourceError) as refused:
                    await stream.do_handshake()
                assert tls.reason(refused.value) == word
                await trio.aclose_forcefully(stream)
            else:
                await stream.do_handshake()
                assert str(tls.peer(stream, HIVE).name).endswith(("/role/DroneWorker/d7", "/role/A/b"))
                await stream.send_all(b"abc\n")
                assert await stream.receive_some(4) == b"cba\n"
                await trio.aclose_forcefully(stream)
        server.kill()


@pytest.mark.parametrize("who", [*GUESTS, "nobody"])
async def test_curl_dials_us(hall: Hall, who: str) -> None:
    """curl looks for host names, which are not in our certificates, so it takes any server with -k."""
    shown = (
        [] if who == "nobody" else ["--cert", hall.file(who, "cert.pem"), "--key", hall.file(who, "key.pem")]
    )
    async with listening(hall.queen) as (port, words):
        done = await ran("curl", "-sSk", "--max-time", "15", *shown, f"https://127.0.0.1:{port}/")
    word = {"nobody": "no_certificate", **GUESTS}[who]
    assert words == [word or "no_protocol"]
    assert (done.returncode == 0, done.stdout) == ((True, b"welcome") if not word else (False, b""))


async def test_curl_sees_no_host_in_our_names(hall: Hall) -> None:
    async with listening(hall.queen) as (port, _):
        done = await ran(
            "curl", "-sS", "--cacert", hall.file("queen", "ca.pem"), f"https://127.0.0.1:{port}/"
        )
    assert done.returncode == 60
    assert done.stderr.startswith(b"curl: (60) SSL: ")
    assert b"name" in done.stderr  # and not the chain, which is good


async def test_openssl_reads_our_list(hall: Hall) -> None:
    done = await ran("openssl", "crl", "-in", str(hall.crl), "-noout", "-text")
    assert done.returncode == 0
    assert b"X509v3 CRL Number" in done.stdout
    gone = await ran(
        "openssl", "x509", "-in", hall.file("gone", "cert.pem"), "-noout", "-serial", "-ext", "subjectAltName"
    )
    assert f"URI:{DRONE}".encode() in gone.stdout
    issuer = hall.top / "one.pem"
    issuer.write_bytes(pem(hall.ca.shelf.issuer().certificate))
    text = hall.crl.read_text()
    mark = "-----END X509 CRL-----\n"
    checked = []
    for piece in text.split(mark)[:-1]:
        one = hall.top / "list.pem"
        one.write_text(piece + mark)
        done = await ran("openssl", "crl", "-in", str(one), "-CAfile", str(issuer), "-noout", "-text")
        if b"verify OK" in done.stderr:
            checked.append(done.stdout)
    assert len(checked) == 1
    assert gone.stdout.split(b"\n")[0].removeprefix(b"serial=") in checked[0]
    assert b"Key Compromise" in checked[0]
