"""The watch over TLS: what it takes over, what it does when the authority is gone, silent or wrong."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from warren.auth.blocks import parse
from warren.auth.certificates import utc_now
from warren.auth.keyfiles import append
from warren.auth.minters import certify
from warren.auth.rights import parse_grant
from warren.auth.watch import STALE, Freshness
from warren.p9.messages import WARREN, Rread, Tread
from warren.roles.watch import Watch, watched
from warren.serve.tokens import Verifier
from warren.servers.cap import Cap
from warren.servers.demo import Demo

from tests.redteam.hives import EVERY, Door, Hive, guarded, mounted, present, until_gone
from tests.wire import RefusedBy, Wire

ROWS = ("role/*/* read /**", "user/operator read,ctl /**")
PATIENCE = 8


class Town(Hive):
    """A hive with an authority that can go away and come back to the same place."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.authority = self.member("role/Authority/cap")
        self.ann = self.member("user/ann")
        self.address = "tls!127.0.0.1!0"
        self.certify()

    def certify(self) -> None:
        minters = certify(self.ca, self.issuer.key, [parse_grant(EVERY)], timedelta(days=1), utc_now())
        (self.ca.directory / "minters").write_text(minters)

    @asynccontextmanager
    async def office(self) -> AsyncIterator[Door]:
        cap = Cap(self.ca.directory)
        here = guarded(self, cap, ROWS, identity=self.authority, address=self.address)
        async with here as door, trio.open_nursery() as nursery:
            self.address = door.address
            nursery.start_soon(cap.watch)
            yield door
            nursery.cancel_scope.cancel()


