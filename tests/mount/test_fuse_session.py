"""One mount at work: every request is answered once, and means to the server what it meant to the kernel."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from warren.mount.fuse import messages as m
from warren.mount.fuse.nodes import Nodes
from warren.p9.fields import QTDIR, Qid
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.tree import Blob, Dir

from tests.mount.kernel import MINE, Entry, Kernel, mounted, session_at
from tests.wire import listened


def number_of(call: pytest.ExceptionInfo[OSError]) -> str:
    return errno.errorcode[call.value.errno or 0]


async def refusal(kernel: Kernel, opcode: int, body: Any, node: int = m.ROOT) -> str:
    with pytest.raises(OSError) as e:
        await kernel.ask(opcode, body, node)
    return number_of(e)


async def test_what_is_agreed_on_lets_one_write_be_one_message(tmp_path: Path) -> None:
    async with listened(Demo(), f"unix!{tmp_path}/s") as service, session_at(service.address) as kernel:
        agreed = await kernel.begin()
        assert (agreed.major, agreed.minor) == m.VERSION
        assert agreed.max_write % 4096 == 0
        assert 1 << 19 < agreed.max_write <= 1 << 20
        assert agreed.max_pages * 4096 == agreed.max_write
        for flag in (m.ASYNC_READ, m.POSIX_LOCKS, m.ATOMIC_O_TRUNC, m.FLOCK_LOCKS, m.DO_READDIRPLUS):
            assert agreed.flags & flag


async def test_a_value_is_read_and_written(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        hello = await kernel.lookup("hello")
        file = await kernel.open(hello.nodeid, os.O_RDWR)
        assert file.flags & m.FOPEN_DIRECT_IO
        assert await kernel.read(file.fh, hello.nodeid) == b"hello, world\n"
        assert await kernel.write(file.fh, hello.nodeid, b"good day\n") == 9
        assert await kernel.read(file.fh, hello.nodeid) == b"good day\n"
        await kernel.release(file.fh, hello.nodeid)
        assert not len(kernel.session.opens)


async def test_a_missing_name_and_one_too_long_have_their_errnos(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        assert await refusal(kernel, m.LOOKUP, m.Named("nothing")) == "ENOENT"
        assert await refusal(kernel, m.LOOKUP, m.Named("x" * 256)) == "ENAMETOOLONG"
        assert await refusal(kernel, m.LOOKUP, m.Named("x"), 999) == "ESTALE"
        assert await refusal(kernel, m.READ, m.Read(999, 0, 10, 0, 0, 0, 0)) == "EBADF"


async def test_a_stream_gives_a_record_a_read_and_the_rest_of_a_long_one_next(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        recv, send = await kernel.lookup("recv"), await kernel.lookup("send")
        out, into = await kernel.open(recv.nodeid), await kernel.open(send.nodeid, os.O_WRONLY)
        assert out.flags & m.FOPEN_STREAM
        reading = await kernel.send(m.READ, m.Read(out.fh, 0, 4096, 0, 0, 0, 0), recv.nodeid)
        for record in (b"one", b"two", b"long record"):
            await kernel.write(into.fh, send.nodeid, record)
        assert await kernel.reply(reading) == b"one"
        assert await kernel.read(out.fh, recv.nodeid) == b"two"
        pieces = [await kernel.read(out.fh, recv.nodeid, size=5) for _ in range(3)]
        assert pieces == [b"long ", b"recor", b"d"]


async def test_a_signal_ends_a_read_that_waits_and_takes_no_record(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        recv, send = await kernel.lookup("recv"), await kernel.lookup("send")
        out, into = await kernel.open(recv.nodeid), await kernel.open(send.nodeid, os.O_WRONLY)
        reading = await kernel.send(m.READ, m.Read(out.fh, 0, 4096, 0, 0, 0, 0), recv.nodeid)
        await kernel.interrupt(reading)
        with pytest.raises(InterruptedError):
            await kernel.reply(reading)
        await kernel.write(into.fh, send.nodeid, b"kept")
        assert await kernel.read(out.fh, recv.nodeid) == b"kept"


async def test_a_reader_that_will_not_wait_gets_what_is_there_and_a_poll_is_told(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        recv, send = await kernel.lookup("recv"), await kernel.lookup("send")
        out, into = await kernel.open(recv.nodeid), await kernel.open(send.nodeid, os.O_WRONLY)
        with pytest.raises(BlockingIOError):
            await kernel.read(out.fh, recv.nodeid, flags=os.O_NONBLOCK)
        ask = m.Poll(out.fh, 77, 1, select.POLLIN)
        ready = m.REPLIES["Ready"].parse(memoryview(await kernel.ask(m.POLL, ask, recv.nodeid)))
        assert not ready.revents & select.POLLIN
        await kernel.write(into.fh, send.nodeid, b"now")
        while not kernel.notices:
            await kernel.listen()
        assert kernel.notices[0] == (m.NOTIFY_POLL, m.packed(m.PollReady(77)))
        ready = m.REPLIES["Ready"].parse(memoryview(await kernel.ask(m.POLL, ask, recv.nodeid)))
        assert ready.revents & select.POLLIN
        assert await kernel.read(out.fh, recv.nodeid, flags=os.O_NONBLOCK) == b"now"


async def test_the_answer_to_a_verb_is_read_where_the_descriptor_stands(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        clone = await kernel.lookup("clone")
        file = await kernel.open(clone.nodeid, os.O_RDWR)
        assert await kernel.read(file.fh, clone.nodeid) == b"1\n"
        assert await kernel.write(file.fh, clone.nodeid, b"add n=5\n", 2) == 8
        assert await kernel.read(file.fh, clone.nodeid, 10) == b"5\n"
        assert await kernel.read(file.fh, clone.nodeid, 12) == b""


async def test_an_object_of_a_clone_ends_with_its_descriptor_though_the_kernel_knows_its_nodes(
    tmp_path: Path,
) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        clone = await kernel.lookup("clone")
        file = await kernel.open(clone.nodeid, os.O_RDWR)
        await kernel.lookup("1/value")
        await kernel.release(file.fh, clone.nodeid)
        assert await refusal(kernel, m.LOOKUP, m.Named("1")) == "ENOENT"


async def test_a_flush_commits_nothing_and_the_release_does(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def commit(body: bytes, declared: bool) -> None:
        bodies.append(body)

    async with mounted(Dir({"body": Blob(commit), "other": Blob(commit)}), tmp_path) as (kernel, _):
        node = (await kernel.lookup("body")).nodeid
        fh = (await kernel.open(node, os.O_WRONLY)).fh
        await kernel.ask(m.FLUSH, m.Flush(fh, 0, 0, 1), node)
        await kernel.write(fh, node, b"all ")
        await kernel.ask(m.FLUSH, m.Flush(fh, 0, 0, 1), node)
        await kernel.write(fh, node, b"of it", 4)
        assert bodies == []
        await kernel.release(fh, node)
        await kernel.lookup("other")  # comes behind the clunk
        assert bodies == [b"all of it"]


async def test_a_write_that_may_be_a_piece_of_one_is_refused_where_one_write_is_one_record(
    tmp_path: Path,
) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        send = (await kernel.lookup("send")).nodeid
        fh = (await kernel.open(send, os.O_WRONLY)).fh
        most = kernel.session.max_io
        with pytest.raises(OSError) as e:
            await kernel.write(fh, send, bytes(most))
        assert number_of(e) == "EFBIG"
        assert await kernel.write(fh, send, bytes(most - 4096)) == most - 4096


async def test_the_reason_of_an_error_is_read_by_the_process_that_got_it(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        ctl, errstr = await kernel.lookup("ctl"), await kernel.lookup("dev/errstr")
        fh = (await kernel.open(ctl.nodeid, os.O_WRONLY)).fh
        with pytest.raises(OSError):
            await kernel.write(fh, ctl.nodeid, b"nonsense\n")
        assert await refusal(kernel, m.LOOKUP, m.Named("nothing")) == "ENOENT"
        reading = await kernel.open(errstr.nodeid)
        said = await kernel.read(reading.fh, errstr.nodeid)
        assert b"no verb 'nonsense'" in said
        assert b" trace=" in said


# A stored tree


async def test_files_are_made_found_renamed_and_removed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    async with mounted(Disk(str(tmp_path / "d")), tmp_path) as (kernel, _):
        raw = await kernel.ask(m.CREATE, m.Create(os.O_RDWR, 0o644, 0, 0, "a"))
        made = Entry(raw)
        fh = m.REPLIES["Opened"].parse(memoryview(made.more)).fh
        assert await kernel.write(fh, made.nodeid, b"x" * 100_000) == 100_000
        assert len(await kernel.read(fh, made.nodeid, size=200_000)) == 100_000
        sub = Entry(await kernel.ask(m.MKDIR, m.Mkdir(0o755, 0, "sub")))
        await kernel.ask(m.RENAME, m.Rename(sub.nodeid, "a", "b"))
        assert (await kernel.lookup("sub/b")).nodeid == made.nodeid
        assert await refusal(kernel, m.RMDIR, m.Named("sub")) == "ENOTEMPTY"
        await kernel.ask(m.UNLINK, m.Named("b"), sub.nodeid)
        # Without a name, and still open.
        got = await kernel.ask(m.GETATTR, m.Getattr(0, 0, 0), made.nodeid)
        assert m.REPLIES["Attr"].parse(memoryview(got)[16:]).size == 100_000
        await kernel.release(fh, made.nodeid)
        await kernel.ask(m.RMDIR, m.Named("sub"))
        assert os.listdir(tmp_path / "d") == []


async def test_hard_links_are_one_node_and_counts_are_exact(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/one").write_text("x")
    async with mounted(Disk(str(tmp_path / "d")), tmp_path) as (kernel, service):
        one = await kernel.lookup("one")
        two = Entry(await kernel.ask(m.LINK, m.Link(one.nodeid, "two")))
        assert two.nodeid == one.nodeid
        assert two.attr.nlink == 2
        session = kernel.session
        assert session.nodes.by_id[one.nodeid].lookups == 2
        await kernel.send(m.FORGET, m.Forget(1), one.nodeid)
        await kernel.lookup("one")
        assert session.nodes.by_id[one.nodeid].lookups == 2
        pairs = one.nodeid.to_bytes(8, "little") + (2).to_bytes(8, "little")
        await kernel.send(m.BATCH_FORGET, m.BatchForget(1, 0, pairs), 0)
        await kernel.ask(m.STATFS, m.Bare())
        assert one.nodeid not in session.nodes.by_id
        (server,) = service.export.sessions
        assert len(server.fids) == 1  # the root


async def test_directories_are_read_whole_in_small_pieces(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    names = {f"file-{n:04}" for n in range(300)}
    for name in names:
        (tmp_path / "d" / name).touch()
    async with mounted(Disk(str(tmp_path / "d")), tmp_path) as (kernel, _):
        for opcode, least in ((m.READDIR, 0), (m.READDIRPLUS, 300)):
            opened = m.REPLIES["Opened"].parse(memoryview(await kernel.ask(m.OPENDIR, m.Open(0, 0))))
            found: list[str] = []
            offset = 0
            while raw := await kernel.ask(opcode, m.Read(opened.fh, offset, 4096, 0, 0, 0, 0)):
                assert len(raw) <= 4096
                at = 0
                while at < len(raw):
                    at += 128 if opcode == m.READDIRPLUS else 0
                    entry = m.REPLIES["Dirent"].parse(memoryview(raw)[at : at + 24])
                    found.append(raw[at + 24 : at + 24 + entry.namelen].decode())
                    at += 24 + entry.namelen + 7 & ~7
                    offset = entry.off
            assert len(found) == 302
            assert set(found) == names | {".", ".."}
            assert len(kernel.session.nodes) > least
            await kernel.ask(m.RELEASEDIR, m.Release(opened.fh, 0, 0, 0))


async def test_locks_keep_others_out_wait_and_go_with_a_close(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")

    def lock(fh: int, owner: int, kind: int, end: int = (1 << 63) - 1) -> m.Lk:
        return m.Lk(fh, owner, 0, end, kind, 100 + owner, 0, 0)

    async with mounted(Disk(str(tmp_path / "d")), tmp_path) as (kernel, _):
        node = (await kernel.lookup("f")).nodeid
        a, b = (await kernel.open(node, os.O_RDWR)).fh, (await kernel.open(node, os.O_RDWR)).fh
        await kernel.ask(m.SETLK, lock(a, 1, 1), node)
        await kernel.ask(m.SETLK, lock(b, 1, 1), node)  # the same owner, through another descriptor
        assert await refusal(kernel, m.SETLK, lock(b, 2, 1), node) == "EAGAIN"
        held = m.REPLIES["Locked"].parse(memoryview(await kernel.ask(m.GETLK, lock(b, 2, 0), node)))
        assert (held.type, held.pid) == (1, 101)
        waiting = await kernel.send(m.SETLKW, lock(b, 2, 1), node)
        given_up = await kernel.send(m.SETLKW, lock(b, 3, 1), node)
        await kernel.interrupt(given_up)
        with pytest.raises(InterruptedError):
            await kernel.reply(given_up)
        await kernel.ask(m.FLUSH, m.Flush(a, 0, 0, 1), node)
        await kernel.reply(waiting)
        assert await refusal(kernel, m.SETLK, lock(a, 1, 0), node) == "EAGAIN"
        await kernel.release(b, node)
        await kernel.ask(m.SETLK, lock(a, 1, 0), node)


async def test_attributes_of_files_are_set_found_and_listed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    async with mounted(Disk(str(tmp_path / "d")), tmp_path) as (kernel, _):
        node = (await kernel.lookup("f")).nodeid
        await kernel.ask(m.SETXATTR, m.Setxattr(5, 0, "user.k", b"value"), node)
        assert await kernel.ask(m.GETXATTR, m.Getxattr(0, 0, "user.k"), node) == m.packed(m.Written(5, 0))
        assert await kernel.ask(m.GETXATTR, m.Getxattr(100, 0, "user.k"), node) == b"value"
        assert await refusal(kernel, m.GETXATTR, m.Getxattr(2, 0, "user.k"), node) == "ERANGE"
        assert await kernel.ask(m.LISTXATTR, m.Listxattr(100, 0), node) == b"user.k\0"
        await kernel.ask(m.REMOVEXATTR, m.Named("user.k"), node)
        assert await refusal(kernel, m.GETXATTR, m.Getxattr(100, 0, "user.k"), node) == "ENODATA"
        times = m.Setattr(0x8 | 0x20, 0, 0, 7, 0, 0, 1_000_000, 0, 0, 5, 0, 0, 0, 0, 0, 0)
        await kernel.ask(m.SETATTR, times, node)
    st = os.stat(tmp_path / "d/f")
    assert (st.st_size, st.st_mtime_ns) == (7, 1_000_000 * 10**9 + 5)


async def test_an_opcode_that_is_not_known_is_answered_and_never_for_the_whole_connection(
    tmp_path: Path,
) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        for opcode in (47, 48, 51, 4096):
            raw = m.HEAD.pack(m.HEAD.size, opcode, 9999 + opcode, 1, 0, 0, 0, 0, 0)
            await kernel.send_raw(raw)
            with pytest.raises(OSError) as e:
                await kernel.reply(9999 + opcode)
            assert number_of(e) == errno.errorcode[errno.EOPNOTSUPP]


# A connection that goes and comes


async def test_what_is_in_flight_fails_and_what_comes_later_finds_the_server_again(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("kept")
    address = f"unix!{tmp_path}/s"
    async with listened(Disk(str(tmp_path / "d")), address) as first:
        async with session_at(first.address) as kernel:
            await kernel.begin()
            node = (await kernel.lookup("f")).nodeid
            fh = (await kernel.open(node)).fh
            (peer,) = first.export.sessions
            await end(peer)
            notices: set[int] = set()
            while not kernel.notices:
                await kernel.listen()
            for kind, body in kernel.notices:
                assert kind == m.NOTIFY_INVAL_INODE
                notices.add(int.from_bytes(body[:8], "little"))
            assert node in notices
            # By the number that the kernel has, and by the open file.
            assert await kernel.ask(m.GETATTR, m.Getattr(0, 0, 0), node)
            assert await kernel.read(fh, node) == b"kept"


async def test_a_channel_that_is_no_socket_will_do(tmp_path: Path) -> None:
    """As one under TLS: the connection is then received from in its own task."""
    (tmp_path / "d").mkdir()
    async with listened(Disk(str(tmp_path / "d")), f"unix!{tmp_path}/s") as service:
        async with session_at(await trio.open_unix_socket(f"{tmp_path}/s")) as kernel:
            await kernel.begin()
            made = Entry(await kernel.ask(m.CREATE, m.Create(os.O_RDWR, 0o644, 0, 0, "a")))
            fh = m.REPLIES["Opened"].parse(memoryview(made.more)).fh
            assert await kernel.write(fh, made.nodeid, b"x" * 300_000) == 300_000
            assert len(await kernel.read(fh, made.nodeid, size=300_000)) == 300_000
            (peer,) = service.export.sessions
            await end(peer)
            with pytest.raises(OSError):
                await kernel.lookup("a")


async def test_a_crowd_of_requests_is_more_than_the_server_takes_and_all_are_answered(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    async with mounted(Disk(str(tmp_path / "d")), tmp_path) as (kernel, _):
        asked = [
            await kernel.send(m.CREATE, m.Create(os.O_RDWR, 0o644, 0, 0, f"f{n}")) for n in range(400)
        ]
        for unique in asked:
            await kernel.reply(unique)
    assert len(os.listdir(tmp_path / "d")) == 400


async def test_users_have_a_connection_each_where_all_are_let_in(tmp_path: Path) -> None:
    async with listened(Demo(), f"unix!{tmp_path}/s") as service:
        async with session_at(service.address, each_user=True) as kernel:
            await kernel.begin()
            for uid in (0, 1001, 1002, 1001):
                raw = m.pack_request(m.LOOKUP, m.Named("hello"), 5000 + uid, 1, uid, uid, MINE)
                await kernel.send_raw(raw)
                await kernel.reply(5000 + uid)
            assert len(service.export.sessions) == 3


@pytest.mark.parametrize("missing", [False, True])
async def test_a_mount_that_ends_lets_go_of_what_is_under_way(tmp_path: Path, missing: bool) -> None:
    """Whatever it waits for: a coroutine that were to go on then would end the process badly."""
    async with mounted(Demo(), tmp_path) as (kernel, _):
        name = "missing" if missing else "hello"
        for _ in range(20):
            await kernel.send(m.LOOKUP, m.Named(name))
        kernel.sock.close()
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.session.ended
        assert not kernel.session.jobs


def lose(kernel: Kernel) -> None:
    """Have the connection go without a word."""
    (line,) = kernel.session._lines.values()
    assert line.link is not None
    line.link.drop("the test says so")


async def end(peer: Any) -> None:
    """Have the server hang up on a session."""
    peer.end("the test says so")
    await trio.lowlevel.checkpoint()


async def test_a_stream_says_once_that_records_may_be_missing_and_a_close_that_a_body_may_be(
    tmp_path: Path,
) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, _):
        events, submit = await kernel.lookup("events"), await kernel.lookup("submit")
        out, into = await kernel.open(events.nodeid), await kernel.open(submit.nodeid, os.O_WRONLY)
        waiting = await kernel.open(events.nodeid)
        reading = await kernel.send(m.READ, m.Read(waiting.fh, 0, 4096, 0, 0, 0, 0), events.nodeid)
        await kernel.write(into.fh, submit.nodeid, b"half a body")
        lose(kernel)
        for unique in (reading, await kernel.send(m.FLUSH, m.Flush(into.fh, 0, 0, 1), submit.nodeid)):
            with pytest.raises(ConnectionResetError):
                await kernel.reply(unique)
        await kernel.ask(m.FLUSH, m.Flush(into.fh, 0, 0, 1), submit.nodeid)
        with pytest.raises(ConnectionResetError):
            await kernel.read(out.fh, events.nodeid)
        ctl = await kernel.lookup("ctl")
        fh = (await kernel.open(ctl.nodeid, os.O_WRONLY)).fh
        going_on = [
            await kernel.send(m.READ, m.Read(file.fh, 0, 4096, 0, 0, 0, 0), events.nodeid)
            for file in (out, waiting)
        ]
        await kernel.ask(m.STATFS, m.Bare())
        await kernel.write(fh, ctl.nodeid, b"say again\n")
        for unique in going_on:
            assert b"again" in await kernel.reply(unique)


async def test_while_the_server_is_away_every_use_fails_soon(tmp_path: Path) -> None:
    async with mounted(Demo(), tmp_path) as (kernel, service):
        recv = await kernel.lookup("recv")
        fh = (await kernel.open(recv.nodeid)).fh
        reading = await kernel.send(m.READ, m.Read(fh, 0, 4096, 0, 0, 0, 0), recv.nodeid)
        os.unlink(tmp_path / "sock")
        (peer,) = service.export.sessions
        await end(peer)
        with pytest.raises(ConnectionResetError):
            await kernel.reply(reading)
        assert await refusal(kernel, m.LOOKUP, m.Named("hello")) == "ECONNREFUSED"
        await kernel.release(fh, recv.nodeid)  # letting go needs nobody


# Nodes


def test_a_directory_is_known_by_its_place_and_a_file_by_itself() -> None:
    nodes = Nodes()
    d = nodes.entered(nodes.root, "d", Qid(QTDIR, 1, 5), 0o40755, 0)
    assert nodes.entered(nodes.root, "d", Qid(QTDIR, 2, 5), 0o40755, 0) is d
    assert nodes.entered(nodes.root, "bound", Qid(QTDIR, 1, 5), 0o40755, 0) is not d
    f = nodes.entered(d, "f", Qid(0, 1, 6), 0o100644, 0)
    assert nodes.entered(nodes.root, "g", Qid(0, 9, 6), 0o100644, 0) is f
    assert nodes.entered(d, "f", Qid(0, 1, 7), 0o100644, 0) is not f


def test_a_rename_moves_what_lies_below() -> None:
    nodes = Nodes()
    d = nodes.entered(nodes.root, "d", Qid(QTDIR, 1, 5), 0o40755, 0)
    f = nodes.entered(d, "f", Qid(0, 1, 6), 0o100644, 0)
    nodes.renamed(nodes.root, "d", nodes.root, "e")
    assert f.path() == ["e", "f"]
    assert nodes.entered(nodes.root, "e", Qid(QTDIR, 1, 5), 0o40755, 0) is d


def test_what_was_removed_has_no_name_and_a_successor_is_another_node() -> None:
    nodes = Nodes()
    t = nodes.entered(nodes.root, "t", Qid(0, 0, 5), 0o100644, 1)
    nodes.removed(nodes.root, "t")
    assert t.names == []
    assert nodes.entered(nodes.root, "t", Qid(0, 0, 6), 0o100644, 1) is not t
