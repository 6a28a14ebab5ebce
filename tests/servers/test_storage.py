"""/storage: what is put is what is read, once on the disk, and within a quota."""

import errno
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio
from warren.check.tree import check_tree
from warren.p9 import messages as p9
from warren.servers.storage import Storage
from warren.store import MemoryStore

from tests.servers.clock import StillClock
from tests.servers.storing import ANN, BOB, CHUNK, Client, address, squeezed, storing
from tests.wire import O_RDWR, O_WRONLY, RefusedBy, Service, export_of

SIZES = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 7, 2_000_003]


def body_of(size: int) -> bytes:
    return (hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_put_is_read_back_under_its_sha256(tmp_path: Path, size: int) -> None:
    body = body_of(size)
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(body)
        assert found == address(body)
        assert await client.read(found) == body
        assert await client.read(found, piece=900_000) == body
        assert await client.read(f"have/{found}") == b"1\n"
        assert at.file(found).read_bytes() == body, "sha256sum of the file is its name"


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 1), (1, CHUNK), (CHUNK - 1, 2), (CHUNK, CHUNK), (CHUNK - 1, 2 * CHUNK), (17, 5 * CHUNK),
     (5 * CHUNK, 100), (5 * CHUNK + 6, 100), (5 * CHUNK + 7, 1), (1 << 62, 10), (3, 0)],
)  # fmt: skip
async def test_a_range_is_what_lies_there(tmp_path: Path, offset: int, count: int) -> None:
    body = body_of(5 * CHUNK + 7)
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(body)
        for _ in range(2):  # from the disk, and perhaps out of the cache
            assert await client.range(found, offset, count) == body[offset : offset + count]


async def test_pieces_of_any_size_make_the_same_blob(tmp_path: Path) -> None:
    body = body_of(400_000)
    async with storing(tmp_path) as at:
        client = await at.client()
        for piece in (1021, CHUNK, CHUNK + 1, 300_000):
            assert await client.put(body, piece) == address(body)
        assert await client.read(address(body)) == body


