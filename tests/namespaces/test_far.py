"""What is passed on to another tree, and comes back."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.mount import Files, dial
from warren.namespaces import Space
from warren.namespaces.export import Cell, SpaceRoot
from warren.namespaces.opened import worded
from warren.p9.client import MSIZE, VERSIONS
from warren.p9.messages import DOTL, PLAIN, WARREN, Rlopen, Tlopen
from warren.serve.export import Export
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.traces.audit import AuditMemory
from warren.tree import Ctl, Dir, Node, Queue, Secret, Sink, Stream, verb
from warren.tree.node import BLOB, BYTES, CLONE, CTL, SINK, STREAM, TEXT

from tests.namespaces.hops import Hops, hops
from tests.wire import EVERYTHING, RefusedBy, Service, export_of, served


@dataclass
class Far:
    """A tree two hops away: a client, a Space that passes on, another, and the tree."""

    service: Service
    trees: Hops
    last: Export  # of the tree itself

    @asynccontextmanager
    async def files(self, subject: str = "any", version: str = WARREN) -> AsyncIterator[Files]:
        stream = self.service.connect(subject).stream
        async with dial(stream, versions=[version]) as files:
            yield files

    def audited(self) -> list[str]:
        return self.service.audited()


@asynccontextmanager
async def far(
    root: Node, *, rows: tuple[str, ...] = EVERYTHING, versions: tuple[str, ...] = VERSIONS,
    msize: int = MSIZE,
) -> AsyncIterator[Far]:
    async with hops(versions, msize) as trees:
        last = export_of(root)
        trees.there["$last"] = last
        middle = SpaceRoot(Cell(Space().mount("$last", "/", flags="c")), trees)
        trees.there["$middle"] = export_of(middle)
        near = SpaceRoot(Cell(Space().mount("$middle", "/", flags="c")), trees)
        async with served(near, rows) as service:
            yield Far(service, trees, last)
            assert not [e for e in service.export.trace.errors if e.code == 500], service.errors()


async def test_words_stay_words_through_two_hops() -> None:
    async with far(Demo()) as at, at.files() as files:
        words = {e.name: e.word for e in await files.ls("/")}
        assert words.items() >= {
            "hello": TEXT, "scratch": BYTES, "ctl": CTL, "events": STREAM, "send": SINK, "submit": BLOB,
            "clone": CLONE,
        }.items()  # fmt: skip


@pytest.mark.parametrize("spoken", [WARREN, DOTL, PLAIN])
@pytest.mark.parametrize("between", [WARREN, DOTL, PLAIN])
async def test_any_dialect_may_be_spoken_on_either_side(spoken: str, between: str) -> None:
    async with far(Demo(), versions=(between,)) as at, at.files(version=spoken) as files:
        await files.write("/hello", b"a greeting")
        assert await files.read("/hello") == b"a greeting\n"
        await files.write("/ctl", b"say words\n")
        await files.write("/scratch", bytes(20000))
        assert len(await files.read("/scratch")) == 20000
        assert "clone" in [d.name for d in await files.readdir("/")]


# Streams


async def test_a_flush_goes_all_the_way_and_loses_no_record(autojump_clock: MockClock) -> None:
    demo = Demo()
    async with far(demo) as at, at.files() as files:
        async with await files.stream("/recv") as recv:
            for n in range(5):
                with trio.move_on_after(1) as patience:
                    await recv.record()
                assert patience.cancelled_caught
                assert at.last.statistics()["parked"] == 0
                await files.write("/send", b"record %d" % n)
                assert await recv.record() == b"record %d" % n
        async with await files.stream("/recv"):
            await wait_all_tasks_blocked()


async def test_a_parked_read_has_no_deadline(autojump_clock: MockClock) -> None:
    async with far(Demo()) as at, at.files() as files, await files.stream("/recv") as recv:
        async with trio.open_nursery() as nursery:
            got: list[bytes] = []

            async def read() -> None:
                got.append(await recv.record())

            nursery.start_soon(read)
            await trio.sleep(3600)
            await files.write("/send", b"late")
        assert got == [b"late"]


async def test_a_long_record_comes_in_pieces_and_whole() -> None:
    queue = Queue(depth=8)
    record = os.urandom(20000)
    queue.put(record)
    queue.put(b"next")
    async with far(Dir({"recv": Stream(queue)})) as at:
        wire = await at.service.dial(WARREN, msize=4096)
        await wire.open("recv", 1, os.O_NONBLOCK)
        got = b""
        while len(got) < len(record):
            got += await wire.read(1, len(got), 4000)
        assert got == record
        assert await wire.read(1, len(got), 4000) == b"next"


async def test_who_starts_late_may_say_from_where(autojump_clock: MockClock) -> None:
    async with far(Demo()) as at, at.files() as files:
        await files.write("/ctl", b"say one\nsay two\n")
        async with await files.open("/events", os.O_RDWR | os.O_NONBLOCK) as events:
            await events.write(b"from 2")
            assert b"words='two'" in await events.record()


# Records and control


async def test_a_record_is_never_cut() -> None:
    got: list[bytes] = []
    async with far(Dir({"send": Sink(got.append)}), msize=65536) as at, at.files() as files:
        await files.write("/send", b"x" * 60_000)
        with pytest.raises(OSError, match="413 too_large: a record is at most 65504 bytes on the way"):
            await files.write("/send", b"x" * 70_000)
    assert list(map(len, got)) == [60_000]


class Door(Ctl):
    def __init__(self) -> None:
        self.done: list[str] = []

    @verb
    def unlock_(self, pin: Secret) -> str:
        """Unlock it."""
        self.done.append("unlock")
        return "it is open"

    @verb
    def shut(self) -> None:
        """Shut it."""
        self.done.append("shut")


async def test_verbs_are_decided_here_before_anything_goes_there() -> None:
    door = Door()
    async with far(Dir({"door": door}), rows=("any ctl /door#unlock",)) as at, at.files() as files:
        await files.write("/door", b"unlock 1234\n")
        for lines in (b"shut\n", b"unlock 1234\nshut\n", b"# nothing\nshut"):
            with pytest.raises(PermissionError, match="you may not shut on /door"):
                await files.write("/door", lines)
        await files.write("/door", b"# a comment\n\n")
        assert door.done == ["unlock"]
        assert "intent ctl /door#unlock" in at.audited()


async def test_the_audit_shows_verbs_and_no_secrets() -> None:
    door = Door()
    async with far(Dir({"door": door})) as at, at.files() as files:
        await files.write("/door", b"unlock 1234\nshut\n")
        audit = at.service.export.audit
        assert isinstance(audit, AuditMemory)
        assert "1234" not in " ".join(f"{line.path} {line.detail}" for line in audit.lines)
        assert "outcome ctl /door#unlock,shut 0" in at.audited()
        assert door.done == ["unlock", "shut"]


async def test_help_and_answers_are_the_servers() -> None:
    async with far(Dir({"door": Door()})) as at, at.files() as files:
        async with await files.open("/door", os.O_RDWR) as ctl:
            assert await ctl.pread(4096, 0) == b"unlock PIN  # Unlock it.\nshut  # Shut it.\n"
            await ctl.pwrite(b"unlock 1\n", 0)
            assert await ctl.pread(4096, 0) == b"it is open\n"
            with pytest.raises(OSError):
                await ctl.pwrite(b"shut\nopen sesame\n", 0)
            said = (await ctl.pread(4096, 0)).decode()
            assert said.startswith("400 unknown_verb: line 2: no verb 'open'; the verbs are unlock, shut")
            assert said.count("trace=") == 1


async def test_what_a_clone_file_makes_lives_with_its_descriptor() -> None:
    demo = Demo()
    async with far(demo) as at, at.files() as files:
        async with await files.open("/clone", os.O_RDWR) as ctl:
            name = (await ctl.pread(100, 0)).decode().strip()
            await ctl.pwrite(b"add 3\n", 0)
            assert await ctl.pread(100, 0) == b"3\n"
            assert await files.read(f"/{name}/value") == b"3\n"
        assert not demo.counters
        assert "outcome open /clone 0" in at.audited()


async def test_a_body_is_committed_by_fsync_or_clunk_and_discarded_by_hanging_up(
    autojump_clock: MockClock,
) -> None:
    demo = Demo()

    def committed() -> int:
        return sum(b"kind=submitted" in e for e in demo.events.kept)

    async with far(demo) as at:
        async with at.files() as files:
            async with await files.open("/submit", os.O_RDWR) as body:
                await body.write(b"some bytes")
                await body.fsync()
                assert (await body.pread(200, 0)).startswith(b"bytes=10 ")
            await files.write("/submit", b"more")
            assert committed() == 2
        async with at.files() as files:
            body = await files.open("/submit", os.O_WRONLY)
            await body.write(b"half a bo")
        await wait_all_tasks_blocked()
        assert committed() == 2
        async with at.files() as files:
            await files.write("/submit", b"a new one, on a new connection")
        assert committed() == 3


# Errors


async def test_an_error_keeps_errno_words_and_trace(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").touch()
    async with far(Dir({"disk": Disk(tmp_path), "demo": Demo()})) as at, at.files() as files:
        with pytest.raises(OSError) as e:
            await files.remove("/disk/dir", directory=True)
        assert e.value.errno == errno.ENOTEMPTY
        with pytest.raises(OSError) as e:
            await files.write("/demo/ctl", b"say x times=200\n")
        text = e.value.strerror or ""
        assert text.startswith("400 bad_request: times is 1 to 100, not 200 trace=")
        assert text.count("trace=") == text.count("400") == 1
        trace = int(text[-16:], 16)
        assert at.last.trace.find(trace)
        assert at.service.export.trace.find(trace)


def test_what_is_wrong_on_the_way_says_where() -> None:
    lost = worded("$far", ConnectionResetError(errno.ECONNRESET, "it went away trace=0123456789abcdef"))
    assert str(lost.strerror) == "$far: it went away"
    theirs = OSError(errno.EIO, "500 internal trace=0123456789abcdef")
    assert worded("$far", theirs) is theirs


async def test_a_lost_connection_ends_what_was_open_and_nothing_else() -> None:
    async with far(Demo()) as at, at.files() as files:
        file = await files.open("/scratch", os.O_RDWR)
        await file.pwrite(b"x", 0)
        at.trees.lose()
        with pytest.raises(OSError, match="502 upstream"):
            await file.pread(1, 0)
        with pytest.raises(OSError, match="may be lost"):
            await file.close()
        assert await files.read("/scratch") == b"x"


# Identity


async def test_qids_are_stable_and_tell_files_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with hops() as trees:
        trees.there["$one"], trees.there["$two"] = export_of(Disk(tmp_path)), export_of(Disk(tmp_path))
        root = SpaceRoot(Cell(Space().mount("$one", "/one").mount("$two", "/two")), trees)
        async with served(root) as service, dial(service.connect().stream) as files:
            paths = [(await files.stat(f"/{at}/file")).qid.path for at in ("one", "two", "one", "two")]
    assert paths[:2] == paths[2:]
    assert paths[0] != paths[1]


async def test_another_file_under_the_same_name_is_not_mistaken_for_the_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("first")
    async with far(Dir({"disk": Disk(tmp_path)})) as at:
        wire = await at.service.dial(WARREN)
        await wire.walk("disk/file", 1)
        (tmp_path / "file").rename(tmp_path / "old")
        (tmp_path / "file").write_text("second")
        with pytest.raises(OSError, match="another file has this name now"):
            await wire.want(Rlopen, Tlopen(1, os.O_WRONLY))


async def test_no_symbolic_link_is_followed_on_the_way(tmp_path: Path) -> None:
    """Somebody puts a link in place of a directory that a caller of ours stands in."""
    (tmp_path / "pub").mkdir()
    (tmp_path / "secret").mkdir()
    for name in ("pub", "secret"):
        (tmp_path / name / "file").write_text(name)
    async with far(Dir({"disk": Disk(tmp_path)})) as at:
        wire = await at.service.dial(WARREN)
        await wire.walk("disk/pub", 1)
        (tmp_path / "pub").rename(tmp_path / "was")
        (tmp_path / "pub").symlink_to("secret")
        with pytest.raises(RefusedBy):
            await wire.walk("file", 2, fid=1)


# Locks


async def test_sessions_of_one_caller_do_not_share_their_locks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with far(Dir({"disk": Disk(tmp_path)})) as at, at.files() as one, at.files() as two:
        mine = await one.open("/disk/file", os.O_RDWR)
        async with await two.open("/disk/file", os.O_RDWR) as theirs:
            assert await mine.lock(0, 10, wait=False, owner=1)
            assert not await theirs.lock(0, 10, wait=False, owner=1)
            held = await theirs.getlock(0, 10, owner=1)
            assert held is not None
            assert (held.start, held.length, held.proc_id) == (0, 10, 1)
            assert "/" not in held.client_id
            assert await theirs.lock(10, 10, wait=False, owner=1)
            await theirs.unlock(10, 10, owner=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(theirs.lock, 0, 10)
                await wait_all_tasks_blocked()
                await mine.close()  # which gives its locks up


@pytest.mark.parametrize("between", [WARREN, DOTL])
async def test_a_lock_that_was_refused_leaves_no_fid_behind(tmp_path: Path, between: str) -> None:
    (tmp_path / "file").touch()
    async with far(Dir({"disk": Disk(tmp_path)}), versions=(between,)) as at:
        async with at.files() as one, at.files() as two:
            async with await one.open("/disk/file", os.O_RDWR) as mine:
                assert await mine.lock(wait=False, owner=1)
                before = at.last.statistics()["fids"]
                async with await two.open("/disk/file", os.O_RDWR) as theirs:
                    for _ in range(3):
                        assert not await theirs.lock(wait=False, owner=2)
                await wait_all_tasks_blocked()
                assert at.last.statistics()["fids"] == before
