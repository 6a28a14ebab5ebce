"""A disk that lies: what is damaged is 422 and never bytes, and what is whole beside it is still there."""

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.p9 import messages as p9
from warren.p9.messages import WARREN
from warren.servers.storage.reading import FRESH, WINDOW, WINDOWS

from tests.servers.storing import CHUNK, address, storing
from tests.wire import RefusedBy

BODY = bytes(range(256)) * 2048  # 8 chunks


@pytest.mark.parametrize("at_once", [60_000, 1_000_000])
@pytest.mark.parametrize("read_before", [False, True])
async def test_a_flipped_bit_is_422_and_names_its_chunk(
    tmp_path: Path, at_once: int, read_before: bool
) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        if read_before:
            assert await client.read(found, at_once) == BODY
        at.spoil(found, 3 * CHUNK + 5)
        with pytest.raises(RefusedBy, match=r"422 corrupt: .* chunk 3, bytes 196608 to 262144") as e:
            await client.read(found, at_once)
        assert e.value.errno == errno.EBADMSG
        assert await client.range(found, 0, 3 * CHUNK) == BODY[: 3 * CHUNK]
        assert await client.range(found, 4 * CHUNK, 4 * CHUNK) == BODY[4 * CHUNK :]
        for offset, count in ((3 * CHUNK, 1), (3 * CHUNK - 1, 2), (4 * CHUNK - 1, 1), (0, 8 * CHUNK)):
            with pytest.raises(RefusedBy, match="chunk 3"):
                await client.range(found, offset, count)
        assert (await at.counts())["storage_damaged_total"] >= 5


async def test_what_is_open_sees_the_damage_too(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        fid = await client.open(found)
        assert await client.wire.read(fid, 0, 100) == BODY[:100]
        at.spoil(found, 50)
        with pytest.raises(RefusedBy, match="chunk 0"):
            await client.wire.read(fid, 0, 100)


async def test_a_small_blob_is_verified_by_its_own_address(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(b"small")
        at.spoil(found, 0)
        with pytest.raises(RefusedBy, match="chunk 0, bytes 0 to 5"):
            await client.read(found)


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, len(BODY) - 1])
@pytest.mark.parametrize("whole", [b"small", BODY])
async def test_a_file_that_was_cut_gives_no_wrong_end(tmp_path: Path, whole: bytes, size: int) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(whole)
        at.file(found).chmod(0o600)
        os.truncate(at.file(found), size)
        if size == len(whole):
            return
        with pytest.raises(RefusedBy, match="422 corrupt"):
            await client.read(found)


