"""What survives a lost connection, what is done again, and what is told instead."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from warren.mount import File, Files
from warren.p9.fields import QTDIR, Qid
from warren.p9.messages import (
    Message,
    Rlcreate,
    Rlerror,
    Rlock,
    Rmkdir,
    Rread,
    Rwalk,
    Rwrite,
    Tgetattr,
    Tlcreate,
    Tlock,
    Tlopen,
    Tmkdir,
    Tread,
    Twalk,
    Twrite,
)

from tests.mount.peer import FILE, SYNTHETIC, Host, Peer, attached, attributes, hosted

OTHER = Qid(0, 1, 99)


async def together(*work: Callable[[], Awaitable[object]]) -> list[object]:
    """Run all and return what they returned."""
    results: list[object] = [None] * len(work)

    async def run(i: int) -> None:
        results[i] = await work[i]()

    async with trio.open_nursery() as nursery:
        for i in range(len(work)):
            nursery.start_soon(run, i)
    return results


async def opened(files: Files, peer: Peer, flags: int, qid: Qid = FILE, walked: Qid | None = None) -> File:
    results = await together(lambda: files.open("/f", flags), lambda: peer.opened(qid, walked))
    assert isinstance(results[0], File)
    return results[0]


async def lose(peer: Peer) -> None:
    """Hang up, and let the client notice."""
    await peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()


async def stat_answered(peer: Peer) -> None:
    walk, use = await peer.next(), await peer.next()
    assert isinstance(walk, Twalk)
    assert isinstance(use, Tgetattr)
    await peer.say(walk, Rwalk([FILE]))
    await peer.say(use, attributes(size=5))


async def test_a_look_is_taken_again_on_a_new_connection(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):

        async def script() -> None:
            await peer.next()
            await peer.stream.aclose()
            await stat_answered(await host.accept())

        entry, _ = await together(lambda: files.stat("/f"), script)
        assert entry.size == 5  # type: ignore[attr-defined]


async def test_a_look_is_taken_again_once_only(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):

        async def script() -> None:
            await peer.next()
            await peer.stream.aclose()
            second = await host.accept()
            await second.next()
            await second.stream.aclose()

        async def look() -> None:
            with pytest.raises(ConnectionResetError, match=r"was lost.*trace=[0-9a-f]{16}"):
                await files.stat("/f")

        await together(look, script)


async def test_a_change_under_way_is_not_done_again(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):

        async def script() -> None:
            await peer.walked()
            assert isinstance(await peer.next(), Tmkdir)
            await peer.stream.aclose()
            await stat_answered(await host.accept())  # the next call, and no Tmkdir

        async def change() -> None:
            with pytest.raises(ConnectionResetError, match="outcome is unknown") as caught:
                await files.mkdir("/d")
            assert caught.value.filename == "/d"
            await files.stat("/f")

        await together(change, script)


async def test_a_change_that_had_not_begun_is_done(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):

        async def script() -> None:
            await peer.next()  # the walk to the directory
            await peer.stream.aclose()
            second = await host.accept()
            await second.walked()
            m = await second.next()
            assert isinstance(m, Tmkdir)
            await second.say(m, Rmkdir(Qid(QTDIR, 1, 5)))

        await together(lambda: files.mkdir("/d"), script)


async def test_a_file_comes_back_at_its_next_use_and_no_other_does(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        await opened(files, peer, os.O_RDONLY)
        file = await opened(files, peer, os.O_RDONLY)
        await lose(peer)

        async def script() -> None:
            second = await host.accept()
            await second.opened()
            m = await second.next()
            assert isinstance(m, Tread)
            assert m.offset == 100
            await second.say(m, Rread(b"there"))

        data, _ = await together(lambda: file.pread(50, 100), script)
        assert data == b"there"


async def test_a_read_keeps_its_progress(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        file = await opened(files, peer, os.O_RDONLY)

        async def first() -> None:
            m = await peer.next()
            await peer.say(m, Rread(b"0123456789"))

        await together(lambda: file.read(10), first)

        async def script() -> None:
            await peer.next()
            await peer.stream.aclose()
            second = await host.accept()
            await second.opened()
            m = await second.next()
            assert isinstance(m, Tread)
            assert m.offset == 10
            await second.say(m, Rread(b"more"))

        data, _ = await together(lambda: file.read(10), script)
        assert data == b"more"
        assert file.position == 14


@pytest.mark.parametrize("made", [False, True], ids=["truncated", "created"])
async def test_coming_back_neither_truncates_nor_creates(made: bool, tmp_path: Path) -> None:
    flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if made else os.O_TRUNC)
    async with hosted(tmp_path / "s") as (files, peer, host):

        async def create() -> None:
            await peer.walked()
            m = await peer.next()
            assert isinstance(m, Tlcreate)
            await peer.say(m, Rlcreate(FILE, 0))

        if made:
            file, _ = await together(lambda: files.open("/f", flags), create)
            assert isinstance(file, File)
        else:
            file = await opened(files, peer, flags)
        await lose(peer)

        async def script() -> None:
            second = await host.accept()
            m = await second.opened()
            assert m.flags == os.O_RDWR
            read = await second.next()
            await second.say(read, Rread(b"kept"))

        data, _ = await together(lambda: file.pread(10, 0), script)
        assert data == b"kept"


async def test_another_file_of_that_name_is_stale(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        file = await opened(files, peer, os.O_RDONLY)
        await lose(peer)

        async def use() -> None:
            with pytest.raises(OSError, match="another file") as caught:
                await file.pread(10, 0)
            assert caught.value.errno == errno.ESTALE

        async def script() -> None:
            await (await host.accept()).opened(OTHER)

        await together(use, script)


async def test_what_a_clone_made_does_not_come_back(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, _):
        file = await opened(files, peer, os.O_RDWR, qid=OTHER, walked=SYNTHETIC)
        await lose(peer)
        for _ in range(2):
            with pytest.raises(OSError, match="lived as long as its connection") as caught:
                await file.pread(10, 0)
            assert caught.value.errno == errno.ESTALE


async def test_a_stream_says_once_that_records_may_be_lost(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        parked = await opened(files, peer, os.O_RDONLY | os.O_NONBLOCK, SYNTHETIC)
        idle = await opened(files, peer, os.O_RDONLY | os.O_NONBLOCK, SYNTHETIC)

        async def told() -> None:
            with pytest.raises(ConnectionResetError):
                await parked.record()

        async def hang_up() -> None:
            await peer.next()
            await peer.stream.aclose()

        await together(told, hang_up)
        with pytest.raises(ConnectionResetError, match="records may be lost"):
            await idle.record()

        async def script() -> None:
            second = await host.accept()
            for record in (b"a", b"b"):
                m = await second.opened(SYNTHETIC)
                assert m.flags == os.O_NONBLOCK
                read = await second.next()
                await second.say(read, Rread(record))

        async def both() -> list[bytes]:
            return [await parked.record(), await idle.record()]

        records, _ = await together(both, script)
        assert records == [b"a", b"b"]


@pytest.mark.parametrize(("qid", "told"), [(FILE, False), (SYNTHETIC, True)], ids=["stored", "synthetic"])
async def test_bytes_that_may_be_discarded_are_not_written_behind(
    qid: Qid, told: bool, tmp_path: Path
) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        file = await opened(files, peer, os.O_WRONLY, qid)

        async def taken(where: Peer) -> None:
            m = await where.next()
            assert isinstance(m, Twrite)
            await where.say(m, Rwrite(4))

        await together(lambda: file.write(b"half"), lambda: taken(peer))
        await lose(peer)
        if told:
            with pytest.raises(ConnectionResetError, match="written before may be lost"):
                await file.write(b"more")

        async def script() -> None:
            second = await host.accept()
            await second.opened(qid)
            await taken(second)

        await together(lambda: file.write(b"more"), script)
        assert file.position == 8


async def test_a_body_that_was_not_closed_is_not_silently_gone(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, _):
        file = await opened(files, peer, os.O_WRONLY, SYNTHETIC)

        async def taken() -> None:
            await peer.say(await peer.next(), Rwrite(4))

        await together(lambda: file.write(b"half"), taken)
        await lose(peer)
        with pytest.raises(ConnectionResetError, match="outcome is unknown"):
            await file.close()


async def test_lost_locks_are_told(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, _):
        file = await opened(files, peer, os.O_RDWR)

        async def taken() -> None:
            m = await peer.next()
            assert isinstance(m, Tlock)
            await peer.say(m, Rlock(0))

        await together(lambda: file.lock(), taken)
        await lose(peer)
        with pytest.raises(ConnectionResetError, match="locks may be lost"):
            await file.pread(1, 0)


async def test_a_host_that_is_away_is_tried_until_the_deadline(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s", deadline=0.3) as (files, peer, host):
        host.close()
        await lose(peer)
        began = trio.current_time()
        with pytest.raises(OSError, match=r"unix!.*trace=") as caught:
            await files.stat("/f")
        assert caught.value.filename == "/f"
        assert trio.current_time() - began < 2


async def test_a_host_that_comes_back_is_found(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        host.close()
        await lose(peer)
        again = Host(tmp_path / "s")

        async def script() -> None:
            await trio.testing.wait_all_tasks_blocked(0.02)
            await again.listen()
            await again.accept_and_drop()
            await stat_answered(await again.accept())

        try:
            entry, *_ = await together(lambda: files.stat("/f"), script)
        finally:
            again.close()
        assert entry.size == 5  # type: ignore[attr-defined]


async def test_many_callers_dial_once(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        await lose(peer)

        async def script() -> None:
            second = await host.accept()
            for _ in range(20):
                m: Message = await second.next()
                await second.say(m, Rwalk([FILE]) if isinstance(m, Twalk) else attributes(size=5))

        await together(script, *[lambda: files.stat("/f")] * 10)


async def test_a_given_stream_is_not_dialled_again() -> None:
    async with attached() as (files, peer):
        await lose(peer)
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="was lost"):
                await files.stat("/f")


async def test_a_refusal_after_coming_back_is_the_servers_word(tmp_path: Path) -> None:
    async with hosted(tmp_path / "s") as (files, peer, host):
        file = await opened(files, peer, os.O_RDONLY)
        await lose(peer)

        async def use() -> None:
            with pytest.raises(PermissionError, match="403"):
                await file.pread(1, 0)

        async def script() -> None:
            second = await host.accept()
            await second.walked()
            m = await second.next()
            assert isinstance(m, Tlopen)
            await second.say(m, Rlerror(13, "403 denied"))

        await together(use, script)
