"""What gc takes, and what it never does; names; and what a crash leaves behind."""

import os
import random
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from warren.servers.storage import GRACE, Storage
from warren.store import MemoryStore
from warren.store.sqlite import open_sqlite

from tests.servers.clock import StillClock
from tests.servers.storing import ANN, BOB, Client, Storing, address, storing
from tests.sources import ROOT
from tests.wire import O_RDWR, RefusedBy


class Gated(MemoryStore):
    """A store whose writes of some keys wait at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.shut = ""
        self.reached, self.gate = trio.Event(), trio.Event()

    async def _wait(self, key: str) -> None:
        if self.shut and key.startswith(self.shut):
            self.reached.set()
            await self.gate.wait()

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        await self._wait(key)
        return await super().put(key, value, expect=expect)

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        await self._wait(key)
        return await super().delete(key, expect=expect)


async def perhaps(coming: Awaitable[object], *refusals: str) -> None:
    """Something that others may have made impossible."""
    try:
        await coming
    except RefusedBy as e:
        if not any(words in str(e) for words in refusals):
            raise


async def test_gc_takes_what_is_old_and_has_no_name(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client(ANN)
        named, old = await client.put(b"named" * 40_000), await client.put(b"old" * 40_000)
        await client.name("keep", named)
        at.clock.at = GRACE / 2
        young = await client.put(b"young")
        assert await client.ctl("gc") == "took blobs=0 bytes=0, kept blobs=3"
        at.clock.at = GRACE + 1
        assert await client.ctl("gc dry=yes") == "would take blobs=1 bytes=120000, kept blobs=2"
        assert await client.has(old)
        assert await client.ctl("gc") == "took blobs=1 bytes=120000, kept blobs=2"
        assert not await client.has(old)
        assert not await client.has(f"have/{old}")
        assert await client.read(named) == b"named" * 40_000
        assert await client.read(young) == b"young"
        assert sum(p.stat().st_size for p in map(at.folder.joinpath, at.lying())) < 210_000
        said = await at.used(ANN)
        assert (said["used"], said["blobs"]) == ("200005", "2")
        assert (await at.counts())["storage_collected_bytes_total"] == 120_000


async def test_to_put_again_begins_the_grace_anew(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(b"again")
        at.clock.at = GRACE + 1
        await client.put(b"again")
        assert await client.ctl("gc") == "took blobs=0 bytes=0, kept blobs=1"
        assert await client.ctl("gc grace=0s") == "took blobs=1 bytes=5, kept blobs=0"
        assert not await client.has(found)


@pytest.mark.parametrize("line", ["gc grace=-1s", "gc grace=nan", "gc grace=inf", "gc grace=soon", "gc all"])
async def test_a_bad_gc_takes_nothing(tmp_path: Path, line: str) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(b"x")
        with pytest.raises(RefusedBy, match="400 bad_request"):
            await client.ctl(line)
        assert await client.has(found)


async def test_whoever_reads_a_blob_that_gc_takes_reads_on(tmp_path: Path) -> None:
    body = os.urandom(200_000)
    async with storing(tmp_path) as at:
        client = await at.client()
        fid = await client.open(await client.put(body))
        await client.ctl("gc grace=0s")
        assert at.lying() == []
        assert await client.wire.read(fid, 0, 200_000) == body


async def test_gc_leaves_what_is_being_written(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client, other = await at.client(), await at.client()
        fid = await client.open("put", O_RDWR)
        await client.send(fid, b"x" * 100_000)
        await other.ctl("gc grace=0s")
        await client.send(fid, b"y" * 100_000, 100_000)
        await client.fsync(fid)
        assert await client.read(address(b"x" * 100_000 + b"y" * 100_000))


async def test_gc_leaves_what_is_put_again_this_moment(tmp_path: Path) -> None:
    store = Gated()
    async with storing(tmp_path, store) as at:
        client, other, gc = await at.client(ANN), await at.client(BOB), await at.client()
        found = await client.put(b"twice")
        store.shut = "storage/blob"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.put, b"twice")
            await store.reached.wait()
            assert await gc.ctl("gc grace=0s") == "took blobs=0 bytes=0, kept blobs=1"
            store.gate.set()
        assert await client.read(found) == b"twice"
        assert (await at.used(BOB))["used"] == "5"


async def test_gc_leaves_what_gets_a_name_this_moment(tmp_path: Path) -> None:
    store = Gated()
    async with storing(tmp_path, store) as at:
        client, gc = await at.client(), await at.client()
        found = await client.put(b"to be named")
        store.shut = "storage/ref"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.name, "late", found)
            await store.reached.wait()
            assert await gc.ctl("gc grace=0s") == "took blobs=0 bytes=0, kept blobs=1"
            store.gate.set()
        assert await client.ctl("gc grace=0s") == "took blobs=0 bytes=0, kept blobs=1"
        assert await client.read("refs/late") == f"{found}\n".encode()


async def test_what_is_put_while_gc_takes_it_is_there_afterwards(tmp_path: Path) -> None:
    store = Gated()
    async with storing(tmp_path, store) as at:
        client, gc = await at.client(ANN), await at.client()
        await client.put(b"gone and back")
        store.shut = "storage/blob"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gc.ctl, "gc grace=0s")
            await store.reached.wait()
            assert at.lying() == ["new/gone-2"], "gc has it in hand"
            nursery.start_soon(client.put, b"gone and back")
            await wait_all_tasks_blocked()
            store.gate.set()
        assert await client.read(address(b"gone and back")) == b"gone and back"
        said = await at.used(ANN)
        assert (said["used"], said["blobs"]) == ("13", "1")


@pytest.mark.parametrize("how", ["name", "put"])
async def test_what_is_wanted_after_gc_looked_and_before_it_takes_stays(tmp_path: Path, how: str) -> None:
    """Gc is held up by the first of two; meanwhile somebody wants the second."""
    store = Gated()
    bodies = {address(body): body for body in (b"one", b"two")}
    async with storing(tmp_path, store) as at:
        client, gc = await at.client(), await at.client()
        for body in bodies.values():
            await client.put(body)
        at.clock.at = 20
        store.shut, said = "storage/blob", []

        async def collect() -> None:
            said.append(await gc.ctl("gc grace=10s"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await store.reached.wait()
            store.shut = ""
            [left] = [found for found in bodies if await client.has(found)]
            if how == "name":
                await client.name("wanted", left)
            else:
                await client.put(bodies[left])
            store.gate.set()
        assert said == ["took blobs=1 bytes=3, kept blobs=1"]
        assert await client.read(left) == bodies[left]


async def test_a_name_for_what_gc_takes_is_refused(tmp_path: Path) -> None:
    store = Gated()
    async with storing(tmp_path, store) as at:
        client, gc = await at.client(), await at.client()
        found = await client.put(b"too late")
        store.shut = "storage/blob"

        async def name() -> None:
            with pytest.raises(RefusedBy, match=r"404 not_found: .* is not here; put it first"):
                await client.name("late", found)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(gc.ctl, "gc grace=0s")
            await store.reached.wait()
            nursery.start_soon(name)
            await wait_all_tasks_blocked()
            store.gate.set()
        assert not await client.has("refs/late")


async def test_two_gcs_at_once_are_one_too_many(tmp_path: Path) -> None:
    store = Gated()
    async with storing(tmp_path, store) as at:
        client, gc = await at.client(), await at.client()
        await client.put(b"x")
        store.shut = "storage/blob"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gc.ctl, "gc grace=0s")
            await store.reached.wait()
            assert b"collecting=yes" in await client.read("status")
            with pytest.raises(RefusedBy, match="409 conflict: gc is at it"):
                await client.ctl("gc")
            store.gate.set()
        assert b"collecting=no" in await client.read("status")


@pytest.mark.parametrize("seed", range(4))
async def test_puts_names_and_gc_in_any_order_keep_every_name_whole(tmp_path: Path, seed: int) -> None:
    """What has a name is readable at every moment, and at the end the sums are those of a fresh start."""
    chance, store = random.Random(seed), MemoryStore()
    bodies = [b"%d" % n * 70_000 for n in range(5)]

    async def writer(client: Client) -> None:
        for _ in range(12):
            body, name = chance.choice(bodies), f"n{chance.randrange(4)}"
            match chance.randrange(4):
                case 0 | 1:
                    await client.put(body)
                case 2:
                    await perhaps(client.name(name, address(body)), "is not here", "made again")
                case 3:
                    await perhaps(client.unname(name), "404")

    async def collector(at: Storing, client: Client) -> None:
        for _ in range(12):
            await client.ctl("gc grace=0s")
            for hex in list(at.storage.refs.named):
                assert at.storage.is_here(hex)

    async with storing(tmp_path, store) as at:
        async with trio.open_nursery() as nursery:
            for subject in (ANN, BOB, "local"):
                nursery.start_soon(writer, await at.client(subject))
            nursery.start_soon(collector, at, await at.client())
        before = await (await at.client()).read("quota")
        status = await (await at.client()).read("status")
    async with storing(tmp_path, store) as at:
        client = await at.client()
        assert await client.read("quota") == before
        assert await client.read("status") == status
        for ref in at.storage.refs.refs.values():
            assert await client.read(f"sha256:{ref.hex}") in bodies


# Names


async def test_a_name_is_set_moved_and_removed(tmp_path: Path) -> None:
    store = MemoryStore()
    async with storing(tmp_path, store) as at:
        client = await at.client()
        one, two = await client.put(b"one"), await client.put(b"two")
        await client.name("latest", one)
        await client.name("latest", two)
        assert await client.read("refs/latest") == f"{two}\n".encode()
        assert await client.ctl("gc grace=0s") == "took blobs=1 bytes=3, kept blobs=1"
    async with storing(tmp_path, store) as at:
        client = await at.client()
        assert await client.read("refs/latest") == f"{two}\n".encode(), "names outlast the server"
        await client.unname("latest")
        assert not await client.has("refs/latest")
        assert await client.ctl("gc grace=0s") == "took blobs=1 bytes=3, kept blobs=0"


@pytest.mark.parametrize("name", [".hidden", "-dash", "two words", "ümlaut", "x" * 101, "a:b", "a\nb"])
async def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(b"x")
        with pytest.raises(RefusedBy, match="400 bad_request: a name is"):
            await client.name(name, found)


@pytest.mark.parametrize("text", ["", "latest", "sha256:", f"sha256:{'A' * 64}", "sha256:00", "0" * 64])
async def test_a_name_means_an_address_or_nothing(tmp_path: Path, text: str) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        with pytest.raises(RefusedBy, match=r"400 bad_request: .* is no address"):
            await client.name("x", text)
        assert not await client.has("refs/x"), "a name that got no value is gone"


async def test_a_name_for_nothing_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(b"x")
        await client.name("x", found)
        with pytest.raises(RefusedBy, match=r"404 not_found: .* put it first"):
            await client.name("x", address(b"never put"))
        assert await client.read("refs/x") == f"{found}\n".encode()


async def test_there_is_a_greatest_number_of_names(tmp_path: Path) -> None:
    async with storing(tmp_path, refs=2) as at:
        client = await at.client()
        found = await client.put(b"x")
        await client.name("a", found)
        await client.name("b", found)
        with pytest.raises(RefusedBy, match="507 full: 2 names are taken"):
            await client.name("c", found)
        await client.name("b", found)


# Starting again


async def test_a_second_server_of_the_directory_is_refused(tmp_path: Path) -> None:
    async with storing(tmp_path):
        with pytest.raises(OSError, match="is open in another server"):
            Storage(tmp_path, MemoryStore(), StillClock())
    async with storing(tmp_path) as at:
        await (await at.client()).put(b"free again")


CRASH = """
import os, sys, trio
from pathlib import Path
from tests.servers.storing import storing
from warren.store.sqlite import open_sqlite