async def test_a_file_that_grew_gives_what_was_stored(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        at.file(found).chmod(0o600)
        with at.file(found).open("ab") as file:
            file.write(b"more")
        assert await client.read(found) == BODY
        with pytest.raises(RefusedBy, match="422 corrupt"):
            await client.ctl(f"verify {found}")


@pytest.mark.parametrize("how", ["flip", "cut", "remove", "another's"])
async def test_a_damaged_list_of_chunks_is_told_apart_and_written_anew(tmp_path: Path, how: str) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        other = await client.put(BODY[::-1])
        chunks = at.file(found).with_suffix(".chunks")
        chunks.chmod(0o600)
        raw = bytearray(chunks.read_bytes())
        match how:
            case "flip":
                raw[70] ^= 1
                chunks.write_bytes(raw)
            case "cut":
                chunks.write_bytes(raw[:30])
            case "remove":
                chunks.unlink()
            case _:
                chunks.write_bytes(at.file(other).with_suffix(".chunks").read_bytes())
        with pytest.raises(RefusedBy, match=r"422 corrupt: .* the list of its chunks is (missing|damaged)"):
            await client.read(found)
        assert "is whole" in await client.ctl(f"verify {found}")
        assert await client.read(found) == BODY


async def test_verify_finds_all_of_the_damage(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        assert await client.ctl(f"verify {found}") == f"{found} is whole, bytes={len(BODY)}"
        at.spoil(found, 0)
        at.spoil(found, 7 * CHUNK)
        with pytest.raises(RefusedBy, match=r"422 corrupt: .*: 2 of 8 chunks are corrupt: 0 7; put"):
            await client.ctl(f"verify {found}")
        with pytest.raises(RefusedBy, match="404 not_found"):
            await client.ctl(f"verify {address(b'nothing')}")
        with pytest.raises(RefusedBy, match=r"400 bad_request: .* is no address"):
            await client.ctl("verify sha256:../../etc/passwd")


async def test_to_put_it_again_mends_it(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        at.spoil(found, 5)
        at.file(found).with_suffix(".chunks").unlink()
        await client.put(BODY)
        assert await client.read(found) == BODY
        assert (await at.used("any"))["used"] == str(len(BODY))
        status = (await client.read("status")).decode()
        assert f"blobs=1\nbytes={len(BODY)}\n" in status


async def test_a_cache_learns_that_the_file_is_another(tmp_path: Path) -> None:
    """A client that caches by qid version must not go on with what it has."""
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(BODY)
        before = (await client.wire.walk(found, 90)).qids[0]
        again = (await client.wire.walk(found, 91)).qids[0]
        assert before == again
        assert before.version
        at.spoil(found, 0)
        after = (await client.wire.walk(found, 92)).qids[0]
        assert (after.path, after.version != before.version) == (before.path, True)


async def test_the_cache_is_bounded_and_hashes_a_chunk_once(tmp_path: Path) -> None:
    async with storing(tmp_path, cache=3 * CHUNK) as at:
        client = await at.client()
        fid = await client.open(await client.put(BODY))
        for offset in reversed(range(0, len(BODY), 1000)):
            assert await client.wire.read(fid, offset, 1000) == BODY[offset : offset + 1000]
        counts = await at.counts()
        assert counts["storage_hashed_bytes_total"] == len(BODY), "each chunk once, however small the reads"
        assert counts["storage_cached_total"] > 400
        assert at.storage.reads.held <= 3 * CHUNK


async def test_a_thread_works_ahead_of_who_reads_in_order(tmp_path: Path) -> None:
    body = os.urandom(5 * WINDOW + 12_345)
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(body, 900_000)
        for piece in (WINDOW - 11, 100_000, 60_000):
            at.clock.at += FRESH + 1
            before = (await at.counts())["storage_hashed_bytes_total"]
            assert await client.read(found, piece) == body
            hashed = (await at.counts())["storage_hashed_bytes_total"] - before
            assert hashed <= len(body) + 4 * CHUNK, "once, but for a beginning that looked like a glance"
            assert at.storage.reads.windows == WINDOWS, "what a reader had to its end is given back"


async def test_without_room_to_work_ahead_the_bytes_are_the_same(tmp_path: Path) -> None:
    body = os.urandom(3 * WINDOW)
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(body, 900_000)
        for room in (0, 1, 2):
            at.clock.at += FRESH + 1
            at.storage.reads.windows = room
            assert await client.read(found, 300_000) == body
            assert at.storage.reads.windows <= room
            with trio.fail_after(10):
                while at.storage.reads.windows < room:  # a thread may still be at one that nobody wants
                    await trio.testing.wait_all_tasks_blocked()


async def test_what_was_just_compared_is_not_hashed_again_until_a_moment_has_passed(tmp_path: Path) -> None:
    body = os.urandom(4 * WINDOW)
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(body, 900_000)
        hashed = []
        for wait in (0.0, FRESH / 2, FRESH + 1):
            at.clock.at += wait
            before = (await at.counts())["storage_hashed_bytes_total"]
            assert await client.read(found, 500_000) == body
            hashed.append((await at.counts())["storage_hashed_bytes_total"] - before)
        assert hashed == [len(body), 0, len(body)]
        assert await client.read(found, 500_000) == body
        at.spoil(found, 2 * WINDOW)
        with pytest.raises(RefusedBy, match="chunk 32,"):
            await client.read(found, 500_000)


# Who comes with bad intentions


@pytest.mark.parametrize(
    "name",
    ["sha256:../../lock", "sha256:" + "A" * 64, "SHA256:" + "a" * 64, "sha256:" + "a" * 63,
     "sha256:" + "a" * 65, "a" * 64, "sha256:" + "a" * 63 + "/", "sha256: " + "a" * 63,
     "sha256:" + "a" * 63 + "\n", "sha256:" + "\u0661" * 64, "sha256:" + "a" * 64 + ".chunks",
     "lock", "key", "new", "aa", "md5:" + "a" * 32, "sha256:", "sha256:%61"],
)  # fmt: skip
@pytest.mark.parametrize("under", ["", "have/"])
async def test_what_is_no_address_is_not_there(tmp_path: Path, under: str, name: str) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        await client.put(b"something")
        nothing = r"404 not_found|400 bad_request|names were found"
        with pytest.raises((RefusedBy, AssertionError), match=nothing):
            await client.wire.walk(f"{under}{name}", 5)


async def test_who_may_not_read_cannot_tell_what_is_here(tmp_path: Path) -> None:
    """Neither by walking, nor by looking in `have`, nor by putting the same and watching the quota."""
    allow = ("any write /put", "user/ann read /**", f"user/bob read /{address(b'for bob')}")
    async with storing(tmp_path, allow=allow) as at:
        ann, bob = await at.client("spiffe://hive/user/ann"), await at.client("spiffe://hive/user/bob")
        for body in (b"secret", b"for bob"):
            for who in (ann, bob):
                fid = await who.open("put", 1)
                await who.send(fid, body)
                await who.wire.clunk(fid)
        assert await ann.read(address(b"secret")) == b"secret"
        assert await bob.read(address(b"for bob")) == b"for bob"
        said = set()
        for name in (address(b"secret"), address(b"never put"), "sha256:x"):
            for path in (name, f"have/{name}"):
                with pytest.raises(RefusedBy) as e:
                    await bob.wire.walk(path, 77)
                said.add(str(e.value).partition(" trace=")[0])
        assert len(said) == 1, said


async def test_a_blob_cannot_be_written_removed_or_renamed(tmp_path: Path) -> None:
    async with storing(tmp_path) as at:
        client = await at.client()
        found = await client.put(b"fixed")
        for flags in (1, 2, 0o1000):
            with pytest.raises(RefusedBy, match="403 denied: a blob never changes"):
                await client.open(found, flags)
        await client.wire.walk(found, 50)
        asked = (
            p9.Tunlinkat(0, found, 0), p9.Trenameat(0, found, 0, "x"), p9.Tlink(0, 50, "x"),
            p9.Tsetattr(50, 8, 0, 0, 0, 0, 0, 0, 0, 0), p9.Tsetattr(50, 1, 0o777, 0, 0, 0, 0, 0, 0, 0),
            p9.Tmkdir(0, "d", 0o755, 0), p9.Tsymlink(0, "l", "/etc", 0),
        )  # fmt: skip
        for m in asked:
            with pytest.raises(RefusedBy, match="405 not_supported"):
                await client.wire.want(p9.Rversion, m)
        assert await client.read(found) == b"fixed"


async def test_a_link_in_the_directory_leads_nowhere(tmp_path: Path) -> None:
    """Somebody who can write the directory can do much, but does not make the server read another file."""
    async with storing(tmp_path / "blobs") as at:
        client = await at.client()
        (tmp_path / "other").write_bytes(b"not of the storage")
        found = address(b"not of the storage")
        at.file(found).symlink_to(tmp_path / "other")
        with pytest.raises(RefusedBy):
            await client.read(found)


async def test_one_who_pipelines_writes_gets_them_in_order(tmp_path: Path) -> None:
    """Several writes of one body in one segment: some go to a thread, and none overtakes."""
    body = os.urandom(900_000)
    sizes = [10, 100_000, 7, 60_000, 200_000, 1, 300_000]
    async with storing(tmp_path) as at:
        client = await at.client()
        assert client.wire.codec.name == WARREN
        fid, at_byte = await client.open("put", 2), 0
        wanted = []
        for size in sizes:
            wanted.append(p9.Twrite(fid, at_byte, body[at_byte : at_byte + size]))
            at_byte += size
        await client.wire.send(*wanted, tag=100)
        replies = await client.wire.replies(len(sizes))
        assert sorted(r.tag for r in replies) == list(range(100, 100 + len(sizes)))
        assert all(isinstance(r, p9.Rwrite) for r in replies)
        await client.fsync(fid)
        assert await client.read(address(body[:at_byte])) == body[:at_byte]
