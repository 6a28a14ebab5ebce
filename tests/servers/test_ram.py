"""Files in memory: a tree like any other, in a room with walls."""

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from warren.check.tree import check_tree
from warren.mount import Files
from warren.servers.ram import Ram
from warren.servers.ram.node import Folder, Plain
from warren.servers.ram.volume import PAGE, Data, Volume
from warren.tree import NOW, Changes, Refused

from tests.servers.reach import files_of


def clock() -> Iterator[int]:
    at = 10**18
    while True:
        yield (at := at + 1)


def room(pages: int = 64, files: int = 64) -> Volume:
    ticks = clock()
    return Volume(pages * PAGE, files, lambda: next(ticks))


async def refused(number: int, coming: object) -> str:
    with pytest.raises(OSError) as caught:
        await coming  # type: ignore[misc]
    assert caught.value.errno == number, caught.value
    return caught.value.strerror or ""


async def test_it_is_a_tree_in_which_files_are_made(autojump_clock: MockClock) -> None:
    await check_tree(lambda: nullcontext(Ram()), writable="/")
    await check_tree(lambda: nullcontext(Ram(dirs=("mic", "cam/left"))), writable="/cam/left")


async def test_the_directories_it_was_given_are_there() -> None:
    async with files_of(Ram(dirs=("mic", "cam/left", "cam/right", "/mic/"))) as files:
        assert [d.name for d in await files.readdir("/")] == ["mic", "cam"]
        assert [d.name for d in await files.readdir("/cam")] == ["left", "right"]
        await files.write("/mic/one", b"x", create=True)
    with pytest.raises(Refused, match="2 files"):
        Ram(files=2, dirs=("a", "b"))


# Room


async def test_a_tree_that_is_full_refuses_and_changes_nothing() -> None:
    ram = Ram(size=4 * PAGE, files=4)
    async with files_of(ram) as files:
        await files.write("/a", b"a" * 3 * PAGE, create=True)
        await files.write("/b", b"b", create=True)
        said = await refused(errno.ENOSPC, files.write("/b", b"b" * (PAGE + 1), truncate=False))
        assert said.startswith("507 full: the tree holds 16384 bytes; remove something first")
        assert await files.read("/b") == b"b"
        await files.write("/c", b"", create=True)
        assert (await refused(errno.ENOSPC, files.mkdir("/d"))).startswith("507 full: the tree holds 4 files")
        assert not await files.walk_exists("/d")
        found = await files.statfs("/")
        assert (found.blocks, found.bfree, found.files, found.ffree) == (4, 0, 4, 0)
        await files.remove("/a")
        await files.mkdir("/d")
        await files.write("/b", b"b" * 4 * PAGE, truncate=False)
        assert (await files.statfs("/")).bfree == 0


async def test_a_hole_costs_nothing_and_reads_as_zeros() -> None:
    async with files_of(Ram(size=4 * PAGE)) as files, await files.open("/a", os.O_RDWR | os.O_CREAT) as file:
        await file.pwrite(b"end", 10**12)
        entry = await file.stat()
        assert entry.size == 10**12 + 3
        assert await file.pread(6, 10**12 - 3) == b"\0\0\0end"
        assert await file.pread(5, 10**6) == bytes(5)
        await file.truncate(10**15)
        assert (await files.statfs("/")).bfree == 3
        await refused(errno.EFBIG, file.pwrite(b"x", (1 << 63) - 1))


async def test_an_unlinked_file_keeps_its_room_while_it_is_open() -> None:
    ram = Ram(size=4 * PAGE)
    async with files_of(ram) as files:
        file = await files.open("/a", os.O_RDWR | os.O_CREAT)
        await file.pwrite(b"x" * 4 * PAGE, 0)
        await files.remove("/a")
        assert await file.pread(2, 0) == b"xx"
        assert (await file.stat()).nlink == 0
        await refused(errno.ENOSPC, files.write("/b", b"x", create=True))
        await file.close()
        await files.write("/b", b"x" * 4 * PAGE)
    assert (ram.volume.pages_used, ram.volume.files_used) == (4, 2)


async def test_what_clients_leave_behind_gives_its_room_back() -> None:
    ram = Ram()
    async with files_of(ram) as files:
        for n in range(10):
            file = await files.open(f"/f{n}", os.O_RDWR | os.O_CREAT)
            await file.pwrite(b"x" * PAGE, 0)
            await files.remove(f"/f{n}")
        await files.mkdir("/d")
        await files.mkdir("/d/e")
        await files.remove("/d/e")
        await files.remove("/d")
    gc.collect()
    assert (ram.volume.pages_used, ram.volume.files_used) == (0, 1)


def test_what_was_refused_takes_no_place() -> None:
    ram = Ram(files=2)
    for mode in (0o4755, 0o2755):
        with pytest.raises(Refused, match="setuid"):
            ram.create("x", 0, mode, 0, None)  # type: ignore[arg-type]
    ram.make("d", 0o755)
    with pytest.raises(Refused, match="2 files"):
        ram.create("x", 0, 0o644, 0, None)  # type: ignore[arg-type]
    assert (list(ram.names), ram.volume.files_used) == (["d"], 2)