async def main(folder, left):
    real = os.rename
    def rename(*args, **kw):
        global count
        count -= 1
        if not count:
            os._exit(9)
        real(*args, **kw)
    async with open_sqlite(folder / "db") as store, storing(folder / "blobs", store) as at:
        client = await at.client()
        await client.put(b"before")
        os.rename = rename
        await client.put(bytes(200_000))

count = int(sys.argv[2])
trio.run(main, Path(sys.argv[1]), count)
"""


@pytest.mark.parametrize("renames", [1, 2])
async def test_a_crash_between_write_and_rename_leaves_nothing(tmp_path: Path, renames: int) -> None:
    """The process dies before the first rename, of the list of chunks, or before the second, of the blob."""
    words = [sys.executable, "-c", CRASH, str(tmp_path), str(renames)]
    done = await trio.run_process(words, cwd=ROOT, check=False)
    assert done.returncode == 9
    assert list((tmp_path / "blobs/new").iterdir()), "the crash came in the middle"
    async with open_sqlite(tmp_path / "db") as store, storing(tmp_path / "blobs", store) as at:
        client = await at.client()
        assert not list((tmp_path / "blobs/new").iterdir())
        assert not await client.has(address(bytes(200_000)))
        said = await at.used("any")
        name = address(b"before").removeprefix("sha256:")
        assert at.lying() == [f"{name[:2]}/{name}"], "and no list without its blob"
        assert (said["used"], said["blobs"]) == ("6", "1"), "nobody is charged for what is not there"
        assert await client.read(address(b"before")) == b"before"
        assert await client.put(bytes(200_000)) == address(bytes(200_000))
        assert (await at.used("any"))["used"] == "200006"


async def test_the_number_of_a_blob_is_the_same_after_a_restart_and_nobody_elses(tmp_path: Path) -> None:
    store = MemoryStore()
    async with storing(tmp_path / "a", store) as at:
        client = await at.client()
        found = await client.put(b"x")
        first = (await client.wire.walk(found, 90)).qids[0]
    async with storing(tmp_path / "a", store) as at:
        again = (await (await at.client()).wire.walk(found, 90)).qids[0]
    async with storing(tmp_path / "b") as at:
        client = await at.client()
        await client.put(b"x")
        other = (await client.wire.walk(found, 90)).qids[0]
    assert again == first
    assert other.path != first.path, "a number that anybody can compute is one that somebody can make collide"