class Watched:
    """A door under a watch, with a clock of its own for freshness."""

    def __init__(self, town: Town, door: Door, strict: bool) -> None:
        self.town, self.door = town, door
        self.now = 1000.0
        self.told: list[str] = []
        self.freshness = door.export.freshness = Freshness(strict, lambda: self.now)

    def watch(self, address: str, expect: str = "role/Authority/*") -> Watch:
        return Watch(
            address, self.door.gate.identity, self.door.export, self.door.gate, self.freshness, expect,
            self.told.append,
        )  # fmt: skip

    async def until(self, question: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not question():  # noqa: ASYNC110  # what is asked is not ours to be told of
                await trio.sleep(0.005)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


@asynccontextmanager
async def under_watch(town: Town, *, strict: bool = False, address: str = "") -> AsyncIterator[Watched]:
    verifier = Verifier({}, town.server.uri)
    async with guarded(town, Demo(), verifier=verifier) as door, trio.open_nursery() as nursery:
        made = Watched(town, door, strict)
        watch = made.watch(address or town.address)
        nursery.start_soon(watch.run)
        await watched(watch, PATIENCE)
        yield made
        nursery.cancel_scope.cancel()


async def test_what_is_watched_is_in_force(town: Town) -> None:
    async with town.office(), under_watch(town) as at:
        door, verifier = at.door, at.door.export.verifier
        assert verifier is not None
        assert set(verifier.issuers) == {town.issuer.id}
        assert door.gate.identity.lists
        token = town.token("read /**")
        wire = await door.connect(town.ann, WARREN)
        await present(wire, token, door.gate.identity.uri)
        await wire.open("events", 1)
        await wire.send(Tread(1, 0, 100), tag=5)
        seq = at.freshness.seq
        append(town.ca.directory / "blocks", f"{parse(token.chain)[0].id.hex()}\n".encode())
        assert all("403" in str(reply) for reply in await until_gone(wire))
        assert at.freshness.seq > seq
        assert [line.detail for line in door.lines("token")][-1] == "token_revoked"


async def test_a_minter_that_is_withdrawn(town: Town) -> None:
    async with town.office(), under_watch(town) as at:
        wire = await at.door.connect(town.ann, WARREN)
        await present(wire, town.token("read /**"), at.door.gate.identity.uri)
        (town.ca.directory / "minters").write_text("")
        await at.until(lambda: not at.door.export.sessions or all(s.ended for s in at.door.export.sessions))
        assert await until_gone(wire) == []
        assert [line.detail for line in at.door.lines("token")][-1] == "token_issuer"
        town.certify()
        await at.until(lambda: bool(at.door.export.verifier and at.door.export.verifier.issuers))
        again = await at.door.connect(town.ann, WARREN)
        await present(again, town.token("read /**"), at.door.gate.identity.uri)


async def opened(town: Town, nursery: trio.Nursery) -> trio.CancelScope:
    """An office that stands until the scope is cancelled."""

    async def stand(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with town.office():
                task_status.started(scope)
                await trio.sleep_forever()

    scope: trio.CancelScope = await nursery.start(stand)
    return scope


async def test_stale_and_fresh_again(town: Town) -> None:
    async with trio.open_nursery() as nursery:
        office = await opened(town, nursery)
        async with under_watch(town, strict=True) as at:
            door = at.door
            wire = await door.dial(town.ann, WARREN)
            await wire.open("hello", 1)
            await wire.open("scratch", 2, 1)
            await wire.write(2, b"before")
            office.cancel()
            await at.until(lambda: not at.freshness.live)
            at.now += STALE - 0.1
            assert str(at.freshness).startswith("revocation=fresh")
            assert await effect(wire) == ""
            at.now += 0.2
            assert str(at.freshness).startswith("revocation=stale")
            refused = await effect(wire)
            assert refused.startswith("[Errno 16] 503 unavailable: revocation=stale")
            assert "retry_after=" in refused
            assert await wire.read(1) == b"hello, world\n"
            other = await door.dial(town.ann, WARREN)
            assert (await other.walk("hello", 1)).qids
            assert at.told
            office = await opened(town, nursery)
            await at.until(lambda: at.freshness.live)
            assert str(at.freshness).startswith("revocation=fresh")
            assert await effect(wire) == ""
        office.cancel()


async def effect(wire: Wire) -> str:
    """A verb, which is an effect: nothing, or how it was refused."""
    try:
        await wire.open("ctl", 30, 1)
        await wire.write(30, b"say hello")
    except RefusedBy as e:
        return str(e)
    finally:
        await wire.clunk(30)
    return ""


async def test_without_strict_it_only_says_so(town: Town) -> None:
    async with trio.open_nursery() as nursery:
        office = await opened(town, nursery)
        async with under_watch(town) as at:
            wire = await at.door.dial(town.ann, WARREN)
            office.cancel()
            await at.until(lambda: not at.freshness.live)
            at.now += STALE + 0.1
            assert at.freshness.stale
            assert await effect(wire) == ""


async def test_an_authority_that_falls_silent(town: Town) -> None:
    """Its connection stands and nothing comes any more: the seconds count from its last answer."""
    async with town.office() as office, trio.open_nursery() as nursery:
        silent = trio.Event()
        silent.set()

        async def relay(near: trio.SocketStream) -> None:
            async with near, await trio.open_tcp_stream("127.0.0.1", office.port) as far:
                async with trio.open_nursery() as both:
                    both.start_soon(copy, near, far)
                    both.start_soon(copy, far, near)

        async def copy(source: trio.SocketStream, to: trio.SocketStream) -> None:
            try:
                while data := await source.receive_some(65536):
                    await silent.wait()
                    await to.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            await trio.aclose_forcefully(source)
            await trio.aclose_forcefully(to)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, relay, [listener])
        port = listener.socket.getsockname()[1]
        async with under_watch(town, strict=True, address=f"tls!127.0.0.1!{port}") as at:
            wire = await at.door.dial(town.ann, WARREN)
            silent = trio.Event()
            at.now += STALE + 0.1
            assert at.freshness.live  # as far as anybody can see
            assert at.freshness.stale
            assert "revocation=stale" in await effect(wire)
            silent.set()
            await at.until(lambda: not at.freshness.stale)
            assert await effect(wire) == ""
        nursery.cancel_scope.cancel()


async def test_an_authority_that_talks_nonsense(town: Town) -> None:
    """It is not believed, what was in force stays so, and the watch goes on."""
    async with town.office(), under_watch(town) as at:
        before = dict(at.door.export.verifier.issuers) if at.door.export.verifier else {}
        for name, wrong in (("blocks", b"\xff\xfe"), ("blocks", b"nonsense\n"), ("minters", b"\xff")):
            path = town.ca.directory / name
            kept = path.read_bytes() if path.exists() else b""
            path.write_bytes(wrong)
            await at.until(lambda: not at.freshness.live)
            assert at.door.export.verifier is not None
            assert at.door.export.verifier.issuers == before
            path.write_bytes(kept)
            await at.until(lambda: at.freshness.live)
        async with mounted(at.door, town.ann) as files:
            assert await files.read("/hello") == b"hello, world\n"


async def test_it_watches_nobody_else(town: Town) -> None:
    """An authority under another name than the expected is not listened to."""
    town.authority = town.member("role/DroneWorker/d")
    async with town.office():
        async with guarded(town, Demo()) as door, trio.open_nursery() as nursery:
            at = Watched(town, door, True)
            watch = at.watch(town.address)
            nursery.start_soon(watch.run)
            with pytest.raises(OSError, match="did not answer"):
                await watched(watch, 0.5)
            assert "wrong_role" in at.told[0]
            at.now += STALE + 0.1
            assert at.freshness.stale
            nursery.cancel_scope.cancel()


async def test_a_change_while_away_is_caught_up_with(town: Town) -> None:
    """Certificates that were revoked while the watch was broken end as soon as it stands again."""
    async with guarded(town, Demo()) as door, trio.open_nursery() as nursery:
        wire = await door.dial(town.ann, WARREN)
        town.ca.revoke(int(town.ann.serial, 16), "keyCompromise")
        await wire.open("hello", 1)
        assert isinstance(await wire.ask(Tread(1, 0, 9)), Rread)
        async with town.office():
            at = Watched(town, door, False)
            began = time.monotonic()
            nursery.start_soon(at.watch(town.address).run)
            assert await until_gone(wire) == []
            assert time.monotonic() - began < 1
            nursery.cancel_scope.cancel()