# Bytes


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 5 * PAGE), st.integers(0, 2 * PAGE)),
            st.tuples(st.just("truncate"), st.integers(0, 6 * PAGE), st.just(0)),
            st.tuples(st.just("read"), st.integers(0, 7 * PAGE), st.integers(0, 3 * PAGE)),
        ),
        max_size=30,
    )
)
def test_bytes_at_offsets_are_those_of_a_plain_array(steps: list[tuple[str, int, int]]) -> None:
    volume = room()
    data, model = Data(volume), bytearray()
    for at, (what, offset, count) in enumerate(steps):
        if what == "write":
            piece = bytes([at + 1]) * count
            data.write(offset, piece)
            if piece:
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + count] = piece
        elif what == "truncate":
            data.truncate(offset)
            model = model[:offset] + bytes(max(0, offset - len(model)))
        assert data.read(offset, count) == model[offset : offset + count]
        assert data.size == len(model)
        assert volume.pages_used == len(data.pages)
        assert all(n * PAGE < len(model) for n in data.pages)
    assert data.read(0, 10 * PAGE) == model
    data.free()
    assert volume.pages_used == 0


# Names and attributes


async def test_versions_and_times_follow_every_change() -> None:
    ram = Ram()
    ticks = clock()
    ram.volume.now = lambda: next(ticks)
    async with files_of(ram) as files:
        await files.write("/a", b"x", create=True)
        seen = {(await files.stat("/a")).qid.version}
        for change in (
            files.write("/a", b"y", truncate=False),
            files.chmod("/a", 0o600),
            files.truncate("/a", 0),
            files.link("/a", "/b"),
            files.rename("/a", "/c"),
            files.remove("/b"),
        ):
            await change
            entry = await files.stat("/c" if not await files.walk_exists("/a") else "/a")
            assert entry.qid.version not in seen | {0}
            seen.add(entry.qid.version)
        await files.setattr("/c", Changes(atime=5 * 10**9, mtime=NOW))
        entry = await files.stat("/c")
        assert entry.atime_ns == 5 * 10**9
        assert entry.mtime_ns > 10**18
        before = (await files.stat("/")).mtime_ns
        await files.mkdir("/d")
        assert (await files.stat("/")).mtime_ns > before


async def test_owners_and_set_id_bits_are_not_given() -> None:
    async with files_of(Ram()) as files:
        await files.write("/a", b"", create=True)
        for changes in (Changes(uid=os.geteuid() + 1), Changes(gid=os.getegid() + 1), Changes(mode=0o4755)):
            await refused(errno.EPERM, files.setattr("/a", changes))
        await files.setattr("/a", Changes(uid=os.geteuid(), gid=os.getegid(), mode=0o1755))
        assert (await files.stat("/a")).mode & 0o7777 == 0o1755
        await refused(errno.EISDIR, files.open("/", os.O_RDWR))


async def linked_counts(files: Files) -> list[int]:
    return [(await files.stat(path)).nlink for path in ("/", "/a", "/b")]


async def test_a_directory_counts_those_below_it() -> None:
    async with files_of(Ram(dirs=("a", "b"))) as files:
        assert await linked_counts(files) == [4, 2, 2]
        await files.mkdir("/a/x")
        assert await linked_counts(files) == [4, 3, 2]
        await files.rename("/a/x", "/b/x")
        assert await linked_counts(files) == [4, 2, 3]
        await files.mkdir("/a/x")
        await files.rename("/a/x", "/b/x")
        assert await linked_counts(files) == [4, 2, 3], "an empty directory was replaced"
        await files.remove("/b/x")
        assert await linked_counts(files) == [4, 2, 2]


async def test_nothing_is_made_in_a_directory_that_was_removed() -> None:
    ram = Ram(dirs=("a", "b"))
    gone = ram.names["a"]
    assert isinstance(gone, Folder)
    async with files_of(ram) as files:
        await files.write("/b/file", b"x", create=True)
        await files.remove("/a")
    for attempt in (
        lambda: gone.make("x", 0o755),
        lambda: gone.create("x", 0, 0o644, 0, None),  # type: ignore[arg-type]
        lambda: gone.symlink("x", "target", 0),
        lambda: ram.names["b"].rename("file", gone, "file"),
    ):
        with pytest.raises(Refused) as caught:
            attempt()
        assert caught.value.code == 404
    assert ram.volume.files_used == 4, "root, b, its file, and what we hold"


def test_a_file_that_has_no_name_any_more_gets_none_again() -> None:
    ram = Ram()
    file, _ = ram.create("a", 0, 0o644, 0, None)  # type: ignore[arg-type]
    assert isinstance(file, Plain)
    ram.unlink("a", False)
    with pytest.raises(Refused, match="does not exist"):
        ram.link("b", file)
    with pytest.raises(Refused, match="different trees") as caught:
        Ram().link("b", file)
    assert caught.value.errno == errno.EXDEV
