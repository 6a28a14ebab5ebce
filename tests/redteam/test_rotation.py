"""A hundred rotations of a listener's certificate under load, and not one operation fails for it."""

import ssl
import time
from pathlib import Path

import pytest
import trio
from warren.auth import tls
from warren.auth.identity import Identity
from warren.auth.refusal import Refusal
from warren.mount.address import connect
from warren.mount.secure import secured
from warren.servers.demo import Demo

from tests.redteam.hives import Hive, guarded, mounted

ROTATIONS = 100


async def test_a_hundred_rotations_under_load(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    folder = hive.server.directory
    async with guarded(hive, Demo()) as door:
        done = trio.Event()
        operations = handshakes = 0
        links = []

        async def live_on() -> None:
            """One connection through all of it: a new one would have another number."""
            nonlocal operations
            async with mounted(door, ann) as files:
                assert await files.read("/hello") == b"hello, world\n"
                links.append(files)
                while not done.is_set():
                    assert await files.read("/hello") == b"hello, world\n"
                    operations += 1

        async def come_and_go() -> None:
            nonlocal handshakes, operations
            while not done.is_set():
                async with mounted(door, ann) as files:
                    assert await files.read("/hello") == b"hello, world\n"
                    operations += 1
                    handshakes += 1

        shown = set()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(live_on)
            while len(links) < 2:
                await trio.lowlevel.checkpoint()
            sessions = {s.number for s in door.export.sessions}
            nursery.start_soon(come_and_go)
            began = time.perf_counter()
            for n in range(ROTATIONS):
                if n % 5 == 4:
                    await trio.to_thread.run_sync(hive.ca.rotate)
                await trio.to_thread.run_sync(hive.ca.issue, hive.server.uri, folder)
                door.gate.identity.reload()
                door.gate.recheck()
                channel = await secured((await connect(door.address)).socket, ann, "role/QueenPrimary/*")
                assert isinstance(channel.socket, ssl.SSLSocket)
                who = tls.peer(channel.socket, hive.name)
                channel.socket.close()
                assert (who.serial, who.issuer) == (door.gate.identity.serial, door.gate.identity.issuer)
                shown.add(who.serial)
            took = time.perf_counter() - began
            assert sessions <= {s.number for s in door.export.sessions}
            done.set()
        print(
            f"{ROTATIONS} rotations in {took:.1f} s, {ROTATIONS // 5} of them with a new issuer; "
            f"{operations} operations and {handshakes} handshakes meanwhile, 0 failed"
        )
        assert len(shown) == ROTATIONS
        assert operations > ROTATIONS
        assert handshakes > 10
        assert door.errors() == []
        assert door.gate.refused == {}


async def test_a_bad_rotation_changes_nothing(tmp_path: Path) -> None:
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    async with guarded(hive, Demo()) as door:
        was = door.gate.identity.serial
        key = (hive.server.directory / "key.pem").read_bytes()
        hive.ca.issue(hive.server.uri, hive.server.directory)
        (hive.server.directory / "key.pem").write_bytes(key)
        with pytest.raises(Refusal):
            door.gate.identity.reload()
        assert door.gate.identity.serial == was
        async with mounted(door, ann) as files:
            assert await files.read("/hello") == b"hello, world\n"


async def test_a_new_root_in_two_steps(tmp_path: Path) -> None:
    """Who knows only the old root still finds the way, by the crossing; who knows both knows both."""
    hive = Hive(tmp_path)
    ann = hive.member("user/ann")
    async with guarded(hive, Demo()) as door:
        async with mounted(door, ann) as before:
            assert await before.read("/hello") == b"hello, world\n"
            hive.ca.rotate_root()
            hive.ca.issue(hive.server.uri, hive.server.directory)
            door.gate.identity.reload()
            door.gate.recheck()
            async with mounted(door, ann) as files:
                assert await files.read("/hello") == b"hello, world\n"
            async with mounted(door, Identity.load(hive.folder("user/bob"))) as files:
                assert await files.read("/hello") == b"hello, world\n"
            assert await before.read("/hello") == b"hello, world\n"
        assert door.errors() == []
