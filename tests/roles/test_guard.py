"""What a process keeps current: files that change are taken whole or not at all, and bite at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from warren.auth.certificates import utc_now
from warren.auth.identity import Identity
from warren.auth.minters import certify
from warren.auth.rights import parse_grant
from warren.p9.messages import WARREN, Tread
from warren.roles.guard import FILES, Guard
from warren.servers.demo import Demo

from tests.redteam.hives import EVERY, Door, Hive, guarded, knock, mounted, present, stranger, until_gone


def minters(hive: Hive) -> str:
    return certify(hive.ca, hive.issuer.key, [parse_grant(EVERY)], timedelta(days=1), utc_now())


class Kept:
    """A door behind a guard."""

    def __init__(self, guard: Guard, door: Door, told: list[str]) -> None:
        self.guard, self.door, self.told = guard, door, told

    async def look(self, words: str) -> None:
        """The guard looks by itself; return when it has said WORDS."""
        with trio.fail_after(5):
            while not any(words in said for said in self.told):  # noqa: ASYNC110  # it tells people, not us
                await trio.sleep(0.01)
        self.told.clear()


@asynccontextmanager
async def kept(hive: Hive) -> AsyncIterator[Kept]:
    told: list[str] = []
    guard = Guard(hive.server, tell=told.append)
    async with guarded(hive, Demo(), gate=guard.gate, verifier=guard.verifier) as door:
        async with guard.kept(door.export):
            yield Kept(guard, door, told)


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


async def test_files_are_looked_at(hive: Hive) -> None:
    ann, bob = hive.member("user/ann"), hive.member("user/bob")
    async with kept(hive) as at:
        wires = {}
        for name, me in (("ann", ann), ("bob", bob)):
            wires[name] = await at.door.dial(me, WARREN)
            await wires[name].open("events", 1)
            await wires[name].send(Tread(1, 0, 100), tag=7)
        was = at.guard.identity.serial
        hive.ca.issue(hive.server.uri, hive.server.directory)
        await at.look("was read again")
        assert at.guard.identity.serial != was
        hive.ca.revoke(int(ann.serial, 16), "keyCompromise")
        (hive.server.directory / "crl.pem").write_bytes(hive.ca.crl())
        await at.look("was read again")
        assert all("403" in str(reply) for reply in await until_gone(wires["ann"]))
        assert (await knock(at.door, stranger(hive.ca.bundle(), ann.directory))).said == b""
        assert at.door.reasons() == ["revoked"]
        async with mounted(at.door, bob) as files:
            await files.write("/ctl", b"say still-here")
        assert b"still-here" in bytes((await wires["bob"].reply()).data)  # type: ignore[attr-defined]


async def test_bad_files_change_nothing(hive: Hive) -> None:
    hive.server.directory.joinpath("minters").write_text(minters(hive))
    told: list[str] = []
    guard = Guard(hive.server, tell=told.append)
    assert guard.verifier is not None
    async with guarded(hive, Demo(), gate=guard.gate, verifier=guard.verifier) as door:
        was, issuers = guard.identity.serial, dict(guard.verifier.issuers)
        for name in FILES:
            path = hive.server.directory / name
            before = path.read_bytes() if path.exists() else None
            path.write_bytes(b"\xff nonsense")
            guard.look(door.export)
            assert "what was in force stays so" in told.pop()
            assert guard.identity.serial == was
            assert guard.verifier.issuers == issuers
            guard.look(door.export)
            assert told == []  # it is said once
            if before is None:
                path.unlink()
            else:
                path.write_bytes(before)
            guard.look(door.export)
            assert "was read again" in told.pop()
        async with mounted(door, hive.member("user/ann")) as files:
            assert await files.read("/hello") == b"hello, world\n"


async def test_minters_come_and_go(hive: Hive) -> None:
    path = hive.server.directory / "minters"
    path.write_text(minters(hive))
    ann = hive.member("user/ann")
    async with kept(hive) as at:
        wire = await at.door.connect(ann, WARREN)
        await present(wire, hive.token("read /**"), hive.server.uri)
        path.write_text("")
        await at.look("was read again")
        assert await until_gone(wire) == []
        assert [line.detail for line in at.door.lines("token")][-1] == "token_issuer"


async def test_a_minter_of_another_hive_spoils_the_file(hive: Hive, tmp_path: Path) -> None:
    other = Hive(tmp_path / "other", "other.test")
    hive.server.directory.joinpath("minters").write_text(minters(hive) + "\n" + minters(other))
    with pytest.raises(ValueError, match="no root of ours"):
        Guard(Identity.load(hive.server.directory))


def test_tokens_count_where_somebody_may_mint(hive: Hive) -> None:
    assert Guard(hive.server).verifier is None
    assert Guard(hive.server, watch="tls!127.0.0.1!9").verifier is not None
    hive.server.directory.joinpath("minters").write_text(minters(hive))
    verifier = Guard(hive.server).verifier
    assert verifier is not None
    assert set(verifier.issuers) == {hive.issuer.id}
