"""What a dialler learns of a server that will not have it: from an alert, wherever that waits to be found."""

import errno
import socket
import ssl
from pathlib import Path

import pytest
import trio
from warren.auth.ca import CA
from warren.auth.identity import Identity
from warren.mount import dial
from warren.mount.link import Barred
from warren.mount.secure import refreshed, secured

from tests.auth.hive import DRONE, HIVE, QUEEN, identity


class Hives:
    """A server of one hive, and a client whom it does not know but who knows it."""

    def __init__(self, tmp: Path) -> None:
        ours, theirs = CA.create(tmp / "ours", HIVE), CA.create(tmp / "theirs", HIVE)
        self.server = identity(ours, QUEEN, tmp / "queen")
        theirs.issue(DRONE, tmp / "drone")
        with (tmp / "drone/ca.pem").open("ab") as roots:
            roots.write(ours.bundle())
        self.client = Identity.load(tmp / "drone")


def refuse(identity: Identity, sock: socket.socket) -> None:
    """The server's end of a handshake that fails; the socket is closed."""
    with identity.server_context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as tls:
        with pytest.raises(ssl.SSLError):
            tls.do_handshake()


async def test_an_alert_is_found_behind_a_write_that_failed(tmp_path: Path) -> None:
    hives = Hives(tmp_path)
    here, there = socket.socketpair()
    there.settimeout(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, refuse, hives.server, there)
        channel = await secured(here, hives.client, "role/*/*")
    # The server is done and gone.
    with pytest.raises(Barred, match="unknown_ca") as told:
        channel.send_now([b"x" * 64])
    assert told.value.errno == errno.EACCES
    await channel.aclose()


async def test_an_alert_is_found_by_the_first_read(tmp_path: Path) -> None:
    hives = Hives(tmp_path)
    here, there = socket.socketpair()
    there.settimeout(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, refuse, hives.server, there)
        channel = await secured(here, hives.client, "role/*/*")
        with pytest.raises(Barred, match="our certificate was refused: unknown_ca: nobody whom that server"):
            await channel.receive(memoryview(bytearray(64)))
    await channel.aclose()


async def test_who_dials_is_told_at_once_and_does_not_dial_again(tmp_path: Path) -> None:
    hives = Hives(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tls!127.0.0.1!{listener.getsockname()[1]}"
        accepted = []

        def serve() -> None:
            sock, _ = listener.accept()
            accepted.append(sock)
            refuse(hives.server, sock)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, serve)
                with pytest.raises(Barred) as told:
                    async with dial(address, identity=hives.client):
                        raise AssertionError("it was let in")
    assert told.value.filename == address
    assert len(accepted) == 1


async def test_who_hangs_up_in_the_handshake_may_only_be_busy(tmp_path: Path) -> None:
    hives = Hives(tmp_path)
    here, there = socket.socketpair()
    there.close()
    with pytest.raises(ConnectionError):
        await secured(here, hives.client, "role/*/*")


async def test_who_dials_again_shows_the_certificate_that_lies_there_now(tmp_path: Path) -> None:
    ca = CA.create(tmp_path / "ca", HIVE)
    me = identity(ca, DRONE, tmp_path / "drone")
    before = me.serial
    refreshed(me)
    assert me.serial == before
    ca.issue(DRONE, tmp_path / "drone")
    refreshed(me)
    assert me.serial != before


async def test_an_identity_that_was_spoiled_is_an_error_and_the_one_in_use_stays(tmp_path: Path) -> None:
    me = identity(CA.create(tmp_path / "ca", HIVE), DRONE, tmp_path / "drone")
    before = me.serial
    (tmp_path / "drone/cert.pem").write_text("nothing")
    with pytest.raises(PermissionError, match="holds no certificate"):
        refreshed(me)
    assert me.serial == before