async def test_a_body_is_there_only_once_it_is_committed(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        fid = await client.open("put", O_RDWR)
        await client.send(fid, b"half of it")
        assert await client.wire.read(fid) == b""
        assert not await client.has(address(b"half of it"))
        await client.fsync(fid)
        assert await client.has(address(b"half of it"))
        await client.fsync(fid)
        with pytest.raises(RefusedBy, match="409 conflict: this body was committed"):
            await client.wire.write(fid, b"more", 10)


async def test_a_clunk_commits_what_was_not_declared(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        fid = await client.open("put", O_WRONLY)
        await client.send(fid, b"as cp leaves it")
        await client.wire.clunk(fid)
        assert await client.read(address(b"as cp leaves it")) == b"as cp leaves it"


async def test_looking_at_put_stores_nothing(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        for flags in (0, O_WRONLY, O_RDWR):
            fid = await client.open("put", flags)
            await client.wire.clunk(fid)
        fid = await client.open("put", 0)
        await client.fsync(fid)
        await client.wire.clunk(fid)
        assert at.lying() == []


async def test_a_disconnect_discards(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        for path, first in (("put", b""), ("declared", b"len=1000000\n")):
            fid = await client.open(path, O_WRONLY)
            await client.send(fid, first + b"x" * 100_000)
        assert len(at.lying()) == 2
        await client.wire.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert at.lying() == []
        assert (await at.used("any"))["coming"] == "0"


@pytest.mark.parametrize("path", ["put", "declared"])
async def test_a_disconnect_in_the_middle_of_much_discards(tmp_path: Path, path: str) -> None:
    """A thread is at it when the client goes."""
    first = b"len=5000000 encoding=gzip\n" if path == "declared" else b""
    async with storing(tmp_path) as at:
        client = await at.client()
        fid = await client.open(path, O_WRONLY)
        sent, writes = first + squeezed(os.urandom(2_500_000)), []
        for offset in range(0, len(sent), 900_000):
            writes.append(p9.Twrite(fid, offset, sent[offset : offset + 900_000]))
        await client.wire.send(*writes)
        await client.wire.stream.aclose()
    assert at.lying() == []
    assert all((a.coming, a.writing) == (0, 0) for a in at.storage.accounts.accounts.values())


async def test_a_refused_write_never_leaves_a_shorter_body(tmp_path: Path) -> None:
    async with storing(tmp_path, largest=100) as at:
        client = await at.client()
        for second, offset, says in ((b"x" * 90, 20, "413 too_large"), (b"x", 30, "416 bad_offset")):
            fid = await client.open("put", O_WRONLY)
            await client.send(fid, b"x" * 20)
            with pytest.raises(RefusedBy, match=says):
                await client.wire.write(fid, second, offset)
            with pytest.raises(RefusedBy, match=says):
                await client.fsync(fid)
            await client.wire.clunk(fid)
        assert at.lying() == []
        assert (await at.used("any"))["used"] == "0"


# Declared bodies


async def test_the_last_byte_of_a_declared_body_commits_it(tmp_path: Path) -> None:
    body = body_of(200_000)
    async with storing(tmp_path) as at:
        client = await at.client()
        said = f"len={len(body)} address={address(body)}"
        assert await client.declare(said, body) == address(body)
        assert await client.read(address(body)) == body
        assert await client.declare("len=0", b"", piece=3) == address(b"")
        assert await client.declare("len=4 # the rest is a comment", b"abcd", piece=1) == address(b"abcd")


@pytest.mark.parametrize(
    ("line", "body", "says"),
    [
        ("hello", b"", "400 bad_request: the first line is"),
        ("", b"", "400 bad_request: the first line is"),
        ("len=x", b"", "len is a number"),
        ("len=-1", b"", "len is a number"),
        ("len=9999999999999999999", b"", "len is a number"),
        ("len=1 len=1", b"a", "does not belong"),
        ("len=1 size=3", b"a", "does not belong"),
        ("len=1 encoding=", b"a", "does not belong"),
        ("len=1 address=sha256:00", b"a", "the address is sha256:"),
        ("len='1", b"a", "400 bad_quoting"),
        ("len=1 encoding=lzma", b"a", "405 not_supported: there is no encoding 'lzma' here; send gzip, zlib"),
        ("len=3000000", b"a", "413 too_large: 3000000 bytes are too many"),
        ("len=1", b"ab", "413 too_large: 1 more bytes were declared, 2 came"),
        (f"len=1 address={address(b'b')}", b"a", "422 corrupt: .* was declared, what came is sha256:ca97811"),
        ("x" * 600, b"", "400 bad_request: the first line is at most 512 bytes"),
        ("\0\xff", b"", "does not belong"),
    ],
)  # fmt: skip
async def test_a_bad_declaration_stores_nothing(tmp_path: Path, line: str, body: bytes, says: str) -> None:
    async with storing(tmp_path, largest=2_000_000) as at:
        client = await at.client()
        with pytest.raises(RefusedBy, match=says):
            await client.declare(line, body)
        assert at.lying() == []
        assert (await at.used("any")).get("coming", "0") == "0"


async def test_a_declared_body_that_falls_short_is_refused_and_gone(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        for end in (client.fsync, client.wire.clunk):
            fid = await client.open("declared", O_WRONLY)
            await client.send(fid, b"len=10\nabc")
            with pytest.raises(RefusedBy, match="422 corrupt: 7 bytes of the declared length are missing"):
                await end(fid)
        assert at.lying() == []


async def test_a_compressed_body_is_stored_inflated(tmp_path: Path) -> None:
    body = os.urandom(200_000) + bytes(300_000)
    sent = squeezed(body)
    async with storing(tmp_path) as at:
        client = await at.client()
        for piece in (777, 60_000, 500_000):
            assert await client.declare(f"len={len(sent)} encoding=gzip", sent, piece) == address(body)
        assert await client.read(address(body)) == body
        counts = await at.counts()
        assert counts["storage_inflate_streams_total"] == 3
        assert counts["storage_inflate_ratio_bucket le=5"] == 3
        assert counts["storage_inflate_ratio_bucket le=2"] == 0
        assert (await at.used("any"))["used"] == str(len(body)), "charged is what lies there"


@pytest.mark.parametrize("piece", [50_000, 900_000])
async def test_a_bomb_is_refused_and_leaves_nothing(tmp_path: Path, piece: int) -> None:
    bomb = squeezed(bytes(50_000_000))
    async with storing(tmp_path) as at:
        client = await at.client()
        with pytest.raises(RefusedBy, match="413 bomb: it inflates to more than 10 times") as caught:
            await client.declare(f"len={len(bomb)} encoding=gzip", bomb, piece)
        assert caught.value.errno == errno.EFBIG
        assert at.lying() == []
        assert (await at.used("any"))["coming"] == "0"
        counts = await at.counts()
        assert counts["storage_inflate_refused_total why=ratio"] == 1
        assert counts["storage_inflate_out_bytes_total"] < 12 * len(bomb) + 2 * CHUNK


async def test_a_body_cannot_inflate_beyond_the_largest_blob_or_the_quota(tmp_path: Path) -> None:
    sent = squeezed(os.urandom(100_000) + bytes(200_000))
    async with storing(tmp_path, largest=250_000) as at:
        with pytest.raises(RefusedBy, match="413 too_large: it inflates to more than 250000 bytes"):
            await (await at.client()).declare(f"len={len(sent)} encoding=gzip", sent)
        assert at.lying() == []
    async with storing(tmp_path / "b", quota=250_000) as at:
        with pytest.raises(RefusedBy, match="507 over_quota: your quota is 250000 bytes"):
            await (await at.client()).declare(f"len={len(sent)} encoding=gzip", sent)
        assert at.lying() == []


async def test_damaged_and_cut_compression_is_refused(tmp_path: Path) -> None:
    sent = squeezed(os.urandom(10_000))
    async with storing(tmp_path) as at:
        client = await at.client()
        for bad in (sent[:-5], sent[:5000] + b"\0" + sent[5001:], b"plain text, not gzip", sent + b"trailer"):
            with pytest.raises(RefusedBy, match="422 bad_encoding"):
                await client.declare(f"len={len(bad)} encoding=gzip", bad)
        assert at.lying() == []


# Once on the disk, and charged to everybody


async def test_the_same_content_lies_on_the_disk_once(tmp_path: Path) -> None:
    body = body_of(300_000)
    async with storing(tmp_path) as at:
        ann, bob = await at.client(ANN), await at.client(BOB)
        assert await ann.put(body) == await bob.put(body) == await ann.put(body)
        name = address(body).removeprefix("sha256:")
        assert at.lying() == [f"{name[:2]}/{name}", f"{name[:2]}/{name}.chunks"]
        counts = await at.counts()
        assert (counts["storage_puts_total"], counts["storage_known_total"]) == (3, 2)
        assert (counts["storage_blobs"], counts["storage_bytes"]) == (1, len(body))
        for subject in (ANN, BOB):
            said = await at.used(subject)
            assert (said["used"], said["blobs"], said["coming"]) == (str(len(body)), "1", "0")


async def test_many_at_once_who_put_the_same_leave_one_blob(tmp_path: Path) -> None:
    body = body_of(300_000)
    async with storing(tmp_path, writers=64) as at:
        clients = [await at.client(f"spiffe://hive/user/u{n % 3}") for n in range(12)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.put, body)
        assert len(at.lying()) == 2
        assert (await at.counts())["storage_blobs"] == 1
        for n in range(3):
            assert (await at.used(f"spiffe://hive/user/u{n}"))["used"] == str(len(body))


async def test_a_quota_holds_for_finished_and_unfinished_bodies(tmp_path: Path) -> None:
    async with storing(tmp_path, quota=100_000) as at:
        ann, bob = await at.client(ANN), await at.client(BOB)
        await ann.put(b"a" * 60_000)
        with pytest.raises(RefusedBy, match="507 over_quota: your quota is 100000 bytes, 60000") as e:
            await ann.put(b"b" * 60_000)
        assert e.value.errno == errno.ENOSPC
        await bob.put(b"b" * 60_000)
        fid = await ann.open("put", O_WRONLY)
        await ann.send(fid, b"c" * 30_000)
        with pytest.raises(RefusedBy, match="507 over_quota"):
            await ann.put(b"d" * 20_000)
        await ann.wire.clunk(fid)
        assert (await at.used(ANN))["used"] == "90000"


async def test_a_subject_gets_a_quota_of_its_own(tmp_path: Path) -> None:
    store = MemoryStore()
    async with storing(tmp_path, store, quota=1000) as at:
        client = await at.client(ANN)
        said = await client.ctl(f"quota {ANN} 2K")
        assert said == f"{ANN} may use 2048 bytes, and uses 0"
        await client.put(b"x" * 2000)
    async with storing(tmp_path, store, quota=1000) as at:
        client = await at.client(ANN)
        assert (await at.used(ANN))["limit"] == "2048"
        assert (await at.used(ANN))["used"] == "2000"
        await client.ctl(f"quota {ANN} default")
        with pytest.raises(RefusedBy, match="507 over_quota: your quota is 1000 bytes, 2000 are used"):
            await client.put(b"y")
        for bad in ("much", "-1", "1X", "\u0661"):
            with pytest.raises(RefusedBy, match="400 bad_request"):
                await client.ctl(f"quota {ANN} {bad}")


async def test_one_subject_cannot_take_all_the_places_of_writers(tmp_path: Path) -> None:
    async with storing(tmp_path, writers=8) as at:
        ann, bob = await at.client(ANN), await at.client(BOB)
        held = [await ann.open("put", O_WRONLY) for _ in range(3)]
        for fid in held[:2]:
            await ann.send(fid, b"begun")
        with pytest.raises(RefusedBy, match="429 busy: 2 puts of yours are under way; finish one"):
            await ann.send(held[2], b"begun")
        await bob.put(b"bob's")
        await ann.wire.clunk(held[0])
        await ann.put(b"one more")


async def test_there_is_a_greatest_number_of_blobs(tmp_path: Path) -> None:
    async with storing(tmp_path, blobs=2) as at:
        client = await at.client()
        await client.put(b"1")
        await client.put(b"2")
        with pytest.raises(RefusedBy, match="507 full: 2 blobs are here"):
            await client.put(b"3")


async def test_an_index_that_refuses_leaves_no_blob(tmp_path: Path) -> None:
    async with storing(tmp_path, MemoryStore(capacity=100)) as at:
        with pytest.raises(RefusedBy, match="507 full: the index"):
            await (await at.client()).put(b"x" * 100_000)
        assert at.lying() == []
        assert (await at.used("any"))["used"] == "0"


async def test_a_disk_without_room_for_the_name_charges_nobody(tmp_path: Path) -> None:
    body = b"nowhere to lie"
    async with storing(tmp_path) as at:
        client = await at.client()
        place = at.file(address(body)).parent
        await client.read("status")
        place.rmdir()
        with pytest.raises(RefusedBy, match="404 not_found"):
            await client.put(body)
        assert (await at.used("any"))["used"] == "0"
        place.mkdir()
        await client.put(body)
        assert (await at.used("any"))["used"] == str(len(body))


async def test_a_flushed_fsync_commits_or_can_be_repeated(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        fid = await client.open("put", O_RDWR)
        await client.send(fid, body_of(400_000))
        await client.wire.send(p9.Tfsync(fid, 0), tag=7)
        await client.wire.send(p9.Tflush(7), tag=8)
        replies = [await client.wire.reply()]
        if not isinstance(replies[0], p9.Rflush):
            replies.append(await client.wire.reply())
        assert isinstance(replies[-1], p9.Rflush)
        await client.fsync(fid)
        assert await client.read(address(body_of(400_000))) == body_of(400_000)
        assert (await client.wire.read(fid)).decode().strip() == address(body_of(400_000))


async def test_it_is_a_tree_as_every_other(tmp_path: Path) -> None:
    """With one name set and no room for a second: in `refs` anybody may create, and the suite tries to."""
    storage = Storage(tmp_path, MemoryStore(), StillClock(), refs=1)
    async with trio.open_nursery() as nursery:
        client = Client(await Service(export_of(storage), nursery).dial())
        found = await client.put(body_of(200_000))
        await client.put(b"small")
        await client.name("one", found)
        nursery.cancel_scope.cancel()
    await check_tree(lambda: nullcontext(storage))
    storage.close()
